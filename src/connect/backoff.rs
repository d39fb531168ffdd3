//! Floor 2: how long a replica is left alone after its connections failed.

use crate::stdx::rng::Rng;
use std::time::Duration;
use std::time::Instant;

/// Exponential backoff with full jitter: after the `n`-th failure in a row a wait between 0 and
/// `min(max, base · 2^n)` ("Exponential Backoff And Jitter", AWS 2015).
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// A backoff without a failure yet.
    pub(crate) fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0, until: None }
    }

    /// Counts a failure and sets the next wait. Failures during a wait are of the same event and count once.
    pub(crate) fn failed(&mut self, now: Instant, rng: &Rng) {
        if self.remaining(now).is_some() {
            return;
        }
        let bound = self.base.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + bound.mul_f64(rng.unit()));
    }

    /// Forgets all failures: the replica answered.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.until = None;
    }

    /// How long it is still left alone.
    pub(crate) fn remaining(&self, now: Instant) -> Option<Duration> {
        self.until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_a_success_forgets_them() {
        let start = crate::stdx::clock::now();
        let rng = Rng::seeded(3);
        let mut sums = [Duration::ZERO; 12];
        for _ in 0..2000 {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
            let mut now = start;
            for (n, sum) in sums.iter_mut().enumerate() {
                backoff.failed(now, &rng);
                let wait = backoff.remaining(now).unwrap_or_default();
                assert!(wait <= Duration::from_millis(100 << n.min(7)).min(Duration::from_secs(10)));
                backoff.failed(now, &rng);
                assert_eq!(backoff.failures() as usize, n + 1, "a failure within the wait counts once");
                *sum += wait;
                now += wait + Duration::from_nanos(1);
            }
            backoff.succeeded();
            assert_eq!((backoff.failures(), backoff.remaining(now)), (0, None));
        }
        for (n, sum) in sums.iter().enumerate() {
            let mean = sum.as_secs_f64() / 2000.0;
            let bound = (0.1 * f64::from(1u32 << n.min(7))).min(10.0);
            assert!((mean / bound - 0.5).abs() < 0.05, "wait {n}: mean {mean} of {bound}");
        }
    }
}
