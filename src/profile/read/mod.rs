//! From nodes to the model: the fields of `linkerd.io/v1alpha2` and `enmesh.dev/v1`, one file a concern.
//!
//! `docs/profile.md` is the reference of what is read here.

pub(crate) mod action;
pub(crate) mod condition;
pub(crate) mod dialect;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod words;
