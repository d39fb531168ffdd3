//! Which replica gets a request, and what is remembered of each.

pub mod body;
pub mod cost;
pub mod endpoint;
pub mod inspect;
pub mod layer;
pub mod pick;
pub mod ticket;
