//! Floor 5: where profiles and endpoints come from.
//!
//! Everything is a [`Source`](source::Source): a stream of whole snapshots for one service. A source keeps the last
//! good value, says what is wrong beside it, and recovers by itself; it spawns no task: whoever reads the stream
//! drives it (`mesh/update.rs`). [`Chain`](chain::Chain) puts sources in order of precedence.

#[cfg(feature = "dns")]
pub mod answers;
#[cfg(feature = "http")]
pub mod authorization;
pub mod chain;
#[cfg(feature = "files")]
pub mod disk;
#[cfg(feature = "dns")]
pub mod dns;
pub mod documents;
#[cfg(feature = "files")]
pub mod file;
pub mod fixed;
#[cfg(feature = "dns")]
pub mod hickory;
pub mod literal;
#[cfg(feature = "files")]
pub mod scan;
pub mod screen;
pub mod source;
