//! Floor 4: a future with an end, whichever comes first.

use crate::error::{Error, Scope};
use crate::stdx::clock::{Duration, Instant};
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Sleep;

/// When a future must have ended, and how that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The moment.
    pub at: Instant,
    /// The limit that the moment comes from.
    pub after: Duration,
    /// Which limit it is.
    pub scope: Scope,
}

/// A future that ends at its bound. It is polled before the timer, and the timer is armed only when it is pending, so
/// that what ends at once pays for none. At the bound the future within is dropped, which cancels it.
#[pin_project]
#[derive(Debug)]
pub struct Timed<F> {
    #[pin]
    inner: Option<F>,
    bound: Option<Bound>,
    /// In a box: most of what moves a future around does so before it is pending.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<F> Timed<F> {
    /// Ends `inner` at `bound`, if there is one.
    pub fn new(inner: F, bound: Option<Bound>) -> Self {
        Self { inner: Some(inner), bound, sleep: None }
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
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Ready(Err(Error::Closed)) };
        if let Poll::Ready(result) = inner.poll(cx) {
            return Poll::Ready(result.map_err(Into::into));
        }
        let Some(bound) = this.bound else { return Poll::Pending };
        let at = bound.at;
        let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.inner.set(None);
        Poll::Ready(Err(Error::Timeout { scope: bound.scope, after: bound.after }))
    }
}
