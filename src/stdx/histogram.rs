//! Floor 0: a log-linear histogram of microseconds that many threads write without a lock.
//!
//! Each power of two is cut into 64 equal buckets, so a quantile is at most 1/128 (0.8 %) from the truth; values
//! below 64 µs are exact. The form is that of HdrHistogram (Gil Tene); ours is fixed in size, atomic and
//! mergeable, and is read by subtracting an earlier reading.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
/// 2^30 µs: about 18 minutes; what is longer is counted there.
const TOP_BITS: u32 = 30;
/// How many buckets there are.
pub const BUCKETS: usize = (TOP_BITS - SUB_BITS + 1) as usize * SUB;

/// Counts of values by size.
#[derive(Debug)]
pub struct Histogram {
    counts: Box<[AtomicU32; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([const { AtomicU32::new(0) }; BUCKETS]) }
    }
}

/// A reading of a [`Histogram`]: `(bucket, count)` in order of bucket, without empty ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Counts(Vec<(u16, u32)>);

fn bucket(micros: u64) -> usize {
    let micros = micros.min((1 << TOP_BITS) - 1);
    if micros < SUB as u64 {
        return micros as usize;
    }
    let shift = 63 - micros.leading_zeros() - SUB_BITS;
    (shift as usize + 1) * SUB + (micros >> shift) as usize - SUB
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: usize) -> f64 {
    if bucket < SUB {
        return bucket as f64;
    }
    let shift = bucket / SUB - 1;
    let low = ((bucket % SUB + SUB) as u64) << shift;
    low as f64 + ((1u64 << shift) - 1) as f64 / 2.0
}

impl Histogram {
    /// Counts one value. One atomic addition.
    #[inline]
    pub fn record(&self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far. Counts wrap at 2^32; [`Counts::since`] is right across one wrap.
    pub fn read(&self) -> Counts {
        let counts = self.counts.iter().enumerate();
        let read = counts.map(|(bucket, count)| (bucket as u16, count.load(Ordering::Relaxed)));
        Counts(read.filter(|(_, count)| *count != 0).collect())
    }
}

impl Counts {
    /// How many values there are.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// What was counted after `earlier` was read.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.combine(earlier, u32::wrapping_sub)
    }

    /// Both together; exact.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        self.combine(other, u32::saturating_add)
    }

    fn combine(&self, other: &Self, f: impl Fn(u32, u32) -> u32) -> Self {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut out = Vec::with_capacity(self.0.len());
        loop {
            let key = match (a.peek(), b.peek()) {
                (None, None) => return Self(out),
                (Some(x), None) => x.0,
                (None, Some(y)) => y.0,
                (Some(x), Some(y)) => x.0.min(y.0),
            };
            let x = a.next_if(|x| x.0 == key).map_or(0, |x| x.1);
            let y = b.next_if(|y| y.0 == key).map_or(0, |y| y.1);
            let count = f(x, y);
            if count != 0 {
                out.push((key, count));
            }
        }
    }

    /// The value that a share `q` (0 to 1) of the values do not exceed; `None` without values. The error is at
    /// most 0.8 % of it.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total = self.total();
        let rank = ((q.clamp(0.0, 1.0) * total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in &self.0 {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(Duration::from_secs_f64(middle(usize::from(*bucket)) / 1e6));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_quantile_is_within_one_percent_of_the_sorted_truth(
            values in proptest::collection::vec(1u64..1_000_000_000, 1..300),
            q in 0.0f64..=1.0,
        ) {
            let histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(Duration::from_micros(*v)));
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1) - 1;
            let seen = histogram.read().quantile(q).unwrap().as_secs_f64() * 1e6;
            let truth = sorted[rank] as f64;
            prop_assert!((seen - truth).abs() <= truth * 0.01, "{seen} for {truth}");
        }

        #[test]
        fn a_difference_and_a_sum_are_exact(
            first in proptest::collection::vec(0u64..10_000, 0..50),
            second in proptest::collection::vec(0u64..10_000, 0..50),
        ) {
            let (both, one, two) = (Histogram::default(), Histogram::default(), Histogram::default());
            first.iter().for_each(|v| { both.record(Duration::from_micros(*v)); one.record(Duration::from_micros(*v)); });
            let before = both.read();
            second.iter().for_each(|v| { both.record(Duration::from_micros(*v)); two.record(Duration::from_micros(*v)); });
            prop_assert_eq!(both.read().since(&before), two.read());
            prop_assert_eq!(one.read().merge(&two.read()), both.read());
        }
    }

    #[test]
    fn extremes_are_counted() {
        let histogram = Histogram::default();
        for value in [Duration::ZERO, Duration::MAX] {
            histogram.record(value);
        }
        assert_eq!(histogram.read().total(), 2);
        assert_eq!(Counts::default().quantile(0.5), None);
        assert_eq!(bucket((1 << TOP_BITS) - 1), BUCKETS - 1);
    }
}
