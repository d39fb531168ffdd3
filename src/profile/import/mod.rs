//! Other meshes' documents as profiles: one file, or a few with one prefix, for each dialect.
//!
//! [`load::load`] takes documents of all dialects at once. What a dialect says and the model cannot keep is a
//! fault: `rejected` where security or destination would change, otherwise `ignored`, `approximated` or
//! `runtime-failure`.

pub mod cluster;
mod egress;
mod gateway_action;
mod gateway_api;
mod gateway_filter;
mod gateway_match;
mod gateway_parent;
mod gateway_policy;
mod gateway_route;
mod linkerd;
pub mod load;
mod merge;
pub(crate) mod smi;
