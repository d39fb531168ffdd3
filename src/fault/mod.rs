//! Break it on purpose: delays and aborts for a share of a route's requests.

pub mod decide;
pub mod layer;
