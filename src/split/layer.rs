//! Floor 4: sends each attempt to the backend whose turn it is.

use crate::error::Error;
use crate::policy::call::Call;
use crate::policy::route::Standing;
use crate::route::filter::Filters;
use http::Response;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_service::Service;

/// Sends a [`Call`] to one of its route's backends. The innermost layer that knows of routes; below it, each
/// backend balances for itself. It chooses anew for each attempt, so that a retry may leave a bad backend.
///
/// A backend must wait inside its calls and not in `poll_ready`, as a [`Balance`](crate::balance::layer::Balance)
/// does: which backend is asked is not known before the call, and holding the request until it is ready would cost
/// every call two moves of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Split;

impl<B, T, ResB> Service<Call<B, T>> for Split
where
    T: Service<Call<B, T>, Response = Response<ResB>, Error = Error> + Standing + Clone,
{
    type Response = Response<ResB>;
    type Error = Error;
    type Future = SplitFuture<T::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, mut call: Call<B, T>) -> Self::Future {
        let state = &mut call.scope.state;
        let chosen = call.scope.entry.choose(&call.http, state.attempt, state.hash);
        let (mut backend, filters) = match call.scope.entry.at(chosen) {
            Ok((backend, filters)) => (backend.clone(), filters.cloned()),
            Err(error) => return SplitFuture::Failed(Some(error)),
        };
        state.backend = chosen.and_then(|index| u16::try_from(index).ok()).unwrap_or(u16::MAX);
        if let Some(filters) = &filters {
            filters.apply(&mut call.http);
        }
        SplitFuture::Sent(backend.call(call), filters)
    }
}

/// The future of [`Split`].
#[pin_project(project = Step)]
#[derive(Debug)]
pub enum SplitFuture<F> {
    /// A backend was asked; what is changed in its response.
    Sent(#[pin] F, Option<Arc<Filters>>),
    /// There was none to ask.
    Failed(Option<Error>),
}

impl<F, B> Future for SplitFuture<F>
where
    F: Future<Output = Result<Response<B>, Error>>,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project() {
            Step::Sent(inner, None) => inner.poll(cx),
            Step::Sent(inner, Some(filters)) => {
                let mut response = ready!(inner.poll(cx))?;
                filters.response(response.headers_mut());
                Poll::Ready(Ok(response))
            }
            Step::Failed(error) => Poll::Ready(Err(error.take().unwrap_or(Error::Closed))),
        }
    }
}
