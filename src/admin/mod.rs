//! Floor 6: what operators and their tools ask a process: is it alive, is it ready, how does it fare.

pub mod readiness;
#[cfg(feature = "admin")]
pub mod server;
