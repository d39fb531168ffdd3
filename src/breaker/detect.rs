//! Floor 2: what a detector is, and the memory of one endpoint's detectors.

use crate::breaker::consecutive::Consecutive;
use crate::breaker::event::Reason;
use crate::breaker::outlier::Tally;
use crate::breaker::success_rate::SuccessRate;
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::profile::settings::{Detector, FailureClass, Overload};
use crate::stdx::moment::Moment;

/// Watches one endpoint's requests end, and says when it is to be left alone.
///
/// Any number of threads call it at once; none waits for another.
pub trait Detect {
    /// A request ended at `now`. `Some` when the endpoint is to be left alone.
    fn record(&self, now: Moment, outcome: &Outcome) -> Option<Reason>;
    /// Whether an end so counts against the endpoint; of a probe it decides.
    fn counts(&self, outcome: &Outcome) -> bool;
    /// Forgets everything: the endpoint came back.
    fn reset(&self);
}

/// The memory of one endpoint's detectors.
#[derive(Debug)]
pub struct Chart {
    detectors: Box<[Memory]>,
    overload: Overload,
}

/// One without detectors.
impl Default for Chart {
    fn default() -> Self {
        Self::new(&[], Overload::Rate)
    }
}

/// The detectors there are. A closed list, so that a call needs no indirection.
#[derive(Debug)]
pub(crate) enum Memory {
    Consecutive(Consecutive),
    SuccessRate(SuccessRate),
    Tally(Tally),
}

impl Chart {
    /// A healthy endpoint's chart. The consecutive detectors are asked first, as Linkerd has it.
    pub fn new(detectors: &[Detector], overload: Overload) -> Self {
        let mut detectors: Vec<Memory> = detectors.iter().map(Memory::new).collect();
        detectors.sort_by_key(|memory| match memory {
            Memory::Consecutive(_) => 0,
            Memory::SuccessRate(_) => 1,
            Memory::Tally(_) => 2,
        });
        Self { detectors: detectors.into_boxed_slice(), overload }
    }

    /// An end as the detectors are to see it.
    #[inline]
    fn seen(&self, outcome: &Outcome) -> Outcome {
        match self.overload {
            Overload::Count if is_overload(outcome) => Outcome { verdict: Verdict::Failure, ..*outcome },
            Overload::Ignore if is_overload(outcome) => Outcome::new(Verdict::Success, Cause::Status(200)),
            Overload::Rate | Overload::Count | Overload::Ignore => *outcome,
        }
    }

    /// Whether the time of an end matters, also when it went well.
    #[inline]
    pub(crate) fn is_timed(&self) -> bool {
        self.detectors.iter().any(|memory| matches!(memory, Memory::SuccessRate(_)))
    }

    /// The tallies, in the order of the settings.
    pub(crate) fn tallies(&self) -> impl Iterator<Item = &Tally> {
        self.detectors.iter().filter_map(|memory| match memory {
            Memory::Tally(tally) => Some(tally),
            Memory::Consecutive(_) | Memory::SuccessRate(_) => None,
        })
    }
}

impl Detect for Chart {
    #[inline]
    fn record(&self, now: Moment, outcome: &Outcome) -> Option<Reason> {
        let outcome = &self.seen(outcome);
        let mut found = None;
        for detector in &self.detectors {
            let reason = detector.record(now, outcome);
            found = found.or(reason);
        }
        found
    }

    fn counts(&self, outcome: &Outcome) -> bool {
        let outcome = &self.seen(outcome);
        self.detectors.iter().any(|detector| detector.counts(outcome))
    }

    fn reset(&self) {
        self.detectors.iter().for_each(Detect::reset);
    }
}

impl Memory {
    fn new(detector: &Detector) -> Self {
        match *detector {
            Detector::Consecutive { class, threshold } => {
                Self::Consecutive(Consecutive::new(class, threshold))
            }
            Detector::SuccessRate { threshold, window, min_requests } => {
                Self::SuccessRate(SuccessRate::new(threshold, window, min_requests))
            }
            Detector::Deviation { .. } | Detector::FailurePercent { .. } => Self::Tally(Tally::default()),
        }
    }
}

impl Detect for Memory {
    #[inline]
    fn record(&self, now: Moment, outcome: &Outcome) -> Option<Reason> {
        match self {
            Self::Consecutive(memory) => memory.record(now, outcome),
            Self::SuccessRate(memory) => memory.record(now, outcome),
            Self::Tally(memory) => memory.record(now, outcome),
        }
    }

    fn counts(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Consecutive(memory) => memory.counts(outcome),
            Self::SuccessRate(memory) => memory.counts(outcome),
            Self::Tally(memory) => memory.counts(outcome),
        }
    }

    fn reset(&self) {
        match self {
            Self::Consecutive(memory) => memory.reset(),
            Self::SuccessRate(memory) => memory.reset(),
            Self::Tally(memory) => memory.reset(),
        }
    }
}

/// Whether a detector of this class counts the end of a request as a failure. Envoy's classes count statuses
/// whatever the classifier says of them; ours asks the classifier.
#[inline]
pub fn is_failure(class: FailureClass, outcome: &Outcome) -> bool {
    if class == FailureClass::Any {
        return outcome.verdict == Verdict::Failure;
    }
    match outcome.cause {
        Cause::Status(status) => match class {
            FailureClass::Any | FailureClass::Local => false,
            FailureClass::Server => status >= 500,
            FailureClass::Gateway => matches!(status, 502..=504),
        },
        // Envoy maps gRPC codes to HTTP statuses: UNKNOWN, INTERNAL and DATA_LOSS to 500, UNIMPLEMENTED to 501,
        // UNAVAILABLE to 503, DEADLINE_EXCEEDED to 504.
        Cause::Grpc(code) => match class {
            FailureClass::Any | FailureClass::Local => false,
            FailureClass::Server => matches!(code, 2 | 4 | 12 | 13 | 14 | 15),
            FailureClass::Gateway => matches!(code, 4 | 14),
        },
        Cause::Timeout(_) | Cause::Connect | Cause::Refused | Cause::Reset => true,
        Cause::Local | Cause::Dropped => false,
    }
}

/// Whether a success rate counts it as a failure: also what the peer turned away because it had too much to do
/// (HTTP 429, gRPC RESOURCE_EXHAUSTED; linkerd.md §4.2).
#[inline]
pub fn lowers_rate(outcome: &Outcome) -> bool {
    outcome.is_failure() || is_overload(outcome)
}

/// Whether the peer turned it away because it had too much to do.
#[inline]
fn is_overload(outcome: &Outcome) -> bool {
    matches!(outcome.cause, Cause::Status(429) | Cause::Grpc(8))
}
