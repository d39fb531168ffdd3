//! Hedging on a paused clock, over a service that answers by a script.
#![expect(clippy::disallowed_methods, reason = "a test is no library: it reads its own paused clock")]

#[path = "support/call.rs"]
mod call;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/upstream.rs"]
mod upstream;

use bytes::Bytes;
use enmesh::classify::outcome::{Cause, Outcome, Verdict};
use enmesh::error::Error;
use enmesh::metrics::route::Hedge;
use enmesh::metrics::series::Ending;
use enmesh::policy::call::Call;
use enmesh::policy::route::RouteEntry;
use enmesh::profile::route::Route;
use enmesh::profile::settings::{BudgetSettings, HedgeSettings, RetryOn, RetrySettings};
use enmesh::retry::layer::RetryLayer;
use enmesh::stdx::rng::Rng;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use upstream::{Reply, Sent, Upstream};

const MS: fn(u64) -> Duration = Duration::from_millis;
const NONE: BudgetSettings = BudgetSettings::ActiveShare { ratio_ppm: 0, min_concurrent: 0 };

fn hedged(hedge: HedgeSettings, budget: Option<BudgetSettings>) -> Arc<RouteEntry<()>> {
    let on = RetryOn { statuses: vec![500..=599], ..RetryOn::default() };
    let retry =
        RetrySettings { hedge: Some(hedge), on, budget, attempts_max: Some(2), ..RetrySettings::default() };
    call::entry(Route { retry: Some(retry), ..Route::default() })
}

fn after(ms: u64) -> Arc<RouteEntry<()>> {
    hedged(HedgeSettings::After(MS(ms)), None)
}

fn request(entry: &Arc<RouteEntry<()>>, method: Method) -> Call<Full<Bytes>, ()> {
    let request = Request::builder().method(method).uri("http://svc/x").body(Full::from("body")).unwrap();
    call::call(entry, request)
}

/// What one call got: its status, its attempts, and after how long.
async fn send(
    entry: &Arc<RouteEntry<()>>,
    inner: &Upstream,
    call: Call<Full<Bytes>, ()>,
) -> (u16, u32, Duration) {
    // What the metrics layer does.
    entry.policy.metrics.begin();
    let begun = Instant::now();
    let response = RetryLayer::<enmesh::policy::call::Nobody>::by_route(Rng::seeded(1))
        .layer(inner.clone())
        .oneshot(call)
        .await
        .unwrap();
    let told = (response.status().as_u16(), response.body().attempts(), begun.elapsed());
    response.into_body().collect().await.unwrap();
    entry
        .policy
        .metrics
        .end(Ending::new(Some(told.0), &Outcome::new(Verdict::Success, Cause::Status(told.0))));
    told
}

/// Second copies that won, that lost, and that the budget forbade.
fn hedges(entry: &RouteEntry<()>) -> [u64; 3] {
    [Hedge::Won, Hedge::Lost, Hedge::NoBudget].map(|hedge| entry.policy.metrics.hedges(hedge))
}

