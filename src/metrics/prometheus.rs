//! Floor 5: Prometheus exposition by `metrics-exporter-prometheus` (feature `prometheus`).

use crate::error::Error;
use crate::metrics::names;
use crate::metrics::registry::Registry;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::Arc;

/// How often buffered histogram samples are folded in; without it they pile up until a scrape (metrics-rs#467).
pub const UPKEEP: std::time::Duration = std::time::Duration::from_secs(5);

/// A Prometheus recorder of the mesh's own, with Linkerd's buckets.
#[derive(Clone)]
pub struct Prometheus {
    registry: Registry,
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prometheus").finish_non_exhaustive()
    }
}

impl Prometheus {
    /// A recorder that is not installed globally: only the mesh writes to it.
    ///
    /// # Errors
    /// When the exporter refuses the buckets, which it does not.
    pub fn new() -> Result<Self, Error> {
        let config = |error: metrics_exporter_prometheus::BuildError| Error::Config(Box::new(error));
        let mut builder = PrometheusBuilder::new();
        for family in [names::ROUTE_LATENCY, names::LATENCY] {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(family.to_owned()), &names::LATENCY_BUCKETS_MS)
                .map_err(config)?;
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        Ok(Self { registry: Registry::own(Arc::new(recorder)), handle })
    }

    /// Where the mesh resolves its handles.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The exposition as text.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds buffered samples in; to be called every [`UPKEEP`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}
