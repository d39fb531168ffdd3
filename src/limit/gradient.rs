//! Floor 2: a limit that follows latency by its gradient (Netflix `concurrency-limits`, `Gradient2Limit`).

use crate::limit::sample::Window;

/// Compares the latency of now with what is usual: when it grows, requests queue up behind us, and the limit shrinks by
/// the ratio of the two; otherwise it grows by a few.
///
/// Against `Gradient2Limit` (performance.md §2.9): averages are taken of windows and not of single samples, so that a
/// busy service does not forget its past within a second; and what is usual is learned from windows in which the limit
/// was not reached. While it is, a slower service and a longer queue look alike, and an average of both drifts until
/// there is no limit. So from time to time, and when the limit has halved, it is cut to a half for three windows: what
/// is as slow then is not our doing, and usual from then on (Envoy's adaptive concurrency measures so too).
#[derive(Debug, Clone, Copy)]
pub struct Gradient2 {
    limit: f64,
    usual: f64,
    /// Windows at the limit since the last measurement.
    full: u32,
    /// The limit at the last measurement.
    measured: f64,
    /// Windows that are left of a measurement.
    measuring: u32,
}

/// The least limit: below it one slow request would stop all others. As Netflix has it, and as few as Linkerd probes.
pub const LIMIT_MIN: f64 = 4.0;
/// The limit before anything is known (Netflix).
pub const LIMIT_FIRST: f64 = 20.0;
/// How many may queue up behind us without harm, at least (Netflix); above a limit of 16, its square root (Envoy).
const QUEUE_MIN: f64 = 4.0;
/// How much slower than usual is still usual (Netflix).
const TOLERANCE: f64 = 1.5;
/// The weight of a new limit against the old one (Netflix).
const SMOOTHING: f64 = 0.2;
/// How many windows the average remembers (Netflix, in samples).
const MEMORY: f64 = 600.0;
/// The least gradient: no window can cut the limit by more than a tenth.
const GRADIENT_MIN: f64 = 0.5;
/// After how many windows at the limit it is measured: half a minute, so that it costs less than one request in a
/// hundred.
const FULL_MAX: u32 = 300;
/// How many windows a measurement takes: the first still sees what was there before.
pub(crate) const MEASURING: u32 = 3;

impl Gradient2 {
    /// Begins with `first`.
    pub fn new(first: f64) -> Self {
        let limit = first.max(LIMIT_MIN);
        Self { limit, usual: 0.0, full: 0, measured: limit, measuring: 0 }
    }

    /// The limit after a window, at most `max`.
    pub fn update(&mut self, window: &Window, max: f64) -> f64 {
        let short = window.mean();
        if self.measuring > 0 {
            self.measuring -= 1;
            if self.measuring > 0 {
                return self.half(max);
            }
            (self.usual, self.full, self.measured) = (short, 0, self.limit);
            return self.limit;
        }
        let is_full = window.in_flight_max >= self.limit.floor();
        self.learn(short, is_full);
        if is_full {
            self.full += 1;
            if self.full >= FULL_MAX || self.limit < self.measured / 2.0 {
                self.measuring = MEASURING;
                return self.half(max);
            }
        }
        if !window.dropped && window.in_flight_max < self.limit / 2.0 {
            return self.limit;
        }
        let gradient = (TOLERANCE * self.usual / short).clamp(GRADIENT_MIN, 1.0);
        let next = match window.dropped {
            true => self.limit * GRADIENT_MIN,
            false => self.limit * gradient + QUEUE_MIN.max(self.limit.sqrt()),
        };
        self.limit = (self.limit * (1.0 - SMOOTHING) + next * SMOOTHING).clamp(LIMIT_MIN.min(max), max);
        self.limit
    }

    fn learn(&mut self, short: f64, is_full: bool) {
        if self.usual == 0.0 {
            self.usual = short;
        } else if short < self.usual || !is_full {
            self.usual += (short - self.usual) * (2.0 / (MEMORY + 1.0));
        }
        // A service that became faster is not held to its slow past.
        if self.usual > 2.0 * short {
            self.usual *= 0.9;
        }
    }

