//! Floor 0: the one door for chance.
//!
//! Clones share one sequence: a copied generator would repeat itself (house.md §7). In production the sequence
//! is the thread's own, so that threads share no cache line; tests seed one.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of random numbers, not fit for secrets: splitmix64 (Steele, Lea, Flood, OOPSLA'14) from a seed, and on a
/// thread's own sequence wyrand (Wang Yi), which costs half as much and passes the same tests.
#[derive(Debug, Clone, Default)]
pub struct Rng {
    seeded: Option<Arc<AtomicU64>>,
}

/// What splitmix64 adds for each draw: 2^64 by the golden ratio, odd.
pub(crate) const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// wyrand's own step: odd, with as many ones as zeros.
const STEP: u64 = 0x2D35_8DCC_AA6C_78A5;

thread_local! {
    static STATE: Cell<u64> = Cell::new(entropy());
}

fn entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(GAMMA)
}

/// One multiplication, whose halves are folded onto each other.
#[inline(always)]
fn fold(state: u64) -> u64 {
    let product = u128::from(state) * u128::from(state ^ 0x8BB8_4B93_962E_ACC9);
    (product ^ product >> 64) as u64
}

/// Mixes bits so that each of the input moves half of the output (splitmix64's finaliser).
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    /// The thread's own sequence, seeded by the operating system.
    pub fn thread() -> Self {
        Self { seeded: None }
    }

    /// A sequence that is the same each time; clones draw from it in turn.
    pub fn seeded(seed: u64) -> Self {
        Self { seeded: Some(Arc::new(AtomicU64::new(seed))) }
    }

    /// Another sequence, begun from this one.
    #[must_use]
    pub fn fork(&self) -> Self {
        match &self.seeded {
            Some(_) => Self::seeded(self.next_u64()),
            None => Self::thread(),
        }
    }

    /// The next 64 random bits.
    #[inline]
    pub fn next_u64(&self) -> u64 {
        match &self.seeded {
            Some(state) => mix(state.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA)),
            None => STATE.with(|state| {
                let next = state.get().wrapping_add(STEP);
                state.set(next);
                fold(next)
            }),
        }
    }

    /// A number below `bound` (0 for a bound of 0), without noticeable bias (Lemire's multiplication).
    #[inline]
    pub fn below(&self, bound: u32) -> u32 {
        ((u64::from(bound) * (self.next_u64() >> 32)) >> 32) as u32
    }

    /// A number in `[0, 1)`.
    #[inline]
    pub fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_sequence_and_forks_do_not() {
        let a = Rng::seeded(7);
        let b = a.clone();
        let fork = a.fork();
        let seen = [a.next_u64(), b.next_u64(), fork.next_u64(), Rng::thread().next_u64()];
        for (i, x) in seen.iter().enumerate() {
            assert!(seen[i + 1..].iter().all(|y| x != y));
        }
        let again = Rng::seeded(7);
        let _ = again.fork();
        assert_eq!(again.next_u64(), seen[0]);
    }

    #[test]
    fn draws_stay_in_bounds_and_spread() {
        for rng in [Rng::seeded(1), Rng::thread()] {
            let (mut counts, mut ones) = ([0u32; 10], [0u32; 64]);
            for _ in 0..100_000 {
                counts[rng.below(10) as usize] += 1;
                assert!((0.0..1.0).contains(&rng.unit()));
                let random = rng.next_u64();
                ones.iter_mut().enumerate().for_each(|(bit, ones)| *ones += (random >> bit & 1) as u32);
            }
            // Six standard deviations and more: by chance once in ten million runs.
            assert!(counts.iter().all(|n| (9_400..10_600).contains(n)), "{counts:?}");
            assert!(ones.iter().all(|n| (49_000..51_000).contains(n)), "{ones:?}");
            assert_eq!(rng.below(0), 0);
        }
    }
}
