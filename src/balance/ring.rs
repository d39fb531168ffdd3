//! Floor 2: the endpoints that one thread most recently saw end a request well.

use crate::balance::endpoint::Cell;
use std::sync::Arc;

/// How many are remembered. More decide better by little, 16 by one in a hundred in the simulations, and cost a
/// twelfth of a pick each; 4 decide worse (docs/balancing.md).
pub const RING_MAX: usize = 8;

/// What one more endpoint counts in the mean.
const TYPICAL_SHARE: f32 = 0.02;

/// The endpoints that a thread most recently saw end a request well, the latest first, each once.
///
/// Such an end is the one perfectly fresh sign a client has that an endpoint just freed capacity: the ring is the
/// client's side of join-idle-queue (Lu et al., Performance 2011), without help from servers. It holds the cells
/// themselves, so that comparing them needs no search; of a service that is gone it holds at most so many until
/// another takes its place.
#[derive(Debug, Default)]
pub struct Ring {
    cells: [Option<Arc<Cell>>; RING_MAX],
    typical: f32,
}

impl Ring {
    /// Puts an endpoint first, and forgets the oldest if there are too many.
    #[inline]
    pub fn push(&mut self, cell: &Arc<Cell>) {
        let secs = cell.latency().secs;
        let share = if self.typical == 0.0 { 1.0 } else { TYPICAL_SHARE };
        self.typical += (secs - self.typical) * share;
        let known = |entry: &Option<Arc<Cell>>| entry.as_ref().is_none_or(|entry| Arc::ptr_eq(entry, cell));
        let found = self.cells.iter().position(known);
        let index = found.unwrap_or(RING_MAX - 1);
        if found.is_none_or(|index| self.cells[index].is_none()) {
            self.cells[index] = Some(Arc::clone(cell));
        }
        self.cells[..=index].rotate_right(1);
    }

    /// The latency of the last fifty endpoints that were put here, in the mean, in seconds; 0 if there was none.
    #[inline]
    pub fn typical(&self) -> f32 {
        self.typical
    }

    /// The endpoints, the latest first.
    #[inline]
    pub fn cells(&self) -> impl Iterator<Item = &Arc<Cell>> + Clone {
        self.cells.iter().map_while(Option::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::moment::Moment;
    use proptest::prelude::*;

    #[test]
    fn what_is_typical_follows_what_was_put_there() {
        let cell = |secs| Arc::new(Cell::new(1, 0, Moment::default(), secs));
        let mut ring = Ring::default();
        assert_eq!(ring.typical(), 0.0);
        ring.push(&cell(0.5));
        assert_eq!(ring.typical(), 0.5);
        (0..50).for_each(|_| ring.push(&cell(0.1)));
        assert!((0.1..0.26).contains(&ring.typical()), "{}", ring.typical());
    }

    proptest! {
        /// The model: the distinct numbers from the back, at most so many.
        #[test]
        fn the_ring_holds_the_latest_distinct(ids in proptest::collection::vec(0usize..20, 0..100)) {
            let cell = |id| Arc::new(Cell::new(id, 0, Moment::default(), 0.03));
            let cells: Vec<Arc<Cell>> = (0..20).map(cell).collect();
            let mut ring = Ring::default();
            ids.iter().for_each(|id| ring.push(&cells[*id]));
            let mut expected: Vec<u32> = Vec::new();
            for id in ids.iter().rev().map(|id| *id as u32) {
                if !expected.contains(&id) && expected.len() < RING_MAX {
                    expected.push(id);
                }
            }
            let held: Vec<u32> = ring.cells().map(|cell| cell.id()).collect();
            prop_assert_eq!(held, expected);
        }
    }
}
