//! Floor 2: how many copies of requests may be under way, so that a mirror costs its callers nothing.
//!
//! Copies have no part in the budgets of the requests they are made of: not in their retries, nor in their limits.
//! What is too much for the mirror is not copied, and counted; nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The most copies that one mirror has under way: 64. With [`BODY_BYTES_MAX`] it bounds their memory to 4 MiB; a mirror
/// that answers in 50 ms gets up to 1,280 copies a second.
pub const COPIES_MAX: u32 = 64;

/// The longest body that is copied: 64 KiB, as much as is kept for a retry. Requests with a longer one are not copied.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The most of a copy's answer that is read and thrown away, so that its connection can be used again: 1 MiB.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long a copy may take, from its request to the end of its answer, where the route has no timeout: 15 s.
pub const COPY_MAX: Duration = Duration::from_secs(15);

/// The copies of one mirror.
#[derive(Debug, Default)]
pub struct CopyBudget {
    under_way: AtomicU32,
    made: AtomicU64,
    skipped: AtomicU64,
}

impl CopyBudget {
    /// Room for one copy until the pass is dropped; `None`, and counted, when there is none.
    pub fn take(self: &Arc<Self>) -> Option<CopyPass> {
        let more = |under_way: u32| (under_way < COPIES_MAX).then_some(under_way + 1);
        match self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Some(CopyPass { budget: Arc::clone(self), made: false }),
            Err(_) => {
                self.skip();
                None
            }
        }
    }

    /// Counts one request that should have been copied and was not.
    pub fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many copies are under way.
    pub fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// How many were sent since the mirror was first configured.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// How many were not, for want of room or because their body was too long or broke off.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

/// Room for one copy. Dropped before it was [`sent`](Self::sent), it counts as skipped.
#[derive(Debug)]
pub struct CopyPass {
    budget: Arc<CopyBudget>,
    made: bool,
}

impl CopyPass {
    /// The copy is sent.
    pub fn sent(&mut self) {
        self.made = true;
        self.budget.made.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for CopyPass {
    fn drop(&mut self) {
        if !self.made {
            self.budget.skip();
        }
        self.budget.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_and_the_others_are_counted() {
        let budget = Arc::new(CopyBudget::default());
        let mut passes: Vec<CopyPass> = (0..COPIES_MAX).map(|_| budget.take().unwrap()).collect();
        assert!(budget.take().is_none());
        assert_eq!((budget.under_way(), budget.made(), budget.skipped()), (COPIES_MAX, 0, 1));
        passes.iter_mut().for_each(CopyPass::sent);
        drop(passes);
        assert_eq!((budget.under_way(), budget.made(), budget.skipped()), (0, u64::from(COPIES_MAX), 1));
        drop(budget.take());
        assert_eq!((budget.under_way(), budget.skipped()), (0, 2));
    }
}
