//! Floor 2: too few requests of a window went well (Linkerd's `unified` failure accrual).

use crate::breaker::detect::{Detect, lowers_rate};
use crate::breaker::event::Reason;
use crate::classify::outcome::Outcome;
use crate::stdx::moment::Moment;
use crate::stdx::sync::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The buckets of a window.
pub const BUCKETS: usize = 10;
/// The shortest window: a bucket is at least 1 ms.
pub const WINDOW_MIN: Duration = Duration::from_millis(BUCKETS as u64);

const COUNT_BITS: u32 = 22;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const EPOCH_MASK: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

/// Requests and successes of the last window, in ten buckets of one word each: the number of the bucket's time
/// (20 bits), requests and successes (22 bits each, where they stay).
///
/// Many threads write at once; an end that meets another's is tried again once and then not counted.
#[derive(Debug)]
pub struct Window {
    bucket_micros: u64,
    buckets: [AtomicU64; BUCKETS],
}

impl Window {
    /// An empty window over the last `length`, at least [`WINDOW_MIN`].
    pub fn new(length: Duration) -> Self {
        let micros = u64::try_from(length.max(WINDOW_MIN).as_micros()).unwrap_or(u64::MAX);
        Self { bucket_micros: micros / BUCKETS as u64, buckets: Default::default() }
    }

    /// Numbers from 1: an untouched bucket belongs to no time.
    #[inline]
    fn epoch(&self, now: Moment) -> u64 {
        now.micros() / self.bucket_micros + 1
    }

    /// A request ended.
    #[inline]
    pub fn record(&self, now: Moment, success: bool) {
        let epoch = self.epoch(now);
        let bucket = &self.buckets[(epoch % BUCKETS as u64) as usize];
        let mut old = bucket.load(Relaxed);
        for _ in 0..2 {
            let (requests, successes) = if old >> (2 * COUNT_BITS) == epoch & EPOCH_MASK {
                (old >> COUNT_BITS & COUNT_MAX, old & COUNT_MAX)
            } else {
                (0, 0)
            };
            if requests == COUNT_MAX {
                return;
            }
            let counts = (requests + 1) << COUNT_BITS | (successes + u64::from(success));
            let new = (epoch & EPOCH_MASK) << (2 * COUNT_BITS) | counts;
            match bucket.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    /// Successes and requests of the window that ends now.
    #[inline]
    pub fn counts(&self, now: Moment) -> (u32, u32) {
        let epoch = self.epoch(now);
        let (mut successes, mut requests) = (0, 0);
        for back in 0..(BUCKETS as u64).min(epoch) {
            let word = self.buckets[((epoch - back) % BUCKETS as u64) as usize].load(Relaxed);
            if word >> (2 * COUNT_BITS) == (epoch - back) & EPOCH_MASK {
                requests += word >> COUNT_BITS & COUNT_MAX;
                successes += word & COUNT_MAX;
            }
        }
        (successes as u32, requests as u32)
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }
}

/// Says when the success rate of a window is below a threshold, once there are enough requests in it.
#[derive(Debug)]
pub struct SuccessRate {
    threshold: f64,
    min_requests: u32,
    window: Window,
    /// Whether there are failures whose window has not been seen well since: without, a success need not look.
    suspect: AtomicBool,
}

impl SuccessRate {
    /// A detector for a rate below `threshold` (0 to 1) of at least `min_requests` and at least one.
    pub fn new(threshold: f64, window: Duration, min_requests: u32) -> Self {
        Self { threshold, min_requests, window: Window::new(window), suspect: AtomicBool::new(false) }
    }

    /// What the window that ends now says.
    pub fn judge(&self, now: Moment) -> Option<Reason> {
        let (successes, requests) = self.window.counts(now);
        if successes == requests {
            self.suspect.store(false, Relaxed);
        }
        let enough = requests > 0 && requests >= self.min_requests;
        (enough && f64::from(successes) / f64::from(requests) < self.threshold)
            .then_some(Reason::LowSuccessRate { successes, requests })
    }
}

impl Detect for SuccessRate {
    #[inline]
    fn record(&self, now: Moment, outcome: &Outcome) -> Option<Reason> {
        let success = !lowers_rate(outcome);
        self.window.record(now, success);
        if success && !self.suspect.load(Relaxed) {
            return None;
        }
        if !success {
            self.suspect.store(true, Relaxed);
        }
        // A success may be the one that makes them enough.
        self.judge(now)
    }

    fn counts(&self, outcome: &Outcome) -> bool {
        lowers_rate(outcome)
    }

    fn reset(&self) {
        self.window.reset();
        self.suspect.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_success_may_be_the_request_that_makes_them_enough() {
        use crate::classify::outcome::{Cause, Verdict};
        let detector = SuccessRate::new(0.8, Duration::from_secs(10), 5);
        let end = |verdict| detector.record(Moment::from_micros(1), &Outcome::new(verdict, Cause::Status(0)));
        assert!((0..4).all(|_| end(Verdict::Failure).is_none()));
        assert_eq!(end(Verdict::Success), Some(Reason::LowSuccessRate { successes: 1, requests: 5 }));
    }

    proptest! {
        /// The model: a list of all ends, of which those count whose bucket is one of the last ten.
        #[test]
        fn a_window_counts_what_a_list_counts(
            length_ms in 1u64..20_000,
            steps in proptest::collection::vec((0u64..5_000, any::<bool>()), 1..200),
        ) {
            let window = Window::new(Duration::from_millis(length_ms));
            let mut list = Vec::new();
            let mut millis = 0;
            for (step, success) in steps {
                millis += step;
                let now = Moment::from_micros(millis * 1000);
                window.record(now, success);
                list.push((now, success));
                let bucket = length_ms.max(10) * 100;
                let recent = |at: &Moment| at.micros() / bucket + BUCKETS as u64 > now.micros() / bucket;
                let held: Vec<bool> = list.iter().filter(|(at, _)| recent(at)).map(|(_, ok)| *ok).collect();
                let expected = (held.iter().filter(|ok| **ok).count() as u32, held.len() as u32);
                prop_assert_eq!(window.counts(now), expected);
            }
        }
    }
}
