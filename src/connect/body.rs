//! Floor 5: the body of a request under way, which can be taken back while the peer may still refuse it.

use crate::error::BoxError;
use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

/// A body that can be sent. `Unpin` because hyper's HTTP/2 asks for it; box a body that is not.
pub trait Sendable: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

impl<B> Sendable for B where B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

/// The error of a caller's body, to be found again in hyper's.
#[derive(Debug)]
pub(crate) struct Broke(BoxError);

impl fmt::Display for Broke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Broke {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// The most bytes that are kept of a body until the response begins. 64 KiB (Linkerd): what a unary call has.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// A request's body as it is handed to hyper.
pub(crate) enum SendBody<B> {
    /// As the caller gave it.
    Whole(B),
    /// With what was sent of it kept, for a second sending.
    Kept(Arc<Kept<B>>),
    /// Nothing, for a second sending.
    Empty,
}

/// What is needed to send a body again.
pub(crate) enum Spare<B> {
    /// There was nothing to send.
    Empty,
    /// What was sent was kept.
    Kept(Arc<Kept<B>>),
}

/// A body and what was sent of it.
pub(crate) struct Kept<B>(Mutex<Store<B>>);

struct Store<B> {
    body: Option<B>,
    sent: Vec<Sent>,
    next: usize,
    bytes: usize,
    keeping: bool,
    ended: bool,
    broke: bool,
}

#[derive(Clone)]
enum Sent {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<B: Body> SendBody<B> {
    /// Begins to keep what is sent, unless there is nothing to send.
    pub(crate) fn keep(&mut self) -> Spare<B> {
        if matches!(self, Self::Whole(body) if body.is_end_stream()) {
            return Spare::Empty;
        }
        let kept = match std::mem::replace(self, Self::Empty) {
            Self::Whole(body) => Arc::new(Kept(Mutex::new(Store {
                body: Some(body),
                sent: Vec::new(),
                next: 0,
                bytes: 0,
                keeping: true,
                ended: false,
                broke: false,
            }))),
            Self::Kept(kept) => kept,
            Self::Empty => return Spare::Empty,
        };
        *self = Self::Kept(kept.clone());
        Spare::Kept(kept)
    }
}

impl<B> Spare<B> {
    /// The whole body again, if all that was sent of it was kept. The old one gives nothing any more.
    pub(crate) fn take_back(&self) -> Option<SendBody<B>> {
        match self {
            Self::Empty => Some(SendBody::Empty),
            Self::Kept(kept) => kept.take_back(),
        }
    }

    /// Keeps no more: the response began.
    pub(crate) fn forget(&self) {
        if let Self::Kept(kept) = self {
            kept.forget();
        }
    }

    /// Whether the caller's body failed.
    pub(crate) fn broke(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::Kept(kept) => kept.lock().broke,
        }
    }
}

impl<B> Kept<B> {
    fn lock(&self) -> MutexGuard<'_, Store<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_back(&self) -> Option<SendBody<B>> {
        let mut store = self.lock();
        if !store.keeping || store.broke {
            return None;
        }
        let gone = Store {
            body: None,
            sent: Vec::new(),
            next: 0,
            bytes: 0,
            keeping: false,
            ended: store.ended,
            broke: false,
        };
        let whole = Store { next: 0, ..std::mem::replace(&mut *store, gone) };
        Some(SendBody::Kept(Arc::new(Kept(Mutex::new(whole)))))
    }

    fn forget(&self) {
        let mut store = self.lock();
        store.keeping = false;
        let next = std::mem::take(&mut store.next);
        store.sent.drain(..next);
    }
}

