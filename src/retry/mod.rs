//! Once more? Retries within a budget, with replayed bodies.

pub mod body;
pub mod budget;
pub mod decide;
pub mod layer;
pub mod marks;
pub mod replay;
mod window;
