//! The web service: the page, and a JSON API that calls emoji and voting by gRPC through the mesh.

use crate::catalogue::with_emoji;
use crate::mesh::Client;
use crate::proto::emoji_service_client::EmojiServiceClient;
use crate::proto::voting_service_client::VotingServiceClient;
use crate::proto::{
    Emoji, FindByShortcodeRequest, ListAllEmojiRequest, ResultsRequest, VoteRequest, VoteResponse,
};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use tonic::{Code, Status};
use tower_http::compression::CompressionLayer;
use tower_http::set_header::SetResponseHeaderLayer;

const INDEX: &str = include_str!("../web/index.html");
const SCRIPT: &str = include_str!("../web/app.js");
const STYLES: &str = include_str!("../web/styles.css");
const FAVICON: &[u8] = include_bytes!("../web/favicon.ico");

/// What may be changed about the page from outside.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// A line shown above everything (`MESSAGE_OF_THE_DAY`).
    pub message: String,
    /// A script on disk that is served as `/js` in place of ours (`INDEX_BUNDLE`).
    pub index_bundle: Option<PathBuf>,
    /// Where a development server serves `/dist/index_bundle.js` (`WEBPACK_DEV_SERVER`).
    pub dev_server: Option<String>,
}

struct Web {
    emoji: EmojiServiceClient<Client>,
    voting: VotingServiceClient<Client>,
    page: Page,
    html: String,
}

type App = State<Arc<Web>>;

/// The service's routes; `emoji` and `voting` lead to the services of that name.
pub fn router(emoji: Client, voting: Client, page: Page) -> Router {
    let web = Web {
        emoji: EmojiServiceClient::new(emoji),
        voting: VotingServiceClient::new(voting),
        html: html(&page),
        page,
    };
    let pages = Router::new()
        .route("/", get(index))
        .route("/leaderboard", get(index))
        .route("/js", get(script))
        .route("/dist/index_bundle.js", get(script))
        .route("/dist/styles.css", get(async || asset("text/css; charset=UTF-8", STYLES)))
        .route("/img/favicon.ico", get(async || asset("image/x-icon", FAVICON)))
        .layer(header(CACHE_CONTROL, "no-cache"));
    let api = Router::new()
        .route("/api/list", get(list))
        .route("/api/vote", get(vote))
        .route("/api/leaderboard", get(leaderboard))
        .layer(header(CACHE_CONTROL, "no-store"));
    pages
        .merge(api)
        .fallback(not_found)
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(CompressionLayer::new())
        .with_state(Arc::new(web))
}

fn header(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}

/// Why a request of the API failed; its answer is `{"error": "..."}`.
enum Failure {
    /// The caller's fault.
    BadRequest(String),
    /// A service we called answered this.
    Backend(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Backend(status)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::BadRequest(text) => (StatusCode::BAD_REQUEST, text),
            Self::Backend(status) => (StatusCode::INTERNAL_SERVER_ERROR, rpc_error(&status)),
        };
        #[derive(Serialize)]
        struct Body {
            error: String,
        }
        json(status, &Body { error })
    }
}

