//! Floor 2: what a route did so far, to be read at any time without an exporter.

use crate::stdx::histogram::Counts;

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