impl<B> Store<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(sent) = self.sent.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(match sent.clone() {
                Sent::Data(data) => Frame::data(data),
                Sent::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let Some(body) = &mut self.body else {
            return Poll::Ready(Some(Err("the request was taken back to be sent again".into())));
        };
        match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.record(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.broke = true;
                Poll::Ready(Some(Err(Broke(error.into()).into())))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn record(&mut self, frame: &Frame<Bytes>) {
        if !self.keeping {
            return;
        }
        self.bytes += frame.data_ref().map_or(0, Bytes::len);
        if self.bytes > KEPT_BYTES_MAX {
            self.keeping = false;
            self.sent = Vec::new();
            self.next = 0;
            return;
        }
        if let Some(data) = frame.data_ref() {
            self.sent.push(Sent::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.sent.push(Sent::Trailers(trailers.clone()));
        }
        self.next = self.sent.len();
    }

    fn left(&self) -> usize {
        let data = |sent: &Sent| match sent {
            Sent::Data(data) => data.len(),
            Sent::Trailers(_) => 0,
        };
        self.sent.iter().skip(self.next).map(data).sum()
    }
}

impl<B> Body for SendBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|error| Broke(error.into()).into()),
            Self::Kept(kept) => kept.lock().poll(cx),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Empty => true,
            Self::Kept(kept) => {
                let store = kept.lock();
                store.next == store.sent.len()
                    && (store.ended || store.body.as_ref().is_some_and(Body::is_end_stream))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Kept(kept) => {
                let store = kept.lock();
                let left = store.left() as u64;
                let body = match &store.body {
                    Some(body) if !store.ended => body.size_hint(),
                    _ => SizeHint::with_exact(0),
                };
                let mut hint = SizeHint::new();
                hint.set_lower(left.saturating_add(body.lower()));
                if let Some(upper) = body.upper() {
                    hint.set_upper(left.saturating_add(upper));
                }
                hint
            }
        }
    }
}

impl<B> fmt::Debug for SendBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendBody")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use http_body_util::Full;
    use http_body_util::StreamBody;
    use std::convert::Infallible;

    type Frames = Vec<Result<Frame<Bytes>, Infallible>>;
    type Streamed = StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

    fn kept<B: Body>(body: B) -> (SendBody<B>, Spare<B>) {
        let mut body = SendBody::Whole(body);
        let spare = body.keep();
        (body, spare)
    }

    fn streamed(frames: Frames) -> (SendBody<Streamed>, Spare<Streamed>) {
        kept(StreamBody::new(futures::stream::iter(frames)))
    }

    fn frames() -> Frames {
        let mut trailers = HeaderMap::new();
        trailers.insert("checksum", http::HeaderValue::from_static("1"));
        vec![
            Ok(Frame::data(Bytes::from_static(b"one"))),
            Ok(Frame::data(Bytes::from_static(b"two"))),
            Ok(Frame::trailers(trailers)),
        ]
    }

    #[tokio::test]
    async fn a_body_is_whole_again_wherever_it_was_taken_back() {
        for read in 0..=4 {
            let (mut body, spare) = streamed(frames());
            for _ in 0..read {
                let _ = body.frame().await;
            }
            let spare_again = spare.take_back().unwrap().keep();
            let collected = spare_again.take_back().unwrap().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["checksum"], "1", "after {read} frames");
            assert_eq!(collected.to_bytes(), "onetwo", "after {read} frames");
            assert!(body.frame().await.is_none_or(|frame| frame.is_err()));
        }
    }

    #[tokio::test]
    async fn too_much_sent_or_a_response_cannot_be_taken_back() {
        let (mut body, spare) = streamed(vec![Ok(Frame::data(Bytes::from(vec![0; KEPT_BYTES_MAX + 1])))]);
        assert!(body.frame().await.unwrap().is_ok());
        assert!(spare.take_back().is_none());
        let (body, spare) = streamed(frames());
        spare.forget();
        assert!(spare.take_back().is_none());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "onetwo");
    }

    #[tokio::test]
    async fn the_length_is_known_as_long_as_it_was() {
        let (mut body, spare) = kept(Full::new(Bytes::from_static(b"12345")));
        assert_eq!(body.size_hint().exact(), Some(5));
        let _ = body.frame().await;
        assert_eq!(spare.take_back().unwrap().size_hint().exact(), Some(5));
        let (_, spare) = kept(Full::<Bytes>::default());
        assert!(spare.take_back().unwrap().is_end_stream());
    }
}
