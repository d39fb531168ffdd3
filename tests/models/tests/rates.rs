//! Rate limits are asked by several threads, under every order of them.

use enmesh_modelled::limit::keyed::KeyedRates;
use enmesh_modelled::stdx::clock;
use enmesh_modelled::stdx::gcra::{Gcra, Rate};
use loom::model::Builder;
use loom::thread;
use std::sync::Arc;
use std::time::Duration;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// `burst` at once, and one more each second.
fn rate(burst: u32) -> Rate {
    Rate::new(1, Duration::from_secs(1), burst)
}

/// How many of the asks of two other threads and this one are admitted, each asking twice.
fn admitted<T: Send + Sync + 'static>(
    limit: &Arc<T>,
    threads: u32,
    ask: impl Fn(&T, u32) -> bool + Clone + Send + 'static,
) -> u32 {
    let run = |thread: u32| {
        let (limit, ask) = (Arc::clone(limit), ask.clone());
        move || (0..2).map(|_| u32::from(ask(&limit, thread))).sum::<u32>()
    };
    let others: Vec<_> = (1..threads).map(|thread| thread::spawn(run(thread))).collect();
    let own = run(0)();
    own + others.into_iter().map(|other| other.join().unwrap()).sum::<u32>()
}

#[test]
fn a_burst_is_admitted_and_no_more_however_many_ask_at_once() {
    check(2, || {
        let (limit, now) = (Arc::new(Gcra::new(rate(3))), clock::now());
        assert_eq!(admitted(&limit, 3, move |limit, _| limit.admit(now).is_ok()), 3);
        assert_eq!(limit.level(now), 0);
    });
}

#[test]
fn one_second_brings_one_more_whoever_sees_it_first() {
    check(2, || {
        let (limit, now) = (Arc::new(Gcra::new(rate(1))), clock::now());
        assert!(limit.admit(now).is_ok());
        // One thread is a second ahead of the other.
        let late = now + Duration::from_secs(1);
        let at = move |thread: u32| if thread == 0 { now } else { late };
        assert_eq!(admitted(&limit, 2, move |limit, thread| limit.admit(at(thread)).is_ok()), 1);
    });
}

#[test]
fn a_key_that_is_new_to_two_threads_has_one_bucket() {
    check(3, || {
        let (limit, now) = (Arc::new(KeyedRates::with_keys_max(rate(2), 8)), clock::now());
        assert_eq!(admitted(&limit, 2, move |limit, _| limit.admit("key", now).is_ok()), 2);
        assert_eq!(limit.busy(now), 1);
    });
}
