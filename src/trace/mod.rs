//! Where did the time go: contexts of traces in requests' headers, spans, and the access log.

pub mod access;
pub mod attempt;
pub mod b3;
pub mod binary;
pub mod context;
pub mod current;
pub mod id;
pub mod log;
#[cfg(feature = "otel")]
pub mod otel;
pub mod settings;
pub mod span;
pub mod w3c;
