//! Floor 0: a point in time as atomics hold it: microseconds since a beginning of one's own.

use std::time::{Duration, Instant};

/// Microseconds since an epoch that its user chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(u64);

impl Moment {
    /// Later than all others.
    pub const NEVER: Self = Self(u64::MAX);

    /// `now` as counted from `epoch`; what lies before it is the beginning.
    #[inline]
    pub fn since(epoch: Instant, now: Instant) -> Self {
        let passed = now.saturating_duration_since(epoch);
        Self(passed.as_secs().wrapping_mul(1_000_000).wrapping_add(u64::from(passed.subsec_micros())))
    }

    /// From a count of microseconds.
    #[inline]
    pub fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds.
    #[inline]
    pub fn micros(self) -> u64 {
        self.0
    }

    /// Milliseconds, wrapping after 49 days.
    #[inline]
    pub fn millis(self) -> u32 {
        (self.0 / 1000) as u32
    }

    /// The time since `earlier`; zero if it is later.
    #[inline]
    pub fn since_moment(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Seconds since `earlier`; 0 if it is later.
    #[inline]
    pub fn secs_since(self, earlier: Self) -> f32 {
        self.0.saturating_sub(earlier.0) as f32 * 1e-6
    }

    /// So much later.
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    #[test]
    fn moments_count_from_their_epoch_and_never_below() {
        let epoch = clock::now() + Duration::from_secs(5);
        let at = |secs| Moment::since(epoch, epoch + Duration::from_secs(secs));
        assert_eq!((at(0).micros(), at(3).millis()), (0, 3000));
        assert_eq!(Moment::since(epoch, epoch - Duration::from_secs(1)), at(0));
        assert_eq!(at(3).since_moment(at(1)), Duration::from_secs(2));
        assert_eq!(at(1).since_moment(at(3)), Duration::ZERO);
        assert_eq!(Moment::NEVER.plus(Duration::MAX), Moment::NEVER);
    }
}
