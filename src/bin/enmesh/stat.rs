//! Floor 7: `enmesh stat` and `enmesh routes`.

use crate::live::{Shown, Targets, Window, figures, percent, table};
use crate::output::Done;
use enmesh::metrics::names::Direction;
use enmesh::metrics::report::{Kind, Process, Report, Row, RowKey};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What `stat` and `routes` are both asked.
#[derive(Debug, clap::Args)]
struct Asked {
    /// Shows calls to this service, as their callers see them; any service if none is named. Without it: what arrives
    #[arg(long, value_name = "SERVICE", num_args = 0..=1, default_missing_value = "")]
    to: Option<String>,
    /// Only of this process
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    #[command(flatten)]
    window: Window,
    #[command(flatten)]
    targets: Targets,
}

/// Shows the traffic of processes: success rate, requests a second, latencies.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  enmesh stat\n  \
                        enmesh stat --admin http://10.0.0.1:4191 http://10.0.0.2:4191 --window 10s\n  \
                        enmesh stat --to voting-svc --by endpoint --watch")]
pub(crate) struct Args {
    /// What a line stands for
    #[arg(long, value_enum, default_value = "service")]
    by: By,
    #[command(flatten)]
    asked: Asked,
}

/// What a line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// A service
    Service,
    /// A route's backend (with --to)
    Backend,
    /// An endpoint (with --to)
    Endpoint,
    /// A caller's identity
    Client,
}

/// Shows the traffic of routes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  enmesh routes\n  enmesh routes --to voting-svc -o wide\n  \
                        enmesh routes --admin http://web-admin:4191 -o json")]
pub(crate) struct RoutesArgs {
    #[command(flatten)]
    asked: Asked,
}

/// Which rows are meant.
struct Meant<'a> {
    kind: Kind,
    to: Option<&'a str>,
    from: Option<&'a str>,
}

impl Meant<'_> {
    fn direction(&self) -> Direction {
        if self.to.is_some() { Direction::Outbound } else { Direction::Inbound }
    }

    /// The rows of a report that are meant, over all processes.
    fn of(&self, report: Report) -> Vec<Row> {
        let is_named = |full: &str, name: &str| {
            name.is_empty()
                || full == name
                || full.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ':']))
        };
        report
            .rows
            .into_iter()
            .filter(|row| row.key.kind == self.kind && row.key.direction == self.direction())
            .filter(|row| self.to.is_none_or(|to| is_named(&row.key.service, to)))
            .filter(|row| {
                self.from.is_none_or(|from| is_named(row.process.as_deref().unwrap_or_default(), from))
            })
            .collect()
    }
}

pub(crate) fn run(args: &Args) -> Done {
    let asked = &args.asked;
    let (kind, to) = match args.by {
        By::Service => (Kind::Route, asked.to.as_deref()),
        By::Backend => (Kind::Backend, asked.to.as_deref().or(Some(""))),
        By::Endpoint => (Kind::Endpoint, asked.to.as_deref().or(Some(""))),
        By::Client => (Kind::Client, None),
    };
    let query = format!("{}&by=process", asked.window);
    asked.targets.run("/api/v1/stat", &query, |report: Report| {
        let processes = report.processes.clone();
        let meant = Meant { kind, to, from: asked.from.as_deref() };
        let (window_secs, direction) = (report.window_secs, meant.direction());
        let rows = Row::grouped(meant.of(report), |row| match args.by {
            By::Service => (short(&row.key.service), None),
            By::Backend | By::Endpoint | By::Client => (String::new(), Some(row.key.clone())),
        });
        Traffic {
            by: args.by,
            direction,
            window_secs,
            processes,
            rows: stripped(rows, args.by == By::Service),
        }
    })
}

/// Rows without their histograms; of whole services, without a route.
fn stripped(rows: Vec<Row>, services: bool) -> Vec<Row> {
    let strip = |mut row: Row| {
        row.strip();
        row.process = None;
        if services {
            row.key = RowKey { route: None, ..row.key };
        }
        row
    };
    rows.into_iter().map(strip).collect()
}

/// A service's name without what a cluster adds: a process calls itself `web.ns:80`, its profile may say
/// `web.ns.svc.cluster.local:80`.
fn short(name: &str) -> String {
    let (host, port) = name.split_at(name.rfind(':').unwrap_or(name.len()));
    let host = host.split_once(".svc.").map_or(host, |(host, _)| host);
    format!("{host}{port}")
}

/// What `stat` shows.
#[derive(Serialize)]
struct Traffic {
    #[serde(skip)]
    by: By,
    direction: Direction,
    window_secs: f64,
    processes: Vec<Process>,
    rows: Vec<Row>,
}

impl Traffic {
    /// How many processes of each name there are, and how many of them answered.
    fn meshed(&self) -> BTreeMap<String, (usize, usize)> {
        let mut meshed = BTreeMap::new();
        for process in &self.processes {
            let (up, all) = meshed.entry(short(&process.name)).or_default();
            *up += usize::from(process.error.is_none());
            *all += 1;
        }
        meshed
    }
}

