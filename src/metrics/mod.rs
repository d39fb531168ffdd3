//! What happened: counters and histograms through the `metrics` facade, and a live reading without any exporter.
//!
//! Families, labels and buckets are Linkerd's, so its dashboards work (linkerd.md §8.2). Handles are resolved when
//! a policy is compiled, or once when a status is first seen; never by name for a request.

pub mod layer;
pub mod names;
#[cfg(feature = "prometheus")]
pub mod prometheus;
pub mod registry;
pub mod route;
pub mod series;
pub mod set;
pub mod stat;
