//! Floor 7: `enmesh`, the command line tool: what the process does online, asked offline.

mod authorize;
mod ca;
mod catalog;
mod check;
mod config;
mod convert;
mod edges;
mod explain;
mod generate;
mod live;
mod output;
mod profile;
mod slo;
mod stat;
mod stream;
mod tap;
mod top;

use clap::{CommandFactory, Parser, Subcommand};
use output::{Done, Failure, Verdict};
use std::process::ExitCode;

/// Service profiles, routes and certificates of an enmesh, offline; and its traffic, live.
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
    /// Writes other meshes' documents as enmesh's, Linkerd's or Gateway API's
    Convert(convert::Args),
    /// Says where requests go and why
    Explain(explain::Args),
    /// Shows the traffic of running processes
    Stat(stat::Args),
    /// Shows the traffic of running processes by route
    Routes(stat::RoutesArgs),
    /// Shows who asks whom for what most
    Top(top::Args),
    /// Shows who talks to whom, and whether it is secured
    Edges(edges::Args),
    /// Shows how objectives are kept
    Slo(slo::Args),
    /// Shows live requests of running processes
    Tap(Box<tap::Args>),
    /// Makes and shows certificates for development
    Ca(ca::Args),
    /// Writes a shell's completions
    Completions(generate::CompletionsArgs),
    /// Writes the manual page
    Man(generate::ManArgs),
}

fn run(command: Command) -> Done {
    match command {
        Command::Profile(args) => profile::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Stat(args) => stat::run(&args),
        Command::Routes(args) => stat::routes(&args),
        Command::Top(args) => top::run(&args),
        Command::Edges(args) => edges::run(&args),
        Command::Slo(args) => slo::run(&args),
        Command::Tap(args) => tap::run(&args),
        Command::Ca(args) => ca::run(args),
        Command::Completions(args) => generate::completions(&args, Cli::command()),
        Command::Man(args) => generate::man(&args, Cli::command()),
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
