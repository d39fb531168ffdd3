//! The contract of every layer, alone and stacked: whatever its caller or its inner service does, nothing stays behind.
//!
//! Each stack is driven through one request and dropped after every number of polls, has its inner service panic at every
//! poll, is called on a fresh clone, is made ready and dropped, and is cloned 10,000 times. After each of these
//! everything that the stack counts is as it was, and it serves the next request.

use bytes::Bytes;
use enmesh::authz::layer::{AuthzLayer, Gate};
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::{Action, AuthzSettings};
use enmesh::balance::inspect::BreakerState;
use enmesh::balance::layer::Balance;
use enmesh::balance::tell::TellLoadLayer;
use enmesh::breaker::layer::BreakerLayer;
use enmesh::classify::respond::RespondLayer;
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::error::{BoxError, Error};
use enmesh::fault::decide::{FaultPolicy, FaultSwitch};
use enmesh::fault::layer::FaultLayer;
use enmesh::limit::layer::LimitLayer;
use enmesh::mesh::stack;
use enmesh::metrics::layer::MetricsLayer;
use enmesh::metrics::names::Direction;
use enmesh::metrics::route::Hedge;
use enmesh::metrics::set::MetricsSet;
use enmesh::policy::call::{Call, CallScope, CallState, Nobody};
use enmesh::policy::compile::Compiler;
use enmesh::policy::limits::LimitPolicy;
use enmesh::policy::route::RouteEntry;
use enmesh::profile::route::{FaultSettings, Route};
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::{
    BackoffSettings, BalancerSettings, BreakerSettings, BudgetSettings, Detector, FailureClass,
    HedgeSettings, Limit, Limits, RetrySettings, Share, Timeouts,
};
use enmesh::retry::budget::Budget;
use enmesh::retry::decide::RetryPolicy;
use enmesh::retry::layer::RetryLayer;
use enmesh::route::layer::ActLayer;
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use enmesh::timeout::arrival::ArrivalLayer;
use enmesh::timeout::attempt::AttemptLayer;
use enmesh::timeout::layer::TimeoutLayer;
use futures::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

const MS: fn(u64) -> Duration = Duration::from_millis;
/// More than any stack needs for one request.
const POLLS_MAX: u32 = 64;

type Content = Empty<Bytes>;
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
type Stack = BoxCloneService<Request<Content>, Answer, BoxError>;

// ---- the inner service

/// Pends once at each of its polls, counts what of it is alive, and panics when it is told to.
#[derive(Debug, Default)]
struct Shared {
    polls: AtomicU32,
    panics_at: Mutex<Option<u32>>,
    /// Whether calls without readiness are a fault of the caller.
    is_strict: AtomicBool,
    failures: AtomicU32,
    /// How often an answer pends once more.
    delays: AtomicU32,
    alive: AtomicU32,
    calls: AtomicU32,
}

impl Shared {
    fn poll(&self) {
        let poll = self.polls.fetch_add(1, SeqCst);
        let at = *self.panics_at.lock().unwrap();
        assert!(at != Some(poll), "on purpose");
    }
}

#[derive(Debug)]
struct Alive(Arc<Shared>);

impl Alive {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.alive.fetch_add(1, SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, SeqCst);
    }
}

/// Pends the first time, and wakes at once.
fn pend_once(pended: &mut bool, cx: &mut Context<'_>) -> Poll<()> {
    if std::mem::replace(pended, true) {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    pended: bool,
    ready: bool,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), pended: false, ready: false }
    }
}

impl<R> Service<R> for Inner {
    type Response = Response<Frames>;
    type Error = Error;
    type Future = Reply;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.shared.poll();
        std::task::ready!(pend_once(&mut self.pended, cx));
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Reply {
        let was_ready = std::mem::take(&mut self.ready);
        assert!(was_ready || !self.shared.is_strict.load(SeqCst), "called without being ready");
        self.pended = false;
        self.shared.calls.fetch_add(1, SeqCst);
        let alive = Alive::new(&self.shared);
        self.shared.poll();
        Reply { alive: Some(alive), delays: self.shared.delays.load(SeqCst), pended: false }
    }
}

