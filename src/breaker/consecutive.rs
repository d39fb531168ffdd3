//! Floor 2: so many failures one after the other (Linkerd, Envoy's `consecutive_5xx` and its kin).

use crate::breaker::detect::{Detect, is_failure};
use crate::breaker::event::Reason;
use crate::classify::outcome::Outcome;
use crate::profile::settings::FailureClass;
use crate::stdx::moment::Moment;
use crate::stdx::sync::{AtomicU32, Ordering::Relaxed};

/// Counts failures since the last request that was none.
#[derive(Debug)]
pub struct Consecutive {
    class: FailureClass,
    threshold: u32,
    run: AtomicU32,
}

impl Consecutive {
    /// A detector for `threshold` failures; 0 never says anything.
    pub fn new(class: FailureClass, threshold: u32) -> Self {
        Self { class, threshold, run: AtomicU32::new(0) }
    }
}

impl Detect for Consecutive {
    #[inline]
    fn record(&self, _: Moment, outcome: &Outcome) -> Option<Reason> {
        if !is_failure(self.class, outcome) {
            // Written only if it changes: the healthy path shares the cache line with all threads.
            if self.run.load(Relaxed) != 0 {
                self.run.store(0, Relaxed);
            }
            return None;
        }
        let failures = self.run.fetch_add(1, Relaxed).saturating_add(1);
        let trips = self.threshold > 0 && failures >= self.threshold;
        trips.then_some(Reason::Consecutive { class: self.class, failures })
    }

    fn counts(&self, outcome: &Outcome) -> bool {
        is_failure(self.class, outcome)
    }

    fn reset(&self) {
        self.run.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::outcome::{Cause, Verdict};
    use crate::error::Scope;

    fn check(class: FailureClass, ends: &[Cause], trips: bool) {
        let detector = Consecutive::new(class, 2);
        let end = |cause: &Cause| {
            let ok = matches!(cause, Cause::Status(0..=499) | Cause::Grpc(0 | 8));
            let verdict = if ok { Verdict::Success } else { Verdict::Failure };
            detector.record(Moment::default(), &Outcome::new(verdict, *cause)).is_some()
        };
        let tripped = ends.iter().filter(|cause| end(cause)).count() > 0;
        assert_eq!(tripped, trips, "{class:?} {ends:?}");
    }

    #[test]
    fn only_failures_of_the_class_in_a_row_trip() {
        use Cause::{Connect, Grpc, Local, Status, Timeout};
        check(FailureClass::Any, &[Status(500), Status(500)], true);
        check(FailureClass::Any, &[Status(500), Status(200), Status(500)], false);
        check(FailureClass::Any, &[Status(429), Status(429), Status(429)], false);
        check(FailureClass::Server, &[Status(500), Connect], true);
        check(FailureClass::Server, &[Grpc(13), Grpc(14)], true);
        check(FailureClass::Gateway, &[Status(500), Status(500)], false);
        check(FailureClass::Gateway, &[Status(503), Timeout(Scope::Attempt)], true);
        check(FailureClass::Local, &[Status(503), Status(503)], false);
        check(FailureClass::Local, &[Connect, Connect], true);
        check(FailureClass::Local, &[Local, Local], false);
    }

    #[test]
    fn a_threshold_of_nothing_never_trips() {
        let detector = Consecutive::new(FailureClass::Any, 0);
        let failure = Outcome::new(Verdict::Failure, Cause::Connect);
        assert!((0..100).all(|_| detector.record(Moment::default(), &failure).is_none()));
    }
}
