//! Floor 2: what a route did so far, to be read at any time without an exporter.

use crate::metrics::series::Ending;
use crate::stdx::histogram::Counts;
use std::collections::BTreeMap;

/// Calls that the mesh itself ended, by its reason; those of the first four are failures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Causes {
    /// Refused by a limit, a breaker or a queue.
    pub shed: u64,
    /// Refused since the caller may not do this.
    pub denied: u64,
    /// A time limit passed before the response's headers came.
    pub late: u64,
    /// There was no endpoint, or no connection to it.
    pub unreached: u64,
    /// Broken or held up on purpose; a call that was both counts twice.
    pub faults: u64,
}

impl Causes {
    /// Both together.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    fn zip(&self, b: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            shed: f(self.shed, b.shed),
            denied: f(self.denied, b.denied),
            late: f(self.late, b.late),
            unreached: f(self.unreached, b.unreached),
            faults: f(self.faults, b.faults),
        }
    }
}

impl std::fmt::Display for Causes {
    /// `12 shed, 5 late`; `-` without any.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [
            (self.shed, "shed"),
            (self.denied, "denied"),
            (self.late, "late"),
            (self.unreached, "unreached"),
            (self.faults, "faults"),
        ];
        let told = all.iter().filter(|(count, _)| *count > 0);
        let told: Vec<String> = told.map(|(count, word)| format!("{count} {word}")).collect();
        f.write_str(if told.is_empty() { "-" } else { "" })?;
        f.write_str(&told.join(", "))
    }
}

/// Failures by how they ended; each ending stands once, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failed(Vec<(Ending, u64)>);

impl Failed {
    /// These, each ending once.
    pub fn of(counts: impl IntoIterator<Item = (Ending, u64)>) -> Self {
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_unstable();
        Self(counts)
    }

    /// In people's words.
    pub fn told(&self) -> BTreeMap<String, u64> {
        let mut told = BTreeMap::new();
        for (ending, count) in &self.0 {
            *told.entry(ending.told()).or_default() += count;
        }
        told
    }

    fn zip(&self, b: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let in_b = |ending: &Ending| b.0.binary_search_by_key(ending, |(of, _)| *of).ok();
        let in_a = |ending: &Ending| self.0.binary_search_by_key(ending, |(of, _)| *of).is_ok();
        let count = |at: usize| b.0.get(at).map_or(0, |(_, count)| *count);
        let both = self.0.iter().map(|(ending, a)| (*ending, f(*a, in_b(ending).map_or(0, count))));
        let rest = b.0.iter().filter(|(ending, _)| !in_a(ending)).map(|(ending, b)| (*ending, f(0, *b)));
        Self::of(both.chain(rest).filter(|(_, count)| *count != 0))
    }
}

/// What a route did: totals, or the difference of two readings.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reading {
    /// Calls begun.
    pub requests: u64,
    /// Calls that ended well.
    pub successes: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Calls whose caller went away before a response.
    pub cancelled: u64,
    /// Attempts begun; `attempts - requests` are retries and hedges.
    pub attempts: u64,
    /// Attempts that ended well.
    pub attempt_successes: u64,
    /// Attempts that failed.
    pub attempt_failures: u64,
    /// Retries that the budget refused.
    pub no_budget: u64,
    /// What the mesh itself ended.
    pub causes: Causes,
    /// How failures ended.
    #[serde(skip)]
    pub failed: Failed,
    /// Latencies of the calls, to the first frame of the response's body.
    pub latency: Counts,
}

impl Reading {
    /// What happened after `earlier` was read.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::wrapping_sub, Counts::since)
    }

    /// Both together: of two routes, replicas or processes.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add, Counts::merge)
    }

    fn zip(&self, b: &Self, f: impl Fn(u64, u64) -> u64, g: impl Fn(&Counts, &Counts) -> Counts) -> Self {
        Self {
            requests: f(self.requests, b.requests),
            successes: f(self.successes, b.successes),
            failures: f(self.failures, b.failures),
            cancelled: f(self.cancelled, b.cancelled),
            attempts: f(self.attempts, b.attempts),
            attempt_successes: f(self.attempt_successes, b.attempt_successes),
            attempt_failures: f(self.attempt_failures, b.attempt_failures),
            no_budget: f(self.no_budget, b.no_budget),
            causes: self.causes.zip(&b.causes, &f),
            failed: self.failed.zip(&b.failed, &f),
            latency: g(&self.latency, &b.latency),
        }
    }

    /// The share of ended calls that succeeded, as callers saw it (*effective*); `None` when none ended.
    pub fn success_rate(&self) -> Option<f64> {
        rate(self.successes, self.failures)
    }

    /// The share of ended attempts that succeeded (*actual*).
    pub fn actual_success_rate(&self) -> Option<f64> {
        rate(self.attempt_successes, self.attempt_failures)
    }

    /// Attempts beyond the first of each call. While calls are in flight it is at most that many.
    pub fn retries(&self) -> u64 {
        self.attempts.saturating_sub(self.requests)
    }
}

/// The share of what ended that ended well; `None` when nothing ended.
pub(crate) fn rate(good: u64, bad: u64) -> Option<f64> {
    let ended = good.saturating_add(bad);
    (ended > 0).then(|| good as f64 / ended as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::outcome::{Cause, Outcome, Verdict};

    #[test]
    fn failures_of_two_readings_are_added_up_and_taken_apart_by_how_they_ended() {
        let ending =
            |status| Ending::new(Some(status), &Outcome::new(Verdict::Failure, Cause::Status(status)));
        let reading = |counts: &[(u16, u64)]| Reading {
            failed: Failed::of(counts.iter().map(|(status, count)| (ending(*status), *count))),
            ..Reading::default()
        };
        let (before, after) = (reading(&[(500, 2), (503, 1)]), reading(&[(502, 4), (500, 2), (503, 3)]));
        let told = |counts: &[(&str, u64)]| {
            counts.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
        };
        assert_eq!(after.since(&before).failed.told(), told(&[("status 502", 4), ("status 503", 2)]));
        assert_eq!(
            after.merge(&before).failed.told(),
            told(&[("status 500", 4), ("status 502", 4), ("status 503", 4)])
        );
    }
}
