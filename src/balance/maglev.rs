//! Floor 2: Maglev's table: even to one percent, and a change moves few keys.

use crate::balance::hash::{Hashed, NEIGHBOURS_MAX, combine, mix};
use crate::balance::set::Place;

/// The largest table: 4 bytes an entry, 20 MiB. Envoy allows 5 000 011.
pub const TABLE_MAX: u32 = 5_000_011;

/// A lookup table (Eisenbud et al., "Maglev", NSDI'16, §3.4): each endpoint has a permutation of the entries, and
/// they take turns, by weight, in claiming their next free one.
#[derive(Debug, Default)]
pub struct Maglev {
    entries: Box<[Place]>,
}

impl Maglev {
    /// A table of the least prime of at least `size` entries, so that every step visits all of them; at most
    /// [`TABLE_MAX`]. It should be a hundred times the number of endpoints.
    pub fn new(endpoints: &[Hashed], size: u32) -> Self {
        let size = prime(size.clamp(2, TABLE_MAX));
        let most = endpoints.iter().map(|endpoint| endpoint.weight).max().unwrap_or(0);
        if most == 0 {
            return Self::default();
        }
        let wide = u64::from(size);
        let mut ordered: Vec<&Hashed> = endpoints.iter().filter(|endpoint| endpoint.weight > 0).collect();
        // The order of turns must not depend on places, or an unrelated change would move keys.
        ordered.sort_unstable_by_key(|endpoint| endpoint.key);
        let mut next: Vec<(u64, u64)> = ordered
            .iter()
            .map(|endpoint| (mix(endpoint.key) % wide, combine(endpoint.key, 1) % (wide - 1) + 1))
            .collect();
        let mut entries: Vec<Option<Place>> = vec![None; size as usize];
        let mut credit = vec![0u64; ordered.len()];
        let mut left = entries.len();
        while left > 0 {
            for (index, endpoint) in ordered.iter().enumerate() {
                credit[index] += u64::from(endpoint.weight);
                if credit[index] < u64::from(most) || left == 0 {
                    continue;
                }
                credit[index] -= u64::from(most);
                let (at, step) = &mut next[index];
                while entries[*at as usize].is_some() {
                    *at = (*at + *step) % wide;
                }
                entries[*at as usize] = Some(endpoint.place);
                left -= 1;
            }
        }
        Self { entries: entries.into_iter().flatten().collect() }
    }

    /// The entries, one a hash modulo their number.
    pub fn entries(&self) -> &[Place] {
        &self.entries
    }

    pub(crate) fn find<T>(&self, hash: u64, usable: impl Fn(Place) -> Option<T>) -> Option<T> {
        let mut hash = hash;
        for _ in 0..NEIGHBOURS_MAX {
            let index = ((u128::from(hash) * self.entries.len() as u128) >> 64) as usize;
            if let Some(found) = usable(*self.entries.get(index)?) {
                return Some(found);
            }
            hash = mix(hash.wrapping_add(1));
        }
        None
    }
}

/// The least prime from `from` on.
fn prime(from: u32) -> u32 {
    let is_prime = |n: &u32| *n >= 2 && (2u32..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (from..from.saturating_add(1000)).find(is_prime).unwrap_or(65_537)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::endpoint::Cell;
    use crate::balance::set::{Rank, Set, Slot};
    use crate::stdx::moment::Moment;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn endpoints(keys: impl IntoIterator<Item = u64>, weight: impl Fn(u64) -> u32) -> Vec<Hashed> {
        let mut set = Set::default();
        let rank = Rank { priority: 0, far: false };
        let mut hashed = |key| {
            let cell = Arc::new(Cell::new(key as u32, mix(key), Moment::default(), 0.03));
            let place = set.vacancy(rank);
            set.put(place, Slot { cell, weight: weight(key), item: () });
            Hashed { place, key: mix(key), weight: weight(key) }
        };
        keys.into_iter().map(&mut hashed).collect()
    }

    fn shares(table: &Maglev) -> BTreeMap<Place, usize> {
        let mut shares = BTreeMap::new();
        table.entries().iter().for_each(|place| *shares.entry(*place).or_default() += 1);
        shares
    }

    #[test]
    fn every_share_is_within_one_percent() {
        for count in [3, 10, 100] {
            let endpoints = endpoints(0..count, |_| 1000);
            let table = Maglev::new(&endpoints, 65_537);
            let fair = 65_537 / count as usize;
            assert!(shares(&table).values().all(|share| share.abs_diff(fair) <= fair / 100 + 1));
        }
        let weighted = endpoints(0..3, |key| [1000, 2000, 5000][key as usize]);
        let shares = shares(&Maglev::new(&weighted, 65_537));
        for endpoint in &weighted {
            let fair = 65_537 * endpoint.weight as usize / 8000;
            assert!(shares[&endpoint.place].abs_diff(fair) <= fair / 100, "{shares:?}");
        }
    }

    /// The bound of the paper's figure 12: at a hundred entries an endpoint, losing one of `n` moves its own
    /// keys and few others.
    #[test]
    fn losing_one_moves_its_own_keys_and_few_others() {
        let all = endpoints(0..50, |_| 1000);
        let before = Maglev::new(&all, 65_537);
        for gone in 0..10 {
            let left: Vec<Hashed> = (0..50).filter(|key| *key != gone).map(|key| all[key]).collect();
            let after = Maglev::new(&left, 65_537);
            let pairs = before.entries().iter().zip(after.entries());
            let moved = pairs.filter(|(a, b)| **a != all[gone].place && a != b).count();
            assert!(moved < 65_537 * 2 / 100, "{moved} others moved");
        }
    }

    #[test]
    fn sizes_are_prime() {
        assert_eq!([2, 4, 100, 65_536, 65_537].map(prime), [2, 5, 101, 65_537, 65_537]);
    }
}
