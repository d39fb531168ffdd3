//! Floor 2: a fast hash for keys that come from the operator and not from callers.
//!
//! Nobody who sends requests can put keys into the tables that use it, so it needs no secret: a request can only
//! meet the collisions that the configuration has.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table from texts to numbers.
pub(crate) type TextMap = HashMap<Box<[u8]>, u32, BuildHasherDefault<FoldHasher>>;

/// Multiplies and folds eight bytes at a time (the step of wyhash, Wang Yi).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FoldHasher(u64);

const FIRST: u64 = 0xA076_1D64_78BD_642F;
const SECOND: u64 = 0xE703_7ED1_A0B4_28DB;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

impl Hasher for FoldHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let mut state = self.0;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let word = chunk.try_into().map_or(0, u64::from_le_bytes);
            state = fold(state ^ word ^ FIRST, SECOND);
        }
        let mut last = 0;
        for &byte in chunks.remainder() {
            last = last << 8 | u64::from(byte);
        }
        self.0 = fold(state ^ last ^ FIRST, SECOND);
    }

    #[inline]
    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::hash::{BuildHasher, Hash};

    #[test]
    fn like_texts_hash_apart_in_high_and_low_bits() {
        let hash = |text: &str| BuildHasherDefault::<FoldHasher>::default().hash_one(text.as_bytes());
        let texts: BTreeSet<_> =
            (0..10_000).map(|n| format!("/api/r{n}/item")).chain((0..300).map(|n| "a".repeat(n))).collect();
        let all: BTreeSet<_> = texts.iter().map(|text| hash(text)).collect();
        assert_eq!(all.len(), texts.len());
        for shift in [0, 57] {
            let mut counts = [0usize; 128];
            texts.iter().for_each(|text| counts[(hash(text) >> shift) as usize % 128] += 1);
            assert!(counts.iter().all(|n| (40..130).contains(n)), "{counts:?}");
        }
        let mut hasher = FoldHasher::default();
        [1u8, 2].hash(&mut hasher);
        assert_ne!(hasher.finish(), 0);
    }
}
