//! Floor 6: the bodies of the facade.

use crate::error::BoxError;
#[cfg(feature = "http")]
use crate::split::tee::Tee;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
#[cfg(feature = "http")]
use tokio::sync::oneshot;

/// A request's body on its way through the mesh.
///
/// An empty or a whole one costs no allocation; any other is boxed once.
#[derive(Default)]
pub struct ReqBody(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl ReqBody {
    /// A body without bytes.
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// Any body. One that is at its end already is not boxed, nor is a `ReqBody`, `Full<Bytes>` or `Bytes`.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        let mut slot = Some(body);
        if let Some(known) = (&mut slot as &mut dyn Any).downcast_mut::<Option<Self>>() {
            return known.take().unwrap_or_default();
        }
        match slot {
            Some(body) => Self(Kind::Boxed(body.map_err(Into::into).boxed_unsync())),
            None => Self::empty(),
        }
    }
}

/// A copy of a body.
#[cfg(feature = "http")]
#[derive(Debug)]
pub(crate) enum BodyCopy {
    /// It is known already.
    Known(Bytes),
    /// It is known when the body has been sent.
    Coming(oneshot::Receiver<Bytes>),
}

#[cfg(feature = "http")]
impl BodyCopy {
    /// The whole of it; `None` if it became too long, or broke off.
    pub(crate) async fn whole(self) -> Option<Bytes> {
        match self {
            Self::Known(bytes) => Some(bytes),
            Self::Coming(bytes) => bytes.await.ok(),
        }
    }
}

#[cfg(feature = "http")]
impl ReqBody {
    /// The same body, and a copy of it; none if it is known to be longer than `bytes_max`.
    pub(crate) fn copied(self, bytes_max: usize) -> (Self, Option<BodyCopy>) {
        match self.0 {
            Kind::Empty => (Self::empty(), Some(BodyCopy::Known(Bytes::new()))),
            Kind::Full(bytes) => {
                let copy = (bytes.len() <= bytes_max).then(|| BodyCopy::Known(bytes.clone()));
                (Self(Kind::Full(bytes)), copy)
            }
            Kind::Boxed(body) => {
                let (tee, copy) = Tee::new(body, bytes_max);
                (Self(Kind::Boxed(tee.boxed_unsync())), Some(BodyCopy::Coming(copy)))
            }
        }
    }
}

impl fmt::Debug for ReqBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Empty => "empty",
            Kind::Full(_) => "full",
            Kind::Boxed(_) => "boxed",
        };
        f.debug_tuple("ReqBody").field(&kind).finish()
    }
}

macro_rules! from_bytes {
    ($($kind:ty),*) => {$(
        impl From<$kind> for ReqBody {
            fn from(bytes: $kind) -> Self {
                let bytes = Bytes::from(bytes);
                if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(bytes)) }
            }
        }
    )*};
}

from_bytes!(Bytes, String, Vec<u8>, &'static str, &'static [u8]);

impl From<()> for ReqBody {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

impl Body for ReqBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let kind = &mut self.get_mut().0;
        match kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    #[tokio::test]
    async fn a_body_keeps_its_bytes_and_a_known_one_is_not_boxed() {
        let again = ReqBody::new(ReqBody::from("abc"));
        assert_eq!(format!("{again:?}"), "ReqBody(\"full\")");
        assert_eq!(again.collect().await.unwrap().to_bytes(), "abc");
        let boxed = ReqBody::new(Full::<Bytes>::from("de"));
        assert_eq!(boxed.size_hint().exact(), Some(2));
        assert_eq!(boxed.collect().await.unwrap().to_bytes(), "de");
        assert!(ReqBody::new(Full::<Bytes>::default()).is_end_stream());
    }
}
