//! Where did the time go: contexts of traces in requests' headers, spans, and the access log.

pub mod b3;
pub mod binary;
pub mod context;
pub mod current;
pub mod id;
pub mod span;
pub mod w3c;
