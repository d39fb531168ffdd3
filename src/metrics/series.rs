//! Floor 2: counters of one family that differ by how a response ended; each resolved when first seen.

use crate::classify::outcome::{Cause, Outcome};
use crate::error::Scope;
use crate::metrics::registry::Registry;
use metrics::{Counter, Label};
use std::sync::OnceLock;

/// The most series of one family and route: all statuses in common use, with room; more share one series
/// labelled `other`.
pub const SERIES_MAX: usize = 64;

/// What tells the series of a response apart.
///
/// Numbers only: to compare two empty texts reads from an address that is none, which costs some processors 100 ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    status: u16,
    grpc: u8,
    failure: bool,
    error: ErrorWord,
}

const NO_GRPC: u8 = u8::MAX;

impl Ending {
    /// The series of an outcome whose response had this HTTP status (`None`: there was none).
    pub fn new(status: Option<u16>, outcome: &Outcome) -> Self {
        let grpc = if let Cause::Grpc(code) = outcome.cause { code } else { NO_GRPC };
        Self {
            status: status.unwrap_or(0),
            grpc,
            failure: outcome.is_failure(),
            error: ErrorWord::of(outcome.cause),
        }
    }

    fn slot(self) -> usize {
        let mixed = usize::from(self.status).wrapping_mul(31) ^ usize::from(self.grpc).wrapping_mul(7);
        (mixed ^ (usize::from(self.failure) << 3) ^ self.error as usize) % SERIES_MAX
    }

    /// The labels, as Linkerd has them (linkerd.md §8.2): no `status_code` without a response.
    fn labels(self, base: &[Label]) -> Vec<Label> {
        let mut labels = base.to_vec();
        if self.status != 0 {
            labels.push(Label::new("status_code", self.status.to_string()));
        }
        let class = if self.failure { "failure" } else { "success" };
        labels.push(Label::from_static_parts("classification", class));
        let grpc = if self.grpc == NO_GRPC { String::new() } else { self.grpc.to_string() };
        labels.push(Label::new("grpc_status", grpc));
        labels.push(Label::from_static_parts("error", self.error.text()));
        labels
    }
}

/// The label `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorWord {
    None,
    IdleTimeout,
    Timeout,
    Connect,
    Refused,
    Reset,
    Unsent,
    Cancelled,
}

impl ErrorWord {
    fn of(cause: Cause) -> Self {
        match cause {
            Cause::Status(_) | Cause::Grpc(_) => Self::None,
            Cause::Timeout(Scope::Idle) => Self::IdleTimeout,
            Cause::Timeout(_) => Self::Timeout,
            Cause::Connect => Self::Connect,
            Cause::Refused => Self::Refused,
            Cause::Reset => Self::Reset,
            Cause::Local => Self::Unsent,
            Cause::Dropped => Self::Cancelled,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::None => "",
            Self::IdleTimeout => "idle timeout",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unsent => "unsent",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The counters of one family, by ending.
#[derive(Debug)]
pub struct EndingCounters {
    registry: Registry,
    family: &'static str,
    base: Vec<Label>,
    table: OnceLock<Box<Table>>,
}

struct Table {
    slots: [OnceLock<(Ending, Counter)>; SERIES_MAX],
    other: Counter,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

impl EndingCounters {
    /// Counters of `family` with `base` labels; none exists until something ends.
    pub fn new(registry: Registry, family: &'static str, base: Vec<Label>) -> Self {
        Self { registry, family, base, table: OnceLock::new() }
    }

    /// Counts one ending. The first of its kind resolves a handle; all others find it by a short probe.
    pub fn increment(&self, ending: Ending) {
        let table = self.table.get_or_init(|| {
            let mut labels = self.base.clone();
            labels.push(Label::from_static_parts("status_code", "other"));
            Box::new(Table {
                slots: [const { OnceLock::new() }; SERIES_MAX],
                other: self.registry.counter(self.family, labels),
            })
        });
        let start = ending.slot();
        for offset in 0..SERIES_MAX {
            let slot = &table.slots[(start + offset) % SERIES_MAX];
            let (key, counter) =
                slot.get_or_init(|| (ending, self.registry.counter(self.family, ending.labels(&self.base))));
            if *key == ending {
                return counter.increment(1);
            }
        }
        table.other.increment(1);
    }
}
