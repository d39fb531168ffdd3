//! Floor 4: a body that passes its bytes on and keeps a copy of them, for a mirror.

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;

/// Passes a body on as it comes. Whoever waits for the copy gets it when the body has ended, and nothing if the body is
/// longer than the limit, breaks off, or is dropped before its end. Nobody waits for the copy's reader.
#[pin_project]
#[derive(Debug)]
pub struct Tee<B> {
    #[pin]
    inner: B,
    copy: Option<Copy>,
}

#[derive(Debug)]
struct Copy {
    bytes: BytesMut,
    bytes_max: usize,
    told: oneshot::Sender<Bytes>,
}

impl<B: Body<Data = Bytes>> Tee<B> {
    /// `inner` and its copy, of at most `bytes_max` bytes.
    pub fn new(inner: B, bytes_max: usize) -> (Self, oneshot::Receiver<Bytes>) {
        let (told, copy) = oneshot::channel();
        let fits = inner.size_hint().lower() <= bytes_max as u64;
        let kept = fits.then(|| Copy { bytes: BytesMut::new(), bytes_max, told });
        (Self { inner, copy: kept }, copy)
    }
}

impl Copy {
    /// The copy with these bytes too, if they fit.
    fn with(mut self, data: &[u8]) -> Option<Self> {
        let fits = self.bytes.len().checked_add(data.len()).is_some_and(|length| length <= self.bytes_max);
        fits.then(|| self.bytes.extend_from_slice(data))?;
        Some(self)
    }

    fn finish(self) {
        // An error means that nobody wants it any more.
        let _ = self.told.send(self.bytes.freeze());
    }
}

impl<B: Body<Data = Bytes>> Body for Tee<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    *this.copy = this.copy.take().and_then(|copy| copy.with(data));
                }
            }
            Some(Err(_)) => *this.copy = None,
            None => {}
        }
        // Who sees that the end is reached need not ask again.
        if frame.is_none() || this.inner.is_end_stream() {
            this.copy.take().into_iter().for_each(Copy::finish);
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};

    fn pieces(pieces: &[&'static str]) -> impl Body<Data = Bytes, Error = &'static str> {
        let frame = |piece: &&'static str| match *piece {
            "!" => Err("broken"),
            piece => Ok(Frame::data(Bytes::from_static(piece.as_bytes()))),
        };
        StreamBody::new(futures::stream::iter(pieces.iter().map(frame).collect::<Vec<_>>()))
    }

    async fn check(body: &[&'static str], bytes_max: usize, expected: Option<&str>) {
        let (tee, copy) = Tee::new(pieces(body), bytes_max);
        let passed = tee.collect().await.map(|all| all.to_bytes());
        assert_eq!(passed.is_err(), body.contains(&"!"));
        if let Ok(passed) = passed {
            assert_eq!(passed, body.concat());
        }
        assert_eq!(copy.await.ok().as_deref(), expected.map(str::as_bytes), "{body:?} {bytes_max}");
    }

    #[tokio::test]
    async fn a_copy_is_whole_or_none() {
        check(&[], 4, Some("")).await;
        check(&["ab", "cd"], 4, Some("abcd")).await;
        check(&["ab", "cde"], 4, None).await;
        check(&["ab", "!"], 4, None).await;
    }

    #[tokio::test]
    async fn a_body_known_to_be_too_long_is_not_copied_and_one_that_is_dropped_is_not_either() {
        let (tee, copy) = Tee::new(Full::<Bytes>::from("abcde"), 4);
        assert!(copy.await.is_err());
        assert_eq!(tee.collect().await.unwrap().to_bytes(), "abcde");
        let (tee, copy) = Tee::new(pieces(&["ab"]), 4);
        drop(tee);
        assert!(copy.await.is_err());
        let (mut tee, copy) = Tee::new(Full::<Bytes>::from("abcd"), 4);
        let _ = tee.frame().await;
        drop(tee);
        assert_eq!(copy.await.unwrap(), "abcd", "the last frame says that it is the last");
    }
}
