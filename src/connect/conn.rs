//! Floor 5: one open connection, and the lease of it that a request holds.

use crate::connect::body::SendBody;
use crate::connect::handshake::Handshake;
use crate::connect::open::Failure;
use crate::connect::pool::Pool;
use crate::connect::stats::ConnectStats;
use crate::stdx::clock;
use futures::task::AtomicWaker;
use http::Request;
use http::Response;
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

type Sender1<B> = hyper::client::conn::http1::SendRequest<SendBody<B>>;
/// What hyper makes of a request; the error may give it back.
type Sent<B> = Result<Response<Incoming>, TrySendError<Request<SendBody<B>>>>;

type Sender2<B> = hyper::client::conn::http2::SendRequest<SendBody<B>>;

/// What both kinds of connections know of themselves.
pub(crate) struct Life<B, H: Handshake> {
    pub(crate) id: u64,
    pub(crate) pool: Weak<Pool<B, H>>,
    pub(crate) stats: Arc<ConnectStats>,
    pub(crate) secure: bool,
    pub(crate) retire_at: Option<Instant>,
    pub(crate) requests_max: Option<u64>,
    pub(crate) served: AtomicU64,
    pub(crate) answered: AtomicBool,
    pub(crate) retired: AtomicBool,
}

impl<B, H: Handshake> Life<B, H> {
    /// Notes that the peer gave a response.
    pub(crate) fn note_answer(&self, pool: &Pool<B, H>) {
        if !self.answered.load(Ordering::Relaxed) && !self.answered.swap(true, Ordering::Relaxed) {
            pool.answered();
        }
    }

    /// Notes that a request failed. On a connection that never gave a response, that is as bad as one that could
    /// not be opened.
    pub(crate) fn note_failure(&self, pool: &Pool<B, H>, error: &hyper::Error) {
        if !self.answered.load(Ordering::Relaxed) && !error.is_user() {
            pool.failed_unanswered(Failure::unanswered(error));
        }
    }

    /// Counts a request, if it matters how many there were.
    fn serve(&self) {
        if self.requests_max.is_some() {
            self.served.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_spent(&self, now: Instant) -> bool {
        self.is_worn() || self.retire_at.is_some_and(|at| at <= now)
    }

    /// Whether it takes no more requests, as far as that is known without the time.
    pub(crate) fn is_worn(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
            || self.requests_max.is_some_and(|max| self.served.load(Ordering::Relaxed) >= max)
    }
}

/// What a response's body gives back at its end.
pub(crate) trait Leased: Send + Sync {
    /// Gives the connection or stream back. hyper closes what cannot be used again.
    fn give_back(self: Arc<Self>);
}

/// An HTTP/1.1 connection.
pub(crate) struct Http1<B, H: Handshake> {
    pub(crate) life: Life<B, H>,
    /// Taken out to close the connection.
    sender: Mutex<Option<Sender1<B>>>,
    /// Given back while hyper was still busy with the last exchange.
    returning: AtomicBool,
    /// Wakes the task that drives the connection.
    pub(crate) driver: AtomicWaker,
}

/// An unused HTTP/1.1 connection: dropping it closes it.
pub(crate) struct Free<B, H: Handshake>(Option<Arc<Http1<B, H>>>);

impl<B, H: Handshake> Http1<B, H> {
    pub(crate) fn new(life: Life<B, H>, sender: Sender1<B>) -> Self {
        Self {
            life,
            sender: Mutex::new(Some(sender)),
            returning: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        }
    }

    /// Hands a request to hyper; `None` if the connection was closed by us.
    pub(crate) fn send(
        &self,
        request: Request<SendBody<B>>,
    ) -> Option<impl Future<Output = Sent<B>> + use<B, H>>
    where
        B: Body + 'static,
        SendBody<B>: Body + 'static,
    {
        self.life.serve();
        self.with_sender(|sender| sender.try_send_request(request))
    }

    fn with_sender<T>(&self, f: impl FnOnce(&mut Sender1<B>) -> T) -> Option<T> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(f)
    }

    fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn is_ready(&self) -> bool {
        self.with_sender(|sender| sender.is_ready()).unwrap_or(false)
    }

    /// Puts a connection that was given back busy among the unused ones as soon as it is ready.
    pub(crate) fn settle(self: &Arc<Self>) {
        if self.returning.load(Ordering::Acquire) && self.is_ready() {
            self.returning.store(false, Ordering::Relaxed);
            self.rest();
        }
    }

    fn rest(self: &Arc<Self>) {
        let free = Free(Some(self.clone()));
        let now = clock::now();
        if let Some(pool) = self.life.pool.upgrade()
            && !self.life.is_spent(now)
        {
            pool.rest(free, now);
        }
    }
}

impl<B: Send + 'static, H: Handshake> Leased for Http1<B, H> {
    fn give_back(self: Arc<Self>) {
        self.life.stats.returned();
        if self.is_ready() {
            self.rest();
        } else {
            self.returning.store(true, Ordering::Release);
            self.driver.wake();
        }
    }
}

impl<B, H: Handshake> Free<B, H> {
    pub(crate) fn new(conn: Arc<Http1<B, H>>) -> Self {
        Self(Some(conn))
    }

    pub(crate) fn id(&self) -> Option<u64> {
        self.0.as_ref().map(|conn| conn.life.id)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.0.as_ref().is_some_and(|conn| conn.is_ready())
    }

