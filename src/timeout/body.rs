//! Floor 4: bodies whose time is limited.

use crate::error::{BoxError, Scope};
use crate::stdx::clock::{self, Duration, Instant};
use crate::timeout::plan::{Bound, Pace, PaceLimits, Part};
use crate::timeout::timed::Timer;
use http_body::{Body, Frame, SizeHint};
use pin_project::{pin_project, pinned_drop};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The limits of a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// When it must have ended, and how long after the call's beginning that is.
    pub deadline: Option<(Instant, Duration)>,
    /// How long it may be between two frames.
    pub idle: Option<Duration>,
}

/// A response's body whose time is limited. When it has passed, the body ends with
/// [`Error::Timeout`](crate::error::Error::Timeout), and what is within is dropped, which cancels it.
#[pin_project]
#[derive(Debug)]
pub struct TimedBody<B> {
    #[pin]
    inner: Option<B>,
    limit: Limit,
}

/// The limit of a body.
#[derive(Debug)]
enum Limit {
    None,
    /// To be watched when a frame is first waited for.
    Due(Option<Bound>, Option<Arc<Pace>>),
    /// In a box, so that every body may be moved.
    Watched(Pin<Box<Timer>>),
}

impl Limit {
    fn pace(&self) -> Option<&Pace> {
        match self {
            Self::None => None,
            Self::Due(_, pace) => pace.as_deref(),
            Self::Watched(timer) => timer.pace(),
        }
    }

    /// Waits for its end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bound> {
        if let Self::Due(bound, pace) = self {
            *self = Self::Watched(Box::pin(Timer::new(bound.take(), pace.take(), Part::Body)));
        }
        match self {
            Self::Watched(timer) => timer.as_mut().poll(cx),
            Self::None | Self::Due(..) => Poll::Pending,
        }
    }
}

impl<B: Body> TimedBody<B> {
    /// Limits `inner`. A body at its end needs none.
    pub fn new(inner: B, limits: Limits) -> Self {
        let bound = limits.deadline.map(|(at, after)| Bound { at, after, scope: Scope::Request });
        let limits = PaceLimits { idle: limits.idle, ..PaceLimits::default() };
        Self::limited(inner, bound, Pace::new(limits, clock::now).map(Arc::new))
    }

    /// `inner` without limits.
    #[inline]
    pub(crate) fn free(inner: B) -> Self {
        Self { inner: Some(inner), limit: Limit::None }
    }

    #[inline]
    pub(crate) fn limited(inner: B, bound: Option<Bound>, pace: Option<Arc<Pace>>) -> Self {
        let needed = (bound.is_some() || pace.is_some()) && !inner.is_end_stream();
        let limit = if needed { Limit::Due(bound, pace) } else { Limit::None };
        Self { inner: Some(inner), limit }
    }
}

impl<B> TimedBody<B> {
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
            if let Some(pace) = this.limit.pace() {
                pace.frame(clock::now());
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let bound = ready!(this.limit.poll(cx));
        this.inner.set(None);
        Poll::Ready(Some(Err(Box::new(bound.error()))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// A request's body that notes when its frames go, if a limit depends on it.
#[pin_project(PinnedDrop)]
#[derive(Debug)]
pub struct Sending<B> {
    #[pin]
    inner: B,
    pace: Option<Arc<Pace>>,
}

impl<B: Body> Sending<B> {
    pub(crate) fn new(inner: B, pace: Option<Arc<Pace>>) -> Self {
        if let Some(pace) = pace.as_ref().filter(|_| inner.is_end_stream()) {
            pace.sent(clock::now());
        }
        Self { inner, pace }
    }
}

impl<B: Body> Body for Sending<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if let Some(pace) = this.pace {
            let now = clock::now();
            pace.frame(now);
            let more = matches!(&frame, Some(Ok(frame)) if frame.is_data()) && !this.inner.is_end_stream();
            if !more {
                pace.sent(now);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[pinned_drop]
impl<B> PinnedDrop for Sending<B> {
    /// What is dropped before its end is not sent any further: the peer has all it will get.
    fn drop(self: Pin<&mut Self>) {
        if let Some(pace) = self.project().pace {
            pace.sent(clock::now());
        }
    }
}
