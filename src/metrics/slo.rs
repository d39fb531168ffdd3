//! Floor 2: objectives: how much of their error budgets is left, and how fast it burns.
//!
//! The definitions are those of the SRE Workbook (chapter 5, "Alerting on SLOs"): the *burn rate* is the share of bad
//! events by the share that the objective allows, so that at 1 the budget is just used up when the window ends. An alert
//! fires when the burn rates of a long window and of a short one, a twelfth of it, are both above a threshold: the long
//! one says that it matters, the short one that it still goes on.

use crate::metrics::names::Direction;
use crate::metrics::report::{Process, grouped, take_processes};
use crate::metrics::stat::Reading;
use crate::profile::settings::Objective;
use crate::stdx::history::History;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

/// Pairs of windows and the share of the budget that is used up when the first one's alert fires (SRE Workbook, table
/// 5-8). Over 30 days their thresholds are 14.4, 6 and 1.
const PAIRS: [(Severity, u64, u64, f64); 3] = [
    (Severity::Page, HOUR, 5 * MINUTE, 0.02),
    (Severity::Page, 6 * HOUR, 30 * MINUTE, 0.05),
    (Severity::Ticket, 72 * HOUR, 6 * HOUR, 0.1),
];

/// How far back counts are kept, and how finely: each window is at most 3 % too long. 900 moments in all, 16 bytes for each objective.
const TIERS: [(Duration, Duration); 4] = [
    (STEP, Duration::from_secs(5 * MINUTE)),
    (Duration::from_secs(MINUTE), Duration::from_secs(HOUR)),
    (Duration::from_secs(5 * MINUTE), Duration::from_secs(6 * HOUR)),
    (Duration::from_secs(HOUR), Duration::from_secs(30 * 24 * HOUR)),
];

/// How often counts are to be taken.
pub const STEP: Duration = Duration::from_secs(10);

/// The most objectives that are measured, in order of their names: 40 MiB at worst.
pub const OBJECTIVES_MAX: usize = 1000;

/// What an objective is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aim {
    /// Calls that succeed.
    Availability,
    /// Calls that are answered in time.
    Latency,
}

/// How soon somebody must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Now.
    Page,
    /// In the next days.
    Ticket,
}

/// One objective: what is promised of whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Promise {
    /// Which way the traffic goes.
    pub direction: Direction,
    /// The service (label `dst`).
    pub service: String,
    /// The route; `None`: the whole service.
    pub route: Option<String>,
    /// What it is about.
    pub aim: Aim,
    /// The share of good calls, in millionths.
    pub target_ppm: u32,
    /// The latency of a good call, where that is what it is about.
    pub threshold: Option<Duration>,
    /// The window that it is judged over.
    pub window: Duration,
}

impl Promise {
    /// What an objective promises: availability, latency or both.
    pub fn of(
        direction: Direction,
        service: &str,
        route: Option<&str>,
        objective: &Objective,
    ) -> impl Iterator<Item = Self> {
        let one = |aim, target_ppm, threshold| Self {
            direction,
            service: service.to_owned(),
            route: route.map(str::to_owned),
            aim,
            target_ppm,
            threshold,
            window: objective.window,
        };
        let available = objective.availability_ppm.map(|ppm| one(Aim::Availability, ppm, None));
        let latency = objective
            .latency
            .map(|threshold| one(Aim::Latency, objective.latency_share_ppm, Some(threshold)));
        available.into_iter().chain(latency)
    }

    /// How many calls there were, and how many of them were not good. A call whose caller went away is neither; the latency of one
    /// that failed counts like any other's.
    pub fn count(&self, reading: &Reading) -> Count {
        match self.threshold {
            None => Count { total: reading.successes + reading.failures, bad: reading.failures },
            Some(threshold) => Count { total: reading.latency.total(), bad: reading.latency.over(threshold) },
        }
    }
}

/// Calls, and those of them that were not good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// All.
    pub total: u64,
    /// Those that were not good.
    pub bad: u64,
}

impl Count {
    fn since(self, earlier: Self) -> Self {
        match (self.total.checked_sub(earlier.total), self.bad.checked_sub(earlier.bad)) {
            (Some(total), Some(bad)) => Self { total, bad },
            // What counts less than before began anew.
            _ => self,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { total: self.total.saturating_add(other.total), bad: self.bad.saturating_add(other.bad) }
    }

    fn bad_share(self) -> Option<f64> {
        (self.total > 0).then(|| self.bad as f64 / self.total as f64)
    }
}

type Moment = Arc<BTreeMap<Arc<Promise>, Count>>;

/// The past of all objectives.
#[derive(Debug)]
pub struct Budgets {
    history: History<Moment>,
    last: Moment,
}

impl Budgets {
    /// A past that begins at `now`.
    pub fn new(now: Instant) -> Self {
        let nothing = Moment::default();
        Self { history: History::new(&TIERS, now, Arc::clone(&nothing)), last: nothing }
    }

