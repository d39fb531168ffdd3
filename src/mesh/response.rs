//! Floor 6: a call's future, and its response's body.

use crate::balance::body::Served;
use crate::classify::answer::{self, RespondBody};
use crate::classify::body::Watched;
use crate::connect::http::ResponseBody;
use crate::error::{BoxError, Error};
use crate::mesh::body::ReqBody;
use crate::mesh::client::ClientStack;
use crate::mesh::directory::Target;
use crate::mesh::ending::{Keep, WholeBody};
use crate::metrics::layer::Meter;
use crate::policy::call::{Call, CallInfo};
use crate::retry::body::Attempted;
use crate::stdx::clock::Duration;
use crate::timeout::body::TimedBody;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_service::Service;

/// The body of an attempt, as the retries see it.
type Attempt = Served<TimedBody<ResponseBody>>;
/// The body of a call.
type Whole = WholeBody<Attempt>;
type StackFuture = <ClientStack as Service<Call<ReqBody, Target>>>::Future;

/// A response's body. It passes frames on as they come; the call counts as in flight until it ends or is dropped.
#[pin_project]
pub struct ResBody {
    #[pin]
    inner: Whole,
}

impl ResBody {
    /// How the call was served. Of a route that answered by itself: without an attempt.
    pub fn call_info(&self) -> CallInfo {
        let meter = self.inner.watch().map(Keep::meter);
        let attempted = self.inner.inner().inner().and_then(TimedBody::inner);
        let route = meter.and_then(Meter::route).map_or_else(|| "".into(), |route| Arc::clone(&route.name));
        let latency = meter.map_or(Duration::ZERO, Meter::latency);
        let mut info = CallInfo::new(route, attempted.map_or(0, Attempted::attempts), latency);
        info.endpoint = attempted.and_then(|body| body.inner().endpoint()).cloned();
        info
    }
}

impl fmt::Debug for ResBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResBody").field("info", &self.call_info()).finish_non_exhaustive()
    }
}

impl Body for ResBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The future of a call. Dropping it cancels the call.
///
/// A gRPC call gets its error as a response with `grpc-status`, as its caller expects; all others get it as `Err`.
#[must_use = "futures do nothing unless polled"]
#[pin_project]
pub struct ResponseFuture {
    #[pin]
    state: State,
    grpc: bool,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is every call; the others are the first of a service"
)]
#[pin_project(project = Step)]
enum State {
    Sent(#[pin] StackFuture),
    Failed(Option<Error>),
    /// Its service's source has not answered yet; what comes then is boxed, once per service.
    Waits(BoxFuture<'static, Result<Response<ResBody>, Error>>),
}

impl ResponseFuture {
    /// A call under way, made by gRPC or not.
    #[inline]
    pub(crate) fn sent(inner: StackFuture, grpc: bool) -> Self {
        Self { state: State::Sent(inner), grpc }
    }

    pub(crate) fn failed(error: Error, grpc: bool) -> Self {
        Self { state: State::Failed(Some(error)), grpc }
    }

    pub(crate) fn waits(future: BoxFuture<'static, Result<Response<ResBody>, Error>>, grpc: bool) -> Self {
        Self { state: State::Waits(future), grpc }
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResBody>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = match this.state.project() {
            Step::Sent(inner) => {
                ready!(inner.poll(cx)).map(|response| response.map(|inner| ResBody { inner }))
            }
            Step::Failed(error) => Err(error.take().unwrap_or(Error::Closed)),
            Step::Waits(future) => ready!(future.as_mut().poll(cx)),
        };
        Poll::Ready(match result {
            Err(error) if *this.grpc => Ok(grpc_status(&error)),
            result => result,
        })
    }
}

/// The response that tells a gRPC caller of `error`.
fn grpc_status(error: &Error) -> Response<ResBody> {
    let inner = Watched::maybe(RespondBody::default(), None);
    answer::response::<()>(error, true).map(|()| ResBody { inner })
}

/// What a response of a [`Client`](crate::mesh::client::Client) says of its call.
pub trait ResponseExt {
    /// How the call was served: by which endpoint and route, after how many attempts, how fast.
    fn call_info(&self) -> CallInfo;
}

impl ResponseExt for Response<ResBody> {
    fn call_info(&self) -> CallInfo {
        self.body().call_info()
    }
}
