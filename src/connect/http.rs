//! Floor 5: sends requests to one replica.

use crate::connect::body::Broke;
use crate::connect::body::SendBody;
use crate::connect::body::Sendable;
use crate::connect::body::Spare;
use crate::connect::conn::Conn;
use crate::connect::conn::Lease;
use crate::connect::conn::Leased;
use crate::connect::handshake::Handshake;
use crate::connect::handshake::Plain;
use crate::connect::handshake::Protocol;
use crate::connect::limits::PoolLimits;
use crate::connect::line::Want;
use crate::connect::open;
use crate::connect::pool::Pool;
use crate::connect::pool::Taken;
use crate::connect::prepare;
use crate::connect::refusal::Ended;
use crate::connect::settings::ConnectSettings;
use crate::connect::stats::ConnectStats;
use crate::discover::endpoint::Endpoint;
use crate::error::Error;
use crate::stdx::copy::Copy;
use crate::stdx::rng::Rng;
use bytes::Bytes;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use tokio::runtime::Handle;

/// The handle to one replica: a [`tower_service::Service`] for requests.
///
/// Clones share the connections. It is always ready; `call` waits for a connection, and dropping its future at
/// any moment gives everything back. When the last clone is dropped, unused connections close and the others
/// finish what they have. `call` must be polled within a tokio runtime.
pub struct Connection<B, H: Handshake = Plain> {
    pool: Arc<Pool<B, H>>,
}

impl<B, H: Handshake> Connection<B, H> {
    /// A handle without an open connection; the first request opens one. `handshake` is [`Plain`] for plain
    /// text.
    pub fn new(endpoint: Endpoint, settings: ConnectSettings, handshake: H) -> Self {
        let addrs = Arc::from([endpoint.addr]);
        Self::racing(endpoint, addrs, settings, handshake)
    }

    /// The same for a replica with several addresses, of which each connection takes the first that answers
    /// (Happy Eyeballs).
    pub fn racing(
        endpoint: Endpoint,
        addrs: Arc<[SocketAddr]>,
        settings: ConnectSettings,
        handshake: H,
    ) -> Self {
        Self { pool: Pool::new(endpoint, addrs, settings, handshake, Rng::thread()) }
    }

    /// The replica.
    pub fn endpoint(&self) -> &Endpoint {
        &self.pool.endpoint
    }

    /// What happened on its connections.
    pub fn stats(&self) -> &Arc<ConnectStats> {
        &self.pool.stats
    }
}

impl<B: Sendable, H: Handshake> Connection<B, H> {
    /// Holds to what `settings` say of maxima, of idle times and ages, and of the time for opening, from now on; all else
    /// stays as it was given. Connections that are open keep their age and the most requests that they serve.
    pub fn limit(&self, settings: &ConnectSettings) {
        let open = self.pool.limit(PoolLimits::of(settings));
        match Handle::try_current() {
            Ok(runtime) => open::start(&self.pool, open, &runtime),
            // The next request orders them again.
            Err(_) => self.pool.abandon(&open),
        }
    }

    /// What it was given.
    pub fn settings(&self) -> &ConnectSettings {
        &self.pool.settings
    }
}

impl<B, H: Handshake> Clone for Connection<B, H> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone() }
    }
}

impl<B, H: Handshake> fmt::Debug for Connection<B, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("endpoint", &self.pool.endpoint.addr)
            .field("stats", &self.pool.stats.snapshot())
            .finish()
    }
}

impl<B: Sendable, H: Handshake> tower_service::Service<Request<B>> for Connection<B, H> {
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        // The one box of an attempt: hyper's futures have no name.
        ResponseFuture { inner: Box::pin(send(self.pool.clone(), request)) }
    }
}

/// The future of [`Connection`]'s responses.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture {
    inner: Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Error>> + Send>>,
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

/// The most sendings after the first, whatever the settings say (reliability.md F-3, F-12).
const RESENDS_MAX: u8 = 3;

/// One request to its response's head. What the future keeps while it waits is written out, because it is the
/// size of the box: the request lies in it until it is sent, and then only what a second sending needs.
fn send<B: Sendable, H: Handshake>(
    pool: Arc<Pool<B, H>>,
    request: Request<B>,
) -> impl Future<Output = Result<Response<ResponseBody>, Error>> + Send {
    let want = want(&pool, &request);
    let mut request = request.map(SendBody::Whole);
    let mut resends = pool.settings.resends_max.min(RESENDS_MAX);
    async move {
        loop {
            let lease = Checkout { pool: &pool, want, ticket: None }.await?;
            let addr = pool.endpoint.addr;
            let (mut copy, mut spare) = (None, Spare::Empty);
            let sent = match lease.conn() {
                Some(Conn::Http1(conn)) => {
                    prepare::http1(&mut request, addr);
                    conn.send(request).ok_or(Error::Closed)?.await
                }
                Some(Conn::Http2(conn)) => {
                    prepare::http2(&mut request, addr, conn.life.secure);
                    if resends > 0 {
                        // hyper gives nothing back of a refused stream, so what is needed is kept beside.
                        copy = Some(Copy::of(&request, prepare::read_by_hyper(&request)));
                        spare = request.body_mut().keep();
                    }
                    conn.send(request).await
                }
                None => return Err(Error::Closed),
            };
            match sent {
                Ok(response) => return Ok(answered(&pool, lease, &spare, response)),
                Err(failed) => request = unanswered(&pool, &lease, copy, &spare, failed, &mut resends)?,
            }
        }
    }
}

