//! From the model back to text: `enmesh.dev/v1`, which says all of it, and `linkerd.io/v1alpha2`, which says what it
//! can.

pub(crate) mod condition;
pub mod emit;
pub mod enmesh;
pub mod linkerd;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod tree;
