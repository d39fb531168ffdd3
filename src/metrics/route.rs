//! Floor 2: what is counted of one route, of its backends, and of one endpoint.

use crate::classify::outcome::Outcome;
use crate::metrics::exemplars::Exemplars;
use crate::metrics::kept::Kept;
use crate::metrics::names::Direction;
use crate::metrics::series::Ending;
use crate::metrics::stat::{Causes, Reading};
use crate::metrics::tally::{Tally, Told};
use crate::stdx::histogram::{Counts, Histogram};
use metrics::Label;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The most backends of one route that are counted apart.
pub const BACKENDS_MAX: usize = 256;

/// What names a route in labels; configuration alone says it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteNames {
    /// The label `direction`.
    pub direction: Direction,
    /// The label `dst`: the service with its port.
    pub dst: Arc<str>,
    /// The label `rt_route`; empty for the default route.
    pub route: Arc<str>,
    /// The labels `route_group` and `route_kind`.
    pub kind: RouteKind,
}

/// Which resource a route was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum RouteKind {
    /// None: it is the route of what no other is for.
    #[default]
    Default,
    /// A ServiceProfile, or another mesh's that is told as one.
    Profile,
    /// Gateway API's HTTPRoute or GRPCRoute.
    Gateway,
}

/// Everything that is counted for one route in one direction.
///
/// At rest, `requests = successes + failures + cancelled`. A request is counted when it is called, whatever becomes of
/// its body (Linkerd counts it when its body is first polled, linkerd.md §8.2), and its response once, when its body
/// ends or is dropped.
#[derive(Debug)]
pub struct RouteMetrics {
    number: u64,
    names: RouteNames,
    /// Whether it is told as gRPC, once that is known.
    grpc: OnceLock<bool>,
    calls: Tally,
    /// Its attempts beside the last one of each call, which begins and ends with the call.
    others: Tally,
    backends: Kept<Arc<str>, BackendMetrics>,
    retries: AtomicU64,
    retry_successes: AtomicU64,
    skips: [AtomicU64; SKIPS.len()],
    deadline_left: Histogram,
    exemplars: Exemplars,
    faults: [AtomicU64; 2],
    hedges: [AtomicU64; 3],
}

/// How a request was broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// It was held up.
    Delay,
    /// It was broken off.
    Abort,
}

impl Injection {
    /// All, with the values of the label `kind`.
    pub const ALL: [(Self, &'static str); 2] = [(Self::Delay, "delay"), (Self::Abort, "abort")];
}

/// What became of the second copy of a slow request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// Its answer was the caller's.
    Won,
    /// The first copy's was, and this one was cancelled.
    Lost,
    /// The budget allowed none.
    NoBudget,
}

impl Hedge {
    /// All, with the values of the label `result`.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Won, "won"), (Self::Lost, "lost"), (Self::NoBudget, "no_budget")];
}

/// What is counted of the attempts of a route at one of its backends.
#[derive(Debug)]
pub struct BackendMetrics {
    /// The backend's name, with its port.
    pub name: Arc<str>,
    /// The attempts.
    pub tally: Tally,
}

/// What is counted of the attempts at one endpoint, whatever their route.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// Its labels (linkerd.md §8.2).
    pub labels: Vec<Label>,
    /// The attempts.
    pub tally: Tally,
}

/// What a route counts beside its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retries {
    /// Retries that were granted.
    pub sent: u64,
    /// Of these, those that needed no further one.
    pub succeeded: u64,
    /// Failures that were worth a retry and got none, in order of [`SKIPS`].
    pub skips: [u64; SKIPS.len()],
}

/// Why a failure that is worth a retry gets none; the words of [`Why`](crate::retry::decide::Why), the budget first.
pub const SKIPS: [&str; 7] = ["no_budget", "attempts", "method", "body", "forbidden", "pushback", "deadline"];

impl Retries {
    /// Failures that the budget refused to retry.
    pub fn no_budget(&self) -> u64 {
        self.skips[0]
    }

    /// Failures after the last attempt.
    pub fn spent(&self) -> u64 {
        self.skips[1]
    }
}

/// Numbers routes; 64 bits do not come round.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

