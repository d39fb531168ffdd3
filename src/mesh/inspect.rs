//! Floor 6: what the mesh knows, as data to be shown.

use crate::balance::inspect::BalanceState;
use crate::mesh::directory::{Directory, Known};
use crate::profile::name::ServiceName;
use serde::Serialize;
use std::time::Duration;

/// What the mesh knows at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// How many updates changed anything.
    pub generation: u64,
    /// Every service that is known, by name.
    pub services: Vec<ServiceState>,
}

/// One service.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceState {
    /// Its short name.
    pub name: String,
    /// Where its profile was written; `None`: nobody gave one.
    pub profile: Option<String>,
    /// Its routes, in order.
    pub routes: Vec<RouteState>,
    /// How much its retry budget holds, in whole retries.
    pub retry_budget_level: Option<u64>,
    /// Its replicas.
    pub endpoints: Vec<EndpointView>,
    /// What is wrong with the newest input; the last good one is in use.
    pub faults: Vec<String>,
}

/// One route.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RouteState {
    /// Its name; empty for the default route.
    pub name: String,
    /// Whether failures are tried again, beyond what was certainly not processed.
    pub retries: bool,
    /// The limit of a whole call.
    pub timeout: Option<Duration>,
}

/// One replica.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EndpointView {
    /// Its address.
    pub addr: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Its share, in thousandths.
    pub weight_milli: u32,
    /// Its measured latency in milliseconds.
    pub latency_ms: Option<f64>,
    /// Requests in flight.
    pub in_flight: u32,
    /// What the balancer compares; less is better.
    pub load: f32,
    /// Whether its breaker lets requests through.
    pub open: bool,
}

impl Inspection {
    pub(crate) fn of(directory: &Directory) -> Self {
        let services = directory.known().map(|(name, known)| ServiceState::of(name, known));
        Self { generation: directory.generation(), services: services.collect() }
    }
}

impl ServiceState {
    fn of(name: &ServiceName, known: &Known) -> Self {
        let policy = known.service().map(|service| service.policy.load_full());
        let routes = policy.iter().flat_map(|policy| policy.routes().iter().chain(policy.default_route()));
        let routes = routes.map(|entry| RouteState {
            name: entry.policy.name.to_string(),
            retries: entry.policy.retry_is_asked,
            timeout: entry.policy.timeouts.request.or(entry.policy.timeouts.response_headers),
        });
        let faults = known.profile_faults.iter().chain(known.endpoint_faults.iter());
        Self {
            name: name.to_string(),
            profile: known.profile.as_ref().map(|profile| profile.origin.to_string()),
            routes: routes.collect(),
            retry_budget_level: policy
                .as_ref()
                .map(|policy| policy.budget().level(crate::stdx::clock::now())),
            endpoints: known.target().map(|target| views(&target.inspect())).unwrap_or_default(),
            faults: faults.map(ToString::to_string).collect(),
        }
    }
}

fn views(state: &BalanceState) -> Vec<EndpointView> {
    let view = |state: &crate::balance::inspect::EndpointState| EndpointView {
        addr: state.endpoint.addr.to_string(),
        zone: state.endpoint.zone.as_ref().map(ToString::to_string),
        weight_milli: state.endpoint.weight_milli,
        latency_ms: state.latency.map(|latency| latency.as_secs_f64() * 1e3),
        in_flight: state.in_flight,
        load: state.load,
        open: state.is_open(),
    };
    state.endpoints.iter().map(view).collect()
}
