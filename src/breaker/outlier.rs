//! Floor 2: endpoints that do much worse than their peers (gRPC A50, Envoy's outlier detection).

use crate::breaker::detect::{Detect, lowers_rate};
use crate::breaker::event::Reason;
use crate::classify::outcome::{Cause, Outcome};
use crate::profile::settings::Detector;
use crate::stdx::moment::Moment;
use crate::stdx::sync::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One endpoint's ends in the present interval: failures above, successes below, in one word.
#[derive(Debug, Default)]
pub struct Tally {
    word: AtomicU64,
}

impl Tally {
    /// Successes and failures since the last time it was asked.
    pub fn take(&self) -> (u32, u32) {
        let word = self.word.swap(0, Relaxed);
        (word as u32, (word >> 32) as u32)
    }
}

impl Detect for Tally {
    #[inline]
    fn record(&self, _: Moment, outcome: &Outcome) -> Option<Reason> {
        if outcome.cause != Cause::Local {
            self.word.fetch_add(if lowers_rate(outcome) { 1 << 32 } else { 1 }, Relaxed);
        }
        None
    }

    fn counts(&self, outcome: &Outcome) -> bool {
        lowers_rate(outcome)
    }

    fn reset(&self) {
        self.word.store(0, Relaxed);
    }
}

/// The interval of a detector that compares endpoints.
pub fn interval(detector: &Detector) -> Option<Duration> {
    match detector {
        Detector::Deviation { interval, .. } | Detector::FailurePercent { interval, .. } => Some(*interval),
        Detector::Consecutive { .. } | Detector::SuccessRate { .. } => None,
    }
}

/// The endpoints to be left alone, given each one's successes and failures of the interval: for a deviation
/// those whose rate is below the mean less `factor` standard deviations, for a percentage those whose failures
/// reach it. Endpoints with too few requests are neither judged nor counted, and too few endpoints are not
/// judged at all.
pub fn outliers(detector: &Detector, tallies: &[(u32, u32)]) -> Vec<(usize, Reason)> {
    let (hosts, requests) = match detector {
        Detector::Deviation { min_hosts, min_requests, .. }
        | Detector::FailurePercent { min_hosts, min_requests, .. } => (*min_hosts, *min_requests),
        Detector::Consecutive { .. } | Detector::SuccessRate { .. } => return Vec::new(),
    };
    let total = |(ok, failed): &(u32, u32)| u64::from(*ok) + u64::from(*failed);
    let rates: Vec<(usize, f64)> = tallies
        .iter()
        .enumerate()
        .filter(|(_, tally)| total(tally) >= u64::from(requests.max(1)))
        .map(|(index, tally)| (index, f64::from(tally.0) / total(tally) as f64))
        .collect();
    if rates.is_empty() || (rates.len() as u64) < u64::from(hosts) {
        return Vec::new();
    }
    match detector {
        Detector::Deviation { factor_milli, .. } => {
            let count = rates.len() as f64;
            let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
            let variance = rates.iter().map(|(_, rate)| (rate - mean) * (rate - mean)).sum::<f64>() / count;
            let threshold = mean - variance.sqrt() * f64::from(*factor_milli) / 1000.0;
            let below = rates.into_iter().filter(|(_, rate)| *rate < threshold);
            below.map(|(index, rate)| (index, Reason::Deviation { rate, threshold })).collect()
        }
        Detector::FailurePercent { threshold, .. } => {
            let percent = |rate: f64| (1.0 - rate) * 100.0;
            let above = rates.into_iter().filter(|(_, rate)| percent(*rate) >= f64::from(*threshold));
            above.map(|(index, rate)| (index, Reason::FailurePercent { percent: percent(rate) })).collect()
        }
        Detector::Consecutive { .. } | Detector::SuccessRate { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(10);

    fn check(detector: &Detector, tallies: &[(u32, u32)], expected: &[usize]) {
        let found: Vec<usize> = outliers(detector, tallies).into_iter().map(|(index, _)| index).collect();
        assert_eq!(found, expected, "{detector:?}");
    }

    #[test]
    fn the_one_far_below_its_peers_is_found() {
        let detector =
            Detector::Deviation { factor_milli: 1900, min_hosts: 5, min_requests: 100, interval: S };
        let good = (100, 0);
        check(&detector, &[good, good, good, good, good, (10, 90)], &[5]);
        check(&detector, &[good, good, good, good, good, good], &[]);
        // All equally bad: nobody stands out.
        check(&detector, &[(10, 90); 6], &[]);
        // Too few peers, too few requests.
        check(&detector, &[good, good, good, (10, 90)], &[]);
        check(&detector, &[good, good, good, good, good, (1, 9)], &[]);
    }

    #[test]
    fn failures_that_reach_the_percentage_are_found() {
        let detector =
            Detector::FailurePercent { threshold: 85, min_hosts: 2, min_requests: 50, interval: S };
        check(&detector, &[(100, 0), (5, 95), (16, 84), (15, 85)], &[1, 3]);
        check(&detector, &[(5, 95), (5, 95)], &[0, 1]);
        check(&detector, &[(5, 95)], &[]);
    }
}