/// The status as gRPC for Go prints it, which is what the first emojivoto answered.
fn rpc_error(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => {
            (status, [(CONTENT_TYPE, "application/json; charset=UTF-8")], text + "\n").into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn list(State(web): App) -> Result<Response, Failure> {
    #[derive(Serialize)]
    struct Item {
        shortcode: String,
        unicode: String,
    }
    let emoji = web.emoji.clone().list_all(ListAllEmojiRequest {}).await?.into_inner().list;
    let item = |emoji: Emoji| Item { shortcode: emoji.shortcode, unicode: emoji.unicode };
    Ok(json(StatusCode::OK, &emoji.into_iter().map(item).collect::<Vec<_>>()))
}

#[derive(Deserialize)]
struct Vote {
    #[serde(default)]
    choice: String,
}

async fn vote(State(web): App, Query(Vote { choice }): Query<Vote>) -> Result<StatusCode, Failure> {
    if choice.is_empty() {
        return Err(Failure::BadRequest("Emoji choice [] is mandatory".to_owned()));
    }
    if find(&web, &choice).await?.is_none() {
        return Err(Failure::BadRequest(format!("Choosen emoji shortcode [{choice}] doesnt exist")));
    }
    cast(&mut web.voting.clone(), &choice).await?;
    Ok(StatusCode::OK)
}

async fn find(web: &Web, shortcode: &str) -> Result<Option<Emoji>, Status> {
    let request = FindByShortcodeRequest { shortcode: shortcode.to_owned() };
    Ok(web.emoji.clone().find_by_shortcode(request).await?.into_inner().emoji)
}

macro_rules! cast_votes {
    ($($method:ident $shortcode:literal $unicode:literal,)*) => {
        /// Calls the method that votes for `shortcode`.
        async fn cast(
            voting: &mut VotingServiceClient<Client>,
            shortcode: &str,
        ) -> Result<tonic::Response<VoteResponse>, Status> {
            match shortcode {
                $($shortcode => voting.$method(VoteRequest {}).await,)*
                other => Err(Status::unimplemented(format!("no method votes for {other}"))),
            }
        }
    };
}
with_emoji!(cast_votes);

async fn leaderboard(State(web): App) -> Result<Response, Failure> {
    #[derive(Serialize)]
    struct Row {
        shortcode: String,
        unicode: String,
        votes: String,
    }
    let results = web.voting.clone().results(ResultsRequest {}).await?.into_inner().results;
    let mut rows = Vec::with_capacity(results.len());
    for result in results {
        let unicode = find(&web, &result.shortcode).await?.map(|emoji| emoji.unicode).unwrap_or_default();
        rows.push(Row { shortcode: result.shortcode, unicode, votes: result.votes.to_string() });
    }
    Ok(json(StatusCode::OK, &rows))
}

fn html(page: &Page) -> String {
    let script = page.dev_server.as_ref().map(|server| format!("{server}/dist/index_bundle.js"));
    let hidden = if page.message.is_empty() { " hidden" } else { "" };
    INDEX
        .replace("{{script}}", &escape(script.as_deref().unwrap_or("/js")))
        .replace("{{hidden}}", hidden)
        .replace("{{message}}", &escape(&page.message))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(web: &Web, status: StatusCode) -> Response {
    let mut response =
        (status, [(CONTENT_TYPE, "text/html; charset=UTF-8")], web.html.clone()).into_response();
    if web.page.dev_server.is_none() {
        let policy = HeaderValue::from_static("default-src 'self'; base-uri 'none'; frame-ancestors 'none'");
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

async fn index(State(web): App) -> Response {
    page(&web, StatusCode::OK)
}

async fn not_found(State(web): App) -> Response {
    page(&web, StatusCode::NOT_FOUND)
}

fn asset(kind: &'static str, body: impl IntoResponse) -> Response {
    ([(CONTENT_TYPE, kind)], body).into_response()
}

async fn script(State(web): App) -> Response {
    const KIND: &str = "text/javascript; charset=UTF-8";
    let Some(path) = &web.page.index_bundle else { return asset(KIND, SCRIPT) };
    match tokio::fs::read(path).await {
        Ok(bundle) => asset(KIND, bundle),
        Err(error) => {
            let text = format!("INDEX_BUNDLE {} cannot be read: {error}\n", path.display());
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_grpc_for_go_prints_it() {
        assert_eq!(rpc_error(&Status::unknown("ERROR")), "rpc error: code = Unknown desc = ERROR");
        let late = Status::deadline_exceeded("deadline passed after 1s");
        assert_eq!(rpc_error(&late), "rpc error: code = DeadlineExceeded desc = deadline passed after 1s");
    }

    #[test]
    fn a_message_of_the_day_is_text_and_no_markup() {
        let page = Page { message: "<b>\"hi\" & bye</b>".to_owned(), ..Page::default() };
        let html = html(&page);
        assert!(html.contains("&lt;b&gt;&quot;hi&quot; &amp; bye&lt;/b&gt;"));
        assert!(html.contains(r#"src="/js""#) && !html.contains("{{"));
    }

    #[test]
    fn a_development_server_serves_the_script() {
        let page = Page { dev_server: Some("http://localhost:8083".to_owned()), ..Page::default() };
        assert!(html(&page).contains(r#"src="http://localhost:8083/dist/index_bundle.js""#));
    }
}
