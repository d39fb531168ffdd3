//! Floor 4: sends a request again when its attempt failed, within its route's policy and its service's budget.

use crate::classify::classifier::{Classifier, Head, trailers};
use crate::classify::outcome::{Cause, Outcome, Verdict as Judged};
use crate::error::{BoxError, Error};
use crate::policy::call::{MeshRequest, Nobody, ServedBy};
use crate::policy::failed;
use crate::policy::observe::Note;
use crate::profile::settings::HopMarks;
use crate::retry::body::Attempted;
use crate::retry::budget::Stake;
use crate::retry::decide::{Ended, RetryPolicy, Verdict, Why};
use crate::retry::marks;
use crate::retry::replay::{Keep, Replay, Replayable};
use crate::stdx::clock::{self, Duration};
use crate::stdx::rng::Rng;
use crate::timeout::inherited;
use http::header::CONTENT_TYPE;
use http::{Response, Version};
use http_body::Body;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

/// Retries. A request that met a route follows its route's policy; another one the layer's own, if it has one.
///
/// `W` tells which endpoint served an attempt, so that the next one can go elsewhere.
pub struct RetryLayer<W = Nobody> {
    own: Option<Arc<RetryPolicy>>,
    rng: Rng,
    served: PhantomData<fn() -> W>,
}

impl RetryLayer {
    /// Retries plain requests by `policy`. `rng` is the chance in backoffs.
    pub fn new(policy: RetryPolicy, rng: Rng) -> Self {
        Self { own: Some(Arc::new(policy)), rng, served: PhantomData }
    }
}

impl<W> RetryLayer<W> {
    /// Retries by the policies of routes, and requests without a route never.
    pub fn by_route(rng: Rng) -> Self {
        Self { own: None, rng, served: PhantomData }
    }
}

impl<W> Clone for RetryLayer<W> {
    fn clone(&self) -> Self {
        Self { own: self.own.clone(), rng: self.rng.clone(), served: PhantomData }
    }
}

impl<W> fmt::Debug for RetryLayer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer").field("own", &self.own).finish_non_exhaustive()
    }
}

impl<S, W> Layer<S> for RetryLayer<W> {
    type Service = Retry<S, W>;

    fn layer(&self, inner: S) -> Retry<S, W> {
        Retry { inner, layer: self.clone() }
    }
}

/// The service of [`RetryLayer`].
#[derive(Debug)]
pub struct Retry<S, W = Nobody> {
    inner: S,
    layer: RetryLayer<W>,
}

impl<S: Clone, W> Clone for Retry<S, W> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, W, R, ResB> Service<R> for Retry<S, W>
where
    R: MeshRequest,
    R::Body: Body + Unpin,
    <R::Body as Body>::Error: Into<BoxError>,
    S: Service<R::With<Replay<R::Body>>, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    ResB: Body + Unpin,
    W: ServedBy<ResB>,
{
    type Response = Response<Attempted<ResB>>;
    type Error = Error;
    type Future = RetryFuture<S, R, ResB, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: R) -> Self::Future {
        let (policy, own) = match request.route() {
            Some(route) => (route.retry.as_ref(), None),
            None => (self.layer.own.as_deref(), self.layer.own.as_ref()),
        };
        let retries_max = request.state().and_then(|state| state.retries_max);
        let Some(policy) = policy.filter(|policy| policy.may_repeat(retries_max)) else {
            return RetryFuture::new(self.inner.call(request.map_body(Replay::through)), None);
        };
        let (bytes_max, hops, patience) = (policy.body_bytes_max(), policy.hops(), policy.patience());
        let (stake, own) = (policy.budget().enter(), own.cloned());
        if let Some(state) = request.state_mut() {
            state.patience = patience;
        }
        if hops == HopMarks::Strip {
            marks::strip(request.http_mut().headers_mut());
        }
        // The inner service that is ready is called; its clone is what the next request asks whether it is ready.
        let clone = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, clone);
        let (head, mut keep) = (request.copy_head(), None);
        let attempt = service.call(request.map_body(|body| {
            let (body, kept) = Replay::record(body, bytes_max);
            keep = kept;
            body
        }));
        let rng = self.layer.rng.clone();
        RetryFuture::new(attempt, Some(Again { service, head, keep, own, stake, rng, free: 0 }))
    }
}