    /// Takes what was counted up to `now`. To be called every [`STEP`].
    pub fn push(&mut self, now: Instant, counts: &[(Promise, Count)]) {
        let shared = |promise: &Promise| match self.last.get_key_value(promise) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(promise.clone()),
        };
        let moment: BTreeMap<Arc<Promise>, Count> =
            counts.iter().take(OBJECTIVES_MAX).map(|(promise, count)| (shared(promise), *count)).collect();
        if moment != *self.last {
            self.last = Arc::new(moment);
        }
        self.history.push(now, &self.last);
    }

    /// How each objective is kept, by what was counted up to `now`.
    pub fn standing(&self, now: Instant, counts: &[(Promise, Count)]) -> Vec<Standing> {
        let within = |promise: &Promise, count: Count, window: Duration| {
            let (at, then) = self.history.before(now, window)?;
            let earlier = then.get(promise).copied().unwrap_or_default();
            Some((count.since(earlier), now.saturating_duration_since(*at)))
        };
        let standing = counts.iter().take(OBJECTIVES_MAX).map(|(promise, count)| {
            let (whole, covered) = within(promise, *count, promise.window).unwrap_or_default();
            let pairs = PAIRS.iter().filter(|(_, long, ..)| Duration::from_secs(*long) <= promise.window);
            let burn = pairs.map(|(severity, long, short, share)| {
                let of = |secs: u64| within(promise, *count, Duration::from_secs(secs)).unwrap_or_default().0;
                let at_one = promise.window.as_secs_f64() / *long as f64;
                Burn {
                    severity: *severity,
                    long: written(*long),
                    short: written(*short),
                    // Below 1 the budget lasts for the whole window, and nobody need be told.
                    threshold: (share * at_one).max(1.0),
                    long_count: of(*long),
                    short_count: of(*short),
                    long_rate: None,
                    short_rate: None,
                    firing: false,
                }
            });
            let mut standing = Standing {
                direction: promise.direction,
                service: promise.service.clone(),
                route: promise.route.clone(),
                kind: promise.aim,
                target: f64::from(promise.target_ppm) / 1e6,
                threshold_ms: promise.threshold.map(|threshold| threshold.as_secs_f64() * 1e3),
                window_secs: promise.window.as_secs_f64(),
                covered_secs: covered.as_secs_f64(),
                count: whole,
                sli: None,
                budget_left: None,
                burn: burn.collect(),
            };
            standing.judge();
            standing
        });
        standing.collect()
    }
}

fn written(secs: u64) -> String {
    match secs {
        secs if secs.is_multiple_of(24 * HOUR) => format!("{}d", secs / (24 * HOUR)),
        secs if secs.is_multiple_of(HOUR) => format!("{}h", secs / HOUR),
        secs => format!("{}m", secs / MINUTE),
    }
}

/// How an objective is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Which way the traffic goes.
    pub direction: Direction,
    /// The service (label `dst`).
    pub service: String,
    /// The route; `None`: the whole service.
    pub route: Option<String>,
    /// What it is about.
    pub kind: Aim,
    /// The share of calls that are to be good.
    pub target: f64,
    /// The latency of a good call, where that is what it is about.
    pub threshold_ms: Option<f64>,
    /// The window that it is judged over.
    pub window_secs: f64,
    /// How much of it was measured: a process knows nothing of the time before it began.
    pub covered_secs: f64,
    /// What was counted in the window.
    #[serde(flatten)]
    pub count: Count,
    /// The share of calls that were good; `None` without any.
    pub sli: Option<f64>,
    /// The share of the error budget that is left: 1 untouched, below 0 overspent; `None` without calls.
    pub budget_left: Option<f64>,
    /// How fast it burns.
    pub burn: Vec<Burn>,
}

/// How fast a budget burns over a pair of windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Burn {
    /// What an alert of it is worth.
    pub severity: Severity,
    /// The long window: `1h`.
    pub long: String,
    /// The short one: `5m`.
    pub short: String,
    /// The burn rate above which it fires.
    pub threshold: f64,
    /// What was counted in the long window.
    pub long_count: Count,
    /// What was counted in the short one.
    pub short_count: Count,
    /// The burn rate over the long window; `None` without calls.
    pub long_rate: Option<f64>,
    /// The burn rate over the short one.
    pub short_rate: Option<f64>,
    /// Whether both are above the threshold.
    pub firing: bool,
}

