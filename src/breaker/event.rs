//! Floor 2: what became of an endpoint's breaker, and why.

use crate::profile::settings::FailureClass;
use crate::stdx::moment::Moment;
use std::time::Duration;

/// Why an endpoint was left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// So many failures one after the other.
    Consecutive {
        /// Which were counted.
        class: FailureClass,
        /// How many.
        failures: u32,
    },
    /// Too few requests of the window went well.
    LowSuccessRate {
        /// Those that went well.
        successes: u32,
        /// All of them.
        requests: u32,
    },
    /// It does so much worse than its peers.
    Deviation {
        /// Its success rate, 0 to 1.
        rate: f64,
        /// The rate below which an endpoint is left alone now.
        threshold: f64,
    },
    /// The share of failures reached the threshold.
    FailurePercent {
        /// Its failures, in percent.
        percent: f64,
    },
    /// The probe failed.
    ProbeFailed,
    /// The probe did not end in time.
    ProbeTimedOut,
}

impl Reason {
    /// A short word for logs and metrics labels; one of a fixed set.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Consecutive { .. } => "consecutive_failures",
            Self::LowSuccessRate { .. } => "low_success_rate",
            Self::Deviation { .. } => "success_rate_deviation",
            Self::FailurePercent { .. } => "failure_percent",
            Self::ProbeFailed => "probe_failed",
            Self::ProbeTimedOut => "probe_timed_out",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    /// The endpoint is left alone for so long.
    Shut {
        /// Why.
        reason: Reason,
        /// How long.
        wait: Duration,
    },
    /// One request was let in.
    Probed,
    /// It is used again.
    Opened,
}

impl What {
    /// Short words for logs and metric labels, each of a fixed set: what, and why.
    pub fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::Shut { reason, .. } => ("shut", reason.as_str()),
            Self::Probed => ("probed", ""),
            Self::Opened => ("opened", ""),
        }
    }
}

/// One change of one endpoint's breaker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// Counts all events of a service from 0.
    pub number: u64,
    /// When.
    pub at: Moment,
    /// The endpoint's number.
    pub endpoint: u32,
    /// What happened.
    pub what: What,
}
