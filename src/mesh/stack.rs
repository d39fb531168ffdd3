//! Floor 6: the whole client stack on one page, outermost first, and why each layer stands where it stands.

use crate::balance::body::AskBody;
use crate::balance::layer::Balance;
use crate::error::Error;
use crate::mesh::dispatch::{Dispatch, Owning};
use crate::mesh::whole::{Whole, WholeLayer};
use crate::metrics::layer::{Metrics, MetricsLayer};
use crate::policy::call::MeshRequest;
use crate::retry::layer::{Retry, RetryLayer};
use crate::route::layer::{Act, ActLayer};
use crate::split::layer::Split;
use crate::stdx::rng::Rng;
use crate::timeout::attempt::{Attempt, AttemptLayer};
use crate::timeout::layer::{Timeout, TimeoutLayer};
use std::task::{Context, Poll};
use tower::ServiceBuilder;
use tower_layer::Layer;
use tower_service::Service;

/// What a request meets after it has met its route, layer by layer.
pub type Layers = Metrics<Act<Timeout<Retry<Split, AskBody>>>>;

/// What one replica is: its connections, below the timer of an attempt.
pub type Replica<C> = Attempt<C>;

/// What a backend is: its replicas, balanced.
pub type Backend<C> = Balance<Replica<C>>;

/// The stack of [`Mesh::client`](crate::mesh::client::Client) over connections `C`; `Call<B, Backend<C>>` in.
///
/// *route* is above all of it, since it writes what the rest read (`mesh/client.rs`). Limits and faults on purpose are not
/// in it: few routes have them, and those meet them between metrics and the rest (`mesh/guard.rs`).
pub fn layers(rng: Rng) -> Layers {
    ServiceBuilder::new()
        // above all, so that each call is counted once, whoever answers it
        .layer(MetricsLayer::default())
        // what the route does by itself: filters, redirects, answers
        .layer(ActLayer)
        // the timeout of the whole call: above the retries, because it is for all attempts together
        .layer(TimeoutLayer::request())
        // above split and balance, so that another attempt may go elsewhere
        .layer(RetryLayer::by_route(rng))
        // chooses the backend; below it stands one balancer per backend, not per route
        .service(Split)
}

/// What the mesh runs: [`layers`] in two futures, one for the call and one for each attempt. It costs a quarter less, since
/// each layer moves what passes through it; a test holds the two equal (`tests/whole.rs`).
pub type Outbound<W, S> = Whole<S, W>;

/// [`layers`] in two futures.
pub fn outbound(rng: Rng) -> Outbound<AskBody, Dispatch> {
    WholeLayer::new(rng).layer(Dispatch)
}

/// The part for the call around any service that attempts can be given to.
pub fn around<W, S>(rng: Rng, attempts: S) -> Outbound<W, Owning<S>> {
    WholeLayer::new(rng).layer(Owning(attempts))
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
