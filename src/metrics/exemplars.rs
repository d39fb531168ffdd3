//! Floor 2: traces of calls that took so and so long, for whoever looks at a histogram and asks which call that was.

use crate::trace::id::{SpanId, TraceId};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// One for each power of two of microseconds, up to 18 minutes: at most one bucket of any histogram is wider.
const SLOTS: usize = 31;

/// A call whose trace is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exemplar {
    /// Its trace.
    pub trace: TraceId,
    /// Its span.
    pub span: SpanId,
    /// How long it took.
    pub latency: Duration,
    /// When it was answered.
    pub at: SystemTime,
}

/// The newest traced call of each size of latency: 2.5 KiB for a route that ever had one.
#[derive(Debug, Default)]
pub struct Exemplars {
    slots: OnceLock<Box<[Slot; SLOTS]>>,
}

type Slot = Mutex<Option<Exemplar>>;

impl Exemplars {
    /// Remembers a call in place of the one before of its size. Only for calls that are traced.
    pub fn remember(&self, exemplar: Exemplar) {
        let slots = self.slots.get_or_init(|| Box::new(std::array::from_fn(|_| Slot::default())));
        let micros = exemplar.latency.as_micros().max(1);
        let at = usize::try_from(micros.ilog2()).unwrap_or(SLOTS).min(SLOTS - 1);
        if let Some(slot) = slots.get(at) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(exemplar);
        }
    }

    /// All that are remembered, the shortest first.
    pub fn all(&self) -> Vec<Exemplar> {
        let slots = self.slots.get().into_iter().flat_map(|slots| slots.iter());
        slots.filter_map(|slot| *slot.lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_size_is_remembered() {
        let exemplars = Exemplars::default();
        assert!(exemplars.all().is_empty());
        let one = |n: u8, micros: u64| Exemplar {
            trace: TraceId::new([n; 16]).unwrap(),
            span: SpanId::new([n; 8]).unwrap(),
            latency: Duration::from_micros(micros),
            at: SystemTime::UNIX_EPOCH,
        };
        let all = [one(1, 0), one(2, 900), one(3, 1_000), one(4, 1_500), one(5, u64::MAX)];
        all.iter().for_each(|exemplar| exemplars.remember(*exemplar));
        assert_eq!(exemplars.all(), [all[0], all[2], all[3], all[4]]);
    }
}
