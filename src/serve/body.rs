//! Floor 5: the bodies of a server: requests' with their limits, responses' with what they hold.

use crate::error::BoxError;
use crate::serve::stats::Event;
use crate::serve::stats::ServeStats;
use crate::serve::wire::Activity;
use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::Limited;
use hyper::body::Incoming;
use pin_project::pin_project;
use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Sleep;

/// The body of a request as the app gets it: at most so many bytes, and no endless pause.
///
/// Its errors are hyper's, [`http_body_util::LengthLimitError`], which axum answers with 413, or an
/// [`io::Error`] of the kind `TimedOut`.
#[derive(Debug)]
pub struct RequestBody {
    inner: Limited<Incoming>,
    idle: Option<Duration>,
    /// Made at the first pause; most bodies have none.
    pause: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, bytes_max: usize, idle: Option<Duration>) -> Self {
        Self { inner: Limited::new(inner, bytes_max), idle, pause: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        if polled.is_ready() {
            this.pause = None;
            return polled;
        }
        if let Some(idle) = this.idle {
            let pause = this.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
            if pause.as_mut().poll(cx).is_ready() {
                let error =
                    io::Error::new(io::ErrorKind::TimedOut, format!("no byte of the body for {idle:?}"));
                return Poll::Ready(Some(Err(error.into())));
            }
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A request under way, until the end of its response.
pub(crate) struct InFlight {
    stats: Arc<ServeStats>,
    activity: Arc<Activity>,
    /// Whether something of the response waits for the peer.
    waits: bool,
}

impl InFlight {
    pub(crate) fn new(stats: Arc<ServeStats>, activity: Arc<Activity>) -> Self {
        stats.count(Event::Request);
        activity.begin();
        Self { stats, activity, waits: false }
    }

    /// Something of the response waits for the peer: it is asked for more when the peer has taken that.
    fn waits(&mut self) {
        if !std::mem::replace(&mut self.waits, true) {
            self.activity.waits();
        }
    }

    fn taken(&mut self) {
        if std::mem::replace(&mut self.waits, false) {
            self.activity.taken();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.taken();
        self.activity.end();
        self.stats.count(Event::Answered);
    }
}

/// The body of a response as it is sent: the app's, or a line of ours.
#[pin_project]
pub struct ResponseBody<B> {
    #[pin]
    inner: Inner<B>,
    in_flight: Option<InFlight>,
}

#[pin_project(project = InnerProj)]
enum Inner<B> {
    App(#[pin] B),
    Line(Option<Bytes>),
}

impl<B> ResponseBody<B> {
    pub(crate) fn app(body: B, in_flight: Option<InFlight>) -> Self {
        Self { inner: Inner::App(body), in_flight }
    }

    pub(crate) fn line(line: &'static str) -> Self {
        Self { inner: Inner::Line(Some(Bytes::from_static(line.as_bytes()))), in_flight: None }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        if let Some(in_flight) = this.in_flight.as_mut() {
            in_flight.taken();
        }
        let polled = match this.inner.as_mut().project() {
            InnerProj::App(body) => {
                catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx).map_err(Into::into)))
            }
            InnerProj::Line(line) => Ok(Poll::Ready(line.take().map(|line| Ok(Frame::data(line))))),
        };
        // After a panic the app's body is never polled again, so no broken state is seen.
        let polled = polled.unwrap_or_else(|panic| {
            if let Some(in_flight) = &this.in_flight {
                in_flight.stats.panicked(panic.as_ref());
            }
            this.inner.set(Inner::Line(None));
            Poll::Ready(Some(Err("the body panicked".into())))
        });
        match polled {
            Poll::Ready(None | Some(Err(_))) => *this.in_flight = None,
            Poll::Ready(Some(Ok(_))) => {
                if let Some(in_flight) = this.in_flight.as_mut() {
                    in_flight.waits();
                }
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::App(body) => body.is_end_stream(),
            Inner::Line(line) => line.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::App(body) => body.size_hint(),
            Inner::Line(line) => SizeHint::with_exact(line.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseBody")
    }
}
