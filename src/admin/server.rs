//! Floor 6: the admin server: `/metrics`, `/live`, `/ready` and `/inspect`.

use crate::admin::readiness::Readiness;
use crate::serve::listen;
use crate::serve::listen::Drained;
use crate::serve::settings::ServeSettings;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower_service::Service;

/// How long a page may wait for its turn and then take to render: 5 s, half of Prometheus's scrape timeout.
pub const RENDER_MAX: Duration = Duration::from_secs(5);

type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// The admin pages, as a service that [`serve`] puts on a listener, or an application on its own.
///
/// | path | answer |
/// | --- | --- |
/// | `/live` | 200 `live` |
/// | `/ready` | 200 `ready`, else 503 `not ready` and what is waited for, a line each |
/// | `/metrics` | the metrics as text, by whatever [`Admin::metrics`] was given |
/// | `/inspect` | what the mesh knows, as JSON, by whatever [`Admin::inspect`] was given |
///
/// Nothing here changes anything: `GET` and `HEAD` are all it answers. `/metrics` and `/inspect` want a `Host` that
/// is an IP address, `localhost` or [allowed](Admin::host), for a web page whose own name resolves to this server
/// could read them otherwise (DNS rebinding). They are rendered one at a time on a blocking thread, so that no number
/// of scrapers takes the time of requests.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    metrics: Option<Render>,
    inspect: Option<Render>,
    hosts: Arc<[Box<str>]>,
    turn: Arc<Semaphore>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("readiness", &self.readiness)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Tells this readiness, and has no other page yet.
    pub fn new(readiness: Readiness) -> Self {
        let (hosts, turn) = (Arc::default(), Arc::new(Semaphore::new(1)));
        Self { readiness, metrics: None, inspect: None, hosts, turn }
    }

    /// Answers `/metrics` with what `render` makes.
    #[must_use]
    pub fn metrics(self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { metrics: Some(Arc::new(render)), ..self }
    }

    /// Answers `/inspect` with what `render` makes.
    #[must_use]
    pub fn inspect(self, render: impl Fn() -> serde_json::Value + Send + Sync + 'static) -> Self {
        // With `#` a value is written over several lines, for people.
        Self { inspect: Some(Arc::new(move || format!("{:#}\n", render()))), ..self }
    }

    /// Allows requests that call this server `host` (without a port): the name of its Kubernetes service, say.
    #[must_use]
    pub fn host(self, host: impl Into<String>) -> Self {
        let host = host.into().to_ascii_lowercase().into_boxed_str();
        Self { hosts: self.hosts.iter().cloned().chain([host]).collect(), ..self }
    }

    fn allows<B>(&self, request: &Request<B>) -> bool {
        let header = request.headers().get(header::HOST).map(HeaderValue::to_str);
        let authority = match (request.uri().authority(), header) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(Ok(host))) => host,
            (None, Some(Err(_))) => return false,
            // Only HTTP/1.0 comes without, and no browser speaks it.
            (None, None) => return true,
        };
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            Some(_) | None => authority,
        };
        let host =
            host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        host.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || self.hosts.iter().any(|allowed| **allowed == *host)
    }

    fn answer<B>(&self, request: &Request<B>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Answer::Now(response);
        }
        let (render, content_type) = match request.uri().path() {
            "/live" => return Answer::Now(text(StatusCode::OK, "live\n")),
            "/ready" => return Answer::Now(self.ready()),
            "/metrics" => (&self.metrics, METRICS),
            "/inspect" => (&self.inspect, JSON),
            _ => (&None, METRICS),
        };
        let Some(render) = render.clone() else {
            return Answer::Now(text(StatusCode::NOT_FOUND, &self.contents()));
        };
        if self.allows(request) {
            return Answer::Render(Page { render, content_type });
        }
        let why = "the Host is neither an IP address nor localhost nor one that was allowed\n";
        Answer::Now(text(StatusCode::FORBIDDEN, why))
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let waiting = self.readiness.waiting_for();
        if waiting.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        let lines = waiting.iter().map(|reason| format!("waiting for {reason}\n"));
        text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready\n{}", lines.collect::<String>()))
    }

    fn contents(&self) -> String {
        let pages = [("/metrics", self.metrics.is_some()), ("/inspect", self.inspect.is_some())];
        let pages = pages.into_iter().filter(|(_, is_there)| *is_there).map(|(path, _)| format!(" {path}"));
        format!("no such page; there are: /live /ready{}\n", pages.collect::<String>())
    }
}

enum Answer {
    Now(Response<Full<Bytes>>),
    Render(Page),
}

struct Page {
    render: Render,
    content_type: &'static str,
}

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

impl Page {
    /// Renders it, off the threads that requests run on, when those before it are done.
    async fn rendered(self, turn: Arc<Semaphore>) -> Response<Full<Bytes>> {
        let rendered = tokio::time::timeout(RENDER_MAX, async {
            let turn = turn.acquire_owned().await.ok()?;
            let render = self.render;
            let rendering = tokio::task::spawn_blocking(move || {
                let page = render();
                // It ends with the rendering, also when nobody waits for the page any more.
                drop(turn);
                page
            });
            rendering.await.ok()
        });
        match rendered.await {
            Ok(Some(page)) => response(StatusCode::OK, self.content_type, page),
            Ok(None) => text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be rendered\n"),
            Err(_) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are being rendered; come back later\n")
            }
        }
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text.to_owned())
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl<B> Service<Request<B>> for Admin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.answer(&request) {
            Answer::Render(page) => {
                let turn = Arc::clone(&self.turn);
                Box::pin(async move { Ok(page.rendered(turn).await) })
            }
            Answer::Now(response) => Box::pin(ready(Ok(response))),
        }
    }
}

/// The limits of the admin server: small, for its callers are few and known.
pub fn settings() -> ServeSettings {
    ServeSettings {
        // Probes and two or three scrapers, with room to spare.
        connections_max: 64,
        header_timeout: Duration::from_secs(5),
        header_bytes_max: 8 * 1024,
        body_bytes_max: Some(0),
        drain: Duration::from_secs(1),
        ..ServeSettings::default()
    }
}

/// Serves the pages until `shutdown` is ready. Bind the listener to a loopback address unless others must reach it:
/// there is no authentication.
pub async fn serve(listener: TcpListener, admin: Admin, shutdown: impl Future<Output = ()>) -> Drained {
    listen::serve(listener, admin, settings(), shutdown).await
}
