//! Floor 2: gathers what requests took, until there is enough to judge by.

use std::time::{Duration, Instant};

/// The least samples of a window: fewer say nothing (Netflix, `WindowedLimit`).
pub const SAMPLES_MIN: u32 = 10;
/// The least time of a window: a limit that moves ten times a second follows any deployment.
pub const WINDOW_MIN: Duration = Duration::from_millis(100);

/// One request that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// From its place to its response's headers.
    pub latency: Duration,
    /// How many were in flight then.
    pub in_flight: u32,
    /// Whether it ended as requests end where there are too many: refused, or not in time.
    pub dropped: bool,
}

/// What the requests of a while took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    sum: f64,
    count: u32,
    /// The most that were in flight.
    pub in_flight_max: f64,
    /// Whether more than one in twenty was dropped.
    pub dropped: bool,
}

impl Window {
    /// The mean latency in seconds; above zero.
    pub fn mean(&self) -> f64 {
        (self.sum / f64::from(self.count.max(1))).max(1e-9)
    }

    /// The same while requests take `mean` seconds.
    #[cfg(test)]
    pub(crate) fn of(mean: f64, like: &Self) -> Self {
        Self { sum: mean * f64::from(like.count), ..*like }
    }
}

/// What was gathered so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Samples {
    since: Option<Instant>,
    sum: f64,
    count: u32,
    dropped: u32,
    in_flight_max: u32,
}

impl Samples {
    /// Adds one; the window, if that makes it whole.
    pub fn add(&mut self, sample: Sample, now: Instant) -> Option<Window> {
        let since = *self.since.get_or_insert(now);
        let secs = sample.latency.as_secs_f64();
        self.sum += secs;
        self.count += 1;
        self.dropped += u32::from(sample.dropped);
        self.in_flight_max = self.in_flight_max.max(sample.in_flight);
        if self.count < SAMPLES_MIN || now.saturating_duration_since(since) < WINDOW_MIN {
            return None;
        }
        let whole = std::mem::take(self);
        self.since = Some(now);
        Some(Window {
            sum: whole.sum,
            count: whole.count,
            in_flight_max: f64::from(whole.in_flight_max),
            dropped: whole.dropped.saturating_mul(20) > whole.count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    #[test]
    fn a_window_has_samples_and_time_enough() {
        let (mut samples, start) = (Samples::default(), clock::now());
        let mut add = |ms: u64, latency: u64, dropped: bool| {
            let latency = Duration::from_millis(latency);
            samples.add(Sample { latency, in_flight: 3, dropped }, start + Duration::from_millis(ms))
        };
        assert_eq!((0..20).find_map(|n| add(n, 10, false)), None, "there was too little time");
        let window = add(100, 31, true).unwrap();
        assert!((window.mean() - 0.011).abs() < 1e-9);
        assert!(!window.dropped && window.in_flight_max == 3.0);
        assert_eq!((0..9).find_map(|n| add(200 + n, 10, false)), None, "there were too few");
        assert!(add(250, 10, true).unwrap().dropped);
    }
}
