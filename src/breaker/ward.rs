//! Floor 2: who is shut, until when, and who is let out: the breakers of one service's endpoints together.

use crate::breaker::detect::{Chart, Detect};
use crate::breaker::event::{Event, Reason, What};
use crate::breaker::outlier::{interval, outliers};
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::profile::settings::{BreakerSettings, Detector, Growth, Recovery};
use crate::stdx::backoff::Backoff;
use crate::stdx::moment::Moment;
use crate::stdx::rng::Rng;
use crate::stdx::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering::Relaxed};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{PoisonError, TryLockError};
use std::time::Duration;

/// The events that are kept for readers; older ones are dropped.
pub const EVENTS_MAX: usize = 256;
/// How long an endpoint must stay well for one of its past ejections to be forgotten, where the time of an
/// ejection grows with their number: Envoy's and gRPC A50's interval.
const FORGET: Duration = Duration::from_secs(10);

/// Everybody is let in.
const OPEN: u32 = 0;
/// Nobody is.
const SHUT: u32 = 1;
/// One request is in, and decides.
const PROBING: u32 = 2;
const STATE: u32 = 3;
/// The bit of a gate that is its owner's.
const OWNERS: u32 = 4;

/// An endpoint as its breaker sees it.
pub trait Patient: Clone {
    /// Its number.
    fn number(&self) -> u32;
    /// Its state in the low two bits, 0 for open; one bit that is its owner's; above them a number that changes with
    /// each change of state. But for the owner's bit only the ward writes it.
    fn gate(&self) -> &AtomicU32;
    /// Its detectors' memory.
    fn chart(&self) -> &Chart;
    /// How many of its kind (of its tier) are shut. Only the ward writes it.
    fn shut(&self) -> &AtomicU32;
}

/// The breakers of one service's endpoints.
///
/// Requests read one word of the endpoint when they are picked (their *pass*) and, when they end, count only if
/// that word is still the same: a straggler from before a trip decides nothing. Changes of state are rare (each
/// lasts at least the first ejection time), and happen under one lock that no request waits for: while it is
/// taken by another, a request goes on without.
#[derive(Debug)]
pub struct Ward<P> {
    settings: BreakerSettings,
    min_ready: u32,
    total: AtomicU32,
    shut: AtomicU32,
    spared: AtomicU64,
    /// When somebody must look: an endpoint's time is over, or an interval is.
    wake: AtomicU64,
    beds: Mutex<Beds<P>>,
}

#[derive(Debug)]
struct Beds<P> {
    patients: BTreeMap<u32, Bed<P>>,
    /// Past ejections of those that came back by time: how many, and when the last ended.
    past: BTreeMap<u32, (u32, Moment)>,
    /// When the intervals of the detectors that compare end.
    sweeps: Vec<(Detector, Moment)>,
    events: VecDeque<Event>,
    next_event: u64,
    /// All events, by their words.
    told: BTreeMap<(&'static str, &'static str), u64>,
    closed: bool,
}

#[derive(Debug)]
struct Bed<P> {
    who: P,
    reason: Reason,
    until: Moment,
    step: u32,
    probing: bool,
}

/// A shut endpoint, as an operator looks at it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BedState {
    /// Why it is shut.
    pub reason: Reason,
    /// When it is tried again, or when its probe must have ended.
    pub until: Moment,
    /// How often it was shut again since it was last well.
    pub step: u32,
    /// Whether one request is trying it.
    pub probing: bool,
}

impl<P: Patient> Ward<P> {
    /// A ward without endpoints. At least `min_ready` of them always stay in use.
    pub fn new(settings: BreakerSettings, min_ready: u32, now: Moment) -> Self {
        let compare = settings.detectors.iter().filter_map(|it| Some((it.clone(), now.plus(interval(it)?))));
        let beds = Beds {
            patients: BTreeMap::new(),
            past: BTreeMap::new(),
            sweeps: compare.collect(),
            events: VecDeque::new(),
            next_event: 0,
            told: BTreeMap::new(),
            closed: false,
        };
        let wake = AtomicU64::new(beds.wake().micros());
        let zero = || AtomicU32::new(0);
        Self {
            settings,
            min_ready,
            total: zero(),
            shut: zero(),
            spared: AtomicU64::new(0),
            wake,
            beds: Mutex::new(beds),
        }
    }

    /// A chart for a new endpoint.
    pub fn chart(&self) -> Chart {
        Chart::new(&self.settings.detectors, self.settings.overload)
    }

