//! Floor 4: who counts the attempts at a service's endpoints.

use crate::discover::endpoint::Endpoint;
use crate::metrics::route::EndpointMetrics;
use std::fmt;
use std::sync::Arc;

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
