//! Floor 6: whether the process may get traffic: ready when nothing is waited for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Ready while no [`Latch`] is held, as Linkerd's proxy has it. Clones are one.
#[derive(Clone, Default)]
pub struct Readiness {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    next: u64,
    reasons: BTreeMap<u64, Arc<str>>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("waiting_for", &self.waiting_for()).finish()
    }
}

/// One thing that is waited for. Dropped, it is waited for no more.
#[must_use = "dropped at once, it holds nothing up"]
pub struct Latch {
    readiness: Readiness,
    number: u64,
}

impl fmt::Debug for Latch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latch").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Readiness {
    /// Not ready until the latch is dropped. `reason` completes "waiting for …": `endpoints of web.ns:80`.
    pub fn latch(&self, reason: impl Into<Arc<str>>) -> Latch {
        let number = self.with(|held| {
            let number = held.next;
            held.next += 1;
            held.reasons.insert(number, reason.into());
            number
        });
        Latch { readiness: self.clone(), number }
    }

    /// Whether nothing is waited for.
    pub fn is_ready(&self) -> bool {
        self.with(|held| held.reasons.is_empty())
    }

    /// What is waited for, the oldest first.
    pub fn waiting_for(&self) -> Vec<Arc<str>> {
        self.with(|held| held.reasons.values().cloned().collect())
    }

    fn with<T>(&self, f: impl FnOnce(&mut Held) -> T) -> T {
        f(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness.with(|held| held.reasons.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_the_last_latch_is_dropped() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let first = readiness.latch("a certificate");
        let second = readiness.clone().latch("endpoints");
        assert_eq!(readiness.waiting_for(), ["a certificate".into(), Arc::from("endpoints")]);
        drop(first);
        assert_eq!(readiness.waiting_for(), [Arc::from("endpoints")]);
        assert!(!readiness.is_ready());
        drop(second);
        assert!(readiness.is_ready());
        let draining = readiness.latch("its end");
        assert!(!readiness.is_ready());
        drop(draining);
    }
}
