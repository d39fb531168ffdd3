//! Which rule a request falls under: ordered first match, at a cost that does not grow with the number of rules.
//!
//! [`matcher::Matcher`] decides, [`explain::explain`] says why.

mod compile;
mod condition;
pub mod explain;
pub mod filter;
pub mod head;
pub mod layer;
pub mod matcher;
mod pattern;
mod query;
pub mod redirect;
mod text;
mod words;
