//! Floor 3: looks ahead into a response's body for trailers, and gives back every frame it looked at.

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A body of which the first two frames may have been looked at.
pub struct Peeked<B: Body> {
    inner: B,
    seen: Option<Box<Seen<B>>>,
}

/// The frames looked at and not yet read: two at most.
struct Seen<B: Body> {
    frames: VecDeque<Result<Frame<B::Data>, B::Error>>,
    ended: bool,
}

impl<B: Body + fmt::Debug> fmt::Debug for Peeked<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen.as_ref().map(|seen| seen.frames.len());
        f.debug_struct("Peeked").field("inner", &self.inner).field("seen", &seen).finish()
    }
}

impl<B: Body> Peeked<B> {
    /// `inner`, not looked at: costs nothing.
    pub fn new(inner: B) -> Self {
        Self { inner, seen: None }
    }

    /// The body within.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// The trailers, if they were seen.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.seen.as_ref()?.frames.iter().find_map(|frame| frame.as_ref().ok()?.trailers_ref())
    }
}

impl<B: Body + Unpin> Peeked<B> {
    /// Waits for the first frame; if it is data, looks once whether trailers follow at once (linkerd.md §3.1). To be
    /// called until it is ready, before the body is read.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.seen.is_none() {
            let first = ready!(Pin::new(&mut self.inner).poll_frame(cx));
            let is_data = matches!(&first, Some(Ok(frame)) if frame.is_data());
            let mut seen = Seen { ended: first.is_none(), frames: first.into_iter().collect() };
            if is_data && let Poll::Ready(second) = Pin::new(&mut self.inner).poll_frame(cx) {
                seen.ended = second.is_none();
                seen.frames.extend(second);
            }
            self.seen = Some(Box::new(seen));
        }
        Poll::Ready(())
    }
}

impl<B: Body + Unpin> Body for Peeked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        if let Some(seen) = &mut this.seen {
            match seen.frames.pop_front() {
                Some(frame) => return Poll::Ready(Some(frame)),
                None if seen.ended => return Poll::Ready(None),
                None => this.seen = None,
            }
        }
        Pin::new(&mut this.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.seen {
            Some(seen) => seen.frames.is_empty() && (seen.ended || self.inner.is_end_stream()),
            None => self.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let Some(seen) = &self.seen else { return inner };
        let data = seen.frames.iter().filter_map(|frame| frame.as_ref().ok()?.data_ref());
        let held: u64 = data.map(|data| bytes::Buf::remaining(data) as u64).sum();
        let mut sum = SizeHint::new();
        sum.set_lower(inner.lower().saturating_add(held));
        if let Some(upper) = inner.upper() {
            sum.set_upper(upper.saturating_add(held));
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::stream::{self, StreamExt};
    use http_body_util::{BodyExt, StreamBody};
    use std::io;

    /// `D`: data; `T`: trailers; `E`: an error; `.`: pending once.
    fn body(script: &'static str) -> impl Body<Data = Bytes, Error = io::Error> + Unpin {
        let mut steps = script.chars().peekable();
        StreamBody::new(
            stream::poll_fn(move |cx| {
                if steps.next_if_eq(&'.').is_some() {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(steps.next().map(|step| match step {
                    'D' => Ok(Frame::data(Bytes::from("data"))),
                    'T' => Ok(Frame::trailers(HeaderMap::from_iter([(
                        http::HeaderName::from_static("grpc-status"),
                        http::HeaderValue::from_static("14"),
                    )]))),
                    _ => Err(io::ErrorKind::ConnectionReset.into()),
                }))
            })
            .boxed(),
        )
    }

    async fn check(script: &'static str, peeked: bool) {
        let mut body = Peeked::new(body(script));
        std::future::poll_fn(|cx| body.poll_peek(cx)).await;
        assert_eq!(body.trailers().is_some(), peeked, "{script}");
        let mut read = String::new();
        while let Some(frame) = body.frame().await {
            read.push(match frame {
                Ok(frame) if frame.is_data() => 'D',
                Ok(_) => 'T',
                Err(_) => 'E',
            });
        }
        assert_eq!(read, script.replace('.', ""), "no frame is eaten");
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn trailers_are_found_and_no_frame_is_eaten() {
        check("", false).await;
        check("T", true).await;
        check(".T", true).await;
        check("DT", true).await;
        check("..DT", true).await;
        check("D.T", false).await;
        check("DDT", false).await;
        check("DDDDT", false).await;
        check("E", false).await;
        check("DE", false).await;
        check("D", false).await;
        check("DD..DT", false).await;
    }
}
