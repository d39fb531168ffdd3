//! Floor 7: `enmesh slo`.

use crate::live::{Shown, Targets, percent, table};
use crate::output::Done;
use enmesh::metrics::slo::{Aim, Burn, Objectives, Severity, Standing};

/// Shows how objectives are kept: how much of their error budgets is left, and how fast it burns.
///
/// A process knows what it saw itself since it began: `-o wide` tells how much of the window that COVERED. What Prometheus has kept reaches further
/// back (docs/dashboards/alerts.yaml).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  enmesh slo\n  enmesh slo --admin http://web:4191 http://voting:4191 --watch 10\n  \
                        enmesh slo -o json"
)]
pub(crate) struct Args {
    #[command(flatten)]
    targets: Targets,
}

pub(crate) fn run(args: &Args) -> Done {
    args.targets.run("/api/v1/slo", "", |objectives: Objectives| objectives)
}

impl Shown for Objectives {
    fn table(&self, wide: bool) -> String {
        let mut headings = vec![
            "SERVICE",
            "ROUTE",
            "DIRECTION",
            "OBJECTIVE",
            "SLI",
            "BUDGET_LEFT",
            "BURN_1H",
            "BURN_6H",
            "BURN_3D",
            "ALERT",
        ];
        if wide {
            headings.extend(["TOTAL", "BAD", "WINDOW", "COVERED"]);
        }
        let cells = |standing: &Standing| {
            let target = format!("{}%", (standing.target * 1e8).round() / 1e6);
            let objective = match (standing.kind, standing.threshold_ms) {
                (Aim::Latency, Some(ms)) => format!("{target} in {ms}ms"),
                (Aim::Latency, None) | (Aim::Availability, _) => format!("{target} succeed"),
            };
            let mut cells = vec![
                standing.service.clone(),
                standing.route.clone().unwrap_or_else(|| "[ALL]".to_owned()),
                standing.direction.as_str().to_owned(),
                objective,
                percent(standing.sli),
                percent(standing.budget_left),
                burn(standing, "1h"),
                burn(standing, "6h"),
                burn(standing, "3d"),
                alert(standing).to_owned(),
            ];
            if wide {
                let hours = |secs: f64| format!("{:.1}h", secs / 3600.0);
                cells.extend([standing.count.total.to_string(), standing.count.bad.to_string()]);
                cells.extend([hours(standing.window_secs), hours(standing.covered_secs)]);
            }
            cells
        };
        table(&headings, &self.objectives.iter().map(cells).collect::<Vec<_>>())
    }
}

fn burn(standing: &Standing, long: &str) -> String {
    let rate = standing.burn.iter().find(|burn| burn.long == long).and_then(|burn| burn.long_rate);
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}"))
}

fn alert(standing: &Standing) -> &'static str {
    let firing = |severity| standing.burn.iter().any(|burn: &Burn| burn.firing && burn.severity == severity);
    match (firing(Severity::Page), firing(Severity::Ticket)) {
        (true, _) => "page",
        (false, true) => "ticket",
        (false, false) => "-",
    }
}