/// The least share of bad calls that an objective allows, for one of 100 %: a call in a billion.
const ALLOWED_MIN: f64 = 1e-9;

impl Standing {
    /// Works out the rates from the counts.
    fn judge(&mut self) {
        let allowed = (1.0 - self.target).max(ALLOWED_MIN);
        let rate = |count: Count| count.bad_share().map(|share| share / allowed);
        self.sli = self.count.bad_share().map(|share| 1.0 - share);
        self.budget_left = rate(self.count).map(|rate| 1.0 - rate);
        for burn in &mut self.burn {
            (burn.long_rate, burn.short_rate) = (rate(burn.long_count), rate(burn.short_count));
            let is_above = |rate: Option<f64>| rate.is_some_and(|rate| rate > burn.threshold);
            burn.firing = is_above(burn.long_rate) && is_above(burn.short_rate);
        }
    }

    /// Adds another process's standing of the same objective, all but what [`judge`](Self::judge) works out.
    fn add(&mut self, other: &Self) {
        self.covered_secs = self.covered_secs.max(other.covered_secs);
        self.count = self.count.plus(other.count);
        for (mine, theirs) in self.burn.iter_mut().zip(&other.burn) {
            mine.long_count = mine.long_count.plus(theirs.long_count);
            mine.short_count = mine.short_count.plus(theirs.short_count);
        }
    }

    /// What tells an objective from others, in the order in which they are shown.
    fn key(&self) -> impl Ord + use<> {
        let numbers =
            (self.target.to_bits(), self.threshold_ms.map(f64::to_bits), self.window_secs.to_bits());
        ((self.direction, self.service.clone(), self.route.clone(), self.kind), numbers)
    }

    /// Whether any of its alerts fires.
    pub fn is_firing(&self) -> bool {
        self.burn.iter().any(|burn| burn.firing)
    }
}

/// The objectives of one process or of many.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Objectives {
    /// Who was asked.
    pub processes: Vec<Process>,
    /// How each is kept, by direction, service and route.
    pub objectives: Vec<Standing>,
}

