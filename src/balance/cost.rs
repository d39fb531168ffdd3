//! Floor 2: what sending one more request to an endpoint costs: latency, load and health in one number.

use crate::balance::fade::Fade;
use crate::balance::report::IN_FLIGHT_MAX;
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::stdx::moment::Moment;
use crate::stdx::sync::{AtomicU32, Ordering::Relaxed};
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

    /// From the word of a measured one, which costs less.
    #[inline(always)]
    pub(crate) fn unpack_measured(word: u64) -> Self {
        Self { secs: f32::from_bits((word >> 32) as u32), stamp: word as u32, assumed: false }
    }

    /// Whether somebody measured it, of one that was taken for measured.
    #[inline(always)]
    pub(crate) fn is_measured(self) -> bool {
        self.secs.is_sign_positive()
    }

    /// A share as one word: above the stamp how its bits differ from those of 1, so that to see a whole one is cheap.
    #[inline]
    pub(crate) fn pack_share(self) -> u64 {
        self.pack() ^ WHOLE
    }

    /// From such a word.
    #[inline(always)]
    pub(crate) fn unpack_share(word: u64) -> Self {
        Self::unpack_measured(word ^ WHOLE)
    }

    /// Whether it is 1: a share of everything.
    #[inline(always)]
    pub(crate) fn is_whole(self) -> bool {
        self.secs.to_bits() == 1.0f32.to_bits()
    }

    /// Milliseconds from its stamp to `now`; 0 if `now` is earlier.
    #[inline]
    fn age_ms(self, now: Moment) -> u32 {
        let age = now.millis().wrapping_sub(self.stamp);
        if age > u32::MAX / 2 { 0 } else { age }
    }
}

/// The bits of a whole share, above a stamp.
const WHOLE: u64 = (1.0f32.to_bits() as u64) << 32;
/// The bits of the word of waiting requests that count them.
const COUNT_BITS: u32 = 20;

/// One request that began at `start`, as it is added to the word of those that wait.
#[inline]
pub(crate) fn waiting_since(start: Moment) -> u64 {
    (ticks(start) << COUNT_BITS) + 1
}

/// What a score is made of, as it was at one moment.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The latency as last learned.
    pub latency: Latency,
    /// The share that went well, as last judged.
    pub health: Latency,
    /// The word of those that wait for headers: in the low 20 bits how many, above them when they began, summed.
    pub waiting: u64,
    /// In the low half the responses whose body is under way; above them what the endpoint last said of the requests
    /// of others (`Others`).
    pub streams: u64,
}

impl View {
    /// Responses whose body is under way.
    #[inline(always)]
    pub fn streams(&self) -> u32 {
        self.streams as u32
    }

    /// Whether somebody measured the latency, of a view that takes it for measured.
    #[inline(always)]
    pub(crate) fn is_measured(&self) -> bool {
        self.latency.is_measured()
    }

    /// What this request would be one more than, and it itself.
    #[inline(always)]
    pub(crate) fn load(&self) -> f32 {
        (self.count() + self.streams() + 1) as f32
    }

    /// How many wait for headers.
    #[inline]
    pub fn count(&self) -> u32 {
        (self.waiting & ((1 << COUNT_BITS) - 1)) as u32
    }

    /// The ages of all that wait, summed, in ticks of 16 µs: exact modulo 2^44.
    #[inline]
    pub fn age_ticks(&self, now: Moment) -> u64 {
        let began = self.waiting >> COUNT_BITS;
        u64::from(self.count()).wrapping_mul(ticks(now)).wrapping_sub(began) & (u64::MAX >> COUNT_BITS)
    }
}

/// How many requests of others an endpoint said that it works on, and when: 12 bits of a count, 20 of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Others(u32);

impl Others {
    const STAMP: u32 = (1 << 20) - 1;

    /// `count` (at most [`IN_FLIGHT_MAX`]) at `now`.
    pub(crate) fn new(count: u32, now: Moment) -> Self {
        Self(count.min(IN_FLIGHT_MAX) << 20 | now.millis() & Self::STAMP)
    }

    /// As a number, to be kept in an atomic.
    pub(crate) fn word(self) -> u32 {
        self.0
    }

    /// How many they are believed to be at `millis`: what was said, and ever more what is usual (`mean`).
    fn at(self, millis: u32, mean: f32) -> f32 {
        let (count, age) = ((self.0 >> 20) as f32, millis.wrapping_sub(self.0) & Self::STAMP);
        if self.0 == 0 { mean } else { mean + (count - mean) * (-(age as f32) / OTHERS_MS).exp() }
    }
}

