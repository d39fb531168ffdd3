//! Floor 5: one request at a server: checked, handed to the app, and answered whatever the app does.

use crate::classify::grpc::is_grpc;
use crate::error::BoxError;
use crate::serve::body::InFlight;
use crate::serve::body::RequestBody;
use crate::serve::body::ResponseBody;
use crate::serve::peers::Held;
use crate::serve::peers::Peers;
use crate::serve::peers::Place;
use crate::serve::settings::ServeSettings;
use crate::serve::stats::Event;
use crate::serve::stats::ServeStats;
use crate::serve::strict;
use crate::serve::wire::Activity;
use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header;
use http_body::Body;
use hyper::body::Incoming;
use pin_project::pin_project;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tower::util::Oneshot;
use tower_service::Service;

/// The connection a request came by, in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// The peer's address.
    pub addr: SocketAddr,
    /// The address of ours that it connected to; `None` where the socket does not say.
    pub local: Option<SocketAddr>,
}

/// An app that can be served: any tower service of requests with a [`RequestBody`], as axum's `Router`, tonic's
/// `Routes` and tower's `service_fn` are. Its errors are answered with 500.
pub trait App:
    Service<
        Request<RequestBody>,
        Response = Response<Self::Body>,
        Future: Send + 'static,
        Error: Into<BoxError> + Send,
    > + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> App for S
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) settings: ServeSettings,
    pub(crate) stats: Arc<ServeStats>,
    pub(crate) peers: Arc<Peers>,
    /// Places for handshakes.
    pub(crate) handshakes: Semaphore,
}

impl Shared {
    /// A place for one more, if the peer has fewer than `max`; that it has not is counted.
    pub(crate) fn place(&self, held: Held, max: usize) -> Option<Place> {
        let place = self.peers.admit(held, max);
        if place.is_none() {
            self.stats.count(Event::OverPeerLimit);
        }
        place
    }
}

/// The app as hyper sees it on one connection.
pub(crate) struct PerConnection<S, I> {
    pub(crate) app: S,
    pub(crate) shared: Arc<Shared>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) remote: Remote,
    pub(crate) identity: Option<I>,
}

impl<S, I> PerConnection<S, I> {
    fn limits(&self, request: &Request<Incoming>) -> (usize, Option<Duration>) {
        // gRPC is spoken over HTTP/2 alone: elsewhere its name buys nothing.
        let http2 = request.version() == Version::HTTP_2;
        if http2 && is_grpc(request.headers()) {
            return (usize::MAX, None);
        }
        let settings = &self.shared.settings;
        (settings.body_bytes_max.unwrap_or(usize::MAX), settings.body_idle)
    }
}

impl<S: App, I: Clone + Send + Sync + 'static> hyper::service::Service<Request<Incoming>>
    for PerConnection<S, I>
{
    type Response = Response<ResponseBody<S::Body>>;
    type Error = Infallible;
    type Future = Answer<S>;

    fn call(&self, request: Request<Incoming>) -> Answer<S> {
        let http1 = request.version() < Version::HTTP_2;
        if let Err(fault) = strict::check(&request) {
            return self.refuse(StatusCode::BAD_REQUEST, fault, http1);
        }
        let (bytes_max, idle) = self.limits(&request);
        if request.body().size_hint().lower() > bytes_max as u64 {
            return self.refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long", http1);
        }
        // hyper takes no request after one that asks for an upgrade, unless the connection goes on as HTTP; it
        // must not, for `serve/framing.rs` looks no further.
        let ask = match http1 {
            true if *request.method() == Method::CONNECT => Ask::Tunnel,
            true if request.headers().contains_key(header::UPGRADE) => Ask::Upgrade,
            _ => Ask::Nothing,
        };
        let mut request = request.map(|body| RequestBody::new(body, bytes_max, idle));
        let extensions = request.extensions_mut();
        extensions.insert(self.remote);
        if let Some(identity) = &self.identity {
            extensions.insert(identity.clone());
        }
        let stats = self.shared.stats.clone();
        Answer {
            state: State::App {
                future: self.app.clone().oneshot(request),
                in_flight: Some(InFlight::new(stats.clone(), self.activity.clone())),
                ask,
                stats,
            },
        }
    }
}

impl<S: App, I> PerConnection<S, I> {
    fn refuse(&self, status: StatusCode, line: &'static str, close: bool) -> Answer<S> {
        self.shared.stats.count(Event::Refused);
        Answer { state: State::Refused(Some(own(status, line, close))) }
    }
}

fn own<B>(status: StatusCode, line: &'static str, close: bool) -> Response<ResponseBody<B>> {
    let mut response = Response::new(ResponseBody::line(line));
    *response.status_mut() = status;
    if close {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a request asks of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Nothing,
    Upgrade,
    Tunnel,
}

impl Ask {
    /// Whether the connection must end with a response of this status: it was asked for more and stays HTTP.
    fn is_declined(self, status: StatusCode) -> bool {
        match self {
            Self::Nothing => false,
            Self::Upgrade => status != StatusCode::SWITCHING_PROTOCOLS,
            Self::Tunnel => !status.is_success(),
        }
    }
}

/// The future of a response.
#[pin_project]
pub(crate) struct Answer<S: App> {
    #[pin]
    state: State<S>,
}

#[pin_project(project = StateProj)]
enum State<S: App> {
    Refused(Option<Response<ResponseBody<S::Body>>>),
    App {
        #[pin]
        future: Oneshot<S, Request<RequestBody>>,
        in_flight: Option<InFlight>,
        ask: Ask,
        stats: Arc<ServeStats>,
    },
}

impl<S: App> Future for Answer<S> {
    type Output = Result<Response<ResponseBody<S::Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (future, in_flight, ask, stats) = match self.project().state.project() {
            StateProj::Refused(response) => {
                let response = response.take();
                return Poll::Ready(Ok(
                    response.unwrap_or_else(|| own(StatusCode::INTERNAL_SERVER_ERROR, "", true))
                ));
            }
            StateProj::App { future, in_flight, ask, stats } => (future, in_flight, *ask, stats),
        };
        // After a panic the app's future is never polled again, so no broken state is seen.
        let answered = match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(polled) => ready!(polled).map_err(Into::into),
            Err(panic) => {
                stats.panicked(panic.as_ref());
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                return Poll::Ready(Ok(own(status, "the service panicked", ask.is_declined(status))));
            }
        };
        Poll::Ready(Ok(match answered {
            Ok(response) => {
                let in_flight = in_flight.take();
                let mut response = response.map(|body| ResponseBody::app(body, in_flight));
                if ask.is_declined(response.status()) {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
            Err(error) => {
                stats.count(Event::Failed);
                tracing::error!(%error, "the app failed");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                own(status, "the service failed", ask.is_declined(status))
            }
        }))
    }
}
