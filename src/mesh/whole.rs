//! Floor 6: a whole call: metrics, what its route does by itself, its time limit and its first attempt, in one future.
//!
//! It does what [`Metrics`](crate::metrics::layer::Metrics) around [`Act`](crate::route::layer::Act) around
//! [`Timeout`](crate::timeout::layer::Timeout) around [`Retry`] do, and a test holds the two
//! equal. Futures within each other would move each request, each future and each response several times more than one
//! does, which is a quarter of what a call costs. A call that needs more than its first attempt goes on in the future of
//! the retries, in a box.

use crate::error::{BoxError, Error};
use crate::limit::body::Lease;
use crate::mesh::dispatch::Attempts;
use crate::mesh::ending::{Answer, AnswerBody, Keep, WholeBody, answer, answered_by_route, finish};
use crate::mesh::guard::{Entry, Held, Passage, guard};
use crate::metrics::layer::{Counted, Meter};
use crate::policy::call::{Call, Lent, MeshRequest, ServedBy};
use crate::policy::failed;
use crate::policy::route::RoutePolicy;
use crate::retry::again::{Again, End, Judgement, prepare};
use crate::retry::body::Attempted;
use crate::retry::budget::Stake;
use crate::retry::layer::{Retry, RetryFuture, RetryLayer};
use crate::retry::replay::Replay;
use crate::route::filter::Filters;
use crate::route::layer::{allowed, by_itself};
use crate::stdx::clock::Instant;
use crate::stdx::rng::Rng;
use crate::timeout::layer::{head, whole};
use crate::timeout::plan::Part;
use crate::timeout::timed::Timer;
use bytes::Bytes;
use futures::future::Either;
use http::Response;
use http_body::Body;
use pin_project::{pin_project, pinned_drop};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Counts calls, answers those that their route answers by itself, retries them, and ends those that take too long. `W` is
/// asked where an attempt went and how its response was judged.
#[derive(Debug, Clone)]
pub struct WholeLayer<W> {
    retry: RetryLayer<W>,
}

impl<W> WholeLayer<W> {
    /// `rng` is the chance in backoffs.
    pub fn new(rng: Rng) -> Self {
        Self { retry: RetryLayer::by_route(rng) }
    }
}

impl<S, W> Layer<S> for WholeLayer<W> {
    type Service = Whole<S, W>;

    fn layer(&self, inner: S) -> Whole<S, W> {
        Whole { retry: self.retry.layer(inner) }
    }
}

/// The service of [`WholeLayer`].
#[derive(Debug)]
pub struct Whole<S, W> {
    /// Sends the attempts; the first of most calls without the help of its future.
    retry: Retry<S, W>,
}

impl<S: Clone, W> Clone for Whole<S, W> {
    fn clone(&self) -> Self {
        Self { retry: self.retry.clone() }
    }
}

impl<S, W, B, T, ResB> Service<Call<B, T>> for Whole<S, W>
where
    S: Attempts<Replay<B>, T, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
    ResB: Body<Data = Bytes> + Unpin,
    ResB::Error: Into<BoxError>,
    W: ServedBy<ResB>,
{
    type Response = Response<WholeBody<ResB>>;
    type Error = Error;
    type Future = WholeFuture<S, B, T, ResB, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.retry.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut call: Call<B, T>) -> Self::Future {
        let route = Arc::clone(&call.scope.entry.policy);
        let deadline = call.scope.state.deadline;
        let answer = by_itself(&route, call.http()).map(Box::new);
        let mut cors = None;
        if route.extras.is_some() {
            cors = allowed(&route, call.http())
                .map(|headers| Box::new(Filters::default().and_response(headers)));
        }
        if !route.filters.is_empty() && answer.is_none() {
            route.filters.apply(call.http_mut());
        }
        let (started, observed) = (call.scope.state.started, call.scope.observed.clone());
        let mut place = None;
        if answer.is_some() || route.guard.is_some() || route.hedges() {
            let held;
            (place, held) = self.held(&route, answer, call);
            match held {
                Ok(free) => call = free,
                Err(stage) => {
                    let keep = Keep { meter: Meter::begin(Counted::Route(route), started, observed), place };
                    return WholeFuture { again: None, stage, keep: Some(keep), cors, deadline, timer: None };
                }
            }
        }
        let prepared = prepare(None, &mut call);
        let Call { http, mut scope } = call;
        let Some(prepared) = prepared else {
            let first = self.retry.inner.attempt(Lent { http: http.map(Replay::through), scope: &mut scope });
            return WholeFuture {
                again: None,
                stage: Stage::First(first),
                keep: Some(Keep { meter: Meter::begin(Counted::Route(route), started, observed), place }),
                cors,
                deadline,
                timer: None,
            };
        };
        let mut kept = None;
        let http = http.map(|body| prepared.record(body, &mut kept));
        let mut again = Again::<S, Call<B, T>>::of(&http, scope, prepared, kept, self.retry.sender());
        // Made here and in this order: what is large is moved when it is returned, and it is counted once it is under way,
        // so that nothing is left of a call whose inner service panics.
        let first = self.retry.inner.attempt(Lent { http, scope: &mut again.head.scope });
        WholeFuture {
            again: Some(again),
            stage: Stage::First(first),
            keep: Some(Keep { meter: Meter::begin(Counted::Route(route), started, observed), place }),
            cors,
            deadline,
            timer: None,
        }
    }
}

