//! Floor 4: each thread's own memory of the endpoints it saw freed, one ring a balancer.

use crate::balance::ring::{Freed, Ring};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

/// The most balancers that a thread remembers rings of, 72 bytes each. With more in one process two may share a
/// place, and then find only each other's endpoints there, which costs them the ring and nothing else.
const RINGS_MAX: usize = 1024;

static LAST_NUMBER: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static RINGS: RefCell<Vec<(u32, Ring)>> = const { RefCell::new(Vec::new()) };
}

/// A number for a new balancer.
pub(crate) fn number() -> u32 {
    LAST_NUMBER.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// A copy of this thread's ring of the balancer `number`.
#[inline]
pub(crate) fn ring(number: u32) -> Ring {
    let found = RINGS.try_with(|rings| {
        let rings = rings.try_borrow().ok()?;
        rings.get(number as usize % RINGS_MAX).filter(|(owner, _)| *owner == number).map(|(_, ring)| *ring)
    });
    found.ok().flatten().unwrap_or_default()
}

/// Puts an endpoint first in this thread's ring of the balancer `number`.
#[inline]
pub(crate) fn push(number: u32, freed: Freed) {
    // An error is a thread that ends: its ring is of no more use.
    let _ = RINGS.try_with(|rings| {
        let Ok(mut rings) = rings.try_borrow_mut() else { return };
        let place = number as usize % RINGS_MAX;
        if rings.len() <= place {
            rings.resize(place + 1, (0, Ring::default()));
        }
        if let Some((owner, ring)) = rings.get_mut(place) {
            if *owner != number {
                *owner = number;
                ring.clear();
            }
            ring.push(freed);
        }
    });
}