#[derive(Debug)]
struct Reply {
    alive: Option<Alive>,
    delays: u32,
    pended: bool,
}

impl Future for Reply {
    type Output = Result<Response<Frames>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = Arc::clone(&self.alive.as_ref().expect("polled after its end").0);
        shared.poll();
        std::task::ready!(pend_once(&mut self.pended, cx));
        if let Some(left) = self.delays.checked_sub(1) {
            (self.delays, self.pended) = (left, false);
            return self.poll(cx);
        }
        let failed = shared.failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        let frames = vec![
            Frame::trailers(HeaderMap::new()),
            Frame::data(Bytes::from_static(b"b")),
            Frame::data(Bytes::from_static(b"a")),
        ];
        let mut response = Response::new(Frames { alive: self.alive.take(), frames, pended: false });
        *response.status_mut() = if failed { 503 } else { 200 }.try_into().unwrap();
        Poll::Ready(Ok(response))
    }
}

/// By default those of an answer that nobody sent.
#[derive(Debug, Default)]
struct Frames {
    alive: Option<Alive>,
    frames: Vec<Frame<Bytes>>,
    pended: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(alive) = &self.alive {
            alive.0.poll();
        }
        std::task::ready!(pend_once(&mut self.pended, cx));
        self.pended = false;
        Poll::Ready(self.frames.pop().map(Ok))
    }
}

// ---- what is held to the contract