/// What is kept of a request to send it again.
struct Again<S, R: MeshRequest> {
    service: S,
    head: R::With<()>,
    keep: Option<Keep<R::Body>>,
    own: Option<Arc<RetryPolicy>>,
    stake: Stake,
    rng: Rng,
    free: u32,
}

/// How an attempt ended.
type End<ResB> = Result<Response<Attempted<ResB>>, Error>;

enum Judgement {
    Done(Outcome),
    /// The trailers may say otherwise.
    Peek(Outcome),
}

impl<S, R: MeshRequest> Again<S, R> {
    fn policy(&self) -> Option<&RetryPolicy> {
        self.own.as_deref().or_else(|| self.head.route()?.retry.as_ref())
    }

    fn judge<ResB: Body, W: ServedBy<ResB>>(&self, end: &End<ResB>) -> Judgement {
        let response = match end {
            Ok(response) => response,
            // What this crate answered itself would be answered so again.
            Err(Error::InvalidBackend { .. } | Error::Fault { .. }) => {
                return Judgement::Done(Outcome::new(Judged::Failure, Cause::Local));
            }
            Err(error) => return Judgement::Done(Outcome::of_error(error)),
        };
        let (status, headers) = (response.status(), response.headers());
        let judged = W::judged(response.body().inner()).map(|judged| judged.head);
        let head = judged.unwrap_or_else(|| match self.head.route() {
            Some(route) => route.classifier.head(status, headers, clock::wall_secs),
            None => Classifier::default().head(status, headers, clock::wall_secs),
        });
        match head {
            Head::Unless(outcome) if self.may_peek(response) => Judgement::Peek(outcome),
            head => Judgement::Done(head.outcome()),
        }
    }

    /// Whether the trailers may tell more: gRPC over HTTP/2 (linkerd.md §3.1). Of another response, waiting for the
    /// first frame would hold back its headers for nothing.
    fn may_peek<ResB: Body>(&self, response: &Response<Attempted<ResB>>) -> bool {
        let headers = response.headers();
        response.version() == Version::HTTP_2
            && (marks::is_grpc(headers) || !headers.contains_key(CONTENT_TYPE))
            && !response.body().inner().is_end_stream()
            && self.policy().is_some_and(RetryPolicy::wants_trailers)
    }

    /// Decides about attempt `number` and tells the budget; counts what could be retried.
    fn decide<ResB: Body>(&mut self, number: u32, outcome: Outcome, end: &End<ResB>) -> Verdict {
        let mut stake = std::mem::take(&mut self.stake);
        let verdict = self.verdict(&mut stake, number, outcome, end);
        self.stake = stake;
        if let Some(route) = self.head.route() {
            match verdict {
                Verdict::Retry { .. } => route.metrics.retryable(true),
                Verdict::Return(Why::Budget) => route.metrics.retryable(false),
                Verdict::Return(_) => {}
            }
        }
        if let Verdict::Retry { free: true, .. } = verdict {
            self.free += 1;
        }
        verdict
    }

    fn verdict<ResB: Body>(
        &self,
        stake: &mut Stake,
        number: u32,
        outcome: Outcome,
        end: &End<ResB>,
    ) -> Verdict {
        let Some(policy) = self.policy() else { return Verdict::Return(Why::Unlisted) };
        let state = self.head.state();
        if !policy.is_worth(&outcome) {
            policy.budget().deposit(state.map_or_else(clock::now, |state| state.started));
            return Verdict::Return(Why::Unlisted);
        }
        let request = self.head.http();
        let trusted = policy.hops() == HopMarks::Trust;
        let said = end.as_ref().ok().into_iter().flat_map(|response| {
            [Some(response.headers()), response.body().trailers()].into_iter().flatten()
        });
        // Later attempts carry our own mark.
        let mut forbidden = trusted
            && number == 0
            && (inherited::current().repeated || marks::is_repeated(request.headers()));
        for headers in said {
            forbidden |= marks::forbids(headers) || trusted && marks::is_in_vain(headers);
        }
        let kept = self.keep.as_ref().map_or(Replayable::Gone, Keep::state);
        let ended = Ended {
            method: request.method(),
            outcome,
            attempt: number,
            free: self.free,
            retries_max: state.and_then(|state| state.retries_max),
            deadline: state.and_then(|state| state.deadline),
            typical: Duration::ZERO,
            // A response that came before all of the body was sent stands: it may answer a part of it.
            replayable: kept == Replayable::Complete || kept == Replayable::Open && end.is_err(),
            forbidden,
        };
        policy.decide(&ended, stake, clock::now(), &self.rng)
    }

