//! Floor 6: a whole call: metrics, what its route does by itself, and its time limit, in one future.
//!
//! It does what [`Metrics`](crate::metrics::layer::Metrics) around [`Act`](crate::route::layer::Act) around
//! [`Timeout`](crate::timeout::layer::Timeout) do, and a test holds the two equal. Three futures within each other would
//! move each request, each future and each response twice more than one does, which is a tenth of what a call costs.

use crate::classify::answer::RespondBody;
use crate::classify::body::{End, Watch, Watched};
use crate::error::{BoxError, Error};
use crate::limit::body::Lease;
use crate::limit::layer::is_dropped;
use crate::mesh::guard::{Entry, Held, Passage, guard};
use crate::metrics::layer::{Counted, Meter};
use crate::policy::call::{Call, MeshRequest, ServedBy};
use crate::policy::route::RoutePolicy;
use crate::retry::body::Attempted;
use crate::route::filter::Filters;
use crate::route::layer::{allowed, by_itself};
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
pub type WholeBody<B> = Watched<RespondBody<TimedBody<Attempted<B>>>, Keep>;

/// What a call holds until it ends: its meter, and its place if its route has limits.
#[derive(Debug)]
pub struct Keep {
    meter: Meter,
    place: Option<Box<Lease>>,
}

impl Keep {
    /// What counts it.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

impl Watch for Keep {
    fn first(&mut self) {
        self.meter.first();
    }

    fn data(&mut self, bytes: usize) {
        self.meter.data(bytes);
    }

    #[inline]
    fn end(&mut self, end: End<'_>) {
        self.meter.end(end);
        self.place = None;
    }
}

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
    S: Service<Call<B, T>, Response = Response<Attempted<ResB>>, Error = Error> + Clone,
    ResB: Body<Data = Bytes> + Unpin,
    ResB::Error: Into<BoxError>,
    W: ServedBy<ResB>,
{
    type Response = Response<WholeBody<ResB>>;
    type Error = Error;
    type Future = WholeFuture<S, Call<B, T>, ResB, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut call: Call<B, T>) -> Self::Future {
        let route = Arc::clone(&call.scope.entry.policy);
        let (started, deadline) = (call.scope.state.started, call.scope.state.deadline);
        let observed = call.scope.observed.clone();
        let answer = by_itself(&route, call.http()).map(Box::new);
        let mut cors = None;
        if route.extras.is_some() {
            cors = allowed(&route, call.http())
                .map(|headers| Box::new(Filters::default().and_response(headers)));
        }
        if !route.filters.is_empty() && answer.is_none() {
            route.filters.apply(call.http_mut());
        }
        let (stage, place) = match (answer, &route.guard) {
            (answer, Some(_)) => self.guarded(&route, answer, call),
            (Some(answer), None) => (Stage::Answered(Some(answer)), None),
            (None, None) => (Stage::Sent(self.inner.call(call)), None),
        };
        // Counted once it is under way, so that nothing is left of a call whose inner service panics.
        let keep = Some(Keep { meter: Meter::begin(Counted::Route(route), started, observed), place });
        WholeFuture { stage, keep, cors, deadline, timer: None, judged: PhantomData }
    }
}

impl<S: Clone, W> Whole<S, W> {
    /// Asks what keeps requests of the route back.
    #[cold]
    #[expect(clippy::type_complexity, reason = "it is what `call` takes apart at once")]
    fn guarded<B, T, ResB: Body>(
        &mut self,
        route: &RoutePolicy,
        answer: Option<Box<Answer<ResB>>>,
        call: Call<B, T>,
    ) -> (Stage<S, Call<B, T>, ResB>, Option<Box<Lease>>)
    where
        S: Service<Call<B, T>>,
    {
        let Some(back) = route.guard.as_deref() else { return (Stage::Done, None) };
        match guard(back, answer, &mut self.inner, call) {
            Entry::Passed(passage, call) => passed_on(passage, || Some(self.inner.call(call))),
            Entry::Held(held) => (Stage::Held(held), None),
        }
    }
}

