//! Floor 2: the resolved handles of one route, and what is counted when.

use crate::classify::outcome::{Outcome, Verdict};
use crate::metrics::names::{self, Direction};
use crate::metrics::registry::Registry;
use crate::metrics::series::{Ending, EndingCounters};
use crate::metrics::stat::{Reading, Stat};
use metrics::{Counter, Histogram, Label};
use std::sync::Arc;
use std::time::Duration;

/// Everything that is counted for one route in one direction.
///
/// Conservation: at rest, `requests = successes + failures + cancelled`. A request is counted when it is called,
/// whatever becomes of its body (Linkerd counts it when its body is first polled, linkerd.md §8.2).
#[derive(Debug)]
pub struct RouteMetrics {
    direction: Direction,
    dst: Arc<str>,
    route: Arc<str>,
    requests: Counter,
    responses: EndingCounters,
    latency: Histogram,
    actual_requests: Counter,
    actual_responses: EndingCounters,
    retryable: Counter,
    no_budget: Counter,
    stat: Stat,
}

impl RouteMetrics {
    /// Handles for `route` of `dst`; an empty route is the default one and has no `rt_route` label.
    pub fn new(registry: &Registry, direction: Direction, dst: &Arc<str>, route: &Arc<str>) -> Self {
        let mut labels = vec![
            Label::from_static_parts("direction", direction.as_str()),
            Label::new("dst", Arc::clone(dst)),
        ];
        if !route.is_empty() {
            labels.push(Label::new("rt_route", Arc::clone(route)));
        }
        let counter = |family| registry.counter(family, labels.clone());
        // Nobody retries what arrives.
        let outbound = |family, labels: &Vec<Label>| match direction {
            Direction::Outbound => registry.counter(family, labels.clone()),
            Direction::Inbound => Counter::noop(),
        };
        let endings = |family| EndingCounters::new(registry.clone(), family, labels.clone());
        let mut skipped = labels.clone();
        skipped.push(Label::from_static_parts("skipped", "no_budget"));
        Self {
            direction,
            dst: Arc::clone(dst),
            route: Arc::clone(route),
            requests: counter(names::ROUTE_REQUEST),
            responses: endings(names::ROUTE_RESPONSE),
            latency: registry.histogram(names::ROUTE_LATENCY, labels.clone()),
            actual_requests: outbound(names::ROUTE_ACTUAL_REQUEST, &labels),
            actual_responses: endings(names::ROUTE_ACTUAL_RESPONSE),
            retryable: outbound(names::ROUTE_RETRYABLE, &labels),
            no_budget: outbound(names::ROUTE_RETRYABLE, &skipped),
            stat: Stat::default(),
        }
    }

    /// The label `dst`.
    pub fn dst(&self) -> &Arc<str> {
        &self.dst
    }

    /// The label `rt_route`; empty for the default route.
    pub fn route(&self) -> &Arc<str> {
        &self.route
    }

    /// The label `direction`.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The totals so far.
    pub fn read(&self) -> Reading {
        self.stat.read()
    }

    /// A call began, and with it its first attempt.
    #[inline]
    pub fn begin(&self) {
        self.requests.increment(1);
        self.stat.begin();
        self.begin_attempt();
    }

    /// Its response's first frame, or its end, came after `latency`.
    #[inline]
    pub fn latency(&self, latency: Duration) {
        self.latency.record(latency.as_secs_f64() * 1e3);
        self.stat.latency(latency);
    }

    /// It ended, and with it its last attempt; `status` is that of its response, if there was one.
    #[inline]
    pub fn end(&self, status: Option<u16>, outcome: &Outcome) {
        self.stat.end(outcome);
        if outcome.verdict != Verdict::Cancelled {
            self.responses.increment(Ending::new(status, outcome));
        }
        self.end_attempt(status, outcome);
    }

    /// An attempt ended and another begins.
    pub fn retried(&self, status: Option<u16>, outcome: &Outcome) {
        self.end_attempt(status, outcome);
        self.begin_attempt();
    }

    /// One more attempt began beside or after others.
    #[inline]
    pub fn begin_attempt(&self) {
        if self.direction == Direction::Outbound {
            self.actual_requests.increment(1);
            self.stat.begin_attempt();
        }
    }

    /// One of several attempts ended.
    #[inline]
    pub fn end_attempt(&self, status: Option<u16>, outcome: &Outcome) {
        if self.direction == Direction::Outbound {
            self.stat.end_attempt(outcome);
            if outcome.verdict != Verdict::Cancelled {
                self.actual_responses.increment(Ending::new(status, outcome));
            }
        }
    }

    /// A failure could be tried again; `granted` says whether the budget allowed it.
    pub fn retryable(&self, granted: bool) {
        self.retryable.increment(1);
        if !granted {
            self.no_budget.increment(1);
            self.stat.no_budget();
        }
    }
}
