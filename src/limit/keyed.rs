//! Floor 2: one rate for each of many keys, in a table that never grows.

use crate::stdx::epoch::Epoch;
use crate::stdx::gcra::{Rate, nanos};
use crate::stdx::sync::{AtomicU64, Ordering};
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::time::{Duration, Instant};

/// The keys that a table tells apart: 64 KiB, and more clients than one server has at a time.
pub const KEYS_MAX: usize = 4096;
/// The cells of a group: two cache lines.
const GROUP: usize = 8;

/// A rate for each key apart, without locks and without allocations after the first.
///
/// A key whose bucket is full again is as one that was never seen, so its cell is free for another: nothing that
/// matters is forgotten. When all sixteen cells that a key may use are busy, it shares one *overflow* bucket with the
/// other keys without a cell; so a flood of made-up keys is held to one key's rate, at the price that new keys are held
/// to it too. The hash is seeded, so nobody can choose keys that meet.
///
/// A request that races with the reuse of its key's cell may be counted for the other key.
pub struct KeyedRates {
    rate: Rate,
    hasher: RandomState,
    begun: Epoch,
    cells: Box<[Cell]>,
    overflow: AtomicU64,
}

/// A key's hash (0: none) and when its bucket is full again.
#[derive(Default)]
struct Cell {
    tag: AtomicU64,
    tat: AtomicU64,
}

impl fmt::Debug for KeyedRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedRates").field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl KeyedRates {
    /// Full buckets for [`KEYS_MAX`] keys.
    pub fn new(rate: Rate) -> Self {
        Self::with_keys_max(rate, KEYS_MAX)
    }

    /// Full buckets for about `keys_max` keys, rounded up to a multiple of 8; 1 to 2^20.
    pub fn with_keys_max(rate: Rate, keys_max: usize) -> Self {
        let groups = keys_max.clamp(1, 1 << 20).div_ceil(GROUP);
        Self {
            rate,
            hasher: RandomState::new(),
            begun: Epoch::default(),
            cells: (0..groups * GROUP).map(|_| Cell::default()).collect(),
            overflow: AtomicU64::new(0),
        }
    }

    /// Takes one from `key`'s bucket.
    ///
    /// # Errors
    /// How long it is until there is one to take.
    pub fn admit(&self, key: impl Hash, now: Instant) -> Result<(), Duration> {
        let at = nanos(self.begun.at(now));
        let tag = self.hasher.hash_one(key).max(1);
        let tat = self.find(tag, at).map_or(&self.overflow, |cell| &cell.tat);
        self.rate.take(tat, at).map_err(Duration::from_nanos)
    }

    /// How many keys have a bucket that is not full.
    pub fn busy(&self, now: Instant) -> usize {
        let at = nanos(self.begun.at(now));
        self.cells.iter().filter(|cell| cell.tat.load(Ordering::Relaxed) > at).count()
    }

    /// The key's cell, or one that is free and now the key's.
    fn find(&self, tag: u64, at: u64) -> Option<&Cell> {
        let cells = || self.groups(tag).into_iter().flatten();
        if let Some(own) = cells().find(|cell| cell.tag.load(Ordering::Relaxed) == tag) {
            return Some(own);
        }
        cells().find(|cell| {
            // In this order: who sees what another thread took sees whose cell it is. The other way round a key that is new
            // to two threads may find its own cell busy, and get two.
            let is_full = cell.tat.load(Ordering::Acquire) <= at;
            let held = cell.tag.load(Ordering::Relaxed);
            (held == tag || is_full)
                && match cell.tag.compare_exchange(held, tag, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => true,
                    Err(seen) => seen == tag,
                }
        })
    }

    /// The two groups that a key may use: with a choice of two, nearly all cells fill before one key overflows.
    fn groups(&self, tag: u64) -> [&[Cell]; 2] {
        let groups = (self.cells.len() / GROUP) as u64;
        let group = |half: u64| {
            let start = (((half & 0xFFFF_FFFF) * groups) >> 32) as usize * GROUP;
            self.cells.get(start..start + GROUP).unwrap_or_default()
        };
        [group(tag), group(tag >> 32)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;
    use crate::stdx::gcra::Gcra;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn rate(count: u32, burst: u32) -> Rate {
        Rate::new(count, Duration::from_secs(1), burst)
    }

    #[test]
    fn a_flood_of_keys_is_held_to_one_keys_rate_and_known_keys_keep_theirs() {
        let (table, now) = (KeyedRates::with_keys_max(rate(2, 2), 64), clock::now());
        assert_eq!([table.admit("known", now), table.admit("known", now)], [Ok(()), Ok(())]);
        let admitted = (0..10_000).filter(|key| table.admit(key, now).is_ok()).count();
        assert!(admitted <= 63 + 2, "{admitted} new keys had a bucket");
        assert!(admitted > 56, "and most cells were used: {admitted}");
        let later = now + Duration::from_millis(500);
        assert!(table.admit("known", later).is_ok() && table.admit("known", later).is_err());
        assert_eq!(table.busy(now), 64);
        assert_eq!(table.busy(now + Duration::from_secs(2)), 0);
        assert!(table.admit("new", now + Duration::from_secs(2)).is_ok());
    }

    #[test]
    fn a_rate_of_zero_refuses_every_key() {
        let table = KeyedRates::new(rate(0, 1));
        assert_eq!(table.admit(1, clock::now()), Err(Duration::from_nanos(u64::MAX)));
    }

    #[test]
    fn of_one_key_no_more_than_its_burst_passes_on_all_threads_together() {
        for _ in 0..50 {
            let (table, now) = (KeyedRates::with_keys_max(rate(10, 10), 8), clock::now());
            let passed: usize = std::thread::scope(|scope| {
                let one = || (0..10).filter(|_| table.admit("key", now).is_ok()).count();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(passed, 10);
        }
    }

    proptest! {
        /// The slow model: a map of buckets that forgets nothing.
        #[test]
        fn as_long_as_there_is_room_each_key_has_its_own_bucket(
            count in 1u32..20, burst in 1u32..5, steps in proptest::collection::vec((0u64..300, 0u8..24), 1..300),
        ) {
            let table = KeyedRates::with_keys_max(rate(count, burst), 512);
            let (start, mut at, mut model) = (clock::now(), 0, BTreeMap::new());
            // Both begin to count now.
            let _ = table.admit("begin", start);
            for (step, key) in steps {
                at += step;
                let now = start + Duration::from_millis(at);
                let bucket = model.entry(key).or_insert_with(|| {
                    let bucket = Gcra::new(rate(count, burst));
                    let _ = bucket.level(start);
                    bucket
                });
                prop_assert_eq!(table.admit(key, now), bucket.admit(now));
            }
        }
    }
}
