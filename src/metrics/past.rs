//! Floor 2: the past of every row, so that whoever asks gets the last seconds or the last hour.

use crate::metrics::report::{Facts, Figures, Kind, Row, RowKey, Series};
use crate::metrics::stat::Reading;
use crate::stdx::histogram::Counts;
use crate::stdx::history::History;
use crate::stdx::packed::Packed;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the past takes a value, and how far back each tier goes: for windows of 10 s, 5 min and 1 h. The second
/// one holds the sparklines of a page.
const TIERS: [(Duration, Duration); 3] = [
    (STEP, Duration::from_secs(10)),
    (SERIES_STEP, Duration::from_secs(300)),
    (Duration::from_secs(120), WINDOW_MAX),
];

/// How often the past is to take a value.
pub const STEP: Duration = Duration::from_secs(1);

/// The step of a [`Series`].
pub const SERIES_STEP: Duration = Duration::from_secs(5);

/// The longest window.
pub const WINDOW_MAX: Duration = Duration::from_secs(3600);

/// The most rows whose latencies are kept: each costs up to 35 KiB while its route is in use, so 70 MiB in all. Those beyond,
/// in order of their keys, have counts alone.
pub const LATENCIES_MAX: usize = 2048;

/// What a row has counted up to now.
#[derive(Debug, Clone)]
pub struct Total {
    /// What it counts.
    pub key: Arc<RowKey>,
    /// What is known of it.
    pub facts: Facts,
    /// How much.
    pub reading: Reading,
}

/// What a row had counted, in few bytes.
#[derive(Debug)]
struct Kept {
    /// Without the latencies.
    counts: Reading,
    latencies: u64,
    latency: Packed,
}

type Moment = Arc<BTreeMap<Arc<RowKey>, Arc<Kept>>>;

/// The past of all rows.
#[derive(Debug)]
pub struct Past {
    history: History<Moment>,
    last: Moment,
}

impl Past {
    /// A past that begins at `now` with nothing counted.
    pub fn new(now: Instant) -> Self {
        let nothing = Moment::default();
        Self { history: History::new(&TIERS, now, Arc::clone(&nothing)), last: nothing }
    }

    /// Takes what was counted up to `now`. To be called every [`STEP`].
    pub fn push(&mut self, now: Instant, totals: &[Total]) {
        let mut keys: Vec<&Total> = totals.iter().collect();
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        let kept = keys.into_iter().enumerate().map(|(at, total)| {
            let (key, before) = match self.last.get_key_value(&total.key) {
                Some((key, before)) => (Arc::clone(key), Some(before)),
                None => (Arc::clone(&total.key), None),
            };
            (key, Kept::of(&total.reading, before, at < LATENCIES_MAX))
        });
        self.last = Arc::new(kept.collect());
        self.history.push(now, &self.last);
    }

    /// The rows of the last `window` up to `now`, at most [`WINDOW_MAX`], of what `totals` say is counted by then.
    pub fn window(&self, now: Instant, window: Duration, totals: &[Total]) -> Vec<Row> {
        let Some((then, before)) = self.history.before(now, window.min(WINDOW_MAX)) else {
            return Vec::new();
        };
        let length = now.saturating_duration_since(*then);
        let differences = totals.iter().map(|total| {
            let difference = match before.get(&total.key) {
                Some(kept) => kept.until(&total.reading),
                None => total.reading.clone(),
            };
            (total, difference)
        });
        let differences: Vec<(&Total, Reading)> = differences.collect();
        let attempts = attempts(&differences);
        let mut rows: Vec<Row> =
            differences.iter().map(|(total, reading)| row(total, reading, length, &attempts)).collect();
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows
    }

