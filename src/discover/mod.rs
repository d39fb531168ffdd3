//! Floor 1: who is there: endpoints, and the difference of two sets of them.

pub mod endpoint;
pub mod parse;
