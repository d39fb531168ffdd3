//! All together: the client stack on one page ([`stack`]), the builder, updates, and what can be asked of a mesh.

#[cfg(feature = "admin")]
mod admin;
#[cfg(feature = "admin")]
mod api;
pub mod body;
#[cfg(feature = "http")]
pub mod builder;
#[cfg(feature = "http")]
mod caller;
#[cfg(feature = "http")]
pub mod client;
#[cfg(feature = "http")]
mod dialling;
#[cfg(feature = "http")]
pub mod directory;
pub mod dispatch;
pub mod ending;
#[cfg(feature = "http")]
pub mod env;
mod guard;
#[cfg(feature = "http")]
mod hide;
#[cfg(feature = "http")]
pub mod history;
#[cfg(feature = "http")]
pub mod inbound;
#[cfg(all(feature = "http", not(any(feature = "tls", feature = "ring"))))]
mod insecure;
#[cfg(feature = "http")]
pub mod inspect;
#[cfg(feature = "http")]
pub mod layer;
#[cfg(feature = "admin")]
mod live;
#[cfg(feature = "admin")]
mod look;
#[cfg(feature = "admin")]
mod pages;
#[cfg(feature = "http")]
mod recording;
#[cfg(feature = "http")]
mod replicas;
#[cfg(feature = "reqwest")]
pub mod reqwest;
#[cfg(feature = "http")]
pub mod response;
#[cfg(feature = "http")]
pub mod runtime;
#[cfg(any(feature = "tls", feature = "ring"))]
pub mod secure;
#[cfg(feature = "http")]
pub mod services;
#[cfg(feature = "http")]
pub mod settled;
#[cfg(feature = "http")]
pub(crate) mod sources;
#[cfg(feature = "http")]
mod special;
pub mod stack;
#[cfg(feature = "http")]
pub mod stats;
#[cfg(feature = "admin")]
mod tap;
#[cfg(feature = "http")]
pub mod tasks;
#[cfg(feature = "http")]
mod telemetry;
#[cfg(feature = "http")]
mod watch;
#[cfg(feature = "http")]
mod watching;
pub mod whole;
