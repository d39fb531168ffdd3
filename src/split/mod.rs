//! Which backend: weighted choice among the services that a route leads to.

pub mod layer;
pub mod mirror;
pub mod pick;
pub mod sticky;
pub mod tee;
