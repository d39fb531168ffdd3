//! Floor 6: what every route did, read without an exporter.

use crate::metrics::names::Direction;
use crate::metrics::set::MetricsSet;
use crate::metrics::stat::Reading;
use crate::stdx::clock::{self, Instant};
use std::time::Duration;

/// What one route did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RouteStats {
    /// Whether this process called or was called.
    pub direction: Direction,
    /// The service (label `dst`).
    pub dst: String,
    /// The route; empty for the default route.
    pub route: String,
    /// The numbers.
    #[serde(flatten)]
    pub reading: Reading,
}

/// What all routes did up to one moment, or between two.
#[derive(Debug, Clone)]
pub struct Stats {
    taken: Instant,
    elapsed: Duration,
    /// The routes, by direction, service and name.
    pub routes: Vec<RouteStats>,
}

impl Stats {
    pub(crate) fn read(set: &MetricsSet, begun: Instant) -> Self {
        let taken = clock::now();
        let routes = set.all().into_iter().map(|route| RouteStats {
            direction: route.direction(),
            dst: route.dst().to_string(),
            route: route.route().to_string(),
            reading: route.read(),
        });
        Self { taken, elapsed: taken.saturating_duration_since(begun), routes: routes.collect() }
    }

    /// The time these numbers are of.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// What happened after `earlier` was read from the same mesh. Two readings ten seconds apart make a window of ten
    /// seconds.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let key = |route: &RouteStats| (route.direction, route.dst.clone(), route.route.clone());
        let before: std::collections::BTreeMap<_, _> =
            earlier.routes.iter().map(|route| (key(route), &route.reading)).collect();
        let routes = self.routes.iter().map(|route| {
            let reading = match before.get(&key(route)) {
                Some(before) => route.reading.since(before),
                None => route.reading.clone(),
            };
            RouteStats { reading, ..route.clone() }
        });
        let elapsed = self.taken.saturating_duration_since(earlier.taken);
        Self { taken: self.taken, elapsed, routes: routes.collect() }
    }

    /// A count as a rate per second.
    pub fn per_second(&self, count: u64) -> f64 {
        let secs = self.elapsed.as_secs_f64();
        if secs > 0.0 { count as f64 / secs } else { 0.0 }
    }
}
