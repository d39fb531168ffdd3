//! Floor 2: how many requests at once: places, fixed in number or following latency, and a queue for them.

use crate::limit::gradient::{Gradient2, LIMIT_FIRST};
use crate::limit::queue::{Ask, Pace, Place, Pop, Push, Queue, Shed};
use crate::limit::sample::{Sample, Samples};
use crate::limit::vegas::Vegas;
use crate::profile::settings::Adaptive;
use crate::stdx::gcra::nanos;
use crate::stdx::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};
use std::fmt;
use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// The most that an adaptive limit reaches when nothing is said (Netflix has 200 for one instance; ours may stand
/// before a service of many).
pub const ADAPTIVE_MAX: u32 = 1000;
/// The least and the most that wait when nothing is said; between them, as many as have places: then the last one in
/// the queue waits about as long as a request takes.
pub const PENDING: std::ops::RangeInclusive<u32> = 16..=1024;
/// The longest wait for a place, if a deadline does not end it sooner: that of Linkerd's balancer.
pub const WAIT_MAX: Duration = Duration::from_secs(3);

/// How many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConcurrencySettings {
    /// The most; `None`: [`ADAPTIVE_MAX`].
    pub requests_max: Option<u32>,
    /// The most that wait; `None`: as many as `requests_max`, in the bounds of [`PENDING`].
    pub pending_max: Option<u32>,
    /// Whether the limit follows the latency.
    pub adaptive: Option<Adaptive>,
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub shed: Shed,
    /// How long it may be until those who wait now have been served.
    pub retry_after: Duration,
}

/// One who waits for a place.
pub trait Waiter: Send {
    /// It has a place, or gets none. Whether it is still there: if not, its place is free.
    fn tell(self: Box<Self>, told: Result<(), Refusal>) -> bool;
}

/// Places for requests, shared by all who send to one service, or serve it.
///
/// While a place is free, taking and leaving one are one atomic operation each. The queue has a lock, which is held for a
/// few dozen instructions, and only while somebody waits.
pub struct Limiter {
    settings: ConcurrencySettings,
    limit: AtomicU32,
    /// In the low half how many are in flight, above them how many wait: one word, so that whoever leaves sees those who
    /// came to wait, or they see that it left, and no place lies idle while somebody waits for it.
    places: AtomicU64,
    /// What a request takes, in nanoseconds, averaged over the last few dozen; 0: unknown.
    typical: AtomicU64,
    queue: Mutex<Queue<Box<dyn Waiter>>>,
    follow: Option<Mutex<Follow>>,
}

/// One who waits, in the word of places.
const WAITS: u64 = 1 << 32;

struct Follow {
    samples: Samples,
    rule: Rule,
    max: f64,
}

