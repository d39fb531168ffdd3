//! How long: limits of whole calls, of attempts, and of the silence between two frames.

pub mod attempt;
pub mod body;
pub mod layer;
pub mod timed;
