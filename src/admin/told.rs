//! Floor 6: what other processes say of themselves, ready to be put together.

use crate::admin::fleet::Said;
use crate::metrics::edges::Edges;
use crate::metrics::report::{Process, Report};
use crate::metrics::slo::Objectives;
use serde::de::DeserializeOwned;

/// A report of processes that may be put together with others.
pub trait Told: DeserializeOwned + Default {
    /// Whom it is of.
    fn processes(&mut self) -> &mut Vec<Process>;
}

impl Told for Report {
    fn processes(&mut self) -> &mut Vec<Process> {
        &mut self.processes
    }
}

impl Told for Edges {
    fn processes(&mut self) -> &mut Vec<Process> {
        &mut self.processes
    }
}

impl Told for Objectives {
    fn processes(&mut self) -> &mut Vec<Process> {
        &mut self.processes
    }
}

/// What a process said; a report of nothing but its error if it said nothing of use, so that the others are still shown.
pub fn read<T: Told>(said: Said) -> T {
    let read = said.answer.and_then(|value| {
        T::deserialize(value).map_err(|error| format!("answered with no report of this version: {error}"))
    });
    let mut report = read.unwrap_or_else(|error| {
        let mut nothing = T::default();
        nothing.processes().push(Process { error: Some(error), ..Process::default() });
        nothing
    });
    for process in report.processes().iter_mut().filter(|process| process.addr.is_empty()) {
        process.addr.clone_from(&said.addr);
    }
    report
}
