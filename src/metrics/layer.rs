//! Floor 4: counts each call from its beginning to the end of its response's body.

use crate::classify::body::{End, Watch, Watched};
use crate::classify::classifier::{self, Head};
use crate::classify::outcome::Outcome;
use crate::error::{BoxError, Error};
use crate::metrics::arrivals::Arrivals;
use crate::metrics::route::RouteMetrics;
use crate::metrics::rules;
use crate::metrics::series::Ending;
use crate::metrics::tally::Tally;
use crate::policy::call::{Judged, MeshRequest};
use crate::policy::observe::Observed;
use crate::policy::route::RoutePolicy;
use crate::stdx::clock::{self, Duration, Instant};
use crate::tls::identity::PeerIdentity;
use http::Response;
use http_body::Body;
use pin_project::{pin_project, pinned_drop};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Counts calls by their route's handles, and of each its last attempt; the attempts before it are counted where they are
/// given up, by the retries below. Requests that met no route count by `own`, if given.
#[derive(Debug, Clone, Default)]
pub struct MetricsLayer {
    own: Option<Arc<RouteMetrics>>,
    arrivals: Option<Arc<Arrivals>>,
}

impl MetricsLayer {
    /// Counts plain requests by `own`.
    #[must_use]
    pub fn with_own(mut self, own: Arc<RouteMetrics>) -> Self {
        self.own = Some(own);
        self
    }

    /// Counts the calls of each caller too, by the [`PeerIdentity`] in a request's extensions and by the
    /// [rule](rules::decided) that decides below. For servers.
    #[must_use]
    pub fn with_arrivals(mut self, arrivals: Arc<Arrivals>) -> Self {
        self.arrivals = Some(arrivals);
        self
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics { inner, layer: self.clone() }
    }
}

/// The service of [`MetricsLayer`].
#[derive(Debug, Clone)]
pub struct Metrics<S> {
    inner: S,
    layer: MetricsLayer,
}

impl<S, R, B> Service<R> for Metrics<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = Response<Watched<B, Meter>>;
    type Error = Error;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let route = request.route().map(|route| Counted::Route(Arc::clone(route)));
        let counted = route.or_else(|| self.layer.own.clone().map(Counted::Own));
        let counted =
            counted.map(|counted| (counted, request.state().map_or_else(clock::now, |state| state.started)));
        let caller = self.layer.arrivals.as_ref().map(|arrivals| {
            let peer = request.http().extensions().get::<PeerIdentity>();
            // What an earlier request left, which nobody asked for.
            rules::take();
            (arrivals, arrivals.caller(peer.map(|peer| &peer.identity)))
        });
        let observed = request.observed().map(Arc::clone);
        // First the call, then the count: a panic in it leaves nothing counted as under way.
        let inner = self.inner.call(request);
        let begin = |(counted, started): (Counted, _)| {
            let tally =
                caller.map(|(arrivals, caller)| arrivals.tally(&caller, counted.metrics(), rules::take()));
            Meter::begin(counted, started, observed).of_client(tally)
        };
        MetricsFuture { inner, meter: counted.map(begin) }
    }
}

/// Whose counters count a call.
#[derive(Debug)]
pub(crate) enum Counted {
    /// Its route's.
    Route(Arc<RoutePolicy>),
    /// The layer's own.
    Own(Arc<RouteMetrics>),
}

impl Counted {
    fn metrics(&self) -> &RouteMetrics {
        match self {
            Self::Route(route) => &route.metrics,
            Self::Own(own) => own,
        }
    }
}

/// What one call counts when it ends. Its owner says how it ends, once.
#[derive(Debug)]
pub struct Meter {
    counted: Counted,
    /// What counts its caller's calls, where those are counted.
    client: Option<Arc<Tally>>,
    started: Instant,
    /// From the beginning to the response's headers.
    latency: Duration,
    is_latency_counted: bool,
    status: Option<u16>,
    head: Head,
    /// Whoever observes the call.
    observed: Option<Arc<Observed>>,
}

impl Meter {
    #[inline]
    pub(crate) fn begin(counted: Counted, started: Instant, observed: Option<Arc<Observed>>) -> Self {
        counted.metrics().begin();
        let (latency, head) = (Duration::ZERO, Head::Decided(Outcome::DROPPED));
        Self {
            counted,
            client: None,
            started,
            latency,
            is_latency_counted: false,
            status: None,
            head,
            observed,
        }
    }

    /// The same, counted for its caller too.
    #[inline]
    fn of_client(mut self, client: Option<Arc<Tally>>) -> Self {
        if let Some(client) = &client {
            client.begin();
        }
        self.client = client;
        self
    }

    /// Counts the end, once.
    #[inline]
    fn count_end(&self, ending: Ending) {
        self.counted.metrics().end(ending);
        if let Some(client) = &self.client {
            client.end(ending);
        }
    }

    /// The route, if the call met one.
    pub(crate) fn route(&self) -> Option<&Arc<RoutePolicy>> {
        match &self.counted {
            Counted::Route(route) => Some(route),
            Counted::Own(_) => None,
        }
    }

    /// When the call began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// From the beginning to the response's headers; zero before they came.
    #[cfg(feature = "http")]
    pub(crate) fn latency(&self) -> Duration {
        self.latency
    }

