//! Floor 2: who is asked for series, and the ledger that their answers are kept in.

use crate::metrics::ledger::{Collect, Ledger};
use crate::metrics::text::{self, Form};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

/// Sources of series, and what they told.
#[derive(Default)]
pub struct Show {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    ledger: Ledger,
    sources: Vec<Weak<dyn Collect>>,
}

impl fmt::Debug for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Show").finish_non_exhaustive()
    }
}

impl Show {
    /// Keeps what is told in `ledger`.
    pub fn new(ledger: Ledger) -> Self {
        Self { held: Mutex::new(Held { ledger, sources: Vec::new() }) }
    }

    /// Asks `source` too, for as long as somebody holds it.
    pub fn add(&self, source: &Arc<dyn Collect>) {
        self.with(|held| {
            held.sources.retain(|source| source.strong_count() > 0);
            held.sources.push(Arc::downgrade(source));
        });
    }

    /// Asks all sources; what changed is passed on if the ledger passes it on.
    pub fn gather(&self, now: Instant) {
        self.with(|held| held.ledger.gather(&held.sources, now));
    }

    /// Asks all sources, and writes what they told.
    pub fn render(&self, now: Instant, form: Form) -> String {
        self.with(|held| {
            held.ledger.gather(&held.sources, now);
            let mut shown = String::new();
            text::render(&held.ledger, form, &mut shown);
            shown
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Held) -> T) -> T {
        f(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
