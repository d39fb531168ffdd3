//! Floor 2: every route's handles, made once and kept over updates.

use crate::metrics::names::Direction;
use crate::metrics::registry::Registry;
use crate::metrics::route::RouteMetrics;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

type Key = (Direction, Arc<str>, Arc<str>);

/// The most routes that are counted apart. Routes come from configuration, so this bounds a runaway one; what is
/// beyond counts under the route name `other`.
pub const ROUTES_MAX: usize = 20_000;

/// The handles of all routes. Two profiles that name one route share its counters, and an update loses none.
#[derive(Debug, Default)]
pub struct MetricsSet {
    registry: Registry,
    routes: Mutex<BTreeMap<Key, Arc<RouteMetrics>>>,
}

impl MetricsSet {
    /// A set that resolves its handles in `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { registry, routes: Mutex::default() }
    }

    /// A set whose handles count nothing, for compiling apart from all that runs.
    pub fn unseen() -> Self {
        Self::new(Registry::own(Arc::new(metrics::NoopRecorder)))
    }

    /// Where handles are resolved.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The handles of a route; made when first asked for. For compiling, not for requests.
    pub fn route(&self, direction: Direction, dst: &Arc<str>, route: &Arc<str>) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let full = routes.len() >= ROUTES_MAX;
        let mut key = (direction, Arc::clone(dst), Arc::clone(route));
        if full && !routes.contains_key(&key) {
            key = (direction, "other".into(), "other".into());
        }
        let made = || Arc::new(RouteMetrics::new(&self.registry, key.0, &key.1, &key.2));
        Arc::clone(routes.entry(key.clone()).or_insert_with(made))
    }

    /// All routes, by direction, service and name.
    pub fn all(&self) -> Vec<Arc<RouteMetrics>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
