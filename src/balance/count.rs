//! Floor 4: who counts the attempts at a service's endpoints.

use crate::discover::endpoint::Endpoint;
use crate::metrics::route::EndpointMetrics;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives what is counted of an endpoint.
#[derive(Clone)]
pub struct Count(Arc<Of>);

type Of = dyn Fn(&Endpoint) -> Arc<EndpointMetrics> + Send + Sync;

impl Count {
    /// Counts an endpoint's attempts by what `of` gives for it.
    pub fn new(of: impl Fn(&Endpoint) -> Arc<EndpointMetrics> + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    /// What is counted of `endpoint`.
    pub fn of(&self, endpoint: &Endpoint) -> Arc<EndpointMetrics> {
        (self.0)(endpoint)
    }
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Count")
    }
}

/// A pick that was no usual choice among open endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// A shut endpoint that is tried again.
    Probe,
    /// Too few are open, so that shut ones are asked too.
    Panic,
    /// All are shut.
    BreakerOpen,
    /// There is none.
    NoEndpoints,
}

impl Oddity {
    /// Words for metric labels, in order.
    pub const WORDS: [&str; 4] = ["probe", "panic", "breaker_open", "no_endpoints"];
}

/// How often each happened. The usual pick counts nothing here: attempts at endpoints are counted there.
#[derive(Debug, Default)]
pub(crate) struct Oddities([AtomicU64; Oddity::WORDS.len()]);

impl Oddities {
    #[cold]
    pub(crate) fn count(&self, oddity: Oddity) {
        self.0[oddity as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> [u64; Oddity::WORDS.len()] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}
