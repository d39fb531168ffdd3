//! Floor 2: what is counted of one set of calls or attempts: begun, ended how, and how soon.

use crate::metrics::series::{Ending, Endings, Why};
use crate::metrics::stat::{Causes, Failed};
use crate::stdx::histogram::{Counts, Histogram};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The running totals of the calls of a route, or of the attempts at a backend or an endpoint.
///
/// Every family of theirs is made from this when it is read: on the path a request costs three atomic additions, however
/// many families there are. At rest, `begun = successes + failures + cancelled`.
#[derive(Debug, Default)]
pub struct Tally {
    begun: AtomicU64,
    endings: Endings,
    latency: Histogram,
}

/// A reading of a [`Tally`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// How many began.
    pub begun: u64,
    /// How many ended how.
    pub endings: Vec<(Ending, u64)>,
    /// From the beginning to the first frame of the response's body, or its end.
    pub latency: Counts,
}

impl Tally {
    /// One began.
    #[inline]
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// Its response's first frame, or its end, came after `latency`.
    #[inline]
    pub fn latency(&self, latency: Duration) {
        self.latency.record(latency);
    }

    /// It ended.
    #[inline]
    pub fn end(&self, ending: Ending) {
        self.endings.count(ending);
    }

    /// How many began.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// The totals so far. Endings are read first, so that what is under way is never negative.
    pub fn read(&self) -> Told {
        let latency = self.latency.read();
        let endings = self.endings.read();
        Told { begun: self.begun.load(Ordering::Relaxed), endings, latency }
    }
}

impl Told {
    /// These and others, without their latencies.
    #[must_use]
    pub(crate) fn beside(mut self, others: &Self) -> Self {
        self.begun += others.begun;
        for (ending, count) in &others.endings {
            match self.endings.iter_mut().find(|(own, _)| own == ending) {
                Some((_, own)) => *own += count,
                None => self.endings.push((*ending, *count)),
            }
        }
        self
    }

    /// Those that ended well.
    pub fn successes(&self) -> u64 {
        self.sum(|ending| !ending.is_failure() && !ending.is_cancelled())
    }

    /// Those that failed.
    pub fn failures(&self) -> u64 {
        self.sum(Ending::is_failure)
    }

    /// Those whose caller went away before the end was known.
    pub fn cancelled(&self) -> u64 {
        self.sum(Ending::is_cancelled)
    }

    /// Those that the mesh itself ended, by its reason.
    pub fn causes(&self) -> Causes {
        let of = |why| self.sum(|ending| ending.why() == Some(why));
        Causes {
            shed: of(Why::Shed),
            denied: of(Why::Denied),
            late: of(Why::Late),
            unreached: of(Why::Unreached),
            faults: 0,
        }
    }

    /// The failures, by how they ended.
    pub fn failed(&self) -> Failed {
        Failed::of(self.endings.iter().filter(|(ending, _)| ending.is_failure()).copied())
    }

    /// Those under way.
    pub fn in_flight(&self) -> u64 {
        self.begun.saturating_sub(self.sum(|_| true))
    }

    /// Whether its responses are gRPC's, as most of them were; `None` before the first.
    pub fn is_grpc(&self) -> Option<bool> {
        let grpc = self.sum(|ending| ending.grpc().is_some());
        let http = self.sum(|ending| ending.grpc().is_none() && ending.status().is_some());
        (grpc + http > 0).then_some(grpc >= http)
    }

    fn sum(&self, which: impl Fn(Ending) -> bool) -> u64 {
        self.endings.iter().filter(|(ending, _)| which(*ending)).map(|(_, count)| *count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::outcome::{Cause, Outcome, Verdict};
    use proptest::prelude::*;

    #[test]
    fn attempts_beside_calls_are_summed_by_their_endings() {
        let ending =
            |status| Ending::new(Some(status), &Outcome::new(Verdict::Success, Cause::Status(status)));
        let count = |endings: &[Ending]| {
            let tally = Tally::default();
            endings.iter().for_each(|ending| {
                tally.begin();
                tally.end(*ending);
            });
            tally.read()
        };
        let both =
            count(&[ending(200), ending(204)]).beside(&count(&[ending(204), ending(204), ending(503)]));
        assert_eq!((both.begun, both.in_flight(), both.latency.is_empty()), (5, 0, true));
        assert_eq!(both.endings, [(ending(200), 1), (ending(204), 3), (ending(503), 1)]);
    }

    proptest! {
        #[test]
        fn what_began_is_what_ended_and_what_is_under_way(
            calls in proptest::collection::vec((0u8..4, 200u16..600, 0u64..100_000), 0..300),
        ) {
            let tally = Tally::default();
            let mut model = [0u64; 4];
            for (kind, status, micros) in &calls {
                tally.begin();
                model[usize::from(*kind)] += 1;
                tally.latency(Duration::from_micros(*micros));
                let outcome = |verdict| Outcome::new(verdict, Cause::Status(*status));
                match kind {
                    0 => tally.end(Ending::new(Some(*status), &outcome(Verdict::Success))),
                    1 => tally.end(Ending::new(Some(*status), &outcome(Verdict::Failure))),
                    2 => tally.end(Ending::DROPPED),
                    _ => {}
                }
            }
            let told = tally.read();
            prop_assert_eq!(told.begun, calls.len() as u64);
            prop_assert_eq!(told.begun, told.successes() + told.failures() + told.cancelled() + told.in_flight());
            prop_assert_eq!(told.in_flight(), model[3]);
            prop_assert_eq!(told.latency.total(), told.begun);
            prop_assert_eq!([told.successes(), told.failures(), told.cancelled()], [model[0], model[1], model[2]]);
        }
    }
}
