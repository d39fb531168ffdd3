//! Faults that other projects had in public, each with the test that holds us to it (reliability.md §6).

use enmesh::balance::cost::Formula;
use enmesh::balance::endpoint::Cell;
use enmesh::balance::layer::Balance;
use enmesh::breaker::layer::BreakerLayer;
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::error::Error;
use enmesh::profile::settings::{
    BalancerSettings, BreakerSettings, BudgetSettings, Detector, FailureClass, Growth,
};
use enmesh::retry::budget::{Budget, Stake};
use enmesh::stdx::backoff::Backoff;
use enmesh::stdx::clock;
use enmesh::stdx::gcra::{Gcra, Rate};
use enmesh::stdx::moment::Moment;
use enmesh::stdx::rng::Rng;
use enmesh::timeout::deadline;
use enmesh::timeout::layer::TimeoutLayer;
use http::{Request, Response};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tower::{Layer, ServiceExt, service_fn};

/// Whose fault it was, what went wrong, and the test that fails if it does here.
const CLASSES: &[(&str, &str, &str)] = &[
    ("tower", "two random choices subtract beyond zero and panic", "count_and_age_are_exact_whatever_wraps"),
    (
        "tower #668",
        "a service taken from the ready cache is cancelled unseen",
        "an_endpoint_removed_while_it_is_tried_frees_its_place",
    ),
    (
        "tower #420",
        "the ready cache panics when an update meets a call",
        "updates_during_picks_lose_no_request",
    ),
    (
        "tower",
        "a buffer closes when its service pends",
        "an_endpoint_that_is_never_ready_fails_its_request_in_time",
    ),
    ("tower #223, #548", "a clone that was never made ready is called", "retries_hold_it"),
    ("tower 2f50b49", "arithmetic of times panics", "no_time_however_far_or_backward_panics"),
    ("tower TpsBudget", "the ratio is truncated to one over a whole number", "the_ratio_is_exact"),
    (
        "tower-resilience #392",
        "retries call without asking for readiness",
        "each_attempt_is_the_whole_request",
    ),
    (
        "tower-resilience #367, #399",
        "places are held by clones that were ready",
        "the_whole_client_stack_holds_it",
    ),
    (
        "tower-resilience #394",
        "a rate limiter admits more than its rate when threads race",
        "a_floor_is_not_undercut",
    ),
    (
        "tower-resilience #393",
        "the loser of a hedge is not cancelled",
        "the_first_of_two_to_answer_is_taken_and_the_other_is_cancelled_at_once",
    ),
    (
        "tower-resilience #387",
        "an adaptive limiter loses places",
        "on_many_threads_no_place_is_lost_and_none_is_given_twice",
    ),
    (
        "tower-resilience #406",
        "a limit is changed without atomicity",
        "on_many_threads_no_place_is_lost_and_none_is_given_twice",
    ),
    ("tower-resilience #407", "a half-open breaker lets everybody in", "of_all_who_wait_one_is_the_probe"),
    ("tower-resilience #411", "a budget counts wrongly", "the_windowed_law_holds_in_every_window"),
    (
        "tower-resilience #417, #431, #437, #441",
        "unusable settings are accepted",
        "all_faults_of_a_document_are_found_at_once",
    ),
    (
        "tower-resilience #325",
        "a panic poisons a lock for everybody",
        "a_panic_at_any_stage_leaves_nothing_in_flight_and_no_lock_poisoned",
    ),
    (
        "linkerd #11055",
        "who failed fast once fails for ever",
        "whoever_failed_fast_is_served_once_there_is_an_endpoint",
    ),
    (
        "linkerd2-proxy #2484",
        "watches that nobody reads hold the control plane up",
        "hundreds_of_silent_hosts_hold_a_service_up_for_one_round_only",
    ),
    ("linkerd #4004", "connections that rest are kept for ever", "unused_connections_close_after_their_time"),
    (
        "linkerd #4449, #4450",
        "a time to live below zero is asked again in a hot loop",
        "the_ttl_is_kept_between_five_seconds_and_an_hour",
    ),
    (
        "linkerd2-proxy #4561",
        "a decaying success rate is blind to bursts",
        "a_burst_of_failures_trips_as_a_slow_run_of_them_does",
    ),
    (
        "h2 0.4.14",
        "what was reserved is lost when its stream goes away",
        "a_window_that_never_opens_holds_one_stream_only_until_its_request_goes",
    ),
    ("h2 0.4.16", "nobody wakes who waits for trailers", "h2_is_one_that_wakes_and_gives_back"),
    ("tonic", "an error of accept ends the server", "no_error_of_accept_ends_the_server_or_makes_it_spin"),
];

fn has_test(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return has_test(&path, name);
        }
        path.extension().is_some_and(|own| own == "rs")
            && std::fs::read_to_string(&path).unwrap().contains(&format!("fn {name}("))
    })
}

#[test]
fn every_class_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing: Vec<_> = CLASSES
        .iter()
        .filter(|(.., test)| !has_test(&root.join("tests"), test) && !has_test(&root.join("src"), test))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// What h2 mended in 0.4.14 and 0.4.16 is there because no older one is allowed.
