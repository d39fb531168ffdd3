//! Floor 5: Prometheus exposition, beside `metrics-exporter-prometheus` (feature `prometheus`).

use crate::error::Error;
use crate::metrics::families::{ALL, Kind};
use crate::metrics::ledger::{Collect, Ledger};
use crate::metrics::registry::Registry;
use crate::metrics::show::Show;
use crate::stdx::clock;
use metrics::Recorder;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::Arc;

/// How often buffered histogram samples are folded in; without it they pile up until a scrape (metrics-rs#467).
pub const UPKEEP: std::time::Duration = std::time::Duration::from_secs(5);

/// A Prometheus recorder of the mesh's own, with Linkerd's buckets.
///
/// What the mesh counts on the request path it writes itself, from its own totals: the exporter would keep every sample of a
/// histogram until the next scrape, 24 bytes each. What is counted through [`registry`](Self::registry), by the
/// program or by rooms off the path, the exporter writes.
#[derive(Clone)]
pub struct Prometheus {
    registry: Registry,
    handle: PrometheusHandle,
    show: Arc<Show>,
}

impl std::fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prometheus").finish_non_exhaustive()
    }
}

/// Bounds in seconds at which histograms of durations are cut, if not where Linkerd cuts them: each a quarter power of two
/// above the one before, from 100 µs to a minute. An interpolated quantile is then at most 19 % off, and typically 5 %;
/// Linkerd's bounds double (100 % off). 78 series a histogram, where Linkerd has 26.
pub fn fine_buckets() -> Vec<f64> {
    let bounds = (0..78).map(|step| 1e-4 * 2f64.powf(f64::from(step) / 4.0));
    // Three digits, so that a bound reads as one.
    bounds.map(|bound| format!("{bound:.2e}").parse().unwrap_or(bound)).collect()
}

impl Prometheus {
    /// A recorder that is not installed globally: only the mesh writes to it.
    ///
    /// # Errors
    /// When the exporter refuses the buckets, which it does not.
    pub fn new() -> Result<Self, Error> {
        Self::with(Ledger::default())
    }

    /// The same, showing series as `ledger` is set up: other buckets ([`fine_buckets`]), caps, or expiry.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(ledger: Ledger) -> Result<Self, Error> {
        let config = |error: metrics_exporter_prometheus::BuildError| Error::Config(Box::new(error));
        let mut builder = PrometheusBuilder::new();
        for family in ALL {
            if let Kind::Histogram(_, buckets) = family.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(family.name.to_owned()), buckets)
                    .map_err(config)?;
            }
        }
        let recorder = builder.build_recorder();
        for family in ALL {
            let (name, help) = (family.name.into(), family.help.into());
            match family.kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram(..) => recorder.describe_histogram(name, None, help),
            }
        }
        let handle = recorder.handle();
        let show = Arc::new(Show::new(ledger));
        Ok(Self { registry: Registry::own(Arc::new(recorder)), handle, show })
    }

    /// Where the mesh resolves its handles.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Shows what `source` tells, for as long as somebody holds it.
    pub fn add(&self, source: &Arc<dyn Collect>) {
        self.show.add(source);
    }

    /// The exposition as text.
    pub fn render(&self) -> String {
        self.show.render(clock::now()) + &self.handle.render()
    }

    /// Folds buffered samples in; to be called every [`UPKEEP`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}
