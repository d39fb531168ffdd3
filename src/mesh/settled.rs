//! Floor 6: a flag that is set once.

use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// A flag that is set once and can be waited for. Reading it is one load.
#[derive(Debug, Default)]
pub struct Settled {
    set: AtomicBool,
    told: Notify,
}

impl Settled {
    pub(crate) fn new(set: bool) -> Self {
        Self { set: AtomicBool::new(set), told: Notify::new() }
    }

    pub(crate) fn set(&self) {
        self.set.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    /// Whether it is set.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Waits until it is set. Cancel safe.
    pub async fn wait(&self) {
        let told = self.told.notified();
        if !self.is_set() {
            told.await;
        }
    }
}