impl<S: Clone, W> Whole<S, W> {
    /// What becomes of a call of which a second copy may be sent, or that its route answers or holds back: its place, and the
    /// call if it may go on as others do.
    #[cold]
    fn held<B, T, ResB>(
        &mut self,
        route: &RoutePolicy,
        answer: Option<Box<Answer<ResB>>>,
        call: Call<B, T>,
    ) -> Admitted<S, B, T, ResB, W>
    where
        S: Service<Call<Replay<B>, T>, Response = Response<ResB>>,
        S::Error: Into<Error>,
        B: Body + Unpin,
        B::Error: Into<BoxError>,
        ResB: Body + Unpin,
        W: ServedBy<ResB>,
    {
        let entry = match (route.guard.as_deref(), answer) {
            (Some(back), answer) => guard(back, answer, &mut self.retry, call),
            (None, Some(answer)) => Entry::Passed(Passage::Answered(answer), call),
            (None, None) => Entry::Passed(Passage::Free(None), call),
        };
        match entry {
            Entry::Passed(Passage::Free(place), call) if route.hedges() => {
                (place, Err(Stage::More(Box::pin(self.retry.call(call)))))
            }
            Entry::Passed(Passage::Free(place), call) => (place, Ok(call)),
            Entry::Passed(Passage::Answered(answer), _) => (None, Err(Stage::Answered(Some(answer)))),
            Entry::Passed(Passage::Refused(error), _) => (None, Err(Stage::Refused(Some(Box::new(error))))),
            Entry::Held(held) => (None, Err(Stage::Held(held))),
        }
    }
}

/// What becomes of a call that is looked at before it is sent: its place if its route has places, and itself or how it goes
/// on.
type Admitted<S, B, T, ResB, W> = (Option<Box<Lease>>, Result<Call<B, T>, Stage<S, B, T, ResB, W>>);
type More<S, B, T, ResB, W> = Pin<Box<RetryFuture<S, Call<B, T>, ResB, W>>>;
type Holds<S, B, T, ResB, W> = Pin<Box<Held<Retry<S, W>, Call<B, T>, AnswerBody<ResB>>>>;

/// What another attempt needs.
type Kept<S, B, T> = Option<Again<S, Call<B, T>>>;

#[pin_project(project = Step)]
enum Stage<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>>,
    ResB: Body,
{
    /// The first attempt is under way.
    First(#[pin] S::Future),
    /// It was not enough, or a second one may run beside it; in a box, since few calls need more.
    More(More<S, B, T, ResB, W>),
    /// Its route holds it back; in a box, since few do.
    Held(Holds<S, B, T, ResB, W>),
    /// Its route refused it.
    Refused(Option<Box<Error>>),
    /// The route answered by itself; in a box, since few do.
    Answered(Option<Box<Answer<ResB>>>),
    /// It ended.
    Done,
}

/// The future of [`Whole`]. Dropped before its end, the call counts as cancelled.
#[pin_project(PinnedDrop)]
pub struct WholeFuture<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>>,
    ResB: Body,
{
    #[pin]
    stage: Stage<S, B, T, ResB, W>,
    again: Kept<S, B, T>,
    /// Until the call ends or its response's body takes it over.
    keep: Option<Keep>,
    /// What is set in the response to a browser's request from another origin.
    cors: Option<Box<Filters>>,
    deadline: Option<Instant>,
    /// Armed when the call first waits.
    timer: Option<Pin<Box<Timer>>>,
}

impl<S, B, T, ResB, W> fmt::Debug for WholeFuture<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>>,
    ResB: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WholeFuture").field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl<S, B, T, ResB, W> Future for WholeFuture<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
    ResB: Body<Data = Bytes> + Unpin,
    ResB::Error: Into<BoxError>,
    W: ServedBy<ResB>,
{
    type Output = Result<Response<WholeBody<ResB>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.stage.as_mut().project() {
                // Polled after its end, which is the caller's fault.
                _ if this.keep.is_none() => return Poll::Ready(Err(Error::Closed)),
                Step::First(attempt) => {
                    failed::forget();
                    match attempt.poll(cx) {
                        Poll::Ready(Ok(mut response)) => {
                            let judgement =
                                this.again.as_ref().map(|again| again.judge::<_, W>(Ok(&response)));
                            if let Some(stake) = enough(&mut response, &judgement, this.again)
                                && let Some(keep) = this.keep.take()
                            {
                                let judged = W::judged(response.body());
                                let rest = (this.cors.take(), *this.deadline);
                                let first = |body| Attempted::first(body, stake);
                                return Poll::Ready(Ok(answer(response, judged, keep, rest, first)));
                            }
                            Next::after(Ok(response), judgement, this.again.take())
                        }
                        Poll::Ready(Err(error)) => Next::failed(error.into(), this.again.take()),
                        Poll::Pending => Next::Waits,
                    }
                }
                Step::More(more) => match more.as_mut().poll(cx) {
                    Poll::Ready(end) => Next::Ends(end),
                    Poll::Pending => Next::Waits,
                },
                Step::Held(held) => match held.as_mut().poll_pass(cx) {
                    Poll::Ready((passage, sender)) => Next::Goes(passed(passage, sender, this.keep)),
                    Poll::Pending => Next::Waits,
                },
                Step::Refused(error) => Next::Ends(Err(error.take().map_or(Error::Closed, |error| *error))),
                Step::Answered(answer) => {
                    let answer = answer.take().ok_or(Error::Closed);
                    let keep = this.keep.take();
                    return Poll::Ready(answer.map(|answer| answered_by_route(*answer, keep)));
                }
                Step::Done => return Poll::Ready(Err(Error::Closed)),
            };
            let end = match next {
                Next::Goes(stage) => {
                    this.stage.set(stage);
                    continue;
                }
                Next::Ends(end) => end,
                Next::Waits => Err(ready!(poll_limit(this.timer, this.keep.as_ref(), *this.deadline, cx))),
            };
            this.stage.set(Stage::Done);
            let Some(keep) = this.keep.take() else { return Poll::Ready(Err(Error::Closed)) };
            return Poll::Ready(finish(end, keep, (this.cors.take(), *this.deadline)));
        }
    }
}

