//! Floor 6: the client: finds a request's service and route, and gives it to the stack.

use crate::balance::body::AskBody;
use crate::classify::answer::is_grpc;
use crate::error::{BoxError, Error};
use crate::limit::priority::{self, Priority};
use crate::mesh::body::ReqBody;
use crate::mesh::directory::Service as Destination;
use crate::mesh::dispatch::Dispatch;
use crate::mesh::response::{ResBody, ResponseFuture};
use crate::mesh::services::Services;
use crate::mesh::special;
use crate::mesh::stack::{self, Outbound};
use crate::metrics::names::Direction;
use crate::policy::call::{Call, CallOptions, CallScope, CallState};
use crate::policy::compile::Policy;
use crate::route::head::{Caller, RequestHead};
use crate::stdx::clock;
use crate::stdx::rng::Rng;
use crate::timeout::deadline;
use crate::timeout::inherited;
use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower_service::Service;

/// The stack below a client's route.
pub(crate) type ClientStack = Outbound<AskBody, Dispatch>;

/// How long the first requests wait for a source to say whether it knows a service's profile: as long as a balancer
/// waits for endpoints.
const SETTLE_MAX: Duration = Duration::from_secs(3);

/// A request that asks for TLS must not go in plain text.
const HTTPS: &str = "https:// is only sent to services whose profile says `tls: {mode: Mesh}` or `Simple`; write http:// and let the \
                     mesh encrypt, or use another client for servers outside of it";

/// Sends requests through the mesh. Cheap to clone; all clones share endpoints, connections and memory.
///
/// It is a [`tower::Service`](tower_service::Service) of `http::Request<B>` for every body `B`, so it stands wherever a
/// tower stack ends; a generated tonic client takes it as its transport. Dropping the future of a call cancels it: an
/// HTTP/2 stream is reset, an HTTP/1.1 connection is closed, and nothing leaks.
#[derive(Debug, Clone)]
pub struct Client {
    services: Arc<Services>,
    pinned: Option<Arc<Destination>>,
    stack: ClientStack,
}

