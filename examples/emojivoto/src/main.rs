//! emojivoto: the emoji voting demo, over enmesh.

mod args;
mod bot;
mod catalogue;
mod demo;
mod emoji;
mod env;
mod listen;
mod mesh;
mod one;
mod prom;
mod screen;
mod stop;
mod table;
mod voting;
mod web;

/// Messages, clients and servers, made from `proto/` by the build script.
#[expect(
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "nobody wrote this by hand"
)]
mod proto {
    tonic::include_proto!("emojivoto.v1");
}

use args::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match args::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(fault) => {
            eprintln!("emojivoto: {fault}");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("emojivoto: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| format!("no runtime: {error}"))?;
    match command {
        Command::Print(text) => {
            print!("{text}");
            Ok(())
        }
        Command::Demo(demo) => runtime.block_on(demo::run(demo)),
        Command::One(service) => {
            let filter = tracing_subscriber::EnvFilter::try_from_default_env();
            let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            runtime.block_on(one::run(service))
        }
    }
}
