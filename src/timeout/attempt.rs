//! Floor 4: ends attempts that take too long or fall silent, and tells the peer how long it has.

use crate::error::{BoxError, Error, Scope};
use crate::policy::call::{CallState, MeshRequest};
use crate::stdx::clock::{self, Duration, Instant};
use crate::timeout::body::{Sending, TimedBody};
use crate::timeout::deadline::Form;
use crate::timeout::plan::{Bound, Pace, PaceLimits};
use crate::timeout::timed::Timed;
use http::{Request, Response};
use http_body::Body;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Ends attempts by their routes' limits, with [`Error::Timeout`]: `attempt` from its beginning to its response's
/// headers; `response` from the end of the request's body to the end of the response's; `idle` between two frames in
/// either direction; and, while another attempt may follow, the retries' `patience` from the end of the request's body
/// to the headers (linkerd.md §3.5). Attempts of requests that met no route end by `own`.
///
/// It stands below the balancer's ticket, so that a slow replica is seen as slow. Where the whole call must end sooner
/// than the attempt it arms no timer of its own: one suffices.
///
/// An attempt for which no time is left is not begun. A gRPC request with a deadline tells the peer what is left of it by
/// `grpc-timeout`; another one by [`HEADER`](crate::timeout::deadline::HEADER) if the deadline is the caller's or was
/// handed down. A route's own limit it does not tell: the peer has it from the same profile, and a first header costs two
/// allocations.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptLayer {
    own: Option<Duration>,
    margin: Duration,
}

impl AttemptLayer {
    /// The limit for requests that met no route.
    #[must_use]
    pub fn with_own(mut self, limit: Duration) -> Self {
        self.own = Some(limit);
        self
    }

    /// Tells the peer that it has so much less, for the way back. Default 0.
    #[must_use]
    pub fn with_margin(mut self, margin: Duration) -> Self {
        self.margin = margin;
        self
    }

    /// Writes what is left of the deadline.
    ///
    /// # Errors
    /// When nothing is.
    fn tell<R: MeshRequest>(&self, request: &mut R) -> Result<(), Error> {
        let Some(&CallState { deadline: Some(at), is_deadline_told, started, attempt, .. }) = request.state()
        else {
            return Ok(());
        };
        let form = Form::of(request.http().headers(), is_deadline_told);
        // A first attempt that tells nobody spares a look at the clock; should it begin late, the call's own timer ends it.
        if attempt == 0 && form.is_none() && self.margin.is_zero() && at > started {
            return Ok(());
        }
        let now = if attempt == 0 && form.is_none() { started } else { clock::now() };
        let left = at.saturating_duration_since(now).saturating_sub(self.margin);
        if left.is_zero() {
            let after = at.saturating_duration_since(started);
            return Err(Error::Timeout { scope: Scope::Request, after });
        }
        if let Some(form) = form {
            form.write(request.http_mut().headers_mut(), left);
        }
        Ok(())
    }

    #[inline]
    fn limits<R: MeshRequest>(&self, request: &R) -> (Limit, Option<Arc<Pace>>) {
        let Some((route, state)) = request.route().zip(request.state()) else {
            return (Limit { own: self.own.map(|own| (clock::now(), own)), before: None }, None);
        };
        let limits = &route.timeouts;
        // The first attempt begins with the call, which spares a look at the clock.
        let begun = || if state.attempt == 0 { state.started } else { clock::now() };
        let limit = Limit { own: limits.attempt.map(|after| (begun(), after)), before: state.deadline };
        let limits = PaceLimits { idle: limits.idle, response: limits.response, patience: state.patience };
        (limit, Pace::new(limits, clock::now).map(Arc::new))
    }
}

/// The limit of an attempt, to be reckoned when it is first waited for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limit {
    /// When it begins, and how long it is.
    own: Option<(Instant, Duration)>,
    /// It counts only if it ends before this.
    before: Option<Instant>,
}

impl Limit {
    /// When the attempt must have ended.
    pub(crate) fn bound(&self) -> Option<Bound> {
        let (begun, after) = self.own?;
        let bound = Bound::new(begun, after, Scope::Attempt);
        bound.filter(|bound| self.before.is_none_or(|deadline| bound.at < deadline))
    }
}

/// An attempt under way, and its limits.
#[derive(Debug)]
pub(crate) struct Begun<F> {
    pub(crate) future: F,
    pub(crate) limit: Limit,
    pub(crate) pace: Option<Arc<Pace>>,
}

impl<S> Layer<S> for AttemptLayer {
    type Service = Attempt<S>;

    fn layer(&self, inner: S) -> Attempt<S> {
        Attempt { inner, layer: *self }
    }
}

/// The service of [`AttemptLayer`]. What it wraps gets the HTTP request alone.
#[derive(Debug, Clone)]
pub struct Attempt<S> {
    inner: S,
    layer: AttemptLayer,
}

impl<S> Attempt<S> {
    /// What it wraps.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S, R, B> Service<R> for Attempt<S>
where
    R: MeshRequest,
    R::Body: Body,
    S: Service<Request<Sending<R::Body>>, Response = Response<B>>,
    S::Error: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = Response<TimedBody<B>>;
    type Error = Error;
    type Future = AttemptFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        AttemptFuture(match self.begin(request) {
            Ok(Begun { future, limit, pace }) => Timed::paced(future, limit.bound(), pace),
            Err(error) => Timed::refused(error),
        })
    }
}

impl<S> Attempt<S> {
    /// Sends an attempt; its limits are for the caller to watch.
    ///
    /// # Errors
    /// When no time is left for it.
    #[inline(always)]
    pub(crate) fn begin<R>(&mut self, mut request: R) -> Result<Begun<S::Future>, Error>
    where
        R: MeshRequest,
        R::Body: Body,
        S: Service<Request<Sending<R::Body>>>,
    {
        self.layer.tell(&mut request)?;
        let (limit, pace) = self.layer.limits(&request);
        let sent = pace.clone();
        let future = self.inner.call(request.into_http().map(|body| Sending::new(body, sent)));
        Ok(Begun { future, limit, pace })
    }
}

/// The future of [`Attempt`].
#[pin_project]
#[derive(Debug)]
pub struct AttemptFuture<F>(#[pin] Timed<F>);

impl<F, B, E> Future for AttemptFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<TimedBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut inner = self.project().0;
        let response = ready!(inner.as_mut().poll(cx))?;
        let pace = inner.take_pace();
        Poll::Ready(Ok(response.map(|body| TimedBody::limited(body, None, pace))))
    }
}