impl Objectives {
    /// Puts many processes' objectives together: calls and bad calls are added, and rates worked out anew.
    pub fn merge(all: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self::default();
        let mut standings = Vec::new();
        for report in all {
            if take_processes(&mut whole.processes, report.processes) {
                standings.extend(report.objectives.into_iter().map(|standing| (standing.key(), standing)));
            }
        }
        whole.objectives = grouped(standings, Standing::add, Standing::judge);
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::histogram::Histogram;

    const DAY: Duration = Duration::from_secs(24 * HOUR);

    fn promise(target_ppm: u32, days: u32) -> Promise {
        let objective = Objective {
            availability_ppm: Some(target_ppm),
            latency: None,
            latency_share_ppm: 990_000,
            window: DAY * days,
        };
        Promise::of(Direction::Outbound, "web:80", Some("r"), &objective).next().unwrap()
    }

    /// The standing after a history of (seconds, calls each ten seconds, of them bad).
    fn after(promise: &Promise, past: &[(u64, u64, u64)]) -> Standing {
        let start = crate::stdx::clock::now();
        let (mut budgets, mut now, mut count) = (Budgets::new(start), start, Count::default());
        for (secs, total, bad) in past {
            for _ in 0..secs / 10 {
                now += STEP;
                count = count.plus(Count { total: *total, bad: *bad });
                budgets.push(now, &[(promise.clone(), count)]);
            }
        }
        budgets.standing(now, &[(promise.clone(), count)]).remove(0)
    }

    #[test]
    fn thresholds_are_the_workbook_s() {
        let told = |days| {
            let standing = after(&promise(999_000, days), &[(60, 1, 0)]);
            let one =
                |burn: &Burn| (burn.long.clone(), burn.short.clone(), (burn.threshold * 10.0).round() / 10.0);
            standing.burn.iter().map(one).collect::<Vec<_>>()
        };
        let pair = |long: &str, short: &str, threshold| (long.to_owned(), short.to_owned(), threshold);
        assert_eq!(told(30), [pair("1h", "5m", 14.4), pair("6h", "30m", 6.0), pair("3d", "6h", 1.0)]);
        assert_eq!(told(7), [pair("1h", "5m", 3.4), pair("6h", "30m", 1.4), pair("3d", "6h", 1.0)]);
        assert_eq!(
            told(1),
            [pair("1h", "5m", 1.0), pair("6h", "30m", 1.0)],
            "no window longer than the objective's"
        );
    }

    #[test]
    fn a_burn_rate_is_the_bad_share_by_what_is_allowed() {
        // A day without a fault, then two minutes in which every tenth call fails: 1 % of an hour's traffic is 1/30 of 10 %.
        let standing = after(&promise(999_000, 30), &[(24 * HOUR, 100, 0), (120, 100, 10)]);
        let rates = |burn: &Burn| (burn.long_rate.unwrap(), burn.short_rate.unwrap());
        let (long, short) = rates(&standing.burn[0]);
        assert!((long / (0.1 / 30.0 / 0.001) - 1.0).abs() < 0.03, "{long}");
        assert!((short / (0.1 * 2.0 / 5.0 / 0.001) - 1.0).abs() < 0.04, "{short}");
        assert!(!standing.is_firing(), "2 min of 10 % are 3.3 times the rate over an hour");
        let bad = 12 * 10;
        let total = (24 * 360 + 12) * 100;
        assert_eq!(standing.count, Count { total, bad });
        let expected = 1.0 - bad as f64 / total as f64 / 0.001;
        assert!((standing.budget_left.unwrap() - expected).abs() < 1e-9);
        assert_eq!(standing.covered_secs, 24.0 * 3600.0 + 120.0);
    }

    #[test]
    fn an_alert_fires_while_it_goes_on_and_ends_soon_after() {
        let target = promise(999_000, 30);
        let bad = [(6 * HOUR, 100, 0), (600, 100, 10)];
        let firing = |past: &[(u64, u64, u64)]| {
            after(&target, past).burn.iter().map(|burn| burn.firing).collect::<Vec<_>>()
        };
        assert_eq!(
            firing(&bad),
            [true, false, true],
            "100 times the rate for ten minutes is 16 over an hour"
        );
        let over = [bad[0], bad[1], (330, 100, 0)];
        assert!(!firing(&over)[0], "the short window has seen no fault");
        let slow = [(6 * HOUR, 1000, 7)];
        assert_eq!(firing(&slow), [false, true, true]);
    }

    #[test]
    fn without_calls_nothing_is_said_and_a_perfect_objective_is_no_division_by_zero() {
        let silent = after(&promise(999_000, 30), &[(60, 0, 0)]);
        assert_eq!((silent.sli, silent.budget_left, silent.burn[0].long_rate), (None, None, None));
        let perfect = after(&promise(1_000_000, 30), &[(600, 10, 0)]);
        assert_eq!((perfect.budget_left, perfect.is_firing()), (Some(1.0), false));
        let broken = after(&promise(1_000_000, 30), &[(600, 10, 1)]);
        assert!(broken.budget_left.unwrap().is_finite() && broken.is_firing());
    }

    #[test]
    fn latency_counts_what_is_over_its_threshold() {
        let objective = Objective {
            availability_ppm: None,
            latency: Some(Duration::from_millis(300)),
            latency_share_ppm: 950_000,
            window: DAY,
        };
        let promise = Promise::of(Direction::Inbound, "web:80", None, &objective).next().unwrap();
        let histogram = Histogram::default();
        for ms in [1, 299, 300, 310, 9000] {
            histogram.record(Duration::from_millis(ms));
        }
        let reading = Reading { latency: histogram.read(), ..Reading::default() };
        assert_eq!(promise.count(&reading), Count { total: 5, bad: 2 });
        assert_eq!((promise.aim, promise.target_ppm), (Aim::Latency, 950_000));
    }

    #[test]
    fn many_processes_are_judged_as_one() {
        let report = |id: &str, past: &[(u64, u64, u64)]| Objectives {
            processes: vec![Process { id: Some(id.to_owned()), ..Process::default() }],
            objectives: vec![after(&promise(999_000, 30), past)],
        };
        let whole = Objectives::merge([
            report("a", &[(600, 10, 0)]),
            report("b", &[(600, 10, 2)]),
            report("b", &[(600, 10, 2)]),
        ]);
        let one = after(&promise(999_000, 30), &[(600, 20, 2)]);
        assert_eq!(whole.objectives, [one]);
        assert_eq!(whole.processes.len(), 2);
    }

    #[test]
    fn what_began_anew_does_not_count_backwards() {
        let start = crate::stdx::clock::now();
        let mut budgets = Budgets::new(start);
        let key = promise(999_000, 30);
        budgets.push(start + STEP, &[(key.clone(), Count { total: 100, bad: 9 })]);
        let now = start + Duration::from_secs(400);
        let standing = &budgets.standing(now, &[(key, Count { total: 5, bad: 1 })])[0];
        assert_eq!(standing.burn[0].short_count, Count { total: 5, bad: 1 });
    }
}
