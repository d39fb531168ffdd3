//! Breakers under every order of threads: one probe, a floor that holds, and stragglers that decide nothing.

use enmesh_modelled::balance::endpoint::Cell;
use enmesh_modelled::breaker::detect::Chart;
use enmesh_modelled::breaker::ward::{Patient, Ward};
use enmesh_modelled::classify::outcome::{Cause, Outcome, Verdict};
use enmesh_modelled::profile::settings::{BreakerSettings, Detector, FailureClass};
use enmesh_modelled::stdx::moment::Moment;
use enmesh_modelled::stdx::rng::Rng;
use enmesh_modelled::stdx::sync::{AtomicU32, Ordering::Relaxed};
use loom::model::Builder;
use loom::thread;
use std::sync::Arc;
use std::time::Duration;

const GOOD: Outcome = Outcome { verdict: Verdict::Success, cause: Cause::Status(200), retry_after: None };
const BAD: Outcome = Outcome { verdict: Verdict::Failure, cause: Cause::Status(500), retry_after: None };
const OPEN: u32 = 0;
const PROBING: u32 = 2;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// The endpoint's own cell, as balancers have it.
#[derive(Clone)]
struct Bearer(Arc<(Cell, Chart, AtomicU32)>);

impl Patient for Bearer {
    fn number(&self) -> u32 {
        self.0.0.id()
    }

    fn gate(&self) -> &AtomicU32 {
        self.0.0.gate()
    }

    fn chart(&self) -> &Chart {
        &self.0.1
    }

    fn shut(&self) -> &AtomicU32 {
        &self.0.2
    }
}

#[derive(Clone)]
struct Clinic {
    ward: Arc<Ward<Bearer>>,
    all: Vec<Bearer>,
    rng: Rng,
}

impl Clinic {
    /// Endpoints that one failure shuts for a second.
    fn new(count: u32, min_ready: u32) -> Self {
        let settings = BreakerSettings {
            detectors: vec![Detector::Consecutive { class: FailureClass::Any, threshold: 1 }],
            ejection_base: Duration::from_secs(1),
            ejected_percent_max: 100,
            jitter: 0.0,
            ..BreakerSettings::default()
        };
        let ward = Arc::new(Ward::new(settings, min_ready, at(0)));
        ward.resize(count);
        let bearer = |id| {
            let cell = Cell::new(id, 0, at(0), 0.03);
            Bearer(Arc::new((cell, ward.chart(), AtomicU32::new(0))))
        };
        Self { all: (0..count).map(bearer).collect(), ward, rng: Rng::seeded(1) }
    }

    fn pass(&self, who: usize) -> u32 {
        self.all[who].gate().load(Relaxed)
    }

    fn end(&self, who: usize, pass: u32, outcome: &Outcome, now: u64) {
        self.ward.record(&self.all[who], pass, &self.rng, outcome, || at(now));
    }

    fn attend(&self, now: u64) -> Option<u32> {
        self.ward.attend(at(now), &self.rng, || self.all.clone()).map(|(_, pass)| pass)
    }

    fn shut_by_tier(&self) -> u32 {
        self.all.iter().map(|one| one.shut().load(Relaxed)).sum()
    }

    fn not_open(&self) -> u32 {
        (0..self.all.len()).map(|who| u32::from(self.pass(who) & 3 != OPEN)).sum()
    }

    fn spawn<T: 'static>(&self, run: impl FnOnce(&Self) -> T + 'static) -> thread::JoinHandle<T> {
        let clinic = self.clone();
        thread::spawn(move || run(&clinic))
    }
}

fn at(millis: u64) -> Moment {
    Moment::from_micros(millis * 1000)
}

fn join<T>(threads: impl IntoIterator<Item = thread::JoinHandle<T>>) {
    threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
}

#[test]
fn of_all_who_wait_one_is_the_probe() {
    check(3, || {
        let clinic = Clinic::new(1, 0);
        clinic.end(0, clinic.pass(0), &BAD, 0);
        let threads = [(); 3].map(|()| clinic.spawn(|clinic| clinic.attend(1000)));
        let passes: Vec<u32> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        // Its pass is no word of the gate, so that nobody who is let in beside it has the same.
        assert!(matches!(passes[..], [pass] if pass != clinic.pass(0)), "{passes:?}");
        assert_eq!(clinic.pass(0) & 3, PROBING);
    });
}

#[test]
fn a_straggler_decides_nothing_however_it_meets_the_probe() {
    check(3, || {
        let clinic = Clinic::new(1, 0);
        let early = clinic.pass(0);
        clinic.end(0, early, &BAD, 0);
        let probe = clinic.attend(1000).expect("its time is over");
        let stragglers =
            [GOOD, BAD].map(|outcome| clinic.spawn(move |clinic| clinic.end(0, early, &outcome, 1000)));
        clinic.end(0, probe, &GOOD, 1000);
        join(stragglers);
        assert_eq!((clinic.pass(0) & 3, clinic.ward.shut(), clinic.shut_by_tier()), (OPEN, 0, 0));
    });
}

#[test]
fn a_cancelled_probe_makes_room_for_exactly_one_other() {
    check(3, || {
        let clinic = Clinic::new(1, 0);
        clinic.end(0, clinic.pass(0), &BAD, 0);
        let probe = clinic.attend(1000).expect("its time is over");
        let others = [(); 2].map(|()| clinic.spawn(|clinic| clinic.attend(1001)));
        clinic.end(0, probe, &Outcome::DROPPED, 1000);
        let found = others.into_iter().filter_map(|thread| thread.join().unwrap()).count();
        assert!(found <= 1);
        // Nobody lost the place: it is taken, or the next who asks gets it.
        assert_eq!(u32::from(clinic.attend(1002).is_some()) + found as u32, 1);
    });
}

#[test]
fn the_floor_holds_when_all_trip_at_once() {
    check(3, || {
        let clinic = Clinic::new(3, 2);
        let threads = [0, 1, 2].map(|who| {
            clinic.spawn(move |clinic| {
                clinic.end(who, clinic.pass(who), &BAD, 0);
                assert!(clinic.not_open() <= 1, "two of three must stay");
            })
        });
        join(threads);
        assert_eq!((clinic.not_open(), clinic.ward.shut(), clinic.shut_by_tier()), (1, 1, 1));
    });
}

#[test]
fn who_leaves_while_it_trips_is_counted_by_nobody() {
    check(3, || {
        let clinic = Clinic::new(2, 0);
        let trip = clinic.spawn(|clinic| clinic.end(0, clinic.pass(0), &BAD, 0));
        // As an update does it: retired first, so that nothing new comes; then discharged.
        clinic.all[0].0.0.retire();
        clinic.ward.discharge(0);
        trip.join().unwrap();
        assert!(!clinic.all[0].0.0.serves(), "its owner's bit survives the breaker's changes");
        assert_eq!((clinic.ward.shut(), clinic.shut_by_tier()), (0, 0));
    });
}

#[test]
fn a_closed_ward_holds_nobody() {
    check(3, || {
        let clinic = Clinic::new(2, 0);
        let pass = clinic.pass(1);
        clinic.end(0, clinic.pass(0), &BAD, 0);
        let late = clinic.spawn(move |clinic| clinic.end(1, pass, &BAD, 0));
        let probe = clinic.spawn(|clinic| clinic.attend(1000));
        clinic.ward.close();
        late.join().unwrap();
        probe.join().unwrap();
        assert_eq!((clinic.not_open(), clinic.ward.shut(), clinic.shut_by_tier()), (0, 0, 0));
    });
}
