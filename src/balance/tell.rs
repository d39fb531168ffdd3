//! Floor 4: a server tells its callers how busy it is, in a header of each response.

use crate::balance::cost::{Formula, Latency};
use crate::balance::report;
use crate::classify::body::{End, Watch, Watched};
use crate::error::BoxError;
use crate::stdx::clock;
use crate::stdx::clock::{Duration, Instant};
use crate::stdx::moment::Moment;
use crate::stdx::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Puts requests in flight and the recent mean latency into `endpoint-load-metrics` of each response, in ORCA's text form
/// ([`report`]). Callers whose profile says `balancer: {reports: true}` then count the load that others make. Measure before
/// you rely on it: of 1,000 clients with one request in a second and a half to each server it makes the tail no better,
/// since a queue lives shorter than a report (docs/balancing.md); it is for callers of servers that are busy for longer.
///
/// A mesh's own servers have it, and it is on while their own profile says `balancer: {reports: true}`: the word that makes
/// callers count reports makes the server tell them.
///
/// One count for all services that a layer and its clones make: give a server one. A response that carries a report
/// already keeps its own. Costs two counters, a look at the clock and one header's allocation for each response, and one
/// load when it is [off](Self::set); leave it out where strangers may not know how busy the server is.
///
/// ```
/// use enmesh::balance::tell::TellLoadLayer;
/// # use std::convert::Infallible;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// let app = service_fn(|_: http::Request<()>| async {
///     Ok::<_, Infallible>(http::Response::new("hello".to_owned()))
/// });
/// let server = ServiceBuilder::new().layer(TellLoadLayer::default()).service(app);
/// let response = server.oneshot(http::Request::new(())).await?;
/// let report = enmesh::balance::report::read(response.headers()).ok_or("no report")?;
/// assert_eq!(report.in_flight, Some(1.0));
/// # Ok(()) })
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TellLoadLayer {
    load: Arc<Load>,
}

#[derive(Debug)]
struct Load {
    on: AtomicBool,
    in_flight: AtomicU32,
    latency: AtomicU64,
    formula: Formula,
    epoch: Instant,
}

impl Default for TellLoadLayer {
    fn default() -> Self {
        let load = Load {
            on: AtomicBool::new(true),
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(Latency::assumed(0.0, Moment::default()).pack()),
            formula: Formula::default(),
            epoch: clock::now(),
        };
        Self { load: Arc::new(load) }
    }
}

impl TellLoadLayer {
    /// Tells, or not, from the next request on.
    pub fn set(&self, on: bool) {
        self.load.on.store(on, Relaxed);
    }

    /// Requests in flight, to the end of their responses, of those that came while it was on.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight.load(Relaxed)
    }
}

impl Load {
    /// A response's head is ready after `started`: what is told with it.
    fn report(&self, started: Instant) -> http::HeaderValue {
        let now = clock::now();
        let secs = now.saturating_duration_since(started).as_secs_f32();
        let before = Latency::unpack(self.latency.load(Relaxed));
        // Of two that write at once one is lost, which an average does not mind.
        let after = self.formula.learn(before, Moment::since(self.epoch, now), secs);
        self.latency.store(after.pack(), Relaxed);
        report::write(self.in_flight.load(Relaxed), Duration::from_secs_f32(after.secs))
    }
}

/// One request in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Load>);

impl InFlight {
    fn begin(load: &Arc<Load>) -> Self {
        load.in_flight.fetch_add(1, Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Held by a body for as long as it is there.
impl Watch for InFlight {
    fn end(&mut self, _: End<'_>) {}
}

impl<S> Layer<S> for TellLoadLayer {
    type Service = TellLoad<S>;

    fn layer(&self, inner: S) -> TellLoad<S> {
        TellLoad { inner, load: Arc::clone(&self.load) }
    }
}

/// The service of [`TellLoadLayer`].
#[derive(Debug, Clone)]
pub struct TellLoad<S> {
    inner: S,
    load: Arc<Load>,
}

impl<S, R, B> Service<R> for TellLoad<S>
where
    S: Service<R, Response = Response<B>>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = Response<Watched<B, InFlight>>;
    type Error = S::Error;
    type Future = TellLoadFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let begin = || (InFlight::begin(&self.load), clock::now());
        let place = self.load.on.load(Relaxed).then(begin);
        TellLoadFuture { inner: self.inner.call(request), place }
    }
}

/// The future of [`TellLoad`].
#[pin_project]
#[derive(Debug)]
pub struct TellLoadFuture<F> {
    #[pin]
    inner: F,
    /// Its place, and when it began, if anything is told.
    place: Option<(InFlight, Instant)>,
}

impl<F, B, E> Future for TellLoadFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Watched<B, InFlight>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        let place = this.place.take().map(|(place, started)| {
            let told = || place.0.report(started);
            response.headers_mut().entry(&report::HEADER).or_insert_with(told);
            place
        });
        Poll::Ready(Ok(response.map(|body| Watched::maybe(body, place))))
    }
}
