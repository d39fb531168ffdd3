//! Floor 6: what operators and their tools ask a process: is it alive, is it ready, how does it fare.

#[cfg(feature = "admin")]
pub mod asked;
#[cfg(feature = "admin")]
pub mod crowd;
#[cfg(feature = "admin")]
pub(crate) mod dial;
#[cfg(feature = "admin")]
pub mod fleet;
#[cfg(feature = "admin")]
pub mod guard;
#[cfg(feature = "admin")]
pub(crate) mod page;
pub mod readiness;
#[cfg(feature = "admin")]
pub mod server;
#[cfg(feature = "admin")]
pub mod told;
