//! From the model back to text: `enmesh.dev/v1`, which says all of it; `linkerd.io/v1alpha2` and Gateway API's
//! HTTPRoute, which say what they can.

pub(crate) mod condition;
pub mod emit;
pub mod enmesh;
pub mod gateway_api;
pub mod linkerd;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod tree;