enum Rule {
    Gradient2(Gradient2),
    Vegas(Vegas),
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Limiter");
        shown.field("limit", &self.limit()).field("in_flight", &self.in_flight());
        shown.field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl Limiter {
    /// A limiter all of whose places are free. A limit of 0 is as 1.
    pub fn new(settings: ConcurrencySettings) -> Self {
        let max = settings.requests_max.unwrap_or(ADAPTIVE_MAX).max(1);
        let first = LIMIT_FIRST.min(f64::from(max));
        let rule = settings.adaptive.map(|adaptive| match adaptive {
            Adaptive::Gradient2 => Rule::Gradient2(Gradient2::new(first)),
            Adaptive::Vegas => Rule::Vegas(Vegas::new(first)),
        });
        let limit = if rule.is_some() { first as u32 } else { max };
        let pending = settings.pending_max.unwrap_or(max.clamp(*PENDING.start(), *PENDING.end()));
        let follow = rule.map(|rule| Follow { samples: Samples::default(), rule, max: f64::from(max) });
        Self {
            settings,
            limit: AtomicU32::new(limit),
            places: AtomicU64::new(0),
            typical: AtomicU64::new(0),
            queue: Mutex::new(Queue::new(pending as usize)),
            follow: follow.map(Mutex::new),
        }
    }

    /// What it was made from: a limiter of equal settings is kept in an update.
    pub fn settings(&self) -> &ConcurrencySettings {
        &self.settings
    }

    /// How many may be in flight now.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// How many are.
    pub fn in_flight(&self) -> u32 {
        self.places.load(Ordering::Relaxed) as u32
    }

    /// How many wait for a place.
    pub fn waiting(&self) -> u32 {
        (self.places.load(Ordering::Relaxed) >> 32) as u32
    }

    /// Takes a place if one is free and nobody waits for it. Who gets one gives it back by [`release`](Self::release).
    #[inline]
    pub fn try_admit(&self) -> bool {
        self.take(|places| places < WAITS)
    }

    /// Waits for a place: `waiter` is told, perhaps before this returns.
    ///
    /// # Errors
    /// When it may not wait; `waiter` is not told then.
    pub fn wait(&self, ask: Ask, waiter: Box<dyn Waiter>, now: Instant) -> Result<Place, Refusal> {
        let pace = self.pace();
        let mut queue = self.queue();
        let pushed = queue.push(ask, waiter, pace, now);
        self.count(&queue);
        let refusal = |queue: &MutexGuard<'_, Queue<_>>, shed| self.refusal(shed, queue.len(), pace);
        let (place, displaced) = match pushed {
            Push::Waits(place) => (place, None),
            Push::Displaces(place, less) => (place, Some((less, refusal(&queue, Shed::Full)))),
            Push::Refused(_, shed) => return Err(refusal(&queue, shed)),
        };
        drop(queue);
        if let Some((less, refusal)) = displaced {
            less.tell(Err(refusal));
        }
        // A place may have become free before we were seen to wait.
        self.serve(now);
        Ok(place)
    }

    /// One who waits does so no longer. It may have been told before.
    pub fn leave(&self, place: Place) {
        let mut queue = self.queue();
        let gone = queue.leave(place);
        self.count(&queue);
        drop(queue);
        drop(gone);
    }

    /// A request with a place got its answer.
    pub fn answered(&self, latency: Duration, dropped: bool, now: Instant) {
        if !dropped {
            // What was refused at once says nothing of what serving takes.
            let nanos = nanos(latency).max(1);
            let before = self.typical.load(Ordering::Relaxed);
            let after = if before == 0 { nanos } else { before - before / 16 + nanos / 16 };
            self.typical.store(after.max(1), Ordering::Relaxed);
        }
        // Whoever finds the lock taken drops its sample: nobody waits for statistics.
        let Some(follow) = &self.follow else { return };
        let mut follow = match follow.try_lock() {
            Ok(follow) => follow,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let sample = Sample { latency, in_flight: self.in_flight(), dropped };
        let Some(window) = follow.samples.add(sample, now) else { return };
        let max = follow.max;
        let limit = match &mut follow.rule {
            Rule::Gradient2(rule) => rule.update(&window, max),
            Rule::Vegas(rule) => rule.update(&window, max),
        };
        self.limit.store((limit as u32).max(1), Ordering::Relaxed);
    }

    /// Gives a place back, and gives it to the next one.
    #[inline]
    pub fn release(&self, now: impl FnOnce() -> Instant) {
        if self.places.fetch_sub(1, Ordering::AcqRel) >= WAITS {
            self.serve(now());
        }
    }

    /// Gives free places to those who wait.
    fn serve(&self, now: Instant) {
        let pace = self.pace();
        while self.take(|places| places >= WAITS) {
            let mut queue = self.queue();
            let popped = queue.pop(pace, now);
            let overdue: Vec<_> = std::iter::from_fn(|| queue.overdue(pace, now)).collect();
            self.count(&queue);
            let left = queue.len();
            // Whoever is told may wake, drop, and come back here: so without the lock.
            drop(queue);
            let is_taken = match popped {
                Some(Pop::Next(waiter)) => waiter.tell(Ok(())),
                Some(Pop::Shed(waiter, shed)) => {
                    waiter.tell(Err(self.refusal(shed, left, pace)));
                    false
                }
                None => false,
            };
            for waiter in overdue {
                waiter.tell(Err(self.refusal(Shed::Delay, left, pace)));
            }
            if !is_taken {
                self.places.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Takes a place if one is free and `may` says so of the word of places.
    #[inline]
    fn take(&self, may: impl Fn(u64) -> bool) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let one_more = |places: u64| (may(places) && (places as u32) < limit).then_some(places + 1);
        self.places.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    fn pace(&self) -> Pace {
        let typical = Duration::from_nanos(self.typical.load(Ordering::Relaxed));
        Pace { typical, step: typical / self.limit().max(1) }
    }

    fn refusal(&self, shed: Shed, waiting: usize, pace: Pace) -> Refusal {
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        Refusal { shed, retry_after: pace.step.saturating_mul(waiting.saturating_add(1)) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Box<dyn Waiter>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how many wait. Only whoever has the queue's lock changes that half of the word.
    fn count(&self, queue: &MutexGuard<'_, Queue<Box<dyn Waiter>>>) {
        let waiting = u64::from(u32::try_from(queue.len()).unwrap_or(u32::MAX));
        let before = self.places.load(Ordering::Relaxed) / WAITS;
        self.places.fetch_add(waiting.wrapping_sub(before).wrapping_mul(WAITS), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::priority::Priority;
    use crate::stdx::clock;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// What each waiter was told.
    type Told = Arc<Mutex<Vec<(u32, Result<(), Shed>)>>>;

    struct Note {
        id: u32,
        there: bool,
        told: Told,
    }

    impl Waiter for Note {
        fn tell(self: Box<Self>, told: Result<(), Refusal>) -> bool {
            self.told.lock().unwrap().push((self.id, told.map_err(|refusal| refusal.shed)));
            self.there
        }
    }

    fn limiter(requests_max: u32, pending_max: u32) -> Limiter {
        Limiter::new(ConcurrencySettings {
            requests_max: Some(requests_max),
            pending_max: Some(pending_max),
            adaptive: None,
        })
    }

    fn note(told: &Told, id: u32, there: bool) -> Box<Note> {
        Box::new(Note { id, there, told: Arc::clone(told) })
    }

    #[test]
    fn a_place_goes_from_one_to_the_next() {
        let (limiter, told, now) = (limiter(1, 2), Told::default(), clock::now());
        assert!(limiter.try_admit() && !limiter.try_admit());
        for id in 0..2 {
            limiter.wait(Ask::default(), note(&told, id, true), now).unwrap();
        }
        limiter.answered(Duration::from_secs(2), false, now);
        let refusal = limiter.wait(Ask::default(), note(&told, 2, true), now).unwrap_err();
        assert_eq!(refusal, Refusal { shed: Shed::Full, retry_after: Duration::from_secs(6) });
        limiter.release(|| now);
        assert_eq!(*told.lock().unwrap(), [(0, Ok(()))]);
        assert!(!limiter.try_admit(), "nobody passes those who wait");
        limiter.release(|| now);
        limiter.release(|| now);
        assert_eq!((limiter.in_flight(), limiter.waiting()), (0, 0));
        assert!(limiter.try_admit());
    }

    #[test]
    fn whoever_is_gone_when_told_leaves_the_place_to_the_next() {
        let (limiter, told, now) = (limiter(1, 9), Told::default(), clock::now());
        assert!(limiter.try_admit());
        for id in 0..4 {
            limiter.wait(Ask::default(), note(&told, id, id == 3), now).unwrap();
        }
        limiter.release(|| now);
        assert_eq!(told.lock().unwrap().last(), Some(&(3, Ok(()))));
        assert_eq!((limiter.in_flight(), limiter.waiting()), (1, 0));
    }

    #[test]
    fn on_many_threads_no_place_is_lost_and_none_is_given_twice() {
        for _ in 0..20 {
            let (limiter, told, busy) = (limiter(3, 10_000), Told::default(), AtomicU32::new(0));
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (limiter, told, busy) = (&limiter, &told, &busy);
                    scope.spawn(move || {
                        for id in 0..200 {
                            let now = clock::now();
                            if !limiter.try_admit() {
                                limiter
                                    .wait(Ask::default(), note(told, thread * 1000 + id, false), now)
                                    .unwrap();
                                continue;
                            }
                            assert!(busy.fetch_add(1, Ordering::SeqCst) < 3);
                            busy.fetch_sub(1, Ordering::SeqCst);
                            limiter.release(|| now);
                        }
                    });
                }
            });
            assert_eq!((limiter.in_flight(), limiter.waiting()), (0, 0), "and nobody is left waiting");
        }
    }

    proptest! {
        /// The slow model: so many are in flight, so many wait, and each is told once.
        #[test]
        fn places_are_conserved(
            max in 1u32..5, pending in 0u32..6, ops in proptest::collection::vec((0u8..5, 0u8..4, any::<bool>()), 1..300),
        ) {
            let (limiter, told, mut now) = (limiter(max, pending), Told::default(), clock::now());
            let (mut held, mut waits, mut seen) = (0u32, Vec::new(), 0);
            for (id, (op, level, there)) in (0..).zip(ops) {
                now += Duration::from_millis(1);
                let ask = Ask { priority: Priority::from_level(level), deadline: None };
                match op {
                    0..2 => {
                        if limiter.try_admit() {
                            prop_assert!(waits.is_empty());
                            held += 1;
                        } else if let Ok(place) = limiter.wait(ask, note(&told, id, there), now) {
                            waits.push((id, there, place));
                        }
                    }
                    2..4 if held > 0 => {
                        held -= 1;
                        limiter.release(|| now);
                    }
                    _ => if let Some((_, _, place)) = waits.pop() { limiter.leave(place); },
                }
                let told = told.lock().unwrap();
                for (id, told) in &told[seen..] {
                    let index = waits.iter().position(|(waits, ..)| waits == id).unwrap();
                    let (_, there, _) = waits.remove(index);
                    held += u32::from(told.is_ok() && there);
                }
                seen = told.len();
                prop_assert_eq!((limiter.in_flight(), limiter.waiting()), (held, waits.len() as u32));
                prop_assert!(held <= max && waits.len() <= pending as usize && (waits.is_empty() || held == max));
            }
        }
    }
}
