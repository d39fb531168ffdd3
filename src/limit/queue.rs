//! Floor 2: who waits for a place, who is next, and who waits in vain.

use crate::limit::delay::Delay;
use crate::limit::priority::Priority;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Requests that wait for a place, by priority.
///
/// The most important is next, and of its equals the oldest. When those of a priority *stand* ([`Delay`]), their newest is: it has
/// the most time left, while the oldest most likely waits for nothing (Facebook, "Fail at Scale", ACM Queue 2015); and
/// whoever has waited too long then is refused, so that its caller may ask elsewhere. What cannot end by its deadline
/// any more is never next. When the queue is full, the newest of the least important ones goes.
#[derive(Debug)]
pub struct Queue<T> {
    levels: [Level<T>; Priority::ALL.len()],
    places: usize,
    waiting: usize,
    next: u64,
}

/// Those of one priority, and whether they stand.
#[derive(Debug)]
struct Level<T> {
    entries: VecDeque<Entry<T>>,
    delay: Delay,
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), delay: Delay::default() }
    }
}

impl<T> Level<T> {
    fn observe(&mut self, pace: Pace, now: Instant) {
        let since = self.entries.front().map(|entry| entry.since);
        let waited = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.delay.observe(now, waited, pace.step);
    }
}

#[derive(Debug)]
struct Entry<T> {
    id: u64,
    since: Instant,
    deadline: Option<Instant>,
    what: T,
}

/// What is known of a request that asks for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ask {
    /// How critical it is.
    pub priority: Priority,
    /// When it must have ended.
    pub deadline: Option<Instant>,
}

/// How fast places become free, by measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// How long a request takes; zero if unknown.
    pub typical: Duration,
    /// How long it is from one end to the next when all places are taken; zero if unknown.
    pub step: Duration,
}

/// Where one waits: for leaving the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    priority: Priority,
    id: u64,
}

/// Why a request got no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shed {
    /// Nobody more may wait, or somebody more important wanted to.
    Full,
    /// It waited too long in a queue that stands.
    Delay,
    /// It could not have ended by its deadline.
    Deadline,
}

impl Shed {
    /// A short word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "queue_full",
            Self::Delay => "queue_delay",
            Self::Deadline => "deadline",
        }
    }
}

/// What became of one who asked to wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Push<T> {
    /// It waits.
    Waits(Place),
    /// It waits, and this one went for it.
    Displaces(Place, T),
    /// It may not.
    Refused(T, Shed),
}

/// One who leaves the queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Pop<T> {
    /// It is next.
    Next(T),
    /// It gets no place.
    Shed(T, Shed),
}

impl<T> Queue<T> {
    /// An empty queue in which at most `places` wait.
    pub fn new(places: usize) -> Self {
        Self { levels: Default::default(), places, waiting: 0, next: 0 }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether those of some priority stand: it is overloaded.
    pub fn stands(&self) -> bool {
        self.levels.iter().any(|level| level.delay.stands())
    }

    /// `what` wants to wait.
    pub fn push(&mut self, ask: Ask, what: T, pace: Pace, now: Instant) -> Push<T> {
        if ask.deadline.is_some_and(|deadline| self.is_in_vain(deadline, ask.priority, pace, now)) {
            return Push::Refused(what, Shed::Deadline);
        }
        let mut displaced = None;
        if self.waiting >= self.places {
            let below = usize::from(ask.priority.level());
            match self.levels.iter_mut().take(below).find_map(|level| level.entries.pop_back()) {
                Some(less) => displaced = Some(less.what),
                None => return Push::Refused(what, Shed::Full),
            }
            self.waiting -= 1;
        }
        let id = self.next;
        self.next += 1;
        self.waiting += 1;
        if let Some(level) = self.levels.get_mut(usize::from(ask.priority.level())) {
            level.entries.push_back(Entry { id, since: now, deadline: ask.deadline, what });
        }
        let place = Place { priority: ask.priority, id };
        match displaced {
            Some(less) => Push::Displaces(place, less),
            None => Push::Waits(place),
        }
    }

    /// A place is free: the next one for it, or one who gets none; to be asked again until there is a next one or
    /// nobody. After the next one, [`overdue`](Self::overdue) says who else leaves.
    pub fn pop(&mut self, pace: Pace, now: Instant) -> Option<Pop<T>> {
        self.levels.iter_mut().for_each(|level| level.observe(pace, now));
        let level = self.levels.iter_mut().rev().find(|level| !level.entries.is_empty())?;
        let entries = &mut level.entries;
        let entry = if level.delay.stands() { entries.pop_back() } else { entries.pop_front() }?;
        self.waiting -= 1;
        if level.entries.is_empty() {
            level.observe(pace, now);
        }
        Some(match entry.deadline {
            Some(deadline) if !fits(deadline, pace, now) => Pop::Shed(entry.what, Shed::Deadline),
            _ => Pop::Next(entry.what),
        })
    }

    /// One who has waited too long in a queue that stands.
    pub fn overdue(&mut self, pace: Pace, now: Instant) -> Option<T> {
        let patience = Delay::patience(pace.step);
        let waited = |entry: &Entry<T>| now.saturating_duration_since(entry.since);
        let is_overdue = |level: &&mut Level<T>| {
            level.delay.stands() && level.entries.front().is_some_and(|entry| waited(entry) > patience)
        };
        let entry = self.levels.iter_mut().find(is_overdue)?.entries.pop_front()?;
        self.waiting -= 1;
        Some(entry.what)
    }

    /// One leaves by itself.
    pub fn leave(&mut self, place: Place) -> Option<T> {
        let level = &mut self.levels.get_mut(usize::from(place.priority.level()))?.entries;
        let index = level.binary_search_by(|entry| entry.id.cmp(&place.id)).ok()?;
        let entry = level.remove(index)?;
        self.waiting -= 1;
        Some(entry.what)
    }

    /// Whether waiting behind those who are there leaves no time to be served.
    fn is_in_vain(&self, deadline: Instant, priority: Priority, pace: Pace, now: Instant) -> bool {
        let own = usize::from(priority.level());
        // Of those that stand the newest is next.
        let is_ahead =
            |(index, level): &(usize, &Level<T>)| *index > own || *index == own && !level.delay.stands();
        let ahead = self.levels.iter().enumerate().filter(is_ahead);
        let ahead: usize = ahead.map(|(_, level)| level.entries.len()).sum();
        let wait = pace.step.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX));
        !now.checked_add(wait).is_some_and(|then| fits(deadline, pace, then))
    }
}

