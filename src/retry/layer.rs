//! Floor 4: sends a request again when its attempt failed, within its route's policy and its service's budget.

use crate::classify::classifier::trailers;
use crate::classify::outcome::Outcome;
use crate::error::{BoxError, Error};
use crate::policy::call::{MeshRequest, Nobody, ServedBy};
use crate::policy::failed;
use crate::retry::again::{Again, End, Judgement, Waits, prepare};
use crate::retry::body::Attempted;
use crate::retry::decide::RetryPolicy;
use crate::retry::race::Race;
use crate::retry::replay::Replay;
use crate::stdx::clock::Duration;
use crate::stdx::rng::Rng;
use futures::future::Either;
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
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
    pub(crate) inner: S,
    layer: RetryLayer<W>,
}

impl<S, W> Retry<S, W> {
    /// What sends further attempts, and the chance in backoffs.
    #[inline]
    pub(crate) fn sender(&self) -> (S, Rng)
    where
        S: Clone,
    {
        (self.inner.clone(), self.layer.rng.clone())
    }
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

    #[inline]
    fn call(&mut self, mut request: R) -> Self::Future {
        let Some(prepared) = prepare(self.layer.own.as_ref(), &mut request) else {
            return RetryFuture::of(self.inner.call(request.map_body(Replay::through)), None, None);
        };
        let (hedge, mut keep) = (prepared.hedge, None);
        let request = request.map_body(|body| prepared.record(body, &mut keep));
        // The inner service that is ready is called; its clone is what the next request asks whether it is ready.
        let (clone, rng) = self.sender();
        let service = std::mem::replace(&mut self.inner, clone);
        let mut again = Again::of(request.http(), request.rest(), prepared, keep, (service, rng));
        if hedge.is_some() {
            failed::forget();
        }
        let attempt = again.service_mut().call(request);
        if hedge.is_some() {
            again.note_sent();
        }
        RetryFuture::of(attempt, Some(again), hedge)
    }
}

enum Stage<F, B, ResB: Body> {
    /// An attempt is under way.
    Attempt,
    /// Its response came, and its trailers may follow. In a box, since most calls never come here.
    Peek(Box<(End<ResB>, Outcome)>),
    /// The next attempt's body waits for the backoff to end.
    Wait(Waits<B>),
    /// A first attempt is under way, and a second one may run beside it. In a box, made only for routes that hedge.
    Race(Box<Race<F>>),
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
    stage: Stage<S::Future, R::Body, ResB>,
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
    /// A call whose first attempt is under way.
    #[inline]
    pub(crate) fn of(attempt: S::Future, again: Option<Again<S, R>>, hedge: Option<Duration>) -> Self {
        let stage = match hedge {
            Some(after) => Stage::Race(Box::new(Race::after(after))),
            None => Stage::Attempt,
        };
        Self { attempt: Some(attempt), stage, again, number: 0, served: PhantomData }
    }
}

