//! Floor 4: a balancer as an operator looks at it.

use crate::discover::endpoint::Endpoint;
use crate::policy::call::EndpointId;
use crate::stdx::clock::Duration;
use std::sync::Arc;

/// One endpoint, as an operator looks at it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EndpointState {
    /// Its number.
    pub id: EndpointId,
    /// Its description.
    pub endpoint: Arc<Endpoint>,
    /// The latency it is believed to have; `None` before the first response.
    pub latency: Option<Duration>,
    /// The share of requests that went well lately, 0 to 1.
    pub health: f32,
    /// Requests in flight, to the end of their responses.
    pub in_flight: u32,
    /// The cost of one more request; the lower, the likelier to be picked.
    pub load: f32,
    /// Whether its breaker lets everybody in.
    pub open: bool,
}

/// A service's endpoints, as an operator looks at them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BalanceState {
    /// The service.
    pub service: Arc<str>,
    /// Whether discovery has answered yet.
    pub known: bool,
    /// The endpoints in order of address.
    pub endpoints: Vec<EndpointState>,
}
