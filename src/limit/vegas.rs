//! Floor 2: a limit that follows latency by the queue that it implies (TCP Vegas; Netflix `VegasLimit`).

use crate::limit::gradient::{LIMIT_MIN, MEASURING};
use crate::limit::sample::Window;

/// Reckons how many of its requests wait behind us, from the least latency seen against that of now, and keeps that
/// number between two bounds that grow with the logarithm of the limit.
///
/// Against `VegasLimit`: latencies are means of windows, since the fastest single request says nothing of what one takes
/// when work differs. The least is measured anew from time to time, since a service may have become slower for good:
/// after a number of windows that grows with the limit, as Netflix has it, and at half the limit, so that our own queue
/// is not taken for the service's.
#[derive(Debug, Clone, Copy)]
pub struct Vegas {
    limit: f64,
    least: f64,
    windows: f64,
    measuring: u32,
}

/// After how many windows, per one of the limit, the least latency is measured anew (Netflix, in samples).
const PROBE: f64 = 30.0;

impl Vegas {
    /// Begins with `first`.
    pub fn new(first: f64) -> Self {
        Self { limit: first.max(LIMIT_MIN), least: 0.0, windows: 0.0, measuring: 0 }
    }

    /// The limit after a window, at most `max`.
    pub fn update(&mut self, window: &Window, max: f64) -> f64 {
        let mean = window.mean();
        if self.measuring > 0 {
            self.measuring -= 1;
            if self.measuring > 0 {
                return self.half(max);
            }
            (self.least, self.windows) = (mean, 0.0);
            return self.limit;
        }
        self.windows += 1.0;
        if self.windows > PROBE * self.limit {
            self.measuring = MEASURING;
            return self.half(max);
        }
        self.least = if self.least == 0.0 { mean } else { self.least.min(mean) };
        self.limit = self.step(window, mean).clamp(LIMIT_MIN.min(max), max);
        self.limit
    }

    fn step(&self, window: &Window, mean: f64) -> f64 {
        let step = self.limit.log10().max(1.0);
        let queue = (self.limit * (1.0 - self.least / mean)).ceil();
        if window.dropped {
            self.limit - step
        } else if window.in_flight_max < self.limit / 2.0 {
            self.limit
        } else if queue <= step {
            self.limit + 6.0 * step
        } else if queue < 3.0 * step {
            self.limit + step
        } else if queue > 6.0 * step {
            self.limit - step
        } else {
            self.limit
        }
    }

    fn half(&self, max: f64) -> f64 {
        (self.limit / 2.0).max(LIMIT_MIN).min(max)
    }
}
