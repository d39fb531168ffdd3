//! Floor 6: the admin server: `/metrics`, `/live`, `/ready`, `/inspect`, and whatever pages it is given.

use crate::admin::asked::Asked;
use crate::admin::guard::{Access, Guard};
use crate::admin::readiness::Readiness;
use crate::error::BoxError;
use crate::metrics::text::Form;
use crate::serve::http::Remote;
use crate::serve::listen;
use crate::serve::listen::Drained;
use crate::serve::settings::ServeSettings;
use crate::tls::identity::{Identity, PeerIdentity};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower_service::Service;

/// How long a page may wait for its turn and then take to render: 5 s, half of Prometheus's scrape timeout.
pub const RENDER_MAX: Duration = Duration::from_secs(5);

/// The most bytes of a `POST`: 64 KiB, far above any question that a page asks.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// The body of a page: whole, or a stream.
pub type AdminBody = UnsyncBoxBody<Bytes, Infallible>;

/// Answers what a page is asked.
pub type Handler = Arc<dyn Fn(Asked) -> BoxFuture<'static, Response<AdminBody>> + Send + Sync>;

/// One page.
#[derive(Clone)]
struct Page {
    method: Method,
    path: &'static str,
    access: Access,
    handler: Handler,
}

/// The admin pages, as a service that [`serve`] puts on a listener, or an application on its own.
///
/// | path | answer |
/// | --- | --- |
/// | `/live` | 200 `live` |
/// | `/ready` | 200 `ready`, else 503 `not ready` and what is waited for, a line each |
/// | `/metrics` | the metrics as text, by whatever [`Admin::metrics`] was given |
/// | `/inspect` | what the mesh knows, as JSON, by whatever [`Admin::inspect`] was given |
/// | others | whatever [`Admin::route`] was given |
///
/// All but the first two want a `Host` that is an IP address, `localhost` or [allowed](Admin::host), and are not shown
/// to another site's page: see [`Access`]. What is rendered is rendered one at a time on a blocking thread
/// ([`Turn`]), so that no number of scrapers takes the time of requests.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    guard: Guard,
    pages: Vec<Page>,
    turn: Turn,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("readiness", &self.readiness)
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Tells this readiness, and has no other page yet.
    pub fn new(readiness: Readiness) -> Self {
        let (guard, pages, turn) = (Guard::default(), Vec::new(), Turn(Arc::new(Semaphore::new(1))));
        Self { readiness, guard, pages, turn }
    }

    /// Answers `/metrics` with what `render` makes: Prometheus's text.
    #[must_use]
    pub fn metrics(self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.text("/metrics", |_| Form::Classic.content_type(), move |_| render())
    }

    /// Answers `/metrics` with what `render` makes in the form that is asked for.
    #[must_use]
    pub fn metrics_as(self, render: impl Fn(Form) -> String + Send + Sync + 'static) -> Self {
        self.text("/metrics", Form::content_type, render)
    }

    /// Answers `/inspect` with what `render` makes.
    #[must_use]
    pub fn inspect(self, render: impl Fn() -> serde_json::Value + Send + Sync + 'static) -> Self {
        // With `#` a value is written over several lines, for people.
        self.text("/inspect", |_| JSON, move |_| format!("{:#}\n", render()))
    }

    fn text(
        self,
        path: &'static str,
        content_type: fn(Form) -> &'static str,
        render: impl Fn(Form) -> String + Send + Sync + 'static,
    ) -> Self {
        let (turn, render) = (self.turn.clone(), Arc::new(render));
        self.route(Method::GET, path, Access::Read, move |asked| {
            let (turn, render) = (turn.clone(), Arc::clone(&render));
            let form = if asked.wants_open_metrics { Form::Open } else { Form::Classic };
            Box::pin(async move {
                match turn.take(move || render(form)).await {
                    Ok(page) => response(StatusCode::OK, content_type(form), page),
                    Err(refusal) => refusal,
                }
            })
        })
    }

    /// Answers `path` with what `handler` makes of a request. A page for `GET` answers `HEAD` too; of two handlers of one method
    /// and path the later one is asked. Whatever takes time to make is to be made in its [`turn`](Self::turn).
    #[must_use]
    pub fn route(
        mut self,
        method: Method,
        path: &'static str,
        access: Access,
        handler: impl Fn(Asked) -> BoxFuture<'static, Response<AdminBody>> + Send + Sync + 'static,
    ) -> Self {
        self.pages.retain(|page| page.method != method || page.path != path);
        self.pages.push(Page { method, path, access, handler: Arc::new(handler) });
        self
    }

    /// The turn of the pages that are rendered one at a time.
    pub fn turn(&self) -> Turn {
        self.turn.clone()
    }

    /// Allows requests that call this server `host` (without a port): the name of its Kubernetes service, say.
    #[must_use]
    pub fn host(self, host: impl Into<String>) -> Self {
        Self { guard: self.guard.host(&host.into()), ..self }
    }

    /// Shows [private](Access::Private) pages to this identity too, wherever it asks from.
    #[must_use]
    pub fn observer(self, identity: Identity) -> Self {
        Self { guard: self.guard.observer(identity), ..self }
    }

    /// The handler of a request, or the answer that needs none.
    fn find<B>(&self, request: &Request<B>) -> Found {
        let (path, method) = (request.uri().path(), request.method());
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let here: Vec<&Page> = self.pages.iter().filter(|page| page.path == path).collect();
        let is_probe = path == "/live" || path == "/ready";
        let Some(page) = here.iter().find(|page| page.method == *method) else {
            return Found::Answer(match (is_probe, here.is_empty()) {
                (true, _) if *method == Method::GET => self.probe(path),
                (true, _) => not_allowed(&[Method::GET]),
                (false, true) => text(StatusCode::NOT_FOUND, &self.contents()),
                (false, false) => {
                    not_allowed(&here.iter().map(|page| page.method.clone()).collect::<Vec<_>>())
                }
            });
        };
        match self.guard.admit(page.access, request, remote(request)) {
            Ok(()) => Found::Handler(Arc::clone(&page.handler)),
            Err(why) => Found::Answer(text(StatusCode::FORBIDDEN, why)),
        }
    }

    fn probe(&self, path: &str) -> Response<AdminBody> {
        let waiting = self.readiness.waiting_for();
        if path == "/live" {
            return text(StatusCode::OK, "live\n");
        }
        if waiting.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        let lines = waiting.iter().map(|reason| format!("waiting for {reason}\n"));
        text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready\n{}", lines.collect::<String>()))
    }

    fn contents(&self) -> String {
        // The files of the page are no pages of their own.
        let pages = self.pages.iter().filter(|page| !page.path.starts_with("/page/"));
        let pages = pages.map(|page| format!(" {}", page.path));
        format!("no such page; there are: /live /ready{}\n", pages.collect::<String>())
    }
}

