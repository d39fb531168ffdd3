//! Once more? Retries within a budget, with replayed bodies.

pub mod budget;
pub mod decide;
mod window;
