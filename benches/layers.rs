//! What each layer costs alone: ours, and tower 0.5's and tower-resilience's where they have one like it, in one run.
//!
//! `cargo bench --bench layers -- --callgrind`

#[path = "common/mod.rs"]
mod common;

use bytes::Bytes;
use common::{Options, Row, measure, print};
use enmesh::authz::layer::{AuthzLayer, Gate};
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::{Action, AuthzSettings};
use enmesh::balance::layer::Balance;
use enmesh::balance::tell::TellLoadLayer;
use enmesh::breaker::layer::BreakerLayer;
use enmesh::classify::respond::RespondLayer;
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::fault::decide::{FaultPolicy, FaultSwitch};
use enmesh::fault::layer::FaultLayer;
use enmesh::limit::layer::LimitLayer;
use enmesh::policy::limits::LimitPolicy;
use enmesh::profile::route::{Abort, FaultSettings};
use enmesh::profile::settings::{
    Adaptive, BalancerSettings, BreakerSettings, BudgetSettings, HedgeSettings, Limits, RateLimit, RateScope,
    RetrySettings, Share,
};
use enmesh::retry::budget::Budget;
use enmesh::retry::decide::RetryPolicy;
use enmesh::retry::layer::RetryLayer;
use enmesh::stdx::rng::Rng;
use enmesh::timeout::arrival::ArrivalLayer;
use enmesh::timeout::layer::TimeoutLayer;
use http::{Request, Response};
use http_body_util::Empty;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};
use tower::retry::budget::{Budget as _, TpsBudget};
use tower::{Layer, Service, ServiceBuilder};
use tower_resilience::{adaptive, bulkhead, chaos, circuitbreaker, hedge, ratelimiter, retry, timelimiter};

type Content = Empty<Bytes>;
type Answer = Response<Content>;

const SECOND: Duration = Duration::from_secs(1);
/// More than any bench sends, so that nothing is refused.
const PLENTY: u32 = 1_000_000_000;

/// Answers at once.
#[derive(Debug, Clone)]
struct Mock;

impl<B> Service<Request<B>> for Mock {
    type Response = Answer;
    type Error = Infallible;
    type Future = Ready<Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}

/// One request, from readiness to its response's end.
fn send<S: Service<Request<Content>>>(service: &mut S) {
    let mut cx = Context::from_waker(Waker::noop());
    // Nobody pends for long here, but for who waits for another thread.
    while service.poll_ready(&mut cx).is_pending() {
        std::thread::yield_now();
    }
    let mut future = pin!(service.call(Request::new(Empty::new())));
    while future.as_mut().poll(&mut cx).is_pending() {
        std::thread::yield_now();
    }
}

/// The rows of one kind of layer, and how it is with several threads.
struct Kind<'o> {
    options: &'o Options,
    name: &'static str,
    rows: Vec<Row>,
    crowds: Vec<(String, [f64; 4])>,
}

const THREADS: [usize; 4] = [1, 2, 4, 8];

impl<'o> Kind<'o> {
    fn new(options: &'o Options, name: &'static str) -> Self {
        Self { options, name, rows: Vec::new(), crowds: Vec::new() }
    }

    /// Measures one service.
    fn one<S: Service<Request<Content>>>(&mut self, whose: &str, service: S) {
        let (name, mut service) = (format!("{}: {whose}", self.name), service);
        if self.options.wants(&name) {
            self.rows.extend(measure(self.options, &name, || send(&mut service)));
        }
    }

    /// The same, and by several threads with a clone each: what they share costs more the more threads write it.
    fn shared<S: Service<Request<Content>> + Clone + Send>(&mut self, whose: &str, service: S) {
        self.one(whose, service.clone());
        if self.options.rounds.is_some() {
            return;
        }
        let (batches, batch) = if self.options.smoke { (1, 50) } else { (5, 20_000) };
        let each = THREADS.map(|threads| {
            let crowd = || {
                let mut run = || {
                    std::thread::scope(|scope| {
                        for _ in 0..threads {
                            let (mut own, runtime) = (service.clone(), tokio::runtime::Handle::current());
                            scope.spawn(move || {
                                let _guard = runtime.enter();
                                (0..batch).for_each(|_| send(&mut own));
                            });
                        }
                    });
                };
                common::time(1, &mut run)
            };
            let least = (0..batches).map(|_| crowd()).min().unwrap_or_default();
            least.as_nanos() as f64 / f64::from(batch) / threads as f64
        });
        self.crowds.push((whose.to_owned(), each));
    }

    fn print(self) {
        print(self.name, "cargo bench --bench layers -- --callgrind", &self.rows);
        if !self.crowds.is_empty() {
            println!(
                "\n  {:<44} {:>9} {:>9} {:>9} {:>9}",
                "wall ns over all requests, by threads", 1, 2, 4, 8
            );
        }
        for (whose, [one, two, four, eight]) in self.crowds {
            println!("  {whose:<44} {one:>9.0} {two:>9.0} {four:>9.0} {eight:>9.0}");
        }
    }
}