/// Whether a request that begins at `now` may end by its deadline: it has half of the usual time. The other half is
/// for those that are faster than usual, and for an average that lags.
fn fits(deadline: Instant, pace: Pace, now: Instant) -> bool {
    now.checked_add(pace.typical / 2).is_some_and(|end| end < deadline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const PACE: Pace = Pace { typical: Duration::from_millis(10), step: Duration::from_millis(1) };

    fn ask(priority: Priority) -> Ask {
        Ask { priority, deadline: None }
    }

    fn next<T>(queue: &mut Queue<T>, now: Instant) -> Option<T> {
        match queue.pop(PACE, now) {
            Some(Pop::Next(what)) => Some(what),
            Some(Pop::Shed(_, shed)) => panic!("shed: {shed:?}"),
            None => None,
        }
    }

    #[test]
    fn the_most_important_is_next_and_of_equals_the_oldest() {
        let (mut queue, now) = (Queue::new(9), clock::now());
        for (name, priority) in [
            ("batch", Priority::Sheddable),
            ("first", Priority::Critical),
            ("money", Priority::CriticalPlus),
            ("second", Priority::Critical),
        ] {
            queue.push(ask(priority), name, PACE, now);
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue, now)).collect();
        assert_eq!(order, ["money", "first", "second", "batch"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_refuses_the_least_important() {
        let (mut queue, now) = (Queue::new(2), clock::now());
        queue.push(ask(Priority::Sheddable), "a", PACE, now);
        queue.push(ask(Priority::Critical), "b", PACE, now);
        assert_eq!(
            queue.push(ask(Priority::Sheddable), "c", PACE, now),
            Push::Refused("c", Shed::Full),
            "nobody displaces an equal"
        );
        assert!(matches!(queue.push(ask(Priority::Critical), "d", PACE, now), Push::Displaces(_, "a")));
        assert_eq!(queue.push(ask(Priority::SheddablePlus), "e", PACE, now), Push::Refused("e", Shed::Full));
        assert_eq!(queue.len(), 2);
        assert_eq!(
            Queue::new(0).push(ask(Priority::CriticalPlus), "a", PACE, now),
            Push::Refused("a", Shed::Full)
        );
    }

    #[test]
    fn what_cannot_end_in_time_is_refused_when_it_comes_and_when_it_is_next() {
        let (mut queue, now) = (Queue::new(99), clock::now());
        let by = |ms| Ask { priority: Priority::Critical, deadline: Some(now + MS(ms)) };
        assert_eq!(queue.push(by(5), 0, PACE, now), Push::Refused(0, Shed::Deadline));
        assert!(matches!(queue.push(by(7), 1, PACE, now), Push::Waits(_)));
        for id in 2..12 {
            queue.push(ask(Priority::Critical), id, PACE, now);
        }
        assert_eq!(queue.push(by(15), 99, PACE, now), Push::Refused(99, Shed::Deadline), "eleven are before");
        let money = Ask { priority: Priority::CriticalPlus, ..by(15) };
        assert!(matches!(queue.push(money, 100, PACE, now), Push::Waits(_)), "but not before this one");
        assert_eq!(next(&mut queue, now + MS(1)), Some(100));
        assert_eq!(queue.pop(PACE, now + MS(2)), Some(Pop::Shed(1, Shed::Deadline)));
        assert_eq!(next(&mut queue, now + MS(2)), Some(2));
    }

    #[test]
    fn a_queue_that_stands_serves_the_newest_and_refuses_the_oldest() {
        let (mut queue, start) = (Queue::new(1000), clock::now());
        // Two come while one goes.
        let (mut served, mut shed) = (Vec::new(), 0);
        for ms in 0..1000 {
            let now = start + MS(ms);
            queue.push(ask(Priority::Critical), now, PACE, now);
            queue.push(ask(Priority::Critical), now, PACE, now);
            let came = next(&mut queue, now).unwrap();
            shed += std::iter::from_fn(|| queue.overdue(PACE, now)).count();
            served.push(now - came);
        }
        assert!(queue.stands());
        assert!(served[500..].iter().all(|waited| *waited <= MS(1)), "{:?}", &served[500..520]);
        assert!(queue.len() <= 11, "nobody waits longer than 10 ms: {}", queue.len());
        assert_eq!(served.len() + shed + queue.len(), 2000);
        // The overload is over: the oldest are next again.
        for ms in 1000..1300 {
            next(&mut queue, start + MS(ms));
        }
        assert!(!queue.stands() && queue.is_empty());
    }

    #[test]
    fn a_slow_service_always_has_somebody_to_serve() {
        // One place, one second each, two a second come: the place is never free while somebody waits.
        let (mut queue, start) = (Queue::new(100), clock::now());
        let pace = Pace { typical: MS(1000), step: MS(1000) };
        let mut served = 0;
        for second in 1..100 {
            let now = start + MS(1000 * second);
            for early in [700, 200] {
                queue.push(ask(Priority::Critical), (), pace, now - MS(early));
            }
            served += u32::from(matches!(queue.pop(pace, now), Some(Pop::Next(()))));
            while queue.overdue(pace, now).is_some() {}
        }
        assert_eq!(served, 99);
    }

    proptest! {
        /// Whoever came leaves exactly once, never more wait than there are places, and nobody is next before
        /// somebody more important.
        #[test]
        fn everybody_leaves_once_and_the_important_first(
            places in 0usize..12, ops in proptest::collection::vec((0u8..8, 0u8..4, 0u64..40), 1..400),
        ) {
            let (mut queue, mut now) = (Queue::new(places), clock::now());
            let (mut inside, mut left, mut came) = (std::collections::BTreeMap::new(), Vec::new(), 0u32);
            for (op, level, ms) in ops {
                now += MS(ms / 10);
                let priority = Priority::from_level(level);
                let deadline = (ms > 20).then(|| now + MS(ms));
                match op {
                    0..4 => {
                        came += 1;
                        match queue.push(Ask { priority, deadline }, came, PACE, now) {
                            Push::Waits(place) => drop(inside.insert(came, place)),
                            Push::Displaces(place, other) => {
                                inside.insert(came, place);
                                let gone: Place = inside.remove(&other).unwrap();
                                prop_assert!(gone.priority < priority);
                                left.push(other);
                            }
                            Push::Refused(who, why) => {
                                prop_assert!(why == Shed::Deadline || inside.len() == places);
                                left.push(who);
                            }
                        }
                    }
                    4..6 => {
                        let most = inside.values().map(|place| place.priority).max();
                        let (who, is_next) = match queue.pop(PACE, now) {
                            Some(Pop::Next(who)) => (who, true),
                            Some(Pop::Shed(who, _)) => (who, false),
                            None => { prop_assert!(inside.is_empty()); continue; }
                        };
                        let gone = inside.remove(&who).unwrap();
                        prop_assert!(!is_next || Some(gone.priority) == most);
                        left.push(who);
                    }
                    6 => if let Some(who) = queue.overdue(PACE, now) {
                        prop_assert!(inside.remove(&who).is_some());
                        left.push(who);
                    },
                    _ => if let Some((who, place)) = inside.pop_first() {
                        prop_assert_eq!(queue.leave(place), Some(who));
                        prop_assert_eq!(queue.leave(place), None);
                        left.push(who);
                    },
                }
                prop_assert!(queue.len() == inside.len() && inside.len() <= places);
            }
            left.sort_unstable();
            let expected = (1..=came).filter(|who| !inside.contains_key(who));
            prop_assert!(left.iter().copied().eq(expected));
        }
    }
}
