//! Floor 0: a log-linear histogram of microseconds that many threads write without a lock.
//!
//! Each power of two is cut into 64 equal buckets, so a quantile is at most 1/128 (0.8 %) from the truth; values
//! below 64 µs are exact. The form is that of HdrHistogram (Gil Tene); ours is fixed in size, atomic and
//! mergeable, and is read by subtracting an earlier reading.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Each power of two is cut into two to the power of this.
pub const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
/// 2^30 µs: about 18 minutes; what is longer is counted there.
pub const TOP_BITS: u32 = 30;
const OCTAVES: usize = (TOP_BITS - SUB_BITS + 1) as usize;
/// How many buckets there are.
pub const BUCKETS: usize = OCTAVES * SUB;

/// The buckets of one power of two.
type Octave = Box<[AtomicU64; SUB]>;

/// Counts of values by size.
///
/// A power of two costs half a kibibyte, and only once a value falls into it: what answers in 1 to 8 ms costs 2 KiB.
#[derive(Debug)]
pub struct Histogram {
    octaves: [OnceLock<Octave>; OCTAVES],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { octaves: [const { OnceLock::new() }; OCTAVES] }
    }
}

/// A reading of a [`Histogram`]: `(bucket, count)` in order of bucket, without empty ones.
///
/// As data it is one flat list `[gap, count, gap, count, …]`, where a gap is the distance from the bucket before, the
/// first one from bucket 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(Vec<(u16, u64)>);

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
    /// Counts one value. One atomic addition; it allocates when a power of two is met for the first time.
    #[inline]
    pub fn record(&self, value: Duration) {
        // `as_micros` divides 128 bits.
        let micros = value.as_secs().saturating_mul(1_000_000).saturating_add(value.subsec_micros().into());
        let bucket = bucket(micros);
        let octave = self.octaves[bucket / SUB].get_or_init(|| Box::new([const { AtomicU64::new(0) }; SUB]));
        octave[bucket % SUB].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Counts {
        let met = self.octaves.iter().enumerate().filter_map(|(at, octave)| Some((at, octave.get()?)));
        let counts = met.flat_map(|(at, octave)| {
            octave.iter().enumerate().map(move |(sub, count)| (at * SUB + sub, count.load(Ordering::Relaxed)))
        });
        let counts = counts.filter(|(_, count)| *count != 0);
        Counts(counts.map(|(bucket, count)| (bucket as u16, count)).collect())
    }
}

impl Counts {
    /// How many values there are.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Each size that occurred, in microseconds (the middle of its bucket), and how often.
    pub fn iter(&self) -> impl Iterator<Item = (f64, u64)> {
        self.0.iter().map(|(bucket, count)| (middle(usize::from(*bucket)), *count))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many values are above `limit`. Those of its own bucket count as within, so one that is less than 1.6 % above
    /// it may.
    pub fn over(&self, limit: Duration) -> u64 {
        let last = bucket(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX));
        self.0.iter().filter(|(bucket, _)| usize::from(*bucket) > last).map(|(_, count)| *count).sum()
    }

    /// The flat list of gaps and counts.
    pub fn gaps(&self) -> impl Iterator<Item = u64> + '_ {
        let mut before = 0;
        self.0.iter().flat_map(move |(bucket, count)| {
            let gap = u64::from(*bucket - before);
            before = *bucket;
            [gap, *count]
        })
    }

    /// Reads a flat list of gaps and counts; `None` if it is none.
    pub fn from_gaps(gaps: impl IntoIterator<Item = u64>) -> Option<Self> {
        let (mut out, mut at, mut gaps) = (Vec::new(), 0u64, gaps.into_iter());
        while let Some(gap) = gaps.next() {
            at = at.checked_add(gap).filter(|at| *at < BUCKETS as u64 && (gap > 0 || out.is_empty()))?;
            out.push((at as u16, gaps.next()?));
        }
        Some(Self(out))
    }

    /// What was counted after `earlier` was read.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }

    /// Both together; exact.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    fn combine(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
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
            seen = u64::saturating_add(seen, *count);
            if seen >= rank {
                return Some(Duration::from_secs_f64(middle(usize::from(*bucket)) / 1e6));
            }
        }
        None
    }
}

impl serde::Serialize for Counts {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.gaps())
    }
}

impl<'de> serde::Deserialize<'de> for Counts {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let gaps = Vec::deserialize(from)?;
        Self::from_gaps(gaps).ok_or_else(|| serde::de::Error::custom("is no list of gaps and counts"))
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

    fn of(values: &[u64]) -> Counts {
        let histogram = Histogram::default();
        values.iter().for_each(|v| histogram.record(Duration::from_micros(*v)));
        histogram.read()
    }

    proptest! {
        #[test]
        fn its_data_is_read_back(values in proptest::collection::vec(0u64..2_000_000_000, 0..50)) {
            let counts = of(&values);
            let text = serde_json::to_string(&counts).unwrap();
            prop_assert_eq!(serde_json::from_str::<Counts>(&text).unwrap(), counts);
        }

        #[test]
        fn what_is_over_a_limit_is_known_to_its_bucket(
            values in proptest::collection::vec(1u64..1_000_000_000, 0..50),
            limit in 1u64..1_000_000_000,
        ) {
            let over = of(&values).over(Duration::from_micros(limit));
            let above = |limit: f64| values.iter().filter(|v| **v as f64 > limit).count() as u64;
            prop_assert!((above(limit as f64 * 1.016 + 1.0)..=above(limit as f64)).contains(&over));
        }

        #[test]
        fn no_data_breaks_it(gaps in proptest::collection::vec(any::<u64>(), 0..6)) {
            Counts::from_gaps(gaps).map(|counts| counts.quantile(0.5));
        }
    }

    #[test]
    fn what_is_no_list_of_gaps_is_refused() {
        for bad in ["[1]", "[1,1,0,1]", "[1600,1]", "[18446744073709551615,1,1,1]", "{}", "[-1,1]"] {
            assert!(serde_json::from_str::<Counts>(bad).is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_string(&of(&[0, 0, 5, 6])).unwrap(), "[0,2,5,1,1,1]");
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
