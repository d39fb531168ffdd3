//! The mesh's two futures do what its layers do one around the other.

#[path = "support/call.rs"]
mod call;
#[expect(dead_code, reason = "shared with tests that use more of it")]
#[path = "support/upstream.rs"]
mod upstream;

use bytes::Bytes;
use enmesh::balance::layer::Balance;
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::error::Error;
use enmesh::mesh::stack::{self, Backend};
use enmesh::metrics::layer::MetricsLayer;
use enmesh::metrics::stat::Reading;
use enmesh::policy::call::{Call, Nobody};
use enmesh::policy::route::RouteEntry;
use enmesh::profile::route::{Action, Filter, Forward, HeaderMods, Respond, Route};
use enmesh::profile::settings::{
    Algorithm, BalancerSettings, BreakerSettings, HedgeSettings, Limit, RetryOn, RetrySettings, Timeouts,
};
use enmesh::retry::layer::RetryLayer;
use enmesh::route::layer::ActLayer;
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use enmesh::timeout::layer::TimeoutLayer;
use http::request::Parts;
use http::{HeaderValue, Request, Response, Version};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};
use upstream::{Reply, Sent, Upstream};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A route, what it is answered, and what its caller does.
#[derive(Clone)]
struct Case {
    route: Route,
    script: Vec<Reply>,
    /// When the caller goes away: before the headers, or within the body.
    patience: Duration,
    reads: bool,
    /// Whether the request has headers.
    headed: bool,
}

fn case(rng: &Rng) -> Case {
    let one_of = |list: &[u64]| list[rng.below(u32::try_from(list.len()).unwrap()) as usize];
    let maybe = |ms: u64| if ms == 0 { Limit::Unset } else { Limit::After(MS(ms)) };
    let timeouts = Timeouts {
        request: maybe(one_of(&[0, 0, 40, 90])),
        response_headers: maybe(one_of(&[0, 0, 30])),
        ..Timeouts::default()
    };
    let on = RetryOn { failures: true, ..RetryOn::default() };
    let retry = (rng.below(2) == 0).then(|| RetrySettings { on, ..RetrySettings::default() });
    let mods = HeaderMods { set: vec![("x-seen".into(), "yes".into())], ..HeaderMods::default() };
    let forward = Forward { filters: vec![Filter::ResponseHeaders(mods)], ..Forward::default() };
    let action = match rng.below(8) {
        0 => Action::Respond(Respond { status: 418, grpc: None, body: "tea".into(), headers: Vec::new() }),
        1 | 2 => Action::Forward(forward),
        _ => Action::Forward(Forward::default()),
    };
    let reply = |_| {
        let frame = |_| match rng.below(6) {
            0 => Sent::Break,
            1 => Sent::Trailers(vec![("grpc-status", ["0", "14"][rng.below(2) as usize])]),
            2 | 3 => Sent::Wait(MS(one_of(&[1, 35]))),
            _ => Sent::Data("data"),
        };
        let frames = (0..rng.below(4)).map(frame).collect();
        match rng.below(6) {
            0 => Reply::error(|| Error::Closed),
            1 => Reply::grpc(frames),
            _ => Reply::status([200, 404, 503][rng.below(3) as usize]).body(frames),
        }
        .after(MS(one_of(&[0, 0, 10, 50])))
    };
    Case {
        route: Route { timeouts, retry, action, ..Route::default() },
        script: (0..3).map(reply).collect(),
        patience: MS(one_of(&[1000, 1000, 20])),
        reads: rng.below(4) > 0,
        headed: rng.below(2) == 0,
    }
}

/// How it ended for the caller and when, what came to the upstream (a line for each attempt), and what was counted.
type Ending = (String, Duration, Vec<String>, Reading);