/// How many requests of others an endpoint of a service works on in the mean.
#[derive(Debug, Default)]
pub struct OthersMean(AtomicU32);

impl OthersMean {
    /// One endpoint says so many.
    pub fn learn(&self, others: u32) {
        let mean = self.get();
        // Of two at once one is lost, which a mean does not mind.
        self.0.store((mean + (others as f32 - mean) / OTHERS_SAMPLES).to_bits(), Relaxed);
    }

    fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }
}

/// A moment, cut up once for many scores.
#[derive(Debug, Clone, Copy)]
pub struct Glance {
    now: Moment,
    millis: u32,
    /// Others' requests in the mean; below 0 where reports do not count.
    others: f32,
    /// What endpoints usually take, in seconds; 0 if unknown.
    typical: f32,
}

impl Glance {
    /// The same, and what endpoints report of others' requests counts.
    #[must_use]
    pub fn with_others(mut self, mean: &OthersMean) -> Self {
        self.others = mean.get();
        self
    }
}

impl Glance {
    /// The same, where endpoints usually take `secs`.
    #[must_use]
    #[inline]
    pub fn with_typical(mut self, secs: f32) -> Self {
        self.typical = secs;
        self
    }
}

impl From<Moment> for Glance {
    #[inline]
    fn from(now: Moment) -> Self {
        Self { now, millis: now.millis(), others: -1.0, typical: 0.0 }
    }
}

/// How a latency follows its samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Estimator {
    /// A larger sample replaces it, a smaller one is averaged in (Finagle, tower, Linkerd).
    Peak,
    /// Each sample is averaged in, with a tenth if they are rare and with a hundredth if they come close together,
    /// so that many samples make the average steady and few keep it fresh.
    Average,
}

/// How much latency counts against load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Not at all: requests in flight alone.
    None,
    /// `L · (q + 1)`.
    One,
    /// `L^1.5 · (q + 1)`: a slow endpoint is left, not given one request for ever.
    ThreeHalves,
}

/// A rule for the cost of one more request.
///
/// Failures never feed the latency, so a fast failure attracts nothing; they lower the health `s`, and the cost
/// is `(c + (1 - s) · 1 s) / s`. The mean age of what waits raises the latency before anything ends: an endpoint
/// that hangs looks slow while it hangs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Formula {
    estimator: Estimator,
    power: Power,
    /// How fast a latency is forgotten, in milliseconds.
    decay_ms: f32,
    /// How long a latency stays before it begins to be forgotten, in milliseconds.
    grace_ms: u32,
    /// The same decay, for the choice of two.
    fade: Fade,
}

impl Default for Formula {
    /// The crate's own: average, 30 s, a second of grace, 3/2 (docs/balancing.md).
    fn default() -> Self {
        let (decay, grace) = (Duration::from_secs(30), Duration::from_secs(1));
        Self::new(Estimator::Average, Power::ThreeHalves, decay, grace)
    }
}

/// Whether an end so speaks for the endpoint, as far as balancing goes; `None` if it says nothing. What is turned
/// away because there is too much to do (HTTP 429, gRPC RESOURCE_EXHAUSTED) comes fast and must not attract more,
/// whatever the classifier says of it; PERMISSION_DENIED is about the caller (linkerd.md §5.3).
pub fn went_well(outcome: &Outcome) -> Option<bool> {
    match (outcome.verdict, outcome.cause) {
        (Verdict::Cancelled, _) | (_, Cause::Local) => None,
        (_, Cause::Status(429) | Cause::Grpc(8)) => Some(false),
        (_, Cause::Grpc(7)) => Some(true),
        (verdict, _) => Some(verdict == Verdict::Success),
    }
}

/// How fast failures are forgiven.
const FORGIVE_MS: f32 = 5000.0;
/// How fast a report of load is forgotten: some latencies, since a queue lives no longer.
const OTHERS_MS: f32 = 300.0;
/// How many reports make a mean.
const OTHERS_SAMPLES: f32 = 64.0;
/// How fast past draws are forgotten: long enough to hold many, short enough to follow a change of weights.
const FADE_MS: f32 = 10_000.0;
/// What one request changes of the health: five bad ends in a row leave a third.
const HEALTH_STEP: f32 = 0.2;
/// The least and the most that a sample counts in an average, and the milliseconds between samples from which on
/// it counts most.
const GAIN: (f32, f32, f32) = (0.01, 0.1, 30.0);
/// How many times faster a mean becomes what is usual than it fades where nothing is: 10 s instead of 30 s.
const RETURN_FACTOR: f32 = 3.0;
/// How many standard deviations above the mean the age of what waits must be to count as latency.
const ALIVE_DEVIATIONS: f32 = 1.5;
/// The least health in a score, so that no score is infinite.
const HEALTH_MIN: f32 = 0.005;
/// The least latency in a score: 1 µs.
const LATENCY_MIN: f32 = 1e-6;
/// The largest latency that is learned: an hour.
const LATENCY_MAX: f32 = 3600.0;

