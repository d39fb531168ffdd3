//! What the benches share: time, allocations, and instructions counted by callgrind.
//!
//! `--smoke` runs each measurement for an instant, so that CI sees it work; `--callgrind` counts instructions too,
//! by running the bench's own binary under valgrind with two numbers of rounds and subtracting.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::process::Command;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Options {
    pub smoke: bool,
    pub callgrind: bool,
    /// Run this row so many times and do nothing else: the mode that valgrind sees.
    pub rounds: Option<(String, u64)>,
}

impl Options {
    pub fn read() -> Self {
        let args: Vec<String> = std::env::args().collect();
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        let rounds = args
            .iter()
            .position(|arg| arg == "--rounds")
            .map(|at| (args[at + 1].clone(), args[at + 2].parse().expect("--rounds ROW NUMBER")));
        Self { smoke: has("--smoke"), callgrind: has("--callgrind"), rounds }
    }
}

/// One measured row.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub nanos: f64,
    pub allocations: f64,
    pub instructions: Option<f64>,
}

impl Options {
    /// Whether this row is to be run at all; asked before it is set up.
    pub fn wants(&self, name: &str) -> bool {
        self.rounds.as_ref().is_none_or(|(row, _)| row == name)
    }
}

/// Measures `round`, which does one request. The time is the least of many short batches, since the machine is noisy.
pub fn measure(options: &Options, name: &str, mut round: impl FnMut()) -> Option<Row> {
    if let Some((_, rounds)) = &options.rounds {
        (0..*rounds).for_each(|_| round());
        return None;
    }
    let (batches, batch) = if options.smoke { (3, 20) } else { (400, 500) };
    (0..batch).for_each(|_| round());
    let region = Region::new(ALLOCATOR);
    (0..batch).for_each(|_| round());
    let allocations = region.change().allocations as f64 / batch as f64;
    let best = (0..batches).map(|_| time(batch, &mut round)).min().unwrap_or_default();
    let nanos = best.as_nanos() as f64 / batch as f64;
    let instructions = options.callgrind.then(|| callgrind(name, nanos)).flatten();
    Some(Row { name: name.into(), nanos, allocations, instructions })
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the machine's own clock")]
pub fn time(batch: u32, round: &mut impl FnMut()) -> Duration {
    let begun = Instant::now();
    (0..batch).for_each(|_| round());
    begun.elapsed()
}

/// Instructions of one round: those of many rounds less those of few, divided by the difference. Setting up differs by some
/// million from run to run (hashes are seeded at random), so that what is cheap needs more rounds: 20 ms of them.
fn callgrind(name: &str, nanos: f64) -> Option<f64> {
    let rounds = (2e7 / nanos.max(1.0)).clamp(2e3, 4e5) as u64;
    let few = collected(name, 200)?;
    let many = collected(name, 200 + rounds)?;
    Some((many - few) / rounds as f64)
}

fn collected(name: &str, rounds: u64) -> Option<f64> {
    let me = std::env::current_exe().ok()?;
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(me)
        .args(["--rounds", name, &rounds.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.trim().parse().ok()
}

/// Prints rows as ratios of the first, which is the baseline.
pub fn print(title: &str, command: &str, rows: &[Row]) {
    let Some(base) = rows.first() else { return };
    println!("\n{title}\n  {command}\n");
    println!("  {:<44} {:>9} {:>7} {:>12} {:>7} {:>7}", "", "ns", "ratio", "instructions", "ratio", "allocs");
    for row in rows {
        let ratio = |a: f64, b: f64| if b > 0.0 { format!("{:.2}", a / b) } else { "-".into() };
        let (instructions, share) = match (row.instructions, base.instructions) {
            (Some(own), Some(base)) => (format!("{own:.0}"), ratio(own, base)),
            (Some(own), None) => (format!("{own:.0}"), "-".into()),
            (None, _) => ("-".into(), "-".into()),
        };
        let time = ratio(row.nanos, base.nanos);
        println!(
            "  {:<44} {:>9.1} {:>7} {:>12} {:>7} {:>7.2}",
            row.name, row.nanos, time, instructions, share, row.allocations
        );
    }
}