impl<S, R, ResB, W> RetryFuture<S, R, ResB, W>
where
    R: MeshRequest,
    S: Service<R::With<Replay<R::Body>>>,
    ResB: Body,
    W: ServedBy<ResB>,
{
    /// A call whose first attempt ended so: its end, or what follows.
    pub(crate) fn after(
        end: End<ResB>,
        judgement: Judgement,
        mut again: Again<S, R>,
    ) -> Either<Box<Self>, End<ResB>> {
        let mut stage = Stage::Attempt;
        match (Ended { end, judgement, number: 0 }).conclude::<S, R, W>(&mut again, &mut stage) {
            Some(end) => Either::Right(end),
            None => Either::Left(Box::new(Self {
                attempt: None,
                stage,
                again: Some(again),
                number: 0,
                served: PhantomData,
            })),
        }
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
                    let result = ready!(attempt.poll(cx)).map_err(Into::into);
                    this.attempt.set(None);
                    let judgement = this.again.as_ref().map(|again| again.judge::<ResB, W>(result.as_ref()));
                    let end = result.map(|response| response.map(Attempted::new));
                    let (Some(again), Some(judgement)) = (this.again.as_mut(), judgement) else {
                        return Poll::Ready(end);
                    };
                    let ended = Ended { end, judgement, number: *this.number };
                    if let Some(end) = ended.conclude::<S, R, W>(again, this.stage) {
                        return Poll::Ready(end);
                    }
                }
                Stage::Race(race) => {
                    let ended =
                        ready!(poll_race::<S, R, ResB, W>(race, this.attempt.as_mut(), this.again, cx));
                    let Some(again) = this.again else { return Poll::Ready(ended.end) };
                    (*this.number, *this.stage) = (ended.number, Stage::Attempt);
                    match ended.conclude::<S, R, W>(again, this.stage) {
                        Some(end) => return Poll::Ready(end),
                        None => continue,
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
                        Some(wait) => *this.stage = Stage::Wait(wait),
                        None => return Poll::Ready(end),
                    }
                }
                Stage::Wait((_, sleep)) => {
                    if let Some(timer) = sleep {
                        ready!(timer.as_mut().poll(cx));
                        *sleep = None;
                    }
                    let Some(again) = this.again else { return Poll::Ready(Err(Error::Closed)) };
                    ready!(again.service.poll_ready(cx)).map_err(Into::into)?;
                    let Stage::Wait((body, _)) = std::mem::replace(this.stage, Stage::Attempt) else {
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

/// How a race ended.
struct Ended<ResB: Body> {
    end: End<ResB>,
    judgement: Judgement,
    /// The number of its last attempt.
    number: u32,
}

impl<ResB: Body> Ended<ResB> {
    /// What the caller gets, or what follows.
    fn conclude<S, R, W>(
        mut self,
        again: &mut Again<S, R>,
        stage: &mut Stage<S::Future, R::Body, ResB>,
    ) -> Option<End<ResB>>
    where
        R: MeshRequest,
        S: Service<R::With<Replay<R::Body>>>,
        W: ServedBy<ResB>,
    {
        *stage = match self.judgement {
            Judgement::Peek(outcome) => Stage::Peek(Box::new((self.end, outcome))),
            Judgement::Done(outcome) => match again.settle::<ResB, W>(self.number, outcome, &mut self.end) {
                Some(wait) => Stage::Wait(wait),
                None => return Some(self.end),
            },
        };
        None
    }
}

/// Waits for the first good end of a first attempt and a second one beside it, or for the last bad one.
#[cold]
fn poll_race<S, R, ResB, W>(
    race: &mut Race<S::Future>,
    mut first: Pin<&mut Option<S::Future>>,
    again: &mut Option<Again<S, R>>,
    cx: &mut Context<'_>,
) -> Poll<Ended<ResB>>
where
    R: MeshRequest,
    S: Service<R::With<Replay<R::Body>>, Response = Response<ResB>>,
    S::Error: Into<Error>,
    ResB: Body + Unpin,
    W: ServedBy<ResB>,
{
    loop {
        failed::forget();
        let (second, end) = ready!(race.poll(first.as_mut(), again, cx));
        let result = end.map_err(Into::into);
        let judgement = again.as_ref().map(|again| again.judge::<ResB, W>(result.as_ref()));
        let end = result.map(|response| response.map(Attempted::new));
        let (Some(again), Some(judgement)) = (again.as_mut(), judgement) else {
            let judgement = Judgement::Done(Outcome::DROPPED);
            return Poll::Ready(Ended { end, judgement, number: 0 });
        };
        let good = again.is_good(&judgement);
        if race.is_on(first.is_some())
            && let (false, Judgement::Done(outcome)) = (good, &judgement)
        {
            // The other one may do better.
            again.lost::<ResB, W>(outcome, &end);
            race.lost();
            continue;
        }
        race.finish(second && good);
        first.set(None);
        return Poll::Ready(Ended { end, judgement, number: u32::from(race.was_hedged()) });
    }
}
