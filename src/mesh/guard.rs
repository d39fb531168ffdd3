//! Floor 6: what keeps a call back before it is sent: faults on purpose, then limits. Only routes that say so come here.

use crate::classify::answer::{is_grpc, response};
use crate::error::Error;
use crate::fault::decide;
use crate::fault::layer::count;
use crate::limit::body::Lease;
use crate::limit::layer::{Admission, Waiting, address_of_socket, admit};
use crate::policy::call::{Call, MeshRequest};
use crate::policy::limits::Guard;
use crate::stdx::clock;
use http::Response;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;

/// What becomes of a call.
pub(crate) enum Passage<B> {
    /// It is sent, with its place if there are places.
    Free(Option<Box<Lease>>),
    /// It is answered here.
    Answered(Box<Response<B>>),
    /// It is refused.
    Refused(Error),
}

/// What becomes of a call when it comes.
pub(crate) enum Entry<S, C, B> {
    /// This, and the call.
    Passed(Passage<B>, C),
    /// It is held back.
    Held(Pin<Box<Held<S, C, B>>>),
}

/// What becomes of a call that was held back, and what is to be called with what if it is sent.
pub(crate) type Passed<S, C, B> = (Passage<B>, Option<(S, C)>);

/// Decides about a call; `answer` is what its route answers by itself. What must wait takes the call and `service`
/// along, in a box.
#[cold]
pub(crate) fn guard<S: Clone, B: Default, Body, T>(
    guard: &Guard,
    answer: Option<Box<Response<B>>>,
    service: &mut S,
    call: Call<Body, T>,
) -> Entry<S, Call<Body, T>, B> {
    let injected = guard.faults.as_ref().map(|faults| faults.decide(faults.rng())).unwrap_or_default();
    count(injected, &call.scope.entry.policy.metrics);
    let abort =
        injected.abort.map(|abort| Box::new(response(&decide::error(abort), is_grpc(call.http.headers()))));
    let answer = abort.or(answer);
    let step = match (injected.delay, answer) {
        (Some(delay), answer) => {
            let left = call.scope.state.deadline;
            let left = left.map(|deadline| deadline.saturating_duration_since(clock::now()));
            Step::Delay(tokio::time::sleep(left.map_or(delay, |left| left.min(delay))), answer)
        }
        (None, Some(answer)) => return Entry::Passed(Passage::Answered(answer), call),
        (None, None) => match admit(&guard.limits, &call, address_of_socket) {
            Admission::Free(lease) => return Entry::Passed(Passage::Free(lease.map(Box::new)), call),
            Admission::Refused(error) => return Entry::Passed(Passage::Refused(error), call),
            Admission::Waits(waiting) => Step::Queue(waiting),
        },
    };
    // The inner service that is ready is called; its clone is what is asked next.
    let clone = service.clone();
    Entry::Held(Box::pin(Held { step, call: Some((std::mem::replace(service, clone), call)) }))
}

/// A call that is held back.
#[pin_project]
pub(crate) struct Held<S, C, B> {
    #[pin]
    step: Step<B>,
    call: Option<(S, C)>,
}

#[pin_project(project = StepOf)]
enum Step<B> {
    Delay(#[pin] Sleep, Option<Box<Response<B>>>),
    Queue(#[pin] Waiting),
}

impl<S, B, Body, T> Held<S, Call<Body, T>, B> {
    /// What becomes of it at last, and what is to be called if it is sent.
    pub(crate) fn poll_pass(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Passed<S, Call<Body, T>, B>> {
        let mut this = self.project();
        loop {
            let next = match this.step.as_mut().project() {
                StepOf::Queue(waiting) => {
                    let passage = match ready!(waiting.poll(cx)) {
                        Ok(lease) => Passage::Free(Some(Box::new(lease))),
                        Err(error) => Passage::Refused(error),
                    };
                    return Poll::Ready((passage, this.call.take()));
                }
                StepOf::Delay(sleep, answer) => {
                    ready!(sleep.poll(cx));
                    if let Some(answer) = answer.take() {
                        return Poll::Ready((Passage::Answered(answer), None));
                    }
                    let Some((_, call)) = this.call.as_ref() else {
                        return Poll::Ready((Passage::Refused(Error::Closed), None));
                    };
                    let guard = call.route().and_then(|route| route.guard.as_deref());
                    match guard.map(|guard| admit(&guard.limits, call, address_of_socket)) {
                        None => return Poll::Ready((Passage::Free(None), this.call.take())),
                        Some(Admission::Free(lease)) => {
                            return Poll::Ready((Passage::Free(lease.map(Box::new)), this.call.take()));
                        }
                        Some(Admission::Refused(error)) => {
                            return Poll::Ready((Passage::Refused(error), None));
                        }
                        Some(Admission::Waits(waiting)) => Step::Queue(waiting),
                    }
                }
            };
            this.step.set(next);
        }
    }
}