    /// The last five minutes of one row in steps of [`SERIES_STEP`].
    pub fn series(&self, now: Instant, total: &Total) -> Series {
        let steps = TIERS[1].1.as_secs() / SERIES_STEP.as_secs();
        let mut series = Series {
            step_secs: SERIES_STEP.as_secs_f64(),
            rps: Vec::new(),
            success_rate: Vec::new(),
            p95_ms: Vec::new(),
        };
        let at = |age: u64| {
            let (at, moment) =
                self.history.before(now, SERIES_STEP * u32::try_from(age).unwrap_or(u32::MAX))?;
            Some((*at, moment.get(&total.key).map(|kept| kept.reading()).unwrap_or_default()))
        };
        let mut earlier = at(steps);
        for age in (0..steps).rev() {
            let later = if age == 0 { Some((now, total.reading.clone())) } else { at(age) };
            let figures =
                earlier.as_ref().zip(later.as_ref()).and_then(|((then, before), (until, after))| {
                    let length = until.saturating_duration_since(*then);
                    (!length.is_zero()).then(|| Figures::of(&difference(before, after), length))
                });
            series.rps.push(figures.as_ref().map(|figures| figures.rps));
            series.success_rate.push(figures.as_ref().and_then(|figures| figures.success_rate));
            series.p95_ms.push(figures.and_then(|figures| Some(figures.latency_ms?.p95)));
            earlier = later;
        }
        series
    }
}

impl Kept {
    fn of(reading: &Reading, before: Option<&Arc<Self>>, latencies_too: bool) -> Arc<Self> {
        let counts = Reading { latency: Counts::default(), ..reading.clone() };
        let latencies = if latencies_too { reading.latency.total() } else { 0 };
        match before {
            // Most rows rest most of the time: then all of their past is one.
            Some(before) if before.counts == counts && before.latencies == latencies => Arc::clone(before),
            _ => {
                let latency = if latencies_too { Packed::new(&reading.latency) } else { Packed::default() };
                Arc::new(Self { counts, latencies, latency })
            }
        }
    }

    fn reading(&self) -> Reading {
        Reading { latency: self.latency.unpack(), ..self.counts.clone() }
    }

    /// What came between this and `now`.
    fn until(&self, now: &Reading) -> Reading {
        let mut difference = difference(&self.reading(), now);
        if self.latencies == 0 && self.counts.requests > 0 {
            // Its latencies are not kept.
            difference.latency = Counts::default();
        }
        difference
    }
}

/// What came between two readings. A row that counts less than before began anew.
fn difference(before: &Reading, after: &Reading) -> Reading {
    let began_anew = after.requests < before.requests
        || after.successes < before.successes
        || after.failures < before.failures
        || after.attempts < before.attempts;
    if began_anew { after.clone() } else { after.since(before) }
}

/// The latencies of all attempts of a route, whatever their backend: what its backends' rows have together.
fn attempts(differences: &[(&Total, Reading)]) -> BTreeMap<(String, String), Counts> {
    let mut sums: BTreeMap<(String, String), Counts> = BTreeMap::new();
    for (total, reading) in differences {
        if let (Kind::Backend, Some(route)) = (total.key.kind, &total.key.route) {
            let sum = sums.entry((total.key.service.clone(), route.clone())).or_default();
            *sum = sum.merge(&reading.latency);
        }
    }
    sums
}

