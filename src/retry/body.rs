//! Floor 4: a response's body that knows how many attempts it took.

use crate::classify::peek::Peeked;
use crate::retry::budget::Stake;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A response's body behind [`Retry`](crate::retry::layer::Retry). While it lives, its request counts as in flight for
/// the budget.
#[derive(Debug)]
pub struct Attempted<B: Body> {
    inner: Peeked<B>,
    attempts: u32,
    stake: Stake,
}

impl<B: Body> Attempted<B> {
    /// The body of an attempt.
    pub(crate) fn new(inner: B) -> Self {
        Self::first(inner, Stake::default())
    }

    /// The body of a first attempt that needs no other.
    #[inline]
    pub(crate) fn first(inner: B, stake: Stake) -> Self {
        Self { inner: Peeked::new(inner), attempts: 1, stake }
    }

    /// It is the body that the caller gets, after so many attempts.
    pub(crate) fn finish(&mut self, attempts: u32, stake: Stake) {
        self.attempts = attempts;
        self.stake = stake;
    }

    /// The attempts, the first one included.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The body within.
    pub fn inner(&self) -> &B {
        self.inner.inner()
    }

    /// The trailers, if they were looked at.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.inner.trailers()
    }
}

impl<B: Body + Unpin> Attempted<B> {
    /// See [`Peeked::poll_peek`].
    pub(crate) fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_peek(cx)
    }
}

impl<B: Body + Unpin> Body for Attempted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
