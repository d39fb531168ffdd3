//! Once more? Retries within a budget, with replayed bodies.

mod again;
pub mod body;
pub mod budget;
pub mod decide;
pub mod hedge;
pub mod layer;
pub mod marks;
mod race;
pub mod replay;
mod window;
