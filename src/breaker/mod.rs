//! When an endpoint is left alone, for how long, and how it comes back.

pub mod consecutive;
pub mod detect;
pub mod event;
pub mod layer;
pub mod outlier;
pub mod success_rate;
pub mod ward;
