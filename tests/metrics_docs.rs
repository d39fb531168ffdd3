//! `docs/metrics.md` tells every family as the code has it.

use enmesh::metrics::families::{ALL, Family, Kind, REQUEST, ROUTE_REQUEST, Scale};
use enmesh::metrics::families::{IN_HTTP_REQUESTS, OUT_HTTP_BACKEND_REQUESTS, OUT_HTTP_DURATION, TCP_OPEN};

/// Sets of labels that many families share, the longest first.
const SETS: [(&str, Family); 6] = [
    ("backend", OUT_HTTP_BACKEND_REQUESTS),
    ("policy route", OUT_HTTP_DURATION),
    ("inbound", IN_HTTP_REQUESTS),
    ("tcp", TCP_OPEN),
    ("endpoint", REQUEST),
    ("route", ROUTE_REQUEST),
];

fn labels(family: &Family) -> String {
    let shared = SETS.iter().find_map(|(name, of)| {
        let more = family.labels.strip_prefix(of.labels)?;
        (more.is_empty() || more.starts_with(' ')).then_some((name, more))
    });
    let (set, own) = match shared {
        Some((name, more)) => (Some(format!("*{name}*")), more),
        None => (None, family.labels),
    };
    let own = own.split_whitespace().map(|label| format!("`{label}`"));
    set.into_iter().chain(own).collect::<Vec<_>>().join(" ")
}

fn row(family: &Family) -> String {
    let kind = match family.kind {
        Kind::Counter => "counter".to_owned(),
        Kind::Gauge => "gauge".to_owned(),
        Kind::Histogram(scale, bounds) => {
            let bounds: Vec<String> = bounds.iter().map(f64::to_string).collect();
            let unit = match scale {
                Scale::Millis => "ms",
                Scale::Seconds => "s",
            };
            format!("histogram ({unit}): {}", bounds.join(" "))
        }
    };
    format!("| `{}` | {kind} | {} | {} |", family.name, labels(family), family.help)
}

#[test]
fn every_family_is_told_as_it_is_and_no_other() {
    let told = include_str!("../docs/metrics.md");
    let sets = SETS.iter().rev().map(|(name, of)| {
        let labels: Vec<String> = of.labels.split(' ').map(|label| format!("`{label}`")).collect();
        format!("| *{name}* | {} |", labels.join(" "))
    });
    let mut expected: Vec<String> = sets.chain(ALL.iter().map(row)).collect();
    let is_row = |line: &&str| line.starts_with("| `") || line.starts_with("| *");
    let mut found: Vec<&str> = told.lines().filter(is_row).collect();
    expected.sort();
    found.sort_unstable();
    for line in &expected {
        assert!(found.contains(&line.as_str()), "docs/metrics.md lacks this row:\n{line}");
    }
    for line in &found {
        assert!(expected.iter().any(|row| row == line), "docs/metrics.md has a row that is not so:\n{line}");
    }
    assert_eq!(found.len(), expected.len(), "a row is told twice");
}
