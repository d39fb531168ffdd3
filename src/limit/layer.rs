//! Floor 4: refuses or holds back what is too much.

use crate::balance::key::{self, Found};
use crate::classify::classifier::grpc_code;
use crate::error::{Error, Scope};
use crate::limit::body::{Lease, Placed};
use crate::limit::concurrency::{Limiter, Refusal, WAIT_MAX, Waiter};
use crate::limit::priority::Priority;
use crate::limit::queue::{Ask, Place, Shed};
use crate::limit::rate::{Counted as By, Refused};
use crate::metrics::limit::{LimitCounts, Reason};
use crate::policy::call::MeshRequest;
use crate::policy::limits::{Counted, LimitPolicy};
use crate::profile::settings::HashKey;
use crate::stdx::clock::{self, Instant};
use crate::tls::identity::PeerIdentity;
use http::{Extensions, Request, Response};
use http_body::Body;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

/// Where a request's caller has its address.
type AddressOf = fn(&Extensions) -> Option<IpAddr>;

/// Holds requests to the limits of their route; plain requests, which met none, to the layer's own, if it has any.
///
/// First the rates are asked: what is too much ends with [`Error::RateLimited`]. Then a place is taken. If none is free the
/// request waits in the queue, and may be refused there with [`Error::Overloaded`], or with [`Error::Timeout`] (`Queue`) when
/// it could not end by its deadline. Both say when to come back. A place is held until the response's body ends; dropping
/// the call at any time gives it back. A request without limits costs one comparison.
#[derive(Debug, Clone)]
pub struct LimitLayer {
    own: Option<Arc<LimitPolicy>>,
    address_of: AddressOf,
}

impl LimitLayer {
    /// Limits plain requests. All services of this layer, and its clones, share the limits.
    pub fn new(own: LimitPolicy) -> Self {
        let own = (!own.is_empty()).then(|| Arc::new(own));
        Self { own, address_of: address_of_socket }
    }

    /// Limits requests as their routes say.
    pub fn by_route() -> Self {
        Self { own: None, address_of: address_of_socket }
    }

    /// Where a caller's address stands, for rates by source. Default: a [`SocketAddr`] among the request's extensions.
    #[must_use]
    pub fn with_address(mut self, address_of: AddressOf) -> Self {
        self.address_of = address_of;
        self
    }
}

pub(crate) fn address_of_socket(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<SocketAddr>().map(SocketAddr::ip)
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit { inner, layer: self.clone() }
    }
}

/// The service of [`LimitLayer`].
#[derive(Debug, Clone)]
pub struct Limit<S> {
    inner: S,
    layer: LimitLayer,
}

impl<S, R, B> Service<R> for Limit<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<B>> + Clone,
    S::Error: Into<Error>,
    B: Body,
{
    type Response = Response<Placed<B>>;
    type Error = Error;
    type Future = LimitFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let policy = match request.route() {
            Some(route) => route.limits(),
            None => self.layer.own.as_deref(),
        };
        let stage = match policy.map(|policy| admit(policy, &request, self.layer.address_of)) {
            None => Stage::Sent { inner: self.inner.call(request), lease: None },
            Some(Admission::Free(lease)) => Stage::Sent { inner: self.inner.call(request), lease },
            Some(Admission::Refused(error)) => Stage::Refused(Some(error)),
            Some(Admission::Waits(waiting)) => {
                // The inner service that is ready is called; its clone is what is asked next.
                let clone = self.inner.clone();
                let service = std::mem::replace(&mut self.inner, clone);
                Stage::Waits(Box::pin(Held { waiting, call: Some((service, request)) }))
            }
        };
        LimitFuture { stage }
    }
}

/// What a policy says of a request when it comes.
pub(crate) enum Admission {
    /// It may go on, with its place if there are places.
    Free(Option<Lease>),
    /// It may not.
    Refused(Error),
    /// No place is free.
    Waits(Waiting),
}

