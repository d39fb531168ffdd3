//! Floor 2: what sending one more request to an endpoint costs: latency, load and health in one number.

use crate::stdx::moment::Moment;
use std::time::Duration;

/// The tick that ages are summed in, in seconds: 16 µs.
pub const TICK_SECS: f32 = 16e-6;

/// `moment` in ticks.
#[inline]
pub fn ticks(moment: Moment) -> u64 {
    moment.micros() >> 4
}

/// A number that was true at a time: a latency in seconds, or a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// The number.
    pub secs: f32,
    /// When, in milliseconds.
    pub stamp: u32,
    /// Whether nobody measured it yet.
    pub assumed: bool,
}

impl Latency {
    /// A latency that nobody measured.
    pub fn assumed(secs: f32, now: Moment) -> Self {
        Self { secs, stamp: now.millis(), assumed: true }
    }

    /// As one word. The sign, which a latency does not need, says that it is assumed.
    #[inline]
    pub fn pack(self) -> u64 {
        let secs = if self.assumed { -self.secs } else { self.secs };
        (u64::from(secs.to_bits()) << 32) | u64::from(self.stamp)
    }

    /// From one word.
    #[inline]
    pub fn unpack(word: u64) -> Self {
        let secs = f32::from_bits((word >> 32) as u32);
        Self { secs: secs.abs(), stamp: word as u32, assumed: secs.is_sign_negative() }
    }

    /// Milliseconds from its stamp to `now`; 0 if `now` is earlier.
    #[inline]
    fn age_ms(self, now: Moment) -> u32 {
        let age = now.millis().wrapping_sub(self.stamp);
        if age > u32::MAX / 2 { 0 } else { age }
    }
}

/// What a score is made of, as it was at one moment.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The latency as last learned.
    pub latency: Latency,
    /// The share that went well, as last judged.
    pub health: Latency,
    /// Requests that wait for headers.
    pub waiting: u32,
    /// Responses whose body is under way.
    pub streams: u32,
    /// The ages of all that wait, summed, in ticks.
    pub age_ticks: u64,
}

/// How a latency follows its samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Estimator {
    /// A larger sample replaces it, a smaller one is averaged in (Finagle, tower, Linkerd).
    Peak,
    /// Each sample is averaged in with at least a tenth (performance.md §2.2).
    Average,
}

/// How much latency counts against load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Not at all: requests in flight alone.
    None,
    /// `L · (q + 1)`.
    One,
    /// `L^1.25 · (q + 1)`: a slow endpoint is left, not given one request for ever.
    FiveFourths,
}

/// A rule for the cost of one more request.
///
/// Failures never feed the latency, so a fast failure attracts nothing; they lower the health `s`, and the cost
/// is `(c + (1 - s) · 1 s) / s`. The mean age of what waits raises the latency before anything ends: an endpoint
/// that hangs looks slow while it hangs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Formula {
    /// How the latency follows its samples.
    pub estimator: Estimator,
    /// How fast a latency is forgotten.
    pub decay: Duration,
    /// How long a latency stays before it begins to be forgotten.
    pub grace: Duration,
    /// How much latency counts.
    pub power: Power,
}

impl Default for Formula {
    /// The crate's own: average, 20 s, half a second of grace, 5/4 (performance.md §2.2).
    fn default() -> Self {
        Self {
            estimator: Estimator::Average,
            decay: Duration::from_secs(20),
            grace: Duration::from_millis(500),
            power: Power::FiveFourths,
        }
    }
}

/// How fast failures are forgiven.
const FORGIVE_MS: f32 = 5000.0;
/// How fast past draws are forgotten: long enough to hold many, short enough to follow a change of weights.
const FADE_MS: f32 = 10_000.0;
/// What one request changes of the health.
const HEALTH_STEP: f32 = 0.1;
/// The least health in a score, so that no score is infinite.
const HEALTH_MIN: f32 = 0.005;
/// The least latency in a score: 1 µs.
const LATENCY_MIN: f32 = 1e-6;
/// The largest latency that is learned: an hour.
const LATENCY_MAX: f32 = 3600.0;

