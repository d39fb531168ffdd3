//! How much: rates, requests in flight, and who is refused first.

pub mod keyed;
pub mod rate;