    /// The response's head came; `judged` is what a layer below found out about it. When it came.
    #[inline]
    pub(crate) fn head<B>(&mut self, response: &Response<B>, judged: Option<Judged>) -> Instant {
        let (status, headers) = (response.status(), response.headers());
        let judge = || {
            let classifier = self.route().map(|route| &*route.classifier);
            let head = classifier::head(classifier, status, headers, clock::wall_secs);
            Judged { head, at: clock::now() }
        };
        let Judged { head, at } = judged.unwrap_or_else(judge);
        (self.status, self.head) = (Some(status.as_u16()), head);
        self.latency = at.saturating_duration_since(self.started);
        if let Some(observed) = &self.observed {
            observed.head(status, headers);
        }
        at
    }

    /// It ended without a response.
    #[cold]
    pub(crate) fn fail(&mut self, error: &Error) {
        let outcome = Outcome::of_error(error);
        self.count_latency(clock::now().saturating_duration_since(self.started));
        self.count_end(Ending::of_error(error));
        if let Some(observed) = &self.observed {
            observed.end(&outcome, Some(error), None);
        }
    }

    /// The caller went away before a response came.
    pub(crate) fn cancel(&mut self) {
        self.count_end(Ending::DROPPED);
        if let Some(observed) = &self.observed {
            observed.end(&Outcome::DROPPED, None, None);
        }
    }

    /// What was left of the call's deadline when the response's headers came, at `at`.
    #[inline]
    pub(crate) fn left(&self, deadline: Instant, at: Instant) {
        self.counted.metrics().deadline_left(deadline.saturating_duration_since(at));
    }

    #[inline]
    fn count_latency(&mut self, latency: Duration) {
        if !std::mem::replace(&mut self.is_latency_counted, true) {
            self.counted.metrics().latency(latency);
            if let Some(client) = &self.client {
                client.latency(latency);
            }
        }
    }
}

impl Watch for Meter {
    fn first(&mut self, waited: bool) {
        // What was there when it was asked for came with the head, and the time since then is the reader's.
        let latency =
            if waited { clock::now().saturating_duration_since(self.started) } else { self.latency };
        self.count_latency(latency);
    }

    fn data(&mut self, bytes: usize) {
        if let Some(observed) = &self.observed {
            observed.data(bytes);
        }
    }

    #[inline]
    fn end(&mut self, end: End<'_>) {
        let outcome = end.outcome(self.head);
        // A body without a frame ended with its head.
        self.count_latency(self.latency);
        self.count_end(Ending::new(self.status, &outcome));
        if let Some(observed) = &self.observed {
            observed.end(&outcome, None, end.trailers());
        }
    }
}

/// The future of [`Metrics`]. Dropped before its end, the call counts as cancelled.
#[pin_project(PinnedDrop)]
#[derive(Debug)]
pub struct MetricsFuture<F> {
    #[pin]
    inner: F,
    meter: Option<Meter>,
}

impl<F, B, E> Future for MetricsFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Error>,
    B: Body,
{
    type Output = Result<Response<Watched<B, Meter>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx)).map_err(Into::into);
        let mut meter = this.meter.take();
        Poll::Ready(match result {
            Ok(response) => {
                if let Some(meter) = &mut meter {
                    meter.head(&response, None);
                }
                Ok(response.map(|body| Watched::maybe(body, meter)))
            }
            Err(error) => {
                if let Some(mut meter) = meter {
                    meter.fail(&error);
                }
                Err(error)
            }
        })
    }
}

#[pinned_drop]
impl<F> PinnedDrop for MetricsFuture<F> {
    fn drop(self: Pin<&mut Self>) {
        if let Some(mut meter) = self.project().meter.take() {
            meter.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::Direction;
    use crate::metrics::route::{RouteKind, RouteNames};
    use bytes::Bytes;
    use http::Request;
    use http_body_util::{BodyExt, Full};
    use tower::ServiceExt;

    fn route() -> Arc<RouteMetrics> {
        let (direction, kind) = (Direction::Outbound, RouteKind::Profile);
        Arc::new(RouteMetrics::new(RouteNames { direction, dst: "web:80".into(), route: "r".into(), kind }))
    }

    async fn call(metrics: &Arc<RouteMetrics>, status: u16, read: bool) {
        let inner = tower::service_fn(move |_: Request<()>| async move {
            let response = Response::builder().status(status).body(Full::<Bytes>::from("x"));
            response.map_err(|error| Error::Inner(error.into()))
        });
        let service = MetricsLayer::default().with_own(Arc::clone(metrics)).layer(inner);
        let response = service.oneshot(Request::new(())).await.unwrap();
        if read {
            response.into_body().collect().await.unwrap();
        }
    }

    #[tokio::test]
    async fn every_call_is_counted_once_whatever_becomes_of_its_body() {
        let metrics = route();
        call(&metrics, 200, true).await;
        call(&metrics, 200, false).await;
        call(&metrics, 503, true).await;
        let refuse =
            tower::service_fn(|_: Request<()>| async { Err::<Response<Full<Bytes>>, _>(Error::Closed) });
        let service = MetricsLayer::default().with_own(Arc::clone(&metrics)).layer(refuse);
        assert!(service.oneshot(Request::new(())).await.is_err());
        let hang = tower::service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<Full<Bytes>>, Error>>()
        });
        let mut service = MetricsLayer::default().with_own(Arc::clone(&metrics)).layer(hang);
        drop(service.call(Request::new(())));
        let read = metrics.read();
        assert_eq!((read.requests, read.successes, read.failures, read.cancelled), (5, 2, 2, 1));
        assert_eq!(read.latency.total(), 4);
    }
}