/// Checks that nothing is under way, and that each attempt was counted once.
fn at_rest(entry: &RouteEntry<()>, inner: &Upstream) {
    let attempts = entry.policy.metrics.attempts();
    assert_eq!(attempts.in_flight(), 0, "{attempts:?}");
    assert_eq!(attempts.begun, inner.seen.lock().unwrap().len() as u64);
    assert_eq!(inner.alive.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn the_first_of_two_to_answer_is_taken_and_the_other_is_cancelled_at_once() {
    for (first, second, expected, counted) in [
        (100, 10, (200, 2, MS(40)), [1, 0, 0]),
        (50, 100, (200, 2, MS(50)), [0, 1, 0]),
        (29, 1, (200, 1, MS(29)), [0, 0, 0]),
    ] {
        let (entry, inner) = (
            after(30),
            Upstream::new(vec![Reply::status(200).after(MS(first)), Reply::status(200).after(MS(second))]),
        );
        assert_eq!(send(&entry, &inner, request(&entry, Method::GET)).await, expected);
        assert_eq!(hedges(&entry), counted);
        at_rest(&entry, &inner);
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_may_be_repeated_is_hedged() {
    let slow = || Upstream::new(vec![Reply::status(200).after(MS(100)), Reply::status(200)]);
    let (entry, inner) = (after(30), slow());
    assert_eq!(send(&entry, &inner, request(&entry, Method::POST)).await, (200, 1, MS(100)));
    let (entry, inner) = (after(30), slow());
    let mut call = request(&entry, Method::GET);
    call.scope.state.hedge = Some(false);
    assert_eq!(send(&entry, &inner, call).await, (200, 1, MS(100)), "its caller forbids it");
    let (entry, inner) = (hedged(HedgeSettings::After(MS(30)), Some(NONE)), slow());
    assert_eq!(send(&entry, &inner, request(&entry, Method::GET)).await, (200, 1, MS(100)));
    assert_eq!(hedges(&entry), [0, 0, 1], "there is no budget");
    at_rest(&entry, &inner);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_fails_leaves_the_other_its_chance() {
    let (good, bad) = (|ms| Reply::status(200).after(MS(ms)), |ms| Reply::status(503).after(MS(ms)));
    for (first, second, expected, counted) in [
        (bad(40), good(50), (200, 2, MS(80)), [1, 0, 0]),
        (good(90), bad(5), (200, 2, MS(90)), [0, 1, 0]),
        (bad(40), bad(50), (503, 2, MS(80)), [0, 1, 0]),
        (bad(90), bad(5), (503, 2, MS(90)), [0, 1, 0]),
        // A failure before the second copy is retried as ever, without a race.
        (bad(10), good(50), (200, 2, MS(60)), [0, 0, 0]),
    ] {
        let (entry, inner) = (after(30), Upstream::new(vec![first, second]));
        assert_eq!(send(&entry, &inner, request(&entry, Method::GET)).await, expected);
        assert_eq!(hedges(&entry), counted);
        at_rest(&entry, &inner);
    }
}

#[tokio::test(start_paused = true)]
async fn a_quantile_is_measured_of_the_routes_calls() {
    let (entry, inner) = (
        hedged(HedgeSettings::Quantile(900), None),
        Upstream::new(vec![Reply::status(200).after(MS(500)), Reply::status(200)]),
    );
    assert_eq!(send(&entry, &inner, request(&entry, Method::GET)).await.1, 1, "nothing is known yet");
    (1..=100).for_each(|ms| entry.policy.metrics.latency(MS(ms)));
    tokio::time::advance(MS(5000)).await;
    let inner = Upstream::new(vec![Reply::status(200).after(MS(500)), Reply::status(200)]);
    let (status, attempts, after) = send(&entry, &inner, request(&entry, Method::GET)).await;
    assert_eq!((status, attempts), (200, 2));
    assert!((MS(88)..MS(92)).contains(&after), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_usually_takes_longer_than_what_is_left_is_not_sent() {
    for (left, attempts) in [(300, 2), (100, 1)] {
        let on = RetryOn { statuses: vec![500..=599], ..RetryOn::default() };
        let entry = call::entry(Route {
            retry: Some(RetrySettings { on, ..RetrySettings::default() }),
            ..Route::default()
        });
        (0..100).for_each(|_| entry.policy.metrics.latency(MS(200)));
        let inner = Upstream::new(vec![Reply::status(503), Reply::status(200).after(MS(50))]);
        let mut call = request(&entry, Method::GET);
        call.scope.state.deadline = Some((Instant::now() + MS(left)).into_std());
        assert_eq!(send(&entry, &inner, call).await.1, attempts, "{left} ms were left");
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_a_hedged_call_at_any_time_leaves_nothing_behind() {
    let body = || vec![Sent::Data("a"), Sent::Wait(MS(10)), Sent::Data("b")];
    let mut polled_to_the_end = false;
    for polls in 0..60 {
        let inner = Upstream::new(vec![
            Reply::status(200).after(MS(90)).body(body()),
            Reply::status(200).after(MS(40)).body(body()),
        ]);
        let entry = after(30);
        let metrics = &entry.policy.metrics;
        metrics.begin();
        let service =
            RetryLayer::<enmesh::policy::call::Nobody>::by_route(Rng::seeded(1)).layer(inner.clone());
        {
            let mut call = pin!(async {
                let response = service.oneshot(request(&entry, Method::GET)).await?;
                response.into_body().collect().await.map_err(Error::from)
            });
            for _ in 0..polls {
                if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    polled_to_the_end = true;
                    break;
                }
                tokio::time::advance(MS(3)).await;
            }
        }
        metrics.end(Ending::new(None, &Outcome::DROPPED));
        if polls > 0 {
            at_rest(&entry, &inner);
        }
        assert_eq!(hedges(&entry).iter().sum::<u64>() + 1, inner.seen.lock().unwrap().len().max(1) as u64);
    }
    assert!(polled_to_the_end);
}
