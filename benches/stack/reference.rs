//! The same stack of tower 0.5's parts, as its documentation puts them together: a timeout over all, retries with a
//! budget, a timeout per attempt, a buffer (because `Balance` is not `Clone`), power-of-two balancing by peak EWMA, and
//! a breaker per endpoint.

use crate::common::{Options, Row, measure};
use crate::{Mock, address, request};
use bytes::Bytes;
use enmesh::mesh::body::ReqBody;
use http::{Request, Response};
use http_body_util::Empty;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};
use tower::retry::budget::{Budget, TpsBudget};
use tower::retry::{Policy, Retry};
use tower::timeout::Timeout;
use tower::{BoxError, Service, ServiceExt};

type Answer = Response<Empty<Bytes>>;

/// The least breaker that is one: so many failures in a row shut it.
#[derive(Clone)]
struct Breaker<S> {
    inner: S,
    failures: Arc<AtomicU32>,
}

impl<S: Service<Request<()>, Response = Answer, Error = Infallible>> Service<Request<()>> for Breaker<S>
where
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Judged<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.failures.load(Ordering::Relaxed) >= 7 {
            return Poll::Pending;
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        Judged { inner: Box::pin(self.inner.call(request)), failures: Arc::clone(&self.failures) }
    }
}

struct Judged<F> {
    inner: Pin<Box<F>>,
    failures: Arc<AtomicU32>,
}

impl<F: Future<Output = Result<Answer, Infallible>>> Future for Judged<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let result = ready!(self.inner.as_mut().poll(cx));
        match &result {
            Ok(response) if response.status().is_server_error() => {
                self.failures.fetch_add(1, Ordering::Relaxed)
            }
            Ok(_) => self.failures.swap(0, Ordering::Relaxed),
            Err(never) => match *never {},
        };
        Poll::Ready(result)
    }
}

#[derive(Clone)]
struct Attempts {
    budget: Arc<TpsBudget>,
    left: u8,
}

impl Policy<Request<()>, Answer, BoxError> for Attempts {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Request<()>, result: &mut Result<Answer, BoxError>) -> Option<Self::Future> {
        let failed = result.as_ref().map_or(true, |response| response.status().is_server_error());
        if !failed {
            self.budget.deposit();
            return None;
        }
        if self.left == 0 || !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        Some(std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<()>) -> Option<Request<()>> {
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        Some(copy)
    }
}

/// Measures it with 10 endpoints. The buffer's worker is a task, so each round runs on the runtime.
pub fn tower_row(options: &Options, name: &str, runtime: &tokio::runtime::Runtime) -> Option<Row> {
    if !options.wants(name) {
        return None;
    }
    let endpoints: Vec<_> = (0..10)
        .map(|index| {
            let _ = address(index);
            let breaker = Breaker { inner: Mock, failures: Arc::default() };
            PeakEwma::new(breaker, Duration::from_millis(30), 1e10, CompleteOnResponse::default())
        })
        .collect();
    let balance = Balance::new(ServiceList::new(endpoints));
    let buffer = Buffer::new(balance, 1024);
    let budget = Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 0.2));
    let attempt = Timeout::new(buffer, Duration::from_secs(1));
    let retry = Retry::new(Attempts { budget, left: 2 }, attempt);
    let stack = Timeout::new(retry, Duration::from_secs(5));
    let model: Request<ReqBody> = request("/api/r9");
    measure(options, name, || {
        let mut request = Request::new(());
        *request.uri_mut() = model.uri().clone();
        let response = runtime.block_on(stack.clone().oneshot(request)).expect("a response");
        drop(std::hint::black_box(response));
    })
}
