//! The balancer's contract: cancel, panic, drop and update whenever you like; nothing stays in flight, and every
//! ending is counted once.

use bytes::Bytes;
use enmesh::balance::body::{AskBody, Served};
use enmesh::balance::inspect::{BalanceState, BreakerState, EndpointState};
use enmesh::balance::layer::{Balance, FAIL_FAST};
use enmesh::breaker::event::What;
use enmesh::breaker::layer::BreakerLayer;
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::error::{Error, Scope};
use enmesh::fault::decide::FaultSwitch;
use enmesh::metrics::names::Direction;
use enmesh::metrics::registry::Registry;
use enmesh::metrics::set::MetricsSet;
use enmesh::policy::call::{Call, CallScope, CallState, MeshRequest, ServedBy};
use enmesh::policy::compile::Compiler;
use enmesh::policy::route::RoutePolicy;
use enmesh::profile::matching::{Condition, PathKind, PathMatch};
use enmesh::profile::route::Route;
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::{
    Algorithm, BalancerSettings, BreakerSettings, BudgetSettings, Detector, FailureClass, HashKey,
    HedgeSettings, LocalitySettings, Recovery, RetrySettings,
};
use enmesh::retry::layer::RetryLayer;
use enmesh::route::head::RequestHead;
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};

/// What a replica does, changed while it runs.
#[derive(Debug, Clone)]
struct Script {
    /// Polls of readiness, of the response and of each frame that pend first.
    pending: [u32; 3],
    /// The poll that panics, counted over the whole attempt.
    panics_at: Option<u32>,
    delay: Duration,
    answer: Answer,
}

#[derive(Debug, Clone)]
enum Answer {
    Status(u16),
    Grpc(&'static str),
    Error,
    Unready,
    BrokenBody,
}

impl Default for Script {
    fn default() -> Self {
        Self { pending: [0; 3], panics_at: None, delay: Duration::ZERO, answer: Answer::Status(200) }
    }
}

#[derive(Debug, Clone)]
struct Replica {
    port: u16,
    scripts: Arc<Mutex<BTreeMap<u16, Script>>>,
    served: Arc<AtomicU32>,
    polls: Arc<AtomicU32>,
    pending: u32,
}

impl Replica {
    fn script(&self) -> Script {
        self.scripts.lock().unwrap().get(&self.port).cloned().unwrap_or_default()
    }

    /// Counts a poll, and panics if it is the one.
    fn poll(polls: &AtomicU32, script: &Script) {
        let poll = polls.fetch_add(1, Relaxed);
        assert!(script.panics_at != Some(poll), "as the script has it");
    }
}

/// Pends so often, waking at once.
fn pend(left: &mut u32, cx: &mut Context<'_>) -> Poll<()> {
    if *left == 0 {
        return Poll::Ready(());
    }
    *left -= 1;
    cx.waker().wake_by_ref();
    Poll::Pending
}

#[derive(Debug)]
struct Frames {
    frames: Vec<Result<Frame<Bytes>, Error>>,
    pending: u32,
    left: u32,
    polls: Arc<AtomicU32>,
    script: Script,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Replica::poll(&self.polls, &self.script);
        std::task::ready!(pend(&mut self.left, cx));
        self.left = self.pending;
        Poll::Ready(self.frames.pop())
    }
}

type Reply = Pin<Box<dyn Future<Output = Result<Response<Frames>, Error>> + Send>>;

impl<R> Service<R> for Replica {
    type Response = Response<Frames>;
    type Error = Error;
    type Future = Reply;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let script = self.script();
        Self::poll(&self.polls, &script);
        std::task::ready!(pend(&mut self.pending, cx));
        if matches!(script.answer, Answer::Unready) {
            return Poll::Ready(Err(Error::Connect {
                endpoint: ([127, 0, 0, 1], self.port).into(),
                source: "refused".into(),
            }));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Reply {
        let script = self.script();
        Self::poll(&self.polls, &script);
        let (port, polls, served) = (self.port, Arc::clone(&self.polls), Arc::clone(&self.served));
        Box::pin(async move {
            if !script.delay.is_zero() {
                tokio::time::sleep(script.delay).await;
            }
            let mut left = script.pending[1];
            std::future::poll_fn(|cx| {
                Self::poll(&polls, &script);
                pend(&mut left, cx)
            })
            .await;
            served.fetch_add(1, Relaxed);
            let data = || Ok(Frame::data(Bytes::from(port.to_string())));
            let (status, frames) = match &script.answer {
                Answer::Status(status) => (*status, vec![data()]),
                Answer::Grpc(code) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(code));
                    let message = (*code == "0").then(data);
                    (200, std::iter::once(Ok(Frame::trailers(trailers))).chain(message).collect())
                }
                Answer::BrokenBody => (200, vec![Err(Error::Closed), data()]),
                Answer::Error | Answer::Unready => {
                    return Err(Error::Transport { endpoint: None, unsent: false, source: "reset".into() });
                }
            };
            let pending = script.pending[2];
            let body = Frames { frames, pending, left: pending, polls, script };
            Ok(Response::builder().status(status).body(body).unwrap())
        })
    }
}

/// A balancer over scripted replicas.
#[derive(Clone)]
struct World {
    balance: Balance<Replica>,
    scripts: Arc<Mutex<BTreeMap<u16, Script>>>,
    served: Arc<AtomicU32>,
    made: Arc<AtomicU32>,
}

impl World {
    fn with(settings: &BalancerSettings, breaker: Option<&BreakerSettings>) -> Self {
        let balance = Balance::new("svc:80", settings, breaker, Rng::seeded(1));
        Self { balance, scripts: Arc::default(), served: Arc::default(), made: Arc::default() }
    }

    fn of(ports: impl IntoIterator<Item = u16>) -> Self {
        let world = Self::with(&BalancerSettings::default(), None);
        world.fill(ports);
        world
    }

