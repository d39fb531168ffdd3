//! How much: rates, requests in flight, and who is refused first.

pub mod body;
pub mod concurrency;
pub mod delay;
pub mod gradient;
pub mod keyed;
pub mod layer;
pub mod priority;
pub mod queue;
pub mod rate;
pub mod sample;
pub mod vegas;
