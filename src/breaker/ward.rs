//! Floor 2: who is shut, until when, and who is let out: the breakers of one service's endpoints together.

use crate::breaker::detect::{Chart, Detect};
use crate::breaker::event::{Event, Reason, What};
use crate::breaker::outlier::{interval, outliers};
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::profile::settings::{BreakerSettings, Detector, Growth, Recovery};
use crate::stdx::backoff::Backoff;
use crate::stdx::moment::Moment;
use crate::stdx::rng::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
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

/// An endpoint as its breaker sees it.
pub trait Patient: Clone {
    /// Its number.
    fn number(&self) -> u32;
    /// Its state in the low two bits, 0 for open, and above them a number that changes with each change of state.
    /// Only the ward writes it.
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
        Chart::new(&self.settings.detectors)
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
                let pass = turn(bed.who.gate(), PROBING);
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
        if who.gate().load(Relaxed) != pass {
            return;
        }
        let unknown = outcome.verdict == Verdict::Cancelled || outcome.cause == Cause::Local;
        match pass & STATE {
            OPEN if !unknown => {
                let chart = who.chart();
                let timed = chart.is_timed() || outcome.verdict == Verdict::Failure || chart.counts(outcome);
                let now = if timed { now() } else { Moment::default() };
                if let Some(reason) = chart.record(now, outcome) {
                    self.trip(who, pass, rng, (reason, outcome.retry_after), now);
                }
            }
            PROBING => self.decide(who, pass, rng, (!unknown).then_some(outcome), now()),
            // Let in although it is shut, because too few were open.
            _ => {}
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
        self.events.push_back(Event { number: self.next_event, at, endpoint, what });
        self.next_event += 1;
    }
}

/// Changes a gate's state; its number goes up.
fn turn(gate: &AtomicU32, state: u32) -> u32 {
    let word = ((gate.load(Relaxed) | STATE).wrapping_add(1)) | state;
    gate.store(word, Relaxed);
    word
}
