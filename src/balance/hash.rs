//! Floor 2: the same key goes to the same endpoint: a hash ring, and Maglev's table.

use crate::balance::maglev::Maglev;
use crate::balance::set::Place;

/// The most entries of a hash ring, 8 bytes of place and 8 of hash each: 16 MiB. Envoy allows 8 Mi.
pub const RING_ENTRIES_MAX: u32 = 1 << 20;
/// How many endpoints are asked before a key gives up on its neighbours.
pub(crate) const NEIGHBOURS_MAX: usize = 64;

/// An endpoint as hashing sees it.
#[derive(Debug, Clone, Copy)]
pub struct Hashed {
    /// Where it is.
    pub place: Place,
    /// A hash of what names it.
    pub key: u64,
    /// Its weight, above 0.
    pub weight: u32,
}

/// A table that finds an endpoint by hash.
#[derive(Debug)]
pub enum Table {
    /// A hash ring.
    Ring(HashRing),
    /// Maglev's table.
    Maglev(Maglev),
}

impl Table {
    /// The first of the endpoints that `hash` falls to that `usable` takes; others keep their keys.
    #[inline]
    pub fn find<T>(&self, hash: u64, usable: impl Fn(Place) -> Option<T>) -> Option<T> {
        match self {
            Self::Ring(ring) => ring.find(hash, usable),
            Self::Maglev(table) => table.find(hash, usable),
        }
    }
}

/// Mixes bits so that each of the input moves half of the output (splitmix64's finaliser).
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A 64-bit hash of bytes, the same in every process and version of this crate (FNV-1a by words, mixed).
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325 ^ (bytes.len() as u64);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        hash = mix(hash ^ word).wrapping_mul(0x0000_0100_0000_01B3);
    }
    for byte in chunks.remainder() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    mix(hash)
}

/// Two hashes as one, in order.
#[inline]
pub fn combine(a: u64, b: u64) -> u64 {
    mix(a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23))
}

/// A hash ring (Karger et al., STOC'97; Envoy, gRPC A42): each endpoint has entries by its weight, and a key falls
/// to the next entry. A change of one endpoint moves only its own keys.
#[derive(Debug, Default)]
pub struct HashRing {
    /// By hash.
    entries: Box<[(u64, Place)]>,
}

impl HashRing {
    /// A ring of about `entries_min` entries, at least one for each endpoint, at most [`RING_ENTRIES_MAX`].
    pub fn new(endpoints: &[Hashed], entries_min: u32) -> Self {
        let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        let size = u64::from(entries_min.min(RING_ENTRIES_MAX)).max(endpoints.len() as u64);
        let mut entries = Vec::with_capacity(size as usize + endpoints.len());
        for endpoint in endpoints {
            let exact = u128::from(endpoint.weight) * u128::from(size);
            let count = exact.div_ceil(u128::from(total.max(1))) as u64;
            entries.extend((0..count).map(|index| (combine(endpoint.key, index), endpoint.place)));
        }
        entries.sort_unstable();
        Self { entries: entries.into_boxed_slice() }
    }

    fn find<T>(&self, hash: u64, usable: impl Fn(Place) -> Option<T>) -> Option<T> {
        let start = self.entries.partition_point(|(at, _)| *at < hash);
        let (before, after) = self.entries.split_at_checked(start)?;
        let mut last = None;
        let mut asked = 0;
        for (_, place) in after.iter().chain(before) {
            if last == Some(*place) {
                continue;
            }
            if let Some(found) = usable(*place) {
                return Some(found);
            }
            last = Some(*place);
            asked += 1;
            if asked >= NEIGHBOURS_MAX {
                break;
            }
        }
        None
    }
}
