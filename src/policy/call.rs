//! Floor 3: a request on its way through the stack: the HTTP request, its route, and its state.
//!
//! Every layer is written for any [`MeshRequest`]: a plain [`http::Request`], for which the layer's own settings
//! hold, or a [`Call`], which carries its route's policy. What travels beside the request travels in the type
//! and not in `http::Extensions`, whose first insert costs three allocations (crates.md fact 12).

use crate::classify::classifier::Head;
use crate::discover::endpoint::Endpoint;
use crate::metrics::route::BackendMetrics;
use crate::policy::observe::Observed;
use crate::policy::route::{RouteEntry, RoutePolicy};
use crate::stdx::clock::Instant;
use http::Request;
use http::request::Parts;
use std::sync::Arc;
use std::time::Duration;

/// What a caller may say about one request, in its extensions. It can tighten the profile, not loosen it, but
/// for the timeout, which wins (a caller knows its own patience).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOptions {
    /// The whole call may take so long.
    pub timeout: Option<Duration>,
    /// The whole call must end by then; with `timeout`, the earlier of the two.
    pub deadline: Option<Instant>,
    /// At most so many retries.
    pub retries: Option<u8>,
    /// What hashing balancers hash.
    pub hash_key: Option<u64>,
    /// Whether it may be hedged.
    pub hedge: Option<bool>,
    /// 0 is shed first.
    pub priority: Option<u8>,
}

impl CallOptions {
    /// Limits the whole call to `timeout`.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends the whole call at `deadline`.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Allows at most `retries` retries.
    #[must_use]
    pub fn retries(mut self, retries: u8) -> Self {
        self.retries = Some(retries);
        self
    }

    /// Hashes `key` where the balancer hashes.
    #[must_use]
    pub fn hash_key(mut self, key: u64) -> Self {
        self.hash_key = Some(key);
        self
    }

    /// Allows or forbids a second copy of a slow request.
    #[must_use]
    pub fn hedge(mut self, allowed: bool) -> Self {
        self.hedge = Some(allowed);
        self
    }

    /// Sets what is shed first: 0 before all others.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }
}

/// A process-wide number of an endpoint, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// The endpoints that earlier attempts of a call used; the last four are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried {
    ids: [u32; Tried::MAX],
    next: u8,
}

impl Tried {
    /// How many are remembered: retries beyond the fourth are rare, and a longer list would cost every call.
    pub const MAX: usize = 4;

    /// Remembers `id`, forgetting the oldest.
    pub fn push(&mut self, id: EndpointId) {
        if self.contains(id) {
            return;
        }
        self.ids[usize::from(self.next) % Self::MAX] = id.0;
        // After 255 it goes on with a full list, not with an empty one.
        self.next = self.next.checked_add(1).unwrap_or(Self::MAX as u8);
    }

    /// Whether `id` was used.
    #[inline]
    pub fn contains(&self, id: EndpointId) -> bool {
        self.ids[..usize::from(self.next).min(Self::MAX)].contains(&id.0)
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }
}

/// The state of one call that layers read and write.
#[derive(Debug, Clone, Copy)]
pub struct CallState {
    /// When the call began; read once for the whole stack.
    pub started: Instant,
    /// When the whole call must have ended.
    pub deadline: Option<Instant>,
    /// Whether the caller gave the deadline, or the request that it serves did, and not just the route.
    pub is_deadline_told: bool,
    /// The number of this attempt, from 0.
    pub attempt: u32,
    /// The place of this attempt's backend among its route's; beyond all of them before one was chosen.
    pub backend: u16,
    /// The endpoints tried before.
    pub tried: Tried,
    /// What hashing balancers hash.
    pub hash: Option<u64>,
    /// How long this attempt may take to its response's headers, because another may follow.
    pub patience: Option<Duration>,
    /// The caller's own limit of retries.
    pub retries_max: Option<u8>,
    /// Whether the caller allows or forbids hedging.
    pub hedge: Option<bool>,
    /// Whether a second copy may follow while this attempt is under way: the balancer then tells where it went.
    pub is_hedged: bool,
    /// 0 is shed first.
    pub priority: Option<u8>,
}

impl CallState {
    /// The state of a call that begins now and says nothing.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            deadline: None,
            is_deadline_told: false,
            attempt: 0,
            backend: u16::MAX,
            tried: Tried::default(),
            hash: None,
            patience: None,
            retries_max: None,
            hedge: None,
            is_hedged: false,
            priority: None,
        }
    }
}

