//! Floor 4: a place for a request, and a response body that holds it until it ends.

use crate::limit::concurrency::Limiter;
use crate::stdx::clock::{self, Duration, Instant};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A place. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    limiter: Option<Arc<Limiter>>,
    since: Instant,
}

impl Lease {
    /// The place that this limiter has given.
    pub(crate) fn new(limiter: Arc<Limiter>, since: Instant) -> Self {
        Self { limiter: Some(limiter), since }
    }

    /// It was not taken: the limiter itself takes it back.
    pub(crate) fn disarm(mut self) {
        self.limiter = None;
    }

    /// Its time begins now.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.since = now;
    }

    /// Its request was answered.
    pub(crate) fn answered(&self, dropped: bool) {
        if let Some(limiter) = &self.limiter {
            let now = clock::now();
            limiter.answered(
                now.saturating_duration_since(self.since).max(Duration::from_nanos(1)),
                dropped,
                now,
            );
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(limiter) = self.limiter.take() {
            limiter.release(clock::now);
        }
    }
}

/// A response's body. Its request has its place until it ends or is dropped.
#[pin_project]
#[derive(Debug)]
pub struct Placed<B> {
    #[pin]
    inner: B,
    lease: Option<Lease>,
}

impl<B: Body> Placed<B> {
    pub(crate) fn new(inner: B, lease: Option<Lease>) -> Self {
        let lease = lease.filter(|_| !inner.is_end_stream());
        Self { inner, lease }
    }
}

impl<B> Placed<B> {
    /// The body within.
    pub fn inner(&self) -> &B {
        &self.inner
    }
}

impl<B: Body> Body for Placed<B> {
    type Data = B::Data;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if this.lease.is_some() && (!matches!(frame, Some(Ok(_))) || this.inner.is_end_stream()) {
            *this.lease = None;
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
