//! Linkerd's policy documents, made into [`AuthzSettings`](crate::authz::settings::AuthzSettings).

pub mod compile;
pub mod documents;
pub mod matches;
pub mod words;
