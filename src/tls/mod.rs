//! Floor 1: who is it: identities, the certificates that prove them, and the handshakes that check them.
//!
//! [`identity`] is plain data and needs no feature; the rest is floor 5 behind feature `tls` (or `ring`).

pub mod identity;
pub mod renew;

#[cfg(any(feature = "tls", feature = "ring"))]
pub mod acceptor;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod authority;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod bundle;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod connector;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod epoch;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod files;
#[cfg(any(feature = "tls", feature = "ring"))]
mod grpc;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod issuer;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod linkerd;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod material;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod outside;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod prefixed;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod provider;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod rotate;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod session;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod svid;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod verify;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod workload_api;
