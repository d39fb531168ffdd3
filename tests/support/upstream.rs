//! A service that answers by a script, notes what it got, and insists on tower's contract.

use bytes::Bytes;
use enmesh::error::{BoxError, Error};
use enmesh::policy::call::{CallState, MeshRequest};
use futures::StreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::Service;

pub(crate) type Bytestream = UnsyncBoxBody<Bytes, BoxError>;

/// How one attempt is answered.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) after: Duration,
    pub(crate) end: End,
    /// Whether the request's body is read before the answer.
    pub(crate) reads: bool,
}

#[derive(Clone)]
pub(crate) enum End {
    Response { status: u16, version: Version, headers: Vec<(&'static str, String)>, frames: Vec<Sent> },
    Error(fn() -> Error),
    Panic,
}

/// A piece of a response's body.
#[derive(Clone)]
pub(crate) enum Sent {
    Data(&'static str),
    Trailers(Vec<(&'static str, &'static str)>),
    Wait(Duration),
    Break,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        let end =
            End::Response { status, version: Version::HTTP_11, headers: Vec::new(), frames: Vec::new() };
        Self { after: Duration::ZERO, end, reads: true }
    }

    pub(crate) fn error(error: fn() -> Error) -> Self {
        Self { after: Duration::ZERO, end: End::Error(error), reads: true }
    }

    pub(crate) fn panic() -> Self {
        Self { after: Duration::ZERO, end: End::Panic, reads: true }
    }

    /// A gRPC response with these frames over HTTP/2.
    pub(crate) fn grpc(frames: Vec<Sent>) -> Self {
        let headers = vec![("content-type", "application/grpc".to_owned())];
        let end = End::Response { status: 200, version: Version::HTTP_2, headers, frames };
        Self { after: Duration::ZERO, end, reads: true }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let End::Response { headers, .. } = &mut self.end {
            headers.push((name, value.into()));
        }
        self
    }

    pub(crate) fn body(mut self, sent: Vec<Sent>) -> Self {
        if let End::Response { frames, .. } = &mut self.end {
            *frames = sent;
        }
        self
    }

    pub(crate) fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    pub(crate) fn early(mut self) -> Self {
        self.reads = false;
        self
    }
}

/// What an attempt brought.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) at: tokio::time::Instant,
    pub(crate) parts: Parts,
    pub(crate) state: Option<CallState>,
    /// The body; `None` while it is not read to its end.
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) trailers: Option<HeaderMap>,
}

/// Answers the attempts in turn; the last reply repeats.
pub(crate) struct Upstream {
    script: Arc<Mutex<VecDeque<Reply>>>,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// Futures and response bodies that are alive.
    pub(crate) alive: Arc<AtomicUsize>,
    ready: bool,
}

impl Clone for Upstream {
    fn clone(&self) -> Self {
        let Self { script, seen, alive, .. } = self;
        Self { script: Arc::clone(script), seen: Arc::clone(seen), alive: Arc::clone(alive), ready: false }
    }
}

struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Upstream {
    pub(crate) fn new(script: impl IntoIterator<Item = Reply>) -> Self {
        let script = Arc::new(Mutex::new(script.into_iter().collect()));
        Self { script, seen: Arc::default(), alive: Arc::default(), ready: false }
    }

    /// How many attempts came.
    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The bodies that came whole.
    pub(crate) fn bodies(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().iter().filter_map(|seen| seen.body.clone()).collect()
    }

    /// What is alive of all attempts.
    pub(crate) fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }
}

impl<R> Service<R> for Upstream
where
    R: MeshRequest,
    R::Body: Body<Data = Bytes> + Send + Unpin + 'static,
    <R::Body as Body>::Error: Into<BoxError>,
{
    type Response = Response<Bytestream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    #[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
    fn call(&mut self, request: R) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being asked whether it is ready");
        let state = request.state().copied();
        let (parts, mut body) = request.into_http().into_parts();
        let reply = {
            let mut script = self.script.lock().unwrap();
            let first = script.pop_front().expect("a script");
            if script.is_empty() {
                script.push_back(first.clone());
            }
            first
        };
        let (seen, alive) = (Arc::clone(&self.seen), Alive::new(&self.alive));
        let index = {
            let mut seen = seen.lock().unwrap();
            seen.push(Seen { at: tokio::time::Instant::now(), parts, state, body: None, trailers: None });
            seen.len() - 1
        };
        Box::pin(async move {
            if reply.reads {
                let mut bytes = Vec::new();
                while let Some(frame) = body.frame().await {
                    match frame.map_err(|error| Error::Body(error.into()))?.into_data() {
                        Ok(data) => bytes.extend(data),
                        Err(frame) => seen.lock().unwrap()[index].trailers = frame.into_trailers().ok(),
                    }
                }
                seen.lock().unwrap()[index].body = Some(bytes);
            }
            if !reply.after.is_zero() {
                tokio::time::sleep(reply.after).await;
            }
            match reply.end {
                End::Panic => panic!("on purpose"),
                End::Error(error) => Err(error()),
                End::Response { status, version, headers, frames } => {
                    let mut response = Response::new(stream(frames, alive));
                    *response.status_mut() = status.try_into().unwrap();
                    *response.version_mut() = version;
                    *response.headers_mut() =
                        map(headers.iter().map(|(name, value)| (*name, value.as_str())));
                    Ok(response)
                }
            }
        })
    }
}

fn map<'a>(pairs: impl Iterator<Item = (&'static str, &'a str)>) -> HeaderMap {
    pairs
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn stream(frames: Vec<Sent>, alive: Alive) -> Bytestream {
    if frames.is_empty() {
        return http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
    }
    let alive = Arc::new(alive);
    let frames = futures::stream::iter(frames).filter_map(move |sent| {
        let alive = Arc::clone(&alive);
        async move {
            let _alive = alive;
            match sent {
                Sent::Data(data) => Some(Ok(Frame::data(Bytes::from_static(data.as_bytes())))),
                Sent::Trailers(pairs) => Some(Ok(Frame::trailers(map(pairs.into_iter())))),
                Sent::Break => Some(Err(BoxError::from("broken"))),
                Sent::Wait(time) => {
                    tokio::time::sleep(time).await;
                    None
                }
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
