//! Which rule a request falls under: ordered first match, at a cost that does not grow with the number of rules.
//!
//! [`matcher::Matcher`] decides, [`explain::explain`] says why.

mod build;
mod compile;
mod condition;
pub mod cors;
pub mod explain;
pub mod filter;
mod fold;
mod hash;
pub mod head;
mod index;
pub mod layer;
pub mod matcher;
mod pattern;
pub(crate) mod query;
pub mod redirect;
mod text;
mod texts;
mod trie;
mod words;
