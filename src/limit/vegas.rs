//! Floor 2: a limit that follows latency by the queue that it implies (TCP Vegas; Netflix `VegasLimit`).

use crate::limit::gradient::LIMIT_MIN;
use crate::limit::sample::Window;

/// Reckons how many of its requests wait behind us, from the least latency ever seen against that of now, and keeps
/// that number between two bounds that grow with the logarithm of the limit.
///
/// The least latency is forgotten from time to time, since a service may have become slower for good: after a number
/// of windows that grows with the limit, as Netflix has it, the next window's least takes its place.
#[derive(Debug, Clone, Copy)]
pub struct Vegas {
    limit: f64,
    least: f64,
    windows: f64,
}

/// After how many windows, per one of the limit, the least latency is measured anew (Netflix, in samples).
const PROBE: f64 = 30.0;

impl Vegas {
    /// Begins with `first`.
    pub fn new(first: f64) -> Self {
        Self { limit: first.max(LIMIT_MIN), least: 0.0, windows: 0.0 }
    }

    /// The limit after a window, at most `max`.
    pub fn update(&mut self, window: &Window, max: f64) -> f64 {
        self.windows += 1.0;
        if self.least == 0.0 || self.windows > PROBE * self.limit {
            self.least = window.least();
            self.windows = 0.0;
        }
        self.least = self.least.min(window.least());
        let step = self.limit.log10().max(1.0);
        let queue = (self.limit * (1.0 - self.least / window.mean())).ceil();
        let next = if window.dropped {
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
        };
        self.limit = next.clamp(LIMIT_MIN.min(max), max);
        self.limit
    }
}