impl Formula {
    /// The latency after a sample of `secs`.
    #[inline]
    pub fn learn(&self, before: Latency, now: Moment, secs: f32) -> Latency {
        let secs = if secs.is_finite() { secs.clamp(LATENCY_MIN, LATENCY_MAX) } else { LATENCY_MAX };
        let keep = (-(before.age_ms(now) as f32) / self.decay_ms()).exp();
        let secs = match self.estimator {
            Estimator::Peak if secs > before.secs * keep => secs.max(before.secs * keep),
            Estimator::Peak => before.secs * keep + secs * (1.0 - keep),
            Estimator::Average if before.assumed => secs,
            Estimator::Average => {
                let keep = keep.min(0.9);
                before.secs * keep + secs * (1.0 - keep)
            }
        };
        Latency { secs, stamp: now.millis(), assumed: false }
    }

    /// The latency as it counts now: it fades after the grace, so that an endpoint is tried again.
    #[inline]
    pub fn estimate(&self, latency: Latency, now: Moment) -> f32 {
        let age = latency.age_ms(now);
        let grace = self.grace.as_millis() as u32;
        if age <= grace {
            return latency.secs;
        }
        latency.secs * (-((age - grace) as f32) / self.decay_ms()).exp()
    }

    fn decay_ms(&self) -> f32 {
        (self.decay.as_secs_f32() * 1000.0).max(1.0)
    }

    /// The health after one more request.
    #[inline]
    pub fn judged(before: Latency, now: Moment, went_well: bool) -> Latency {
        let health = Self::forgiven(before, now);
        let target = if went_well { 1.0 } else { 0.0 };
        let after = health + (target - health) * HEALTH_STEP;
        Latency { secs: if after > 0.9995 { 1.0 } else { after }, stamp: now.millis(), assumed: false }
    }

    /// The health as it counts now: failures are forgiven with a time constant of 5 s.
    #[inline]
    pub fn forgiven(health: Latency, now: Moment) -> f32 {
        if health.secs >= 1.0 {
            return 1.0;
        }
        1.0 - (1.0 - health.secs) * (-(health.age_ms(now) as f32) / FORGIVE_MS).exp()
    }

    /// A count that fades with the time constant of [`FADE_MS`].
    #[inline]
    pub fn faded(count: Latency, now: Moment) -> f32 {
        count.secs * (-(count.age_ms(now) as f32) / FADE_MS).exp()
    }

    /// The cost of one more request; finite and above 0.
    #[inline]
    pub fn score(&self, view: &View, now: Moment) -> f32 {
        self.weighed(view, now, 1.0)
    }

    /// The cost of one more request to an endpoint whose share is `1 / load_factor` of the usual one.
    #[inline]
    pub fn weighed(&self, view: &View, now: Moment, load_factor: f32) -> f32 {
        let load = (view.waiting + view.streams) as f32 * load_factor + 1.0;
        let mut cost = match self.power {
            Power::None => load,
            Power::One => self.alive(view, now) * load,
            Power::FiveFourths => {
                let latency = self.alive(view, now);
                latency * latency.sqrt().sqrt() * load
            }
        };
        if view.health.secs < 1.0 {
            let health = Self::forgiven(view.health, now).max(HEALTH_MIN);
            cost = (cost + (1.0 - health)) / health;
        }
        cost
    }

    /// The latency, raised to what the mean age of the waiting requests shows: of exponential latencies that age
    /// is about the latency itself, of constant ones half of it.
    #[inline]
    fn alive(&self, view: &View, now: Moment) -> f32 {
        let latency = self.estimate(view.latency, now).max(LATENCY_MIN);
        if view.waiting == 0 {
            return latency;
        }
        let count = view.waiting as f32;
        let age = view.age_ticks as f32 * TICK_SECS / count;
        if age > latency * (1.0 + 1.0 / count.sqrt()) { latency.max(2.0 * age) } else { latency }
    }
}