    fn half(&self, max: f64) -> f64 {
        (self.limit / 2.0).clamp(1.0, max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::sample::{Sample, Samples};
    use crate::limit::vegas::Vegas;
    use crate::stdx::clock;
    use std::time::Duration;

    /// The limits after each of `windows` windows before a service that works on `cores` requests at a time, 10 ms
    /// each, while `offered` are there to be sent.
    fn run(cores: u32, offered: u32, windows: u32, mut update: impl FnMut(&Window) -> f64) -> Vec<f64> {
        let (mut samples, mut now, mut limit) = (Samples::default(), clock::now(), LIMIT_FIRST);
        let mut limits = Vec::new();
        while limits.len() < windows as usize {
            let in_flight = offered.min(limit as u32);
            let latency = Duration::from_millis(10) * in_flight.max(cores) / cores;
            now += latency / in_flight;
            if let Some(window) = samples.add(Sample { latency, in_flight, dropped: false }, now) {
                limit = update(&window);
                limits.push(limit);
            }
        }
        limits
    }

    /// Checks that the limit keeps all cores busy and lets no long queue grow behind us.
    fn check(cores: u32, limits: &[f64]) {
        let cores = f64::from(cores);
        let late = &limits[limits.len() / 2..];
        let high = late.iter().copied().fold(0.0, f64::max);
        let low = late.iter().filter(|limit| **limit < cores).count();
        assert!(
            high < cores * 2.5 + 25.0 && low < late.len() / 20,
            "{cores} cores: at most {high}, {low} times too low"
        );
    }

    #[test]
    fn a_limit_finds_what_the_service_can_do() {
        for cores in [10, 40, 200] {
            let (mut gradient, mut vegas) = (Gradient2::new(LIMIT_FIRST), Vegas::new(LIMIT_FIRST));
            check(cores, &run(cores, 100_000, 600, |window| gradient.update(window, 1000.0)));
            check(cores, &run(cores, 100_000, 600, |window| vegas.update(window, 1000.0)));
        }
    }

    #[test]
    fn a_service_that_became_slower_is_not_taken_for_an_overloaded_one() {
        let mut gradient = Gradient2::new(LIMIT_FIRST);
        let mut windows = 0;
        // From window 600 on a request takes three times as long.
        let slower = |window: &Window| Window::of(window.mean() * 3.0, window);
        let limits = run(100, 100_000, 1200, |window| {
            windows += 1;
            gradient.update(&if windows > 600 { slower(window) } else { *window }, 1000.0)
        });
        let starved = limits[600..].iter().filter(|limit| **limit < 100.0).count();
        assert!(starved < 100, "it starved for {starved} windows: {:?}", &limits[600..]);
        check(100, &limits[900..]);
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_grow() {
        let (mut gradient, mut vegas) = (Gradient2::new(LIMIT_FIRST), Vegas::new(LIMIT_FIRST));
        let used = run(100, 5, 200, |window| gradient.update(window, 1000.0));
        assert!(used.iter().all(|limit| *limit == LIMIT_FIRST), "{used:?}");
        let used = run(100, 5, 200, |window| vegas.update(window, 1000.0));
        assert!(used.iter().all(|limit| *limit == LIMIT_FIRST), "{used:?}");
    }

    #[test]
    fn refusals_shrink_a_limit_to_its_least() {
        let (mut gradient, mut vegas) = (Gradient2::new(500.0), Vegas::new(500.0));
        let (mut samples, mut now) = (Samples::default(), clock::now());
        let mut limits = (0.0, 0.0);
        for _ in 0..30_000 {
            now += Duration::from_millis(10);
            let sample = Sample { latency: Duration::from_millis(1), in_flight: 400, dropped: true };
            if let Some(window) = samples.add(sample, now) {
                limits = (gradient.update(&window, 1000.0), vegas.update(&window, 1000.0));
            }
        }
        assert_eq!(limits, (LIMIT_MIN, LIMIT_MIN));
    }
}
