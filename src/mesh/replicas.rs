//! Floor 6: a service's replicas as people look at them: load, breaker and why.

use crate::balance::inspect::{BalanceState, BreakerEvent, BreakerState, EndpointState};
use crate::breaker::event::{Reason, What};
use crate::mesh::directory::Target;
use crate::mesh::history::millis;
use crate::profile::settings::{Algorithm, FailureClass};
use crate::stdx::clock;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The breaker events that are shown: the newest, more than fit on a screen.
const EVENTS_SHOWN: usize = 50;

/// How a service's replicas are chosen.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BalancerView {
    /// The rule in force: `recently_freed`, `peak_ewma`, …
    pub algorithm: &'static str,
    /// Whether discovery has answered yet.
    pub known: bool,
    /// How many replicas breakers leave alone.
    pub shut: u32,
    /// How often a breaker would have shut a replica, but too many were shut already.
    pub spared: u64,
    /// What the breakers did last, the newest first; at most 50.
    pub events: Vec<EventView>,
}

/// One change of a replica's breaker.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EventView {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The replica, while it is in use.
    pub addr: Option<String>,
    /// The route, where breakers are for each route apart.
    pub route: Option<String>,
    /// `shut`, `probed` or `opened`.
    pub what: &'static str,
    /// Why, for `shut`.
    pub reason: Option<String>,
    /// For how long, for `shut`.
    pub wait_ms: Option<f64>,
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
    /// 0 is used first.
    pub priority: u8,
    /// The identity that it must prove; `None`: it is not asked for one.
    pub identity: Option<String>,
    /// What discovery says besides.
    pub labels: BTreeMap<String, String>,
    /// Its measured latency in milliseconds.
    pub latency_ms: Option<f64>,
    /// The share of requests that went well lately, 0 to 1.
    pub health: f32,
    /// Requests in flight.
    pub in_flight: u32,
    /// What the balancer compares; less is better.
    pub load: f32,
    /// Whether its breaker lets requests through.
    pub open: bool,
    /// Its breaker.
    pub breaker: BreakerView,
    /// The breakers of routes that leave it alone, where each route has its own.
    pub routes: BTreeMap<String, BreakerView>,
    /// Whether it finishes what it has and gets nothing new.
    pub draining: bool,
    /// Whether it gets new requests, but for its breaker.
    pub ready: bool,
}

/// A replica's breaker.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BreakerView {
    /// `open` (it lets everybody in), `shut` or `probing`.
    pub state: &'static str,
    /// Why it is shut.
    pub reason: Option<String>,
    /// When it is tried again, in milliseconds from now.
    pub retry_in_ms: Option<f64>,
}

impl BalancerView {
    pub(crate) fn of(target: &Target, state: &BalanceState) -> Self {
        let (now, wall) = (clock::now(), millis(clock::wall()));
        let event = |event: BreakerEvent| {
            let ago = u64::try_from(now.saturating_duration_since(event.at).as_millis()).unwrap_or(u64::MAX);
            let (what, reason, wait) = match event.what {
                What::Shut { reason, wait } => ("shut", Some(sentence(&reason)), Some(wait)),
                What::Probed => ("probed", None, None),
                What::Opened => ("opened", None, None),
            };
            EventView {
                at_ms: wall.saturating_sub(ago),
                addr: event.addr.map(|addr| addr.to_string()),
                route: event.route.map(|route| route.to_string()),
                what,
                reason,
                wait_ms: wait.map(in_ms),
            }
        };
        let mut events: Vec<EventView> = target.events(0).into_iter().map(event).collect();
        events.sort_by_key(|event| std::cmp::Reverse(event.at_ms));
        events.truncate(EVENTS_SHOWN);
        Self {
            algorithm: word(state.algorithm),
            known: state.known,
            shut: state.shut,
            spared: state.spared,
            events,
        }
    }
}

impl EndpointView {
    pub(crate) fn of(state: &EndpointState) -> Self {
        let endpoint = &state.endpoint;
        let text = |text: &Option<std::sync::Arc<str>>| text.as_ref().map(ToString::to_string);
        let routes = state.routes.iter().map(|(route, state)| (route.to_string(), BreakerView::of(*state)));
        Self {
            addr: endpoint.addr.to_string(),
            zone: text(&endpoint.zone),
            weight_milli: endpoint.weight_milli,
            priority: endpoint.priority,
            identity: text(&endpoint.identity),
            labels: endpoint.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            latency_ms: state.latency.map(in_ms),
            health: state.health,
            in_flight: state.in_flight,
            load: state.load,
            open: state.is_open(),
            breaker: BreakerView::of(state.breaker),
            routes: routes.collect(),
            draining: endpoint.draining,
            ready: state.ready,
        }
    }
}

impl BreakerView {
    fn of(state: BreakerState) -> Self {
        match state {
            BreakerState::Open => Self { state: "open", reason: None, retry_in_ms: None },
            BreakerState::Probing => Self { state: "probing", reason: None, retry_in_ms: None },
            BreakerState::Shut { reason, retry_in } => {
                Self { state: "shut", reason: Some(sentence(&reason)), retry_in_ms: Some(in_ms(retry_in)) }
            }
        }
    }
}

fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn word(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RecentlyFreed => "recently_freed",
        Algorithm::PeakEwma => "peak_ewma",
        Algorithm::LeastRequest { .. } => "least_request",
        Algorithm::RoundRobin => "round_robin",
        Algorithm::Random => "random",
        Algorithm::RingHash { .. } => "ring_hash",
        Algorithm::Maglev { .. } => "maglev",
    }
}

/// Why a replica was left alone, in words.
fn sentence(reason: &Reason) -> String {
    match *reason {
        Reason::Consecutive { class, failures } => {
            let kind = match class {
                FailureClass::Any => "failures",
                FailureClass::Server => "server errors",
                FailureClass::Gateway => "gateway errors",
                FailureClass::Local => "failures to connect",
            };
            format!("{failures} {kind} one after the other")
        }
        Reason::LowSuccessRate { successes, requests } => {
            format!("only {successes} of the last {requests} requests went well")
        }
        Reason::Deviation { rate, threshold } => {
            format!(
                "its success rate, {:.1} %, is below {:.1} %, far from its peers'",
                rate * 1e2,
                threshold * 1e2
            )
        }
        Reason::FailurePercent { percent } => format!("{percent:.0} % of its requests failed"),
        Reason::ProbeFailed => "the request that tried it failed".to_owned(),
        Reason::ProbeTimedOut => "the request that tried it did not end in time".to_owned(),
    }
}