async fn run<S, L, B>(case: Case, layer: L) -> Ending
where
    L: FnOnce(Upstream) -> S,
    S: Service<Call<Empty<Bytes>, ()>, Response = Response<B>, Error = Error>,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (upstream, entry) = (Upstream::new(case.script), call::entry(case.route));
    let begun = clock::now();
    let mut request = Request::get("http://web:80/a?b=c").version(Version::HTTP_2).extension("kept");
    if case.headed {
        let mut secret = HeaderValue::from_static("two");
        secret.set_sensitive(true);
        request = request.header("x-many", "one").header("x-many", secret).header("accept", "*/*");
    }
    let request = request.body(Empty::new()).unwrap();
    let told = tokio::time::timeout(case.patience, async {
        match layer(upstream.clone()).oneshot(call::call(&entry, request)).await {
            Err(error) => format!("{error:?}"),
            Ok(response) => {
                let head = format!("{} {:?}", response.status(), response.headers());
                match case.reads {
                    true => {
                        format!("{head} {:?}", response.into_body().collect().await.map(|all| all.to_bytes()))
                    }
                    false => head,
                }
            }
        }
    });
    let told = told.await.unwrap_or_else(|_| "gone".into());
    let ended = clock::now().saturating_duration_since(begun);
    tokio::task::yield_now().await;
    assert_eq!(upstream.alive(), 0, "nothing is left behind");
    let head = |seen: &upstream::Seen| {
        let Parts { method, uri, version, headers, extensions, .. } = &seen.parts;
        let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        format!("{method} {uri} {version:?} {:?} {}", extensions.get::<&str>(), headers.join(", "))
    };
    let seen: Vec<String> = upstream.seen.lock().unwrap().iter().map(head).collect();
    (told, ended, seen, entry.policy.metrics.read())
}

#[tokio::test(start_paused = true)]
async fn one_future_does_what_four_layers_do() {
    let (mut answered, mut repeated) = (0, 0);
    for seed in 0..2_000 {
        let case = case(&Rng::seeded(seed));
        let rng = Rng::seeded(seed);
        let whole = run(case.clone(), |inner| stack::around::<Nobody, _>(Rng::seeded(seed), inner)).await;
        let apart = run(case, |inner| {
            let retry = RetryLayer::<Nobody>::by_route(rng);
            MetricsLayer::default().layer(ActLayer.layer(TimeoutLayer::request().layer(retry.layer(inner))))
        })
        .await;
        assert_eq!(whole, apart, "seed {seed}");
        // But for the mark that it is another one, which comes last.
        let differs = whole.2.iter().find(|attempt| !attempt.starts_with(&whole.2[0]));
        assert_eq!(differs, None, "seed {seed}: each attempt is the same request");
        repeated += u32::from(whole.2.len() > 1 && whole.2[0].contains("x-many"));
        let counted = &whole.3;
        assert_eq!(counted.requests, counted.successes + counted.failures + counted.cancelled, "seed {seed}");
        answered += u32::from(whole.0.starts_with("200"));
    }
    assert!((200..1_900).contains(&answered), "the cases differ: {answered}");
    assert!(repeated > 50, "requests with headers are repeated: {repeated}");
}

/// A service of some endpoints, each with a script of its own, that a few calls are sent to.
#[derive(Clone)]
struct Fleet {
    calls: Vec<Case>,
    scripts: Vec<Vec<Reply>>,
    balancer: BalancerSettings,
    /// When the endpoints become known.
    known: Duration,
}

fn fleet(rng: &Rng) -> Fleet {
    let algorithms = [
        Algorithm::PeakEwma,
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::LeastRequest { choices: 2 },
        Algorithm::RecentlyFreed,
    ];
    let algorithm = Some(algorithms[rng.below(5) as usize]);
    let mut calls: Vec<Case> = (0..4).map(|_| case(rng)).collect();
    // One service has one route here, whose limits and retries are those of the first call.
    let mut route = calls[0].route.clone();
    route.timeouts.attempt = if rng.below(2) == 0 { Limit::After(MS(25)) } else { Limit::Unset };
    route.timeouts.idle = if rng.below(4) == 0 { Limit::After(MS(20)) } else { Limit::Unset };
    if let (Some(retry), 0) = (&mut route.retry, rng.below(4)) {
        retry.hedge = Some(HedgeSettings::After(MS(15)));
    }
    calls.iter_mut().for_each(|call| call.route = route.clone());
    Fleet {
        calls,
        scripts: (0..rng.below(4)).map(|_| case(rng).script).collect(),
        balancer: BalancerSettings { algorithm, ..BalancerSettings::default() },
        known: MS([0, 0, 0, 12][rng.below(4) as usize]),
    }
}

