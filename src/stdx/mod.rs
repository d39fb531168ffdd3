//! Floor 0: what we wish the standard library had. The only doors for time ([`clock`]) and chance ([`rng`]).

pub mod backoff;
pub(crate) mod base64;
pub mod clock;
pub(crate) mod copy;
pub mod diff;
pub(crate) mod epoch;
pub mod gcra;
pub mod histogram;
pub mod history;
pub mod moment;
pub mod packed;
pub mod protobuf;
pub mod rng;
pub mod sync;
pub mod traffic;
