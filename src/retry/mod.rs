//! Once more? Retries within a budget, with replayed bodies.

pub mod budget;
pub mod decide;
pub mod replay;
mod window;
