//! Floor 2: what a route did so far, to be read at any time without an exporter.

use crate::stdx::histogram::Counts;

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

fn rate(good: u64, bad: u64) -> Option<f64> {
    (good + bad > 0).then(|| good as f64 / (good + bad) as f64)
}
