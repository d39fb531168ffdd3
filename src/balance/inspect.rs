//! Floor 4: a balancer as an operator looks at it.

use crate::breaker::event::{Reason, What};
use crate::discover::endpoint::Endpoint;
use crate::policy::call::EndpointId;
use crate::profile::settings::Algorithm;
use crate::stdx::clock::{Duration, Instant};
use std::net::SocketAddr;
use std::sync::Arc;

/// What an endpoint's breaker does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BreakerState {
    /// It lets everybody in.
    Open,
    /// It lets nobody in.
    Shut {
        /// Why.
        reason: Reason,
        /// For how long still.
        retry_in: Duration,
    },
    /// One request tries the endpoint; its end decides.
    Probing,
}

/// One endpoint, as an operator looks at it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EndpointState {
    /// Its number.
    pub id: EndpointId,
    /// Its description, with weight, zone, priority and whether it drains.
    pub endpoint: Arc<Endpoint>,
    /// The latency it is believed to have; `None` before the first response.
    pub latency: Option<Duration>,
    /// The share of requests that went well lately, 0 to 1.
    pub health: f32,
    /// Requests in flight, to the end of their responses.
    pub in_flight: u32,
    /// The cost of one more request, of no unit; the lower, the likelier to be picked.
    pub load: f32,
    /// Its breaker; open where there is none, or one for each route apart.
    pub breaker: BreakerState,
    /// The routes that leave it alone, where breakers are for each route apart.
    pub routes: Vec<(Arc<str>, BreakerState)>,
    /// Whether it gets new requests, but for its breaker: it neither drains nor has a weight of 0.
    pub ready: bool,
}

impl EndpointState {
    /// Whether its breaker lets everybody in.
    pub fn is_open(&self) -> bool {
        self.breaker == BreakerState::Open
    }
}

/// A service's endpoints, as an operator looks at them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BalanceState {
    /// The service.
    pub service: Arc<str>,
    /// Whether discovery has answered yet.
    pub known: bool,
    /// The rule in force.
    pub algorithm: Algorithm,
    /// The endpoints in use, in order of address; those outside the subset are not among them.
    pub endpoints: Vec<EndpointState>,
    /// How many of them are shut; where breakers are for each route apart, summed over routes.
    pub shut: u32,
    /// How often a breaker would have shut an endpoint, but too many were shut already.
    pub spared: u64,
}

/// One change of one endpoint's breaker.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BreakerEvent {
    /// Counts all events of a balancer's breaker from 0.
    pub number: u64,
    /// When.
    pub at: Instant,
    /// The endpoint's number.
    pub endpoint: EndpointId,
    /// Its address, while it is in use.
    pub addr: Option<SocketAddr>,
    /// The route, where breakers are for each route apart.
    pub route: Option<Arc<str>>,
    /// What happened, and why.
    pub what: What,
}
