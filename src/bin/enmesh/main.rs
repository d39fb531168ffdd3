//! Floor 7: `enmesh`, the command line tool: what the process does online, asked offline.

mod authorize;
mod ca;
mod catalog;
mod check;
mod config;
mod convert;
mod explain;
mod output;
mod profile;

use clap::{Parser, Subcommand};
use output::{Done, Failure, Verdict};
use std::process::ExitCode;

/// Service profiles, routes and certificates of an enmesh, offline.
///
/// Exit status: 0 done, 1 the check found faults, 2 wrong use, 3 input unreadable.
#[derive(Debug, Parser)]
#[command(name = "enmesh", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes a ServiceProfile from an API description, or a template to begin with
    Profile(profile::Args),
    /// Parses and compiles documents of any dialect and tells every fault
    Check(check::Args),
    /// Writes other meshes' documents as enmesh's or Linkerd's
    Convert(convert::Args),
    /// Says where requests go and why
    Explain(explain::Args),
    /// Makes and shows certificates for development
    Ca(ca::Args),
}

fn run(command: Command) -> Done {
    match command {
        Command::Profile(args) => profile::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Ca(args) => ca::run(args),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(Verdict::Good) | Err(Failure::ReaderGone) => ExitCode::SUCCESS,
        Ok(Verdict::Faulty) => ExitCode::from(1),
        Err(Failure::Usage(what)) => {
            eprintln!("error: {what}");
            ExitCode::from(2)
        }
        Err(Failure::Unreadable(what)) => {
            eprintln!("error: {what}");
            ExitCode::from(3)
        }
    }
}
