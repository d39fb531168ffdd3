//! Floor 4: the future of a balanced request: waits for endpoints, for the picked one, and for its response.

use crate::balance::body::Served;
use crate::balance::layer::Balance;
use crate::balance::ticket::Ticket;
use crate::classify::classifier::{self, Classifier};
use crate::error::{Error, Scope};
use crate::metrics::series::Ending;
use crate::policy::call::{EndpointId, Judged, MeshRequest};
use crate::policy::failed;
use crate::stdx::clock;
use crate::stdx::clock::Duration;
use http::header::SET_COOKIE;
use http::{HeaderValue, Response};
use http_body::Body;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Sleep;
use tower_service::Service;

/// What asking for an endpoint gives.
pub(crate) enum Pick<S> {
    /// This one.
    Sent(S, Ticket),
    /// Discovery has not answered yet.
    Unknown,
    /// None.
    Refused(Error),
}

/// The future of [`Balance`].
#[pin_project]
pub struct BalanceFuture<S: Service<R>, R> {
    #[pin]
    state: State<S, R>,
    /// If it judges by more than the defaults.
    classifier: Option<Arc<Classifier>>,
    /// The cookie that binds the caller to its endpoint; boxed, as few responses have one.
    cookie: Option<Box<HeaderValue>>,
}

impl<S: Service<R>, R> fmt::Debug for BalanceFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceFuture").finish_non_exhaustive()
    }
}

#[pin_project(project = Step)]
enum State<S: Service<R>, R> {
    Call {
        #[pin]
        future: S::Future,
        ticket: Option<Ticket>,
    },
    /// What few calls meet is in a box: all others then move a smaller future.
    Wait(Box<Waiting<S, R>>),
    Ready(Box<Unready<S, R>>),
    /// With the error, and the endpoint if one was picked.
    Failed(Option<Error>, Option<EndpointId>),
    Done,
}

/// Discovery has not answered.
struct Waiting<S, R> {
    patience: Pin<Box<Sleep>>,
    changed: Pin<Box<OwnedNotified>>,
    balance: Balance<S>,
    request: Option<R>,
}

/// The picked endpoint is not ready yet. `patience` is armed when it is first found so.
struct Unready<S, R> {
    service: S,
    attempt: Option<(R, Ticket)>,
    fail_fast: Duration,
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S, R, ResB> BalanceFuture<S, R>
where
    R: MeshRequest,
    S: Service<R, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
{
    #[inline]
    pub(crate) fn new(
        pick: Pick<S>,
        balance: &Balance<S>,
        request: R,
        cookie: Option<Box<HeaderValue>>,
    ) -> Self {
        let classifier = request.route().map(|route| &route.classifier);
        let classifier = classifier.filter(|classifier| !classifier.is_default()).cloned();
        let state = match pick {
            Pick::Sent(service, ticket) => State::send(service, ticket, request, balance.fail_fast()),
            Pick::Refused(error) => {
                refused(&request, &error);
                State::Failed(Some(error), None)
            }
            Pick::Unknown => State::wait(balance, request),
        };
        Self { state, classifier, cookie }
    }
}

impl<S, R> State<S, R>
where
    R: MeshRequest,
    S: Service<R>,
    S::Error: Into<Error>,
{
    /// Sends the request at once if the endpoint is ready, as all of this crate's are. One that is not is asked again by
    /// the future, with a waker.
    #[inline]
    fn send(mut service: S, mut ticket: Ticket, mut request: R, fail_fast: Duration) -> Self {
        ticket.sent(&mut request);
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Self::Call { future: service.call(request), ticket: Some(ticket) },
            Poll::Ready(Err(error)) => {
                let error = error.into();
                let endpoint = settled(ticket, &error);
                Self::Failed(Some(error), endpoint)
            }
            Poll::Pending => Self::unready(service, ticket, request, fail_fast),
        }
    }

    #[cold]
    fn unready(service: S, ticket: Ticket, request: R, fail_fast: Duration) -> Self {
        Self::Ready(Box::new(Unready {
            service,
            attempt: Some((request, ticket)),
            fail_fast,
            patience: None,
        }))
    }

    #[cold]
    fn wait(balance: &Balance<S>, request: R) -> Self {
        // Already told, so that the first poll looks again: an update may have come since the pick.
        let changed = Arc::new(Notify::new());
        changed.notify_one();
        Self::Wait(Box::new(Waiting {
            patience: Box::pin(tokio::time::sleep(balance.fail_fast())),
            changed: Box::pin(changed.notified_owned()),
            balance: balance.clone(),
            request: Some(request),
        }))
    }
}

