//! Which rule a request falls under: ordered first match, at a cost that does not grow with the number of rules.
//!
//! [`matcher::Matcher`] decides, [`explain::explain`] says why.

mod compile;
mod condition;
pub mod explain;
pub mod head;
pub mod matcher;
mod pattern;
mod query;
mod text;
mod words;
