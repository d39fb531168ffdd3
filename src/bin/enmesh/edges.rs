//! Floor 7: `enmesh edges`.

use crate::live::{Shown, Targets, Window, figures, table};
use crate::output::Done;
use enmesh::metrics::edges::{Edge, Edges};

/// Shows who talks to whom, and whether both prove who they are.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  enmesh edges\n  enmesh edges --admin http://web:4191 http://voting:4191 -o wide"
)]
pub(crate) struct Args {
    #[command(flatten)]
    window: Window,
    #[command(flatten)]
    targets: Targets,
}

pub(crate) fn run(args: &Args) -> Done {
    args.targets.run("/api/v1/edges", &args.window.to_string(), |mut edges: Edges| {
        edges.strip();
        edges
    })
}

impl Shown for Edges {
    fn table(&self, wide: bool) -> String {
        let mut headings = vec!["SRC", "DST", "SRC_NS", "DST_NS", "SECURED"];
        if wide {
            headings.extend([
                "CLIENT_ID",
                "SERVER_ID",
                "SUCCESS",
                "RPS",
                "LATENCY_P50",
                "LATENCY_P95",
                "LATENCY_P99",
            ]);
        }
        let or = |text: Option<&String>, other: &str| text.cloned().unwrap_or_else(|| other.to_owned());
        let cells = |edge: &Edge| {
            let mut cells = vec![
                or(edge.src.as_ref(), "[unknown]"),
                edge.dst.clone(),
                or(edge.src_namespace.as_ref(), "-"),
                or(edge.dst_namespace.as_ref(), "-"),
                if edge.secured { "√".to_owned() } else { or(edge.no_tls_reason.as_ref(), "no") },
            ];
            if wide {
                cells.extend([short(edge.client_id.as_deref()), short(edge.server_id.as_deref())]);
                cells.extend(figures(&edge.figures));
            }
            cells
        };
        table(&headings, &self.edges.iter().map(cells).collect::<Vec<_>>())
    }
}

/// The first two labels of Linkerd's names, as `linkerd edges` has it; SPIFFE IDs whole.
fn short(identity: Option<&str>) -> String {
    match identity {
        None => "-".to_owned(),
        Some(spiffe) if spiffe.starts_with("spiffe://") => spiffe.to_owned(),
        Some(name) => name.split('.').take(2).collect::<Vec<_>>().join("."),
    }
}
