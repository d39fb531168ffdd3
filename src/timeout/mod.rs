//! How long: deadlines, and limits of whole calls, of attempts, and of the silence between two frames.
//!
//! Alone, without a mesh:
//!
//! ```
//! use enmesh::Error;
//! use enmesh::timeout::layer::TimeoutLayer;
//! use http::{Request, Response};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let slow = service_fn(|_: Request<()>| std::future::pending::<Result<Response<String>, Error>>());
//! let layer = TimeoutLayer::request().with_own(Duration::from_millis(1));
//! let service = ServiceBuilder::new().layer(layer).service(slow);
//! let error = service.oneshot(Request::new(())).await.unwrap_err();
//! assert!(matches!(error, Error::Timeout { .. }));
//! assert_eq!((error.to_status().as_u16(), error.to_grpc()), (504, 4));
//! # }
//! ```

pub mod arrival;
pub mod attempt;
pub mod body;
pub mod deadline;
pub mod inherited;
pub mod layer;
pub mod plan;
pub mod timed;
