//! Floor 6: what other processes say of themselves, ready to be put together.

use crate::admin::fleet::{Fleet, Question, Said};
use crate::metrics::edges::Edges;
use crate::metrics::report::{Process, Report};
use crate::metrics::slo::Objectives;
use serde::de::DeserializeOwned;

/// A report of processes that may be put together with others.
pub trait Told: DeserializeOwned + Default {
    /// Whom it is of.
    fn processes(&mut self) -> &mut Vec<Process>;

    /// Puts many together.
    ///
    /// # Errors
    /// When they do not add up.
    fn merge(all: Vec<Self>) -> Result<Self, String>;
}

impl Told for Report {
    fn processes(&mut self) -> &mut Vec<Process> {
        &mut self.processes
    }

    /// By process, so that whoever asks can still put them together.
    fn merge(all: Vec<Self>) -> Result<Self, String> {
        Self::merge(all, true)
    }
}

impl Told for Edges {
    fn processes(&mut self) -> &mut Vec<Process> {
        &mut self.processes
    }

    fn merge(all: Vec<Self>) -> Result<Self, String> {
        Ok(Self::merge(all))
    }
}

impl Told for Objectives {
    fn processes(&mut self) -> &mut Vec<Process> {
        &mut self.processes
    }

    fn merge(all: Vec<Self>) -> Result<Self, String> {
        Ok(Self::merge(all))
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

/// Asks all of a fleet for a report, and puts what they say together. One that is asked alone speaks for its peers too; of
/// many each speaks for itself, so that none counts twice.
///
/// # Errors
/// When their reports do not add up.
pub async fn ask<T: Told>(fleet: &Fleet, path: &str, query: &str) -> Result<T, String> {
    let local = if fleet.len() > 1 { "&local=1" } else { "" };
    let question = Question::get(format!("{path}?histograms=1{local}&{query}"));
    T::merge(fleet.ask(&question).await.into_iter().map(read).collect())
}