/// What became of each call, what came to each endpoint, what was counted of the route, its attempts and its backend, and
/// what is known of the endpoints.
type Told = (Vec<(String, Duration)>, Vec<usize>, Vec<String>);

async fn run_fleet<S, B>(fleet: Fleet, rng: Rng, stack: S) -> Told
where
    S: Service<Call<Empty<Bytes>, Backend<Upstream>>, Response = Response<B>, Error = Error> + Clone,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let upstreams: Vec<Upstream> = fleet.scripts.iter().map(|script| Upstream::new(script.clone())).collect();
    let balance = Balance::new("svc.test:80", &fleet.balancer, Some(&BreakerSettings::default()), rng);
    let entry = call::entry_with(fleet.calls[0].route.clone(), &balance, |_| ());
    let address = |index: usize| SocketAddr::from(([10, 0, 0, 1], 1000 + index as u16));
    let publish = async {
        tokio::time::sleep(fleet.known).await;
        let set = EndpointSet::new((0..upstreams.len()).map(|index| Endpoint::new(address(index))));
        balance.update(&set, |endpoint| {
            stack::replica(upstreams[usize::from(endpoint.addr.port()) - 1000].clone())
        });
    };
    let calls = async {
        let mut told = Vec::new();
        if fleet.known.is_zero() {
            tokio::task::yield_now().await;
        }
        for case in &fleet.calls {
            told.push(one_call(case, &entry, stack.clone()).await);
        }
        told
    };
    let ((), told) = tokio::join!(publish, calls);
    tokio::task::yield_now().await;
    assert_eq!(upstreams.iter().map(Upstream::alive).sum::<usize>(), 0, "nothing is left behind");
    let seen = upstreams.iter().map(|upstream| upstream.seen.lock().unwrap().len()).collect();
    let metrics = &entry.policy.metrics;
    let mut known = vec![format!("{:?}", metrics.read()), format!("{:?}", metrics.attempts())];
    known.extend(entry.policy.backends.iter().map(|backend| format!("{:?}", backend.tally.read())));
    let state = balance.inspect();
    known.push(format!("{} {}", state.shut, state.spared));
    known.extend(state.endpoints.iter().map(|one| {
        let known = (one.latency, one.health, one.in_flight, one.load, one.breaker, one.ready);
        format!("{} {known:?}", one.endpoint.addr)
    }));
    (told, seen, known)
}

async fn one_call<S, B>(
    case: &Case,
    entry: &Arc<RouteEntry<Backend<Upstream>>>,
    stack: S,
) -> (String, Duration)
where
    S: Service<Call<Empty<Bytes>, Backend<Upstream>>, Response = Response<B>, Error = Error>,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let begun = clock::now();
    let told = tokio::time::timeout(case.patience, async {
        match stack.oneshot(call::call(entry, Request::new(Empty::new()))).await {
            Err(error) => format!("{error:?}"),
            Ok(response) if case.reads => {
                let head = format!("{} {:?}", response.status(), response.headers());
                format!("{head} {:?}", response.into_body().collect().await.map(|all| all.to_bytes()))
            }
            Ok(response) => format!("{} {:?}", response.status(), response.headers()),
        }
    });
    let told = told.await.unwrap_or_else(|_| "gone".into());
    (told, clock::now().saturating_duration_since(begun))
}

#[tokio::test(start_paused = true)]
async fn two_futures_do_what_all_layers_do() {
    let (mut answered, mut retried) = (0, 0);
    for seed in 0..1_500 {
        let fleet = fleet(&Rng::seeded(seed));
        let rng = || Rng::seeded(seed);
        let whole = run_fleet(fleet.clone(), rng(), stack::outbound(rng())).await;
        let apart = run_fleet(fleet.clone(), rng(), stack::layers(rng())).await;
        assert_eq!(whole, apart, "seed {seed}");
        answered += whole.0.iter().filter(|(told, _)| told.starts_with("200")).count();
        retried += usize::from(whole.1.iter().sum::<usize>() > fleet.calls.len());
    }
    assert!((500..5_500).contains(&answered) && retried > 100, "the cases differ: {answered} {retried}");
}
