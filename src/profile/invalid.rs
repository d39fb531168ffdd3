//! Floor 1: says what is wrong with a document: where, which value, why, and what to do.

use std::fmt;

/// What becomes of the thing a [`Fault`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The document is refused: the last good one stays.
    Rejected,
    /// The field has no effect here; the rest of the document is used.
    Ignored,
    /// The field is honoured as nearly as it can be; the message says how it differs.
    Approximated,
    /// The document loads, and requests that meet this will be answered with an error, as its dialect wants.
    RuntimeFailure,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected => "rejected",
            Self::Ignored => "ignored",
            Self::Approximated => "approximated",
            Self::RuntimeFailure => "runtime-failure",
        })
    }
}

/// A place in a text: line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// One thing that is wrong with a document, or that cannot be done as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field, from the root of the document: `spec.routes[2].timeout`.
    pub path: String,
    /// What is so, with the value in it: `is not a duration ("10 parsecs")`.
    pub problem: String,
    /// What to do: `write a number and a unit, such as 250ms or 1m30s`.
    pub remedy: String,
    /// What becomes of it.
    pub severity: Severity,
    /// Where the text has it, if it came from a text.
    pub place: Option<Place>,
}

impl Fault {
    /// A fault that refuses the document.
    pub fn rejected(path: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Rejected, path, problem, remedy)
    }

    /// A fault of any severity.
    pub fn new(
        severity: Severity,
        path: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { path: path.into(), problem: problem.into(), remedy: remedy.into(), severity, place: None }
    }

    /// The same fault, found at `place`.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
}

impl fmt::Display for Fault {
    /// `line:column: path: problem; remedy`; the severity stands before the path unless it is `rejected`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place {
            write!(f, "{}:{}: ", place.line, place.column)?;
        }
        if self.severity != Severity::Rejected {
            write!(f, "{}: ", self.severity)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.problem)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// Every fault of a document that was refused: all of them, not the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The faults, in the order of the document. Never empty.
    pub faults: Vec<Fault>,
}

impl From<Fault> for Invalid {
    fn from(fault: Fault) -> Self {
        Self { faults: vec![fault] }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}