fn row(
    total: &Total,
    reading: &Reading,
    length: Duration,
    attempts: &BTreeMap<(String, String), Counts>,
) -> Row {
    let key = RowKey::clone(&total.key);
    let all = &total.reading;
    let has_attempts = key.kind == Kind::Route && key.direction == crate::metrics::names::Direction::Outbound;
    let actual = has_attempts.then(|| {
        let latency = attempts.get(&(key.service.clone(), key.route.clone().unwrap_or_default()));
        let actual = Reading {
            requests: reading.attempts,
            successes: reading.attempt_successes,
            failures: reading.attempt_failures,
            latency: latency.cloned().unwrap_or_default(),
            ..Reading::default()
        };
        Figures::of(&actual, length)
    });
    Row {
        process: None,
        facts: total.facts.clone(),
        elapsed_secs: length.as_secs_f64(),
        in_flight: all.requests.saturating_sub(all.successes + all.failures + all.cancelled),
        figures: Figures::of(reading, length),
        retries: if has_attempts { reading.retries() } else { 0 },
        no_budget: reading.no_budget,
        causes: reading.causes,
        failed_by: reading.failed.told(),
        actual,
        series: None,
        key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::Direction;
    use crate::stdx::histogram::Histogram;

    const SECOND: Duration = Duration::from_secs(1);

    fn total(requests: u64, histogram: &Histogram) -> Total {
        let reading = Reading {
            requests,
            successes: requests,
            attempts: requests + requests / 10,
            attempt_successes: requests,
            attempt_failures: requests / 10,
            latency: histogram.read(),
            ..Reading::default()
        };
        let key = Arc::new(RowKey::route(Direction::Outbound, "web:80", "r"));
        Total { key, facts: Facts::default(), reading }
    }

    #[test]
    fn a_window_tells_its_own_seconds_and_no_others() {
        let start = crate::stdx::clock::now();
        let (mut past, histogram) = (Past::new(start), Histogram::default());
        // A hundred requests of 1 ms each second for a minute, then ten of 100 ms.
        let mut requests = 0;
        for second in 0..120u32 {
            past.push(start + SECOND * second, &[total(requests, &histogram)]);
            let (many, ms) = if second < 60 { (100, 1) } else { (10, 100) };
            (0..many).for_each(|_| histogram.record(Duration::from_millis(ms)));
            requests += many;
        }
        let now = start + SECOND * 120;
        let check = |window: u64, expected: (u64, f64, f64, f64)| {
            let row = &past.window(now, Duration::from_secs(window), &[total(requests, &histogram)])[0];
            let latency = row.figures.latency_ms.unwrap();
            assert_eq!(
                (row.figures.requests, row.elapsed_secs, row.figures.rps),
                (expected.0, expected.1, expected.2)
            );
            assert!((latency.p50 / expected.3 - 1.0).abs() < 0.01, "{window}: {latency:?}");
        };
        check(10, (100, 10.0, 10.0, 100.0));
        check(60, (600, 60.0, 10.0, 100.0));
        check(3600, (6600, 120.0, 55.0, 1.0));
        let series = past.series(now, &total(requests, &histogram));
        assert_eq!((series.rps.len(), series.rps[59], series.rps[40]), (60, Some(10.0), Some(100.0)));
        assert_eq!(series.rps[30], None, "before its beginning there is nothing");
    }

    #[test]
    fn a_row_that_began_anew_does_not_count_backwards() {
        let start = crate::stdx::clock::now();
        let (mut past, histogram) = (Past::new(start), Histogram::default());
        past.push(start + SECOND, &[total(1000, &histogram)]);
        let row = &past.window(start + SECOND * 2, SECOND, &[total(7, &histogram)])[0];
        assert_eq!((row.figures.requests, row.in_flight), (7, 0));
    }

    #[test]
    fn a_row_at_rest_costs_no_memory() {
        let start = crate::stdx::clock::now();
        let (mut past, histogram) = (Past::new(start), Histogram::default());
        histogram.record(SECOND);
        for second in 1..=10 {
            past.push(start + SECOND * second, &[total(1, &histogram)]);
        }
        let key = RowKey::route(Direction::Outbound, "web:80", "r");
        assert_eq!(Arc::strong_count(&past.last[&key]), 10, "ten moments share one");
    }

    #[test]
    fn beyond_the_cap_rows_have_counts_alone() {
        let start = crate::stdx::clock::now();
        let (mut past, histogram) = (Past::new(start), Histogram::default());
        histogram.record(SECOND);
        let many = |requests: u64| -> Vec<Total> {
            let key = |n| Arc::new(RowKey::route(Direction::Outbound, "web:80", &format!("{n:05}")));
            (0..=LATENCIES_MAX).map(|n| Total { key: key(n), ..total(requests, &histogram) }).collect()
        };
        past.push(start + SECOND, &many(1));
        histogram.record(SECOND);
        let rows = past.window(start + SECOND * 2, SECOND, &many(2));
        let last = rows.len() - 1;
        assert!(rows[0].figures.latency_ms.is_some() && rows[last].figures.latency_ms.is_none());
        assert_eq!(rows[last].figures.requests, 1);
    }
}
