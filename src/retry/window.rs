//! Floor 2: counts what came in a sliding time without a lock, and grants no more than it allows.

use crate::stdx::epoch::Epoch;
use crate::stdx::sync::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A slot is a tenth of the time; one more keeps the oldest until it is over.
const SLOTS: u64 = 11;
/// A slot is one word: the milliseconds since the first use (34 years) above a count (16 million).
const COUNT_BITS: u32 = 24;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const PPM: u64 = 1_000_000;

/// Earned credits and taken ones, each remembered for `ttl`.
///
/// A credit lives at most `ttl` and what was taken at least as long, so no credit can be used twice: in every span
/// `T` at most `ratio · (credits of T + ttl) + reserve · (T/ttl + 1)` are taken. All arithmetic is exact.
#[derive(Debug)]
pub(crate) struct Window {
    begun: Epoch,
    ttl: u64,
    ratio_ppm: u32,
    /// What may always be taken within `ttl`.
    reserve: u64,
    earned: [AtomicU64; SLOTS as usize],
    /// The latest slot that earned: who does not know the time adds to this one.
    latest: AtomicU64,
    taken: [AtomicU64; SLOTS as usize],
    /// The sum of `taken` and of what is about to be written there, and the latest time at which any of it was
    /// forgotten: for whoever comes late, what was earned is forgotten by then too.
    spent: AtomicU64,
}

#[derive(Clone, Copy)]
struct Slot {
    at: u64,
    count: u64,
}

impl Slot {
    fn read(word: u64) -> Self {
        Self { at: word >> COUNT_BITS, count: word & COUNT_MAX }
    }

    fn word(self) -> u64 {
        self.at << COUNT_BITS | self.count
    }
}

impl Window {
    /// `ttl` is used in milliseconds, at least 10.
    pub(crate) fn new(ratio_ppm: u32, reserve: u64, ttl: Duration) -> Self {
        Self {
            begun: Epoch::default(),
            ttl: millis(ttl).max(10),
            ratio_ppm,
            reserve,
            earned: Default::default(),
            latest: AtomicU64::new(0),
            taken: Default::default(),
            spent: AtomicU64::new(0),
        }
    }

    /// One credit. `now` may be somewhat old: the credit then ends sooner.
    pub(crate) fn earn(&self, now: Instant) {
        let at = self.at(now);
        let latest = self.latest.load(Ordering::Relaxed);
        let slot = self.slot(at);
        if slot > latest {
            self.latest.fetch_max(slot, Ordering::Relaxed);
        }
        let slot = slot.max(latest);
        let at = at.max(slot * self.length());
        let _ = self.earned_at(slot).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let seen = Slot::read(word);
            let next = if seen.count == 0 || self.slot(seen.at) < slot {
                Slot { at, count: 1 }
            } else if self.slot(seen.at) == slot && seen.count < COUNT_MAX {
                Slot { count: seen.count + 1, ..seen }
            } else {
                return None;
            };
            Some(next.word())
        });
    }

    /// Takes one if there is one. Of two that race for the last one, one gets it.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let at = self.at(now);
        self.forget(at);
        let take = |word: u64| {
            let spent = Slot::read(word);
            let room = spent.count < self.allowed(at.max(spent.at)).min(COUNT_MAX);
            room.then(|| Slot { count: spent.count + 1, ..spent }.word())
        };
        if self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_err() {
            return false;
        }
        let noted = self.note(at);
        if !noted {
            self.give_back(0, 1);
        }
        noted
    }

    /// How many could be taken.
    pub(crate) fn level(&self, now: Instant) -> u64 {
        let at = self.at(now);
        self.forget(at);
        let spent = Slot::read(self.spent.load(Ordering::Acquire));
        self.allowed(at.max(spent.at)).saturating_sub(spent.count)
    }

    fn allowed(&self, at: u64) -> u64 {
        let alive = |word: &AtomicU64| {
            let slot = Slot::read(word.load(Ordering::Relaxed));
            if self.is_over(slot, at) { 0 } else { slot.count }
        };
        let credits: u64 = self.earned.iter().map(alive).sum();
        credits * u64::from(self.ratio_ppm) / PPM + self.reserve
    }

    /// Writes down that one was taken at `at`; false when the slot is full, which takes 16 million in a tenth of `ttl`.
    fn note(&self, at: u64) -> bool {
        let Some(cell) = self.taken.get((self.slot(at) % SLOTS) as usize) else { return false };
        let mut word = cell.load(Ordering::Acquire);
        loop {
            let seen = Slot::read(word);
            let renewed = self.slot(seen.at) < self.slot(at);
            let next = if renewed {
                Slot { at, count: 1 }
            } else {
                Slot { at: seen.at.max(at), count: seen.count + 1 }
            };
            if next.count > COUNT_MAX {
                return false;
            }
            match cell.compare_exchange_weak(word, next.word(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if renewed {
                        self.give_back(at, seen.count);
                    }
                    return true;
                }
                Err(changed) => word = changed,
            }
        }
    }

    /// Gives back what was taken longer than `ttl` ago; whoever clears a slot gives its count back, so it is once.
    fn forget(&self, at: u64) {
        for cell in &self.taken {
            let word = cell.load(Ordering::Acquire);
            let slot = Slot::read(word);
            if slot.count > 0
                && self.is_over(slot, at)
                && cell.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                self.give_back(at, slot.count);
            }
        }
    }

    fn give_back(&self, at: u64, count: u64) {
        let less = |word: u64| {
            let spent = Slot::read(word);
            Some(Slot { at: spent.at.max(at), count: spent.count.saturating_sub(count) }.word())
        };
        let _ = self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    fn is_over(&self, slot: Slot, at: u64) -> bool {
        at.saturating_sub(slot.at) > self.ttl
    }

    fn earned_at(&self, slot: u64) -> &AtomicU64 {
        &self.earned[(slot % SLOTS) as usize]
    }

    fn length(&self) -> u64 {
        self.ttl.div_ceil(SLOTS - 1)
    }

    fn slot(&self, at: u64) -> u64 {
        at / self.length()
    }

    fn at(&self, now: Instant) -> u64 {
        millis(self.begun.at(now))
    }
}

fn millis(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1000).saturating_add(u64::from(time.subsec_millis()))
}
