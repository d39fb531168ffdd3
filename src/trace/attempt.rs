//! Floor 4: tells whoever observes a call of each of its attempts, where no balancer does: around a service of the caller's own.

use crate::classify::body::{End, Watch, Watched};
use crate::classify::classifier::{self, Classifier, Head};
use crate::classify::outcome::Outcome;
use crate::error::{BoxError, Error};
use crate::policy::call::MeshRequest;
use crate::policy::observe::{Attempting, Observed};
use crate::stdx::clock;
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Begins an attempt for each request that somebody observes: its place in the trace is written into its headers, and it ends
/// with its response's body. Costs others one test of an `Option`. It stands below the retries.
#[derive(Debug, Clone, Copy, Default)]
pub struct TellAttemptsLayer;

impl<S> Layer<S> for TellAttemptsLayer {
    type Service = TellAttempts<S>;

    fn layer(&self, inner: S) -> TellAttempts<S> {
        TellAttempts { inner }
    }
}

/// The service of [`TellAttemptsLayer`].
#[derive(Debug, Clone)]
pub struct TellAttempts<S> {
    inner: S,
}

impl<S, R, B> Service<R> for TellAttempts<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Error>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = Response<Watched<B, Told>>;
    type Error = Error;
    type Future = TellAttemptsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: R) -> Self::Future {
        let observed = request.observed().map(Arc::clone);
        let told = observed.map(|observed| Told::begin(&observed, &mut request));
        TellAttemptsFuture { inner: self.inner.call(request), told }
    }
}

/// An attempt that is told of, until its response's body ends. Dropped before, it was dropped.
#[derive(Debug)]
pub struct Told(Box<Telling>);

#[derive(Debug)]
struct Telling {
    attempting: Attempting,
    classifier: Option<Arc<Classifier>>,
    head: Head,
}

impl Told {
    #[cold]
    fn begin<R: MeshRequest>(observed: &Arc<Observed>, request: &mut R) -> Self {
        let number = request.state().map_or(0, |state| state.attempt);
        let classifier = request.route().map(|route| Arc::clone(&route.classifier));
        let attempting = observed.attempt(number, None, request.http_mut().headers_mut());
        Self(Box::new(Telling { attempting, classifier, head: Head::Decided(Outcome::DROPPED) }))
    }

    fn head<B>(&mut self, response: &Response<B>) {
        let Telling { attempting, classifier, head } = &mut *self.0;
        let (status, headers) = (response.status(), response.headers());
        *head = classifier::head(classifier.as_deref(), status, headers, clock::wall_secs);
        attempting.head(status, headers);
    }
}

impl Watch for Told {
    fn data(&mut self, bytes: usize) {
        self.0.attempting.data(bytes);
    }

    fn end(&mut self, end: End<'_>) {
        let outcome = end.outcome(self.0.head);
        self.0.attempting.end(&outcome, None, end.trailers());
    }
}

/// The future of [`TellAttempts`].
#[pin_project]
#[derive(Debug)]
pub struct TellAttemptsFuture<F> {
    #[pin]
    inner: F,
    told: Option<Told>,
}

impl<F, B, E> Future for TellAttemptsFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Error>,
    B: Body,
{
    type Output = Result<Response<Watched<B, Told>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx)).map_err(Into::into);
        let mut told = this.told.take();
        Poll::Ready(match result {
            Ok(response) => {
                if let Some(told) = &mut told {
                    told.head(&response);
                }
                Ok(response.map(|body| Watched::maybe(body, told)))
            }
            Err(error) => {
                if let Some(told) = &mut told {
                    told.0.attempting.end(&Outcome::of_error(&error), Some(&error), None);
                }
                Err(error)
            }
        })
    }
}
