//! Floor 4: ends what takes too long: a whole call, or one attempt.
//!
//! The inner future is polled first and a timer is armed only when it is pending, so that a call that ends at once
//! pays for none.

use crate::error::{BoxError, Error, Scope};
use crate::policy::call::MeshRequest;
use crate::stdx::clock::{self, Duration, Instant};
use crate::timeout::body::{Limits, TimedBody};
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

/// Where a timeout's limits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The whole call: the deadline of its state, and its route's limits.
    Request,
    /// One attempt: its route's limit, to the response's headers.
    Attempt,
}

/// Ends calls or attempts that take too long, with [`Error::Timeout`].
///
/// A whole call is limited to the end of its response's body (`timeouts.request`: the body then ends with an error) and
/// to its headers (`timeout` of a ServiceProfile); an attempt to its headers. What the call's own deadline leaves is
/// always the most. On expiry the inner future is dropped at once, which cancels it.
#[derive(Debug, Clone, Copy)]
pub struct TimeoutLayer {
    source: Source,
    own: Option<Duration>,
}

impl TimeoutLayer {
    /// Limits whole calls, by their routes.
    pub fn request() -> Self {
        Self { source: Source::Request, own: None }
    }

    /// Limits attempts, by their routes.
    pub fn attempt() -> Self {
        Self { source: Source::Attempt, own: None }
    }

    /// The limit for requests that met no route.
    #[must_use]
    pub fn with_own(mut self, limit: Duration) -> Self {
        self.own = Some(limit);
        self
    }

    fn bounds<R: MeshRequest>(&self, request: &R) -> Bounds {
        let Some((route, state)) = request.route().zip(request.state()) else {
            let now = self.own.map(|own| (own, clock::now()));
            let limit = now.and_then(|(own, now)| Some((now.checked_add(own)?, own)));
            let scope = if self.source == Source::Request { Scope::Request } else { Scope::Attempt };
            let limits = Limits { deadline: limit.filter(|_| self.source == Source::Request), idle: None };
            return Bounds { head: limit.map(|(at, after)| Bound { at, after, scope }), limits };
        };
        let whole = state.deadline.map(|at| (at, at.saturating_duration_since(state.started)));
        match self.source {
            Source::Request => {
                let headers = route.timeouts.response_headers;
                let headers = headers.and_then(|after| Some((state.started.checked_add(after)?, after)));
                let head = [whole, headers].into_iter().flatten().min();
                let head = head.map(|(at, after)| Bound { at, after, scope: Scope::Request });
                Bounds { head, limits: Limits { deadline: whole, idle: route.timeouts.idle } }
            }
            Source::Attempt => {
                let begun = |after: Duration| {
                    let begun = if state.attempt == 0 { state.started } else { clock::now() };
                    Some(Bound { at: begun.checked_add(after)?, after, scope: Scope::Attempt })
                };
                Bounds { head: route.timeouts.attempt.and_then(begun), limits: Limits::default() }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    head: Option<Bound>,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Bound {
    at: Instant,
    after: Duration,
    scope: Scope,
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout { inner, layer: *self }
    }
}

/// The service of [`TimeoutLayer`].
#[derive(Debug, Clone)]
pub struct Timeout<S> {
    inner: S,
    layer: TimeoutLayer,
}

impl<S, R, B> Service<R> for Timeout<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = Response<TimedBody<B>>;
    type Error = Error;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let bounds = self.layer.bounds(&request);
        TimeoutFuture { inner: Some(self.inner.call(request)), sleep: None, bounds }
    }
}

/// The future of [`Timeout`].
#[pin_project]
#[derive(Debug)]
pub struct TimeoutFuture<F> {
    #[pin]
    inner: Option<F>,
    #[pin]
    sleep: Option<Sleep>,
    bounds: Bounds,
}

impl<F, B, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<TimedBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Ready(Err(Error::Closed)) };
        if let Poll::Ready(result) = inner.poll(cx) {
            let limits = this.bounds.limits;
            return Poll::Ready(match result {
                Ok(response) => Ok(response.map(|body| TimedBody::new(body, limits))),
                Err(error) => Err(error.into()),
            });
        }
        let Some(bound) = this.bounds.head else { return Poll::Pending };
        if this.sleep.is_none() {
            this.sleep.set(Some(tokio::time::sleep_until(bound.at.into())));
        }
        match this.sleep.as_pin_mut().map(|sleep| sleep.poll(cx)) {
            Some(Poll::Ready(())) => {
                this.inner.set(None);
                Poll::Ready(Err(Error::Timeout { scope: bound.scope, after: bound.after }))
            }
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }
}