#[pin_project(project = Step)]
enum Stage<S: Service<C>, C, B: Body> {
    /// The request went on.
    Sent(#[pin] S::Future),
    /// Its route holds it back; in a box, since few do.
    Held(Pin<Box<Held<S, C, AnswerBody<B>>>>),
    /// Its route refused it.
    Refused(Option<Box<Error>>),
    /// The route answered by itself; in a box, since few do.
    Answered(Option<Box<Answer<B>>>),
    /// It ended.
    Done,
}

/// What a route answers by itself.
type Answer<B> = Response<AnswerBody<B>>;
type AnswerBody<B> = RespondBody<TimedBody<Attempted<B>>>;

/// The future of [`Whole`]. Dropped before its end, the call counts as cancelled.
#[pin_project(PinnedDrop)]
pub struct WholeFuture<S: Service<C>, C, B: Body, W> {
    #[pin]
    stage: Stage<S, C, B>,
    /// Until the call ends or its response's body takes it over.
    keep: Option<Keep>,
    /// What is set in the response to a browser's request from another origin.
    cors: Option<Box<Filters>>,
    deadline: Option<Instant>,
    /// Armed when the call first waits.
    timer: Option<Pin<Box<Timer>>>,
    judged: PhantomData<fn() -> W>,
}

impl<S: Service<C>, C, B: Body, W> fmt::Debug for WholeFuture<S, C, B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WholeFuture").field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl<S, ReqB, T, B, W> Future for WholeFuture<S, Call<ReqB, T>, B, W>
where
    S: Service<Call<ReqB, T>, Response = Response<Attempted<B>>, Error = Error>,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    W: ServedBy<B>,
{
    type Output = Result<Response<WholeBody<B>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let result = loop {
            let poll = match this.stage.as_mut().project() {
                Step::Sent(sent) => sent.poll(cx),
                Step::Held(held) => match held.as_mut().poll_pass(cx) {
                    Poll::Ready((passage, call)) => {
                        let sent = || call.map(|(mut service, call)| service.call(call));
                        let (stage, place) = passed_on(passage, sent);
                        this.stage.set(stage);
                        if let Some(keep) = this.keep {
                            keep.place = place;
                        }
                        continue;
                    }
                    Poll::Pending => Poll::Pending,
                },
                Step::Refused(error) => Poll::Ready(Err(error.take().map_or(Error::Closed, |error| *error))),
                Step::Answered(answer) => {
                    let answer = answer.take();
                    return Poll::Ready(
                        answer
                            .ok_or(Error::Closed)
                            .map(|answer| answered_by_route(*answer, this.keep.take())),
                    );
                }
                Step::Done => Poll::Ready(Err(Error::Closed)),
            };
            match poll {
                Poll::Ready(result) => break result,
                Poll::Pending => match poll_limit(this.timer, this.keep.as_ref(), *this.deadline, cx) {
                    Poll::Ready(error) => break Err(error),
                    Poll::Pending => return Poll::Pending,
                },
            }
        };
        this.stage.set(Stage::Done);
        let Some(mut keep) = this.keep.take() else { return Poll::Ready(Err(Error::Closed)) };
        if let Some(place) = &keep.place {
            place.answered(is_dropped(&result));
        }
        let meter = &mut keep.meter;
        Poll::Ready(match result {
            Ok(mut response) => {
                // A body at its end has no time to take.
                let is_over = response.body().is_end_stream();
                let whole = if is_over { None } else { whole(meter.started(), *this.deadline) };
                meter.head(&response, W::judged(response.body().inner()));
                if let Some(deadline) = *this.deadline {
                    meter.left(deadline);
                }
                if let Some(route) = meter.route().filter(|route| !route.filters.is_empty()) {
                    route.filters.response(response.headers_mut());
                }
                if let Some(cors) = this.cors.take() {
                    cors.response(response.headers_mut());
                }
                let body = |body| RespondBody::new(TimedBody::limited(body, whole, None));
                Ok(response.map(|inner| Watched::new(body(inner), keep)))
            }
            Err(error) => {
                meter.fail(&error);
                Err(error)
            }
        })
    }
}

/// What follows when nothing holds a call back any more, and its place; it is sent by `send`, if it is there.
#[cold]
fn passed_on<S: Service<C>, C, B: Body>(
    passage: Passage<AnswerBody<B>>,
    send: impl FnOnce() -> Option<S::Future>,
) -> (Stage<S, C, B>, Option<Box<Lease>>) {
    match passage {
        Passage::Free(place) => match send() {
            Some(sent) => (Stage::Sent(sent), place),
            None => (Stage::Done, None),
        },
        Passage::Answered(answer) => (Stage::Answered(Some(answer)), None),
        Passage::Refused(error) => (Stage::Refused(Some(Box::new(error))), None),
    }
}

fn answered_by_route<B>(answer: Answer<B>, keep: Option<Keep>) -> Response<WholeBody<B>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let keep = keep.map(|mut keep| {
        keep.meter.head(&answer, None);
        keep
    });
    answer.map(|body| Watched::maybe(body, keep))
}

/// Waits for the end of the call's time.
#[cold]
fn poll_limit(
    timer: &mut Option<Pin<Box<Timer>>>,
    keep: Option<&Keep>,
    deadline: Option<Instant>,
    cx: &mut Context<'_>,
) -> Poll<Error> {
    let bound = || {
        let meter = &keep?.meter;
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
impl<S: Service<C>, C, B: Body, W> PinnedDrop for WholeFuture<S, C, B, W> {
    fn drop(self: Pin<&mut Self>) {
        if let Some(keep) = self.project().keep {
            keep.meter.cancel();
        }
    }
}
