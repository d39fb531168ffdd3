//! Floor 2: what is told of the traffic of one process or of many: rows of figures that add up exactly.
//!
//! The figures of two processes are put together by adding counts and histograms, never by averaging rates or
//! quantiles, so the whole is as exact as its parts.

use crate::metrics::names::Direction;
use crate::metrics::stat::{Causes, Reading, rate};
use crate::stdx::histogram::Counts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

/// What a row counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Calls of one route, to or from everybody.
    Route,
    /// Attempts of one route at one backend.
    Backend,
    /// Attempts at one endpoint.
    Endpoint,
    /// Calls of one caller.
    Client,
}

/// What tells a row from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowKey {
    /// What is counted.
    pub kind: Kind,
    /// Which way it went.
    pub direction: Direction,
    /// The service (label `dst`).
    pub service: String,
    /// The route; empty for the default route.
    pub route: Option<String>,
    /// The backend.
    pub backend: Option<String>,
    /// The endpoint's address.
    pub endpoint: Option<String>,
    /// The caller's identity; empty for callers without one.
    pub client: Option<String>,
}

impl RowKey {
    /// The row of a route.
    pub fn route(direction: Direction, service: &str, route: &str) -> Self {
        let route = Some(route.to_owned());
        let service = service.to_owned();
        Self { kind: Kind::Route, direction, service, route, backend: None, endpoint: None, client: None }
    }

    /// The row of one of a route's backends.
    pub fn backend(service: &str, route: &str, backend: &str) -> Self {
        let backend = Some(backend.to_owned());
        Self { kind: Kind::Backend, backend, ..Self::route(Direction::Outbound, service, route) }
    }

    /// The row of an endpoint of a service.
    pub fn endpoint(service: &str, endpoint: &str) -> Self {
        let endpoint = Some(endpoint.to_owned());
        Self { kind: Kind::Endpoint, route: None, endpoint, ..Self::route(Direction::Outbound, service, "") }
    }

    /// The row of a caller of a service.
    pub fn client(service: &str, client: &str) -> Self {
        let client = Some(client.to_owned());
        Self { kind: Kind::Client, route: None, client, ..Self::route(Direction::Inbound, service, "") }
    }
}

/// What is known of what a row counts, besides its figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Who the endpoint is.
    pub identity: Option<String>,
    /// Whether mutual TLS is spoken.
    pub tls: Option<bool>,
    /// The endpoint's zone.
    pub zone: Option<String>,
    /// Whether it counts what is beyond a cap.
    pub overflow: bool,
}

/// Quantiles in milliseconds, each at most 1 % from the truth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// What 95 % do not exceed.
    pub p95: f64,
    /// What 99 % do not exceed.
    pub p99: f64,
    /// What 99.9 % do not exceed.
    pub p999: f64,
}

impl Quantiles {
    /// Of these values; `None` without any.
    pub fn of(counts: &Counts) -> Option<Self> {
        let at = |q| Some(counts.quantile(q)?.as_secs_f64() * 1e3);
        Some(Self { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)?, p999: at(0.999)? })
    }
}

/// Figures of some calls or attempts over some time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Begun.
    pub requests: u64,
    /// Ended well.
    pub successes: u64,
    /// Failed.
    pub failures: u64,
    /// Whose caller went away before a response.
    pub cancelled: u64,
    /// The share of ended ones that succeeded; `None` when none ended.
    pub success_rate: Option<f64>,
    /// Ended ones each second, as `linkerd viz` has it.
    pub rps: f64,
    /// How long they took.
    pub latency_ms: Option<Quantiles>,
    /// The histogram behind the quantiles; left out of what is not to be merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Counts>,
}

impl Figures {
    /// Those of a difference of two readings that lie `length` apart.
    pub fn of(reading: &Reading, length: Duration) -> Self {
        let ended = (reading.successes + reading.failures) as f64;
        let secs = length.as_secs_f64();
        Self {
            requests: reading.requests,
            successes: reading.successes,
            failures: reading.failures,
            cancelled: reading.cancelled,
            success_rate: reading.success_rate(),
            rps: if secs > 0.0 { ended / secs } else { 0.0 },
            latency_ms: Quantiles::of(&reading.latency),
            histogram: Some(reading.latency.clone()),
        }
    }

    /// Adds others to these, all but the quantiles, which [`judge`](Self::judge) then works out.
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.successes = self.successes.saturating_add(other.successes);
        self.failures = self.failures.saturating_add(other.failures);
        self.cancelled = self.cancelled.saturating_add(other.cancelled);
        self.success_rate = rate(self.successes, self.failures);
        self.rps += other.rps;
        add_some(&mut self.histogram, other.histogram.as_ref(), |mine, theirs| *mine = mine.merge(theirs));
    }

    /// Works the quantiles out anew, once all is added up.
    pub(crate) fn judge(&mut self) {
        self.latency_ms = self.histogram.as_ref().and_then(Quantiles::of);
    }
}