/// What a stack holds, by name.
type Held = Vec<(&'static str, u64)>;

/// A stack, and what of it must always come back to what it was.
struct Case {
    name: &'static str,
    inner: Inner,
    stack: Stack,
    gauges: Box<dyn Fn() -> Held>,
}

impl Case {
    fn new<S, B>(name: &'static str, inner: &Inner, service: S) -> Self
    where
        S: Service<Request<Content>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let stack = ServiceBuilder::new()
            .map_response(|response: Response<B>| {
                response.map(|body| body.map_err(Into::into).boxed_unsync())
            })
            .map_err(Into::into)
            .service(service);
        Self { name, inner: inner.clone(), stack: BoxCloneService::new(stack), gauges: Box::new(Vec::new) }
    }

    fn gauged(mut self, gauges: impl Fn() -> Held + 'static) -> Self {
        self.gauges = Box::new(gauges);
        self
    }

    /// Everything that is held now.
    fn held(&self) -> Held {
        let alive = self.inner.shared.alive.load(SeqCst);
        [("alive", u64::from(alive))].into_iter().chain((self.gauges)()).collect()
    }

    fn reset(&self, panics_at: Option<u32>) {
        let shared = &self.inner.shared;
        shared.polls.store(0, SeqCst);
        *shared.panics_at.lock().unwrap() = panics_at;
        // The first attempt of each request fails, so that there is a second where a layer makes one.
        shared.failures.store(1, SeqCst);
        shared.is_strict.store(true, SeqCst);
    }

    /// One request from readiness to the end of its response's body.
    fn life(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        let mut stack = self.stack.clone();
        Box::pin(async move {
            let Ok(ready) = stack.ready().await else { return };
            let Ok(response) = ready.call(request()).await else { return };
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.frame().await {}
        })
    }

    /// Polls a life so often; whether it ended, by itself or by a panic.
    async fn drive(&self, polls: u32) -> bool {
        let mut life = self.life();
        for _ in 0..polls {
            let mut cx = Context::from_waker(Waker::noop());
            match catch_unwind(AssertUnwindSafe(|| life.as_mut().poll(&mut cx))) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(())) | Err(_) => return true,
            }
            tokio::time::advance(MS(1)).await;
        }
        false
    }

    /// Everything is as it was at rest, and the next request is served.
    async fn is_at_rest(&self, rest: &[(&'static str, u64)], after: &str) {
        assert_eq!(self.held(), rest, "{}: {after}", self.name);
        self.reset(None);
        let calls = self.inner.shared.calls.load(SeqCst);
        assert!(self.drive(POLLS_MAX).await, "{}: {after}: the next request hangs", self.name);
        assert!(self.inner.shared.calls.load(SeqCst) > calls, "{}: {after}: nobody is served", self.name);
        assert_eq!(self.held(), rest, "{}: {after}, and one more request", self.name);
    }

    async fn holds(&self) {
        let rest = self.held();
        self.is_dropped_after_any_poll(&rest).await;
        self.survives_a_panic_at_any_poll(&rest).await;
        self.may_be_readied_and_dropped(&rest).await;
        self.may_be_called_on_a_fresh_clone(&rest).await;
    }

    async fn is_dropped_after_any_poll(&self, rest: &[(&'static str, u64)]) {
        for polls in 0..POLLS_MAX {
            self.reset(None);
            let done = self.drive(polls).await;
            self.is_at_rest(rest, &format!("dropped after {polls} polls")).await;
            if done {
                assert!(polls >= 4, "{}: {polls} polls are no test", self.name);
                return;
            }
        }
        panic!("{}: no end after {POLLS_MAX} polls", self.name);
    }

    async fn survives_a_panic_at_any_poll(&self, rest: &[(&'static str, u64)]) {
        for at in 0..POLLS_MAX {
            self.reset(Some(at));
            assert!(self.drive(POLLS_MAX).await, "{}: hangs after a panic at {at}", self.name);
            let panicked = self.inner.shared.polls.load(SeqCst) > at;
            self.is_at_rest(rest, &format!("a panic at {at}")).await;
            if !panicked {
                return;
            }
        }
        panic!("{}: more than {POLLS_MAX} polls", self.name);
    }

    async fn may_be_readied_and_dropped(&self, rest: &[(&'static str, u64)]) {
        self.reset(None);
        let mut clones: Vec<Stack> = std::iter::repeat_with(|| self.stack.clone()).take(10_000).collect();
        for clone in &mut clones {
            clone.ready().await.unwrap();
        }
        self.is_at_rest(rest, "10,000 clones are ready").await;
        drop(clones);
        self.is_at_rest(rest, "10,000 clones that were ready are dropped").await;
    }

    /// What breaks tower's contract may fail or not, but it holds nothing and poisons nothing.
    async fn may_be_called_on_a_fresh_clone(&self, rest: &[(&'static str, u64)]) {
        self.reset(None);
        self.inner.shared.is_strict.store(false, SeqCst);
        let mut ready = self.stack.clone();
        ready.ready().await.unwrap();
        let mut fresh = ready.clone();
        let end = AssertUnwindSafe(fresh.call(request())).catch_unwind().await;
        drop((end.expect("no panic of ours"), fresh));
        self.is_at_rest(rest, "called on a clone that was not ready").await;
        // Ready twice, and called once.
        self.reset(None);
        ready.ready().await.unwrap();
        let end = ready.call(request()).await;
        drop((end, ready));
        self.is_at_rest(rest, "ready twice").await;
    }
}

fn request() -> Request<Content> {
    Request::get("http://svc/x").body(Empty::new()).unwrap()
}

fn inner() -> Inner {
    Inner { shared: Arc::default(), pended: false, ready: false }
}

// ---- the stacks

fn budget() -> BudgetSettings {
    BudgetSettings::ActiveShare { ratio_ppm: 0, min_concurrent: 5 }
}

fn retry() -> RetrySettings {
    let backoff = Some(BackoffSettings { base: MS(1), max: MS(1), jitter: 0.0 });
    RetrySettings { backoff, ..RetrySettings::default() }
}

fn timeouts() -> Timeouts {
    let far = Limit::After(Duration::from_secs(3600));
    Timeouts { request: far, attempt: far, idle: far, response: far, ..Timeouts::default() }
}

/// So many failures in a row shut an endpoint.
fn breaker(threshold: u32) -> BreakerSettings {
    BreakerSettings {
        detectors: vec![Detector::Consecutive { class: FailureClass::Any, threshold }],
        jitter: 0.0,
        ..BreakerSettings::default()
    }
}

/// The one route of a service with every timeout and retries, and what its metrics count that has not ended.
fn entry<T: Clone>(target: T) -> (Arc<RouteEntry<T>>, impl Fn() -> Held + 'static) {
    entry_of(target, Route::default(), Limits::default())
}

/// The same, with whatever else `route` says, and limits of the service.
fn entry_of<T: Clone>(
    target: T,
    route: Route,
    limits: Limits,
) -> (Arc<RouteEntry<T>>, impl Fn() -> Held + 'static) {
    let mut profile = ServiceProfile::new("svc:80".parse().unwrap());
    let own = profile.names[0].clone();
    let retry = route.retry.clone().unwrap_or_else(retry);
    profile.routes = vec![Route { retry: Some(retry), timeouts: timeouts(), ..route }];
    profile.retry_budget = Some(budget());
    profile.limits = limits;
    let metrics = MetricsSet::unseen();
    let compiler = Compiler {
        service: "svc:80".into(),
        own,
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    let policy = compiler.compile(Arc::new(profile), None, |_| target.clone()).unwrap();
    let (entry, budget) = (Arc::clone(&policy.routes()[0]), Arc::clone(policy.budget()));
    let counted = Arc::clone(&entry.policy.metrics);
    let gauges = move || {
        let reading = counted.read();
        let ended = reading.successes + reading.failures + reading.cancelled;
        vec![("calls under way", reading.requests - ended), ("budget", budget.level(clock::now()))]
    };
    (entry, gauges)
}

/// Every request is held up for so long.
fn delay(time: Duration) -> FaultSettings {
    FaultSettings { delay: Some((time, Share { numerator: 1, denominator: 1 })), abort: None }
}

/// The call of a request, beginning now.
fn call<T>(entry: &Arc<RouteEntry<T>>) -> impl Fn(Request<Content>) -> Call<Content, T> + Clone + use<T> {
    let entry = Arc::clone(entry);
    move |http| {
        let mut state = CallState::new(clock::now());
        state.deadline = entry.policy.timeouts.request.map(|request| state.started + request);
        Call { http, scope: CallScope::new(Arc::clone(&entry), state) }
    }
}

fn balanced<S: Clone + 'static>(
    settings: &BreakerSettings,
    make: impl Fn() -> S,
) -> (Balance<S>, impl Fn() -> Held + 'static) {
    let balance = Balance::new("svc", &BalancerSettings::default(), Some(settings), Rng::seeded(1));
    let endpoints = (1..3).map(|port| Endpoint::new(([127, 0, 0, 1], port).into()));
    balance.update(&EndpointSet::new(endpoints), |_| make());
    let seen = balance.clone();
    let gauges = move || {
        let state = seen.inspect();
        let probing = state.endpoints.iter().filter(|one| one.breaker == BreakerState::Probing).count();
        let in_flight = state.endpoints.iter().map(|one| u64::from(one.in_flight)).sum();
        vec![("in flight", in_flight), ("probing", probing as u64)]
    };
    (balance, gauges)
}

#[tokio::test(start_paused = true)]
async fn a_timeout_holds_it() {
    let inner = inner();
    let layer = TimeoutLayer::request().with_own(Duration::from_secs(3600));
    Case::new("timeout", &inner, layer.layer(inner.clone())).holds().await;
}

#[tokio::test(start_paused = true)]
async fn retries_hold_it() {
    let (inner, budget) = (inner(), Arc::new(Budget::new(&budget())));
    let policy = RetryPolicy::compile(&retry(), Arc::clone(&budget));
    let layer = RetryLayer::new(policy, Rng::seeded(1));
    let case = Case::new("retry", &inner, layer.layer(inner.clone()));
    case.gauged(move || vec![("budget", budget.level(clock::now()))]).holds().await;
}

#[tokio::test(start_paused = true)]
async fn a_breaker_holds_it() {
    let inner = inner();
    Case::new("breaker", &inner, BreakerLayer::new(breaker(1000), Rng::seeded(1)).layer(inner.clone()))
        .holds()
        .await;
}

/// The one that tries a shut service may go away or panic at any time: the place is free again.
#[tokio::test(start_paused = true)]
async fn a_breaker_that_tries_its_service_holds_it() {
    let inner = inner();
    let breaker = BreakerLayer::new(BreakerSettings { ejection_base: MS(1), ..breaker(1) }, Rng::seeded(1));
    let breaker = breaker.layer(inner.clone());
    let seen = breaker.clone();
    let case = Case::new("breaker, shut", &inner, breaker)
        .gauged(move || vec![("probing", u64::from(seen.state().is_some_and(|state| state.probing)))]);
    let rest = case.held();
    for polls in 0..POLLS_MAX {
        case.reset(None);
        // It fails and shuts; a minute later the next request tries it.
        assert!(case.drive(POLLS_MAX).await);
        tokio::time::advance(Duration::from_secs(60)).await;
        let done = case.drive(polls).await;
        assert_eq!(case.held(), rest, "a probe dropped after {polls} polls");
        if done {
            assert!(polls >= 4);
            return;
        }
    }
    panic!("no end");
}

#[tokio::test(start_paused = true)]
async fn a_balancer_holds_it() {
    let inner = inner();
    let (balance, gauges) = balanced(&breaker(1000), || inner.clone());
    Case::new("balance", &inner, balance).gauged(gauges).holds().await;
}

/// Endpoints that are shut by every failure, so that nearly each request is a probe.
#[tokio::test(start_paused = true)]
async fn a_balancer_whose_endpoints_are_tried_holds_it() {
    let inner = inner();
    let (balance, gauges) =
        balanced(&BreakerSettings { ejection_base: MS(1), ..breaker(1) }, || inner.clone());
    Case::new("balance, shut", &inner, balance).gauged(gauges).holds().await;
}

#[tokio::test(start_paused = true)]
async fn an_attempts_timer_holds_it() {
    let inner = inner();
    let (entry, gauges) = entry(());
    let service = AttemptLayer::default().layer(inner.clone()).map_request(call(&entry));
    Case::new("attempt", &inner, service).gauged(gauges).holds().await;
}

#[tokio::test(start_paused = true)]
async fn metrics_hold_it() {
    let inner = inner();
    let (entry, gauges) = entry(());
    let service = MetricsLayer::default().layer(inner.clone()).map_request(call(&entry));
    Case::new("metrics", &inner, service).gauged(gauges).holds().await;
}

#[tokio::test(start_paused = true)]
async fn a_routes_own_answers_hold_it() {
    let inner = inner();
    let (entry, gauges) = entry(());
    let service = ActLayer.layer(inner.clone()).map_request(call(&entry));
    Case::new("act", &inner, service).gauged(gauges).holds().await;
}

#[tokio::test(start_paused = true)]
async fn an_arrivals_deadline_holds_it() {
    let inner = inner();
    let layer = ArrivalLayer::new().with_max(Duration::from_secs(3600));
    Case::new("arrival", &inner, layer.layer(inner.clone())).holds().await;
}

fn gate() -> AuthzLayer {
    let settings = AuthzSettings { otherwise: Action::Allow, ..AuthzSettings::default() };
    AuthzLayer::new(Gate::new(AuthzPolicy::compile(&settings).unwrap()), |_| None)
}

#[tokio::test(start_paused = true)]
async fn a_gate_holds_it() {
    let inner = inner();
    Case::new("authz", &inner, gate().layer(inner.clone())).holds().await;
}

#[tokio::test(start_paused = true)]
async fn errors_made_responses_hold_it() {
    let inner = inner();
    Case::new("respond", &inner, RespondLayer.layer(inner.clone())).holds().await;
}

/// One place: whoever does not give it back leaves none for the next request.
#[tokio::test(start_paused = true)]
async fn a_limit_holds_it() {
    let inner = inner();
    let limits = Limits { requests_max: Some(1), pending_max: Some(1), ..Limits::default() };
    Case::new("limit", &inner, LimitLayer::new(LimitPolicy::new(&limits)).layer(inner.clone())).holds().await;
}

#[tokio::test(start_paused = true)]
async fn faults_hold_it() {
    let inner = inner();
    for delay in [None, Some(delay(MS(3)))] {
        let policy = FaultPolicy::new(delay.unwrap_or_default(), FaultSwitch::default());
        let layer = FaultLayer::new(policy, Rng::seeded(1));
        Case::new("fault", &inner, layer.layer(inner.clone())).holds().await;
    }
}

/// The second attempt begins while the first one is at every poll of its own.
#[tokio::test(start_paused = true)]
async fn hedges_hold_it() {
    for after in 1..6 {
        let inner = inner();
        inner.shared.delays.store(4, SeqCst);
        let retry = RetrySettings { hedge: Some(HedgeSettings::After(MS(after))), ..retry() };
        let (entry, gauges) =
            entry_of((), Route { retry: Some(retry), ..Route::default() }, Limits::default());
        let layer = RetryLayer::<Nobody>::by_route(Rng::seeded(1));
        let service = layer.layer(inner.clone()).map_request(call(&entry));
        Case::new("hedge", &inner, service).gauged(gauges).holds().await;
        let sent = entry.policy.metrics.hedges(Hedge::Won) + entry.policy.metrics.hedges(Hedge::Lost);
        assert!(after > 3 || sent > 0, "{after} ms: nothing was hedged");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_tells_its_load_holds_it() {
    let inner = inner();
    let layer = TellLoadLayer::default();
    let service = layer.layer(inner.clone());
    let gauges = move || vec![("in flight", u64::from(layer.in_flight()))];
    Case::new("tell load", &inner, service).gauged(gauges).holds().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_taken_out_of_its_call_holds_it() {
    let inner = inner();
    let (entry, gauges) = entry(());
    let service = stack::PlainLayer.layer(inner.clone()).map_request(call(&entry));
    Case::new("plain", &inner, service).gauged(gauges).holds().await;
}

/// A whole call that is held up and then waits for the one place.
#[tokio::test(start_paused = true)]
async fn a_guarded_call_holds_it() {
    let inner = inner();
    let route = Route { fault: Some(delay(MS(2))), ..Route::default() };
    let limits = Limits { requests_max: Some(1), pending_max: Some(1), ..Limits::default() };
    let (entry, gauges) = entry_of((), route, limits);
    let stack = stack::around::<Nobody, _>(Rng::seeded(1), stack::replica(inner.clone()));
    Case::new("guarded", &inner, stack.map_request(call(&entry))).gauged(gauges).holds().await;
}

/// Timeout, retries and breaker by plain tower, without a mesh.
#[tokio::test(start_paused = true)]
async fn layers_stacked_by_hand_hold_it() {
    let (inner, budget) = (inner(), Arc::new(Budget::new(&budget())));
    let policy = RetryPolicy::compile(&retry(), Arc::clone(&budget));
    let (balance, gauges) = balanced(&breaker(1000), || inner.clone());
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::request().with_own(Duration::from_secs(3600)))
        .layer(RetryLayer::new(policy, Rng::seeded(1)))
        .layer(BreakerLayer::new(breaker(1000), Rng::seeded(1)))
        .service(balance);
    let gauges = move || gauges().into_iter().chain([("budget", budget.level(clock::now()))]).collect();
    Case::new("timeout, retry, breaker, balance", &inner, stack).gauged(gauges).holds().await;
}

#[tokio::test(start_paused = true)]
async fn the_whole_client_stack_holds_it() {
    for threshold in [1000, 1] {
        let inner = inner();
        let settings = BreakerSettings { ejection_base: MS(1), ..breaker(threshold) };
        let (balance, balancing) = balanced(&settings, || stack::replica(inner.clone()));
        let (entry, counts) = entry(balance);
        let service = stack::outbound(Rng::seeded(1)).map_request(call(&entry));
        let gauges = move || balancing().into_iter().chain(counts()).collect();
        Case::new("the client's stack", &inner, service).gauged(gauges).holds().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_servers_stack_holds_it() {
    let inner = inner();
    let stack = ServiceBuilder::new()
        .layer(RespondLayer)
        .layer(ArrivalLayer::new().with_max(Duration::from_secs(3600)))
        .layer(gate())
        .service(inner.clone());
    Case::new("the server's stack", &inner, stack).holds().await;
}

#[cfg(feature = "http")]
mod meshed {
    use super::*;
    use enmesh::Mesh;
    use enmesh::tap::filter::Filter;
    use enmesh::tap::hub::Item;

    fn profile() -> ServiceProfile {
        let route = Route { retry: Some(retry()), timeouts: timeouts(), ..Route::default() };
        let limits = Limits { requests_max: Some(1), pending_max: Some(1), ..Limits::default() };
        ServiceProfile {
            routes: vec![route],
            limits,
            retry_budget: Some(budget()),
            ..ServiceProfile::new("svc:80".parse().unwrap())
        }
    }

    /// What the mesh counts that has not ended, and the places that are taken.
    fn gauges(mesh: &Mesh) -> impl Fn() -> Held + 'static {
        let mesh = mesh.clone();
        move || {
            let stats = mesh.stats();
            let under_way = stats.routes.iter().map(|route| {
                let reading = &route.reading;
                reading.requests - reading.successes - reading.failures - reading.cancelled
            });
            let under_way = under_way.sum();
            let services = mesh.inspect().services;
            let places =
                services.iter().flat_map(|service| [&service.limit, &service.inbound_limit]).flatten();
            let taken = places.map(|limit| u64::from(limit.in_flight + limit.waiting)).sum();
            vec![("calls under way", under_way), ("places", taken)]
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_meshs_layer_around_any_service_holds_it() {
        let inner = inner();
        let mesh = Mesh::builder().profile(profile()).seed(1).build().unwrap();
        Case::new("mesh", &inner, mesh.layer().layer(inner.clone())).gauged(gauges(&mesh)).holds().await;
        assert!(mesh.stats().routes.iter().any(|route| route.reading.requests > 0), "it is another route's");
    }

    /// Whoever observes is told the end of each attempt whose beginning it was told.
    #[tokio::test(start_paused = true)]
    async fn attempts_that_are_told_hold_it() {
        let inner = inner();
        let mesh = Mesh::builder().profile(profile()).seed(1).build().unwrap();
        let tap = std::cell::RefCell::new(mesh.taps().observe(Filter::default()).unwrap());
        let (begun, ended) = (std::cell::Cell::new(0u64), std::cell::Cell::new(0u64));
        let others = gauges(&mesh);
        let told = move || {
            while let Some(item) = tap.borrow_mut().ready() {
                let Item::Event(event) = item else { panic!("events were lost") };
                begun.set(begun.get() + u64::from(event.request_init_event.is_some()));
                ended.set(ended.get() + u64::from(event.response_end_event.is_some()));
            }
            (begun.get(), ended.get())
        };
        let told = std::rc::Rc::new(told);
        let seen = std::rc::Rc::clone(&told);
        let gauges = move || {
            let (begun, ended) = seen();
            others().into_iter().chain([("told and not ended", begun - ended)]).collect()
        };
        Case::new("told", &inner, mesh.layer().layer(inner.clone())).gauged(gauges).holds().await;
        assert!(told().0 > 0, "nothing was told");
    }

    #[tokio::test(start_paused = true)]
    async fn the_meshs_server_layer_holds_it() {
        let inner = inner();
        let mesh = Mesh::builder().name("svc:80").profile(profile()).seed(1).build().unwrap();
        Case::new("inbound", &inner, mesh.inbound().layer(inner.clone())).gauged(gauges(&mesh)).holds().await;
        assert!(mesh.stats().routes.iter().any(|route| route.reading.requests > 0), "it is another route's");
    }
}

/// Whoever adds a layer adds it here too, with the test that holds it.
#[test]
fn every_layer_has_its_test() {
    let here = include_str!("contract.rs");
    let held = |layer: &str| match layer {
        // by the mesh's own
        "MeshLayer" => here.contains("mesh.layer()"),
        "TellAttemptsLayer" => here.contains("mesh.taps()"),
        "InboundLayer" => here.contains("mesh.inbound()"),
        // by the stack that it is the outermost of
        "WholeLayer" => here.contains("stack::outbound(") && here.contains("stack::around::<"),
        _ => here.contains(&format!("{layer}.layer(")) || here.contains(&format!("{layer}::")),
    };
    let (mut layers, mut folders) =
        (Vec::new(), vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let names =
                text.lines().filter(|line| line.starts_with("impl<S") && line.contains(" Layer<S> for "));
            layers.extend(names.map(|line| {
                let name = line.split(" for ").nth(1).unwrap_or_default();
                name.split(['<', ' ']).next().unwrap_or_default().to_owned()
            }));
        }
    }
    assert!(layers.len() >= 16, "{layers:?}");
    let missing: Vec<_> = layers.iter().filter(|layer| !held(layer)).collect();
    assert!(missing.is_empty(), "not held to the contract: {missing:?}");
}