    /// The settings.
    pub fn settings(&self) -> &BreakerSettings {
        &self.settings
    }

    /// The service has so many endpoints now.
    pub fn resize(&self, total: u32) {
        self.total.store(total, Relaxed);
    }

    /// How many are shut.
    #[inline]
    pub fn shut(&self) -> u32 {
        self.shut.load(Relaxed)
    }

    /// How often an endpoint stayed in use although a detector spoke, because too many were shut already.
    pub fn spared(&self) -> u64 {
        self.spared.load(Relaxed)
    }

    /// How often each event happened, by [`What::words`].
    pub fn told(&self) -> Vec<((&'static str, &'static str), u64)> {
        self.lock().told.iter().map(|(words, count)| (*words, *count)).collect()
    }

    /// Whether [`Ward::attend`] has something to do.
    #[inline]
    pub fn is_awake(&self, now: Moment) -> bool {
        now.micros() >= self.wake.load(Relaxed)
    }

    /// Lets out who may come out, and compares endpoints whose interval is over; `everyone` says who there is. An
    /// endpoint that comes back is the answer, with the pass of the one request that tries it.
    #[cold]
    pub fn attend(&self, now: Moment, rng: &Rng, everyone: impl FnOnce() -> Vec<P>) -> Option<(P, u32)> {
        let mut beds = match self.beds.try_lock() {
            Ok(beds) => beds,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if beds.sweeps.iter().any(|(_, at)| *at <= now) {
            self.sweep(&mut beds, now, rng, &everyone());
        }
        let due: Vec<u32> =
            beds.patients.iter().filter(|(_, bed)| bed.until <= now).map(|(number, _)| *number).collect();
        let mut probe = None;
        for number in due {
            let Some(bed) = beds.patients.get_mut(&number) else { continue };
            if bed.probing {
                let step = bed.step + 1;
                self.shut_again(&mut beds, number, now, rng, (Reason::ProbeTimedOut, step, None));
            } else if self.settings.recovery == Recovery::Timer {
                self.open(&mut beds, number, now);
            } else if probe.is_none() {
                bed.probing = true;
                // As long as the longest ejection: a probe that has not ended by then never will.
                bed.until = now.plus(self.settings.ejection_max);
                let pass = probes_pass(turn(bed.who.gate(), PROBING));
                probe = Some((bed.who.clone(), pass));
                beds.tell(now, number, What::Probed);
            }
        }
        self.wake.store(beds.wake().micros(), Relaxed);
        probe
    }

    /// A request that had `pass` ended. `now` is asked only if it matters.
    #[inline]
    pub fn record(&self, who: &P, pass: u32, rng: &Rng, outcome: &Outcome, now: impl FnOnce() -> Moment) {
        let gate = who.gate().load(Relaxed);
        let is_unknown = || outcome.verdict == Verdict::Cancelled || outcome.cause == Cause::Local;
        if gate != pass {
            if gate & (STATE | OWNERS) == PROBING && pass == probes_pass(gate) {
                self.decide(who, gate, rng, (!is_unknown()).then_some(outcome), now());
            }
            return;
        }
        // Who is its owner's to leave alone, because it drains or left, is nobody's patient. Who was let in although it is
        // shut or tried, because too few were open, decides nothing.
        if pass & (STATE | OWNERS) != OPEN || is_unknown() {
            return;
        }
        let chart = who.chart();
        let timed = chart.is_timed() || outcome.verdict == Verdict::Failure || chart.counts(outcome);
        let now = if timed { now() } else { Moment::default() };
        if let Some(reason) = chart.record(now, outcome) {
            self.trip(who, pass, rng, (reason, outcome.retry_after), now);
        }
    }

    /// Whether one more may be shut.
    fn may_shut(&self) -> bool {
        let (total, shut) = (self.total.load(Relaxed), self.shut.load(Relaxed) + 1);
        let percent = u64::from(self.settings.ejected_percent_max.min(100));
        // One may always be, as gRPC A50 and Envoy before 1.28 have it: a tenth of three endpoints is not none.
        let most = (u64::from(total) * percent / 100).max(u64::from(percent > 0));
        u64::from(shut) <= most && total.saturating_sub(shut) >= self.min_ready
    }

    #[cold]
    fn trip(&self, who: &P, pass: u32, rng: &Rng, why: (Reason, Option<Duration>), now: Moment) {
        if !self.may_shut() {
            self.spared.fetch_add(1, Relaxed);
            return;
        }
        let mut beds = self.lock();
        if beds.closed || who.gate().load(Relaxed) != pass || !self.may_shut() {
            return;
        }
        self.admit(&mut beds, who, now, rng, why);
        self.wake.store(beds.wake().micros(), Relaxed);
    }

    fn admit(&self, beds: &mut Beds<P>, who: &P, now: Moment, rng: &Rng, why: (Reason, Option<Duration>)) {
        let number = who.number();
        let step = beds.past.remove(&number).map_or(0, |(count, ended)| {
            let well = now.since_moment(ended).as_secs() / FORGET.as_secs();
            count.saturating_sub(u32::try_from(well).unwrap_or(u32::MAX))
        });
        let (reason, hint) = why;
        let bed = Bed { who: who.clone(), reason, until: now, step, probing: false };
        beds.patients.insert(number, bed);
        self.shut.fetch_add(1, Relaxed);
        who.shut().fetch_add(1, Relaxed);
        self.shut_again(beds, number, now, rng, (reason, step, hint));
    }

    #[cold]
    fn decide(&self, who: &P, pass: u32, rng: &Rng, outcome: Option<&Outcome>, now: Moment) {
        let mut beds = self.lock();
        let number = who.number();
        if who.gate().load(Relaxed) != pass {
            return;
        }
        let Some(bed) = beds.patients.get_mut(&number) else { return };
        match outcome {
            None => {
                // The probe said nothing: the next request may try.
                bed.probing = false;
                bed.until = now;
                turn(who.gate(), SHUT);
            }
            Some(outcome) if who.chart().counts(outcome) => {
                let step = bed.step + 1;
                let why = (Reason::ProbeFailed, step, outcome.retry_after);
                self.shut_again(&mut beds, number, now, rng, why);
            }
            Some(_) => self.open(&mut beds, number, now),
        }
        self.wake.store(beds.wake().micros(), Relaxed);
    }

    fn shut_again(
        &self,
        beds: &mut Beds<P>,
        number: u32,
        now: Moment,
        rng: &Rng,
        (reason, step, hint): (Reason, u32, Option<Duration>),
    ) {
        let wait = self.wait(step, rng);
        let hint = hint.filter(|_| self.settings.honour_retry_after).unwrap_or_default();
        let wait = wait.max(hint);
        if let Some(bed) = beds.patients.get_mut(&number) {
            *bed = Bed { who: bed.who.clone(), reason, until: now.plus(wait), step, probing: false };
            turn(bed.who.gate(), SHUT);
        }
        beds.tell(now, number, What::Shut { reason, wait });
    }

    fn open(&self, beds: &mut Beds<P>, number: u32, now: Moment) {
        let Some(bed) = beds.patients.remove(&number) else { return };
        if self.settings.recovery == Recovery::Timer {
            beds.past.insert(number, (bed.step + 1, now));
        }
        bed.who.chart().reset();
        self.release(&bed.who);
        beds.tell(now, number, What::Opened);
    }

    fn release(&self, who: &P) {
        turn(who.gate(), OPEN);
        self.shut.fetch_sub(1, Relaxed);
        who.shut().fetch_sub(1, Relaxed);
    }

    /// The time of an ejection: `min(max, base · 2^step)` or `min(max, base · (step + 1))`, and up to `jitter`
    /// times it more, at most `max`.
    fn wait(&self, step: u32, rng: &Rng) -> Duration {
        let (base, max) = (self.settings.ejection_base, self.settings.ejection_max);
        let jitter = f64::from(self.settings.jitter).clamp(0.0, Backoff::JITTER_MAX);
        let (base, step) = match self.settings.growth {
            Growth::Exponential => (base, step),
            Growth::Linear => (base.saturating_mul(step.saturating_add(1)), 0),
        };
        match Backoff::new(base.min(max), max, if jitter.is_nan() { 0.0 } else { jitter }) {
            Ok(backoff) => backoff.above(step, rng),
            Err(_) => max,
        }
    }

    fn sweep(&self, beds: &mut Beds<P>, now: Moment, rng: &Rng, everyone: &[P]) {
        let mut found = Vec::new();
        for (index, (detector, at)) in beds.sweeps.iter_mut().enumerate().filter(|(_, (_, at))| *at <= now) {
            *at = now.plus(interval(detector).unwrap_or(FORGET));
            let take = |who: &P| who.chart().tallies().nth(index).map_or((0, 0), |tally| tally.take());
            let tallies: Vec<(u32, u32)> = everyone.iter().map(take).collect();
            found.extend(outliers(detector, &tallies));
        }
        for (index, reason) in found {
            let Some(who) = everyone.get(index) else { continue };
            if who.gate().load(Relaxed) & STATE != OPEN || beds.closed {
                continue;
            }
            if !self.may_shut() {
                self.spared.fetch_add(1, Relaxed);
                continue;
            }
            self.admit(beds, who, now, rng, (reason, None));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Beds<P>> {
        self.beds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An endpoint left the service: it is no longer counted.
    pub fn discharge(&self, number: u32) {
        let mut beds = self.lock();
        beds.past.remove(&number);
        if let Some(bed) = beds.patients.remove(&number) {
            self.release(&bed.who);
            self.wake.store(beds.wake().micros(), Relaxed);
        }
    }

    /// A shut endpoint goes by another handle from now on.
    pub fn rename(&self, who: &P) {
        let mut beds = self.lock();
        if let Some(bed) = beds.patients.get_mut(&who.number()) {
            bed.who.shut().fetch_sub(1, Relaxed);
            who.shut().fetch_add(1, Relaxed);
            bed.who = who.clone();
        }
    }

    /// Opens all for good: other settings hold from now on.
    pub fn close(&self) {
        let mut beds = self.lock();
        beds.closed = true;
        beds.past.clear();
        std::mem::take(&mut beds.patients).values().for_each(|bed| self.release(&bed.who));
        beds.sweeps.clear();
        self.wake.store(Moment::NEVER.micros(), Relaxed);
    }

    /// The time until the next endpoint is tried again.
    pub fn soonest(&self, now: Moment) -> Duration {
        let beds = self.lock();
        let next = beds.patients.values().map(|bed| bed.until).min();
        next.map_or(Duration::ZERO, |until| until.since_moment(now))
    }

    /// A shut endpoint's state; `None` for one that is open.
    pub fn state(&self, number: u32) -> Option<BedState> {
        let beds = self.lock();
        let bed = beds.patients.get(&number)?;
        Some(BedState { reason: bed.reason, until: bed.until, step: bed.step, probing: bed.probing })
    }

    /// The events from number `from` on that are still kept, the oldest first.
    pub fn events(&self, from: u64) -> Vec<Event> {
        self.lock().events.iter().filter(|event| event.number >= from).copied().collect()
    }
}

impl<P> Beds<P> {
    fn wake(&self) -> Moment {
        let beds = self.patients.values().map(|bed| bed.until);
        beds.chain(self.sweeps.iter().map(|(_, at)| *at)).min().unwrap_or(Moment::NEVER)
    }

    fn tell(&mut self, at: Moment, endpoint: u32, what: What) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        *self.told.entry(what.words()).or_default() += 1;
        self.events.push_back(Event { number: self.next_event, at, endpoint, what });
        self.next_event += 1;
    }
}

/// The pass of the one request that tries an endpoint: a word that its gate never holds, so that no other has it.
fn probes_pass(gate: u32) -> u32 {
    gate ^ STATE
}

/// Changes a gate's state; its number goes up, the owner's bit stays.
fn turn(gate: &AtomicU32, state: u32) -> u32 {
    let next = |word: u32| ((word | STATE | OWNERS).wrapping_add(1)) | word & OWNERS | state;
    let before = gate.fetch_update(Relaxed, Relaxed, |word| Some(next(word)));
    next(before.unwrap_or_else(|word| word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::settings::{FailureClass, Overload};
    use crate::stdx::rng::Rng;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Debug, Clone)]
    struct Bearer(Arc<Body>);

    #[derive(Debug)]
    struct Body {
        number: u32,
        gate: AtomicU32,
        chart: Chart,
        shut: Arc<AtomicU32>,
    }

    impl Patient for Bearer {
        fn number(&self) -> u32 {
            self.0.number
        }
        fn gate(&self) -> &AtomicU32 {
            &self.0.gate
        }
        fn chart(&self) -> &Chart {
            &self.0.chart
        }
        fn shut(&self) -> &AtomicU32 {
            &self.0.shut
        }
    }

    struct Clinic {
        ward: Ward<Bearer>,
        all: Vec<Bearer>,
        rng: Rng,
        now: Moment,
    }

    fn settings(threshold: u32) -> BreakerSettings {
        BreakerSettings {
            detectors: vec![Detector::Consecutive { class: FailureClass::Any, threshold }],
            jitter: 0.0,
            ejected_percent_max: 100,
            ..BreakerSettings::default()
        }
    }

    impl Clinic {
        fn new(count: u32, settings: BreakerSettings, min_ready: u32) -> Self {
            let now = Moment::from_micros(1);
            let ward = Ward::new(settings, min_ready, now);
            let shut: Arc<AtomicU32> = Arc::default();
            let bearer = |number| {
                let body =
                    Body { number, gate: AtomicU32::new(0), chart: ward.chart(), shut: Arc::clone(&shut) };
                Bearer(Arc::new(body))
            };
            let all = (0..count).map(bearer).collect();
            ward.resize(count);
            Self { ward, all, rng: Rng::seeded(1), now }
        }

        fn pass(&self, who: usize) -> u32 {
            self.all[who].gate().load(Relaxed)
        }

        fn state(&self, who: usize) -> u32 {
            self.pass(who) & STATE
        }

        fn end(&self, who: usize, pass: u32, outcome: &Outcome) {
            self.ward.record(&self.all[who], pass, &self.rng, outcome, || self.now);
        }

        fn send(&self, who: usize, outcome: &Outcome) {
            self.end(who, self.pass(who), outcome);
        }

        fn wait(&mut self, millis: u64) {
            self.now = self.now.plus(Duration::from_millis(millis));
        }

        fn attend(&self) -> Option<(usize, u32)> {
            let everyone = || self.all.clone();
            let found = self.ward.attend(self.now, &self.rng, everyone);
            found.map(|(who, pass)| (who.number() as usize, pass))
        }
    }

    const GOOD: Outcome = Outcome { verdict: Verdict::Success, cause: Cause::Status(200), retry_after: None };
    const BAD: Outcome = Outcome { verdict: Verdict::Failure, cause: Cause::Status(500), retry_after: None };

    #[test]
    fn exactly_one_of_a_thousand_waiting_requests_is_the_probe() {
        let mut clinic = Clinic::new(1, settings(3), 0);
        (0..3).for_each(|_| clinic.send(0, &BAD));
        assert_eq!((clinic.state(0), clinic.attend()), (SHUT, None));
        clinic.wait(1000);
        let probes: Vec<(usize, u32)> = (0..1000).filter_map(|_| clinic.attend()).collect();
        assert_eq!((probes.len(), clinic.state(0)), (1, PROBING));
        // A cancelled probe frees its place for the next.
        clinic.end(0, probes[0].1, &Outcome::DROPPED);
        let next = clinic.attend().expect("the place is free");
        assert_eq!(clinic.attend(), None);
        clinic.end(0, next.1, &GOOD);
        assert_eq!((clinic.state(0), clinic.ward.shut()), (OPEN, 0));
    }

    #[test]
    fn a_straggler_from_before_the_trip_decides_nothing() {
        let mut clinic = Clinic::new(1, settings(1), 0);
        let early = clinic.pass(0);
        clinic.send(0, &BAD);
        clinic.end(0, early, &GOOD);
        assert_eq!(clinic.state(0), SHUT);
        clinic.wait(1000);
        let (_, probe) = clinic.attend().unwrap();
        clinic.end(0, early, &GOOD);
        clinic.end(0, early, &BAD);
        assert_eq!(clinic.state(0), PROBING);
        clinic.end(0, probe, &GOOD);
        assert_eq!(clinic.state(0), OPEN);
        clinic.end(0, early, &BAD);
        assert_eq!(clinic.state(0), OPEN);
    }

    #[test]
    fn who_is_let_in_beside_the_probe_decides_nothing() {
        for outcome in [GOOD, BAD, Outcome::DROPPED] {
            let mut clinic = Clinic::new(1, settings(1), 0);
            clinic.send(0, &BAD);
            clinic.wait(1000);
            let (_, probe) = clinic.attend().expect("a probe");
            // As in a panic, when shut ones are used too.
            clinic.send(0, &outcome);
            assert_eq!(clinic.state(0), PROBING, "{outcome:?}");
            assert_eq!(clinic.attend(), None, "one probe at a time");
            clinic.end(0, probe, &GOOD);
            assert_eq!(clinic.state(0), OPEN, "{outcome:?}");
        }
    }

    #[test]
    fn a_probe_that_hangs_does_not_hold_its_place_for_ever() {
        let mut clinic = Clinic::new(1, settings(1), 0);
        clinic.send(0, &BAD);
        clinic.wait(1000);
        let (_, hung) = clinic.attend().unwrap();
        clinic.wait(59_999);
        assert_eq!((clinic.attend(), clinic.state(0)), (None, PROBING));
        clinic.wait(1);
        assert_eq!((clinic.attend(), clinic.state(0)), (None, SHUT));
        assert_eq!(clinic.ward.state(0).unwrap().reason, Reason::ProbeTimedOut);
        clinic.end(0, hung, &GOOD);
        assert_eq!(clinic.state(0), SHUT, "too late");
        clinic.wait(2000);
        assert!(clinic.attend().is_some());
    }

    #[test]
    fn times_grow_and_start_anew_after_a_recovery() {
        let check = |growth, recovery, expected: [u64; 4]| {
            let max = Duration::from_secs(5);
            let settings = BreakerSettings { growth, recovery, ejection_max: max, ..settings(1) };
            let mut clinic = Clinic::new(1, settings, 0);
            let mut waits = Vec::new();
            clinic.send(0, &BAD);
            for _ in 0..4 {
                let until = clinic.ward.state(0).unwrap().until;
                waits.push(until.since_moment(clinic.now).as_secs());
                clinic.now = until;
                match clinic.attend() {
                    Some((_, pass)) => clinic.end(0, pass, &BAD),
                    None => clinic.send(0, &BAD),
                }
            }
            assert_eq!(waits, expected, "{growth:?} {recovery:?}");
        };
        check(Growth::Exponential, Recovery::Probe, [1, 2, 4, 5]);
        check(Growth::Linear, Recovery::Probe, [1, 2, 3, 4]);
        check(Growth::Linear, Recovery::Timer, [1, 2, 3, 4]);
        check(Growth::Exponential, Recovery::Timer, [1, 2, 4, 5]);

        let mut clinic = Clinic::new(1, settings(1), 0);
        clinic.send(0, &BAD);
        clinic.wait(1000);
        let (_, pass) = clinic.attend().unwrap();
        clinic.end(0, pass, &BAD);
        clinic.wait(2000);
        let (_, pass) = clinic.attend().unwrap();
        clinic.end(0, pass, &GOOD);
        clinic.send(0, &BAD);
        assert_eq!(clinic.ward.state(0).unwrap().step, 0);
    }

    #[test]
    fn past_ejections_are_forgotten_one_by_one_while_all_is_well() {
        let settings = BreakerSettings { growth: Growth::Linear, recovery: Recovery::Timer, ..settings(1) };
        let mut clinic = Clinic::new(1, settings, 0);
        for step in [0, 1, 2] {
            clinic.send(0, &BAD);
            assert_eq!(clinic.ward.state(0).unwrap().step, step);
            clinic.wait(10_000 - 1);
            clinic.attend();
        }
        clinic.wait(20_000);
        clinic.send(0, &BAD);
        assert_eq!(clinic.ward.state(0).unwrap().step, 1);
    }

    #[test]
    fn the_jitter_is_real_and_the_max_holds() {
        let settings = BreakerSettings { jitter: 0.5, ..settings(1) };
        let mut waits = Vec::new();
        for seed in 0..100 {
            let mut clinic = Clinic::new(1, settings.clone(), 0);
            clinic.rng = Rng::seeded(seed);
            clinic.send(0, &BAD);
            waits.push(clinic.ward.soonest(clinic.now).as_millis());
        }
        assert!(waits.iter().all(|wait| (1000..=1500).contains(wait)));
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 80, "{waits:?}");
    }

    #[test]
    fn a_hint_when_to_come_back_lengthens_the_time_if_asked_to() {
        for honour_retry_after in [false, true] {
            let settings = BreakerSettings { honour_retry_after, ..settings(1) };
            let clinic = Clinic::new(1, settings, 0);
            clinic.send(0, &Outcome { retry_after: Some(Duration::from_secs(30)), ..BAD });
            let expected = if honour_retry_after { 30 } else { 1 };
            assert_eq!(clinic.ward.soonest(clinic.now).as_secs(), expected);
        }
    }

    #[test]
    fn what_is_turned_away_for_being_too_much_counts_where_the_settings_say() {
        let check = |overload, detector: Detector, outcome: Outcome, shuts: bool| {
            let settings = BreakerSettings { overload, detectors: vec![detector.clone()], ..settings(1) };
            let clinic = Clinic::new(1, settings, 0);
            (0..5).for_each(|_| clinic.send(0, &outcome));
            assert_eq!(clinic.state(0) == SHUT, shuts, "{overload:?} {detector:?} {outcome:?}");
        };
        let busy = [Cause::Status(429), Cause::Grpc(8)];
        for (cause, verdict) in
            busy.into_iter().flat_map(|it| [(it, Verdict::Success), (it, Verdict::Failure)])
        {
            let outcome = Outcome::new(verdict, cause);
            let classed = verdict == Verdict::Failure;
            let any = Detector::Consecutive { class: FailureClass::Any, threshold: 3 };
            let server = Detector::Consecutive { class: FailureClass::Server, threshold: 3 };
            let window = Duration::from_secs(10);
            let rate = Detector::SuccessRate { threshold: 0.8, window, min_requests: 3 };
            for (overload, by_any, by_rate) in [
                (Overload::Rate, classed, true),
                (Overload::Count, true, true),
                (Overload::Ignore, false, false),
            ] {
                check(overload, any.clone(), outcome, by_any);
                check(overload, rate.clone(), outcome, by_rate);
                check(overload, server.clone(), outcome, false);
                check(overload, any.clone(), BAD, true);
            }
        }
    }

    #[test]
    fn no_more_are_shut_than_may_be() {
        let check = |count, percent, min_ready, expected| {
            let settings = BreakerSettings { ejected_percent_max: percent, ..settings(1) };
            let clinic = Clinic::new(count, settings, min_ready);
            (0..count as usize).for_each(|who| clinic.send(who, &BAD));
            assert_eq!(clinic.ward.shut(), expected, "{count} endpoints, {percent} %, {min_ready} ready");
            assert_eq!(clinic.ward.spared(), u64::from(count - expected));
        };
        check(10, 50, 1, 5);
        check(10, 100, 1, 9);
        check(10, 100, 0, 10);
        check(10, 100, 4, 6);
        check(3, 10, 1, 1);
        check(3, 0, 1, 0);
        check(1, 100, 1, 0);
        check(1, 100, 0, 1);
    }

    #[test]
    fn the_odd_one_out_is_found_when_the_interval_ends() {
        let interval = Duration::from_secs(10);
        let detector = Detector::Deviation { factor_milli: 1900, min_hosts: 5, min_requests: 100, interval };
        let percent = Detector::FailurePercent { threshold: 85, min_hosts: 5, min_requests: 50, interval };
        let settings = BreakerSettings { detectors: vec![detector, percent], ..settings(1) };
        let mut clinic = Clinic::new(6, settings, 1);
        for who in 0..6 {
            (0..100).for_each(|n| clinic.send(who, if who == 4 && n < 60 { &BAD } else { &GOOD }));
        }
        assert!(!clinic.ward.is_awake(clinic.now));
        clinic.wait(10_000);
        assert!(clinic.ward.is_awake(clinic.now));
        clinic.attend();
        assert!((0..6).all(|who| (clinic.state(who) == SHUT) == (who == 4)));
        assert_eq!(clinic.ward.state(4).unwrap().reason.as_str(), "success_rate_deviation");
        // The next interval begins with nothing.
        clinic.wait(10_000);
        clinic.attend();
        assert_eq!(clinic.ward.shut(), 1);
    }

    #[test]
    fn events_tell_what_happened_and_why() {
        let mut clinic = Clinic::new(2, settings(2), 1);
        clinic.send(1, &BAD);
        clinic.send(1, &BAD);
        clinic.wait(1000);
        let (_, pass) = clinic.attend().unwrap();
        clinic.end(1, pass, &GOOD);
        let what: Vec<What> = clinic.ward.events(0).iter().map(|event| event.what).collect();
        let reason = Reason::Consecutive { class: FailureClass::Any, failures: 2 };
        let shut = What::Shut { reason, wait: Duration::from_secs(1) };
        assert_eq!(what, [shut, What::Probed, What::Opened]);
        assert_eq!(clinic.ward.events(2).len(), 1);
        for _ in 0..200 {
            clinic.send(1, &BAD);
            clinic.send(1, &BAD);
            clinic.wait(1000);
            let (_, pass) = clinic.attend().unwrap();
            clinic.end(1, pass, &GOOD);
        }
        let kept = clinic.ward.events(0);
        assert_eq!((kept.len(), kept[0].number), (EVENTS_MAX, 603 - EVENTS_MAX as u64));
    }

    #[test]
    fn who_leaves_is_not_counted_and_a_closed_ward_shuts_nobody() {
        let clinic = Clinic::new(3, settings(1), 1);
        let late = clinic.pass(1);
        clinic.send(0, &BAD);
        clinic.ward.discharge(0);
        assert_eq!((clinic.ward.shut(), clinic.state(0)), (0, OPEN));
        clinic.send(2, &BAD);
        clinic.ward.close();
        clinic.end(1, late, &BAD);
        assert_eq!(clinic.ward.shut(), 0);
        assert!((0..3).all(|who| clinic.state(who) == OPEN));
        assert!(!clinic.ward.is_awake(Moment::from_micros(u64::MAX - 1)));
    }

    #[test]
    fn the_late_end_of_one_who_left_shuts_nobody() {
        let clinic = Clinic::new(2, settings(1), 1);
        clinic.all[0].gate().fetch_or(OWNERS, Relaxed);
        clinic.ward.discharge(0);
        // Its request was picked from the set before, and took its pass after it had left.
        clinic.send(0, &BAD);
        assert_eq!(clinic.ward.shut(), 0);
        clinic.send(1, &BAD);
        assert_eq!(clinic.state(1), SHUT, "the floor counts those who are there");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(usize),
        End(usize, u8),
        Wait(u64),
        Attend,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0usize..5).prop_map(Step::Take),
            4 => ((0usize..100), (0u8..6)).prop_map(|(ticket, how)| Step::End(ticket, how)),
            1 => (0u64..70_000).prop_map(Step::Wait),
            2 => Just(Step::Attend),
        ]
    }

