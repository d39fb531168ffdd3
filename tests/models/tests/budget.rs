//! Budgets under every order of threads: no credit is used twice, and nothing stays behind.

use enmesh_modelled::profile::settings::BudgetSettings;
use enmesh_modelled::retry::budget::{Budget, Stake};
use enmesh_modelled::stdx::clock;
use loom::model::Builder;
use loom::thread;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TTL: Duration = Duration::from_secs(1);

/// Tries every order with at most so many switches between threads that did not ask for one.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn windowed(ratio_ppm: u32, min_per_second: u32) -> Arc<Budget> {
    Arc::new(Budget::new(&BudgetSettings::Windowed { ratio_ppm, min_per_second, ttl: TTL }))
}

/// Asks once at each of these times after `start`; how often it was granted.
fn asker(budget: &Arc<Budget>, start: Instant, at: &'static [u64]) -> thread::JoinHandle<u32> {
    let budget = Arc::clone(budget);
    thread::spawn(move || {
        let ask = |ms: &u64| budget.withdraw(&mut Stake::default(), start + Duration::from_millis(*ms));
        at.iter().map(|ms| u32::from(ask(ms))).sum()
    })
}

fn granted(threads: impl IntoIterator<Item = thread::JoinHandle<u32>>) -> u32 {
    threads.into_iter().map(|thread| thread.join().unwrap()).sum()
}

#[test]
fn the_last_of_a_window_is_granted_once() {
    check(2, || {
        let (budget, start) = (windowed(1_000_000, 0), clock::now());
        budget.deposit(start);
        let threads = [asker(&budget, start, &[0]), asker(&budget, start, &[1])];
        assert_eq!((granted(threads), budget.level(start)), (1, 0));
    });
}

#[test]
fn no_credit_is_used_twice_however_late_a_thread_is() {
    check(2, || {
        let (budget, start) = (windowed(1_000_000, 0), clock::now());
        budget.deposit(start);
        // While the first thread looks, the other lives on until all of it is forgotten.
        let threads = [asker(&budget, start, &[0]), asker(&budget, start, &[0, 1001])];
        assert!(granted(threads) <= 1);
    });
}

#[test]
fn what_is_earned_meanwhile_is_there_and_no_more() {
    check(2, || {
        let (budget, start) = (windowed(1_000_000, 0), clock::now());
        let earner = {
            let budget = Arc::clone(&budget);
            thread::spawn(move || budget.deposit(start))
        };
        let taken = granted([asker(&budget, start, &[0, 0])]);
        earner.join().unwrap();
        assert_eq!(u64::from(taken) + budget.level(start), 1);
    });
}

#[test]
fn three_threads_that_ask_twice_get_what_a_bucket_has() {
    check(3, || {
        let budget = BudgetSettings::TokenBucket { max_milli: 6_000, ratio_milli: 100 };
        let (budget, start) = (Arc::new(Budget::new(&budget)), clock::now());
        let threads: Vec<_> = (0..3).map(|_| asker(&budget, start, &[0, 0])).collect();
        // It grants while more than half is left: after the first and the second.
        assert_eq!(granted(threads), 2);
    });
}

#[test]
fn a_floor_is_not_undercut() {
    check(2, || {
        let budget = BudgetSettings::Recent { ratio_ppm: 0, min_per_second: 1, burst: 2 };
        let (budget, start) = (Arc::new(Budget::new(&budget)), clock::now());
        let threads = [asker(&budget, start, &[0, 0]), asker(&budget, start, &[0])];
        assert_eq!((granted(threads), budget.level(start)), (2, 0));
    });
}

#[test]
fn a_share_of_what_is_active_is_kept_and_given_back() {
    check(3, || {
        let budget = BudgetSettings::ActiveShare { ratio_ppm: 0, min_concurrent: 1 };
        let (budget, start) = (Arc::new(Budget::new(&budget)), clock::now());
        let request = |budget: &Arc<Budget>| {
            let budget = Arc::clone(budget);
            thread::spawn(move || {
                let mut stake = budget.enter();
                let first = budget.withdraw(&mut stake, start);
                // Asking again gives its own place back first.
                (first, budget.withdraw(&mut stake, start), stake)
            })
        };
        let ends = [request(&budget), request(&budget)].map(|thread| thread.join().unwrap());
        let held = ends.iter().filter(|(_, second, _)| *second).count();
        assert!(held <= 1, "two hold the one place");
        assert_eq!(budget.level(start), 1 - held as u64);
        drop(ends);
        assert_eq!(budget.level(start), 1);
    });
}
