//! Once more? Retries within a budget, with replayed bodies.
//!
//! Alone, without a mesh:
//!
//! ```
//! use bytes::Bytes;
//! use enmesh::profile::settings::RetrySettings;
//! use enmesh::retry::budget::{self, Budget};
//! use enmesh::retry::decide::RetryPolicy;
//! use enmesh::retry::layer::RetryLayer;
//! use enmesh::retry::replay::Replay;
//! use enmesh::stdx::rng::Rng;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use std::sync::Arc;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! // One budget for all who send to a service: there is no retry without one.
//! let policy = RetryPolicy::compile(&RetrySettings::default(), Arc::new(Budget::new(&budget::DEFAULT)));
//! let mut failures = 1;
//! let flaky = service_fn(move |request: Request<Replay<Full<Bytes>>>| {
//!     let status = if failures > 0 { 503 } else { 200 };
//!     failures = 0;
//!     async move {
//!         let sent = request.into_body().collect().await?.to_bytes();
//!         Ok::<_, enmesh::BoxError>(Response::builder().status(status).body(Full::new(sent))?)
//!     }
//! });
//! let service = ServiceBuilder::new().layer(RetryLayer::new(policy, Rng::thread())).service(flaky);
//! let response = service.oneshot(Request::get("http://svc/").body(Full::from("hello"))?).await?;
//! assert_eq!((response.status().as_u16(), response.body().attempts()), (200, 2));
//! # Ok(())
//! # }
//! ```

pub(crate) mod again;
pub mod body;
pub mod budget;
pub mod decide;
pub mod hedge;
pub mod layer;
pub mod marks;
mod race;
pub mod replay;
mod window;
