//! Floor 0: a rate limit in one atomic word (GCRA, ITU-T I.371: the generic cell rate algorithm).

use crate::stdx::epoch::Epoch;
use crate::stdx::sync::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A rate and a burst, the rule without its memory.
///
/// The memory is one number, the *theoretical arrival time* (TAT) in nanoseconds: when the bucket will be full
/// again. 0 is a full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    interval: u64,
    tolerance: u64,
}

impl Rate {
    /// `count` in each `per`, of which `burst` may come at once (0 is as 1). The interval between two is rounded
    /// down to a nanosecond. A `count` of 0 admits nothing.
    pub fn new(count: u32, per: Duration, burst: u32) -> Self {
        let per = nanos(per).max(1);
        match per.checked_div(u64::from(count)) {
            Some(interval) => {
                let tolerance = interval.saturating_mul(u64::from(burst.max(1) - 1));
                Self { interval, tolerance }
            }
            None => Self { interval: u64::MAX, tolerance: 0 },
        }
    }

    /// Whether one more may come at `at`: the next TAT, or how long it is until one may.
    ///
    /// # Errors
    /// The nanoseconds to wait; `u64::MAX` when it is for ever.
    pub fn next(self, tat: u64, at: u64) -> Result<u64, u64> {
        if self.interval == u64::MAX {
            return Err(u64::MAX);
        }
        match tat.saturating_sub(at).checked_sub(self.tolerance) {
            None | Some(0) => Ok(tat.max(at).saturating_add(self.interval)),
            Some(wait) => Err(wait),
        }
    }

    /// Takes one of a bucket whose TAT is `memory`, at `at`. Whoever loads that TAT by `Acquire` sees what this thread did
    /// before.
    ///
    /// # Errors
    /// The nanoseconds to wait; `u64::MAX` when it is for ever.
    pub fn take(self, memory: &AtomicU64, at: u64) -> Result<(), u64> {
        let mut tat = memory.load(Ordering::Relaxed);
        loop {
            let next = self.next(tat, at)?;
            match memory.compare_exchange_weak(tat, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => tat = seen,
            }
        }
    }

    /// How many may come at once at `at`.
    pub fn level(self, tat: u64, at: u64) -> u64 {
        let debt = tat.saturating_sub(at);
        match (self.tolerance.checked_sub(debt), self.interval) {
            (None, _) | (_, u64::MAX) => 0,
            (Some(room), interval) => (room / interval.max(1)).saturating_add(1),
        }
    }
}

/// A rate and its memory, shared without a lock.
#[derive(Debug)]
pub struct Gcra {
    rate: Rate,
    begun: Epoch,
    tat: AtomicU64,
}

impl Gcra {
    /// A full bucket of this rate.
    pub fn new(rate: Rate) -> Self {
        Self { rate, begun: Epoch::default(), tat: AtomicU64::new(0) }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long it is until there is one to take.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        self.rate.take(&self.tat, self.at(now)).map_err(Duration::from_nanos)
    }

    /// How many could be taken.
    pub fn level(&self, now: Instant) -> u64 {
        self.rate.level(self.tat.load(Ordering::Relaxed), self.at(now))
    }

    fn at(&self, now: Instant) -> u64 {
        nanos(self.begun.at(now))
    }
}

/// Nanoseconds in a word: 584 years at most.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;
    use proptest::prelude::*;

    #[test]
    fn a_rate_of_zero_admits_nothing() {
        let gcra = Gcra::new(Rate::new(0, Duration::from_secs(1), 5));
        assert!(gcra.admit(clock::now()).is_err());
        assert_eq!(gcra.level(clock::now()), 0);
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let (gcra, now) = (Gcra::new(Rate::new(10, Duration::from_secs(1), 2)), clock::now());
        assert_eq!([gcra.admit(now), gcra.admit(now)], [Ok(()), Ok(())]);
        assert_eq!(gcra.admit(now), Err(Duration::from_millis(100)));
        assert!(gcra.admit(now + Duration::from_millis(99)).is_err());
        assert!(gcra.admit(now + Duration::from_millis(100)).is_ok());
        assert_eq!(gcra.level(now + Duration::from_secs(9)), 2);
    }

    proptest! {
        /// The slow model: a bucket of `burst` that gains one each interval.
        #[test]
        fn it_is_a_bucket_that_time_fills(
            count in 1u32..50, burst in 1u32..20, steps in proptest::collection::vec(0u64..200, 1..200),
        ) {
            let interval = 1_000_000_000 / u64::from(count);
            let gcra = Gcra::new(Rate::new(count, Duration::from_secs(1), burst));
            let start = clock::now();
            let (mut at, mut credit, full) = (0u64, u64::from(burst) * interval, u64::from(burst) * interval);
            for step in steps {
                at += step * 1_000_000;
                credit = (credit + step * 1_000_000).min(full);
                let now = start + Duration::from_nanos(at);
                if at == 0 { prop_assert!(gcra.level(now) <= u64::from(burst)); }
                let expected = credit >= interval;
                prop_assert_eq!(gcra.level(now), credit / interval);
                prop_assert_eq!(gcra.admit(now).is_ok(), expected);
                if expected { credit -= interval; }
            }
        }
    }
}