fn limits(limits: &Limits) -> LimitLayer {
    LimitLayer::new(LimitPolicy::new(limits))
}

fn retries(hedge: Option<HedgeSettings>) -> RetryLayer<enmesh::policy::call::Nobody> {
    let budget = Budget::new(&BudgetSettings::Windowed {
        ratio_ppm: 200_000,
        min_per_second: 10,
        ttl: Duration::from_secs(10),
    });
    let policy = RetryPolicy::compile(&RetrySettings { hedge, ..RetrySettings::default() }, Arc::new(budget));
    RetryLayer::new(policy, Rng::thread())
}

/// tower's own retries leave the policy to their user: this is the least one with a budget.
#[derive(Clone)]
struct Attempts(Arc<TpsBudget>);

impl<E> tower::retry::Policy<Request<Content>, Answer, E> for Attempts {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request<Content>, result: &mut Result<Answer, E>) -> Option<Ready<()>> {
        if result.as_ref().is_ok_and(|response| !response.status().is_server_error()) {
            self.0.deposit();
            return None;
        }
        self.0.withdraw().then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<Content>) -> Option<Request<Content>> {
        Some(request.clone())
    }
}

fn their_budget() -> Arc<dyn retry::RetryBudget> {
    Arc::new(retry::TokenBucketBudget::new(10.0, 100, 100).expect("valid"))
}

/// Hedges every request.
#[derive(Clone)]
struct Always;

impl tower::hedge::Policy<Request<Content>> for Always {
    fn clone_request(&self, request: &Request<Content>) -> Option<Request<Content>> {
        Some(request.clone())
    }

    fn can_retry(&self, _: &Request<Content>) -> bool {
        true
    }
}

fn timeouts(options: &Options) {
    let mut kind = Kind::new(options, "timeout of a request");
    kind.one("none", Mock);
    kind.one("enmesh", TimeoutLayer::request().with_own(SECOND).layer(Mock));
    kind.one("tower", tower::timeout::TimeoutLayer::new(SECOND).layer(Mock));
    kind.one(
        "tower-resilience",
        timelimiter::TimeLimiterLayer::builder().timeout_duration(SECOND).build().layer(Mock),
    );
    kind.print();
}

fn retrying(options: &Options) {
    let mut kind = Kind::new(options, "retries with a budget");
    kind.one("none", Mock);
    kind.shared("enmesh", retries(None).layer(Mock));
    let budget = Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 0.2));
    kind.shared("tower", tower::retry::RetryLayer::new(Attempts(budget)).layer(Mock));
    let layer = retry::RetryLayer::<Request<Content>, Answer, Infallible>::builder()
        .max_attempts(3)
        .exponential_backoff(Duration::from_millis(25))
        .budget(their_budget())
        .build();
    kind.shared("tower-resilience", layer.layer(Mock));
    kind.print();
    let mut kind = Kind::new(options, "hedging after a second");
    kind.one("none", Mock);
    kind.one("enmesh", retries(Some(HedgeSettings::After(SECOND))).layer(Mock));
    kind.one("tower", tower::hedge::Hedge::new(Mock, Always, 10, 0.95, Duration::from_secs(10)));
    kind.one(
        "tower-resilience",
        hedge::HedgeLayer::builder().delay(SECOND).max_hedged_attempts(2).build().layer(Mock),
    );
    kind.print();
}

fn breakers(options: &Options) {
    let mut kind = Kind::new(options, "breaker");
    kind.one("none", Mock);
    kind.shared("enmesh", BreakerLayer::new(BreakerSettings::default(), Rng::thread()).layer(Mock));
    let layer = circuitbreaker::CircuitBreakerLayer::builder().build().expect("its defaults are valid");
    kind.shared("tower-resilience", layer.layer(Mock));
    kind.print();
}

fn limiting(options: &Options) {
    let mut kind = Kind::new(options, "limit of concurrency");
    kind.one("none", Mock);
    let places = Limits { requests_max: Some(100), ..Limits::default() };
    kind.shared("enmesh", limits(&places).layer(Mock));
    kind.shared("tower", tower::limit::GlobalConcurrencyLimitLayer::new(100).layer(Mock));
    let layer = bulkhead::BulkheadLayer::builder().max_concurrent_calls(100).build().expect("valid");
    kind.shared("tower-resilience", layer.layer(Mock));
    kind.print();
    let mut kind = Kind::new(options, "limit that follows latency");
    kind.one("none", Mock);
    let vegas = Limits { adaptive: Some(Adaptive::Vegas), ..places };
    kind.shared("enmesh", limits(&vegas).layer(Mock));
    let vegas = adaptive::Vegas::builder().initial_limit(20).max_limit(100).build().expect("valid");
    kind.shared("tower-resilience", adaptive::AdaptiveLimiterLayer::new(vegas).layer(Mock));
    kind.print();
    let mut kind = Kind::new(options, "limit of a rate");
    kind.one("none", Mock);
    let total = RateLimit { requests: PLENTY, per: SECOND, burst: Some(PLENTY), scope: RateScope::Total };
    kind.shared("enmesh", limits(&Limits { rates: vec![total], ..Limits::default() }).layer(Mock));
    // tower's is one service for all, without a clone: it stands behind a buffer where clients share it.
    kind.one("tower", tower::limit::RateLimitLayer::new(u64::from(PLENTY), SECOND).layer(Mock));
    let layer = ratelimiter::RateLimiterLayer::builder()
        .limit_for_period(PLENTY as usize)
        .refresh_period(SECOND)
        .build()
        .expect("valid");
    kind.shared("tower-resilience", layer.layer(Mock));
    kind.print();
}

