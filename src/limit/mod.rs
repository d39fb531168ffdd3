//! How much: rates, requests in flight, and who is refused first.
//!
//! Alone, without a mesh:
//!
//! ```
//! use enmesh::Error;
//! use enmesh::limit::layer::LimitLayer;
//! use enmesh::policy::limits::LimitPolicy;
//! use enmesh::profile::settings::{Limits, RateLimit, RateScope};
//! use http::{Request, Response};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let one_a_minute =
//!     RateLimit { scope: RateScope::Total, requests: 1, per: Duration::from_secs(60), burst: None };
//! let limits = Limits { rates: vec![one_a_minute], ..Limits::default() };
//! let app = service_fn(|_: Request<()>| async { Ok::<_, Error>(Response::new(String::new())) });
//! let service = ServiceBuilder::new().layer(LimitLayer::new(LimitPolicy::new(&limits))).service(app);
//! assert!(service.clone().oneshot(Request::new(())).await.is_ok());
//! let error = service.oneshot(Request::new(())).await.unwrap_err();
//! assert!(error.retry_after().is_some_and(|wait| wait > Duration::from_secs(50)));
//! # }
//! ```

pub mod body;
pub mod concurrency;
pub mod delay;
pub mod gradient;
pub mod keyed;
pub mod layer;
pub mod priority;
pub mod queue;
pub mod rate;
pub mod sample;
pub mod vegas;