    /// Decides what follows attempt `number`: the wait for another one; or nothing, and `end` is what the caller gets.
    fn settle<ResB, W>(
        &mut self,
        number: u32,
        outcome: Outcome,
        end: &mut End<ResB>,
    ) -> Option<Stage<R::Body, ResB>>
    where
        ResB: Body,
        W: ServedBy<ResB>,
    {
        let after = match self.decide(number, outcome, end) {
            Verdict::Retry { after, .. } => after,
            Verdict::Return(why) => {
                self.give_up(number, why, end);
                return None;
            }
        };
        let Some(body) = self.keep.as_ref().and_then(Keep::again) else {
            self.give_up(number, Why::Body, end);
            return None;
        };
        if let Some(route) = self.head.route() {
            let status = end.as_ref().ok().map(|response| response.status().as_u16());
            route.metrics.retried(status, &outcome);
        }
        let tried = match &end {
            Ok(response) => W::served_by(response.body().inner()),
            Err(_) => failed::take(),
        };
        if let (Some(state), Some(id)) = (self.head.state_mut(), tried) {
            state.tried.push(id);
        }
        if let Some(observed) = self.head.observed() {
            observed.note(Note::Retried(number, &outcome, after));
        }
        let sleep = (!after.is_zero()).then(|| Box::pin(tokio::time::sleep(after)));
        Some(Stage::Wait(body, sleep))
    }

    /// Marks the last attempt's end for the hop before, and for the caller.
    fn give_up<ResB: Body>(&mut self, number: u32, why: Why, end: &mut End<ResB>) {
        let hops = self.policy().map_or(HopMarks::Off, RetryPolicy::hops);
        if hops != HopMarks::Off && why.is_in_vain() {
            inherited::note_in_vain();
        }
        if let Some(observed) = self.head.observed().filter(|_| why != Why::Unlisted) {
            observed.note(Note::GivenUp(number, why.as_str()));
        }
        let Ok(response) = end else { return };
        match hops {
            HopMarks::Off => {}
            HopMarks::Strip if !why.is_in_vain() => marks::strip(response.headers_mut()),
            HopMarks::Trust | HopMarks::Strip if why.is_in_vain() => {
                marks::in_vain(response.headers_mut(), number + 1);
            }
            HopMarks::Trust | HopMarks::Strip => {}
        }
        response.body_mut().finish(number + 1, std::mem::take(&mut self.stake));
    }

    /// The request for attempt `number`, and what is kept to send it yet again.
    fn next(self, number: u32, body: Replay<R::Body>) -> (Self, R::With<Replay<R::Body>>) {
        let policy = self.policy();
        let last = policy.is_none_or(|policy| {
            let retries_max = self.head.state().and_then(|state| state.retries_max);
            policy.is_last(number - self.free, retries_max) || policy.budget().level(clock::now()) == 0
        });
        let marked = policy.is_some_and(|policy| policy.hops() != HopMarks::Off);
        let Self { service, mut head, keep, own, stake, rng, free } = self;
        if let Some(state) = head.state_mut() {
            state.attempt = number;
            state.patience = state.patience.filter(|_| !last);
        }
        if marked {
            marks::repeated(head.http_mut().headers_mut(), number, last);
        }
        let (rest, parts, ()) = head.split();
        let head = R::join(rest.clone(), parts.clone(), ());
        (Self { service, head, keep, own, stake, rng, free }, R::join(rest, parts, body))
    }
}