    fn make(&self) -> impl FnMut(&Arc<Endpoint>) -> Replica + '_ {
        |endpoint| {
            self.made.fetch_add(1, Relaxed);
            let port = endpoint.addr.port();
            let pending = self.scripts.lock().unwrap().get(&port).map_or(0, |script| script.pending[0]);
            Replica {
                port,
                scripts: Arc::clone(&self.scripts),
                served: Arc::clone(&self.served),
                polls: Arc::default(),
                pending,
            }
        }
    }

    fn set(&self, endpoints: impl IntoIterator<Item = Endpoint>) {
        self.balance.update(&EndpointSet::new(endpoints), self.make());
    }

    fn fill(&self, ports: impl IntoIterator<Item = u16>) {
        self.set(ports.into_iter().map(endpoint));
    }

    fn script(&self, port: u16, script: Script) {
        self.scripts.lock().unwrap().insert(port, script);
    }

    fn answers(&self, port: u16, answer: Answer) {
        self.script(port, Script { answer, ..Script::default() });
    }

    fn in_flight(&self) -> u32 {
        self.balance.inspect().endpoints.iter().map(|endpoint| endpoint.in_flight).sum()
    }

    fn state(&self, port: u16) -> EndpointState {
        let state: BalanceState = self.balance.inspect();
        state.endpoints.into_iter().find(|endpoint| endpoint.endpoint.addr.port() == port).unwrap()
    }

    async fn get(&self) -> Result<Response<Served<Frames>>, Error> {
        self.balance.clone().oneshot(request()).await
    }

    /// One request to its very end; the port that answered.
    async fn ask(&self) -> Result<u16, Error> {
        let body = self.get().await?.into_body();
        let port = body.endpoint().unwrap().addr.port();
        let _ = body.collect().await;
        Ok(port)
    }

    async fn ask_all(&self, requests: u32) -> BTreeMap<u16, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..requests {
            *counts.entry(self.ask().await.unwrap_or(0)).or_default() += 1;
        }
        counts
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(([127, 0, 0, 1], port).into())
}

fn request() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

/// One after the other, whatever they do: so that a breaker is met for sure.
fn in_turn() -> BalancerSettings {
    BalancerSettings {
        algorithm: Some(Algorithm::RoundRobin),
        min_ready: Some(0),
        ..BalancerSettings::default()
    }
}

fn after(millis: u64) -> Script {
    Script { delay: Duration::from_millis(millis), ..Script::default() }
}

fn passed(since: clock::Instant) -> Duration {
    clock::now().saturating_duration_since(since)
}

