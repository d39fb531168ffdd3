//! The cell of one endpoint under every order of threads.

use enmesh_modelled::balance::cost::Formula;
use enmesh_modelled::balance::endpoint::Cell;
use enmesh_modelled::balance::set::{Rank, Set, Slot};
use enmesh_modelled::stdx::moment::Moment;
use loom::model::Builder;
use loom::thread;
use std::sync::Arc;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn at(millis: u64) -> Moment {
    Moment::from_micros(millis * 1000)
}

fn join<T>(threads: impl IntoIterator<Item = thread::JoinHandle<T>>) {
    threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
}

fn cell() -> Arc<Cell> {
    Arc::new(Cell::new(1, 1, at(0), 0.03))
}

fn with(cell: &Arc<Cell>, run: impl FnOnce(&Cell) + 'static) -> thread::JoinHandle<()> {
    let cell = Arc::clone(cell);
    thread::spawn(move || run(&cell))
}

#[test]
fn count_and_age_always_belong_together() {
    check(3, || {
        let cell = cell();
        let request = |start: Moment| {
            with(&cell, move |cell| {
                cell.begin(start);
                cell.headers(start);
                cell.stream_begins();
                cell.stream_ends();
            })
        };
        let requests = [request(at(100)), request(at(200))];
        // A reader sees none, one or both of them, each with its own age and nothing between.
        let view = cell.view();
        let ages = [0, 800, 900, 1700].map(|ms| at(ms).micros() / 16);
        let seen = (view.count(), view.age_ticks(at(1000)));
        let near = |age: u64| seen.1.abs_diff(age) <= 2;
        assert!(matches!(seen.0, 0..=2), "{seen:?}");
        assert!(ages.into_iter().any(near), "{seen:?}");
        join(requests);
        assert_eq!((cell.in_flight(), cell.view().age_ticks(at(1000))), (0, 0));
    });
}

#[test]
fn a_latency_learned_by_many_is_one_of_what_they_saw() {
    check(3, || {
        let (cell, formula) = (cell(), Formula::default());
        let learner = |secs: f32| with(&cell, move |cell| cell.learn(&formula, at(1000), secs));
        let learners = [learner(0.01), learner(0.02)];
        let seen = cell.latency();
        assert!(seen.secs.is_finite() && (0.01..=0.03).contains(&seen.secs), "{seen:?}");
        join(learners);
        let seen = cell.latency();
        assert!(!seen.assumed && (0.01..=0.02).contains(&seen.secs), "{seen:?}");
    });
}

#[test]
fn health_stays_a_share() {
    check(3, || {
        let cell = cell();
        let judge = |well: bool| with(&cell, move |cell| cell.judge(well, || at(10)));
        let judges = [judge(false), judge(true), judge(false)];
        join(judges);
        let health = cell.health(at(10));
        assert!((0.0..1.0).contains(&health), "{health}: at least one failure counted");
    });
}

#[test]
fn a_cell_that_is_moved_and_retired_is_nowhere_else() {
    check(3, || {
        let rank = Rank { priority: 0, far: false };
        let (mut set, own) = (Set::default(), cell());
        let place = set.vacancy(rank);
        set.put(place, Slot { cell: Arc::clone(&own), weight: 1, item: () });
        set.seal();
        let reader = with(&own, {
            let old = set.clone();
            move |cell| {
                // What a thread's ring does: by the place to the slot, and only if it is still the same cell.
                let found = old.get(cell.place());
                assert!(found.is_none_or(|slot| slot.cell.id() == cell.id()));
            }
        });
        set.remove(place);
        set.seal();
        let other = Arc::new(Cell::new(2, 2, at(0), 0.03));
        let again = set.vacancy(rank);
        assert_eq!(again, place, "the place is free for another");
        set.put(again, Slot { cell: Arc::clone(&other), weight: 1, item: () });
        reader.join().unwrap();
        assert!(!own.is_open() && !own.serves() && other.is_open());
    });
}
