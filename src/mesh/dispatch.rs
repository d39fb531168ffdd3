//! Floor 6: one attempt: its backend, its endpoint and its limits, in one future.
//!
//! It does what [`Split`](crate::split::layer::Split) over [`Balance`](crate::balance::layer::Balance) over
//! [`Attempt`](crate::timeout::attempt::Attempt) do, and a test holds the two equal. What few attempts meet (no endpoint
//! known yet, one that is not ready) is left to the balancer's own future, in a box.

use crate::balance::body::Served;
use crate::balance::future::{BalanceFuture, Pick, failed_at, head, settled};
use crate::balance::ticket::Ticket;
use crate::classify::classifier::Classifier;
use crate::error::{BoxError, Error};
use crate::mesh::stack::{Backend, Replica};
use crate::policy::call::{Call, EndpointId, Judged, Lent};
use crate::policy::failed;
use crate::route::filter::Filters;
use crate::timeout::attempt::{Begun, Limit};
use crate::timeout::body::{Sending, TimedBody};
use crate::timeout::plan::{Pace, Part};
use crate::timeout::timed::Timer;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tower_service::Service;

/// Sends each attempt of a call to one of its route's endpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dispatch;

impl<B, C, ResB> Service<Call<B, Backend<C>>> for Dispatch
where
    B: Body,
    C: Service<Request<Sending<B>>, Response = Response<ResB>> + Clone,
    C::Error: Into<Error>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    type Response = Response<Served<TimedBody<ResB>>>;
    type Error = Error;
    type Future = DispatchFuture<C, B>;

    /// Always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Call<B, Backend<C>>) -> Self::Future {
        self.attempt(Lent { http: call.http, scope: &mut call.scope })
    }
}

/// Sends attempts of calls that keep their scope.
pub trait Attempts<B, T>: Service<Call<B, T>> {
    /// Sends one; as `call` does.
    fn attempt(&mut self, call: Lent<'_, B, T>) -> Self::Future;
}

/// Any other service of calls, which gets a scope of its own with each.
#[derive(Debug, Clone)]
pub struct Owning<S>(pub(crate) S);

impl<S: Service<R>, R> Service<R> for Owning<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}

impl<S: Service<Call<B, T>>, B, T> Attempts<B, T> for Owning<S> {
    fn attempt(&mut self, call: Lent<'_, B, T>) -> S::Future {
        self.0.call(call.into_call())
    }
}

impl<B, C, ResB> Attempts<B, Backend<C>> for Dispatch
where
    B: Body,
    C: Service<Request<Sending<B>>, Response = Response<ResB>> + Clone,
    C::Error: Into<Error>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    #[inline]
    fn attempt(&mut self, mut call: Lent<'_, B, Backend<C>>) -> Self::Future {
        let state = &mut call.scope.state;
        let chosen = call.scope.entry.choose(&call.http, state.attempt, state.hash);
        state.backend = chosen.and_then(|index| u16::try_from(index).ok()).unwrap_or(u16::MAX);
        let (backend, filters) = match call.scope.entry.at(chosen) {
            Ok(found) => found,
            Err(error) => return DispatchFuture::failed(error, None),
        };
        if let Some(filters) = filters {
            filters.apply(&mut call.http);
        }
        let (pick, cookie) = backend.begin(&call);
        let Pick::Sent(mut service, mut ticket) = pick else {
            return DispatchFuture::slow(pick, call.into_call(), chosen, cookie);
        };
        match ready_now::<_, Call<B, Backend<C>>>(&mut service) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return DispatchFuture::failed_at(ticket, error),
            Poll::Pending => {
                return DispatchFuture::slow(Pick::Sent(service, ticket), call.into_call(), chosen, cookie);
            }
        }
        let rest = Rest::of(&call, cookie, filters);
        ticket.sent(&mut call);
        match service.begin(call) {
            Ok(Begun { future, limit, pace }) => {
                let stage = Stage::Sent { future, ticket: Some(ticket) };
                DispatchFuture { stage, limit, pace, timer: None, rest }
            }
            Err(error) => DispatchFuture::failed_at(ticket, error),
        }
    }
}

/// Whether a service is ready, without being told when it will be.
#[inline]
fn ready_now<S: Service<R>, R>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

/// What only few attempts have.
struct Rest {
    /// If it judges by more than the defaults.
    classifier: Option<Arc<Classifier>>,
    /// The cookie that binds the caller to its endpoint.
    cookie: Option<Box<HeaderValue>>,
    /// What the backend changes in its responses.
    filters: Option<Arc<Filters>>,
}

impl Rest {
    #[inline]
    fn of<B, T>(
        call: &Lent<'_, B, T>,
        cookie: Option<Box<HeaderValue>>,
        filters: Option<&Arc<Filters>>,
    ) -> Option<Box<Self>> {
        let classifier = &call.scope.entry.policy.classifier;
        if classifier.is_default() && cookie.is_none() && filters.is_none() {
            return None;
        }
        let classifier = (!classifier.is_default()).then(|| Arc::clone(classifier));
        Some(Box::new(Self { classifier, cookie, filters: filters.cloned() }))
    }
}

type Slow<C, B> = BalanceFuture<Replica<C>, Call<B, Backend<C>>>;

