//! Floor 0: the past of a value, finer the nearer it is: what sliding windows are read from.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The past of a value that only grows, such as a counter: a window is what is now without what was then.
///
/// It is kept in tiers. Each takes a value every `step` and keeps it for `span`, so that a window of `w` is read from
/// the finest tier that reaches so far, and is at most one of its steps too long.
#[derive(Debug)]
pub struct History<T> {
    tiers: Vec<Tier<T>>,
}

#[derive(Debug)]
struct Tier<T> {
    step: Duration,
    span: Duration,
    kept: VecDeque<(Instant, T)>,
}

impl<T: Clone> History<T> {
    /// A history of these tiers (step and span), the finest first. It begins at `now` with `start`.
    pub fn new(tiers: &[(Duration, Duration)], now: Instant, start: T) -> Self {
        let tiers = tiers.iter().map(|(step, span)| Tier {
            step: *step,
            span: *span,
            kept: VecDeque::from([(now, start.clone())]),
        });
        Self { tiers: tiers.collect() }
    }

    /// Takes the value at `now` into each tier whose step is over.
    pub fn push(&mut self, now: Instant, value: &T) {
        for tier in &mut self.tiers {
            let due = |(last, _): &(Instant, T)| now.saturating_duration_since(*last) + SLACK >= tier.step;
            if tier.kept.back().is_none_or(due) {
                tier.kept.push_back((now, value.clone()));
            }
            // One that is older than the span is kept, for a window of the whole span begins there.
            while tier.kept.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= tier.span) {
                tier.kept.pop_front();
            }
        }
    }

    /// The newest value that is at least `age` old at `now`, and when it was; the oldest of all if none is so old.
    pub fn before(&self, now: Instant, age: Duration) -> Option<&(Instant, T)> {
        let all = || self.tiers.iter().flat_map(|tier| &tier.kept);
        let enough = |(at, _): &&(Instant, T)| now.saturating_duration_since(*at) + SLACK >= age;
        all().filter(enough).max_by_key(|(at, _)| *at).or_else(|| all().min_by_key(|(at, _)| *at))
    }
}

/// How much too early a value may come and still be taken for its step, or be the beginning of a window: an eighth of a second,
/// since timers are never exact, and no step must be left out for that.
const SLACK: Duration = Duration::from_millis(125);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_window_begins_where_it_should_to_one_step_of_its_tier() {
        let start = crate::stdx::clock::now();
        let tiers = [(SECOND, 10 * SECOND), (5 * SECOND, 60 * SECOND), (60 * SECOND, 3600 * SECOND)];
        let mut history = History::new(&tiers, start, 0u32);
        for second in 1..=7200 {
            history.push(start + SECOND * second, &second);
            let now = start + SECOND * second;
            for (window, step) in [(1, 1), (10, 1), (60, 5), (3600, 60)] {
                let (at, then) = history.before(now, SECOND * window).unwrap();
                assert_eq!(*at, start + SECOND * *then);
                let length = second - then;
                let right = if second < window {
                    length == second
                } else {
                    (window..window + step).contains(&length)
                };
                assert!(right, "after {second} s a window of {window} s is {length} s long");
            }
        }
        let kept: Vec<usize> = history.tiers.iter().map(|tier| tier.kept.len()).collect();
        assert_eq!(kept, [11, 13, 61]);
    }

    #[test]
    fn late_and_early_ticks_leave_no_step_out() {
        let start = crate::stdx::clock::now();
        let mut history = History::new(&[(SECOND, 10 * SECOND)], start, 0u32);
        for tick in 1..=20u32 {
            let jitter = Duration::from_millis(u64::from(tick % 3) * 40);
            history.push(start + SECOND * tick + jitter, &tick);
        }
        let (_, then) = history.before(start + SECOND * 20 + Duration::from_millis(80), SECOND * 5).unwrap();
        assert!((14..=15).contains(then), "{then}");
    }
}