/// What is there for a request.
enum Found {
    Handler(Handler),
    Answer(Response<AdminBody>),
}

fn remote<B>(request: &Request<B>) -> Option<std::net::IpAddr> {
    request.extensions().get::<Remote>().map(|remote| remote.addr.ip())
}

fn accepts<B>(request: &Request<B>, content_type: &str) -> bool {
    let mut accepted = request.headers().get_all(header::ACCEPT).iter();
    accepted.any(|value| value.to_str().is_ok_and(|value| value.contains(content_type)))
}

fn not_allowed(methods: &[Method]) -> Response<AdminBody> {
    let mut allowed: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    let allowed = allowed.join(", ");
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("only {allowed} is answered here\n"));
    if let Ok(allowed) = HeaderValue::try_from(allowed) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// The turn of pages that are rendered one at a time, off the threads that requests run on.
#[derive(Debug, Clone)]
pub struct Turn(Arc<Semaphore>);

impl Turn {
    /// What `render` makes on a blocking thread, when those before it are done.
    ///
    /// # Errors
    /// The response to give instead: 503 when that takes longer than [`RENDER_MAX`], 500 when it panics.
    pub async fn take<T: Send + 'static>(
        &self,
        render: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Response<AdminBody>> {
        let turn = Arc::clone(&self.0);
        let rendered = tokio::time::timeout(RENDER_MAX, async {
            let turn = turn.acquire_owned().await.ok()?;
            let rendering = tokio::task::spawn_blocking(move || {
                let page = render();
                // It ends with the rendering, also when nobody waits for the page any more.
                drop(turn);
                page
            });
            rendering.await.ok()
        });
        match rendered.await {
            Ok(Some(page)) => Ok(page),
            Ok(None) => Err(text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be rendered\n")),
            Err(_) => {
                let why = "too many pages are being rendered; come back later\n";
                Err(text(StatusCode::SERVICE_UNAVAILABLE, why))
            }
        }
    }
}

const JSON: &str = "application/json";

/// A page of plain text.
pub fn text(status: StatusCode, text: &str) -> Response<AdminBody> {
    response(status, "text/plain; charset=utf-8", text.to_owned())
}

/// A page of JSON in one line.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<AdminBody> {
    response(status, JSON, format!("{value}\n"))
}

/// A whole page. No cache keeps it, and no browser takes it for what it is not.
pub fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<AdminBody> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The whole of a request's body, if it comes in time and is small enough.
async fn whole<B>(body: B) -> Result<Bytes, Response<AdminBody>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match tokio::time::timeout(RENDER_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) => {
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body cannot be read: {error}\n")))
        }
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n")),
    }
}

impl<B> Service<Request<B>> for Admin
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<AdminBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let handler = match self.find(&request) {
            Found::Handler(handler) => handler,
            Found::Answer(response) => return Box::pin(ready(Ok(response))),
        };
        let mut asked = Asked {
            method: request.method().clone(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            remote: remote(&request),
            identity: request.extensions().get::<PeerIdentity>().map(|peer| peer.identity.clone()),
            wants_events: accepts(&request, "text/event-stream"),
            wants_open_metrics: accepts(&request, "application/openmetrics-text"),
            body: Bytes::new(),
        };
        Box::pin(async move {
            if asked.method != Method::GET && asked.method != Method::HEAD {
                asked.body = match whole(request.into_body()).await {
                    Ok(body) => body,
                    Err(refusal) => return Ok(refusal),
                };
            }
            Ok(handler(asked).await)
        })
    }
}

/// The limits of the admin server: small, for its callers are few and known.
pub fn settings() -> ServeSettings {
    ServeSettings {
        // Probes, two or three scrapers and some open pages, with room to spare.
        connections_max: 64,
        // Nobody keeps the probes of others out.
        connections_per_peer_max: 48,
        header_timeout: Duration::from_secs(5),
        header_bytes_max: 8 * 1024,
        body_bytes_max: Some(BODY_BYTES_MAX),
        // Twice as long as scrapers and pages pause.
        idle: Duration::from_secs(30),
        // A page that nobody reads is not kept for longer; who stopped reading live requests begins anew.
        response_stall: Some(Duration::from_secs(60)),
        drain: Duration::from_secs(1),
        ..ServeSettings::default()
    }
}

/// Serves the pages until `shutdown` is ready. Bind the listener to a loopback address unless others must reach it:
/// there is no authentication but for private pages.
pub async fn serve(listener: TcpListener, admin: Admin, shutdown: impl Future<Output = ()>) -> Drained {
    listen::serve(listener, admin, settings(), shutdown).await
}