enum Stage<B, ResB: Body> {
    /// An attempt is under way.
    Attempt,
    /// Its response came, and its trailers may follow. In a box, since most calls never come here.
    Peek(Box<(End<ResB>, Outcome)>),
    /// The next attempt's body waits for the backoff to end.
    Wait(Replay<B>, Option<Pin<Box<Sleep>>>),
}

/// The future of [`Retry`].
#[pin_project]
pub struct RetryFuture<S, R, ResB, W>
where
    R: MeshRequest,
    S: Service<R::With<Replay<R::Body>>>,
    ResB: Body,
{
    #[pin]
    attempt: Option<S::Future>,
    stage: Stage<R::Body, ResB>,
    /// `None`: there is no second attempt.
    again: Option<Again<S, R>>,
    number: u32,
    served: PhantomData<fn() -> W>,
}

impl<S, R, ResB, W> RetryFuture<S, R, ResB, W>
where
    R: MeshRequest,
    S: Service<R::With<Replay<R::Body>>>,
    ResB: Body,
{
    fn new(attempt: S::Future, again: Option<Again<S, R>>) -> Self {
        Self { attempt: Some(attempt), stage: Stage::Attempt, again, number: 0, served: PhantomData }
    }
}

impl<S, R, ResB, W> fmt::Debug for RetryFuture<S, R, ResB, W>
where
    R: MeshRequest,
    S: Service<R::With<Replay<R::Body>>>,
    ResB: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<S, R, ResB, W> Future for RetryFuture<S, R, ResB, W>
where
    R: MeshRequest,
    S: Service<R::With<Replay<R::Body>>, Response = Response<ResB>>,
    S::Error: Into<Error>,
    ResB: Body + Unpin,
    W: ServedBy<ResB>,
{
    type Output = Result<Response<Attempted<ResB>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.stage {
                Stage::Attempt => {
                    let Some(attempt) = this.attempt.as_mut().as_pin_mut() else {
                        return Poll::Ready(Err(Error::Closed));
                    };
                    if this.again.is_some() {
                        failed::forget();
                    }
                    let mut end: End<ResB> = match ready!(attempt.poll(cx)) {
                        Ok(response) => Ok(response.map(Attempted::new)),
                        Err(error) => Err(error.into()),
                    };
                    this.attempt.set(None);
                    let Some(again) = this.again else { return Poll::Ready(end) };
                    match again.judge::<ResB, W>(&end) {
                        Judgement::Done(outcome) => {
                            match again.settle::<ResB, W>(*this.number, outcome, &mut end) {
                                Some(wait) => *this.stage = wait,
                                None => return Poll::Ready(end),
                            }
                        }
                        Judgement::Peek(outcome) => *this.stage = Stage::Peek(Box::new((end, outcome))),
                    }
                }
                Stage::Peek(peeked) => {
                    if let Ok(response) = &mut peeked.0 {
                        ready!(response.body_mut().poll_peek(cx));
                    }
                    let Stage::Peek(peeked) = std::mem::replace(this.stage, Stage::Attempt) else { continue };
                    let (mut end, outcome) = *peeked;
                    let found = end.as_ref().ok().and_then(|response| response.body().trailers());
                    let outcome = trailers(outcome, found);
                    let Some(again) = this.again else { return Poll::Ready(Err(Error::Closed)) };
                    match again.settle::<ResB, W>(*this.number, outcome, &mut end) {
                        Some(wait) => *this.stage = wait,
                        None => return Poll::Ready(end),
                    }
                }
                Stage::Wait(_, sleep) => {
                    if let Some(timer) = sleep {
                        ready!(timer.as_mut().poll(cx));
                        *sleep = None;
                    }
                    let Some(again) = this.again else { return Poll::Ready(Err(Error::Closed)) };
                    ready!(again.service.poll_ready(cx)).map_err(Into::into)?;
                    let Stage::Wait(body, _) = std::mem::replace(this.stage, Stage::Attempt) else {
                        continue;
                    };
                    let Some(again) = this.again.take() else { return Poll::Ready(Err(Error::Closed)) };
                    *this.number += 1;
                    let (mut again, request) = again.next(*this.number, body);
                    this.attempt.set(Some(again.service.call(request)));
                    *this.again = Some(again);
                }
            }
        }
    }
}
