//! Floor 7: a service mesh that you `cargo add`.

pub mod classify;
pub mod discover;
pub mod error;
pub mod policy;
pub mod profile;
pub mod stdx;
pub mod tls;
