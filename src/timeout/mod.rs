//! How long: deadlines, and limits of whole calls, of attempts, and of the silence between two frames.

pub mod arrival;
pub mod attempt;
pub mod body;
pub mod deadline;
pub mod inherited;
pub mod layer;
pub mod plan;
pub mod timed;
