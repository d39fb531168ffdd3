//! Floor 0: waits that grow from one try to the next, with jitter.

use crate::stdx::rng::Rng;
use std::time::Duration;

/// Exponential waits: the bound of wait `n` (from 0) is `min(max, base · 2^n)`; jitter moves each wait below or
/// above it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    jitter: f64,
}

impl Backoff {
    /// The greatest jitter: a hundred times the bound, as Linkerd has it.
    pub const JITTER_MAX: f64 = 100.0;

    /// Waits from `base` to `max` whose random part is `jitter` times the bound, 0 to 100.
    ///
    /// # Errors
    /// Says what is wrong when `base` is above `max`, when both are 0 or when `jitter` is not in its range.
    pub fn new(base: Duration, max: Duration, jitter: f64) -> Result<Self, &'static str> {
        if base > max {
            return Err("the backoff's base is above its max: lower the base");
        }
        if max.is_zero() {
            return Err("the backoff's max is 0: set it above 0, or set no backoff");
        }
        if !(0.0..=Self::JITTER_MAX).contains(&jitter) {
            return Err("the backoff's jitter is not from 0 to 100: 1 is full jitter");
        }
        Ok(Self { base, max, jitter })
    }

    /// The bound of wait `n`: `min(max, base · 2^n)`.
    pub fn bound(&self, n: u32) -> Duration {
        let factor = 1u32.checked_shl(n).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// Wait `n`, at most its bound: jitter 1 draws from 0 to the bound ("full jitter", AWS Architecture Blog,
    /// "Exponential Backoff And Jitter", 2015), 0.5 from a half, 0 draws nothing. Jitter above 1 is as 1.
    pub fn below(&self, n: u32, rng: &Rng) -> Duration {
        let bound = self.bound(n);
        bound.mul_f64(1.0 - self.jitter.min(1.0) * rng.unit())
    }

    /// Wait `n`, at least its bound and at most `max`: uniform up to `bound · (1 + jitter)`, as Linkerd means it
    /// (its own code drops the sub-second part of the jitter of whole seconds).
    pub fn above(&self, n: u32, rng: &Rng) -> Duration {
        let bound = self.bound(n);
        let extra = bound.as_secs_f64() * self.jitter * rng.unit();
        let extra = Duration::try_from_secs_f64(extra).unwrap_or(self.max);
        bound.saturating_add(extra).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::rng::Rng;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn bounds_double_up_to_the_max() {
        let backoff = Backoff::new(MS(25), MS(250), 1.0).unwrap();
        let bounds: Vec<u128> = (0..6).map(|n| backoff.bound(n).as_millis()).collect();
        assert_eq!(bounds, [25, 50, 100, 200, 250, 250]);
        assert_eq!(backoff.bound(u32::MAX), MS(250));
    }

    #[test]
    fn a_backoff_that_cannot_be_is_refused() {
        assert!(Backoff::new(MS(2), MS(1), 0.0).is_err());
        assert!(Backoff::new(MS(0), MS(0), 0.0).is_err());
        for jitter in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert!(Backoff::new(MS(1), MS(1), jitter).is_err(), "{jitter}");
        }
        assert!(Backoff::new(MS(0), MS(1), 100.0).is_ok());
    }

    #[test]
    fn full_jitter_spreads_over_the_whole_interval() {
        let (backoff, rng) = (Backoff::new(MS(100), MS(100), 1.0).unwrap(), Rng::seeded(1));
        let mut tenths = [0u32; 10];
        for _ in 0..10_000 {
            tenths[(backoff.below(0, &rng).as_micros() / 10_000).min(9) as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (850..1150).contains(n)), "{tenths:?}");
    }

    #[test]
    fn whole_seconds_are_jittered_too() {
        let (backoff, rng) = (Backoff::new(MS(1000), MS(60_000), 0.5).unwrap(), Rng::seeded(2));
        let waits: Vec<Duration> = (0..100).map(|_| backoff.above(0, &rng)).collect();
        assert!(waits.iter().filter(|wait| **wait > MS(1000) && **wait < MS(1500)).count() > 95);
    }

    proptest! {
        #[test]
        fn waits_stay_within_their_bounds(
            base in 0u64..u64::MAX / 2, more in 1u64..u64::MAX / 2, jitter in 0.0f64..=100.0, n: u32, seed: u64,
        ) {
            let (base, max) = (Duration::from_nanos(base), Duration::from_nanos(base + more));
            let (backoff, rng) = (Backoff::new(base, max, jitter).unwrap(), Rng::seeded(seed));
            let bound = backoff.bound(n);
            prop_assert!(bound >= base && bound <= max);
            prop_assert!(backoff.below(n, &rng) <= bound + Duration::from_micros(1) + bound / 1_000_000);
            let above = backoff.above(n, &rng);
            prop_assert!(above >= bound && above <= max);
        }
    }
}