impl RouteMetrics {
    /// Nothing counted yet.
    pub fn new(names: RouteNames) -> Self {
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            names,
            grpc: OnceLock::new(),
            calls: Tally::default(),
            others: Tally::default(),
            backends: Kept::new(BACKENDS_MAX),
            retries: AtomicU64::new(0),
            retry_successes: AtomicU64::new(0),
            skips: Default::default(),
            deadline_left: Histogram::default(),
            exemplars: Exemplars::default(),
            faults: Default::default(),
            hedges: Default::default(),
        }
    }

    /// A number that no other route of this process has.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is told as gRPC: as most of its responses were when it was first told with any, so that no counter
    /// moves from one family to another. `found` is how they are now.
    pub(crate) fn is_grpc(&self, found: Option<bool>) -> Option<bool> {
        found.map(|found| *self.grpc.get_or_init(|| found))
    }

    /// What names it.
    pub fn names(&self) -> &RouteNames {
        &self.names
    }

    /// The label `dst`.
    pub fn dst(&self) -> &Arc<str> {
        &self.names.dst
    }

    /// The label `rt_route`; empty for the default route.
    pub fn route(&self) -> &Arc<str> {
        &self.names.route
    }

    /// The label `direction`.
    pub fn direction(&self) -> Direction {
        self.names.direction
    }

    /// Its calls, outside retries.
    pub fn calls(&self) -> &Tally {
        &self.calls
    }

    /// Its attempts, retries and hedges included. They have no latency: see [`backends`](Self::backends).
    pub fn attempts(&self) -> Told {
        self.attempts_beside(&self.calls.read())
    }

    /// The same, of a reading of its calls.
    pub(crate) fn attempts_beside(&self, calls: &Told) -> Told {
        match self.names.direction {
            Direction::Outbound => self.others.read().beside(calls),
            Direction::Inbound => Told::default(),
        }
    }

    /// What is counted of a backend; made when first asked for. For compiling, not for requests.
    pub fn backend(&self, name: &Arc<str>) -> Arc<BackendMetrics> {
        let make = |name: &Arc<str>| BackendMetrics { name: Arc::clone(name), tally: Tally::default() };
        self.backends.get(name, || "other".into(), make)
    }

    /// All its backends, in order of their names.
    pub fn backends(&self) -> &Kept<Arc<str>, BackendMetrics> {
        &self.backends
    }

    /// What became of its retries.
    pub fn retries(&self) -> Retries {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Retries {
            sent: load(&self.retries),
            succeeded: load(&self.retry_successes),
            skips: self.skips.each_ref().map(load),
        }
    }

    /// What was left of deadlines when responses' headers had come.
    pub fn left(&self) -> Counts {
        self.deadline_left.read()
    }

    /// Calls of it whose traces are recorded.
    pub fn exemplars(&self) -> &Exemplars {
        &self.exemplars
    }

    /// The totals so far.
    pub fn read(&self) -> Reading {
        let calls = self.calls.read();
        let attempts = self.attempts_beside(&calls);
        let faults = Injection::ALL.iter().map(|(injection, _)| self.injections(*injection)).sum();
        let mut reading = Reading {
            requests: calls.begun,
            successes: calls.successes(),
            failures: calls.failures(),
            cancelled: calls.cancelled(),
            no_budget: self.retries().no_budget(),
            causes: Causes { faults, ..calls.causes() },
            failed: calls.failed(),
            latency: calls.latency,
            ..Reading::default()
        };
        reading.attempts = attempts.begun;
        reading.attempt_successes = attempts.successes();
        reading.attempt_failures = attempts.failures();
        reading
    }

    /// A call began, and with it an attempt.
    #[inline]
    pub fn begin(&self) {
        self.calls.begin();
    }

    /// Its response's first frame, or its end, came after `latency`.
    #[inline]
    pub fn latency(&self, latency: Duration) {
        self.calls.latency(latency);
    }

    /// It ended, and with it its last attempt.
    #[inline]
    pub fn end(&self, ending: Ending) {
        self.calls.end(ending);
    }

    /// An attempt ended and another begins.
    pub fn retried(&self, status: Option<u16>, outcome: &Outcome) {
        self.end_attempt(status, outcome);
        self.begin_attempt();
    }

    /// One more attempt began beside or after others.
    #[inline]
    pub fn begin_attempt(&self) {
        self.others.begin();
    }

    /// One of several attempts ended.
    #[inline]
    pub fn end_attempt(&self, status: Option<u16>, outcome: &Outcome) {
        self.others.end(Ending::new(status, outcome));
    }

    /// A failure is tried again.
    pub fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A failure that was worth a retry got none, for this reason of [`SKIPS`].
    pub fn skipped(&self, why: &str) {
        if let Some(at) = SKIPS.iter().position(|word| *word == why) {
            self.skips[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A retry ended and needed no further one.
    pub fn retry_succeeded(&self) {
        self.retry_successes.fetch_add(1, Ordering::Relaxed);
    }

    /// A call was broken on purpose.
    pub fn injected(&self, injection: Injection) {
        self.faults[injection as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were broken so.
    pub fn injections(&self, injection: Injection) -> u64 {
        self.faults[injection as usize].load(Ordering::Relaxed)
    }

    /// A second copy ended, or was not allowed.
    pub fn hedged(&self, hedge: Hedge) {
        self.hedges[hedge as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many ended so.
    pub fn hedges(&self, hedge: Hedge) -> u64 {
        self.hedges[hedge as usize].load(Ordering::Relaxed)
    }

    /// So much was left of a call's deadline when its response's headers had come.
    #[inline]
    pub fn deadline_left(&self, left: Duration) {
        self.deadline_left.record(left);
    }
}
