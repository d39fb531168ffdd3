//! Floor 6: the whole client stack on one page, outermost first, and why each layer stands where it stands.

use crate::balance::body::AskBody;
use crate::balance::layer::Balance;
use crate::error::Error;
use crate::mesh::whole::{Whole, WholeLayer};
use crate::policy::call::MeshRequest;
use crate::retry::layer::{Retry, RetryLayer};
use crate::split::layer::Split;
use crate::stdx::rng::Rng;
use crate::timeout::attempt::{Attempt, AttemptLayer};
use std::task::{Context, Poll};
use tower::ServiceBuilder;
use tower_layer::Layer;
use tower_service::Service;

/// What a request meets after it has met its route.
pub type Outbound<W, S> = Whole<Retry<S, W>, W>;

/// What one replica is: its connections, below the timer of an attempt.
pub type Replica<C> = Attempt<C>;

/// What a backend is: its replicas, balanced.
pub type Backend<C> = Balance<Replica<C>>;

/// The stack of [`Mesh::client`](crate::mesh::client) over connections `C`; `Call<B, Backend<C>>` in.
///
/// *route* is above all of it, since it writes what the rest read (`mesh/client.rs`).
pub fn outbound(rng: Rng) -> Outbound<AskBody, Split> {
    around(rng, Split)
}

/// The stack around any service that a call can be given to.
pub fn around<W, S>(rng: Rng, inner: S) -> Outbound<W, S> {
    ServiceBuilder::new()
        // metrics, what the route does by itself, and the timeout of the whole call: above the retries, because they are for
        // all attempts together
        .layer(WholeLayer::default())
        // above split and balance, so that another attempt may go elsewhere
        .layer(RetryLayer::by_route(rng))
        // chooses the backend; below it stands one balancer per backend, not per route
        .service(inner)
}

/// The stack of one replica, below its balancer's ticket.
pub fn replica<C>(connection: C) -> Replica<C> {
    // below the ticket, so that breaker and latency see a slow replica as slow and not as cancelled; what is below it knows
    // nothing of routes
    AttemptLayer::default().layer(connection)
}

/// Takes the HTTP request out of a [`Call`](crate::policy::call::Call).
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainLayer;

impl<S> Layer<S> for PlainLayer {
    type Service = Plain<S>;

    fn layer(&self, inner: S) -> Plain<S> {
        Plain { inner }
    }
}

/// The service of [`PlainLayer`].
#[derive(Debug, Clone)]
pub struct Plain<S> {
    inner: S,
}

impl<S, R> Service<R> for Plain<S>
where
    R: MeshRequest,
    S: Service<http::Request<R::Body>>,
    S::Error: Into<Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: R) -> S::Future {
        self.inner.call(request.into_http())
    }
}
