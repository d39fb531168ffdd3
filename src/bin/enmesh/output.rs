//! Floor 7: results go to standard output, all else to standard error; and the exit status.

use enmesh::profile::invalid::{Fault, Place};
use enmesh::profile::write::emit;
use serde_json::Value;
use std::io::{ErrorKind, Write, stdout};

/// How a command ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Exit status 0.
    Good,
    /// Exit status 1: what was read has faults.
    Faulty,
}

impl Verdict {
    pub(crate) fn faulty_if(faulty: bool) -> Self {
        if faulty { Self::Faulty } else { Self::Good }
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit status 2: it was asked wrongly.
    Usage(String),
    /// Exit status 3: its input cannot be read, or its output not be written.
    Unreadable(String),
    /// Whoever read the output has seen enough: `enmesh … | head`.
    ReaderGone,
}

/// How a command ended.
pub(crate) type Done = Result<Verdict, Failure>;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For programs
    Json,
    /// For files
    Yaml,
    /// For people
    Table,
}

/// Writes a result.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::Unreadable(format!("standard output: {error}")),
    })
}

/// A document in YAML or in one line of JSON, with a line feed.
pub(crate) fn document(value: &Value, format: Format) -> String {
    match format {
        Format::Yaml => emit::yaml(value),
        Format::Json | Format::Table => format!("{value}\n"),
    }
}

/// `file:line: path: what is so (value); what to do (column 7)`. The place is that of the fault, else of its document.
pub(crate) fn fault_line(file: &str, fault: &Fault, document: Option<Place>) -> String {
    let told = Fault { place: None, ..fault.clone() };
    match fault.place.or(document) {
        Some(place) => format!("{file}:{}: {told} (column {})", place.line, place.column),
        None => format!("{file}: {told}"),
    }
}
