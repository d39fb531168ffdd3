//! Floor 7: a service mesh that you `cargo add`.

pub mod discover;
pub mod profile;
pub mod stdx;
