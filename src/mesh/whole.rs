//! Floor 6: a whole call: metrics, what its route does by itself, and its time limit, in one future.
//!
//! It does what [`Metrics`](crate::metrics::layer::Metrics) around [`Act`](crate::route::layer::Act) around
//! [`Timeout`](crate::timeout::layer::Timeout) do, and a test holds the two equal. Three futures within each other would
//! move each request, each future and each response twice more than one does, which is a tenth of what a call costs.

use crate::classify::answer::RespondBody;
use crate::classify::body::Watched;
use crate::classify::outcome::Outcome;
use crate::error::{BoxError, Error};
use crate::metrics::layer::{Counted, Meter};
use crate::policy::call::{Call, MeshRequest, ServedBy};
use crate::retry::body::Attempted;
use crate::route::layer::answered;
use crate::stdx::clock::Instant;
use crate::timeout::body::TimedBody;
use crate::timeout::layer::{head, whole};
use crate::timeout::plan::Part;
use crate::timeout::timed::Timer;
use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project::{pin_project, pinned_drop};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// The body of a call's response over the attempts' bodies `B`.
pub type WholeBody<B> = Watched<RespondBody<TimedBody<Attempted<B>>>, Meter>;

/// Counts calls, answers those that their route answers by itself, and ends those that take too long. `W` is asked how
/// an attempt's response was judged.
pub struct WholeLayer<W> {
    judged: PhantomData<fn() -> W>,
}

impl<W> Default for WholeLayer<W> {
    fn default() -> Self {
        Self { judged: PhantomData }
    }
}

impl<W> fmt::Debug for WholeLayer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WholeLayer")
    }
}

impl<S, W> Layer<S> for WholeLayer<W> {
    type Service = Whole<S, W>;

    fn layer(&self, inner: S) -> Whole<S, W> {
        Whole { inner, judged: PhantomData }
    }
}

/// The service of [`WholeLayer`].
#[derive(Debug)]
pub struct Whole<S, W> {
    inner: S,
    judged: PhantomData<fn() -> W>,
}

impl<S: Clone, W> Clone for Whole<S, W> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), judged: PhantomData }
    }
}

impl<S, W, B, T, ResB> Service<Call<B, T>> for Whole<S, W>
where
    S: Service<Call<B, T>, Response = Response<Attempted<ResB>>, Error = Error>,
    ResB: Body<Data = Bytes> + Unpin,
    ResB::Error: Into<BoxError>,
    W: ServedBy<ResB>,
{
    type Response = Response<WholeBody<ResB>>;
    type Error = Error;
    type Future = WholeFuture<S::Future, ResB, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut call: Call<B, T>) -> Self::Future {
        let route = Arc::clone(&call.scope.entry.policy);
        let (started, deadline) = (call.scope.state.started, call.scope.state.deadline);
        let answer = route.answer.as_ref().map(|answer| Box::new(answered(answer, &call)));
        if !route.filters.is_empty() && answer.is_none() {
            route.filters.apply(call.http_mut());
        }
        let stage = match answer {
            Some(answer) => Stage::Answered(Some(answer)),
            None => Stage::Sent(self.inner.call(call)),
        };
        // Counted once it is under way, so that nothing is left of a call whose inner service panics.
        let meter = Some(Meter::begin(Counted::Route(route), started));
        WholeFuture { stage, meter, deadline, timer: None, judged: PhantomData }
    }
}

#[pin_project(project = Step)]
enum Stage<F, B: Body> {
    /// The request went on.
    Sent(#[pin] F),
    /// The route answered by itself; in a box, since few do.
    Answered(Option<Box<Answer<B>>>),
    /// It ended.
    Done,
}

/// What a route answers by itself.
type Answer<B> = Response<RespondBody<TimedBody<Attempted<B>>>>;

/// The future of [`Whole`]. Dropped before its end, the call counts as cancelled.
#[pin_project(PinnedDrop)]
pub struct WholeFuture<F, B: Body, W> {
    #[pin]
    stage: Stage<F, B>,
    /// Until the call ends or its response's body takes it over.
    meter: Option<Meter>,
    deadline: Option<Instant>,
    /// Armed when the call first waits.
    timer: Option<Pin<Box<Timer>>>,
    judged: PhantomData<fn() -> W>,
}

impl<F, B: Body, W> fmt::Debug for WholeFuture<F, B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WholeFuture").field("meter", &self.meter).finish_non_exhaustive()
    }
}

impl<F, B, W> Future for WholeFuture<F, B, W>
where
    F: Future<Output = Result<Response<Attempted<B>>, Error>>,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    W: ServedBy<B>,
{
    type Output = Result<Response<WholeBody<B>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let result = match this.stage.as_mut().project() {
            Step::Sent(sent) => match sent.poll(cx) {
                Poll::Ready(result) => result,
                Poll::Pending => match poll_limit(this.timer, this.meter.as_ref(), *this.deadline, cx) {
                    Poll::Ready(error) => Err(error),
                    Poll::Pending => return Poll::Pending,
                },
            },
            Step::Answered(answer) => {
                let answer = answer.take();
                return Poll::Ready(
                    answer.ok_or(Error::Closed).map(|answer| answered_by_route(*answer, this.meter.take())),
                );
            }
            Step::Done => Err(Error::Closed),
        };
        this.stage.set(Stage::Done);
        let Some(mut meter) = this.meter.take() else { return Poll::Ready(Err(Error::Closed)) };
        Poll::Ready(match result {
            Ok(mut response) => {
                let whole = whole(meter.started(), *this.deadline);
                meter.head(&response, W::judged(response.body().inner()));
                if let Some(route) = meter.route().filter(|route| !route.filters.is_empty()) {
                    route.filters.response(response.headers_mut());
                }
                let body = |body| RespondBody::new(TimedBody::limited(body, whole, None));
                Ok(response.map(|inner| Watched::new(body(inner), meter)))
            }
            Err(error) => {
                meter.settle(&Outcome::of_error(&error));
                Err(error)
            }
        })
    }
}

fn answered_by_route<B>(answer: Answer<B>, meter: Option<Meter>) -> Response<WholeBody<B>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let meter = meter.map(|mut meter| {
        meter.head(&answer, None);
        meter
    });
    answer.map(|body| Watched::maybe(body, meter))
}

/// Waits for the end of the call's time.
#[cold]
fn poll_limit(
    timer: &mut Option<Pin<Box<Timer>>>,
    meter: Option<&Meter>,
    deadline: Option<Instant>,
    cx: &mut Context<'_>,
) -> Poll<Error> {
    let bound = || {
        let meter = meter?;
        let started = meter.started();
        head(started, whole(started, deadline), &meter.route()?.timeouts)
    };
    if timer.is_none() {
        *timer = bound().map(|bound| Box::pin(Timer::new(Some(bound), None, Part::Head)));
    }
    match timer {
        Some(timer) => timer.as_mut().poll(cx).map(|bound| bound.error()),
        None => Poll::Pending,
    }
}

#[pinned_drop]
impl<F, B: Body, W> PinnedDrop for WholeFuture<F, B, W> {
    fn drop(self: Pin<&mut Self>) {
        if let Some(meter) = self.project().meter {
            meter.cancel();
        }
    }
}
