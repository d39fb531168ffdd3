//! Floor 4: holds requests up and breaks them off on purpose.

use crate::classify::answer::{is_grpc, response};
use crate::error::Error;
use crate::fault::decide::{self, FaultPolicy, Injected};
use crate::metrics::route::{Injection, RouteMetrics};
use crate::policy::call::MeshRequest;
use crate::stdx::clock;
use crate::stdx::rng::Rng;
use http::Response;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

/// Injects the faults of each request's route; plain requests, which met none, get the layer's own, if it has any.
///
/// A request that is held up is so until its deadline at most, and is sent then; so a delay tries a caller's timeouts. One
/// that is broken off is answered as by a server, with `x-enmesh-error: fault`, and no layer below sees it: it is not
/// retried, and no breaker learns of it (Envoy's and gRPC A33's order). A request of a route without faults costs one
/// comparison.
#[derive(Debug, Clone)]
pub struct FaultLayer {
    own: Option<Arc<FaultPolicy>>,
    rng: Rng,
}

impl FaultLayer {
    /// Injects these into plain requests. `rng` draws the shares.
    pub fn new(own: FaultPolicy, rng: Rng) -> Self {
        Self { own: Some(Arc::new(own)), rng }
    }

    /// Injects what routes say.
    pub fn by_route(rng: Rng) -> Self {
        Self { own: None, rng }
    }
}

impl<S> Layer<S> for FaultLayer {
    type Service = Fault<S>;

    fn layer(&self, inner: S) -> Fault<S> {
        Fault { inner, layer: self.clone() }
    }
}

/// The service of [`FaultLayer`].
#[derive(Debug, Clone)]
pub struct Fault<S> {
    inner: S,
    layer: FaultLayer,
}

impl<S, R, B> Service<R> for Fault<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<B>> + Clone,
    S::Error: Into<Error>,
    B: Default,
{
    type Response = Response<B>;
    type Error = Error;
    type Future = FaultFuture<S, R, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let is_spared = match request.route() {
            Some(route) => route.faults().is_none(),
            None => self.layer.own.is_none(),
        };
        if is_spared {
            return FaultFuture { stage: Stage::Sent(self.inner.call(request)) };
        }
        self.inject(request)
    }
}

impl<S> Fault<S> {
    #[cold]
    fn inject<R, B>(&mut self, request: R) -> FaultFuture<S, R, B>
    where
        R: MeshRequest,
        S: Service<R> + Clone,
        B: Default,
    {
        let (policy, counts) = match request.route() {
            Some(route) => (route.faults(), Some(&route.metrics)),
            None => (self.layer.own.as_deref(), None),
        };
        let injected = policy.map(|policy| policy.decide(&self.layer.rng)).unwrap_or_default();
        if let Some(counts) = counts {
            count(injected, counts);
        }
        let answer =
            injected.abort.map(|abort| response(&decide::error(abort), is_grpc(request.http().headers())));
        let stage = match (injected.delay, answer) {
            (None, Some(answer)) => Stage::Answered(Some(Box::new(answer))),
            (None, None) => Stage::Sent(self.inner.call(request)),
            (Some(delay), answer) => {
                let left = request.state().and_then(|state| state.deadline);
                let left = left.map(|deadline| deadline.saturating_duration_since(clock::now()));
                let sleep = tokio::time::sleep(left.map_or(delay, |left| left.min(delay)));
                // The inner service that is ready is called; its clone is what is asked next.
                let clone = self.inner.clone();
                let service = std::mem::replace(&mut self.inner, clone);
                Stage::Held(Box::pin(Held { sleep, then: Some((service, request, answer)) }))
            }
        };
        FaultFuture { stage }
    }
}

/// Counts what is done to a request.
pub(crate) fn count(injected: Injected, counts: &RouteMetrics) {
    if injected.delay.is_some() {
        counts.injected(Injection::Delay);
    }
    if injected.abort.is_some() {
        counts.injected(Injection::Abort);
    }
}

/// A request that is held up.
#[pin_project]
struct Held<S, R, B> {
    #[pin]
    sleep: Sleep,
    then: Option<(S, R, Option<Response<B>>)>,
}

#[pin_project(project = Step)]
enum Stage<F, S, R, B> {
    Sent(#[pin] F),
    Held(Pin<Box<Held<S, R, B>>>),
    Answered(Option<Box<Response<B>>>),
}

/// The future of [`Fault`].
#[pin_project]
pub struct FaultFuture<S, R, B>
where
    S: Service<R>,
{
    #[pin]
    stage: Stage<S::Future, S, R, B>,
}

impl<S, R, B> fmt::Debug for FaultFuture<S, R, B>
where
    S: Service<R>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Sent(_) => "sent",
            Stage::Held(_) => "held",
            Stage::Answered(_) => "answered",
        };
        f.debug_struct("FaultFuture").field("stage", &stage).finish()
    }
}

impl<S, R, B> Future for FaultFuture<S, R, B>
where
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Error>,
{
    type Output = Result<Response<B>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            let next = match stage.as_mut().project() {
                Step::Sent(inner) => return inner.poll(cx).map_err(Into::into),
                Step::Answered(answer) => {
                    return Poll::Ready(answer.take().map(|answer| *answer).ok_or(Error::Closed));
                }
                Step::Held(held) => {
                    let held = held.as_mut().project();
                    ready!(held.sleep.poll(cx));
                    match held.then.take() {
                        Some((_, _, Some(answer))) => Stage::Answered(Some(Box::new(answer))),
                        Some((mut service, request, None)) => Stage::Sent(service.call(request)),
                        None => Stage::Answered(None),
                    }
                }
            };
            stage.set(next);
        }
    }
}
