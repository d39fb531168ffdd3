//! Floor 4: does what a route says beside forwarding: answers by itself, or changes requests and responses.

use crate::classify::answer::{RespondBody, is_grpc};
use crate::error::Error;
use crate::policy::call::MeshRequest;
use crate::policy::route::{Answer, RoutePolicy};
use crate::profile::route::Respond;
use crate::route::cors::Headers;
use crate::route::filter::Filters;
use crate::route::head::RequestHead;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use pin_project::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Does what the route of each request says. Plain requests, which met none, pass as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct ActLayer;

impl<S> Layer<S> for ActLayer {
    type Service = Act<S>;

    fn layer(&self, inner: S) -> Act<S> {
        Act { inner }
    }
}

/// The service of [`ActLayer`].
#[derive(Debug, Clone)]
pub struct Act<S> {
    inner: S,
}

impl<S, R, B> Service<R> for Act<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Error>,
{
    type Response = Response<RespondBody<B>>;
    type Error = Error;
    type Future = ActFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: R) -> Self::Future {
        let Some(route) = request.route() else {
            return ActFuture::Sent { inner: self.inner.call(request), filters: None };
        };
        if let Some(answer) = by_itself(route, request.http()) {
            return ActFuture::Answered(Some(answer));
        }
        let cors = allowed(route, request.http());
        let mut filters = (!route.filters.is_empty()).then(|| Arc::clone(&route.filters));
        if let Some(filters) = &filters {
            filters.apply(request.http_mut());
        }
        if let Some(headers) = cors {
            filters = Some(Arc::new(filters.as_deref().cloned().unwrap_or_default().and_response(headers)));
        }
        ActFuture::Sent { inner: self.inner.call(request), filters }
    }
}

/// What a route answers by itself: a redirect, a fixed response, a browser's question whether it may ask.
#[inline]
pub(crate) fn by_itself<B, ResB>(
    route: &RoutePolicy,
    http: &Request<B>,
) -> Option<Response<RespondBody<ResB>>> {
    if let Some(answer) = &route.answer {
        return Some(answered(answer, http));
    }
    let (status, headers) = route.cors()?.preflight(http.method(), http.headers())?;
    let mut response = Response::new(RespondBody::default());
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    Some(response)
}

/// What a route sets in the response to a browser's request from another origin.
#[inline]
pub(crate) fn allowed<B>(route: &RoutePolicy, http: &Request<B>) -> Option<Headers> {
    let headers = route.cors()?.response(http.headers());
    (!headers.is_empty()).then_some(headers)
}

fn answered<B, ResB>(answer: &Answer, http: &Request<B>) -> Response<RespondBody<ResB>> {
    let mut response = Response::new(RespondBody::default());
    match answer {
        Answer::Redirect(redirection) => {
            *response.status_mut() = redirection.status();
            if let Some(location) = redirection.header(&RequestHead::of_request(http)) {
                response.headers_mut().insert(header::LOCATION, location);
            }
        }
        Answer::Fixed(respond) => fixed(respond, is_grpc(http.headers()), &mut response),
    }
    response
}

fn fixed<B>(respond: &Respond, grpc: bool, response: &mut Response<RespondBody<B>>) {
    for (name, value) in &respond.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(&**name), HeaderValue::try_from(&**value)) {
            response.headers_mut().append(name, value);
        }
    }
    match respond.grpc.filter(|_| grpc) {
        Some(code) => {
            response.headers_mut().insert("grpc-status", HeaderValue::from(u16::from(code)));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        None => {
            let status = StatusCode::from_u16(respond.status);
            *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            *response.body_mut() = RespondBody::own(respond.body.as_bytes().to_vec());
        }
    }
}

/// The future of [`Act`].
#[pin_project(project = Step)]
#[derive(Debug)]
pub enum ActFuture<F, B> {
    /// The request went on.
    Sent {
        /// The inner service's future.
        #[pin]
        inner: F,
        /// What changes the response.
        filters: Option<Arc<Filters>>,
    },
    /// The route answered by itself.
    Answered(Option<Response<RespondBody<B>>>),
}

impl<F, B, E> Future for ActFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Error>,
{
    type Output = Result<Response<RespondBody<B>>, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Step::Answered(response) => Poll::Ready(response.take().ok_or(Error::Closed)),
            Step::Sent { inner, filters } => {
                let mut response = ready!(inner.poll(cx)).map_err(Into::into)?;
                if let Some(filters) = filters {
                    filters.response(response.headers_mut());
                }
                Poll::Ready(Ok(response.map(RespondBody::new)))
            }
        }
    }
}
