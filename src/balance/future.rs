//! Floor 4: the future of a balanced request: waits for endpoints, for the picked one, and for its response.

use crate::balance::body::Served;
use crate::balance::layer::Balance;
use crate::balance::ticket::Ticket;
use crate::classify::classifier::Classifier;
use crate::classify::outcome::Outcome;
use crate::error::{Error, Scope};
use crate::policy::call::MeshRequest;
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
use std::task::{Context, Poll, ready};
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

/// The future of [`Balance`]. The request stays where it was put until it is sent: it is large, and moving it is most
/// of what a layer costs.
#[pin_project]
pub struct BalanceFuture<S: Service<R>, R> {
    #[pin]
    sent: Option<S::Future>,
    way: Way<S>,
    request: Option<R>,
    ticket: Option<Ticket>,
    fail_fast: Duration,
    classifier: Classifier,
    /// The cookie that binds the caller to its endpoint; boxed, as few responses have one.
    cookie: Option<Box<HeaderValue>>,
}

/// What stands between a request and its endpoint.
enum Way<S> {
    /// Its readiness; the patience is armed when it is first found not ready.
    Ready(S, Option<Pin<Box<Sleep>>>),
    /// Discovery, which has not answered.
    Known(Box<Waiting<S>>),
    /// There is none.
    Refused(Error),
    /// Nothing: the request is sent.
    Open,
}

struct Waiting<S> {
    balance: Balance<S>,
    patience: Pin<Box<Sleep>>,
    changed: Pin<Box<OwnedNotified>>,
}

impl<S: Service<R>, R> fmt::Debug for BalanceFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceFuture").finish_non_exhaustive()
    }
}

impl<S, R> BalanceFuture<S, R>
where
    R: MeshRequest,
    S: Service<R>,
{
    #[inline]
    pub(crate) fn new(
        pick: Pick<S>,
        balance: &Balance<S>,
        request: R,
        cookie: Option<Box<HeaderValue>>,
    ) -> Self {
        let classifier =
            request.route().map(|route| Classifier::clone(&route.classifier)).unwrap_or_default();
        let (way, ticket) = match pick {
            Pick::Sent(service, ticket) => (Way::Ready(service, None), Some(ticket)),
            Pick::Refused(error) => (Way::Refused(error), None),
            Pick::Unknown => (Way::Known(Waiting::new(balance)), None),
        };
        let fail_fast = balance.fail_fast();
        Self { sent: None, way, request: Some(request), ticket, fail_fast, classifier, cookie }
    }
}

impl<S> Waiting<S> {
    #[cold]
    fn new(balance: &Balance<S>) -> Box<Self> {
        // Already told, so that the first poll looks again: an update may have come since the pick.
        let changed = Arc::new(Notify::new());
        changed.notify_one();
        Box::new(Self {
            balance: balance.clone(),
            patience: Box::pin(tokio::time::sleep(balance.fail_fast())),
            changed: Box::pin(changed.notified_owned()),
        })
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
            if let Some(sent) = this.sent.as_mut().as_pin_mut() {
                let result = ready!(sent.poll(cx)).map_err(Into::into);
                this.sent.set(None);
                return Poll::Ready(finish(result, this.ticket.take(), this.classifier, this.cookie.take()));
            }
            // Polled after its end, which is the caller's fault, it pends for ever.
            let Some(request) = this.request.as_ref() else { return Poll::Pending };
            let error = match this.way {
                Way::Ready(service, patience) => {
                    let ready = match service.poll_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(Into::into),
                        Poll::Pending => Err(ready!(poll_patience(cx, patience, *this.fail_fast))),
                    };
                    match (ready, this.request.take()) {
                        (Ok(()), Some(request)) => {
                            let sent = service.call(request);
                            this.sent.set(Some(sent));
                            *this.way = Way::Open;
                            continue;
                        }
                        (Ok(()), None) => Error::Closed,
                        (Err(error), _) => error,
                    }
                }
                Way::Known(waiting) => match ready!(waiting.poll(cx, request)) {
                    Ok((service, ticket)) => {
                        *this.ticket = Some(ticket);
                        *this.way = Way::Ready(service, None);
                        continue;
                    }
                    Err(error) => error,
                },
                Way::Refused(error) => std::mem::replace(error, Error::Closed),
                Way::Open => Error::Closed,
            };
            *this.request = None;
            if let Some(ticket) = this.ticket.take() {
                ticket.settle(&Outcome::of_error(&error));
            }
            return Poll::Ready(Err(error));
        }
    }
}

impl<S: Clone> Waiting<S> {
    /// Waits until there is an endpoint, or it is known that there is none, or patience ends.
    fn poll<R: MeshRequest>(
        &mut self,
        cx: &mut Context<'_>,
        request: &R,
    ) -> Poll<Result<(S, Ticket), Error>> {
        while self.changed.as_mut().poll(cx).is_ready() {
            // Asked before the pick, so that no update falls between the two.
            self.changed.set(self.balance.changed());
            match self.balance.pick(request, clock::now()) {
                Pick::Sent(service, ticket) => return Poll::Ready(Ok((service, ticket))),
                Pick::Refused(error) => return Poll::Ready(Err(error)),
                Pick::Unknown => {}
            }
        }
        ready!(self.patience.as_mut().poll(cx));
        Poll::Ready(Err(Error::NoEndpoints { service: Arc::clone(self.balance.service()) }))
    }
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

#[inline]
fn finish<B: Body>(
    result: Result<Response<B>, Error>,
    ticket: Option<Ticket>,
    classifier: &Classifier,
    cookie: Option<Box<HeaderValue>>,
) -> Result<Response<Served<B>>, Error> {
    let Some(mut ticket) = ticket else { return Err(Error::Closed) };
    match result {
        Ok(mut response) => {
            let head = classifier.head(response.status(), response.headers(), clock::wall_secs);
            ticket.head(clock::now(), head);
            if let Some(cookie) = cookie {
                response.headers_mut().append(SET_COOKIE, *cookie);
            }
            Ok(response.map(|body| Served::new(body, ticket)))
        }
        Err(error) => {
            ticket.settle(&Outcome::of_error(&error));
            Err(error)
        }
    }
}
