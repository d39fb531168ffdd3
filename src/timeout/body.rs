//! Floor 4: a response body that must end by a deadline, and may not be silent for long.

use crate::error::{BoxError, Error, Scope};
use crate::stdx::clock::{self, Duration, Instant};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Sleep;

/// The limits of a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// When it must have ended, and how long after the call's beginning that is.
    pub deadline: Option<(Instant, Duration)>,
    /// How long it may be between two frames.
    pub idle: Option<Duration>,
}

/// A body with [`Limits`]. When one passes, it ends with [`Error::Timeout`] and the body within is dropped.
#[pin_project]
#[derive(Debug)]
pub struct TimedBody<B> {
    #[pin]
    inner: Option<B>,
    limits: Limits,
    /// Armed when the body is pending. In a box, so that a body is small and may be moved.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<B> TimedBody<B> {
    /// Limits `inner`.
    pub fn new(inner: B, limits: Limits) -> Self {
        Self { inner: Some(inner), limits, sleep: None }
    }

    /// The body within, unless its time has passed.
    pub fn inner(&self) -> Option<&B> {
        self.inner.as_ref()
    }
}

impl<B> Body for TimedBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = inner.poll_frame(cx) {
            // The next silence begins now; the timer is armed again when there is one.
            if this.limits.idle.is_some() {
                *this.sleep = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Limits { deadline, idle } = *this.limits;
        let whole = deadline.map(|(at, after)| (at, after, Scope::Request));
        if this.sleep.is_none() {
            let silent = idle.and_then(|idle| Some((clock::now().checked_add(idle)?, idle, Scope::Idle)));
            let first = [whole, silent].into_iter().flatten().map(|(at, ..)| at).min();
            let Some(at) = first else { return Poll::Pending };
            *this.sleep = Some(Box::pin(tokio::time::sleep_until(at.into())));
        }
        match this.sleep.as_mut().map(|sleep| sleep.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => {
                this.inner.set(None);
                let past = |(at, ..): &(Instant, Duration, Scope)| clock::now() >= *at;
                let (after, scope) = match (whole.filter(past), idle) {
                    (Some((_, after, scope)), _) => (after, scope),
                    (None, Some(idle)) => (idle, Scope::Idle),
                    (None, None) => (Duration::ZERO, Scope::Request),
                };
                Poll::Ready(Some(Err(Box::new(Error::Timeout { scope, after }))))
            }
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
