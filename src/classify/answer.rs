//! Floor 3: the response that stands for an error, and a body that is ours or the inner service's.

use crate::error::{BoxError, Error};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll};

pub use crate::classify::grpc::is_grpc;

/// The response header that names what went wrong: one of the words of [`Error::kind`].
pub const ERROR_HEADER: &str = "x-enmesh-error";

/// The longest pushback that is written: what gRPC reads is a signed word of 32 bits.
const PUSHBACK_MS_MAX: u64 = i32::MAX as u64;

/// The response that stands for `error`.
pub fn response<B: Default>(error: &Error, grpc: bool) -> Response<B> {
    let mut response = Response::new(B::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(ERROR_HEADER, HeaderValue::from_static(error.kind()));
    if let Some(wait) = error.retry_after() {
        let secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(secs.max(1)));
    }
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(error.to_grpc())));
        if let Some(wait) = error.retry_after() {
            // Whole seconds are long for a queue that empties in milliseconds (gRPC A6).
            let ms = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
            headers.insert("grpc-retry-pushback-ms", HeaderValue::from(ms.clamp(1, PUSHBACK_MS_MAX)));
        }
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&error.to_string())) {
            headers.insert("grpc-message", message);
        }
        *response.status_mut() = StatusCode::OK;
    } else {
        *response.status_mut() = error.to_status();
    }
    response
}

/// gRPC's encoding of `grpc-message`: printable ASCII but `%` stays (PROTOCOL-HTTP2.md).
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// A response's body, or one of our own.
#[pin_project]
#[derive(Debug)]
pub struct RespondBody<B>(#[pin] Kind<B>);

#[pin_project(project = Known)]
#[derive(Debug)]
enum Kind<B> {
    Inner(#[pin] B),
    Own(Bytes),
}

impl<B> RespondBody<B> {
    /// The body of a service that answered.
    pub fn new(inner: B) -> Self {
        Self(Kind::Inner(inner))
    }

    /// A body of our own.
    pub fn own(own: impl Into<Bytes>) -> Self {
        Self(Kind::Own(own.into()))
    }

    /// The inner service's body, if it answered.
    pub fn inner(&self) -> Option<&B> {
        match &self.0 {
            Kind::Inner(inner) => Some(inner),
            Kind::Own(_) => None,
        }
    }
}

impl<B> Default for RespondBody<B> {
    fn default() -> Self {
        Self::own(Bytes::new())
    }
}

impl<B> Body for RespondBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.project().0.project() {
            Known::Inner(body) => body.poll_frame(cx),
            Known::Own(own) if own.is_empty() => Poll::Ready(None),
            Known::Own(own) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(own))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Inner(body) => body.is_end_stream(),
            Kind::Own(own) => own.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Inner(body) => body.size_hint(),
            Kind::Own(own) => SizeHint::with_exact(own.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn check(error: &Error, grpc: bool, expected: &[(&str, &str)]) {
        let response: Response<()> = response(error, grpc);
        for (name, value) in expected {
            let seen = match *name {
                ":status" => response.status().as_str().to_owned(),
                name => response.headers()[name].to_str().unwrap().to_owned(),
            };
            assert_eq!(seen, *value, "{name}");
        }
    }

    #[test]
    fn callers_are_answered_in_their_own_tongue() {
        let wait = Error::Overloaded { retry_after: Some(Duration::from_millis(1500)) };
        check(&wait, false, &[(":status", "503"), ("retry-after", "2"), (ERROR_HEADER, "overloaded")]);
        let denied = Error::Denied { rule: "100% né".into() };
        check(
            &denied,
            true,
            &[(":status", "200"), ("grpc-status", "7"), ("grpc-message", "denied by 100%25 n%C3%A9")],
        );
    }
}
