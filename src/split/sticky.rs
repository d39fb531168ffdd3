//! Floor 2: chooses a backend by weight so that one key always gets the same one.
//!
//! Weighted rendezvous hashing (C. Schindelhauer, G. Schomaker, "Weighted Distributed Hash Tables", SPAA 2005): each
//! backend draws a number from the key and its own name, and the best by weight wins. A key moves only when weights
//! do: raising one backend's weight moves keys to it and none between the others, so that a canary that grows keeps
//! everybody it already has.

use crate::stdx::rng::{self, GAMMA};

/// Backends by name and weight.
#[derive(Debug, Clone)]
pub struct Sticky {
    /// The hash of each name, and its weight.
    backends: Box<[(u64, u32)]>,
}

impl Sticky {
    /// Backends by name and weight; a weight of 0 gets no key.
    pub fn new<'a>(backends: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        Self {
            backends: backends.into_iter().map(|(name, weight)| (hash(name.as_bytes()), weight)).collect(),
        }
    }

    /// The backend of `key`; `None` when no weight is above 0.
    pub fn pick(&self, key: u64) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for (index, (name, weight)) in self.backends.iter().enumerate() {
            if *weight == 0 {
                continue;
            }
            let score = f64::from(*weight) / -chance(mix(key ^ *name)).ln();
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, index));
            }
        }
        best.map(|(_, index)| index)
    }
}

/// A number above 0 and below 1 from 53 bits of `bits`.
fn chance(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// One step of splitmix64, whose sequence begins at `z`.
fn mix(z: u64) -> u64 {
    rng::mix(z.wrapping_add(GAMMA))
}

/// The same in every process and version, so that callers agree without talking (FNV-1a, mixed).
fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, fnv))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYS: u64 = 20_000;

    fn picks(weights: &[(&str, u32)]) -> Vec<Option<usize>> {
        let sticky = Sticky::new(weights.iter().copied());
        (0..KEYS).map(|key| sticky.pick(hash(&key.to_be_bytes()))).collect()
    }

    #[test]
    fn keys_are_shared_out_by_weight() {
        for weights in [&[("a", 1), ("b", 1)][..], &[("a", 90), ("b", 10)], &[("a", 3), ("b", 2), ("c", 1)]] {
            let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
            let picks = picks(weights);
            for (index, (_, weight)) in weights.iter().enumerate() {
                let share = picks.iter().filter(|pick| **pick == Some(index)).count() as f64 / KEYS as f64;
                let due = f64::from(*weight) / f64::from(sum);
                assert!((share - due).abs() < 0.015, "{weights:?}: {share} for {due}");
            }
        }
    }

    #[test]
    fn without_weight_there_is_no_backend() {
        assert_eq!(Sticky::new([]).pick(1), None);
        assert_eq!(Sticky::new([("a", 0), ("b", 0)]).pick(1), None);
        assert_eq!(Sticky::new([("a", 0), ("b", 1)]).pick(1), Some(1));
    }

    #[test]
    fn the_order_in_which_backends_are_written_does_not_matter() {
        let one = picks(&[("a", 2), ("b", 1)]);
        let other = picks(&[("b", 1), ("a", 2)]);
        assert!(one.iter().zip(&other).all(|(one, other)| *one == other.map(|index| 1 - index)));
    }

    proptest! {
        #[test]
        fn a_canary_that_grows_keeps_its_keys(
            weights in proptest::collection::vec(0u32..50, 2..6), which in 0usize..6, more in 1u32..50, key: u64,
        ) {
            let which = which % weights.len();
            let names = ["a", "b", "c", "d", "e", "f"];
            let sticky = |weights: &[u32]| Sticky::new(names.into_iter().zip(weights.iter().copied()));
            let before = sticky(&weights).pick(key);
            let mut grown = weights;
            grown[which] += more;
            let after = sticky(&grown).pick(key);
            prop_assert!(after == before || after == Some(which));
        }
    }
}