#[pin_project(project = Step)]
enum Stage<C, B>
where
    B: Body,
    C: Service<Request<Sending<B>>>,
    Replica<C>: Service<Call<B, Backend<C>>>,
{
    /// It was sent.
    Sent {
        #[pin]
        future: C::Future,
        ticket: Option<Ticket>,
    },
    /// It waits for an endpoint.
    Slow(Pin<Box<Slow<C, B>>>),
    /// It could not be sent, perhaps because of this endpoint.
    Failed(Option<Box<Error>>, Option<EndpointId>),
}

/// The future of [`Dispatch`].
#[pin_project]
pub struct DispatchFuture<C, B>
where
    B: Body,
    C: Service<Request<Sending<B>>>,
    Replica<C>: Service<Call<B, Backend<C>>>,
{
    #[pin]
    stage: Stage<C, B>,
    limit: Limit,
    pace: Option<Arc<Pace>>,
    /// Armed when the attempt first waits.
    timer: Option<Pin<Box<Timer>>>,
    rest: Option<Box<Rest>>,
}

impl<C, B> fmt::Debug for DispatchFuture<C, B>
where
    B: Body,
    C: Service<Request<Sending<B>>>,
    Replica<C>: Service<Call<B, Backend<C>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DispatchFuture").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<C, B, ResB> DispatchFuture<C, B>
where
    B: Body,
    C: Service<Request<Sending<B>>, Response = Response<ResB>> + Clone,
    C::Error: Into<Error>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    #[cold]
    fn failed(error: Error, at: Option<EndpointId>) -> Self {
        Self::without_limits(Stage::Failed(Some(Box::new(error)), at), None)
    }

    #[cold]
    fn failed_at(ticket: Ticket, error: Error) -> Self {
        let at = settled(ticket, &error);
        Self::failed(error, at)
    }

    #[cold]
    fn slow(
        pick: Pick<Replica<C>>,
        call: Call<B, Backend<C>>,
        chosen: Option<usize>,
        cookie: Option<Box<HeaderValue>>,
    ) -> Self {
        let (backend, filters) = match call.scope.entry.at(chosen) {
            Ok((backend, filters)) => (backend.clone(), filters.cloned()),
            Err(error) => return Self::failed(error, None),
        };
        let rest =
            filters.map(|filters| Box::new(Rest { classifier: None, cookie: None, filters: Some(filters) }));
        let waiting = BalanceFuture::new(pick, &backend, call, cookie);
        Self::without_limits(Stage::Slow(Box::pin(waiting)), rest)
    }

    fn without_limits(stage: Stage<C, B>, rest: Option<Box<Rest>>) -> Self {
        Self { stage, limit: Limit::default(), pace: None, timer: None, rest }
    }
}

impl<C, B, ResB> Future for DispatchFuture<C, B>
where
    B: Body,
    C: Service<Request<Sending<B>>, Response = Response<ResB>> + Clone,
    C::Error: Into<Error>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    type Output = Result<Response<Served<TimedBody<ResB>>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.stage.project() {
            Step::Sent { future, ticket } => {
                let error = match future.poll(cx) {
                    Poll::Ready(Ok(mut response)) => {
                        let Some(mut ticket) = ticket.take() else { return Poll::Ready(Err(Error::Closed)) };
                        let judged = answered(&mut response, &mut ticket, this.rest.as_deref_mut());
                        let pace = this.pace.take();
                        return Poll::Ready(Ok(response
                            .map(|body| Served::new(TimedBody::limited(body, None, pace), ticket, judged))));
                    }
                    Poll::Ready(Err(error)) => error.into(),
                    Poll::Pending => ready!(poll_limit(this.timer, *this.limit, this.pace, cx)),
                };
                Poll::Ready(Err(match ticket.take() {
                    Some(ticket) => failed_at(ticket, error),
                    None => Error::Closed,
                }))
            }
            Step::Slow(slow) => {
                let mut result = ready!(slow.as_mut().poll(cx));
                if let (Ok(response), Some(rest)) = (&mut result, this.rest) {
                    rest.filters.iter().for_each(|filters| filters.response(response.headers_mut()));
                }
                Poll::Ready(result)
            }
            Step::Failed(error, at) => {
                at.take().into_iter().for_each(failed::note);
                Poll::Ready(Err(error.take().map_or(Error::Closed, |error| *error)))
            }
        }
    }
}

/// A response's head came.
#[inline]
fn answered<B>(response: &mut Response<B>, ticket: &mut Ticket, rest: Option<&mut Rest>) -> Judged {
    let Some(rest) = rest else { return head(ticket, response, None, None) };
    let judged = head(ticket, response, rest.classifier.as_deref(), rest.cookie.take());
    rest.filters.iter().for_each(|filters| filters.response(response.headers_mut()));
    judged
}

/// Waits for the end of the attempt's time.
#[cold]
fn poll_limit(
    timer: &mut Option<Pin<Box<Timer>>>,
    limit: Limit,
    pace: &Option<Arc<Pace>>,
    cx: &mut Context<'_>,
) -> Poll<Error> {
    if timer.is_none() {
        let bound = limit.bound();
        if bound.is_none() && pace.is_none() {
            return Poll::Pending;
        }
        *timer = Some(Box::pin(Timer::new(bound, pace.clone(), Part::Head)));
    }
    match timer {
        Some(timer) => timer.as_mut().poll(cx).map(|bound| bound.error()),
        None => Poll::Pending,
    }
}
