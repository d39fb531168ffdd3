//! Floor 4: ends calls that take too long, over all their attempts.

use crate::error::{BoxError, Error, Scope};
use crate::policy::call::MeshRequest;
use crate::policy::route::TimeoutPolicy;
use crate::stdx::clock::{self, Duration, Instant};
use crate::timeout::body::TimedBody;
use crate::timeout::deadline;
use crate::timeout::plan::Bound;
use crate::timeout::timed::Timed;
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
/// ServiceProfile). Requests that met no route are limited by `own`, or by what their headers say if that is less.
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

    /// What ends a call before its response's headers, and what ends it after them.
    fn bounds<R: MeshRequest>(&self, request: &R) -> (Option<Bound>, Option<Bound>) {
        let Some((route, state)) = request.route().zip(request.state()) else {
            let said = deadline::read(request.http().headers()).left;
            let limit = [self.own, said].into_iter().flatten().min();
            let whole = limit.and_then(|after| Bound::new(clock::now(), after, Scope::Request));
            return (whole, whole);
        };
        let whole = whole(state.started, state.deadline);
        (head(state.started, whole, &route.timeouts), whole)
    }
}

/// What ends a call after its response's headers: its deadline.
pub(crate) fn whole(started: Instant, deadline: Option<Instant>) -> Option<Bound> {
    let bound =
        |at: Instant| Bound { at, after: at.saturating_duration_since(started), scope: Scope::Request };
    deadline.map(bound)
}

/// What ends it before them: that, or its route's limit.
pub(crate) fn head(started: Instant, whole: Option<Bound>, limits: &TimeoutPolicy) -> Option<Bound> {
    let headers = limits.response_headers;
    Bound::earlier(whole, headers.and_then(|after| Bound::new(started, after, Scope::Request)))
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
        let (head, whole) = self.layer.bounds(&request);
        TimeoutFuture::new(self.inner.call(request), head, whole)
    }
}

/// The future of [`Timeout`].
#[pin_project]
#[derive(Debug)]
pub struct TimeoutFuture<F> {
    #[pin]
    inner: Timed<F>,
    whole: Option<Bound>,
}

impl<F> TimeoutFuture<F> {
    /// `head` ends it before its response's headers, `whole` after them.
    pub(crate) fn new(inner: F, head: Option<Bound>, whole: Option<Bound>) -> Self {
        Self { inner: Timed::new(inner, head), whole }
    }

    /// Its time had passed before it began.
    pub(crate) fn refused(error: Error) -> Self {
        Self { inner: Timed::refused(error), whole: None }
    }
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
        Poll::Ready(Ok(response.map(|body| TimedBody::limited(body, *this.whole, None))))
    }
}
