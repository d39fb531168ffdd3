//! Floor 7: a service mesh that you `cargo add`.
#![doc = include_str!("../README.md")]
// What a library must not do and a test may.
#![cfg_attr(
    not(test),
    warn(
        unreachable_pub,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod admin;
pub mod authz;
pub mod balance;
pub mod breaker;
pub mod classify;
#[cfg(feature = "http")]
pub mod connect;
pub mod control;
pub mod discover;
pub mod error;
pub mod fault;
pub mod limit;
pub mod mesh;
pub mod metrics;
pub mod policy;
pub mod profile;
pub mod retry;
pub mod route;
#[cfg(feature = "http")]
pub mod serve;
pub mod split;
pub mod stdx;
pub mod tap;
pub mod timeout;
pub mod tls;
pub mod trace;

pub use error::{BoxError, Error, Scope};
#[cfg(feature = "reqwest")]
pub use mesh::reqwest;
#[cfg(feature = "http")]
pub use mesh::{
    body::ReqBody,
    builder::MeshBuilder,
    client::{Client, RequestExt},
    response::{ResBody, ResponseExt},
    runtime::Mesh,
};
pub use policy::call::{CallInfo, CallOptions};
pub use profile::service::ServiceProfile;
