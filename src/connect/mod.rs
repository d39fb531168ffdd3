//! Floor 5: connections to one replica: dialling, handshakes, pools, and one request on one of them.
//!
//! [`Connection`](http::Connection) is the handle. It is cheap to clone, is always ready, and waits inside
//! `call`. Below it stand one pool of HTTP/1.1 keep-alive and one of multiplexed HTTP/2 connections per replica;
//! no two replicas share a lock.

pub mod body;
pub mod handshake;
pub mod http;
pub mod settings;
pub mod stats;
pub mod tcp;

mod backoff;
mod conn;
mod limits;
mod line;
mod open;
mod pool;
mod prepare;
mod refusal;
mod socket;
mod streams;
