//! Floor 2: what is counted of one limit: whom it refused and how long others waited.

use crate::metrics::families::{LIMIT_IN_FLIGHT, LIMIT_LEVEL, LIMIT_QUEUE, LIMIT_SHED};
use crate::metrics::ledger::{Collect, Sink};
use crate::stdx::histogram::Histogram;
use metrics::Label;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Why a request was refused before it was sent: the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Nobody more may wait for a place.
    QueueFull,
    /// It waited too long in a queue that stands.
    QueueDelay,
    /// It could not have ended by its deadline.
    Deadline,
    /// It waited for as long as one may.
    WaitMax,
    /// The rate of all requests.
    RateTotal,
    /// The rate of one client.
    RateIdentity,
    /// The rate of the clients that an override names.
    RateOverride,
    /// The rate of one value of a key.
    RateKey,
}

impl Reason {
    /// All, in order.
    pub const ALL: [Self; 8] = [
        Self::QueueFull,
        Self::QueueDelay,
        Self::Deadline,
        Self::WaitMax,
        Self::RateTotal,
        Self::RateIdentity,
        Self::RateOverride,
        Self::RateKey,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueDelay => "queue_delay",
            Self::Deadline => "deadline",
            Self::WaitMax => "wait_max",
            Self::RateTotal => "total",
            Self::RateIdentity => "identity",
            Self::RateOverride => "override",
            Self::RateKey => "key",
        }
    }
}

/// The places of a limit and how many are taken, to be read at a scrape.
pub type Places = Box<dyn Fn() -> (u32, u32) + Send + Sync>;

/// What is counted of one limit.
pub struct LimitCounts {
    labels: [Label; 2],
    places: Option<Places>,
    refused: [AtomicU64; Reason::ALL.len()],
    waited: Histogram,
    seen: AtomicBool,
}

impl fmt::Debug for LimitCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitCounts").field("labels", &self.labels).finish_non_exhaustive()
    }
}

impl LimitCounts {
    /// Nothing counted yet of the limit called `limit` of the service `dst`.
    pub fn new(dst: &Arc<str>, limit: impl Into<Arc<str>>, places: Option<Places>) -> Self {
        let labels = [Label::new("dst", Arc::clone(dst)), Label::new("limit", limit.into())];
        Self {
            labels,
            places,
            refused: Default::default(),
            waited: Histogram::default(),
            seen: AtomicBool::new(false),
        }
    }

    /// Whether this is asked for the first time.
    pub(crate) fn is_new(&self) -> bool {
        !self.seen.swap(true, Ordering::Relaxed)
    }

    /// A request was refused.
    pub fn refused(&self, reason: Reason) {
        if let Some(counter) = self.refused.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request got its place after so long; only those that had to wait.
    pub fn waited(&self, time: Duration) {
        self.waited.record(time);
    }

    /// How many were refused for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.refused.get(reason as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

impl Collect for LimitCounts {
    fn collect(&self, sink: &mut Sink<'_>) {
        if let Some(places) = &self.places {
            let (limit, taken) = places();
            sink.gauge(&LIMIT_LEVEL, &self.labels, f64::from(limit));
            sink.gauge(&LIMIT_IN_FLIGHT, &self.labels, f64::from(taken));
            sink.histogram(&LIMIT_QUEUE, &self.labels, &self.waited.read());
        }
        for reason in Reason::ALL.into_iter().filter(|reason| self.of(*reason) > 0) {
            let reason_label = Label::from_static_parts("reason", reason.as_str());
            let [dst, limit] = self.labels.clone();
            sink.counter(&LIMIT_SHED, &[dst, limit, reason_label], self.of(reason));
        }
    }
}
