//! Floor 6: the server side as a layer: routes and counts what arrives, and turns errors into responses.

use crate::authz::layer::{Authz, AuthzLayer, Gate};
use crate::balance::tell::{InFlight, TellLoad, TellLoadLayer};
use crate::classify::answer::RespondBody;
use crate::classify::body::Watched;
use crate::classify::respond::{Respond, RespondLayer};
use crate::error::{BoxError, Error};
use crate::limit::body::Placed;
use crate::limit::layer::{Limit, LimitLayer};
use crate::mesh::services::Services;
use crate::mesh::stack::{Plain, PlainLayer};
use crate::metrics::arrivals::Arrivals;
use crate::metrics::layer::{Meter, Metrics, MetricsLayer};
use crate::metrics::names::Direction;
use crate::policy::call::Call;
use crate::policy::compile::Policy;
use crate::serve::http::Remote;
use crate::timeout::arrival::{Arrival, ArrivalLayer, Inheriting};
use crate::timeout::body::TimedBody;
use arc_swap::ArcSwap;
use futures::future::Either;
use http::{Extensions, HeaderName, Request, Response, header};
use http_body::Body;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::ServiceBuilder;
use tower_http::sensitive_headers::{SetSensitiveRequestHeaders, SetSensitiveRequestHeadersLayer};
use tower_layer::Layer;
use tower_service::Service;

/// What arrives meets its route in the profile of this process's own service, is counted by it
/// (`direction="inbound"`), and gets a response whatever happens: the service below may fail, this one cannot.
///
/// It fits under axum's `Router::layer`, tonic's servers and hyper alike.
#[derive(Debug, Clone)]
pub struct InboundLayer {
    policy: Arc<ArcSwap<Policy<()>>>,
    /// Held, since they keep the policy up to date.
    services: Arc<Services>,
    gate: Option<Gate>,
    arrivals: Arc<Arrivals>,
    /// One for all servers of the process: callers ask how busy that is.
    tell: TellLoadLayer,
    /// Headers whose values `Debug` hides.
    secret: Arc<[HeaderName]>,
}

impl InboundLayer {
    pub(crate) fn new(services: Arc<Services>, gate: Option<Gate>, arrivals: Arc<Arrivals>) -> Self {
        let (policy, tell) = {
            let directory = services.directory();
            (Arc::clone(directory.inbound()), directory.tell().clone())
        };
        let secret = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE];
        Self { policy, services, gate, arrivals, tell, secret: Arc::from(secret) }
    }
}

/// Where the server puts the caller's address.
fn address_of(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<Remote>().map(|remote| remote.addr.ip())
}

impl<S> Layer<S> for InboundLayer {
    type Service = Inbound<S>;

    fn layer(&self, inner: S) -> Inbound<S> {
        let (policy, services) = (Arc::clone(&self.policy), Arc::clone(&self.services));
        let authz = match &self.gate {
            Some(gate) => AuthzLayer::new(gate.clone(), address_of),
            None => AuthzLayer::open(),
        };
        ServiceBuilder::new()
            // outermost, since every layer below may fail
            .layer(RespondLayer)
            // before anybody looks at a request, so that nobody prints what is secret in it
            .layer(SetSensitiveRequestHeadersLayer::from_shared(Arc::clone(&self.secret)))
            // writes what the rest read
            .layer_fn(|inner| Enter { inner, policy: Arc::clone(&policy), services: Arc::clone(&services) })
            .layer(MetricsLayer::default().with_arrivals(Arc::clone(&self.arrivals)))
            // below the metrics, so that what has no time left is counted; hands the deadline down to what the
            // application sends meanwhile
            .layer(ArrivalLayer::new())
            // below the metrics, so that what is refused is counted; it judges what the app sees
            .layer(authz)
            // above the limits, so that who waits for a place counts as load
            .layer(self.tell.clone())
            // below the gate, so that nobody who may not come in uses up what others may; last, so that what waited is
            // served at once or not at all
            .layer(LimitLayer::by_route().with_address(address_of))
            .layer(PlainLayer)
            .service(inner)
    }
}

/// The service of [`InboundLayer`].
pub type Inbound<S> =
    Respond<SetSensitiveRequestHeaders<Enter<Metrics<Arrival<Authz<TellLoad<Limit<Plain<S>>>>>>>>>;

/// The body of its responses.
pub type InboundBody<B> = RespondBody<Watched<Inheriting<TimedBody<Watched<Placed<B>, InFlight>>>, Meter>>;

/// Gives each request its route.
#[derive(Debug, Clone)]
pub struct Enter<S> {
    inner: S,
    policy: Arc<ArcSwap<Policy<()>>>,
    services: Arc<Services>,
}

impl<S, B, ResB> Service<Request<B>> for Enter<S>
where
    S: Service<Call<B, ()>, Response = Response<ResB>, Error = Error>,
{
    type Response = Response<ResB>;
    type Error = Error;
    type Future = Either<S::Future, Ready<Result<Response<ResB>, Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.services.watch.enter(Direction::Inbound, &self.policy.load(), &mut request) {
            Ok(scope) => Either::Left(self.inner.call(Call { http: request, scope })),
            Err(error) => Either::Right(ready(Err(error))),
        }
    }
}

/// Proves at compile time that an application fits.
#[expect(dead_code, reason = "only its type matters")]
fn fits<S, B>(
    layer: &InboundLayer,
    app: S,
) -> impl Service<Request<()>, Response = Response<InboundBody<B>>, Error = Infallible>
where
    S: Service<Request<()>, Response = Response<B>> + Clone,
    S::Error: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    layer.layer(app)
}