/// A request that layers can handle: with a route's policy, or without.
pub trait MeshRequest: Sized {
    /// The request's body.
    type Body;
    /// What travels beside the HTTP request.
    type Rest: Clone;
    /// The same kind of request with another body.
    type With<B>: MeshRequest<Body = B, Rest = Self::Rest>;

    /// The HTTP request.
    fn http(&self) -> &Request<Self::Body>;
    /// The HTTP request, to be changed.
    fn http_mut(&mut self) -> &mut Request<Self::Body>;
    /// The policy of the request's route, if it has met one.
    fn route(&self) -> Option<&Arc<RoutePolicy>>;
    /// The call's state, if it has met a route.
    fn state(&self) -> Option<&CallState>;
    /// What is counted of this attempt's backend, if one was chosen.
    #[inline]
    fn backend(&self) -> Option<&Arc<BackendMetrics>> {
        self.route()?.backends.get(usize::from(self.state()?.backend))
    }
    /// The call's state, to be changed.
    fn state_mut(&mut self) -> Option<&mut CallState>;
    /// Whoever observes the call.
    fn observed(&self) -> Option<&Arc<Observed>> {
        None
    }
    /// Takes it apart, so that it can be sent again.
    fn split(self) -> (Self::Rest, Parts, Self::Body);
    /// Puts it together.
    fn join<B>(rest: Self::Rest, parts: Parts, body: B) -> Self::With<B>;
    /// What travels beside the HTTP request.
    fn rest(&self) -> Self::Rest;
    /// The same request with another body.
    fn map_body<B>(self, map: impl FnOnce(Self::Body) -> B) -> Self::With<B> {
        let (rest, parts, body) = self.split();
        Self::join(rest, parts, map(body))
    }
    /// The HTTP request alone.
    fn into_http(self) -> Request<Self::Body>;
}

impl<B0> MeshRequest for Request<B0> {
    type Body = B0;
    type Rest = ();
    type With<B> = Request<B>;

    fn http(&self) -> &Self {
        self
    }

    fn http_mut(&mut self) -> &mut Self {
        self
    }

    fn route(&self) -> Option<&Arc<RoutePolicy>> {
        None
    }

    fn state(&self) -> Option<&CallState> {
        None
    }

    fn state_mut(&mut self) -> Option<&mut CallState> {
        None
    }

    fn split(self) -> ((), Parts, B0) {
        let (parts, body) = self.into_parts();
        ((), parts, body)
    }

    fn join<B>((): (), parts: Parts, body: B) -> Request<B> {
        Request::from_parts(parts, body)
    }

    fn rest(&self) {}

    fn map_body<B>(self, map: impl FnOnce(B0) -> B) -> Request<B> {
        self.map(map)
    }

    fn into_http(self) -> Self {
        self
    }
}

/// A copy of all but the body.
#[inline]
pub(crate) fn copy_head<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    // An empty map costs as much to clone as one with a few headers.
    if !request.headers().is_empty() {
        *copy.headers_mut() = request.headers().clone();
    }
    if !request.extensions().is_empty() {
        *copy.extensions_mut() = request.extensions().clone();
    }
    copy
}

/// A request that has met its route. `T` is what a backend is in this stack.
#[derive(Debug)]
pub struct Call<B, T> {
    /// The HTTP request.
    pub http: Request<B>,
    /// Its route, and what else travels with it.
    pub scope: CallScope<T>,
}

/// What travels with a [`Call`].
#[derive(Debug)]
pub struct CallScope<T> {
    /// The route.
    pub entry: Arc<RouteEntry<T>>,
    /// The state.
    pub state: CallState,
    /// Whoever observes the call; nearly always nobody.
    pub observed: Option<Arc<Observed>>,
}

impl<T> CallScope<T> {
    /// What travels with a call that nobody observes.
    pub fn new(entry: Arc<RouteEntry<T>>, state: CallState) -> Self {
        Self { entry, state, observed: None }
    }
}

impl<T> Clone for CallScope<T> {
    fn clone(&self) -> Self {
        Self { entry: Arc::clone(&self.entry), state: self.state, observed: self.observed.clone() }
    }
}

impl<B0, T> MeshRequest for Call<B0, T> {
    type Body = B0;
    type Rest = CallScope<T>;
    type With<B> = Call<B, T>;

    fn http(&self) -> &Request<B0> {
        &self.http
    }

    fn http_mut(&mut self) -> &mut Request<B0> {
        &mut self.http
    }