/// The last minutes of a row in steps, the oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// How long a step is.
    pub step_secs: f64,
    /// Ended each second.
    pub rps: Vec<Option<f64>>,
    /// The share that succeeded.
    pub success_rate: Vec<Option<f64>>,
    /// What 95 % did not exceed.
    pub p95_ms: Vec<Option<f64>>,
}

impl Series {
    /// Adds another process's. Of the latencies the worse one stays: quantiles of steps cannot be added.
    pub fn add(&mut self, other: &Self) {
        for (at, theirs) in other.rps.iter().enumerate() {
            let rates = (self.success_rate.get_mut(at), other.success_rate.get(at).copied().flatten());
            if let (Some(mine), Some(rate)) = rates {
                let (own, more) = (self.rps.get(at).copied().flatten().unwrap_or(0.0), theirs.unwrap_or(0.0));
                *mine = Some(mine.map_or(rate, |mine| (mine * own + rate * more) / (own + more)));
            }
            if let (Some(mine), Some(theirs)) = (self.rps.get_mut(at), theirs) {
                *mine = Some(mine.unwrap_or(0.0) + theirs);
            }
        }
        for (mine, theirs) in self.p95_ms.iter_mut().zip(&other.p95_ms) {
            *mine = mine.map_or(*theirs, |mine| Some(theirs.map_or(mine, |theirs| mine.max(theirs))));
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What it counts.
    #[serde(flatten)]
    pub key: RowKey,
    /// The process, where rows are told by process.
    pub process: Option<String>,
    /// What else is known of it.
    #[serde(flatten)]
    pub facts: Facts,
    /// How long the window really is: at most the time since the process began, and a little more than was asked for
    /// else. Of many processes: the longest.
    pub elapsed_secs: f64,
    /// Under way now.
    pub in_flight: u64,
    /// As callers saw it (*effective*).
    #[serde(flatten)]
    pub figures: Figures,
    /// Attempts beyond the first of each call.
    pub retries: u64,
    /// Retries that the budget refused.
    pub no_budget: u64,
    /// What the mesh itself ended.
    #[serde(flatten)]
    pub causes: Causes,
    /// How failures ended, in words: `status 503`, `gRPC UNAVAILABLE`, `attempt timeout`. Of a route those of its calls, of
    /// backends and endpoints those of attempts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed_by: BTreeMap<String, u64>,
    /// Each attempt for itself (*actual*), of routes that are called.
    pub actual: Option<Figures>,
    /// The last minutes, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
}

impl Row {
    /// Adds another process's row of the same key, all but quantiles. What is known of it stays if both agree.
    fn add(&mut self, other: &Self) {
        self.facts.overflow |= other.facts.overflow;
        if self.facts.tls != other.facts.tls {
            self.facts.tls = None;
        }
        self.elapsed_secs = self.elapsed_secs.max(other.elapsed_secs);
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.figures.add(&other.figures);
        self.retries = self.retries.saturating_add(other.retries);
        self.no_budget = self.no_budget.saturating_add(other.no_budget);
        self.causes = self.causes.merge(&other.causes);
        for (how, count) in &other.failed_by {
            let sum = self.failed_by.entry(how.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        add_some(&mut self.actual, other.actual.as_ref(), Figures::add);
        add_some(&mut self.series, other.series.as_ref(), Series::add);
    }

    /// Puts rows together that have what `group` says of them in common, in its order; the first one's key stays.
    pub fn grouped<K: Ord>(rows: impl IntoIterator<Item = Self>, group: impl Fn(&Self) -> K) -> Vec<Self> {
        grouped(rows.into_iter().map(|row| (group(&row), row)), Self::add, Self::judge)
    }

    fn judge(&mut self) {
        self.figures.judge();
        self.actual.iter_mut().for_each(Figures::judge);
    }

    /// Forgets the histograms.
    pub fn strip(&mut self) {
        self.figures.histogram = None;
        if let Some(actual) = &mut self.actual {
            actual.histogram = None;
        }
    }
}

/// What there is of two, added up if it is both.
fn add_some<T: Clone>(mine: &mut Option<T>, theirs: Option<&T>, add: impl FnOnce(&mut T, &T)) {
    match (&mut *mine, theirs) {
        (Some(mine), Some(theirs)) => add(mine, theirs),
        (None, Some(theirs)) => *mine = Some(theirs.clone()),
        (_, None) => {}
    }
}

/// Adds up what has one key, in order of the keys; `finish` ends what was put together of several.
pub(crate) fn grouped<K: Ord, T>(
    items: impl IntoIterator<Item = (K, T)>,
    add: impl Fn(&mut T, &T),
    finish: impl Fn(&mut T),
) -> Vec<T> {
    let mut groups: BTreeMap<K, (T, bool)> = BTreeMap::new();
    for (key, item) in items {
        match groups.entry(key) {
            Entry::Vacant(vacant) => drop(vacant.insert((item, false))),
            Entry::Occupied(mut known) => {
                let (whole, is_several) = known.get_mut();
                add(whole, &item);
                *is_several = true;
            }
        }
    }
    let finished = groups.into_values().map(|(mut whole, is_several)| {
        if is_several {
            finish(&mut whole);
        }
        whole
    });
    finished.collect()
}

/// A process that was asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Tells its life from others; `None` when it was not reached.
    pub id: Option<String>,
    /// Its own service.
    pub name: String,
    /// Where it was asked; empty for the one that was asked first.
    pub addr: String,
    /// How long it runs.
    pub uptime_secs: Option<f64>,
    /// Why it did not answer.
    pub error: Option<String>,
}

/// How histograms are cut into buckets, for whoever reads them elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheme {
    /// `us`: microseconds.
    pub unit: Unit,
    /// Each power of two is cut into two to the power of this.
    pub sub_bits: u32,
    /// Values from two to the power of this count as the largest.
    pub top_bits: u32,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Microseconds.
    #[serde(rename = "us")]
    Micros,
}

impl Default for Scheme {
    fn default() -> Self {
        Self {
            unit: Unit::Micros,
            sub_bits: crate::stdx::histogram::SUB_BITS,
            top_bits: crate::stdx::histogram::TOP_BITS,
        }
    }
}

/// What one process or many tell of a window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The window that was asked for.
    pub window_secs: f64,
    /// The buckets of all histograms.
    pub histogram: Scheme,
    /// Who was asked.
    pub processes: Vec<Process>,
    /// The rows, by key.
    pub rows: Vec<Row>,
}

impl Report {
    /// Puts the reports of many processes together. A process that was asked by two ways counts once. With `by_process` the rows
    /// of each stay apart.
    ///
    /// # Errors
    /// When two cut their histograms differently: they run versions that do not add up.
    pub fn merge(reports: impl IntoIterator<Item = Self>, by_process: bool) -> Result<Self, String> {
        let mut whole = Self::default();
        let mut rows = Vec::new();
        for report in reports {
            if report.histogram != whole.histogram {
                let (theirs, ours) = (report.histogram, whole.histogram);
                return Err(format!(
                    "histograms have other buckets ({theirs:?}, not {ours:?}); use one version of enmesh"
                ));
            }
            whole.window_secs = whole.window_secs.max(report.window_secs);
            if !take_processes(&mut whole.processes, report.processes) {
                continue;
            }
            rows.extend(report.rows.into_iter().map(|mut row| {
                row.process = row.process.filter(|_| by_process);
                row
            }));
        }
        whole.rows = Row::grouped(rows, |row| (row.process.clone(), row.key.clone()));
        Ok(whole)
    }
}

/// Adds who was asked. Whether all of them are new: else their figures were counted already.
pub(crate) fn take_processes(known: &mut Vec<Process>, more: Vec<Process>) -> bool {
    let is_known =
        |process: &Process| process.id.is_some() && known.iter().any(|other| other.id == process.id);
    if !more.is_empty() && more.iter().all(is_known) {
        return false;
    }
    known.extend(more);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::histogram::Histogram;
    use proptest::prelude::*;

    fn report(id: &str, latencies: &[u64], failures: u64) -> Report {
        let histogram = Histogram::default();
        latencies.iter().for_each(|ms| histogram.record(Duration::from_millis(*ms)));
        let successes = latencies.len() as u64;
        let latency = histogram.read();
        let reading =
            Reading { requests: successes + failures, successes, failures, latency, ..Reading::default() };
        let figures = Figures::of(&reading, Duration::from_secs(10));
        let row = Row {
            key: RowKey::route(Direction::Outbound, "web:80", "r"),
            process: Some(id.to_owned()),
            facts: Facts::default(),
            elapsed_secs: 10.0,
            in_flight: 0,
            actual: Some(figures.clone()),
            figures,
            retries: 1,
            no_budget: 0,
            causes: Causes { shed: failures, ..Causes::default() },
            failed_by: BTreeMap::from([("rate limited".to_owned(), failures)]),
            series: None,
        };
        let process = Process { id: Some(id.to_owned()), name: "p".into(), ..Process::default() };
        Report { window_secs: 10.0, histogram: Scheme::default(), processes: vec![process], rows: vec![row] }
    }

    proptest! {
        #[test]
        fn the_whole_is_what_one_process_would_have_told(
            a in proptest::collection::vec(0u64..2000, 0..40),
            b in proptest::collection::vec(0u64..2000, 0..40),
            failures in (0u64..9, 0u64..9),
        ) {
            let reports = [report("a", &a, failures.0), report("b", &b, failures.1)];
            let sent: Vec<Report> = reports
                .iter()
                .map(|report| serde_json::from_str(&serde_json::to_string(report).unwrap()).unwrap())
                .collect();
            let whole = Report::merge(sent, false).unwrap();
            let one = report("c", &[a, b].concat(), failures.0 + failures.1);
            let figures = |report: &Report| report.rows[0].figures.clone();
            prop_assert!((figures(&whole).rps - figures(&one).rps).abs() < 1e-9);
            let rps = figures(&one).rps;
            prop_assert_eq!(Figures { rps, ..figures(&whole) }, figures(&one));
            prop_assert_eq!((whole.rows[0].retries, whole.processes.len()), (2, 2));
            prop_assert_eq!(whole.rows[0].causes, one.rows[0].causes);
            prop_assert_eq!(&whole.rows[0].failed_by, &one.rows[0].failed_by);
        }
    }

    #[test]
    fn a_process_that_was_asked_twice_counts_once() {
        let both =
            Report::merge([report("a", &[1], 0), report("a", &[1], 0), report("b", &[2], 0)], false).unwrap();
        assert_eq!((both.rows[0].figures.requests, both.processes.len()), (2, 2));
        let apart = Report::merge([report("a", &[1], 0), report("b", &[2], 0)], true).unwrap();
        assert_eq!(
            apart.rows.iter().map(|row| row.process.as_deref()).collect::<Vec<_>>(),
            [Some("a"), Some("b")]
        );
    }

    #[test]
    fn steps_are_added() {
        let series = |rps: &[Option<f64>], rate: &[Option<f64>], p95: &[Option<f64>]| Series {
            step_secs: 5.0,
            rps: rps.to_vec(),
            success_rate: rate.to_vec(),
            p95_ms: p95.to_vec(),
        };
        let mut mine =
            series(&[Some(1.0), None, Some(0.0)], &[Some(1.0), None, None], &[Some(5.0), None, None]);
        mine.add(&series(
            &[Some(3.0), Some(2.0), Some(0.0)],
            &[Some(0.5), Some(0.1), None],
            &[Some(9.0), Some(1.0), None],
        ));
        let expected = series(
            &[Some(4.0), Some(2.0), Some(0.0)],
            &[Some(0.625), Some(0.1), None],
            &[Some(9.0), Some(1.0), None],
        );
        assert_eq!(mine, expected);
    }

    #[test]
    fn other_buckets_are_refused() {
        let mut other = report("b", &[2], 0);
        other.histogram.sub_bits = 5;
        assert!(Report::merge([report("a", &[1], 0), other], false).unwrap_err().contains("other buckets"));
    }

    #[test]
    fn linkerd_s_buckets_err_by_tens_of_percent_where_ours_err_by_less_than_one() {
        // A bell of latencies around 110 ms, as a service that does one thing has.
        let values: Vec<f64> = (0..10_000).map(|i| 110.0 + 4.0 * bell(f64::from(i) / 10_000.0)).collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let histogram = Histogram::default();
        values.iter().for_each(|ms| histogram.record(Duration::from_secs_f64(ms / 1e3)));
        let counts = histogram.read();
        let mut told = Vec::new();
        for q in [0.5, 0.95, 0.99] {
            let truth = sorted[(q * 10_000.0) as usize - 1];
            let ours = counts.quantile(q).unwrap().as_secs_f64() * 1e3;
            let theirs = interpolated(&sorted, q);
            assert!((ours / truth - 1.0).abs() < 0.01, "{q}: {ours} for {truth}");
            told.push(((theirs / truth - 1.0) * 100.0).round());
        }
        // docs/tool.md tells these.
        assert_eq!(told, [36.0, 67.0, 65.0]);
    }

    /// A number between -3 and 3 with a share of about `share` below it (a logistic curve for the normal one).
    fn bell(share: f64) -> f64 {
        let share = share.clamp(0.002, 0.998);
        (share / (1.0 - share)).ln() / 1.702
    }

    /// `histogram_quantile` of Prometheus over Linkerd's buckets.
    fn interpolated(sorted: &[f64], q: f64) -> f64 {
        let bounds = crate::metrics::families::LATENCY_MS;
        let rank = q * sorted.len() as f64;
        let below = |bound: f64| sorted.iter().filter(|value| **value <= bound).count() as f64;
        let at = bounds.iter().position(|bound| below(*bound) >= rank).unwrap();
        let (low, high) = (bounds[at - 1], bounds[at]);
        low + (high - low) * (rank - below(low)) / (below(high) - below(low))
    }
}
