//! When an endpoint is left alone, for how long, and how it comes back.
//!
//! Alone, without a mesh (a [balancer](crate::balance::layer::Balance) has breakers of its own):
//!
//! ```
//! use enmesh::Error;
//! use enmesh::breaker::layer::BreakerLayer;
//! use enmesh::profile::settings::{BreakerSettings, Detector, FailureClass};
//! use enmesh::stdx::rng::Rng;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let detectors = vec![Detector::Consecutive { class: FailureClass::Any, threshold: 2 }];
//! let settings = BreakerSettings { detectors, ..BreakerSettings::default() };
//! let broken =
//!     service_fn(|_: Request<()>| async { Err::<Response<String>, _>(Error::Inner("broken".into())) });
//! let service = ServiceBuilder::new().layer(BreakerLayer::new(settings, Rng::thread())).service(broken);
//! for _ in 0..2 {
//!     assert!(service.clone().oneshot(Request::new(())).await.is_err());
//! }
//! let error = service.clone().oneshot(Request::new(())).await.unwrap_err();
//! assert!(matches!(error, Error::BreakerOpen { .. }), "it is left alone");
//! assert!(service.state().is_some());
//! # }
//! ```

pub mod consecutive;
pub mod detect;
pub mod event;
pub mod layer;
pub mod outlier;
pub mod success_rate;
pub mod ward;
