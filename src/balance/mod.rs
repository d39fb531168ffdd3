//! Which replica gets a request, and what is remembered of each.
//!
//! Alone, without a mesh: a service for each endpoint, and one that sends each request to one of them.
//!
//! ```
//! use enmesh::Error;
//! use enmesh::balance::layer::Balance;
//! use enmesh::discover::endpoint::{Endpoint, EndpointSet};
//! use enmesh::profile::settings::{BalancerSettings, BreakerSettings};
//! use enmesh::stdx::rng::Rng;
//! use http::{Request, Response};
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let breaker = BreakerSettings::default();
//! let balance = Balance::new("greeter", &BalancerSettings::default(), Some(&breaker), Rng::thread());
//! let endpoints = [8001, 8002].map(|port| Endpoint::new(([127, 0, 0, 1], port).into()));
//! balance.update(&EndpointSet::new(endpoints), |endpoint| {
//!     let name = endpoint.addr.to_string();
//!     service_fn(move |_: Request<()>| {
//!         let response = Response::new(name.clone());
//!         async { Ok::<_, Error>(response) }
//!     })
//! });
//! let response = balance.clone().oneshot(Request::new(())).await?;
//! assert!(response.body().endpoint().is_some());
//! assert_eq!(balance.inspect().endpoints.len(), 2);
//! # Ok(())
//! # }
//! ```

pub mod alias;
pub mod body;
mod contest;
pub mod cost;
pub mod count;
pub mod endpoint;
mod fade;
pub mod future;
pub mod hash;
pub mod inspect;
pub mod key;
pub mod layer;
mod leaf;
mod local;
pub mod maglev;
pub mod pick;
pub mod report;
pub mod ring;
mod routes;
mod rules;
pub mod session;
pub mod set;
mod standing;
pub mod subset;
pub mod tell;
pub mod ticket;
mod told;
mod update;
