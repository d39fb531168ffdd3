//! Floor 2: which of a large fleet this client uses.

use crate::balance::hash::combine;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// The `size` endpoints that rank first by rendezvous hashing (Thaler and Ravishankar, 1998; gRPC A68): each
/// client orders the fleet by a hash of its own seed and the address. A change of one endpoint changes at most
/// one place, and clients with different seeds spread over the fleet.
#[derive(Debug, Clone)]
pub struct Subset {
    size: usize,
    seed: u64,
    ranks: BTreeSet<(u64, SocketAddr)>,
}

/// What a change of the fleet means for the subset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shift {
    /// Comes in.
    pub come: Option<SocketAddr>,
    /// Goes out.
    pub gone: Option<SocketAddr>,
}

impl Subset {
    /// An empty subset of at most `size`.
    pub fn new(size: usize, seed: u64) -> Self {
        Self { size, seed, ranks: BTreeSet::new() }
    }

    fn rank(&self, addr: SocketAddr, key: u64) -> (u64, SocketAddr) {
        (combine(self.seed, key), addr)
    }

    /// The first that is not in.
    fn outside(&self) -> Option<SocketAddr> {
        self.ranks.iter().nth(self.size).map(|(_, addr)| *addr)
    }

    /// Whether `rank` is among the first.
    fn holds(&self, rank: &(u64, SocketAddr)) -> bool {
        self.ranks.len() <= self.size || self.ranks.iter().nth(self.size).is_some_and(|first| rank < first)
    }

    /// An endpoint joined the fleet; `key` is a hash of its address.
    pub fn join(&mut self, addr: SocketAddr, key: u64) -> Shift {
        let rank = self.rank(addr, key);
        if !self.ranks.insert(rank) || !self.holds(&rank) {
            return Shift::default();
        }
        Shift { come: Some(addr), gone: self.outside() }
    }

    /// An endpoint left the fleet.
    pub fn leave(&mut self, addr: SocketAddr, key: u64) -> Shift {
        let rank = self.rank(addr, key);
        let held = self.holds(&rank);
        let next = self.outside();
        if !self.ranks.remove(&rank) || !held {
            return Shift::default();
        }
        Shift { come: next, gone: Some(addr) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::hash::hash_bytes;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn addr(port: u16) -> (SocketAddr, u64) {
        (SocketAddr::from(([10, 0, 0, 1], port)), hash_bytes(&port.to_be_bytes()))
    }

    proptest! {
        /// The model: sort the whole fleet and take the first.
        #[test]
        fn the_subset_is_the_first_of_the_sorted_fleet(
            changes in proptest::collection::vec((0u16..40, any::<bool>()), 1..100), size in 1usize..20, seed: u64,
        ) {
            let mut subset = Subset::new(size, seed);
            let mut fleet = BTreeSet::new();
            let mut inside = BTreeSet::new();
            for (port, joins) in changes {
                let (addr, key) = addr(port);
                let shift = if joins {
                    fleet.insert((combine(seed, key), addr));
                    subset.join(addr, key)
                } else {
                    fleet.remove(&(combine(seed, key), addr));
                    subset.leave(addr, key)
                };
                if let Some(gone) = shift.gone { prop_assert!(inside.remove(&gone)); }
                if let Some(come) = shift.come { prop_assert!(inside.insert(come)); }
                let expected: BTreeSet<SocketAddr> = fleet.iter().take(size).map(|(_, addr)| *addr).collect();
                prop_assert_eq!(&inside, &expected);
            }
        }
    }

    #[test]
    fn clients_spread_over_the_fleet() {
        let mut users = vec![0u32; 100];
        for seed in 0..1000 {
            let mut subset = Subset::new(10, seed);
            let mut inside = BTreeSet::new();
            for port in 0..100 {
                let shift = subset.join(addr(port).0, addr(port).1);
                shift.gone.map(|gone| inside.remove(&gone));
                shift.come.map(|come| inside.insert(come));
            }
            inside.iter().for_each(|addr| users[usize::from(addr.port())] += 1);
        }
        assert!(users.iter().all(|n| (60..145).contains(n)), "{users:?}");
    }
}
