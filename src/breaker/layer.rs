//! Floor 4: a breaker around one service, for stacks without a balancer.

use crate::breaker::detect::Chart;
use crate::breaker::event::Event;
use crate::breaker::ward::{BedState, Patient, Ward};
use crate::classify::body::{End, Watch, Watched};
use crate::classify::classifier::{self, Classifier, Head, trailers};
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::error::{BoxError, Error};
use crate::policy::call::MeshRequest;
use crate::profile::settings::BreakerSettings;
use crate::stdx::clock;
use crate::stdx::clock::Instant;
use crate::stdx::moment::Moment;
use crate::stdx::rng::Rng;
use crate::stdx::sync::{AtomicU32, Ordering::Relaxed};
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Leaves a service alone after it failed: requests are refused with [`Error::BreakerOpen`] until its time is over.
///
/// One breaker for all clones of the service. A balancer has breakers of its own, which know the service's other
/// endpoints; this one is for stacks without one. Detectors that compare endpoints never speak here, and the share
/// of endpoints that must stay does not apply: the only one may be shut.
#[derive(Debug, Clone)]
pub struct BreakerLayer {
    settings: BreakerSettings,
    rng: Rng,
}

impl BreakerLayer {
    /// Breakers with these settings; `rng` is for the jitter of their times.
    pub fn new(settings: BreakerSettings, rng: Rng) -> Self {
        Self { settings: BreakerSettings { ejected_percent_max: 100, ..settings }, rng }
    }
}

impl<S> Layer<S> for BreakerLayer {
    type Service = Breaker<S>;

    fn layer(&self, inner: S) -> Breaker<S> {
        let epoch = clock::now();
        let ward = Ward::new(self.settings.clone(), 0, Moment::default());
        ward.resize(1);
        let only =
            Only(Arc::new(Inner { gate: AtomicU32::new(0), chart: ward.chart(), shut: AtomicU32::new(0) }));
        let state = State { ward, only, epoch, rng: self.rng.clone() };
        Breaker { inner, state: Arc::new(state) }
    }
}

#[derive(Debug)]
struct State {
    ward: Ward<Only>,
    only: Only,
    epoch: Instant,
    rng: Rng,
}

/// The one endpoint.
#[derive(Debug, Clone)]
struct Only(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gate: AtomicU32,
    chart: Chart,
    shut: AtomicU32,
}

impl Patient for Only {
    fn number(&self) -> u32 {
        0
    }

    fn gate(&self) -> &AtomicU32 {
        &self.0.gate
    }

    fn chart(&self) -> &Chart {
        &self.0.chart
    }

    fn shut(&self) -> &AtomicU32 {
        &self.0.shut
    }
}

impl State {
    fn now(&self) -> Moment {
        Moment::since(self.epoch, clock::now())
    }
}

/// The service of [`BreakerLayer`].
#[derive(Debug, Clone)]
pub struct Breaker<S> {
    inner: S,
    state: Arc<State>,
}

impl<S> Breaker<S> {
    /// Why and until when it is shut; `None` while it is open.
    pub fn state(&self) -> Option<BedState> {
        self.state.ward.state(0)
    }

    /// What it did, from event number `from` on.
    pub fn events(&self, from: u64) -> Vec<Event> {
        self.state.ward.events(from)
    }

    /// The right to one attempt, or how long until there is one.
    fn admit(&self) -> Result<Pass, Error> {
        let state = &self.state;
        let taken = |pass| Ok(Pass { state: Arc::clone(state), pass, over: false });
        let open = || Some(state.only.gate().load(Relaxed)).filter(|pass| pass & 3 == 0);
        if let Some(pass) = open() {
            return taken(pass);
        }
        let now = state.now();
        let probe = state.ward.attend(now, &state.rng, Vec::new).map(|(_, pass)| pass);
        // Without a probe it may have come back by its time alone.
        match probe.or_else(open) {
            Some(pass) => taken(pass),
            None => Err(Error::BreakerOpen { retry_in: state.ward.soonest(now) }),
        }
    }
}

/// The right to one attempt; counted once, and given back if it is dropped.
#[derive(Debug)]
struct Pass {
    state: Arc<State>,
    pass: u32,
    over: bool,
}

impl Pass {
    fn record(&mut self, outcome: &Outcome) {
        if !std::mem::replace(&mut self.over, true) {
            let state = &self.state;
            state.ward.record(&state.only, self.pass, &state.rng, outcome, || state.now());
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.record(&Outcome::DROPPED);
    }
}

impl<S, R, ResB> Service<R> for Breaker<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<ResB>>,
    S::Error: Into<Error>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    type Response = Response<Watched<ResB, Judge>>;
    type Error = Error;
    type Future = BreakerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let classifier = request.route().map(|route| Arc::clone(&route.classifier));
        match self.admit() {
            Ok(pass) => {
                let sent = Some(self.inner.call(request));
                BreakerFuture { sent, pass: Some(pass), classifier, refused: None }
            }
            Err(error) => BreakerFuture { sent: None, pass: None, classifier, refused: Some(error) },
        }
    }
}

/// The future of [`Breaker`].
#[pin_project]
#[derive(Debug)]
pub struct BreakerFuture<F> {
    #[pin]
    sent: Option<F>,
    pass: Option<Pass>,
    classifier: Option<Arc<Classifier>>,
    refused: Option<Error>,
}

impl<F, ResB, E> Future for BreakerFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: Into<Error>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    type Output = Result<Response<Watched<ResB, Judge>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(sent) = this.sent.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(this.refused.take().unwrap_or(Error::Closed)));
        };
        let result = ready!(sent.poll(cx)).map_err(Into::into);
        this.sent.set(None);
        let Some(mut pass) = this.pass.take() else { return Poll::Ready(Err(Error::Closed)) };
        Poll::Ready(match result {
            Ok(response) => {
                let (status, headers) = (response.status(), response.headers());
                let head = classifier::head(this.classifier.as_deref(), status, headers, clock::wall_secs);
                if head.outcome().is_failure() {
                    pass.record(&head.outcome());
                }
                Ok(response.map(|body| Watched::new(body, Judge { pass, head })))
            }
            Err(error) => {
                pass.record(&Outcome::of_error(&error));
                Err(error)
            }
        })
    }
}

/// Judges a response when its body ends.
#[derive(Debug)]
pub struct Judge {
    pass: Pass,
    head: Head,
}

impl Watch for Judge {
    fn end(&mut self, end: End<'_>) {
        let outcome = match (end, self.head) {
            (End::Complete(last), Head::Unless(outcome)) => trailers(outcome, last),
            // A reader that has seen enough has seen a response.
            (End::Complete(_) | End::Dropped, head) => head.outcome(),
            (End::Broken, _) => Outcome::new(Verdict::Failure, Cause::Reset),
        };
        self.pass.record(&outcome);
    }
}
