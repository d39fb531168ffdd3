//! Overload in virtual time, with the product's own layer: the goodput at two and four times what a server can do.

#![expect(
    clippy::disallowed_methods,
    reason = "a test is no library: it spawns and reads its own paused clock"
)]

#[path = "support/call.rs"]
mod call;

use bytes::Bytes;
use enmesh::error::Error;
use enmesh::limit::layer::LimitLayer;
use enmesh::limit::priority::Priority;
use enmesh::policy::call::Call;
use enmesh::policy::route::RouteEntry;
use enmesh::profile::route::Route;
use enmesh::profile::settings::{Adaptive, Limits};
use enmesh::stdx::rng::Rng;
use http::{Request, Response};
use http_body_util::Empty;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

/// A server that works on so many requests at a time, and lets all others wait in turn.
const WORKERS: usize = 10;
/// What one takes, exponentially distributed.
const WORK: f64 = 0.040;
/// How long callers wait.
const PATIENCE: Duration = Duration::from_millis(400);
/// What is measured, after some time to settle.
const SETTLE: Duration = Duration::from_secs(10);
const UNTIL: Duration = Duration::from_secs(40);

/// What became of the requests, by priority: how many were answered in time, of how many.
#[derive(Debug, Default)]
struct Tally([[AtomicU64; 2]; 4]);

impl Tally {
    fn good(&self, priority: Priority) -> f64 {
        let [good, all] = &self.0[usize::from(priority.level())];
        good.load(Ordering::Relaxed) as f64 / all.load(Ordering::Relaxed).max(1) as f64
    }

    /// Those in time, as a share of what the server can do.
    fn goodput(&self) -> f64 {
        let good: u64 = self.0.iter().map(|[good, _]| good.load(Ordering::Relaxed)).sum();
        good as f64 / (UNTIL - SETTLE).as_secs_f64() / (WORKERS as f64 / WORK)
    }
}

fn limited(limits: Limits) -> Arc<RouteEntry<()>> {
    match limits == Limits::default() {
        true => call::entry(Route::default()),
        false => call::entry_of(Route::default(), |profile| profile.limits = limits),
    }
}

/// The tally of `load` times what the server can do.
async fn overload(entry: Arc<RouteEntry<()>>, load: f64) -> Arc<Tally> {
    let (rng, workers) = (Rng::seeded(42), Arc::new(Semaphore::new(WORKERS)));
    let exponential = |mean: f64| Duration::from_secs_f64(-mean * (1.0 - rng.unit()).ln());
    let work = rng.fork();
    let app = tower::service_fn(move |_: Call<Empty<Bytes>, ()>| {
        let (workers, takes) = (Arc::clone(&workers), -WORK * (1.0 - work.unit()).ln());
        async move {
            let _worker = workers.acquire().await.map_err(|_| Error::Closed)?;
            tokio::time::sleep(Duration::from_secs_f64(takes)).await;
            Ok::<_, Error>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let service = LimitLayer::by_route().layer(app);
    let (tally, begun) = (Arc::new(Tally::default()), Instant::now());
    let mut due = begun;
    while due < begun + UNTIL {
        due += exponential(WORK / WORKERS as f64 / load);
        tokio::time::sleep_until(due).await;
        let priority = Priority::from_level(u8::try_from(rng.below(4)).unwrap());
        let mut call = call::call(&entry, Request::new(Empty::<Bytes>::new()));
        call.scope.state.deadline = Some((Instant::now() + PATIENCE).into_std());
        call.scope.state.priority = Some(priority.level());
        let (service, tally) = (service.clone(), Arc::clone(&tally));
        tokio::spawn(async move {
            // The server does not notice that its caller has gone, as most do not.
            let sent = Instant::now();
            let answer = service.oneshot(call).await;
            if sent >= begun + SETTLE && sent < begun + UNTIL {
                let [good, all] = &tally.0[usize::from(priority.level())];
                good.fetch_add(u64::from(answer.is_ok() && sent.elapsed() <= PATIENCE), Ordering::Relaxed);
                all.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    tally
}

#[tokio::test(start_paused = true)]
async fn goodput_at_two_and_four_times_the_capacity_is_nine_tenths_of_it() {
    let fixed = Limits { requests_max: Some(WORKERS as u32), ..Limits::default() };
    let adaptive = |rule| Limits { adaptive: Some(rule), ..Limits::default() };
    for (name, limits) in
        [("fixed", fixed), ("gradient2", adaptive(Adaptive::Gradient2)), ("vegas", adaptive(Adaptive::Vegas))]
    {
        for load in [2.0, 4.0] {
            let tally = overload(limited(limits.clone()), load).await;
            let goodput = tally.goodput();
            println!(
                "{name} at {load}: {goodput:.3}; critical-plus {:.3}, sheddable {:.3}",
                tally.good(Priority::CriticalPlus),
                tally.good(Priority::Sheddable)
            );
            assert!(goodput >= 0.9, "{name} at {load}: {goodput}");
            // A quarter of four times the capacity is all of it.
            let most = if load == 2.0 { 0.95 } else { 0.75 };
            assert!(tally.good(Priority::CriticalPlus) > most, "{name} at {load}: {tally:?}");
            assert!(tally.good(Priority::Sheddable) < 0.2, "{name} at {load}: {tally:?}");
        }
    }
    let without = overload(limited(Limits::default()), 2.0).await.goodput();
    println!("without a limit at 2: {without:.3}");
    assert!(without < 0.1, "without a limit nearly nothing is in time: {without}");
}
