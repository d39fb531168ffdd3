//! Floor 1: who is it: identities, the certificates that prove them, and the handshakes that check them.
//!
//! [`identity`] is plain data and needs no feature; the rest is floor 5 behind feature `tls`.

pub mod identity;
pub mod renew;

#[cfg(feature = "tls")]
pub mod acceptor;
#[cfg(feature = "tls")]
pub mod authority;
#[cfg(feature = "tls")]
pub mod bundle;
#[cfg(feature = "tls")]
pub mod connector;
#[cfg(feature = "tls")]
pub mod epoch;
#[cfg(feature = "tls")]
pub mod files;
#[cfg(feature = "tls")]
mod grpc;
#[cfg(feature = "tls")]
pub mod issuer;
#[cfg(feature = "tls")]
pub mod linkerd;
#[cfg(feature = "tls")]
pub mod material;
#[cfg(feature = "tls")]
pub mod prefixed;
#[cfg(feature = "tls")]
mod protobuf;
#[cfg(feature = "tls")]
pub mod rotate;
#[cfg(feature = "tls")]
pub mod session;
#[cfg(feature = "tls")]
pub mod svid;
#[cfg(feature = "tls")]
pub mod verify;
#[cfg(feature = "tls")]
pub mod workload_api;