impl Formula {
    /// A rule by which a latency is forgotten with time constant `decay` (at least 1 ms), once `grace` (at most
    /// 24 days) is over.
    pub fn new(estimator: Estimator, power: Power, decay: Duration, grace: Duration) -> Self {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX).min(u32::MAX / 2);
        let decay_ms = (decay.as_secs_f32() * 1000.0).max(1.0);
        Self { estimator, power, decay_ms, grace_ms, fade: Fade::new(decay_ms) }
    }

    /// The latency after a sample of `secs`.
    #[inline]
    pub fn learn(&self, before: Latency, now: Moment, secs: f32) -> Latency {
        let secs = if secs.is_finite() { secs.clamp(LATENCY_MIN, LATENCY_MAX) } else { LATENCY_MAX };
        let keep = (-(before.age_ms(now) as f32) / self.decay_ms).exp();
        let secs = match self.estimator {
            Estimator::Peak if secs > before.secs * keep => secs.max(before.secs * keep),
            Estimator::Peak => before.secs * keep + secs * (1.0 - keep),
            Estimator::Average if before.assumed => secs,
            Estimator::Average => {
                let (least, most, rare_ms) = GAIN;
                let gain = least + (most - least) * (before.age_ms(now) as f32 / rare_ms).min(1.0);
                let keep = keep.min(1.0 - gain);
                before.secs * keep + secs * (1.0 - keep)
            }
        };
        Latency { secs, stamp: now.millis(), assumed: false }
    }

    /// The latency as it counts now: it fades after the grace, so that an endpoint is tried again.
    #[inline(never)]
    pub fn estimate(&self, latency: Latency, now: Moment) -> f32 {
        let age = latency.age_ms(now);
        if age <= self.grace_ms {
            return latency.secs;
        }
        (latency.secs * (-((age - self.grace_ms) as f32) / self.decay_ms).exp()).max(LATENCY_MIN)
    }

    /// A latency that nobody measured for longer than the grace. What was measured at its peak fades to nothing; a mean to
    /// what endpoints usually take, since of one that nobody asked for a while no more is known than of any.
    #[inline(never)]
    fn aged(&self, latency: Latency, at: Glance) -> f32 {
        if self.estimator == Estimator::Peak || at.typical == 0.0 {
            return self.estimate(latency, at.now);
        }
        let age = latency.age_ms(at.now).saturating_sub(self.grace_ms) as f32;
        at.typical + (latency.secs - at.typical) * (-age * RETURN_FACTOR / self.decay_ms).exp()
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
        if health.is_whole() {
            return 1.0;
        }
        1.0 - (1.0 - health.secs) * (-(health.age_ms(now) as f32) / FORGIVE_MS).exp()
    }

    /// A count that fades with the time constant of `FADE_MS`.
    #[inline]
    pub fn faded_count(count: Latency, now: Moment) -> f32 {
        count.secs * (-(count.age_ms(now) as f32) / FADE_MS).exp()
    }

    /// How much latency counts.
    #[inline]
    pub fn power(&self) -> Power {
        self.power
    }

    /// The cost of one more request; finite and above 0.
    pub fn score(&self, view: &View, now: Moment) -> f32 {
        self.weighed(self.power, view, now.into(), 1.0)
    }

    /// The cost of one more request to an endpoint whose share is `1 / load_factor` of the usual one. `power` is
    /// [`Formula::power`], from where the compiler knows it.
    ///
    /// Runs for each candidate of each pick, so what is rare stands in functions of its own.
    #[inline(always)]
    pub fn weighed(&self, power: Power, view: &View, at: Glance, load_factor: f32) -> f32 {
        let load = (view.count() + view.streams()) as f32 * load_factor + 1.0;
        self.loaded(power, view, at, load)
    }

    /// [`Formula::weighed`] of an endpoint of usual share as it mostly is: measured, well, and its latency remembered. That
    /// takes no call; `None` of any other.
    #[inline(always)]
    pub(crate) fn usual(&self, power: Power, view: &View, at: Glance) -> Option<f32> {
        let fresh = at.millis.wrapping_sub(view.latency.stamp) <= self.grace_ms || power == Power::None;
        (view.is_measured() && fresh && view.health.is_whole()).then(|| self.weighed(power, view, at, 1.0))
    }

    /// Whether [`Cell::costs_more_than`](crate::balance::endpoint::Cell::costs_more_than) knows this formula.
    pub(crate) fn compares_two(&self) -> bool {
        match self.power {
            Power::None => true,
            Power::One => self.grace_ms == 0,
            Power::ThreeHalves => false,
        }
    }

    /// Whether latency counts at all.
    #[inline(always)]
    pub(crate) fn counts_latency(&self) -> bool {
        self.power != Power::None
    }

    /// A measured latency as it counts now, within 0.14 % of [`Formula::estimate`], where there is no grace; `None` if it
    /// is all but forgotten.
    #[inline(always)]
    pub(crate) fn faded(&self, latency: Latency, millis: u32) -> Option<f32> {
        Some(self.fade.left_of(latency.secs, millis.wrapping_sub(latency.stamp))?.max(LATENCY_MIN))
    }

    /// The cost, and what the endpoint reports of others' requests counts if `at` says so.
    pub(crate) fn weighed_among(&self, view: &View, at: Glance, load_factor: f32) -> f32 {
        let mut load = (view.count() + view.streams()) as f32 * load_factor + 1.0;
        if at.others >= 0.0 {
            load += Others((view.streams >> 32) as u32).at(at.millis, at.others) * load_factor;
        }
        self.loaded(self.power, view, at, load)
    }

    #[inline(always)]
    fn loaded(&self, power: Power, view: &View, at: Glance, load: f32) -> f32 {
        let cost = match power {
            Power::None => load,
            Power::One => self.present(view, at) * load,
            Power::ThreeHalves => {
                let latency = self.present(view, at);
                latency * latency.sqrt() * load
            }
        };
        if view.health.is_whole() { cost } else { sickly(cost, view.health, at.now) }
    }

    /// The latency as it counts now.
    #[inline(always)]
    fn present(&self, view: &View, at: Glance) -> f32 {
        let mut latency = view.latency.secs;
        if at.millis.wrapping_sub(view.latency.stamp) > self.grace_ms {
            latency = self.aged(view.latency, at);
        }
        risen(latency, view, at.now)
    }
}

