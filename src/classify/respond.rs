//! Floor 4: turns errors into responses, as HTTP or as gRPC, whichever the caller speaks.

use crate::classify::answer::{RespondBody, is_grpc, response};
use crate::error::Error;
use http::{Request, Response};
use pin_project::pin_project;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Makes a service infallible: errors become responses (linkerd.md §3.6).
///
/// gRPC callers (content type `application/grpc…`) get status 200 with `grpc-status` and `grpc-message`, HTTP callers the
/// status of [`Error::to_status`]; both get [`ERROR_HEADER`](crate::classify::answer::ERROR_HEADER) and, when it is known, `retry-after`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RespondLayer;

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Respond<S> {
        Respond { inner }
    }
}

/// The service of [`RespondLayer`].
#[derive(Debug, Clone)]
pub struct Respond<S> {
    inner: S,
}

impl<S, B, ResB> Service<Request<B>> for Respond<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<Error>,
{
    type Response = Response<RespondBody<ResB>>;
    type Error = Infallible;
    type Future = RespondFuture<S::Future>;

    /// Always ready: an error of the inner service's readiness would have no response to stand in, so the inner
    /// service must wait inside its own call, as all of this crate's do.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        let _ = ready!(self.inner.poll_ready(cx));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let grpc = is_grpc(request.headers());
        RespondFuture { inner: self.inner.call(request), grpc }
    }
}

/// The future of [`Respond`].
#[pin_project]
#[derive(Debug)]
pub struct RespondFuture<F> {
    #[pin]
    inner: F,
    grpc: bool,
}

impl<F, B, E> Future for RespondFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Error>,
{
    type Output = Result<Response<RespondBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(Ok(match ready!(this.inner.poll(cx)) {
            Ok(inner) => inner.map(RespondBody::new),
            Err(error) => response(&error.into(), *this.grpc),
        }))
    }
}