fn breaker(threshold: u32) -> BreakerSettings {
    BreakerSettings {
        detectors: vec![Detector::Consecutive { class: FailureClass::Any, threshold }],
        jitter: 0.0,
        ejected_percent_max: 100,
        ..BreakerSettings::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_knows_its_endpoint_to_its_end_and_is_in_flight_until_then() {
    let world = World::of([1, 2]);
    let response = world.get().await.unwrap();
    let id = AskBody::served_by(response.body()).unwrap();
    assert_eq!(world.in_flight(), 1);
    let port = response.body().endpoint().unwrap().addr.port();
    let mut body = response.into_body();
    let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(bytes, port.to_string());
    // A stream is not done at its first frame.
    assert_eq!(world.in_flight(), 1);
    assert!(body.frame().await.is_none());
    assert_eq!((world.in_flight(), body.endpoint_id()), (0, Some(id)));
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_discovery_and_not_for_ever() {
    let late = World::of([]);
    let late =
        World { balance: Balance::new("svc", &BalancerSettings::default(), None, Rng::seeded(1)), ..late };
    let started = clock::now();
    let update = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        late.fill([7]);
    };
    let (answer, ()) = futures::join!(late.ask(), update);
    assert_eq!(answer.unwrap(), 7);
    assert_eq!(passed(started), Duration::from_secs(1));

    let never = World::with(&BalancerSettings::default(), None);
    let started = clock::now();
    let error = never.ask().await.unwrap_err();
    assert!(matches!(error, Error::NoEndpoints { .. }), "{error}");
    assert!(passed(started) >= FAIL_FAST);

    // Known to be empty: at once.
    never.fill([]);
    let started = clock::now();
    assert!(matches!(never.ask().await, Err(Error::NoEndpoints { .. })));
    assert_eq!(passed(started), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_never_ready_fails_its_request_in_time() {
    let world = World::with(&BalancerSettings::default(), None);
    world.script(1, Script { pending: [u32::MAX, 0, 0], ..Script::default() });
    world.fill([1]);
    // It wakes itself for ever, so time has to be told to pass.
    let started = clock::now();
    let push = async {
        for _ in 0..40 {
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    };
    let (answer, ()) = futures::join!(world.ask(), push);
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::Timeout { scope: Scope::Queue, .. }) && error.is_unsent(), "{error}");
    assert!(passed(started) >= FAIL_FAST);
    assert_eq!(world.in_flight(), 0);
}

/// Drives an attempt and its body by hand, `polls` times at most; `true` when it came to its end.
fn drive(world: &World, polls: u32) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let mut call = Box::pin(world.balance.clone().oneshot(request()));
    let mut polls = 0..polls;
    let response = loop {
        if polls.next().is_none() {
            return false;
        }
        if let Poll::Ready(response) = call.as_mut().poll(&mut cx) {
            break response;
        }
    };
    let Ok(response) = response else { return true };
    let mut body = Box::pin(response.into_body());
    loop {
        if polls.next().is_none() {
            return false;
        }
        if let Poll::Ready(None | Some(Err(_))) = body.as_mut().poll_frame(&mut cx) {
            return true;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_after_any_poll_leaves_nothing_in_flight() {
    for answer in
        [Answer::Status(200), Answer::Status(500), Answer::Grpc("14"), Answer::Error, Answer::BrokenBody]
    {
        for probing in [false, true] {
            let mut ended = false;
            for polls in 0.. {
                let settings = BalancerSettings { min_ready: Some(0), ..BalancerSettings::default() };
                let world = World::with(&settings, Some(&breaker(1)));
                if probing {
                    world.fill([1]);
                    world.answers(1, Answer::Error);
                    assert!(world.ask().await.is_err());
                    assert!(matches!(world.state(1).breaker, BreakerState::Shut { .. }));
                    tokio::time::advance(Duration::from_secs(1)).await;
                    world.fill([]);
                }
                world.script(1, Script { pending: [2, 2, 2], answer: answer.clone(), ..Script::default() });
                world.fill([1]);
                ended = drive(&world, polls) || ended;
                assert_eq!(world.in_flight(), 0, "{answer:?} after {polls} polls");
                assert_ne!(world.state(1).breaker, BreakerState::Probing, "{answer:?} after {polls} polls");
                if ended {
                    break;
                }
            }
            assert!(ended);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_at_any_stage_leaves_nothing_in_flight_and_no_lock_poisoned() {
    std::panic::set_hook(Box::new(|_| {}));
    for poll in 0..12 {
        let world = World::with(&BalancerSettings::default(), Some(&breaker(100)));
        world.script(1, Script { pending: [1, 1, 1], panics_at: Some(poll), ..Script::default() });
        world.fill([1]);
        let result = catch_unwind(AssertUnwindSafe(|| drive(&world, 100)));
        assert_eq!(result.is_err(), poll < 9, "poll {poll}");
        assert_eq!(world.in_flight(), 0, "poll {poll}");
        world.script(1, Script::default());
        world.fill([1, 2]);
        assert!(world.ask().await.is_ok(), "poll {poll}");
    }
    let _ = std::panic::take_hook();
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_clones_that_were_ready_and_dropped_hold_nothing() {
    let world = World::of([1, 2, 3]);
    let clones: Vec<Balance<Replica>> = (0..10_000)
        .map(|_| {
            let mut clone = world.balance.clone();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Service::<Request<Full<Bytes>>>::poll_ready(&mut clone, &mut cx).is_ready());
            assert!(Service::<Request<Full<Bytes>>>::poll_ready(&mut clone, &mut cx).is_ready());
            clone
        })
        .collect();
    assert_eq!(world.in_flight(), 0);
    assert!(world.ask().await.is_ok(), "clones that wait keep nobody waiting");
    // A call on a fresh clone that was never asked for readiness.
    assert!(clones[77].clone().call(request()).await.is_ok());
    drop(clones);
    assert_eq!(world.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_what_is_known_of_those_that_stay() {
    let world = World::of([1, 2, 3]);
    for port in 1..=4 {
        world.script(port, after(10));
    }
    world.ask_all(50).await;
    let before = [world.state(2), world.state(3)];
    let made = world.made.load(Relaxed);
    world.fill([2, 3, 4]);
    assert_eq!(world.made.load(Relaxed), made + 1, "only the new one is made");
    for old in before {
        let new = world.state(old.endpoint.addr.port());
        assert_eq!((new.id, new.latency), (old.id, old.latency));
        assert!(new.latency.is_some());
    }
    assert_eq!(world.balance.inspect().endpoints.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn another_description_keeps_the_load_another_identity_does_not() {
    let world = World::of([1]);
    let streaming = world.get().await.unwrap();
    let before = world.state(1);
    let made = world.made.load(Relaxed);
    world.set([Endpoint { weight_milli: 7, zone: Some("a".into()), ..endpoint(1) }]);
    let after = world.state(1);
    assert_eq!((after.id, after.in_flight, after.endpoint.weight_milli), (before.id, 1, 7));
    assert_eq!(world.made.load(Relaxed), made);
    world.set([Endpoint { http2: true, ..endpoint(1) }]);
    assert_eq!((world.state(1).id, world.state(1).in_flight), (before.id, 1));
    assert_eq!(world.made.load(Relaxed), made + 1, "another protocol, another connection");
    world.set([Endpoint { identity: Some("other".into()), ..endpoint(1) }]);
    assert_ne!(world.state(1).id, before.id);
    assert_eq!((world.state(1).in_flight, world.made.load(Relaxed)), (0, made + 2));
    drop(streaming);
    assert_eq!(world.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_endpoint_can_be_put_and_removed_alone() {
    let world = World::of([1, 2]);
    world.balance.put(&endpoint(3), world.make());
    assert_eq!(world.balance.inspect().endpoints.len(), 3);
    world.balance.remove(endpoint(1).addr);
    world.balance.remove(endpoint(9).addr);
    let ports: Vec<u16> = world.balance.inspect().endpoints.iter().map(|e| e.endpoint.addr.port()).collect();
    assert_eq!(ports, [2, 3]);
    assert!(!world.ask_all(100).await.contains_key(&1));
}

#[test]
fn updates_during_picks_lose_no_request() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::with(&BalancerSettings::default(), Some(&breaker(3)));
        world.fill(1..50);
        let asks = (0..4).map(|_| {
            let world = world.clone();
            async move {
                for _ in 0..2_000 {
                    world.ask().await.expect("there is always one");
                    tokio::task::yield_now().await;
                }
            }
        });
        let changer = world.clone();
        let change = async move {
            for round in 0..500u16 {
                changer.fill((round % 40)..50);
                let algorithm = if round % 2 == 0 { Algorithm::RoundRobin } else { Algorithm::RecentlyFreed };
                let settings = BalancerSettings { algorithm: Some(algorithm), ..BalancerSettings::default() };
                changer.balance.settings(&settings, Some(&breaker(3 + u32::from(round % 3))));
                tokio::task::yield_now().await;
            }
        };
        let mut tasks = tokio::task::JoinSet::new();
        asks.for_each(|ask| drop(tasks.spawn(ask)));
        tasks.spawn(change);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(world.in_flight(), 0);
        assert_eq!(world.served.load(Relaxed), 8_000);
    });
}

#[tokio::test(start_paused = true)]
async fn a_draining_endpoint_finishes_its_streams_and_gets_nothing_new() {
    let world = World::of([1]);
    let stream = world.get().await.unwrap();
    world.set([Endpoint { draining: true, ..endpoint(1) }, endpoint(2)]);
    let counts = world.ask_all(50).await;
    assert_eq!(counts, BTreeMap::from([(2, 50)]));
    assert_eq!((world.state(1).in_flight, world.state(1).ready), (1, false));
    assert!(stream.into_body().collect().await.is_ok());
    assert_eq!(world.in_flight(), 0);
    world.set([Endpoint { draining: true, ..endpoint(1) }, Endpoint { weight_milli: 0, ..endpoint(2) }]);
    assert!(matches!(world.ask().await, Err(Error::NoEndpoints { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_fast_failing_endpoint_attracts_no_traffic() {
    for algorithm in [Algorithm::RecentlyFreed, Algorithm::PeakEwma, Algorithm::LeastRequest { choices: 2 }] {
        for answer in [Answer::Status(503), Answer::Error, Answer::Grpc("14"), Answer::Unready] {
            let settings = BalancerSettings { algorithm: Some(algorithm), ..BalancerSettings::default() };
            let world = World::with(&settings, None);
            world.fill(1..=10);
            (1..=10).for_each(|port| world.script(port, after(20)));
            world.answers(1, answer.clone());
            let mut failed = 0;
            for _ in 0..1000 {
                let before = world.served.load(Relaxed);
                match world.get().await {
                    Ok(response) => {
                        let body = response.into_body();
                        failed += u32::from(body.endpoint().unwrap().addr.port() == 1);
                        let _ = body.collect().await;
                    }
                    Err(_) => failed += 1,
                }
                assert!(world.served.load(Relaxed) >= before);
            }
            assert!(failed <= 60, "{algorithm:?} {answer:?}: {failed} of 1000, a fair share is 100");
            assert!(world.state(1).latency.is_none(), "a failure says nothing of latency");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn latency_is_measured_to_the_headers_and_streams_do_not_stretch_it() {
    let world = World::of([1]);
    world.script(1, after(40));
    let response = world.get().await.unwrap();
    tokio::time::advance(Duration::from_secs(100)).await;
    response.into_body().collect().await.unwrap();
    let latency = world.state(1).latency.unwrap();
    assert!(latency.abs_diff(Duration::from_millis(40)) < Duration::from_millis(2), "{latency:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drop_before_the_deadline_is_a_cancel_and_after_it_a_failure() {
    let run = async |late: bool| {
        let world = World::with(&BalancerSettings::default(), Some(&breaker(1)));
        world.fill([1, 2]);
        (1..=2).for_each(|port| world.script(port, after(1_000_000)));
        let mut state = CallState::new(clock::now());
        state.deadline = Some(clock::now() + Duration::from_secs(1));
        let call = Stateful { http: request(), state };
        let mut call = Box::pin(world.balance.clone().oneshot(call));
        assert!(futures::poll!(call.as_mut()).is_pending());
        tokio::time::advance(Duration::from_millis(if late { 1000 } else { 999 })).await;
        drop(call);
        assert_eq!(world.in_flight(), 0);
        world.balance.inspect().shut
    };
    assert_eq!(run(false).await, 0, "the caller went away");
    assert_eq!(run(true).await, 1, "the endpoint was too slow");
}

/// reliability.md T14: only what an endpoint did itself may shut it.
#[tokio::test(start_paused = true)]
async fn what_callers_do_shuts_no_endpoint() {
    let world = World::with(&BalancerSettings::default(), Some(&breaker(3)));
    world.fill([1, 2]);
    (1..=2).for_each(|port| world.script(port, after(10)));
    world.ask_all(10).await;
    // Callers who go away at once; callers with 1 ms where 10 ms is usual, by the balancer's clock or the server's.
    let told = |millis: u64| {
        let mut state = CallState::new(clock::now());
        (state.deadline, state.is_deadline_told) = (Some(clock::now() + Duration::from_millis(millis)), true);
        Stateful { http: request(), state }
    };
    for _ in 0..10_000 {
        let mut call = Box::pin(world.balance.clone().oneshot(told(1000)));
        assert!(futures::poll!(call.as_mut()).is_pending());
        drop(call);
        let mut call = Box::pin(world.balance.clone().oneshot(told(1)));
        assert!(futures::poll!(call.as_mut()).is_pending());
        tokio::time::advance(Duration::from_millis(1)).await;
        drop(call);
    }
    for answer in [Answer::Grpc("4"), Answer::Status(504), Answer::Status(400)] {
        (1..=2).for_each(|port| world.answers(port, answer.clone()));
        for _ in 0..100 {
            let _ = world.balance.clone().oneshot(told(1)).await.unwrap().into_body().collect().await;
        }
    }
    let state = world.balance.inspect();
    assert_eq!((state.shut, state.spared, world.in_flight()), (0, 0, 0));
    assert!(world.balance.events(0).is_empty());
    // Whoever had a fair chance, and failed, is shut all the same.
    (1..=2).for_each(|port| world.script(port, after(1_000_000)));
    for _ in 0..10 {
        let mut call = Box::pin(world.balance.clone().oneshot(told(100)));
        assert!(futures::poll!(call.as_mut()).is_pending());
        tokio::time::advance(Duration::from_millis(100)).await;
        drop(call);
    }
    assert_eq!(world.balance.inspect().shut, 1, "and one stays");
}

/// A burst of failures within milliseconds, and as many within seconds, are one thing to a breaker.
#[tokio::test(start_paused = true)]
async fn a_burst_of_failures_trips_as_a_slow_run_of_them_does() {
    let rate = Detector::SuccessRate { threshold: 0.8, window: Duration::from_secs(10), min_requests: 20 };
    for detector in [rate, Detector::Consecutive { class: FailureClass::Any, threshold: 7 }] {
        let settings = BreakerSettings { detectors: vec![detector], ..breaker(1) };
        let tripped_after = async |every: u64| {
            let world = World::with(&in_turn(), Some(&settings));
            world.fill([1]);
            // Long well, in the same window.
            world.ask_all(30).await;
            world.answers(1, Answer::Status(500));
            for failures in 1..=100 {
                world.ask().await.unwrap();
                tokio::time::advance(Duration::from_millis(every)).await;
                if world.balance.inspect().shut == 1 {
                    return failures;
                }
            }
            0
        };
        let (burst, slow) = (tripped_after(1).await, tripped_after(100).await);
        assert!(burst > 0 && burst == slow, "{settings:?}: {burst} {slow}");
    }
}

/// A request with a state and no route.
struct Stateful {
    http: Request<Full<Bytes>>,
    state: CallState,
}

/// The same with any body, which the balancer never makes.
struct Other<B>(Request<B>, CallState);

impl MeshRequest for Stateful {
    type Body = Full<Bytes>;
    type Rest = CallState;
    type With<B> = Other<B>;

    fn http(&self) -> &Request<Full<Bytes>> {
        &self.http
    }
    fn http_mut(&mut self) -> &mut Request<Full<Bytes>> {
        &mut self.http
    }
    fn route(&self) -> Option<&Arc<RoutePolicy>> {
        None
    }
    fn state(&self) -> Option<&CallState> {
        Some(&self.state)
    }
    fn state_mut(&mut self) -> Option<&mut CallState> {
        Some(&mut self.state)
    }
    fn rest(&self) -> CallState {
        self.state
    }
    fn split(self) -> (CallState, Parts, Full<Bytes>) {
        let (parts, body) = self.http.into_parts();
        (self.state, parts, body)
    }
    fn join<B>(state: CallState, parts: Parts, body: B) -> Other<B> {
        Other(Request::from_parts(parts, body), state)
    }
    fn into_http(self) -> Request<Full<Bytes>> {
        self.http
    }
}

impl<B0> MeshRequest for Other<B0> {
    type Body = B0;
    type Rest = CallState;
    type With<B> = Other<B>;

    fn http(&self) -> &Request<B0> {
        &self.0
    }
    fn http_mut(&mut self) -> &mut Request<B0> {
        &mut self.0
    }
    fn route(&self) -> Option<&Arc<RoutePolicy>> {
        None
    }
    fn state(&self) -> Option<&CallState> {
        Some(&self.1)
    }
    fn state_mut(&mut self) -> Option<&mut CallState> {
        Some(&mut self.1)
    }
    fn rest(&self) -> CallState {
        self.1
    }
    fn split(self) -> (CallState, Parts, B0) {
        let (parts, body) = self.0.into_parts();
        (self.1, parts, body)
    }
    fn join<B>(state: CallState, parts: Parts, body: B) -> Other<B> {
        Other(Request::from_parts(parts, body), state)
    }
    fn into_http(self) -> Request<B0> {
        self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    let world = World::of([1, 2, 3]);
    for _ in 0..50 {
        let mut state = CallState::new(clock::now());
        let mut met = Vec::new();
        for attempt in 0..4 {
            state.attempt = attempt;
            let call = Stateful { http: request(), state };
            let response = world.balance.clone().oneshot(call).await.unwrap();
            let id = AskBody::served_by(response.body()).unwrap();
            assert_eq!(met.contains(&id), attempt == 3, "attempt {attempt} met {id:?} after {met:?}");
            met.push(id);
            state.tried.push(id);
        }
    }
}

/// However an attempt fails, by its answer, by an error, by never being ready: the next one is not there again.
#[tokio::test(start_paused = true)]
async fn retries_leave_the_endpoint_that_failed_whatever_it_failed_by() {
    for (rule, broken) in
        [Algorithm::RecentlyFreed, Algorithm::PeakEwma, Algorithm::RoundRobin, Algorithm::Random]
            .into_iter()
            .flat_map(|rule| [(rule, Answer::Status(503)), (rule, Answer::Error), (rule, Answer::Unready)])
    {
        let settings = BalancerSettings { algorithm: Some(rule), ..BalancerSettings::default() };
        let world = World::with(&settings, None);
        world.fill([1, 2, 3]);
        (1..=2).for_each(|port| world.answers(port, broken.clone()));
        let budget =
            BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 1000, ttl: Duration::from_secs(10) };
        let route = Route { retry: Some(RetrySettings::default()), ..Route::default() };
        for _ in 0..50 {
            let call = on_route_of(&route, budget);
            let service = RetryLayer::<AskBody>::by_route(Rng::seeded(7)).layer(world.balance.clone());
            let response = service.oneshot(call).await.unwrap();
            assert_eq!(
                response.status(),
                200,
                "{rule:?} {broken:?}: three attempts find the one that is well"
            );
            response.into_body().collect().await.unwrap();
        }
    }
}

/// A second copy is told where the first one went: load alone would send it there again, where the rule does not ask for
/// load.
#[tokio::test(start_paused = true)]
async fn a_hedge_never_goes_where_the_first_copy_went_while_another_is_open() {
    let (budget, hour) = (
        BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 1000, ttl: Duration::from_secs(10) },
        Duration::from_secs(3600),
    );
    let after = Duration::from_millis(20);
    let retry = RetrySettings { hedge: Some(HedgeSettings::After(after)), ..RetrySettings::default() };
    let route = Route { retry: Some(retry), ..Route::default() };
    let hashes = [Algorithm::Maglev { table: 251 }, Algorithm::RingHash { entries_min: 100 }];
    let rules = [Algorithm::Random, Algorithm::RoundRobin, Algorithm::LeastRequest { choices: 2 }];
    for (rule, late) in rules.into_iter().chain(hashes).flat_map(|rule| [(rule, false), (rule, true)]) {
        let settings = BalancerSettings { algorithm: Some(rule), ..BalancerSettings::default() };
        let (mut hedged, mut calls) = (0, 0);
        while hedged < 100 {
            let balance = Balance::new("svc:80", &settings, None, Rng::seeded(calls));
            let world = World { balance, ..World::with(&settings, None) };
            world.script(1, Script { delay: hour, ..Script::default() });
            if !late {
                world.fill([1, 2]);
            }
            calls += 1;
            let mut call = on_route_of(&route, budget);
            call.scope.state.hash = Some(u64::wrapping_mul(calls, 0x9E37_79B9_7F4A_7C15));
            let service = RetryLayer::<AskBody>::by_route(Rng::seeded(7)).layer(world.balance.clone());
            let begun = clock::now();
            // Discovery may answer after the call began and before its second copy.
            let discovery = async {
                if late {
                    tokio::time::sleep(after / 2).await;
                    world.fill([1, 2]);
                }
            };
            let (response, ()) = tokio::join!(service.oneshot(call), discovery);
            let (attempts, took) = (response.unwrap().body().attempts(), clock::now() - begun);
            assert_eq!(took < after, attempts == 1, "{rule:?}");
            assert!(took <= after + Duration::from_millis(1), "{rule:?}: both copies hang");
            hedged += attempts - 1;
            assert!(calls < 2000, "{rule:?} hedges");
        }
    }
    let world = World::of([1]);
    world.script(1, Script { delay: after * 2, ..Script::default() });
    let service = RetryLayer::<AskBody>::by_route(Rng::seeded(7)).layer(world.balance.clone());
    let response = service.oneshot(on_route_of(&route, budget)).await.unwrap();
    assert_eq!(response.body().attempts(), 2, "there is no other one");
}

/// A call of the only route of a service.
fn on_route_of(route: &Route, budget: BudgetSettings) -> Call<Full<Bytes>, ()> {
    let profile = ServiceProfile {
        routes: vec![route.clone()],
        retry_budget: Some(budget),
        ..ServiceProfile::new("svc:80".parse().unwrap())
    };
    let metrics = MetricsSet::unseen();
    let own = "svc:80".parse().unwrap();
    let compiler = Compiler {
        service: "svc:80".into(),
        own,
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    let policy = compiler.compile(Arc::new(profile), None, |_| ()).unwrap();
    let scope = CallScope::new(Arc::clone(&policy.routes()[0]), CallState::new(clock::now()));
    Call { http: request(), scope }
}

/// What servers tell of their load counts, in headers and in trailers, where the profile asks for it.
#[tokio::test(start_paused = true)]
async fn reports_of_load_count_where_they_are_asked_for() {
    // Both are equally fast; the first says that others keep it busy.
    let shares = async |reports: bool, header: &'static str, value: &'static str, trailers: bool| {
        let settings =
            BalancerSettings { reports, algorithm: Some(Algorithm::PeakEwma), ..BalancerSettings::default() };
        let balance = Balance::new("svc", &settings, None, Rng::seeded(1));
        let endpoints = (1..=2).map(endpoint);
        balance.update(&EndpointSet::new(endpoints), |endpoint| {
            let value =
                if endpoint.addr.port() == 1 { value } else { "TEXT named_metrics.requests_in_flight=1" };
            tower::service_fn(move |_: Request<Full<Bytes>>| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let told = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static(header),
                    http::HeaderValue::from_static(value),
                )]);
                let body = http_body_util::Empty::<Bytes>::new();
                let mut response = match trailers {
                    true => {
                        Response::new(body.with_trailers(std::future::ready(Some(Ok(told)))).boxed_unsync())
                    }
                    false => {
                        let mut response = Response::new(body.boxed_unsync());
                        *response.headers_mut() = told;
                        response
                    }
                };
                *response.status_mut() = http::StatusCode::OK;
                Ok::<_, Error>(response)
            })
        });
        let mut first = 0;
        for _ in 0..200 {
            let body = balance.clone().oneshot(request()).await.unwrap().into_body();
            first += u32::from(body.endpoint().unwrap().addr.port() == 1);
            let _ = body.collect().await;
        }
        first
    };
    let busy = "TEXT named_metrics.requests_in_flight=50";
    let (name, binary) = ("endpoint-load-metrics", "endpoint-load-metrics-bin");
    assert!((60..=140).contains(&shares(false, name, busy, false).await), "nobody asked");
    for (header, value, trailers) in [
        (name, busy, false),
        (name, busy, true),
        (name, "JSON {\"cpu_utilization\": 0.98}", false),
        // cpu_utilization = 0.98
        (binary, "CVyPwvUoXO8/", true),
    ] {
        let first = shares(true, header, value, trailers).await;
        assert!(first < 60, "{header}: {value}: {first} of 200");
    }
    let lie = "TEXT named_metrics.requests_in_flight=-5";
    assert!((60..=140).contains(&shares(true, name, lie, false).await), "nobody believes it");
}

#[tokio::test(start_paused = true)]
async fn tripped_endpoints_are_left_alone_probed_by_one_and_used_again() {
    let world = World::with(&in_turn(), Some(&breaker(3)));
    world.fill([1, 2]);
    world.answers(1, Answer::Status(500));
    while world.balance.inspect().shut == 0 {
        world.ask().await.unwrap();
    }
    assert_eq!(world.ask_all(100).await, BTreeMap::from([(2, 100)]));
    tokio::time::advance(Duration::from_secs(1)).await;
    world.answers(1, Answer::Status(200));
    let probe = world.get().await.unwrap();
    assert_eq!(probe.body().endpoint().unwrap().addr.port(), 1);
    assert_eq!(world.state(1).breaker, BreakerState::Probing);
    assert_eq!(world.ask_all(100).await, BTreeMap::from([(2, 100)]), "one probe at a time");
    probe.into_body().collect().await.unwrap();
    assert_eq!(world.state(1).breaker, BreakerState::Open);
    assert!(world.ask_all(200).await[&1] > 20);
    let events = world.balance.events(0);
    assert!(matches!(events[0].what, What::Shut { reason, .. } if reason.as_str() == "consecutive_failures"));
    assert_eq!(events.iter().map(|event| event.addr).collect::<Vec<_>>(), [Some(endpoint(1).addr); 3]);
    assert!(matches!((events[1].what, events[2].what), (What::Probed, What::Opened)));
}

#[tokio::test(start_paused = true)]
async fn with_all_endpoints_shut_requests_fail_at_once_and_know_when_to_come_back() {
    let settings = BalancerSettings { min_ready: Some(0), ..BalancerSettings::default() };
    let world = World::with(&settings, Some(&breaker(1)));
    world.fill([1, 2]);
    (1..=2).for_each(|port| world.answers(port, Answer::Error));
    world.ask_all(2).await;
    let started = clock::now();
    let error = world.ask().await.unwrap_err();
    assert!(
        matches!(error, Error::BreakerOpen { retry_in } if retry_in == Duration::from_secs(1)),
        "{error}"
    );
    assert_eq!(passed(started), Duration::ZERO);

    // The floor: by default one always stays.
    let world = World::with(&BalancerSettings::default(), Some(&breaker(1)));
    world.fill([1, 2]);
    (1..=2).for_each(|port| world.answers(port, Answer::Error));
    world.ask_all(20).await;
    assert_eq!(world.balance.inspect().shut, 1);
    assert!(world.balance.inspect().spared > 0);
    assert!(matches!(world.ask().await, Err(Error::Transport { .. })));
}

#[tokio::test(start_paused = true)]
async fn below_the_panic_threshold_all_are_used_again() {
    let settings = BalancerSettings { panic_percent: Some(50), ..in_turn() };
    let world = World::with(&settings, Some(&breaker(1)));
    world.fill(1..=4);
    (1..=3).for_each(|port| world.answers(port, Answer::Status(500)));
    world.ask_all(200).await;
    assert_eq!(world.balance.inspect().shut, 3);
    let counts = world.ask_all(400).await;
    assert!((1..=4).all(|port| counts.contains_key(&port)), "{counts:?}");
    // A success in a panic does not open anybody.
    (1..=3).for_each(|port| world.answers(port, Answer::Status(200)));
    world.ask_all(50).await;
    assert_eq!(world.balance.inspect().shut, 3);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_come_back_by_time_come_back_all_at_once() {
    let breaker = BreakerSettings { recovery: Recovery::Timer, ..breaker(1) };
    let world = World::with(&BalancerSettings::default(), Some(&breaker));
    world.fill(1..=3);
    (1..=2).for_each(|port| world.answers(port, Answer::Status(500)));
    world.ask_all(50).await;
    assert_eq!(world.balance.inspect().shut, 2);
    (1..=2).for_each(|port| world.answers(port, Answer::Status(200)));
    tokio::time::advance(Duration::from_secs(1)).await;
    world.ask().await.unwrap();
    assert_eq!(world.balance.inspect().shut, 0);
}

#[tokio::test(start_paused = true)]
async fn other_settings_keep_what_is_known_and_the_breaker_if_its_settings_are_the_same() {
    let world = World::with(&BalancerSettings::default(), Some(&breaker(1)));
    world.fill(1..=3);
    (1..=3).for_each(|port| world.script(port, after(5)));
    world.ask_all(30).await;
    world.answers(1, Answer::Status(500));
    while world.balance.inspect().shut == 0 {
        world.ask().await.unwrap();
    }
    let (id, latency) = (world.state(2).id, world.state(2).latency);
    let robin = BalancerSettings { algorithm: Some(Algorithm::RoundRobin), ..BalancerSettings::default() };
    world.balance.settings(&robin, Some(&breaker(1)));
    assert_eq!(world.balance.inspect().shut, 1, "same breaker, same state");
    assert_eq!((world.state(2).id, world.state(2).latency), (id, latency));
    assert_eq!(world.ask_all(10).await, BTreeMap::from([(2, 5), (3, 5)]));
    world.balance.settings(&robin, Some(&breaker(2)));
    assert_eq!(world.balance.inspect().shut, 0, "another breaker, another state");
    world.balance.settings(&robin, None);
    assert_eq!(world.ask_all(9).await, BTreeMap::from([(1, 3), (2, 3), (3, 3)]));
    assert_eq!(world.state(2).id, id);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_removed_while_it_is_tried_frees_its_place() {
    let settings = BalancerSettings { min_ready: Some(0), ..BalancerSettings::default() };
    let world = World::with(&settings, Some(&breaker(1)));
    world.fill([1, 2]);
    world.answers(1, Answer::Error);
    while world.balance.inspect().shut == 0 {
        let _ = world.ask().await;
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    world.answers(1, Answer::Status(200));
    let probe = world.get().await.unwrap();
    world.fill([2]);
    assert_eq!(world.balance.inspect().shut, 0);
    probe.into_body().collect().await.unwrap();
    world.fill([1, 2]);
    assert_eq!(world.state(1).breaker, BreakerState::Open, "it is a new one");
    assert_eq!(world.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_subset_is_used_and_changes_as_little_as_it_can() {
    let settings = BalancerSettings { subset: Some(5), ..BalancerSettings::default() };
    let world = World::with(&settings, None);
    world.fill(1..=100);
    let ports = |world: &World| -> Vec<u16> {
        world.balance.inspect().endpoints.iter().map(|endpoint| endpoint.endpoint.addr.port()).collect()
    };
    let before = ports(&world);
    assert_eq!(
        (before.len(), world.ask_all(200).await.keys().copied().collect::<Vec<_>>()),
        (5, before.clone())
    );
    let gone = before[0];
    world.fill((1..=100).filter(|port| *port != gone));
    let after = ports(&world);
    assert_eq!(after.len(), 5);
    assert_eq!(after.iter().filter(|port| before.contains(port)).count(), 4);
    world.balance.settings(&BalancerSettings { subset: Some(6), ..settings }, None);
    assert_eq!(ports(&world).iter().filter(|port| after.contains(port)).count(), 5);
    world.balance.settings(&BalancerSettings::default(), None);
    assert_eq!(ports(&world).len(), 99);
}

#[tokio::test(start_paused = true)]
async fn the_callers_zone_is_preferred() {
    let here = LocalitySettings { zone: "a".into(), overflow_below_percent: 70 };
    let settings = BalancerSettings { locality: Some(here), ..BalancerSettings::default() };
    let world = World::with(&settings, None);
    let zoned =
        |port: u16| Endpoint { zone: Some(if port <= 3 { "a" } else { "b" }.into()), ..endpoint(port) };
    world.set((1..=9).map(zoned));
    (1..=9).for_each(|port| world.script(port, after(10)));
    let counts = world.ask_all(500).await;
    let near: u32 = counts.range(..=3).map(|(_, count)| count).sum();
    assert!(near >= 490, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_session_sticks_to_its_endpoint_by_its_cookie() {
    let cookie =
        HashKey::Cookie { name: "sid".into(), path: Some("/".into()), ttl: Some(Duration::from_secs(60)) };
    let settings = BalancerSettings {
        algorithm: Some(Algorithm::RingHash { entries_min: 1024 }),
        hash: vec![cookie],
        ..BalancerSettings::default()
    };
    let world = World::with(&settings, None);
    world.fill(1..=10);
    for _ in 0..20 {
        let first = world.get().await.unwrap();
        let made = first.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(made.starts_with("sid=\"") && made.ends_with("; Path=/; Max-Age=60; HttpOnly"), "{made}");
        let id = first.body().endpoint_id();
        for _ in 0..5 {
            let mut again = request();
            let value = made.split(';').next().unwrap();
            again.headers_mut().insert("cookie", HeaderValue::from_str(value).unwrap());
            let response = world.balance.clone().oneshot(again).await.unwrap();
            assert_eq!(response.body().endpoint_id(), id);
            assert!(!response.headers().contains_key("set-cookie"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_ending_counts_once_for_the_breaker() {
    let cases = [
        (Answer::Status(200), false),
        (Answer::Status(404), false),
        (Answer::Status(500), true),
        (Answer::Grpc("0"), false),
        (Answer::Grpc("5"), false),
        (Answer::Grpc("14"), true),
        (Answer::Error, true),
        (Answer::Unready, true),
        (Answer::BrokenBody, true),
    ];
    for (answer, fails) in cases {
        let world = World::with(&BalancerSettings::default(), Some(&breaker(2)));
        world.fill([1, 2]);
        (1..=2).for_each(|port| world.answers(port, answer.clone()));
        let _ = world.ask().await;
        assert_eq!(world.balance.inspect().shut, 0, "{answer:?}: counted twice");
        for _ in 0..10 {
            let _ = world.ask().await;
        }
        assert_eq!(world.balance.inspect().shut, u32::from(fails), "{answer:?}");
        assert_eq!(world.in_flight(), 0);
    }
}

/// A call that met this route of a profile with routes `/good` and `/bad`.
fn on_route(path: &str) -> Call<Full<Bytes>, ()> {
    let route = |name: &str| Route {
        name: name.into(),
        condition: Condition::Path(PathMatch::new(PathKind::Exact, name)),
        ..Route::default()
    };
    let profile = ServiceProfile {
        routes: vec![route("/good"), route("/bad")],
        ..ServiceProfile::new("svc:80".parse().unwrap())
    };
    let metrics = MetricsSet::new(Registry::global());
    let compiler = Compiler {
        service: "svc:80".into(),
        own: "svc:80".parse().unwrap(),
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    let policy = compiler.compile(Arc::new(profile), None, |_| ()).unwrap();
    let http = Request::get(format!("http://svc{path}")).body(Full::default()).unwrap();
    let entry = policy.find(&RequestHead::of_request(&http)).unwrap();
    let scope = CallScope::new(Arc::clone(entry), CallState::new(clock::now()));
    Call { http, scope }
}

#[tokio::test(start_paused = true)]
async fn a_bad_route_takes_an_endpoint_from_no_other_route() {
    let breaker = BreakerSettings { per_route: true, ..breaker(2) };
    let world = World::with(&in_turn(), Some(&breaker));
    world.fill([1, 2]);
    let ask = async |path: &str| -> Result<u16, Error> {
        let response = world.balance.clone().oneshot(on_route(path)).await?;
        let port = response.body().endpoint().unwrap().addr.port();
        response.into_body().collect().await?;
        Ok(port)
    };
    world.answers(1, Answer::Status(500));
    for _ in 0..4 {
        ask("/bad").await.unwrap();
    }
    let bad: Vec<u16> =
        futures::future::join_all((0..6).map(|_| ask("/bad"))).await.into_iter().flatten().collect();
    assert_eq!(bad, [2; 6], "the bad route leaves it alone");
    world.answers(1, Answer::Status(200));
    let good: Vec<u16> =
        futures::future::join_all((0..6).map(|_| ask("/good"))).await.into_iter().flatten().collect();
    assert!(good.contains(&1), "the good route does not: {good:?}");
    let state = world.state(1);
    assert_eq!(state.breaker, BreakerState::Open);
    assert!(matches!(&state.routes[..], [(name, BreakerState::Shut { .. })] if &**name == "/bad"));
    assert!(world.balance.events(0).iter().all(|event| event.route.as_deref() == Some("/bad")));
    // One request of that route tries it when its time is over.
    tokio::time::advance(Duration::from_secs(1)).await;
    ask("/good").await.unwrap();
    assert!(!world.state(1).routes.is_empty(), "another route's request is no probe");
    assert_eq!(ask("/bad").await.unwrap(), 1);
    assert!(world.state(1).routes.is_empty());
    assert_eq!((world.in_flight(), world.balance.inspect().shut), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_route_whose_endpoints_are_all_shut_fails_at_once() {
    let breaker = BreakerSettings { per_route: true, ..breaker(1) };
    let world = World::with(&in_turn(), Some(&breaker));
    world.fill([1, 2]);
    (1..=2).for_each(|port| world.answers(port, Answer::Error));
    for _ in 0..2 {
        let _ = world.balance.clone().oneshot(on_route("/bad")).await;
    }
    let error = world.balance.clone().oneshot(on_route("/bad")).await.unwrap_err();
    assert!(
        matches!(error, Error::BreakerOpen { retry_in } if retry_in == Duration::from_secs(1)),
        "{error}"
    );
    world.fill([]);
    let error = world.balance.clone().oneshot(on_route("/bad")).await.unwrap_err();
    assert!(matches!(error, Error::NoEndpoints { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_turned_away_for_being_too_much_attracts_no_more() {
    for answer in [Answer::Status(429), Answer::Grpc("8")] {
        let world = World::of(1..=10);
        (1..=10).for_each(|port| world.script(port, after(20)));
        world.answers(1, answer.clone());
        let counts = world.ask_all(500).await;
        assert!(counts.get(&1).copied().unwrap_or(0) <= 20, "{answer:?}: {counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_alone_shuts_probes_and_opens_its_service() {
    let world = World::of([]);
    world.fill([1]);
    let replica = world.make()(&Arc::new(endpoint(1)));
    let service = BreakerLayer::new(breaker(2), Rng::seeded(1)).layer(replica);
    let ask = async || -> Result<u16, Error> {
        let response = service.clone().oneshot(request()).await?;
        let status = response.status().as_u16();
        let _ = response.into_body().collect().await;
        Ok(status)
    };
    assert_eq!(ask().await.unwrap(), 200);
    world.answers(1, Answer::Grpc("14"));
    ask().await.unwrap();
    world.answers(1, Answer::BrokenBody);
    ask().await.unwrap();
    assert!(
        matches!(ask().await, Err(Error::BreakerOpen { retry_in }) if retry_in == Duration::from_secs(1))
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    // A probe that is dropped gives its place back.
    world.script(1, after(1000));
    let mut dropped = Box::pin(ask());
    assert!(futures::poll!(dropped.as_mut()).is_pending());
    assert!(matches!(ask().await, Err(Error::BreakerOpen { .. })), "one at a time");
    drop(dropped);
    world.script(1, Script::default());
    assert_eq!(ask().await.unwrap(), 200);
    assert!(service.state().is_none());
    assert_eq!(service.events(0).len(), 4, "shut, probed, probed again, opened");
}

#[tokio::test(start_paused = true)]
async fn coming_and_going_a_hundred_thousand_times_keeps_nothing() {
    let world = World::with(&in_turn(), Some(&breaker(1)));
    world.fill([1]);
    world.answers(2, Answer::Error);
    for round in 0..100_000 {
        world.balance.put(&endpoint(2), world.make());
        if round % 1000 == 0 {
            // Shut as it goes.
            world.ask_all(2).await;
        }
        world.balance.remove(endpoint(2).addr);
    }
    // The counter is held by this world and by the two copies of the one replica that is left.
    assert_eq!(Arc::strong_count(&world.served), 3);
    let state = world.balance.inspect();
    assert_eq!((state.endpoints.len(), state.shut), (1, 0));
    assert!(world.balance.events(0).len() <= enmesh::breaker::ward::EVENTS_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_balancer_dropped_with_shut_endpoints_frees_them() {
    for per_route in [false, true] {
        let world = World::with(&in_turn(), Some(&BreakerSettings { per_route, ..breaker(1) }));
        world.fill([1, 2]);
        world.answers(1, Answer::Status(500));
        let mut shut = std::sync::Weak::new();
        for _ in 0..4 {
            let response = world.get().await.unwrap();
            let described = response.body().endpoint().unwrap();
            if described.addr.port() == 1 {
                shut = Arc::downgrade(described);
            }
            let _ = response.into_body().collect().await;
        }
        assert_eq!(world.balance.inspect().shut, 1);
        assert!(shut.upgrade().is_some());
        drop(world);
        assert!(shut.upgrade().is_none(), "per route: {per_route}");
    }
}
