//! Floor 5: Prometheus exposition, beside `metrics-exporter-prometheus` (feature `prometheus`).

use crate::error::Error;
use crate::metrics::families::{ALL, Kind};
use crate::metrics::ledger::{Collect, Ledger};
use crate::metrics::registry::Registry;
use crate::metrics::show::Show;
use crate::metrics::text::{self, Form};
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

    /// The exposition as Prometheus's text.
    pub fn render(&self) -> String {
        self.render_as(Form::Classic)
    }

    /// The exposition in this form. Exemplars are the mesh's own: the exporter knows none (0.18).
    pub fn render_as(&self, form: Form) -> String {
        let (own, others) = (self.show.render(clock::now(), form), self.handle.render());
        match form {
            Form::Classic => own + &others,
            Form::Open => own + &text::opened(&others) + "# EOF\n",
        }
    }

    /// Folds buffered samples in; to be called every [`UPKEEP`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::Direction;
    use crate::metrics::set::MetricsSet;
    use std::time::Duration;

    /// What Prometheus's `histogram_quantile` makes of a family's buckets.
    fn quantile(text: &str, family: &str, q: f64) -> f64 {
        let buckets: Vec<(f64, f64)> = text
            .lines()
            .filter_map(|line| {
                let (labels, count) =
                    line.strip_prefix(family)?.strip_prefix("_bucket{")?.rsplit_once(' ')?;
                let bound = labels.split_once("le=\"")?.1.strip_suffix("\"}")?;
                Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
            })
            .collect();
        let rank = q * buckets.last().unwrap().1;
        let at = buckets.iter().position(|(_, below)| *below >= rank).unwrap();
        let (low, before) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
        low + (buckets[at].0 - low) * (rank - before) / (buckets[at].1 - before)
    }

    #[test]
    fn the_switch_for_finer_buckets_cuts_every_histogram_finer() {
        let set = Arc::new(MetricsSet::default());
        let route = set.route(Direction::Outbound, &"web:80".into(), &"r".into());
        // 105 to 115 ms, evenly.
        for step in 0..1000 {
            route.begin();
            route.latency(Duration::from_micros(105_000 + 10 * step));
        }
        let source: Arc<dyn Collect> = set;
        let told = |ledger: Ledger| {
            let prometheus = Prometheus::with(ledger).unwrap();
            prometheus.add(&source);
            prometheus.render()
        };
        let (usual, fine) = (told(Ledger::default()), told(Ledger::default().with_buckets(fine_buckets())));
        let family = "route_response_latency_ms";
        for (q, truth) in [(0.5, 110.0), (0.95, 114.5), (0.99, 114.9)] {
            let error = |text: &str| (quantile(text, family, q) / truth - 1.0).abs();
            assert!(error(&fine) < 0.1, "{q}: {} for {truth}", quantile(&fine, family, q));
            assert!(error(&usual) > 3.0 * error(&fine), "{q}: {}", quantile(&usual, family, q));
        }
        let count = |text: &str| text.lines().filter(|line| line.starts_with(family)).count();
        assert_eq!((count(&usual), count(&fine)), (26 + 2, 78 + 1 + 2));
    }
}