impl Shown for Traffic {
    fn table(&self, wide: bool) -> String {
        let first: &[&str] = match self.by {
            By::Service => &["NAME", "MESHED"],
            By::Backend => &["SERVICE", "ROUTE", "BACKEND"],
            By::Endpoint => &["SERVICE", "ENDPOINT", "ZONE", "TLS"],
            By::Client => &["SERVICE", "CLIENT"],
        };
        let mut headings = first.to_vec();
        headings.extend(["SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "IN_FLIGHT"]);
        if wide {
            headings.extend(["LATENCY_P999", "REQUESTS"]);
        }
        let meshed = self.meshed();
        let cells = |row: &Row| {
            let name = |text: &Option<String>| text.clone().unwrap_or_default();
            let mut cells = vec![row.key.service.clone()];
            match self.by {
                By::Service => cells.push(match meshed.get(&short(&row.key.service)) {
                    Some((up, all)) if self.direction == Direction::Inbound => format!("{up}/{all}"),
                    _ => "-".to_owned(),
                }),
                By::Backend => cells.extend([route(row.key.route.as_deref()), name(&row.key.backend)]),
                By::Endpoint => {
                    let tls = row.facts.tls.map_or("-", |tls| if tls { "yes" } else { "no" });
                    let zone = row.facts.zone.clone().unwrap_or_else(|| "-".to_owned());
                    cells.extend([name(&row.key.endpoint), zone, tls.to_owned()]);
                }
                By::Client => cells.push(match name(&row.key.client) {
                    none if none.is_empty() => "[unknown]".to_owned(),
                    client => client,
                }),
            }
            cells.extend(figures(&row.figures));
            cells.push(row.in_flight.to_string());
            if wide {
                let p999 = row.figures.latency_ms.map(|latency| format!("{:.0}ms", latency.p999));
                cells.extend([p999.unwrap_or_else(|| "-".to_owned()), row.figures.requests.to_string()]);
            }
            cells
        };
        table(&headings, &self.rows.iter().map(cells).collect::<Vec<_>>())
    }
}

pub(crate) fn routes(RoutesArgs { asked }: &RoutesArgs) -> Done {
    let query = format!("{}&by=process&kind=route,backend", asked.window);
    asked.targets.run("/api/v1/stat", &query, |report: Report| {
        let processes = report.processes.clone();
        let meant = Meant { kind: Kind::Route, to: asked.to.as_deref(), from: asked.from.as_deref() };
        let (window_secs, direction) = (report.window_secs, meant.direction());
        let rows = Row::grouped(meant.of(report), |row| row.key.clone());
        Routes { direction, window_secs, processes, rows: stripped(rows, false) }
    })
}

/// What `routes` shows.
#[derive(Serialize)]
struct Routes {
    direction: Direction,
    window_secs: f64,
    processes: Vec<Process>,
    rows: Vec<Row>,
}

/// A route as Linkerd writes it.
fn route(name: Option<&str>) -> String {
    name.filter(|name| !name.is_empty()).unwrap_or("[DEFAULT]").to_owned()
}

impl Shown for Routes {
    fn table(&self, wide: bool) -> String {
        let both = wide && self.direction == Direction::Outbound;
        let success: &[&str] = match both {
            true => &["EFFECTIVE_SUCCESS", "EFFECTIVE_RPS", "ACTUAL_SUCCESS", "ACTUAL_RPS"],
            false => &["SUCCESS", "RPS"],
        };
        let mut headings = vec!["ROUTE", "SERVICE"];
        headings.extend(success);
        headings.extend(["LATENCY_P50", "LATENCY_P95", "LATENCY_P99"]);
        if wide {
            headings.push("ENDED_BY_MESH");
        }
        // The default route stands last, and is shown only where something met it.
        let services: BTreeSet<&str> = self.rows.iter().map(|row| &*row.key.service).collect();
        let is_default = |row: &&Row| row.key.route.as_deref() == Some("");
        let of = |service| self.rows.iter().filter(move |row| row.key.service == service);
        let sorted = services.into_iter().flat_map(|service| {
            let default = of(service).filter(is_default).filter(|row| row.figures.requests > 0);
            of(service).filter(|row| !is_default(row)).chain(default)
        });
        let cells = sorted.map(|row| {
            let [success, rps, p50, p95, p99] = figures(&row.figures);
            let mut cells = vec![route(row.key.route.as_deref()), row.key.service.clone(), success, rps];
            if both {
                let actual = row.actual.as_ref();
                cells.push(percent(actual.and_then(|actual| actual.success_rate)));
                let some = actual.filter(|actual| actual.success_rate.is_some());
                cells.push(some.map_or_else(|| "-".to_owned(), |actual| format!("{:.1}rps", actual.rps)));
            }
            cells.extend([p50, p95, p99]);
            if wide {
                cells.push(row.causes.to_string());
            }
            cells
        });
        table(&headings, &cells.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_of_a_service_are_one() {
        for (name, expected) in [
            ("web.ns.svc.cluster.local:80", "web.ns:80"),
            ("web.ns.svc.mesh.test", "web.ns"),
            ("web.ns:80", "web.ns:80"),
            ("svc.example.com", "svc.example.com"),
        ] {
            assert_eq!(short(name), expected);
        }
    }
}
