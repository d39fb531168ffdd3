//! Floor 7: what the live commands share: whom they ask, how often, and how tables look.

use crate::output::{self, Done, Failure, Verdict};
use crate::stream;
use enmesh::admin::fleet::{self, Fleet, Peer};
use enmesh::admin::told::{self, Told};
use enmesh::metrics::report::{Figures, Process};
use serde::Serialize;
use std::fmt;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

/// Which processes are asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Targets {
    /// Admin servers, http://host:port each; a name that has many addresses stands for all of them. One that is asked alone
    /// speaks for its peers too
    #[arg(long, value_name = "URL", num_args = 1.., value_delimiter = ',', default_value = stream::ADMIN)]
    pub(crate) admin: Vec<Peer>,
    /// Asks again every so many seconds, until it is stopped
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<u32>,
    /// How the result is written
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

/// Of which time figures are asked for; shown, it is that part of a query.
#[derive(Debug, clap::Args)]
pub(crate) struct Window {
    /// How far back: 10s, 1m, 5m, 1h
    #[arg(short = 't', long, value_name = "TIME", default_value = "1m")]
    window: String,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "window={}", self.window)
    }
}

/// How live results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For programs
    Json,
    /// For files
    Yaml,
    /// For people
    Table,
    /// For people with wide screens
    Wide,
}

impl Targets {
    /// The processes, as the library asks them.
    pub(crate) fn fleet(&self) -> Fleet {
        Fleet::new(self.admin.iter().cloned(), fleet::dns())
    }

    /// Asks, writes, and asks again for as long as that is wanted.
    pub(crate) fn run<T, S>(&self, path: &str, query: &str, shown: impl Fn(T) -> S) -> Done
    where
        T: Told,
        S: Serialize + Shown,
    {
        let runtime = stream::runtime()?;
        loop {
            let mut told: T =
                runtime.block_on(told::ask(&self.fleet(), path, query)).map_err(Failure::Unreadable)?;
            reached(told.processes())?;
            let shown = shown(told);
            let text = match self.output {
                Format::Table => shown.table(false),
                Format::Wide => shown.table(true),
                Format::Json => document(&shown, output::Format::Json)?,
                Format::Yaml => document(&shown, output::Format::Yaml)?,
            };
            if self.watch.is_some() && stdout().is_terminal() {
                // Clears the screen and goes to its upper left corner.
                output::write("\x1b[2J\x1b[H")?;
            }
            output::write(&text)?;
            let Some(secs) = self.watch else { return Ok(Verdict::Good) };
            std::thread::sleep(Duration::from_secs(u64::from(secs.max(1))));
        }
    }
}

/// Tells who was not reached; a failure if nobody was.
pub(crate) fn reached(processes: &[Process]) -> Result<(), Failure> {
    let failed = || processes.iter().filter_map(|process| Some((&process.addr, process.error.as_ref()?)));
    let lines: Vec<String> = failed().map(|(addr, error)| format!("{addr}: {error}")).collect();
    if !processes.is_empty() && lines.len() == processes.len() {
        let remedy = "start the process with an admin server, and name it by --admin";
        return Err(Failure::Unreadable(format!("{}; {remedy}", lines.join("\n"))));
    }
    lines.iter().for_each(|line| eprintln!("{line}"));
    Ok(())
}

/// A result that people can read.
pub(crate) trait Shown {
    /// As a table; a wide one says more.
    fn table(&self, wide: bool) -> String;
}

fn document(value: &impl Serialize, format: output::Format) -> Result<String, Failure> {
    let value = serde_json::to_value(value);
    let value = value.map_err(|error| Failure::Unreadable(format!("no document: {error}")))?;
    Ok(output::document(&value, format))
}

/// Lines of cells under their headings; columns are as wide as they must be, numbers stand to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
    };
    let is_number = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .all(|cell| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
    };
    let columns: Vec<(usize, bool)> =
        (0..headings.len()).map(|at| (width(at), at > 0 && is_number(at))).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, (width, right)) in cells.zip(&columns) {
            line += &match right {
                true => format!("{cell:>width$}   "),
                false => format!("{cell:<width$}   "),
            };
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// `75.00%`; `-` when nothing ended.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.2}%", share * 100.0))
}

/// Success rate, rps, and the quantiles of Linkerd's tables; all `-` without traffic.
pub(crate) fn figures(figures: &Figures) -> [String; 5] {
    if figures.successes + figures.failures == 0 {
        return std::array::from_fn(|_| "-".to_owned());
    }
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}ms"));
    let latency = figures.latency_ms.as_ref();
    [
        percent(figures.success_rate),
        format!("{:.1}rps", figures.rps),
        ms(latency.map(|latency| latency.p50)),
        ms(latency.map(|latency| latency.p95)),
        ms(latency.map(|latency| latency.p99)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [
            vec!["web".to_owned(), "99.00%".to_owned(), "-".to_owned()],
            vec!["voting-svc".to_owned(), "5.00%".to_owned(), "1.0rps".to_owned()],
        ];
        let expected =
            "NAME         SUCCESS      RPS\nweb           99.00%        -\nvoting-svc     5.00%   1.0rps\n";
        assert_eq!(table(&["NAME", "SUCCESS", "RPS"], &rows), expected);
    }
}
