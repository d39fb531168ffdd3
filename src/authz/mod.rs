//! May this caller do this?
//!
//! [`settings`] are the words, [`path`], [`header`] and [`client`] decide parts, [`rules`] and [`rates`] are settings
//! compiled for requests, [`layer`] stands before the application.

mod clarity;
pub mod client;
pub mod header;
pub mod layer;
pub mod linkerd;
pub mod network;
pub mod parse;
pub mod path;
pub mod rates;
pub mod rules;
pub mod settings;
pub mod smi;