    pub(crate) fn is_spent(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|conn| conn.life.is_spent(now))
    }

    pub(crate) fn lease(mut self) -> Option<Lease<B, H>> {
        self.0.take().map(Lease::http1)
    }
}

impl<B, H: Handshake> Drop for Free<B, H> {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            conn.close();
        }
    }
}

/// An HTTP/2 connection. The pool and the leases own it; when none is left it closes.
pub(crate) struct Http2<B, H: Handshake> {
    pub(crate) life: Life<B, H>,
    sender: Sender2<B>,
    /// A sender for whoever comes while no other thread uses it: locking it is cheaper than cloning one.
    shared: Mutex<Sender2<B>>,
    /// The streams the peer allows.
    pub(crate) streams_max: AtomicU32,
    /// The streams in use; changed under the pool's lock.
    pub(crate) streams: AtomicU32,
    born: Instant,
    /// When the last stream ended, in milliseconds after `born`.
    idle_since: AtomicU64,
}

impl<B, H: Handshake> Http2<B, H> {
    pub(crate) fn new(life: Life<B, H>, sender: Sender2<B>, streams_max: u32) -> Self {
        Self {
            life,
            shared: Mutex::new(sender.clone()),
            sender,
            streams_max: AtomicU32::new(streams_max),
            streams: AtomicU32::new(0),
            born: clock::now(),
            idle_since: AtomicU64::new(0),
        }
    }

    /// Hands a request to hyper.
    pub(crate) fn send(&self, request: Request<SendBody<B>>) -> impl Future<Output = Sent<B>> + use<B, H>
    where
        B: Body + 'static,
        SendBody<B>: Body + 'static,
    {
        self.life.serve();
        match self.shared.try_lock() {
            Ok(mut sender) => sender.try_send_request(request),
            Err(_) => self.sender.clone().try_send_request(request),
        }
    }

    /// Whether it takes one more stream, of `streams_max` at most whatever the peer allows.
    pub(crate) fn has_room(&self, streams_max: u32) -> bool {
        self.streams.load(Ordering::Relaxed) < self.streams_max.load(Ordering::Relaxed).min(streams_max)
            && !self.sender.is_closed()
            && self.life.requests_max.is_none_or(|max| self.life.served.load(Ordering::Relaxed) < max)
    }

    /// Notes that its last stream ended now. Whether it takes no more requests.
    pub(crate) fn rest(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.born).as_millis();
        self.idle_since.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.life.is_spent(now)
    }

    pub(crate) fn idle_since(&self) -> Instant {
        self.born + Duration::from_millis(self.idle_since.load(Ordering::Relaxed))
    }

    fn end(self: &Arc<Self>) {
        match self.life.pool.upgrade() {
            Some(pool) => pool.ended(self),
            None => drop(self.streams.fetch_sub(1, Ordering::Relaxed)),
        }
    }
}

impl<B: Send + 'static, H: Handshake> Leased for Http2<B, H> {
    fn give_back(self: Arc<Self>) {
        self.life.stats.returned();
        self.end();
    }
}

/// The use of a connection or stream by one request. Dropped early it closes the connection (HTTP/1.1) or ends
/// the stream (HTTP/2).
pub(crate) struct Lease<B, H: Handshake>(Option<Conn<B, H>>);

/// A connection of either kind.
pub(crate) enum Conn<B, H: Handshake> {
    Http1(Arc<Http1<B, H>>),
    Http2(Arc<Http2<B, H>>),
}

impl<B, H: Handshake> Lease<B, H> {
    fn http1(conn: Arc<Http1<B, H>>) -> Self {
        conn.life.stats.taken();
        Self(Some(Conn::Http1(conn)))
    }

    /// The stream must have been counted already.
    pub(crate) fn http2(conn: Arc<Http2<B, H>>) -> Self {
        conn.life.stats.taken();
        Self(Some(Conn::Http2(conn)))
    }

    pub(crate) fn conn(&self) -> Option<&Conn<B, H>> {
        self.0.as_ref()
    }

    pub(crate) fn life(&self) -> Option<&Life<B, H>> {
        self.0.as_ref().map(|conn| match conn {
            Conn::Http1(conn) => &conn.life,
            Conn::Http2(conn) => &conn.life,
        })
    }

    /// Hands the lease to a response's body.
    pub(crate) fn into_leased(mut self) -> Option<Arc<dyn Leased>>
    where
        B: Send + 'static,
    {
        self.0.take().map(|conn| match conn {
            Conn::Http1(conn) => conn as Arc<dyn Leased>,
            Conn::Http2(conn) => conn as Arc<dyn Leased>,
        })
    }

    /// Gives back a lease that was never used.
    pub(crate) fn unused(mut self) {
        match self.0.take() {
            Some(Conn::Http1(conn)) => {
                conn.life.stats.returned();
                conn.rest();
            }
            other => self.0 = other,
        }
    }
}

impl<B, H: Handshake> Drop for Lease<B, H> {
    fn drop(&mut self) {
        match self.0.take() {
            Some(Conn::Http1(conn)) => {
                conn.life.stats.returned();
                conn.close();
            }
            Some(Conn::Http2(conn)) => {
                conn.life.stats.returned();
                conn.end();
            }
            None => {}
        }
    }
}
