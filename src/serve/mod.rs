//! Floor 5: the server's end of the wire: accepting, detecting HTTP/1.1 and HTTP/2, limits, draining.
//!
//! [`serve`](listen::serve) takes any tower service of `http::Request`: an axum `Router`, tonic `Routes`, a
//! `service_fn`.

pub mod body;
pub mod handshake;
pub mod http;
pub mod listen;
pub mod settings;
pub mod stats;
pub mod strict;

mod connection;
mod framing;
mod peers;
mod wire;
