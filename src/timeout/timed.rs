//! Floor 4: a future with an end, whichever comes first.

use crate::error::Error;
use crate::stdx::clock;
use crate::timeout::plan::{Bound, Due, Pace, Part};
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;

/// Waits for the first of some limits to pass. Armed at the first look, and moved only when it fires: what comes in time
/// costs no timer of its own.
#[pin_project]
#[derive(Debug)]
pub(crate) struct Timer {
    bound: Option<Bound>,
    pace: Option<Arc<Pace>>,
    part: Part,
    #[pin]
    sleep: Option<Sleep>,
}

impl Timer {
    pub(crate) fn new(bound: Option<Bound>, pace: Option<Arc<Pace>>, part: Part) -> Self {
        Self { bound, pace, part, sleep: None }
    }

    pub(crate) fn pace(&self) -> Option<&Pace> {
        self.pace.as_deref()
    }

    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Bound> {
        let mut this = self.project();
        let (bound, pace, part) = (*this.bound, this.pace.as_deref(), *this.part);
        let due = || match pace {
            Some(pace) => pace.due(part, bound, clock::now),
            None => bound.map_or(Due::Never, Due::Passes),
        };
        loop {
            if let Some(armed) = this.sleep.as_mut().as_pin_mut() {
                let at = armed.deadline().into_std();
                ready!(armed.poll(cx));
                match due() {
                    Due::Passes(bound) if bound.at <= at => return Poll::Ready(bound),
                    Due::Passes(_) | Due::Look(_) | Due::Never => this.sleep.set(None),
                }
            }
            match due() {
                Due::Passes(Bound { at, .. }) | Due::Look(at) => {
                    this.sleep.set(Some(tokio::time::sleep_until(at.into())));
                }
                Due::Never => return Poll::Pending,
            }
        }
    }
}

/// A future that ends at its bound. It is polled before the timer, and the timer is armed only when it is pending, so
/// that what ends at once pays for none. At the bound the future within is dropped, which cancels it.
#[pin_project]
#[derive(Debug)]
pub struct Timed<F> {
    #[pin]
    inner: Option<F>,
    /// Why there is nothing within.
    refusal: Option<Box<Error>>,
    bound: Option<Bound>,
    pace: Option<Arc<Pace>>,
    /// In a box: most of what moves a future around does so before it is pending.
    timer: Option<Pin<Box<Timer>>>,
}

impl<F> Timed<F> {
    /// Ends `inner` at `bound`, if there is one.
    pub fn new(inner: F, bound: Option<Bound>) -> Self {
        Self::paced(inner, bound, None)
    }

    pub(crate) fn paced(inner: F, bound: Option<Bound>, pace: Option<Arc<Pace>>) -> Self {
        Self { inner: Some(inner), refusal: None, bound, pace, timer: None }
    }

    /// Its time had passed before it began.
    pub(crate) fn refused(error: Error) -> Self {
        Self { inner: None, refusal: Some(Box::new(error)), bound: None, pace: None, timer: None }
    }

    /// What the limits of the response's body depend on.
    pub(crate) fn take_pace(self: Pin<&mut Self>) -> Option<Arc<Pace>> {
        self.project().pace.take()
    }
}

impl<F, T, E> Future for Timed<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<Error>,
{
    type Output = Result<T, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(this.refusal.take().map_or(Error::Closed, |error| *error)));
        };
        if let Poll::Ready(result) = inner.poll(cx) {
            return Poll::Ready(result.map_err(Into::into));
        }
        if this.bound.is_none() && this.pace.is_none() {
            return Poll::Pending;
        }
        let new = || Box::pin(Timer::new(*this.bound, this.pace.clone(), Part::Head));
        let bound = ready!(this.timer.get_or_insert_with(new).as_mut().poll(cx));
        this.inner.set(None);
        Poll::Ready(Err(bound.error()))
    }
}
