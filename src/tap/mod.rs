//! Live requests, for whoever may see them: filters, events, and their text.

pub mod event;
pub mod filter;
pub mod hub;
pub mod layer;
pub mod redact;
pub mod text;
pub mod top;
