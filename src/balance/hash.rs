//! Floor 2: the same key goes to the same endpoint: a hash ring, and Maglev's table.

use crate::balance::maglev::Maglev;
use crate::balance::set::Place;
pub use crate::stdx::rng::mix;
use std::net::{IpAddr, SocketAddr};

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

/// A hash of an address that is the same in every process.
pub(crate) fn address_key(addr: SocketAddr) -> u64 {
    let mut bytes = [0u8; 18];
    match addr.ip() {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes[..16].copy_from_slice(&ip.octets()),
    }
    bytes[16..].copy_from_slice(&addr.port().to_be_bytes());
    hash_bytes(&bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::endpoint::Cell;
    use crate::balance::set::{Rank, Set, Slot};
    use crate::stdx::moment::Moment;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn endpoints(count: u64) -> Vec<Hashed> {
        let mut set = Set::default();
        let rank = Rank { priority: 0, far: false };
        let one = |key: u64| {
            let place = set.vacancy(rank);
            let cell = Arc::new(Cell::new(key as u32, mix(key), Moment::default(), 0.03));
            set.put(place, Slot { cell, weight: 1000, item: () });
            Hashed { place, key: mix(key), weight: 1000 }
        };
        (1..=count).map(one).collect()
    }

    fn find(ring: &HashRing, key: u64) -> Option<Place> {
        ring.find(mix(key), Some)
    }

    /// χ² of keys over the arcs that the ring gives each endpoint: below the 99 % quantile.
    #[test]
    fn keys_fall_by_the_arcs_of_the_ring() {
        let endpoints = endpoints(10);
        let ring = HashRing::new(&endpoints, 1024);
        let mut arcs: BTreeMap<Place, f64> = BTreeMap::new();
        let mut before = ring.entries.last().map_or(0, |(hash, _)| *hash);
        for (hash, place) in &ring.entries {
            *arcs.entry(*place).or_default() += hash.wrapping_sub(before) as f64 / 2f64.powi(64);
            before = *hash;
        }
        let keys = 200_000;
        let mut counts: BTreeMap<Place, f64> = BTreeMap::new();
        (0..keys).for_each(|key| *counts.entry(find(&ring, key).unwrap()).or_default() += 1.0);
        let chi: f64 = arcs
            .iter()
            .map(|(place, arc)| {
                let expected = arc * keys as f64;
                (counts[place] - expected).powi(2) / expected
            })
            .sum();
        assert!(chi < 21.67, "χ² {chi} of 9 degrees of freedom");
        assert!(arcs.values().all(|arc| (0.07..0.14).contains(arc)), "{arcs:?}");
    }

    #[test]
    fn a_change_moves_only_the_keys_of_who_changed() {
        let all = endpoints(10);
        let (before, after) = (HashRing::new(&all, 1024), HashRing::new(&all[1..], 1024));
        for key in 0..10_000 {
            let (old, new) = (find(&before, key), find(&after, key));
            // The ring without one has its share more entries, so a few keys move to these.
            assert!(new.is_some());
            if old == Some(all[0].place) {
                assert_ne!(old, new);
            }
        }
        let moved = (0..10_000).filter(|key| find(&before, *key) != find(&after, *key)).count();
        assert!(moved < 2_200, "{moved} of 10 000");
    }

    #[test]
    fn a_key_whose_endpoint_is_shut_goes_to_the_next_and_comes_back() {
        let all = endpoints(5);
        let ring = HashRing::new(&all, 1024);
        for key in 0..100 {
            let own = find(&ring, key);
            let other = ring.find(mix(key), |place| (Some(place) != own).then_some(place));
            assert!(other.is_some() && other != own);
            assert_eq!(ring.find(mix(key), Some), own);
        }
        assert_eq!(ring.find(7, |_| None::<Place>), None);
        assert_eq!(HashRing::new(&[], 1024).find(7, Some), None);
    }

    #[test]
    fn bytes_hash_the_same_for_ever() {
        assert_eq!(hash_bytes(b""), 0xF52A_15E9_A9B5_E89B);
        assert_ne!(hash_bytes(b"a"), hash_bytes(b"b"));
        assert_ne!(hash_bytes(b"12345678"), hash_bytes(b"123456789"));
    }
}