/// What a look at a call finds.
enum Next<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>>,
    ResB: Body,
{
    /// Nothing yet.
    Waits,
    /// It goes on so.
    Goes(Stage<S, B, T, ResB, W>),
    /// Its last attempt ended so.
    Ends(End<ResB>),
}

impl<S, B, T, ResB, W> Next<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>>,
    ResB: Body,
    W: ServedBy<ResB>,
{
    /// After a first attempt that may not be enough.
    #[cold]
    fn after(
        result: Result<Response<ResB>, Error>,
        judgement: Option<Judgement>,
        again: Kept<S, B, T>,
    ) -> Self {
        let end = result.map(|response| response.map(Attempted::new));
        match (judgement, again) {
            (Some(judgement), Some(again)) => match RetryFuture::after(end, judgement, again) {
                Either::Left(more) => Self::Goes(Stage::More(Box::into_pin(more))),
                Either::Right(end) => Self::Ends(end),
            },
            _ => Self::Ends(end),
        }
    }

    /// After a first attempt that has no response.
    #[cold]
    fn failed(error: Error, again: Kept<S, B, T>) -> Self {
        let judgement = again.as_ref().map(|again| again.judge::<ResB, W>(Err(&error)));
        Self::after(Err(error), judgement, again)
    }
}

/// How a call goes on that nothing holds back any more; what sends it is there if it is sent.
#[cold]
fn passed<S, B, T, ResB, W>(
    passage: Passage<AnswerBody<ResB>>,
    sender: Option<(Retry<S, W>, Call<B, T>)>,
    keep: &mut Option<Keep>,
) -> Stage<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
    ResB: Body + Unpin,
    W: ServedBy<ResB>,
{
    match (passage, sender) {
        (Passage::Free(place), Some((mut retry, call))) => {
            if let Some(keep) = keep {
                keep.place = place;
            }
            Stage::More(Box::pin(retry.call(call)))
        }
        (Passage::Free(_), None) => Stage::Done,
        (Passage::Answered(answer), _) => Stage::Answered(Some(answer)),
        (Passage::Refused(error), _) => Stage::Refused(Some(Box::new(error))),
    }
}

/// Whether a first attempt that was answered so needs no other: then the call's stake.
#[inline]
fn enough<S, B, T, ResB>(
    response: &mut Response<ResB>,
    judgement: &Option<Judgement>,
    again: &mut Kept<S, B, T>,
) -> Option<Stake> {
    match (judgement, again) {
        (Some(Judgement::Done(outcome)), Some(again)) => again.pass(outcome, response),
        (None, None) => Some(Stake::default()),
        _ => None,
    }
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
impl<S, B, T, ResB, W> PinnedDrop for WholeFuture<S, B, T, ResB, W>
where
    S: Service<Call<Replay<B>, T>>,
    ResB: Body,
{
    fn drop(self: Pin<&mut Self>) {
        if let Some(keep) = self.project().keep {
            keep.meter.cancel();
        }
    }
}
