//! ServiceProfiles from what is already there: API descriptions, live traffic, or a template.
//!
//! Without [`Refinements`](refine::Refinements) the documents are those that `linkerd profile` and
//! `linkerd viz profile` write for the same input.

pub mod draft;
#[cfg(feature = "cli")]
pub(crate) mod edition;
pub mod openapi;
#[cfg(feature = "cli")]
pub mod proto;
pub mod refine;
pub mod tap;
pub mod target;
pub mod template;
