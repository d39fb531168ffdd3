//! Floor 2: what calls of a route took lately, and when a second copy of a slow one is sent.

use crate::profile::settings::HedgeSettings;
use crate::stdx::epoch::Epoch;
use crate::stdx::histogram::Counts;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The least calls that say what is usual: of fewer, the 99th percentile is one call.
pub const SAMPLES_MIN: u64 = 100;
/// How often it is measured anew (Finagle's backup requests).
pub const REFRESH: Duration = Duration::from_secs(3);
/// The least wait for a second copy (Finagle's backup requests): what answers faster gains nothing by it.
pub const AFTER_MIN: Duration = Duration::from_millis(1);

/// Unknown, in a word of microseconds.
const UNKNOWN: u64 = 0;

/// What the calls of a route took lately. It is asked off the path: reading the route's histogram takes microseconds, and
/// happens once every [`REFRESH`] at most.
///
/// A quantile of calls is one of first attempts, though calls may be hedged: whatever is slower than the wait before the
/// second copy was slower as a first attempt too.
#[derive(Debug, Default)]
pub struct Recent {
    begun: Epoch,
    next: AtomicU64,
    typical: AtomicU64,
    slow: AtomicU64,
    last: Mutex<Counts>,
}

impl Recent {
    /// The median; `None` before enough was seen. `read` tells all latencies so far.
    pub fn typical(&self, now: Instant, read: impl FnOnce() -> Counts) -> Option<Duration> {
        self.refresh(None, now, read);
        known(&self.typical)
    }

    /// When a second copy is sent; `None` before enough was seen.
    pub fn hedge_after(
        &self,
        settings: &HedgeSettings,
        now: Instant,
        read: impl FnOnce() -> Counts,
    ) -> Option<Duration> {
        match settings {
            HedgeSettings::After(after) => Some(*after),
            HedgeSettings::Quantile(thousandths) => {
                self.refresh(Some(*thousandths), now, read);
                known(&self.slow).map(|slow| slow.max(AFTER_MIN))
            }
        }
    }

    fn refresh(&self, thousandths: Option<u16>, now: Instant, read: impl FnOnce() -> Counts) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = micros(self.begun.at(now)).saturating_add(1);
        let next = self.next.load(Ordering::Relaxed);
        let later = at.saturating_add(micros(REFRESH));
        if at < next || self.next.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let all = read();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = all.since(&last);
        if lately.total() < SAMPLES_MIN {
            return;
        }
        *last = all;
        let store = |word: &AtomicU64, quantile| {
            let time = lately.quantile(quantile).map_or(UNKNOWN, |time| micros(time).max(1));
            word.store(time, Ordering::Relaxed);
        };
        store(&self.typical, 0.5);
        if let Some(thousandths) = thousandths {
            store(&self.slow, f64::from(thousandths) / 1000.0);
        }
    }
}

fn known(word: &AtomicU64) -> Option<Duration> {
    match word.load(Ordering::Relaxed) {
        UNKNOWN => None,
        micros => Some(Duration::from_micros(micros)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;
    use crate::stdx::histogram::Histogram;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Whether two times are one, but for the histogram's error.
    fn near(time: Option<Duration>, expected: u64) -> bool {
        time.is_some_and(|time| time.abs_diff(MS(expected)) * 50 < MS(expected))
    }

    #[test]
    fn what_is_slow_is_measured_of_the_last_while() {
        let (recent, histogram, start) = (Recent::default(), Histogram::default(), clock::now());
        let settings = HedgeSettings::Quantile(950);
        let after = |at| recent.hedge_after(&settings, start + MS(at), || histogram.read());
        (1..=99).for_each(|ms| histogram.record(MS(ms)));
        assert_eq!(after(0), None, "too few were seen");
        histogram.record(MS(100));
        assert_eq!(after(2999), None, "it is not measured with each call");
        assert!(near(after(3000), 95));
        (0..200).for_each(|_| histogram.record(MS(500)));
        assert!(near(after(5999), 95));
        assert!(near(after(6000), 500), "what came before is forgotten");
        assert!(near(recent.typical(start + MS(6001), || histogram.read()), 500));
        assert!(near(after(60_000), 500), "nothing new was seen since");
    }

    #[test]
    fn a_fixed_time_needs_no_measuring_and_a_fast_route_waits_a_little() {
        let (recent, now) = (Recent::default(), clock::now());
        let fixed = HedgeSettings::After(MS(20));
        assert_eq!(recent.hedge_after(&fixed, now, || panic!("nobody reads")), Some(MS(20)));
        let histogram = Histogram::default();
        (0..100).for_each(|_| histogram.record(Duration::from_micros(30)));
        let after = recent.hedge_after(&HedgeSettings::Quantile(990), now, || histogram.read());
        assert_eq!(after, Some(AFTER_MIN));
    }
}