/// Asks the rates and then for a place.
pub(crate) fn admit<R: MeshRequest>(policy: &LimitPolicy, request: &R, address_of: AddressOf) -> Admission {
    let now = request.state().map_or_else(clock::now, |state| state.started);
    for Counted { limit: rates, counts } in policy.rates.iter().chain(&policy.own_rates) {
        let http = request.http();
        let client = rates.wants_client().then(|| http.extensions().get::<PeerIdentity>()).flatten();
        let client = client.map(|peer| peer.identity.as_str());
        if let Err(refused) = rates.admit(client, |key| value(key, http, address_of), now) {
            return Admission::Refused(too_often(refused, counts));
        }
    }
    match &policy.places {
        None => Admission::Free(None),
        Some(places) if places.limit.try_admit() => {
            Admission::Free(Some(Lease::new(Arc::clone(&places.limit), now)))
        }
        Some(places) => wait(places, request),
    }
}

/// What a request says for a key, hashed.
fn value<B>(key: &HashKey, request: &Request<B>, address_of: AddressOf) -> Option<u64> {
    if let HashKey::Source = key {
        return address_of(request.extensions()).map(key::hash_address);
    }
    match key::find(std::slice::from_ref(key), request) {
        Found::Hash(hash) => Some(hash),
        Found::Make { .. } | Found::Nothing => None,
    }
}

#[cold]
fn too_often(refused: Refused, counts: &LimitCounts) -> Error {
    counts.refused(match refused.counted {
        By::Total => Reason::RateTotal,
        By::Identity => Reason::RateIdentity,
        By::Override => Reason::RateOverride,
        By::Key => Reason::RateKey,
    });
    Error::RateLimited { retry_after: refused.retry_after }
}

#[cold]
fn wait<R: MeshRequest>(places: &Counted<Limiter>, request: &R) -> Admission {
    let now = clock::now();
    let state = request.state();
    let said = state.and_then(|state| state.priority).map(Priority::from_level);
    let priority = said.or_else(|| Priority::read(request.http().headers())).unwrap_or_default();
    let ask = Ask { priority, deadline: state.and_then(|state| state.deadline) };
    let begun = state.map_or(now, |state| state.started);
    let (tell, told) = oneshot::channel();
    let promise = Promise { tell, limiter: Arc::clone(&places.limit), now };
    let place = match places.limit.wait(ask, Box::new(promise), now) {
        Ok(place) => place,
        Err(refusal) => {
            return Admission::Refused(refused(&refusal, ask.deadline, begun, &places.counts));
        }
    };
    let until = ask.deadline.map_or(WAIT_MAX, |at| at.saturating_duration_since(now).min(WAIT_MAX));
    Admission::Waits(Waiting {
        told,
        sleep: tokio::time::sleep(until),
        _queued: Queued { limiter: Arc::clone(&places.limit), place },
        counts: Arc::clone(&places.counts),
        deadline: ask.deadline,
        begun,
        since: now,
    })
}

#[cold]
fn refused(refusal: &Refusal, deadline: Option<Instant>, begun: Instant, counts: &LimitCounts) -> Error {
    counts.refused(match refusal.shed {
        Shed::Full => Reason::QueueFull,
        Shed::Delay => Reason::QueueDelay,
        Shed::Deadline => Reason::Deadline,
    });
    match (refusal.shed, deadline) {
        (Shed::Deadline, Some(deadline)) => {
            Error::Timeout { scope: Scope::Queue, after: deadline.saturating_duration_since(begun) }
        }
        _ => Error::Overloaded { retry_after: Some(refusal.retry_after) },
    }
}

/// What one who waits is told.
type Told = Result<Lease, Refusal>;

/// One who waits, as its limiter sees it.
struct Promise {
    tell: oneshot::Sender<Told>,
    limiter: Arc<Limiter>,
    now: Instant,
}

impl Waiter for Promise {
    fn tell(self: Box<Self>, told: Result<(), Refusal>) -> bool {
        let Self { tell, limiter, now } = *self;
        match tell.send(told.map(|()| Lease::new(limiter, now))) {
            Ok(()) => true,
            Err(told) => {
                if let Ok(lease) = told {
                    lease.disarm();
                }
                false
            }
        }
    }
}

