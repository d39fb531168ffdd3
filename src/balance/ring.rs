//! Floor 2: the endpoints that one thread most recently saw end a request well.

use crate::balance::set::Place;

/// How many are remembered. 8 decide as well as 16 in the simulations, for half the cost; 4 decide worse
/// (docs/balancing.md).
pub const RING_MAX: usize = 8;

/// The endpoints that a thread most recently saw end a request well, the latest first, each once.
///
/// Such an end is the one perfectly fresh sign a client has that an endpoint just freed capacity: the ring is the
/// client's side of join-idle-queue (Lu et al., Performance 2011), without help from servers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ring {
    entries: [Freed; RING_MAX],
}

/// An endpoint and where it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Where it is, if it is still there.
    pub place: Place,
    /// Its number, to tell; 0 is no endpoint.
    pub id: u32,
}

impl Ring {
    /// Puts an endpoint first, and forgets the oldest if there are too many.
    #[inline]
    pub fn push(&mut self, freed: Freed) {
        let known = self.entries.iter().position(|entry| entry.id == freed.id || entry.id == 0);
        self.entries.copy_within(..known.unwrap_or(RING_MAX - 1), 1);
        self.entries[0] = freed;
    }

    /// The entries, the latest first; number 0 in what is empty.
    #[inline]
    pub fn entries(&self) -> &[Freed; RING_MAX] {
        &self.entries
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The model: the distinct numbers from the back, at most so many.
        #[test]
        fn the_ring_holds_the_latest_distinct(ids in proptest::collection::vec(1u32..20, 0..100)) {
            let mut ring = Ring::default();
            ids.iter().for_each(|id| ring.push(Freed { place: Place::default(), id: *id }));
            let mut expected: Vec<u32> = Vec::new();
            for id in ids.iter().rev() {
                if !expected.contains(id) && expected.len() < RING_MAX {
                    expected.push(*id);
                }
            }
            expected.resize(RING_MAX, 0);
            let held: Vec<u32> = ring.entries().iter().map(|entry| entry.id).collect();
            prop_assert_eq!(held, expected);
        }
    }
}