fn want<B, H: Handshake>(pool: &Pool<B, H>, request: &Request<B>) -> Want {
    let upgrade = prepare::is_upgrade(request);
    let http2 = pool.endpoint.http2 || pool.settings.http2 || request.version() == Version::HTTP_2;
    let protocol = if http2 && !upgrade { Protocol::Http2 } else { Protocol::Http1 };
    Want { protocol, strict: upgrade }
}

fn answered<B: Sendable, H: Handshake>(
    pool: &Pool<B, H>,
    lease: Lease<B, H>,
    spare: &Spare<B>,
    response: Response<Incoming>,
) -> Response<ResponseBody> {
    if let Some(life) = lease.life() {
        life.note_answer(pool);
    }
    spare.forget();
    // An upgraded connection belongs to the caller: dropping the lease lets it go.
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let leased = if upgraded { None } else { lease.into_leased() };
    response.map(|body| ResponseBody::new(body, leased))
}

/// The request again, if the peer certainly did not process it and it may be sent once more.
fn unanswered<B: Sendable, H: Handshake>(
    pool: &Pool<B, H>,
    lease: &Lease<B, H>,
    copy: Option<Copy>,
    spare: &Spare<B>,
    mut failed: TrySendError<Request<SendBody<B>>>,
    resends: &mut u8,
) -> Result<Request<SendBody<B>>, Error> {
    let returned = failed.take_message();
    let error = failed.into_error();
    if spare.broke() || error.source().is_some_and(|source| source.is::<Broke>()) {
        return Err(Error::Body(Box::new(error)));
    }
    let ended = Ended::of(&error);
    if ended.is_of_connection()
        && let Some(life) = lease.life()
    {
        life.note_failure(pool, &error);
        pool.gone(life.id);
    }
    let unsent = returned.is_some() || ended.is_unsent();
    let again = returned.or_else(|| {
        let copy = copy.filter(|_| ended.may_resend())?;
        copy.restore(spare.take_back()?)
    });
    if let Some(again) = again
        && *resends > 0
    {
        tracing::debug!(endpoint = %pool.endpoint.addr, %error, "request sent again");
        *resends -= 1;
        pool.stats.resent();
        return Ok(again);
    }
    Err(Error::Transport { endpoint: Some(pool.endpoint.addr), unsent, source: Box::new(error) })
}

/// A wait for a connection, which gives up its place when dropped.
struct Checkout<'a, B: Sendable, H: Handshake> {
    pool: &'a Arc<Pool<B, H>>,
    want: Want,
    ticket: Option<u64>,
}

impl<B: Sendable, H: Handshake> Future for Checkout<'_, B, H> {
    type Output = Result<Lease<B, H>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(ticket) = self.ticket {
            let Some(claimed) = self.pool.claim(ticket, cx.waker()) else { return Poll::Pending };
            self.ticket = None;
            return Poll::Ready(claimed);
        }
        match self.pool.take(self.want, cx.waker()) {
            Taken::Lease(lease) => Poll::Ready(Ok(lease)),
            Taken::Refused(error) => Poll::Ready(Err(error)),
            Taken::Wait { ticket, open } => {
                self.ticket = Some(ticket);
                match Handle::try_current() {
                    Ok(runtime) => open::start(self.pool, open, &runtime),
                    Err(outside) => {
                        let endpoint = self.pool.endpoint.addr;
                        self.pool.abandon(&open);
                        return Poll::Ready(Err(Error::Connect { endpoint, source: Box::new(outside) }));
                    }
                }
                Poll::Pending
            }
        }
    }
}

impl<B: Sendable, H: Handshake> Drop for Checkout<'_, B, H> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.pool.leave(ticket);
        }
    }
}

/// The body of a response. At its end, or when it is dropped, the connection or stream is free again.
pub struct ResponseBody {
    inner: Option<Incoming>,
    leased: Option<Arc<dyn Leased>>,
}

impl ResponseBody {
    fn new(inner: Incoming, leased: Option<Arc<dyn Leased>>) -> Self {
        let mut body = Self { inner: Some(inner), leased };
        body.give_back_at_end();
        body
    }

    fn give_back_at_end(&mut self) {
        if self.inner.as_ref().is_none_or(Incoming::is_end_stream)
            && let Some(leased) = self.leased.take()
        {
            leased.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let polled = ready!(Pin::new(inner).poll_frame(cx));
        if !matches!(polled, Some(Ok(_))) {
            self.inner = None;
        }
        self.give_back_at_end();
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // The body first: hyper then drains or closes what was not read, and only then may it be given back.
        drop(self.inner.take());
        self.give_back_at_end();
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("inner", &self.inner).finish()
    }
}
