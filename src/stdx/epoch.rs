//! Floor 0: the time since something was first used, for memories that keep times as numbers.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Begins with the first look at it, so that what is made long before its use needs no clock.
#[derive(Debug, Default)]
pub(crate) struct Epoch(OnceLock<Instant>);

impl Epoch {
    /// The time from the first look to `now`; zero at the first one, and for what is before it.
    #[inline]
    pub(crate) fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.0.get_or_init(|| now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    #[test]
    fn it_begins_with_the_first_look() {
        let (epoch, now, second) = (Epoch::default(), clock::now(), Duration::from_secs(1));
        assert_eq!(
            [now, now + second, now - second].map(|now| epoch.at(now)),
            [Duration::ZERO, second, Duration::ZERO]
        );
    }
}