    /// The slow obvious model of one endpoint.
    #[derive(Debug, Clone, Default)]
    struct Model {
        state: u32,
        changes: u32,
        run: u32,
        until: Moment,
        step: u32,
    }

    impl Model {
        fn turn(&mut self, state: u32) {
            self.state = state;
            self.changes += 1;
        }

        fn shut(&mut self, now: Moment, step: u32) {
            let wait = Duration::from_secs(1).saturating_mul(1 << step.min(6)).min(Duration::from_secs(60));
            (self.step, self.until) = (step, now.plus(wait));
            self.turn(SHUT);
        }
    }

    proptest! {
        #[test]
        fn a_ward_does_what_the_model_does(
            steps in proptest::collection::vec(step(), 1..300), threshold in 1u32..4, min_ready in 0u32..3,
        ) {
            let mut clinic = Clinic::new(5, settings(threshold), min_ready);
            let mut models = vec![Model::default(); 5];
            let mut tickets: Vec<(usize, u32, u32)> = Vec::new();
            for step in steps {
                let now = clinic.now;
                match step {
                    Step::Take(who) if models[who].state == OPEN => {
                        tickets.push((who, clinic.pass(who), models[who].changes));
                    }
                    Step::Take(_) => {}
                    Step::End(index, how) if !tickets.is_empty() => {
                        let (who, pass, changes) = tickets.swap_remove(index % tickets.len());
                        let outcome = match how { 0 | 1 => GOOD, 2 => Outcome::DROPPED, _ => BAD };
                        clinic.end(who, pass, &outcome);
                        let open = models.iter().filter(|model| model.state == OPEN).count() as u32;
                        let model = &mut models[who];
                        match (model.changes == changes, model.state, how) {
                            (true, OPEN, 0 | 1) => model.run = 0,
                            (true, OPEN, 3..) => {
                                model.run += 1;
                                if model.run >= threshold && open > min_ready { model.shut(now, 0); }
                            }
                            (true, PROBING, 0 | 1) => { model.run = 0; model.turn(OPEN); }
                            (true, PROBING, 2) => { model.until = now; model.turn(SHUT); }
                            (true, PROBING, 3..) => { let step = model.step + 1; model.shut(now, step); }
                            _ => {}
                        }
                    }
                    Step::End(..) => {}
                    Step::Wait(millis) => clinic.wait(millis),
                    Step::Attend => {
                        let probe = clinic.attend();
                        let mut expected = None;
                        for (who, model) in models.iter_mut().enumerate() {
                            if model.state == PROBING && model.until <= now {
                                let step = model.step + 1;
                                model.shut(now, step);
                            } else if model.state == SHUT && model.until <= now && expected.is_none() {
                                model.until = now.plus(Duration::from_secs(60));
                                model.turn(PROBING);
                                expected = Some(who);
                            }
                        }
                        prop_assert_eq!(probe.map(|(who, _)| who), expected);
                        tickets.extend(probe.map(|(who, pass)| (who, pass, models[who].changes)));
                    }
                }
                let states: Vec<u32> = (0..5).map(|who| clinic.state(who)).collect();
                let expected: Vec<u32> = models.iter().map(|model| model.state).collect();
                prop_assert_eq!(&states, &expected);
                let shut = states.iter().filter(|state| **state != OPEN).count() as u32;
                prop_assert_eq!(clinic.ward.shut(), shut);
                prop_assert_eq!(clinic.all[0].shut().load(Relaxed), shut);
                prop_assert!(5 - shut >= min_ready.min(5));
            }
        }
    }
}
