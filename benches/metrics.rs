//! What counting costs a request, with all families on: against handles of the `metrics` facade for the same families.
//!
//! `cargo bench --bench metrics --features prometheus -- --callgrind`

mod common;

use common::{Options, Row, measure, print};
use enmesh::classify::outcome::{Cause, Outcome, Verdict};
use enmesh::discover::endpoint::Endpoint;
use enmesh::metrics::ledger::Collect;
use enmesh::metrics::names::Direction;
use enmesh::metrics::prometheus::Prometheus;
use enmesh::metrics::series::Ending;
use enmesh::metrics::set::{MetricsSet, Tls};
use metrics::Label;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The families that one request of one attempt moves, each by a handle resolved before: what the facade alone would cost.
fn handles(options: &Options) -> Option<Row> {
    let name = "facade: 9 counters, 5 histograms by handle";
    if !options.wants(name) {
        return None;
    }
    let prometheus = Prometheus::new().expect("buckets");
    let label = || vec![Label::new("dst", "web:80")];
    let counters =
        ["a_total", "b_total", "c_total", "d_total", "e_total", "f_total", "g_total", "h_total", "i_total"]
            .map(|family| prometheus.registry().counter(family, label()));
    let histograms = [
        "route_response_latency_ms",
        "response_latency_ms",
        "outbound_http_route_request_duration_seconds",
        "outbound_http_route_backend_response_duration_seconds",
        "enmesh_deadline_left_seconds",
    ]
    .map(|family| prometheus.registry().histogram(family, label()));
    let mut rounds = 0u32;
    measure(options, name, || {
        counters.iter().for_each(|counter| counter.increment(1));
        histograms.iter().for_each(|histogram| histogram.record(black_box(1.5)));
        rounds += 1;
        // Else its samples pile up without end.
        if rounds.is_multiple_of(5_000) {
            prometheus.upkeep();
        }
    })
}

/// What enmesh does for the same request.
fn tallies(options: &Options) -> Option<Row> {
    let name = "enmesh: all families";
    if !options.wants(name) {
        return None;
    }
    let set = Arc::new(MetricsSet::default());
    let (dst, none) = ("web:80".into(), "".into());
    let route = set.route(Direction::Outbound, &dst, &none);
    let backend = route.backend(&dst);
    let endpoint = Endpoint::new(SocketAddr::from(([10, 0, 0, 1], 80)));
    let endpoint = set.endpoint(&dst, &endpoint, Tls::Disabled);
    let well = Outcome::new(Verdict::Success, Cause::Status(200));
    let row = measure(options, name, || {
        let latency = black_box(Duration::from_micros(1500));
        route.begin();
        endpoint.tally.begin();
        backend.tally.begin();
        endpoint.tally.latency(latency);
        backend.tally.latency(latency);
        route.deadline_left(latency);
        let ending = Ending::new(black_box(Some(200)), &well);
        endpoint.tally.end(ending);
        backend.tally.end(ending);
        route.latency(latency);
        route.end(Ending::new(black_box(Some(200)), &well));
    });
    // What was counted is told: nothing was left out.
    let prometheus = Prometheus::new().expect("buckets");
    let source: Arc<dyn Collect> = set;
    prometheus.add(&source);
    let families = prometheus.render().lines().filter(|line| line.starts_with("# TYPE")).count();
    assert!(families >= 15, "only {families} families are told");
    row
}

fn main() {
    let options = Options::read();
    let rows: Vec<Row> = [handles(&options), tallies(&options)].into_iter().flatten().collect();
    print(
        "Counting one request of one attempt",
        "cargo bench --bench metrics --features prometheus -- --callgrind",
        &rows,
    );
}
