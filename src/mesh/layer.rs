//! Floor 6: the client's policies around a service of the caller's own.

use crate::error::Error;
use crate::mesh::directory::Target;
use crate::mesh::dispatch::Owning;
use crate::mesh::services::Services;
use crate::mesh::stack::{self, Outbound, Replica};
use crate::metrics::names::Direction;
use crate::policy::call::{Call, Nobody};
use crate::stdx::rng::Rng;
use crate::trace::attempt::{TellAttempts, TellAttemptsLayer};
use futures::future::Either;
use http::{Request, Response};
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// Puts routes, metrics, timeouts and retries around any service of `http::Request<Replay<B>>`: reqwest, an in-memory
/// service, a client of another protocol. Balancing and connections are that service's own.
#[derive(Debug, Clone)]
pub struct MeshLayer {
    services: Arc<Services>,
    rng: Rng,
}

impl MeshLayer {
    pub(crate) fn new(services: Arc<Services>, rng: Rng) -> Self {
        Self { services, rng }
    }
}

impl<S> Layer<S> for MeshLayer {
    type Service = Meshed<S>;

    fn layer(&self, inner: S) -> Meshed<S> {
        // Nothing below tells of attempts: their spans begin here.
        let attempts = TellAttemptsLayer.layer(stack::replica(inner));
        let stack = stack::around(self.rng.clone(), attempts);
        Meshed { services: Arc::clone(&self.services), stack }
    }
}

/// What attempts go through: their timer, and whoever observes them.
type Attempts<S> = Owning<TellAttempts<Replica<S>>>;

/// The service of [`MeshLayer`].
#[derive(Debug, Clone)]
pub struct Meshed<S> {
    services: Arc<Services>,
    stack: Outbound<Nobody, Attempts<S>>,
}

impl<S, B, ResB> Service<Request<B>> for Meshed<S>
where
    Outbound<Nobody, Attempts<S>>: Service<Call<B, Target>, Response = Response<ResB>, Error = Error>,
{
    type Response = Response<ResB>;
    type Error = Error;
    type Future = Either<
        <Outbound<Nobody, Attempts<S>> as Service<Call<B, Target>>>::Future,
        Ready<Result<Response<ResB>, Error>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.stack.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let service = match self.services.find(request.uri(), request.headers()) {
            Ok(service) => service,
            Err(error) => return Either::Right(ready(Err(error))),
        };
        match self.services.watch.enter(Direction::Outbound, &service.policy.load(), &mut request) {
            Ok(scope) => Either::Left(self.stack.call(Call { http: request, scope })),
            Err(error) => Either::Right(ready(Err(error))),
        }
    }
}
