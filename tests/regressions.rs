//! Faults that other projects had in public, each with the test that holds us to it: docs/testing.md has the tables.

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

/// What is tested, and by which test.
const PAGE: &str = include_str!("../docs/testing.md");

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

/// The rows of the table below a heading or a first cell, as cells.
fn rows<'p>(after: &str) -> Vec<Vec<&'p str>> {
    let (_, rest) = PAGE.split_once(after).unwrap_or_else(|| panic!("no {after}"));
    let table =
        rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    table.skip(2).map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn every_fault_of_the_page_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tables = [
        ("where a race could lose or double something", 6),
        ("## Faults that other projects had in public", 25),
        ("## Known faults of load balancers", 10),
    ];
    let mut missing = Vec::new();
    for (after, count) in tables {
        let rows = rows(after);
        assert!(rows.len() >= count, "{after}: {} of {count} rows are left", rows.len());
        for row in rows {
            let tests: Vec<&str> =
                row.last().unwrap().split(", ").map(|name| name.trim_matches('`')).collect();
            assert!(tests.iter().all(|name| !name.is_empty()), "{row:?}");
            missing.extend(
                tests
                    .into_iter()
                    .filter(|name| ["tests", "src"].iter().all(|at| !has_test(&root.join(at), name))),
            );
        }
    }
    assert!(missing.is_empty(), "docs/testing.md names tests that are not there: {missing:#?}");
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

/// A source that says nothing, and counts who watches it.
#[cfg(feature = "http")]
struct Silent(Arc<()>);

#[cfg(feature = "http")]
impl enmesh::control::source::Source<EndpointSet> for Silent {
    fn watch(&self, _: &enmesh::profile::name::ServiceName) -> enmesh::control::source::Updates<EndpointSet> {
        use futures::StreamExt;
        let watched = Arc::clone(&self.0);
        futures::stream::pending().inspect(move |_| drop(Arc::clone(&watched))).boxed()
    }
}

/// A watch that outlives its reader is what a control plane waits for.
#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn a_mesh_that_is_gone_watches_nothing() {
    let watches = Arc::new(());
    let mesh =
        enmesh::Mesh::builder().endpoint_source(Silent(Arc::clone(&watches))).dns(false).build().unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(10), mesh.client().get("http://web.ns/")).await;
    assert!(Arc::strong_count(&watches) > 2, "it is watched");
    drop(mesh);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(Arc::strong_count(&watches), 1);
}
