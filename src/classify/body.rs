//! Floor 3: a response body that tells how it ended, once, whatever its reader does.

use crate::classify::classifier::{Head, trailers};
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::error::BoxError;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project::{pin_project, pinned_drop};
use std::pin::Pin;
use std::task::{Context, Poll};

/// How a body ended.
#[derive(Debug)]
pub enum End<'a> {
    /// With these trailers, or with none.
    Complete(Option<&'a HeaderMap>),
    /// With an error.
    Broken,
    /// Its reader dropped it before the end.
    Dropped,
}

impl<'a> End<'a> {
    /// The trailers, if it came to its end with some.
    #[inline]
    pub fn trailers(&self) -> Option<&'a HeaderMap> {
        match self {
            Self::Complete(last) => *last,
            Self::Broken | Self::Dropped => None,
        }
    }

    /// How a response ended whose head said so: what a head decided stays, and a body that broke is a reset otherwise.
    #[inline]
    pub(crate) fn outcome(&self, head: Head) -> Outcome {
        match (head, self) {
            (Head::Decided(outcome), _) | (Head::Unless(outcome), Self::Dropped) => outcome,
            (Head::Unless(outcome), Self::Complete(last)) => trailers(outcome, *last),
            (Head::Unless(_), Self::Broken) => Outcome::new(Verdict::Failure, Cause::Reset),
        }
    }
}

/// Someone who wants to know how a body ended.
pub trait Watch {
    /// The first frame came; whether it had to be waited for, or was there when it was first asked for.
    fn first(&mut self, waited: bool) {
        let _ = waited;
    }
    /// A data frame of so many bytes came.
    fn data(&mut self, bytes: usize) {
        let _ = bytes;
    }
    /// It ended. Called once at most, and nothing after it.
    fn end(&mut self, end: End<'_>);
}

/// A body that passes frames on and tells a [`Watch`] how it ended.
#[pin_project(PinnedDrop)]
#[derive(Debug)]
pub struct Watched<B, W: Watch> {
    #[pin]
    inner: B,
    watch: Option<W>,
    /// Whether its first frame was asked for and was not there.
    waited: bool,
    begun: bool,
    ended: bool,
}

impl<B: Body, W: Watch> Watched<B, W> {
    /// Watches `inner`. A body that is at its end already is told at once.
    pub fn new(inner: B, watch: W) -> Self {
        Self::maybe(inner, Some(watch))
    }

    /// A body at its end, of which `watch` knows that already.
    #[inline]
    pub fn over(inner: B, watch: W) -> Self {
        Self { inner, watch: Some(watch), waited: false, begun: false, ended: true }
    }

    /// Watches `inner` if there is a watch.
    pub fn maybe(inner: B, watch: Option<W>) -> Self {
        let mut this = Self { inner, watch, waited: false, begun: false, ended: false };
        if this.inner.is_end_stream() {
            finish(&mut this.watch, &mut this.ended, End::Complete(None));
        }
        this
    }
}

impl<B, W: Watch> Watched<B, W> {
    /// The body within.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// The watch, if there is one.
    pub fn watch(&self) -> Option<&W> {
        self.watch.as_ref()
    }
}

impl<B, W> Body for Watched<B, W>
where
    B: Body,
    B::Error: Into<BoxError>,
    W: Watch,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
            *this.waited = true;
            return Poll::Pending;
        };
        if *this.ended {
            return Poll::Ready(frame);
        }
        if let (false, Some(watch)) = (*this.begun, this.watch.as_mut()) {
            watch.first(*this.waited);
            *this.begun = true;
        }
        match &frame {
            None => finish(this.watch, this.ended, End::Complete(None)),
            Some(Err(_)) => finish(this.watch, this.ended, End::Broken),
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => finish(this.watch, this.ended, End::Complete(Some(trailers))),
                None => {
                    if let (Some(watch), Some(data)) = (this.watch.as_mut(), frame.data_ref()) {
                        watch.data(bytes::Buf::remaining(data));
                    }
                    if this.inner.is_end_stream() {
                        finish(this.watch, this.ended, End::Complete(None));
                    }
                }
            },
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

#[inline]
fn finish<W: Watch>(watch: &mut Option<W>, ended: &mut bool, end: End<'_>) {
    if let Some(watch) = watch.as_mut().filter(|_| !*ended) {
        *ended = true;
        watch.end(end);
    }
}

#[pinned_drop]
impl<B, W: Watch> PinnedDrop for Watched<B, W> {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        finish(this.watch, this.ended, End::Dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty, Full, StreamBody};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Watch for Log {
        fn first(&mut self, waited: bool) {
            self.0.lock().unwrap().push(if waited { "first, late" } else { "first" }.into());
        }

        fn data(&mut self, bytes: usize) {
            self.0.lock().unwrap().push(format!("{bytes}"));
        }

        fn end(&mut self, end: End<'_>) {
            self.0.lock().unwrap().push(match end {
                End::Complete(Some(_)) => "trailers".into(),
                End::Complete(None) => "end".into(),
                End::Broken => "broken".into(),
                End::Dropped => "dropped".into(),
            });
        }
    }

    async fn read<B>(body: B) -> Vec<String>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let log = Log::default();
        let _ = Box::pin(Watched::new(body, log.clone())).collect().await;
        Arc::try_unwrap(log.0).unwrap().into_inner().unwrap()
    }

    #[tokio::test]
    async fn every_ending_is_told_once() {
        assert_eq!(read(Empty::<Bytes>::new()).await, ["end"]);
        assert_eq!(read(Full::from("abc")).await, ["first", "3", "end"]);
        let frames = |last: Result<Frame<Bytes>, std::io::Error>| {
            StreamBody::new(futures::stream::iter([Ok(Frame::data(Bytes::from("ab"))), last]))
        };
        assert_eq!(read(frames(Ok(Frame::trailers(HeaderMap::new())))).await, ["first", "2", "trailers"]);
        assert_eq!(read(frames(Err(std::io::ErrorKind::Other.into()))).await, ["first", "2", "broken"]);
        let late = futures::stream::once(async {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(Frame::data(Bytes::from("ab")))
        });
        assert_eq!(read(StreamBody::new(late)).await, ["first, late", "2", "end"]);
        let log = Log::default();
        drop(Watched::new(Full::<Bytes>::from("abc"), log.clone()));
        assert_eq!(*log.0.lock().unwrap(), ["dropped"]);
    }
}