fn faults(options: &Options) {
    let mut kind = Kind::new(options, "faults on purpose, none of which hits");
    kind.one("none", Mock);
    let rare = Share { numerator: 0, denominator: 1 };
    let settings = FaultSettings { delay: Some((SECOND, rare)), abort: Some((Abort::Http(503), rare)) };
    let policy = FaultPolicy::new(settings, FaultSwitch::default());
    kind.one("enmesh", FaultLayer::new(policy, Rng::thread()).layer(Mock));
    kind.one("enmesh, of a route without", FaultLayer::by_route(Rng::thread()).layer(Mock));
    kind.one("tower-resilience", chaos::ChaosLayer::builder().latency_rate(0.0).build().layer(Mock));
    kind.print();
}

fn balancing(options: &Options) {
    let mut kind = Kind::new(options, "balancing over 10 endpoints");
    kind.one("none", Mock);
    let endpoints = || {
        let address = |index: u8| SocketAddr::from(([10, 0, 0, index], 80));
        EndpointSet::new((0..10).map(|index| Endpoint::new(address(index))))
    };
    let balance = |breaker: Option<&BreakerSettings>| {
        let balance = Balance::new("bench", &BalancerSettings::default(), breaker, Rng::thread());
        balance.update(&endpoints(), |_| Mock);
        balance
    };
    kind.shared("enmesh", balance(None));
    kind.shared("enmesh, with breakers", balance(Some(&BreakerSettings::default())));
    let one = |_| {
        let decay = Duration::from_secs(10).as_nanos() as f64;
        PeakEwma::new(Mock, Duration::from_millis(30), decay, CompleteOnResponse::default())
    };
    // tower's is one service for all, without a clone: it stands behind a buffer where clients share it.
    let list = ServiceList::new::<Request<Content>>((0..10).map(one).collect::<Vec<_>>());
    kind.one("tower", tower::balance::p2c::Balance::<_, Request<Content>>::new(list));
    kind.print();
}

/// What only we have.
fn others(options: &Options) {
    let mut kind = Kind::new(options, "ours alone");
    kind.one("none", Mock);
    let settings = AuthzSettings { otherwise: Action::Allow, ..AuthzSettings::default() };
    let gate = Gate::new(AuthzPolicy::compile(&settings).expect("valid"));
    kind.shared("authorization, nothing forbidden", AuthzLayer::new(gate, |_| None).layer(Mock));
    kind.one("a server's deadline", ArrivalLayer::new().with_max(SECOND).layer(Mock));
    kind.one("errors made responses", RespondLayer.layer(Mock));
    kind.shared("a server tells its load", TellLoadLayer::default().layer(Mock));
    kind.print();
}

/// Four of them, as one would stack them by hand.
fn stacks(options: &Options) {
    let mut kind = Kind::new(options, "timeout, retries, breaker, limit");
    kind.one("none", Mock);
    let places = Limits { requests_max: Some(100), ..Limits::default() };
    let ours = ServiceBuilder::new()
        .layer(TimeoutLayer::request().with_own(SECOND))
        .layer(retries(None))
        .layer(BreakerLayer::new(BreakerSettings::default(), Rng::thread()))
        .layer(limits(&places))
        .service(Mock);
    kind.shared("enmesh", ours);
    let bulkhead = bulkhead::BulkheadLayer::builder().max_concurrent_calls(100).build().expect("valid");
    let breaker = circuitbreaker::CircuitBreakerLayer::builder().build().expect("its defaults are valid");
    let theirs = ServiceBuilder::new()
        .layer(timelimiter::TimeLimiterLayer::builder().timeout_duration(SECOND).build())
        .layer(
            retry::RetryLayer::builder()
                .max_attempts(3)
                .exponential_backoff(Duration::from_millis(25))
                .budget(their_budget())
                .build(),
        )
        .layer(breaker)
        .layer(bulkhead)
        .service(Mock);
    kind.shared("tower-resilience", theirs);
    kind.print();
}

fn main() {
    let options = Options::read();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _guard = runtime.enter();
    timeouts(&options);
    retrying(&options);
    breakers(&options);
    limiting(&options);
    faults(&options);
    balancing(&options);
    others(&options);
    stacks(&options);
}