#[test]
fn h2_is_one_that_wakes_and_gives_back() {
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let versions = lock.split("[[package]]").filter(|package| package.contains("name = \"h2\"\n"));
    let mut seen = 0;
    for package in versions {
        let version = package.lines().find_map(|line| line.strip_prefix("version = ")).unwrap();
        let numbers: Vec<u32> = version.trim_matches('"').split('.').map(|n| n.parse().unwrap()).collect();
        assert!(numbers >= vec![0, 4, 18], "h2 {version}");
        seen += 1;
    }
    assert!(seen > 0);
}

#[tokio::test(start_paused = true)]
async fn no_time_however_far_or_backward_panics() {
    let start = clock::now() + Duration::from_secs(1000);
    let far = [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1 << 33), Duration::MAX];
    for ttl in far {
        for settings in [
            BudgetSettings::Windowed { ratio_ppm: u32::MAX, min_per_second: u32::MAX, ttl },
            BudgetSettings::Recent { ratio_ppm: u32::MAX, min_per_second: 1, burst: u32::MAX },
        ] {
            let budget = Budget::new(&settings);
            for now in [start, start - Duration::from_secs(999), start + Duration::from_secs(1 << 32), start]
            {
                budget.deposit(now);
                budget.withdraw(&mut Stake::default(), now);
                budget.level(now);
            }
        }
        for (count, burst) in [(0, 0), (1, u32::MAX), (u32::MAX, u32::MAX)] {
            let gcra = Gcra::new(Rate::new(count, ttl, burst));
            for now in [start, start - Duration::from_secs(999), start + Duration::from_secs(1 << 32)] {
                let _ = gcra.admit(now);
                gcra.level(now);
            }
        }
        if let Ok(backoff) = Backoff::new(Duration::from_nanos(1), ttl.max(Duration::from_nanos(1)), 100.0) {
            for step in [0, 1, 63, 64, u32::MAX] {
                assert!(backoff.above(step, &Rng::seeded(1)) <= ttl.max(Duration::from_nanos(1)));
                assert!(backoff.below(step, &Rng::seeded(1)) <= ttl.max(Duration::from_nanos(1)));
            }
        }
        assert!(
            deadline::effective(start, Some(ttl), Some(ttl), None).is_some_and(|at| at >= start)
                || ttl > Duration::from_secs(1 << 40)
        );
        let formula = Formula::default();
        let cell = Cell::new(1, 1, Moment::from_micros(u64::MAX / 2), ttl.as_secs_f32());
        for micros in [0, u64::MAX / 2, 7, u64::MAX] {
            let now = Moment::from_micros(micros);
            cell.begin(now);
            for secs in [0.0, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, f32::NAN] {
                cell.learn(&formula, now, secs);
                cell.judge(secs > 1.0, || now);
                let score = formula.score(&cell.view(), now);
                assert!(!score.is_nan() && score >= 0.0, "{score} after {secs} at {micros}");
            }
            cell.headers(now);
        }
        assert_eq!(cell.in_flight(), 0);
        let layer = TimeoutLayer::request().with_own(ttl.max(Duration::from_secs(1)));
        let app = service_fn(|_: Request<()>| async { Ok::<_, Error>(Response::new(String::new())) });
        layer.layer(app).oneshot(Request::new(())).await.unwrap();
        let breaker = BreakerSettings {
            detectors: vec![
                Detector::Consecutive { class: FailureClass::Any, threshold: 1 },
                Detector::SuccessRate { threshold: f64::NAN, window: ttl, min_requests: 0 },
            ],
            ejection_base: ttl,
            ejection_max: ttl,
            jitter: f32::NAN,
            growth: Growth::Linear,
            ..BreakerSettings::default()
        };
        let app = service_fn(|_: Request<()>| async { Err::<Response<String>, _>(Error::Closed) });
        let service = BreakerLayer::new(breaker, Rng::seeded(1)).layer(app);
        for _ in 0..3 {
            assert!(service.clone().oneshot(Request::new(())).await.is_err());
            tokio::time::advance(Duration::from_secs(3600)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_failed_fast_is_served_once_there_is_an_endpoint() {
    let balance = Balance::new("svc", &BalancerSettings::default(), None, Rng::seeded(1));
    let app = || service_fn(|_: Request<()>| async { Ok::<_, Error>(Response::new(String::new())) });
    let fill = |count: u16| {
        let endpoints = (0..count).map(|port| Endpoint::new(([127, 0, 0, 1], port).into()));
        balance.update(&EndpointSet::new(endpoints), |_: &Arc<Endpoint>| app());
    };
    for _ in 0..3 {
        fill(0);
        for _ in 0..100 {
            let error = balance.clone().oneshot(Request::new(())).await.unwrap_err();
            assert!(matches!(error, Error::NoEndpoints { .. }), "{error}");
        }
        fill(1);
        let begun = clock::now();
        balance.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(clock::now(), begun, "at once");
    }
}