/// A latency, raised to what the mean age of the waiting requests shows. Of exponential latencies that age has the
/// latency for its mean and for its deviation, of constant ones half of it.
#[inline(always)]
pub(crate) fn risen(latency: f32, view: &View, now: Moment) -> f32 {
    if view.count() == 0 {
        return latency;
    }
    let count = view.count() as f32;
    let age = view.age_ticks(now) as i64 as f32 * TICK_SECS;
    // What is not above the mean mostly saves the root.
    if age > latency * count && age > latency * (count + ALIVE_DEVIATIONS * count.sqrt()) {
        return 2.0 * age / count;
    }
    latency
}

/// The cost, raised for what did not go well.
#[cold]
fn sickly(cost: f32, health: Latency, now: Moment) -> f32 {
    let health = Formula::forgiven(health, now).max(HEALTH_MIN);
    (cost + (1.0 - health)) / health
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(secs: f64) -> Moment {
        Moment::from_micros((secs * 1e6).round() as u64)
    }

    fn peak() -> Formula {
        Formula::new(Estimator::Peak, Power::One, Duration::from_secs(10), Duration::ZERO)
    }

    fn view(latency: Latency) -> View {
        let well = Latency { secs: 1.0, stamp: 0, assumed: false };
        View { latency, health: well, waiting: 0, streams: 0 }
    }

    /// The slow obvious model: the definition in 64 bits.
    fn model(formula: &Formula, samples: &[(f64, f64)], now: f64) -> f64 {
        let (mut value, mut stamp, mut assumed) = (0.03, 0.0, true);
        let tau = f64::from(formula.decay_ms) / 1000.0;
        for (time, sample) in samples {
            let keep = (-(time - stamp) / tau).exp();
            value = match formula.estimator {
                Estimator::Peak if *sample > value * keep => *sample,
                Estimator::Peak => value * keep + sample * (1.0 - keep),
                Estimator::Average if assumed => *sample,
                Estimator::Average => {
                    let gain = 0.01 + 0.09 * ((time - stamp) / 0.03).min(1.0);
                    let keep = keep.min(1.0 - gain);
                    value * keep + sample * (1.0 - keep)
                }
            };
            (stamp, assumed) = (*time, false);
        }
        value * (-((now - stamp - f64::from(formula.grace_ms) / 1000.0).max(0.0)) / tau).exp()
    }

    proptest! {
        #[test]
        fn the_usual_cost_is_the_cost(
            secs in 1e-6f32..100.0, age in 0u64..3_000, waiting in 0u64..5, streams in 0u64..5, well in any::<bool>(),
        ) {
            let now = Moment::from_micros(10_000_000);
            let stamp = now.millis() - age as u32;
            let mut view = view(Latency { secs, stamp, assumed: false });
            view.waiting = waiting * waiting_since(Moment::from_micros(9_000_000));
            view.streams = streams;
            view.health.secs = if well { 1.0 } else { 0.9 };
            prop_assert_eq!(Latency::unpack_share(view.health.pack_share()), view.health);
            for power in [Power::None, Power::One, Power::ThreeHalves] {
                let formula = Formula { power, ..Formula::default() };
                let is_usual = well && (age <= 1000 || power == Power::None);
                let score = is_usual.then(|| formula.score(&view, now));
                prop_assert_eq!(formula.usual(power, &view, now.into()), score);
            }
        }

        #[test]
        fn estimates_follow_the_definition(
            steps in proptest::collection::vec((0u32..20_000, 1u32..10_000), 0..50),
            average: bool, after_ms in 0u32..100_000,
        ) {
            let formula = if average { Formula::default() } else { peak() };
            let mut latency = Latency::assumed(0.03, at(0.0));
            let mut samples = Vec::new();
            let mut time = 0.0;
            for (step_ms, sample_ms) in steps {
                time += f64::from(step_ms) / 1000.0;
                let sample = f64::from(sample_ms) / 1000.0;
                latency = formula.learn(latency, at(time), sample as f32);
                samples.push((time, sample));
            }
            let now = time + f64::from(after_ms) / 1000.0;
            let expected = model(&formula, &samples, now);
            let found = f64::from(formula.estimate(latency, at(now)));
            prop_assert!((found - expected).abs() <= expected.abs() * 1e-3 + 1e-6, "{} {}", found, expected);
        }

        #[test]
        fn every_score_is_a_finite_number_above_zero(
            secs in prop_oneof![Just(0.0f32), Just(f32::INFINITY), Just(f32::NAN), Just(f32::MAX), 0.0f32..1e9],
            health in 0.0f32..=1.0, stamps in (any::<u32>(), any::<u32>()), now: u64,
            waiting: u64, streams in 0u64..(1 << 30), said: u32,
            scarcity in prop_oneof![Just(1.0f32), Just(1e-9), Just(1e9)], rule in 0u8..3,
        ) {
            let power = [Power::None, Power::One, Power::ThreeHalves][usize::from(rule)];
            let formula = Formula { power, ..Formula::default() };
            let now = Moment::from_micros(now);
            let before = Latency { secs: 0.01, stamp: stamps.0, assumed: false };
            let latency = formula.learn(before, now, secs);
            let health = Latency { secs: health, stamp: stamps.1, assumed: false };
            let view = View { latency, health, waiting, streams: streams | u64::from(said) << 32 };
            let others = OthersMean::default();
            others.learn(said);
            for at in [Glance::from(now), Glance::from(now).with_others(&others)] {
                let score = formula.weighed_among(&view, at, scarcity);
                prop_assert!(score.is_finite() && score > 0.0, "{}", score);
            }
        }

        #[test]
        fn words_keep_what_is_put_in(secs in 0.0f32..1e6, stamp: u32, assumed: bool) {
            let latency = Latency { secs, stamp, assumed };
            prop_assert_eq!(Latency::unpack(latency.pack()), latency);
        }
    }

    /// Of what nobody asked for a while no more is known than of any: slow or fast, it becomes what is usual.
    #[test]
    fn what_is_not_asked_becomes_what_is_usual() {
        let (formula, usual) = (Formula::default(), 0.05);
        for secs in [0.001, 0.05, 2.0] {
            let latency = Latency { secs, stamp: at(1.0).millis(), assumed: false };
            let then = |after: f64| formula.aged(latency, Glance::from(at(1.0 + after)).with_typical(usual));
            assert!((then(1.0) - secs).abs() < 1e-6, "within the grace nothing is forgotten");
            let (some, most) = (then(11.0), then(120.0));
            assert!(
                (some - (usual + (secs - usual) * (-1.0f32).exp())).abs() < 1e-4 * secs.max(usual),
                "{some}"
            );
            assert!((most - usual).abs() < 1e-3 * secs.max(usual), "{most}");
            let peak = Formula::new(Estimator::Peak, Power::One, Duration::from_secs(10), Duration::ZERO);
            assert!(peak.aged(latency, Glance::from(at(11.0)).with_typical(usual)) < secs * 0.38);
        }
    }

    #[test]
    fn what_an_endpoint_reports_counts_until_it_is_old_and_only_if_asked_for() {
        let (formula, mean) = (peak(), OthersMean::default());
        (0..1000).for_each(|_| mean.learn(5));
        let load = |reported: Option<u32>, now: f64, asked: bool| {
            let latency = Latency { secs: 0.01, stamp: at(now).millis(), assumed: false };
            let others = reported.map_or(0, |count| u64::from(Others::new(count, at(1.0)).word()));
            let (glance, view) = (Glance::from(at(now)), View { streams: others << 32, ..view(latency) });
            let glance = if asked { glance.with_others(&mean) } else { glance };
            formula.weighed_among(&view, glance, 1.0) / 0.01
        };
        let check =
            |found: f32, expected: f32| assert!((found - expected).abs() < 0.01, "{found} {expected}");
        check(load(Some(9), 1.0, false), 1.0);
        check(load(Some(9), 1.0, true), 10.0);
        check(load(Some(0), 1.0, true), 1.0);
        check(load(None, 1.0, true), 6.0);
        check(load(Some(9), 1.3, true), 1.0 + 5.0 + 4.0 / std::f32::consts::E);
        check(load(Some(9), 9.0, true), 6.0);
        check(load(Some(u32::MAX), 1.0, true), 4096.0);
    }

    #[test]
    fn an_idle_endpoint_forgets_its_old_peak() {
        let slow = peak().learn(Latency::assumed(0.03, at(0.0)), at(1.0), 5.0);
        assert!(peak().estimate(slow, at(61.0)) < 0.02);
        let slow = Formula::default().learn(slow, at(1.0), 5.0);
        assert!(Formula::default().estimate(slow, at(181.0)) < 0.02);
    }

    #[test]
    fn one_timeout_does_not_poison_an_average() {
        let formula = Formula::default();
        let mut latency = (1..=100).fold(Latency::assumed(0.03, at(0.0)), |latency, step| {
            formula.learn(latency, at(f64::from(step) * 0.01), 0.01)
        });
        latency = formula.learn(latency, at(1.01), 1.0);
        assert!(latency.secs < 0.12, "a hundredth part of a second and a tenth: {latency:?}");
        latency = (1..=150)
            .fold(latency, |latency, step| formula.learn(latency, at(1.01 + f64::from(step) * 0.01), 0.01));
        assert!(latency.secs < 0.02, "{latency:?}");
    }

    #[test]
    fn a_hanging_endpoint_looks_slow_while_it_hangs() {
        let formula = Formula::default();
        let latency = formula.learn(Latency::assumed(0.03, at(0.0)), at(0.0), 0.01);
        let waiting = waiting_since(at(0.0)) * 3;
        let hung = |_: f64| View { waiting, ..view(latency) };
        let cost = |secs| formula.score(&hung(secs), at(secs));
        assert!(cost(0.005) < cost(0.1) && cost(0.1) < cost(1.0));
        assert!(cost(1.0) > 100.0 * formula.score(&view(latency), at(1.0)));
    }

    #[test]
    fn failures_cost_and_are_forgiven() {
        let formula = Formula::default();
        let fast = formula.learn(Latency::assumed(0.03, at(0.0)), at(0.0), 0.0001);
        let good = formula.score(&view(formula.learn(fast, at(0.0), 0.1)), at(0.0));
        let mut health = Latency { secs: 1.0, stamp: 0, assumed: false };
        for _ in 0..3 {
            health = Formula::judged(health, at(0.0), false);
        }
        let failing = View { health, ..view(fast) };
        assert!(formula.score(&failing, at(0.0)) > good, "a fast failure is dearer than a slow success");
        assert!(formula.score(&failing, at(60.0)) < good, "and is forgiven after a while");
    }
}
