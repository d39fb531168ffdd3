//! Calls of a route, without a mesh.

use enmesh::fault::decide::FaultSwitch;
use enmesh::metrics::names::Direction;
use enmesh::metrics::set::MetricsSet;
use enmesh::policy::call::{Call, CallScope, CallState};
use enmesh::policy::compile::Compiler;
use enmesh::policy::route::{RouteEntry, Standing};
use enmesh::profile::route::Route;
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::BudgetSettings;
use enmesh::stdx::clock;
use http::Request;
use std::sync::Arc;
use std::time::Duration;

/// A route of a service whose budget allows anything.
pub(crate) fn entry(route: Route) -> Arc<RouteEntry<()>> {
    entry_of(route, |_| ())
}

/// The same, of a profile that says more.
pub(crate) fn entry_of(route: Route, more: impl FnOnce(&mut ServiceProfile)) -> Arc<RouteEntry<()>> {
    entry_with(route, &(), more)
}

/// The same, over this backend.
pub(crate) fn entry_with<T: Standing + Clone>(
    route: Route,
    backend: &T,
    more: impl FnOnce(&mut ServiceProfile),
) -> Arc<RouteEntry<T>> {
    let name = "svc.test:80".parse().unwrap();
    let mut profile = ServiceProfile::new(name);
    let own = profile.names[0].clone();
    profile.routes = vec![route];
    profile.retry_budget =
        Some(BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 1000, ttl: Duration::from_secs(10) });
    more(&mut profile);
    let metrics = MetricsSet::unseen();
    let compiler = Compiler {
        service: "svc.test:80".into(),
        own,
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    let policy = compiler.compile(Arc::new(profile), None, |_| backend.clone()).unwrap();
    Arc::clone(&policy.routes()[0])
}

/// A call of this route that begins now.
pub(crate) fn call<B, T>(entry: &Arc<RouteEntry<T>>, http: Request<B>) -> Call<B, T> {
    let mut state = CallState::new(clock::now());
    state.is_deadline_told = true;
    state.deadline = entry.policy.timeouts.request.map(|request| state.started + request);
    Call { http, scope: CallScope::new(Arc::clone(entry), state) }
}
