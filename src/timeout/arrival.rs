//! Floor 4: receives a request's deadline on the server's side, and hands it down.

use crate::classify::classifier::grpc_code;
use crate::error::{BoxError, Error, Scope};
use crate::limit::priority::Priority;
use crate::policy::call::MeshRequest;
use crate::policy::observe::Observed;
use crate::retry::marks;
use crate::stdx::clock::{self, Duration, Instant};
use crate::timeout::body::TimedBody;
use crate::timeout::deadline;
use crate::timeout::inherited::{self, Inherited};
use crate::timeout::layer::{TimeoutFuture, whole};
use crate::timeout::plan::Bound;
use crate::trace::current;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Reads the deadline of what arrives (`grpc-timeout`, [`deadline::HEADER`]), limits it to the route's and to its own,
/// refuses what has none left without calling the application, and ends what takes longer.
///
/// What the application sends while it serves a request inherits its deadline and its hop marks
/// ([`inherited`]). A failure that was repeated in vain on the way down is marked so.
#[derive(Debug, Clone, Default)]
pub struct ArrivalLayer {
    max: Option<Duration>,
    counts: Arc<Counts>,
}

/// What arrived with a deadline that could not be used.
#[derive(Debug, Default)]
pub struct Counts {
    malformed: AtomicU64,
    expired: AtomicU64,
}

impl Counts {
    /// Requests whose deadline could not be read, and was taken as absent.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Requests that were refused because they had no time left.
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }
}

impl ArrivalLayer {
    /// Without a limit of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits every request to `max`, whatever it says. Default: none, since a stream may be meant to last.
    #[must_use]
    pub fn with_max(mut self, max: Duration) -> Self {
        self.max = Some(max);
        self
    }

    /// What it counted.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// When the request must have ended, and how long that is from its beginning.
    fn limit<R: MeshRequest>(&self, request: &R) -> Option<(Instant, Instant)> {
        let reading = deadline::read(request.http().headers());
        if reading.malformed {
            self.counts.malformed.fetch_add(1, Ordering::Relaxed);
        }
        let known = request.state().and_then(|state| state.deadline);
        if reading.left.is_none() && self.max.is_none() && known.is_none() {
            return None;
        }
        let started = request.state().map_or_else(clock::now, |state| state.started);
        deadline::effective(started, reading.left, self.max, known).map(|at| (at, started))
    }
}

impl<S> Layer<S> for ArrivalLayer {
    type Service = Arrival<S>;

    fn layer(&self, inner: S) -> Arrival<S> {
        Arrival { inner, layer: self.clone() }
    }
}

/// The service of [`ArrivalLayer`].
#[derive(Debug, Clone)]
pub struct Arrival<S> {
    inner: S,
    layer: ArrivalLayer,
}

impl<S, R, B> Service<R> for Arrival<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = Response<Inheriting<TimedBody<B>>>;
    type Error = Error;
    type Future = Inheriting<TimeoutFuture<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: R) -> Self::Future {
        let repeated = marks::is_repeated(request.http().headers());
        let limit = self.layer.limit(&request);
        let observed = request.observed().map(Arc::clone);
        let priority = Priority::read(request.http().headers()).map(Priority::level);
        let deadline = limit.map(|(at, _)| at);
        let mut inherited = Inherited { deadline, priority, repeated, in_vain: false };
        let whole = limit.and_then(|(at, started)| whole(started, Some(at)));
        if let Some(Bound { at, after, .. }) = whole
            && (after.is_zero() || clock::now() >= at)
        {
            self.layer.counts.expired.fetch_add(1, Ordering::Relaxed);
            let refused = TimeoutFuture::refused(Error::Timeout { scope: Scope::Request, after });
            return Inheriting { inner: refused, inherited, observed };
        }
        if let Some(state) = request.state_mut() {
            state.deadline = inherited.deadline;
        }
        let inner = within(&mut inherited, observed.as_ref(), || self.inner.call(request));
        Inheriting { inner: TimeoutFuture::new(inner, whole, whole), inherited, observed }
    }
}

/// A future or a body that is polled with what it hands down in place.
#[pin_project]
#[derive(Debug)]
pub struct Inheriting<T> {
    #[pin]
    inner: T,
    inherited: Inherited,
    /// Whoever observes the request.
    observed: Option<Arc<Observed>>,
}

/// Does `work` with what is handed down in place: the deadline, and, of a request that is observed, its place in a trace.
fn within<T>(inherited: &mut Inherited, observed: Option<&Arc<Observed>>, work: impl FnOnce() -> T) -> T {
    match observed {
        None => inherited::within(inherited, work),
        Some(observed) => {
            let context = observed.subject().context.clone();
            observed.within(|| current::within(context, || inherited::within(inherited, work)))
        }
    }
}

impl<F, B> Future for Inheriting<F>
where
    F: Future<Output = Result<Response<B>, Error>>,
{
    type Output = Result<Response<Inheriting<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(within(this.inherited, this.observed.as_ref(), || this.inner.poll(cx)))?;
        let failed = response.status().is_server_error()
            || grpc_code(response.headers()).is_some_and(|code| code != 0);
        if this.inherited.in_vain && failed {
            marks::in_vain(response.headers_mut(), 1);
        }
        let (inherited, observed) = (*this.inherited, this.observed.take());
        Poll::Ready(Ok(response.map(|inner| Inheriting { inner, inherited, observed })))
    }
}

impl<B: Body> Body for Inheriting<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        within(this.inherited, this.observed.as_ref(), || this.inner.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
