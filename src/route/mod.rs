//! Which rule a request falls under: ordered first match, at a cost that does not grow with the number of rules.
//!
//! [`matcher::Matcher`] decides, [`explain::explain`] says why.

mod build;
mod compile;
mod condition;
pub mod explain;
<<<<<<< HEAD
pub mod filter;
pub mod head;
pub mod layer;
=======
mod fold;
mod hash;
pub mod head;
mod index;
>>>>>>> dd9f217 (route: find the first match through an index)
pub mod matcher;
mod pattern;
mod query;
pub mod redirect;
mod text;
mod texts;
mod trie;
mod words;