    fn route(&self) -> Option<&Arc<RoutePolicy>> {
        Some(&self.scope.entry.policy)
    }

    fn state(&self) -> Option<&CallState> {
        Some(&self.scope.state)
    }

    fn state_mut(&mut self) -> Option<&mut CallState> {
        Some(&mut self.scope.state)
    }

    fn observed(&self) -> Option<&Arc<Observed>> {
        self.scope.observed.as_ref()
    }

    fn split(self) -> (CallScope<T>, Parts, B0) {
        let (parts, body) = self.http.into_parts();
        (self.scope, parts, body)
    }

    fn join<B>(scope: CallScope<T>, parts: Parts, body: B) -> Call<B, T> {
        Call { http: Request::from_parts(parts, body), scope }
    }

    fn rest(&self) -> CallScope<T> {
        self.scope.clone()
    }

    fn map_body<B>(self, map: impl FnOnce(B0) -> B) -> Call<B, T> {
        Call { http: self.http.map(map), scope: self.scope }
    }

    fn into_http(self) -> Request<B0> {
        self.http
    }
}

/// A [`Call`] whose scope stays with its sender: what few requests move need not move with each.
#[derive(Debug)]
pub struct Lent<'a, B, T> {
    /// The HTTP request.
    pub http: Request<B>,
    /// Its route, and what else travels with it.
    pub scope: &'a mut CallScope<T>,
}

impl<B, T> Lent<'_, B, T> {
    /// The call with a scope of its own.
    pub fn into_call(self) -> Call<B, T> {
        Call { http: self.http, scope: self.scope.clone() }
    }
}

impl<B0, T> MeshRequest for Lent<'_, B0, T> {
    type Body = B0;
    type Rest = CallScope<T>;
    type With<B> = Call<B, T>;

    fn http(&self) -> &Request<B0> {
        &self.http
    }

    fn http_mut(&mut self) -> &mut Request<B0> {
        &mut self.http
    }

    fn route(&self) -> Option<&Arc<RoutePolicy>> {
        Some(&self.scope.entry.policy)
    }

    fn state(&self) -> Option<&CallState> {
        Some(&self.scope.state)
    }

    fn state_mut(&mut self) -> Option<&mut CallState> {
        Some(&mut self.scope.state)
    }

    fn observed(&self) -> Option<&Arc<Observed>> {
        self.scope.observed.as_ref()
    }

    fn split(self) -> (CallScope<T>, Parts, B0) {
        self.into_call().split()
    }

    fn join<B>(scope: CallScope<T>, parts: Parts, body: B) -> Call<B, T> {
        Call::<B0, T>::join(scope, parts, body)
    }

    fn rest(&self) -> CallScope<T> {
        self.scope.clone()
    }

    fn into_http(self) -> Request<B0> {
        self.http
    }
}

/// What a balancer found out about a response, so that no layer above it need find it out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// What its head says.
    pub head: Head,
    /// When it came.
    pub at: Instant,
}

/// What the layers above the balancer may ask of a response's body.
pub trait ServedBy<B> {
    /// The endpoint that served the attempt, if it is known.
    fn served_by(body: &B) -> Option<EndpointId>;
    /// How the response was judged, if it was.
    fn judged(body: &B) -> Option<Judged>;
}

/// For stacks without a balancer: nobody knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl<B> ServedBy<B> for Nobody {
    fn served_by(_: &B) -> Option<EndpointId> {
        None
    }

    fn judged(_: &B) -> Option<Judged> {
        None
    }
}

/// What a caller may learn of how its call was served.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CallInfo {
    /// The endpoint that answered.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The route; empty for the default route.
    pub route: Arc<str>,
    /// The attempts, the first one included.
    pub attempts: u32,
    /// From the call to the response's headers.
    pub latency: Duration,
}

impl CallInfo {
    /// A call without an endpoint.
    pub fn new(route: Arc<str>, attempts: u32, latency: Duration) -> Self {
        Self { endpoint: None, route, attempts, latency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_four_tries_are_remembered() {
        let mut tried = Tried::default();
        assert!(tried.is_empty() && !tried.contains(EndpointId(0)));
        (0..6).flat_map(|id| [id, id]).for_each(|id| tried.push(EndpointId(id)));
        let seen: Vec<bool> = (0..7).map(|id| tried.contains(EndpointId(id))).collect();
        assert_eq!(seen, [false, false, true, true, true, true, false]);
    }
}
