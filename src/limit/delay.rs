//! Floor 2: tells a queue that only smooths from one that stands (CoDel).

use std::time::{Duration, Instant};

/// The least delay that counts as standing (CoDel, Nichols and Jacobson, ACM Queue 2012; RFC 8289 §4).
pub const TARGET_MIN: Duration = Duration::from_millis(5);
/// The least time for which it must stand (the same source).
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Watches how long the head of a queue waits.
///
/// A queue *stands* when even the least delay of an interval was above the target: then it holds no burst but an
/// overload, and waiting in it is of no use to anybody. Both times grow with the pace at which places become free, so
/// that a service that answers in seconds is not taken for an overloaded one: a target is at least two such steps, an
/// interval twenty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Delay {
    ends: Option<Instant>,
    least: Duration,
    stands: bool,
}

impl Delay {
    /// The target for a queue of which one leaves every `pace`.
    pub fn target(pace: Duration) -> Duration {
        TARGET_MIN.max(pace.saturating_mul(2))
    }

    /// How long one may wait while the queue stands: twice the target (folly's `Codel`).
    pub fn patience(pace: Duration) -> Duration {
        Self::target(pace).saturating_mul(2)
    }

    /// The head of the queue has waited for `waited`; zero when nobody waits.
    pub fn observe(&mut self, now: Instant, waited: Duration, pace: Duration) {
        let interval = INTERVAL_MIN.max(pace.saturating_mul(20));
        match self.ends {
            Some(ends) if now < ends => self.least = self.least.min(waited),
            Some(_) => {
                self.stands = self.least > Self::target(pace);
                self.least = waited;
                self.ends = now.checked_add(interval);
            }
            None => {
                self.least = waited;
                self.ends = now.checked_add(interval);
            }
        }
    }

    /// Whether the queue stands.
    pub fn stands(&self) -> bool {
        self.stands
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Whether the queue stands after its head waited for each of `waits`, one every ten milliseconds.
    fn stands(waits: &[u64], pace: Duration) -> bool {
        let (mut delay, start) = (Delay::default(), clock::now());
        for (step, wait) in (0..).zip(waits) {
            delay.observe(start + MS(10 * step), MS(*wait), pace);
        }
        delay.stands()
    }

    #[test]
    fn a_queue_stands_when_even_its_least_delay_of_an_interval_is_long() {
        assert!(stands(&[20; 11], MS(1)));
        assert!(!stands(&[20; 10], MS(1)), "not before an interval has passed");
        assert!(!stands(&[20, 20, 20, 20, 0, 20, 20, 20, 20, 20, 20], MS(1)), "a burst is smoothed");
        assert!(!stands(&[20; 11], MS(10)), "two steps of a slow service are no overload");
        let again: Vec<u64> = [20; 11].into_iter().chain([0; 20]).collect();
        assert!(!stands(&again, MS(1)), "and it ends");
    }
}
