//! Floor 4: each thread's own memory of the endpoints it saw freed, one ring a balancer.

use crate::balance::endpoint::Cell;
use crate::balance::ring::Ring;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The most balancers that a thread remembers rings of, 80 bytes each. With more in one process two may share a
/// place: then each finds it taken by the other and begins anew, which costs them the ring and nothing else.
const RINGS_MAX: usize = 1024;

static LAST_NUMBER: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static RINGS: RefCell<Vec<(u32, Ring)>> = const { RefCell::new(Vec::new()) };
}

/// A number for a new balancer.
pub(crate) fn number() -> u32 {
    LAST_NUMBER.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// Shows this thread's ring of the balancer `number`; an empty one where there is none.
#[inline]
pub(crate) fn with_ring<T>(number: u32, look: impl Fn(&Ring) -> T) -> T {
    let found = RINGS.try_with(|rings| {
        let rings = rings.try_borrow().ok()?;
        let (owner, ring) = rings.get(number as usize % RINGS_MAX)?;
        (*owner == number).then(|| look(ring))
    });
    match found {
        Ok(Some(seen)) => seen,
        // Nothing was freed here yet, or the thread ends.
        _ => look(&Ring::default()),
    }
}

/// Puts an endpoint first in this thread's ring of the balancer `number`.
#[inline]
pub(crate) fn push(number: u32, cell: &Arc<Cell>) {
    // An error is a thread that ends: its ring is of no more use.
    let _ = RINGS.try_with(|rings| {
        let Ok(mut rings) = rings.try_borrow_mut() else { return };
        let place = number as usize % RINGS_MAX;
        if rings.len() <= place {
            rings.resize_with(place + 1, Default::default);
        }
        if let Some((owner, ring)) = rings.get_mut(place) {
            if *owner != number {
                (*owner, *ring) = (number, Ring::default());
            }
            ring.push(cell);
        }
    });
}
