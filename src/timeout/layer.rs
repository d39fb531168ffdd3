//! Floor 4: ends calls that take too long, over all their attempts.

use crate::error::{BoxError, Error, Scope};
use crate::policy::call::MeshRequest;
use crate::stdx::clock::{self, Duration};
use crate::timeout::body::{Limits, TimedBody};
use crate::timeout::timed::{Bound, Timed};
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Ends calls that take too long with [`Error::Timeout`]: by the deadline of the call, which holds to the end of the
/// response's body (the body then ends with an error), and by its route's limit to the response's headers (`timeout` of a
/// ServiceProfile) and between two frames (`idle`). Requests that met no route are limited by `own`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimeoutLayer {
    own: Option<Duration>,
}

impl TimeoutLayer {
    /// Limits calls by their state and their route.
    pub fn request() -> Self {
        Self::default()
    }

    /// The limit for requests that met no route.
    #[must_use]
    pub fn with_own(mut self, limit: Duration) -> Self {
        self.own = Some(limit);
        self
    }

    fn bounds<R: MeshRequest>(&self, request: &R) -> (Option<Bound>, Limits) {
        let (whole, headers, idle) = match request.route().zip(request.state()) {
            Some((route, state)) => {
                let whole = state.deadline.map(|at| (at, at.saturating_duration_since(state.started)));
                let headers = route.timeouts.response_headers;
                let headers = headers.and_then(|after| Some((state.started.checked_add(after)?, after)));
                (whole, headers, route.timeouts.idle)
            }
            None => (self.own.and_then(|after| Some((clock::now().checked_add(after)?, after))), None, None),
        };
        let first = [whole, headers].into_iter().flatten().min();
        let head = first.map(|(at, after)| Bound { at, after, scope: Scope::Request });
        (head, Limits { deadline: whole, idle })
    }
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

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let (head, limits) = self.layer.bounds(&request);
        TimeoutFuture { inner: Timed::new(self.inner.call(request), head), limits }
    }
}

/// The future of [`Timeout`].
#[pin_project]
#[derive(Debug)]
pub struct TimeoutFuture<F> {
    #[pin]
    inner: Timed<F>,
    limits: Limits,
}

impl<F, B, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<TimedBody<B>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        Poll::Ready(Ok(response.map(|body| TimedBody::new(body, *this.limits))))
    }
}