impl<S, R, ResB> Future for BalanceFuture<S, R>
where
    R: MeshRequest,
    S: Service<R, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    ResB: Body,
{
    type Output = Result<Response<Served<ResB>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                Step::Wait(waiting) => {
                    let Waiting { patience, changed, balance, request } = waiting.as_mut();
                    let found = match request {
                        Some(request) => ready!(poll_known(cx, (patience, changed), balance, request)),
                        None => Err(Error::Closed),
                    };
                    match (found, request.take()) {
                        (Ok((service, ticket)), Some(request)) => {
                            State::send(service, ticket, request, balance.fail_fast())
                        }
                        (Err(error), request) => {
                            request.iter().for_each(|request| refused(request, &error));
                            State::Failed(Some(error), None)
                        }
                        (Ok(_), None) => State::Done,
                    }
                }
                Step::Ready(unready) => {
                    let Unready { service, attempt, fail_fast, patience } = unready.as_mut();
                    let ready = match service.poll_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(Into::into),
                        Poll::Pending => Err(ready!(poll_patience(cx, patience, *fail_fast))),
                    };
                    match (ready, attempt.take()) {
                        (Ok(()), Some((request, ticket))) => {
                            State::Call { future: service.call(request), ticket: Some(ticket) }
                        }
                        (Err(error), Some((_, ticket))) => {
                            let endpoint = settled(ticket, &error);
                            State::Failed(Some(error), endpoint)
                        }
                        (_, None) => State::Done,
                    }
                }
                Step::Call { future, ticket } => {
                    let result = ready!(future.poll(cx)).map_err(Into::into);
                    let ticket = ticket.take();
                    this.state.set(State::Done);
                    return Poll::Ready(finish(
                        result,
                        ticket,
                        this.classifier.as_deref(),
                        this.cookie.take(),
                    ));
                }
                Step::Failed(error, endpoint) => {
                    if let Some(endpoint) = endpoint {
                        failed::note(*endpoint);
                    }
                    let error = error.take().unwrap_or(Error::Closed);
                    this.state.set(State::Done);
                    return Poll::Ready(Err(error));
                }
                // Polled after its end, which is the caller's fault: it pends for ever.
                Step::Done => return Poll::Pending,
            };
            this.state.set(next);
        }
    }
}

/// Counts an attempt that met no endpoint.
#[cold]
fn refused<R: MeshRequest>(request: &R, error: &Error) {
    if let Some(backend) = request.backend() {
        backend.tally.begin();
        backend.tally.end(Ending::of_error(error));
    }
}

/// Waits until there is an endpoint, or it is known that there is none, or patience ends.
fn poll_known<S: Clone, R: MeshRequest>(
    cx: &mut Context<'_>,
    (patience, changed): (&mut Pin<Box<Sleep>>, &mut Pin<Box<OwnedNotified>>),
    balance: &Balance<S>,
    request: &R,
) -> Poll<Result<(S, Ticket), Error>> {
    while changed.as_mut().poll(cx).is_ready() {
        // Asked before the pick, so that no update falls between the two.
        changed.set(balance.changed());
        match balance.pick(request, clock::now()) {
            Pick::Sent(service, ticket) => return Poll::Ready(Ok((service, ticket))),
            Pick::Refused(error) => return Poll::Ready(Err(error)),
            Pick::Unknown => {}
        }
    }
    ready!(patience.as_mut().poll(cx));
    Poll::Ready(Err(Error::NoEndpoints { service: Arc::clone(balance.service()) }))
}

/// Waits for a picked endpoint that is not ready, so long as patience lasts.
fn poll_patience(
    cx: &mut Context<'_>,
    patience: &mut Option<Pin<Box<Sleep>>>,
    fail_fast: Duration,
) -> Poll<Error> {
    let patience = patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(fail_fast)));
    ready!(patience.as_mut().poll(cx));
    Poll::Ready(Error::Timeout { scope: Scope::Queue, after: fail_fast })
}

/// The attempt failed: where.
#[cold]
pub(crate) fn settled(ticket: Ticket, error: &Error) -> Option<EndpointId> {
    ticket.fail(error).map(|member| member.id())
}

/// The attempt failed, which the retries above must know of.
#[cold]
pub(crate) fn failed_at(ticket: Ticket, error: Error) -> Error {
    if let Some(endpoint) = settled(ticket, &error) {
        failed::note(endpoint);
    }
    error
}

/// Tells the ticket of the response's head.
#[inline]
pub(crate) fn head<B>(
    ticket: &mut Ticket,
    response: &mut Response<B>,
    classifier: Option<&Classifier>,
    cookie: Option<Box<HeaderValue>>,
) -> Judged {
    let (status, headers) = (response.status(), response.headers());
    let head = classifier::head(classifier, status, headers, clock::wall_secs);
    let judged = Judged { head, at: clock::now() };
    ticket.head(judged.at, head, status.as_u16());
    ticket.told(Some(headers));
    if let Some(attempting) = ticket.attempting() {
        attempting.head(status, headers);
    }
    if let Some(cookie) = cookie {
        response.headers_mut().append(SET_COOKIE, *cookie);
    }
    judged
}

#[inline]
fn finish<B: Body>(
    result: Result<Response<B>, Error>,
    ticket: Option<Ticket>,
    classifier: Option<&Classifier>,
    cookie: Option<Box<HeaderValue>>,
) -> Result<Response<Served<B>>, Error> {
    let Some(mut ticket) = ticket else { return Err(Error::Closed) };
    match result {
        Ok(mut response) => {
            let judged = head(&mut ticket, &mut response, classifier, cookie);
            Ok(response.map(|body| Served::new(body, ticket, judged)))
        }
        Err(error) => Err(failed_at(ticket, error)),
    }
}
