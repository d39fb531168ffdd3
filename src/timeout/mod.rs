//! How long: limits of whole calls, of attempts, and of the silence between two frames.

pub mod body;
pub mod layer;
