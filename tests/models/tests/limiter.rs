//! Places of a limit are taken, waited for, left and given back, under every order of threads.

use enmesh_modelled::limit::concurrency::{ConcurrencySettings, Limiter, Refusal, Waiter};
use enmesh_modelled::limit::queue::Ask;
use enmesh_modelled::stdx::clock;
use loom::model::Builder;
use loom::sync::atomic::{AtomicU32, Ordering::SeqCst};
use loom::thread;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Nobody knows yet how it ends.
const WAITS: u32 = 0;
/// It was given a place.
const SERVED: u32 = 1;
/// It went away before.
const GONE: u32 = 2;

/// One who waits: its end is decided once, by who is first.
#[derive(Clone)]
struct Seat(Arc<AtomicU32>);

impl Seat {
    fn new() -> Self {
        Self(Arc::new(AtomicU32::new(WAITS)))
    }

    fn end(&self, end: u32) -> bool {
        self.0.compare_exchange(WAITS, end, SeqCst, SeqCst).is_ok()
    }

    fn is_served(&self) -> bool {
        self.0.load(SeqCst) == SERVED
    }
}

impl Waiter for Seat {
    fn tell(self: Box<Self>, told: Result<(), Refusal>) -> bool {
        told.is_ok() && self.end(SERVED)
    }
}

/// So many places, and a moment for what asks for one; nothing here depends on time.
fn limiter(places: u32) -> (Arc<Limiter>, Instant) {
    let settings = ConcurrencySettings { requests_max: Some(places), pending_max: Some(4), adaptive: None };
    (Arc::new(Limiter::new(settings)), clock::now())
}

/// A place now, or a seat to wait in.
fn ask(limiter: &Limiter, now: Instant) -> Option<Seat> {
    if limiter.try_admit() {
        return None;
    }
    let seat = Seat::new();
    limiter.wait(Ask::default(), Box::new(seat.clone()), now).expect("there is room to wait");
    Some(seat)
}

#[test]
fn whoever_waits_while_the_place_becomes_free_gets_it() {
    check(3, || {
        let (limiter, now) = limiter(1);
        assert!(limiter.try_admit());
        let leaves = {
            let limiter = Arc::clone(&limiter);
            thread::spawn(move || limiter.release(|| now))
        };
        let seat = ask(&limiter, now);
        leaves.join().unwrap();
        assert!(seat.is_none_or(|seat| seat.is_served()), "a place lies idle and somebody waits for it");
        assert_eq!((limiter.in_flight(), limiter.waiting()), (1, 0));
        limiter.release(|| now);
        assert_eq!(limiter.in_flight(), 0);
    });
}

#[test]
fn the_last_place_is_given_once() {
    check(3, || {
        let (limiter, now) = limiter(1);
        let other = {
            let limiter = Arc::clone(&limiter);
            thread::spawn(move || ask(&limiter, now))
        };
        let seats = [ask(&limiter, now), other.join().unwrap()];
        assert_eq!(seats.iter().filter(|seat| seat.is_none()).count(), 1);
        assert_eq!((limiter.in_flight(), limiter.waiting()), (1, 1));
        limiter.release(|| now);
        assert!(seats.iter().flatten().all(Seat::is_served));
        assert_eq!((limiter.in_flight(), limiter.waiting()), (1, 0));
    });
}

#[test]
fn two_that_leave_at_once_let_two_in() {
    check(2, || {
        let (limiter, now) = limiter(2);
        assert!(limiter.try_admit() && limiter.try_admit());
        let first = ask(&limiter, now).expect("it is full");
        let leaves = {
            let limiter = Arc::clone(&limiter);
            thread::spawn(move || limiter.release(|| now))
        };
        let second = ask(&limiter, now);
        limiter.release(|| now);
        leaves.join().unwrap();
        assert!(first.is_served() && second.is_none_or(|seat| seat.is_served()));
        assert_eq!((limiter.in_flight(), limiter.waiting()), (2, 0));
    });
}

#[test]
fn who_goes_away_while_it_is_served_leaves_no_place_behind() {
    check(3, || {
        let (limiter, now) = limiter(1);
        assert!(limiter.try_admit());
        let seat = Seat::new();
        let place = limiter.wait(Ask::default(), Box::new(seat.clone()), now).unwrap();
        let goes = {
            let limiter = Arc::clone(&limiter);
            thread::spawn(move || {
                let went = seat.end(GONE);
                limiter.leave(place);
                // As a lease that was on its way does when nobody takes it.
                if !went {
                    limiter.release(|| now);
                }
            })
        };
        limiter.release(|| now);
        goes.join().unwrap();
        assert_eq!((limiter.in_flight(), limiter.waiting()), (0, 0));
        assert!(limiter.try_admit());
    });
}

#[test]
fn an_answer_learned_by_two_at_once_keeps_the_limit_a_limit() {
    check(2, || {
        let settings = ConcurrencySettings {
            requests_max: Some(3),
            pending_max: None,
            adaptive: Some(enmesh_modelled::profile::settings::Adaptive::Vegas),
        };
        let (limiter, (_, now)) = (Arc::new(Limiter::new(settings)), limiter(1));
        let one = || {
            let limiter = Arc::clone(&limiter);
            move || {
                let has = limiter.try_admit();
                limiter.answered(Duration::from_millis(1), false, now);
                if has {
                    limiter.release(|| now);
                }
            }
        };
        let other = thread::spawn(one());
        one()();
        other.join().unwrap();
        assert_eq!(limiter.in_flight(), 0);
        assert!((1..=3).contains(&limiter.limit()));
    });
}