impl Client {
    pub(crate) fn new(services: Arc<Services>, pinned: Option<Arc<Destination>>, rng: Rng) -> Self {
        Self { services, pinned, stack: stack::outbound(rng) }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When no response came: see [`Error`]. Any response, also a 5xx, is `Ok`.
    pub fn send<B: Into<ReqBody>>(&self, request: Request<B>) -> ResponseFuture {
        self.dispatch(request.map(Into::into))
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`Error::BadRequest`] when `uri` is none.
    pub fn get(&self, uri: impl AsRef<str>) -> ResponseFuture {
        match Request::get(uri.as_ref()).body(ReqBody::empty()) {
            Ok(request) => self.dispatch(request),
            Err(error) => {
                let reason = format!("`{}` is no URI: {error}", uri.as_ref()).into();
                ResponseFuture::failed(Error::BadRequest { reason }, false)
            }
        }
    }

    fn dispatch(&self, request: Request<ReqBody>) -> ResponseFuture {
        let grpc = is_grpc(request.headers());
        let found;
        let service = match &self.pinned {
            Some(service) => service,
            None => match self.services.find(request.uri(), request.headers()) {
                Ok(service) => {
                    found = service;
                    &found
                }
                Err(error) => return ResponseFuture::failed(error, grpc),
            },
        };
        if service.settled.is_set() {
            return self.call_now(service, request, grpc);
        }
        self.call_when_settled(Arc::clone(service), request, grpc)
    }

    #[inline]
    fn call_now(&self, service: &Destination, mut request: Request<ReqBody>, grpc: bool) -> ResponseFuture {
        let policy = service.policy.load();
        if request.uri().scheme() == Some(&Scheme::HTTPS) && !policy.profile().tls.mode.is_required() {
            return ResponseFuture::failed(Error::BadRequest { reason: HTTPS.into() }, grpc);
        }
        match self.services.watch.enter(Direction::Outbound, &policy, &mut request) {
            Ok(scope) if scope.entry.policy.extras.is_some() => {
                special::send(&self.stack, &self.services, Call { http: request, scope }, grpc)
            }
            Ok(scope) => ResponseFuture::sent(self.stack.clone().call(Call { http: request, scope }), grpc),
            Err(error) => ResponseFuture::failed(error, grpc),
        }
    }

    /// Waits until the service's source has said whether it knows a profile, so that the first request is treated as
    /// all others are.
    #[cold]
    fn call_when_settled(
        &self,
        service: Arc<Destination>,
        request: Request<ReqBody>,
        grpc: bool,
    ) -> ResponseFuture {
        let this = self.clone();
        let later = async move {
            // When it takes too long, or will never be said, the defaults hold: so an expiry is no error.
            let _ = tokio::time::timeout(SETTLE_MAX, service.settled.wait()).await;
            this.call_now(&service, request, grpc).await
        };
        ResponseFuture::waits(Box::pin(later), grpc)
    }
}

/// Finds a request's route in `policy`, and begins its call: the deadline is set, and the caller's own options are taken out
/// of the request.
///
/// # Errors
/// [`Error::NoRoute`] when the profile says that what no route is for is not found.
#[inline]
pub fn enter<B, T>(policy: &Policy<T>, request: &mut Request<B>) -> Result<CallScope<T>, Error> {
    enter_from(policy, request, None)
}

/// The same for a request of `caller`; of an unknown one, conditions on callers do not hold.
///
/// # Errors
/// As [`enter`].
pub fn enter_from<B, T>(
    policy: &Policy<T>,
    request: &mut Request<B>,
    caller: Option<&Caller>,
) -> Result<CallScope<T>, Error> {
    let head = RequestHead::of_request(request);
    let head = caller.into_iter().fold(head, RequestHead::from_caller);
    let entry = match policy.find(&head) {
        Some(entry) => Arc::clone(entry),
        None => return Err(Error::NoRoute { service: Arc::clone(policy.service()) }),
    };
    let mut state = CallState::new(clock::now());
    let mut timeout = entry.policy.timeouts.request;
    if let Some(options) = request.extensions_mut().remove::<CallOptions>() {
        timeout = options.timeout.or(timeout);
        state.deadline = options.deadline;
        state.hash = options.hash_key;
        state.retries_max = options.retries;
        state.hedge = options.hedge;
        state.priority = options.priority;
    }
    // A request is as critical as its caller says, or as the request that this process is serving.
    if let Some(level) = state.priority.or_else(|| handed_priority(request.headers())) {
        state.priority = Some(level);
        Priority::from_level(level).write(request.headers_mut());
    }
    // What the request itself says, and what the request says that this process is serving, can only tighten it.
    let handed_down = [state.deadline, inherited::current().deadline].into_iter().flatten().min();
    let said = deadline::read(request.headers()).left;
    state.deadline = deadline::effective(state.started, said, timeout, handed_down);
    state.is_deadline_told =
        said.is_some() || handed_down.is_some() || timeout != entry.policy.timeouts.request;
    Ok(CallScope::new(entry, state))
}

/// The priority of the request that this process is serving, unless this one says its own.
fn handed_priority(headers: &HeaderMap) -> Option<u8> {
    inherited::current().priority.filter(|_| !headers.contains_key(&priority::HEADER))
}

impl<B> Service<Request<B>> for Client
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResBody>;
    type Error = Error;
    type Future = ResponseFuture;

    /// Always ready: what must wait waits inside the call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.dispatch(request.map(ReqBody::new))
    }
}

/// What a request may say of its call, in its extensions.
pub trait RequestExt {
    /// Gives the call these options.
    #[must_use]
    fn with_options(self, options: CallOptions) -> Self;
}

impl<B> RequestExt for Request<B> {
    fn with_options(mut self, options: CallOptions) -> Self {
        self.extensions_mut().insert(options);
        self
    }
}
