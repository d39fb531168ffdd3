//! `Whole` does in one future what its three layers do one around the other.

#[path = "support/call.rs"]
mod call;
#[expect(dead_code, reason = "shared with tests that use more of it")]
#[path = "support/upstream.rs"]
mod upstream;

use bytes::Bytes;
use enmesh::error::Error;
use enmesh::mesh::whole::WholeLayer;
use enmesh::metrics::layer::MetricsLayer;
use enmesh::metrics::stat::Reading;
use enmesh::policy::call::{Call, Nobody};
use enmesh::profile::route::{Action, Filter, Forward, HeaderMods, Respond, Route};
use enmesh::profile::settings::{Limit, RetryOn, RetrySettings, Timeouts};
use enmesh::retry::layer::RetryLayer;
use enmesh::route::layer::ActLayer;
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use enmesh::timeout::layer::TimeoutLayer;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
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
    }
}

/// How it ended for the caller and when, what came to the upstream, and what was counted.
type Ending = (String, Duration, usize, Reading);

async fn run<S, L, B>(case: Case, layer: L) -> Ending
where
    L: FnOnce(Upstream) -> S,
    S: Service<Call<Empty<Bytes>, ()>, Response = Response<B>, Error = Error>,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (upstream, entry) = (Upstream::new(case.script), call::entry(case.route));
    let begun = clock::now();
    let request = Request::new(Empty::new());
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
    let seen = upstream.seen.lock().unwrap().len();
    (told, ended, seen, entry.policy.metrics.read())
}

#[tokio::test(start_paused = true)]
async fn one_future_does_what_three_layers_do() {
    let mut answered = 0;
    for seed in 0..2_000 {
        let case = case(&Rng::seeded(seed));
        let retry = || RetryLayer::<Nobody>::by_route(Rng::seeded(seed));
        let whole =
            run(case.clone(), |inner| WholeLayer::<Nobody>::default().layer(retry().layer(inner))).await;
        let apart = run(case, |inner| {
            MetricsLayer::default().layer(ActLayer.layer(TimeoutLayer::request().layer(retry().layer(inner))))
        })
        .await;
        assert_eq!(whole, apart, "seed {seed}");
        let counted = &whole.3;
        assert_eq!(counted.requests, counted.successes + counted.failures + counted.cancelled, "seed {seed}");
        answered += u32::from(whole.0.starts_with("200"));
    }
    assert!((200..1_900).contains(&answered), "the cases differ: {answered}");
}