/// Leaves the queue when it is dropped.
struct Queued {
    limiter: Arc<Limiter>,
    place: Place,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.limiter.leave(self.place);
    }
}

/// A request's wait for its place: in a box, made only for those that wait. Dropping it leaves the queue, or gives the
/// place back that it was just given.
#[pin_project]
pub(crate) struct Waiting {
    told: oneshot::Receiver<Told>,
    #[pin]
    sleep: Sleep,
    _queued: Queued,
    counts: Arc<LimitCounts>,
    deadline: Option<Instant>,
    begun: Instant,
    since: Instant,
}

impl Future for Waiting {
    type Output = Result<Lease, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(told) = Pin::new(this.told).poll(cx) {
            return Poll::Ready(match told {
                Ok(Ok(mut lease)) => {
                    let now = clock::now();
                    lease.begin(now);
                    this.counts.waited(now.saturating_duration_since(*this.since));
                    Ok(lease)
                }
                Ok(Err(refusal)) => Err(refused(&refusal, *this.deadline, *this.begun, this.counts)),
                // Its promise is dropped untold only when it has left by itself.
                Err(_) => Err(Error::Closed),
            });
        }
        ready!(this.sleep.poll(cx));
        let late = this.deadline.filter(|deadline| clock::now() >= *deadline);
        this.counts.refused(if late.is_some() { Reason::Deadline } else { Reason::WaitMax });
        let after = late.map_or(WAIT_MAX, |deadline| deadline.saturating_duration_since(*this.begun));
        Poll::Ready(Err(Error::Timeout { scope: Scope::Queue, after }))
    }
}

#[pin_project]
struct Held<S, R> {
    #[pin]
    waiting: Waiting,
    call: Option<(S, R)>,
}

#[pin_project(project = Step)]
enum Stage<S: Service<R>, R> {
    Sent {
        #[pin]
        inner: S::Future,
        lease: Option<Lease>,
    },
    Waits(Pin<Box<Held<S, R>>>),
    Refused(Option<Error>),
}

/// The future of [`Limit`].
#[pin_project]
pub struct LimitFuture<S: Service<R>, R> {
    #[pin]
    stage: Stage<S, R>,
}

impl<S: Service<R>, R> fmt::Debug for LimitFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Sent { .. } => "sent",
            Stage::Waits(_) => "waits",
            Stage::Refused(_) => "refused",
        };
        f.debug_struct("LimitFuture").field("stage", &stage).finish()
    }
}

impl<S, R, B> Future for LimitFuture<S, R>
where
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Error>,
    B: Body,
{
    type Output = Result<Response<Placed<B>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            let next = match stage.as_mut().project() {
                Step::Sent { inner, lease } => {
                    let end = ready!(inner.poll(cx)).map_err(Into::into);
                    let lease = lease.take();
                    if let Some(lease) = &lease {
                        lease.answered(is_dropped(end.as_ref()));
                    }
                    return Poll::Ready(end.map(|response| response.map(|body| Placed::new(body, lease))));
                }
                Step::Refused(error) => return Poll::Ready(Err(error.take().unwrap_or(Error::Closed))),
                Step::Waits(held) => {
                    let held = held.as_mut().project();
                    match (ready!(held.waiting.poll(cx)), held.call.take()) {
                        (Ok(lease), Some((mut service, request))) => {
                            Stage::Sent { inner: service.call(request), lease: Some(lease) }
                        }
                        (Ok(_), None) => Stage::Refused(None),
                        (Err(error), _) => Stage::Refused(Some(error)),
                    }
                }
            };
            stage.set(next);
        }
    }
}

/// Whether a call ended as calls do where there are too many: refused, or not in time.
pub(crate) fn is_dropped<B>(end: Result<&Response<B>, &Error>) -> bool {
    match end {
        Ok(response) => {
            matches!(response.status().as_u16(), 429 | 503 | 504)
                || matches!(grpc_code(response.headers()), Some(4 | 8 | 14))
        }
        Err(error) => {
            matches!(error, Error::Timeout { .. } | Error::Overloaded { .. } | Error::RateLimited { .. })
        }
    }
}
