//! Floor 5: opens connections and drives them, in tasks of their own, so that no request's end harms them.

use crate::connect::body::SendBody;
use crate::connect::body::Sendable;
use crate::connect::conn::Free;
use crate::connect::conn::Http1;
use crate::connect::conn::Http2;
use crate::connect::conn::Life;
use crate::connect::handshake::Handshake;
use crate::connect::handshake::Offer;
use crate::connect::handshake::Protocol;
use crate::connect::handshake::Retired;
use crate::connect::line::Opening;
use crate::connect::line::Place;
use crate::connect::line::Want;
use crate::connect::pool::Pool;
use crate::connect::socket::Cut;
use crate::connect::socket::Socket;
use crate::connect::stats::OpenFailure;
use crate::connect::streams::Running;
use crate::connect::streams::Streams;
use crate::connect::tcp;
use crate::error::BoxError;
use crate::error::Error;
use crate::error::Scope;
use crate::stdx::clock;
use crate::stdx::traffic::Flow;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use std::future::Future;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;

/// A connection that was opened, ready for its first request.
pub(crate) enum Opened<B, H: Handshake> {
    Http1(Free<B, H>),
    Http2(Arc<Http2<B, H>>),
}

/// Why a replica has no connection; shared by all who waited for it.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    kind: OpenFailure,
    after: Duration,
    cause: Arc<str>,
    source: Option<Arc<io::Error>>,
}

impl Failure {
    fn new(kind: OpenFailure, cause: impl Into<Arc<str>>) -> Self {
        Self { kind, after: Duration::ZERO, cause: cause.into(), source: None }
    }

    /// Whether it says nothing of what the peer speaks.
    pub(crate) fn is_of_tcp(&self) -> bool {
        matches!(self.kind, OpenFailure::Tcp | OpenFailure::Timeout)
    }

    pub(crate) fn unanswered(error: &hyper::Error) -> Self {
        Self::new(OpenFailure::Tcp, format!("connection closed without a response: {}", describe(error)))
    }

    /// The failure of a request that came while the replica is left alone.
    pub(crate) fn left_alone(last: Option<Self>, failures: u32, left: Duration) -> Self {
        let last = last.unwrap_or_else(|| Self::new(OpenFailure::Tcp, "no connection"));
        let cause =
            format!("left alone for {left:?} after {failures} failures, the last one: {}", last.cause);
        let kind = if last.kind == OpenFailure::Handshake { last.kind } else { OpenFailure::Tcp };
        Self { cause: cause.into(), kind, ..last }
    }

    pub(crate) fn into_error(self, endpoint: SocketAddr) -> Error {
        let source: BoxError = match self.source {
            Some(source) => Box::new(io::Error::new(source.kind(), self.cause.as_ref())),
            None => self.cause.as_ref().into(),
        };
        match self.kind {
            OpenFailure::Timeout => Error::Timeout { scope: Scope::Connect, after: self.after },
            OpenFailure::Handshake => Error::Tls { endpoint, source },
            OpenFailure::Tcp | OpenFailure::Protocol => Error::Connect { endpoint, source },
        }
    }
}

/// Starts what the pool ordered.
pub(crate) fn start<B: Sendable, H: Handshake>(
    pool: &Arc<Pool<B, H>>,
    orders: Vec<Opening>,
    runtime: &Handle,
) {
    for order in orders {
        runtime.spawn(open(pool.clone(), order, runtime.clone()));
    }
}

/// Tells the pool when an opener is dropped with its runtime, so that nobody waits for it.
struct Opener<B, H: Handshake>(Option<(Arc<Pool<B, H>>, Want)>);

impl<B, H: Handshake> Drop for Opener<B, H> {
    fn drop(&mut self) {
        if let Some((pool, want)) = self.0.take() {
            pool.opener_lost(want, Failure::new(OpenFailure::Tcp, "the runtime was shut down"));
        }
    }
}

async fn open<B: Sendable, H: Handshake>(pool: Arc<Pool<B, H>>, order: Opening, runtime: Handle) {
    let Opening { want, mut after } = order;
    let mut opener = Opener(Some((pool.clone(), want)));
    loop {
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        if !pool.still_wanted(want) {
            opener.0 = None;
            return;
        }
        let place = Arc::new(Place::default());
        let timeout = pool.limits().timeout;
        let established = tokio::time::timeout(timeout, establish(&pool, want, &place, &runtime)).await;
        let failure = match established {
            Ok(Ok(opened)) => {
                opener.0 = None;
                let orders = pool.opened(want, opened, &place);
                return start(&pool, orders, &runtime);
            }
            Ok(Err(failure)) => failure,
            Err(_) => {
                Failure { after: timeout, ..Failure::new(OpenFailure::Timeout, "took too long to open") }
            }
        };
        pool.stats.failed(failure.kind);
        tracing::debug!(endpoint = %pool.endpoint.addr, cause = %failure.cause, "connection not opened");
        match pool.open_failed(want, failure) {
            Some(wait) => after = wait,
            None => {
                opener.0 = None;
                return;
            }
        }
    }
}

async fn establish<B: Sendable, H: Handshake>(
    pool: &Arc<Pool<B, H>>,
    want: Want,
    place: &Arc<Place>,
    runtime: &Handle,
) -> Result<Opened<B, H>, Failure> {
    let stream = tcp::connect(&pool.addrs, &pool.settings.tcp).await.map_err(|error| {
        let cause = error.to_string();
        Failure { source: Some(Arc::new(error)), ..Failure::new(OpenFailure::Tcp, cause) }
    })?;
    let offer = match want {
        Want { protocol: Protocol::Http2, .. } => Offer::Http2,
        Want { strict: true, .. } => Offer::Http1,
        Want { .. } => Offer::Either,
    };
    let ready = pool.handshake.handshake(stream, &pool.endpoint, offer).await;
    let ready = ready.map_err(|error| Failure::new(OpenFailure::Handshake, describe(error.as_ref())))?;
    let protocol = ready.protocol.unwrap_or(want.protocol);
    if protocol != want.protocol && (want.protocol == Protocol::Http2 || want.strict) {
        return Err(Failure::new(
            OpenFailure::Protocol,
            format!("peer chose {protocol:?}, which was not offered"),
        ));
    }
    let on_close = {
        let (pool, place, runtime) = (pool.me.clone(), place.clone(), runtime.clone());
        let stats = pool_stats(&pool);
        move || match Weak::upgrade(&pool) {
            Some(pool) => {
                let orders = pool.closed(&place);
                start(&pool, orders, &runtime);
            }
            None => stats.iter().for_each(|stats| stats.closed()),
        }
    };
    pool.stats.opened();
    let retiring = Retiring {
        retired: ready.retired.into_iter().collect(),
        drain: pool.settings.drain,
        cut: Arc::default(),
        runtime: runtime.clone(),
    };
    let flow = Flow::begin(pool.stats.traffic());
    let socket = Socket::new(ready.io, flow, retiring.cut.clone(), on_close);
    let life = life(pool, ready.secure);
    match protocol {
        Protocol::Http1 => open_http1(life, socket, pool, retiring).await,
        Protocol::Http2 => open_http2(life, socket, pool, retiring).await,
    }
}

/// What ends a connection that must not be used any longer.
struct Retiring {
    /// Empty when there is nothing to wait for. A set, so that it is polled only when it was woken and not each time
    /// that the connection has something to do.
    retired: FuturesUnordered<Retired>,
    drain: Duration,
    cut: Arc<Cut>,
    runtime: Handle,
}

impl Retiring {
    /// Takes the connection out of use when it is time, and cuts it off when its requests had theirs.
    fn poll<B, H: Handshake>(&mut self, cx: &mut Context<'_>, life: &Life<B, H>) {
        if self.retired.is_empty() || !matches!(self.retired.poll_next_unpin(cx), Poll::Ready(Some(()))) {
            return;
        }
        life.retired.store(true, Ordering::Relaxed);
        if let Some(pool) = life.pool.upgrade() {
            pool.gone(life.id);
        }
        let (cut, drain) = (self.cut.clone(), self.drain);
        self.runtime.spawn(async move {
            tokio::time::sleep(drain).await;
            cut.cut();
        });
    }
}

fn pool_stats<B, H: Handshake>(pool: &Weak<Pool<B, H>>) -> Option<Arc<crate::connect::stats::ConnectStats>> {
    pool.upgrade().map(|pool| pool.stats.clone())
}

/// The error and its causes in one line.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn life<B, H: Handshake>(pool: &Arc<Pool<B, H>>, secure: bool) -> Life<B, H> {
    // Up to a tenth less, so that connections opened together do not close together.
    let limits = pool.limits();
    let age = limits.age_max.map(|age| age.mul_f64(1.0 - 0.1 * pool.rng.unit()));
    Life {
        id: pool.next_id.fetch_add(1, Ordering::Relaxed),
        pool: pool.me.clone(),
        stats: pool.stats.clone(),
        secure,
        retire_at: age.map(|age| clock::now() + age),
        requests_max: limits.requests_max,
        served: Default::default(),
        answered: Default::default(),
        retired: Default::default(),
    }
}

async fn open_http1<B: Sendable, H: Handshake, F: FnOnce() + Send + Unpin + 'static>(
    life: Life<B, H>,
    socket: Socket<H::Io, F>,
    pool: &Arc<Pool<B, H>>,
    retiring: Retiring,
) -> Result<Opened<B, H>, Failure> {
    let (sender, conn) = hyper::client::conn::http1::Builder::new()
        .handshake::<_, SendBody<B>>(TokioIo::new(socket))
        .await
        .map_err(|error| Failure::new(OpenFailure::Protocol, describe(&error)))?;
    let http1 = Arc::new(Http1::new(life, sender));
    let runtime = retiring.runtime.clone();
    runtime.spawn(drive_http1(conn.with_upgrades(), http1.clone(), pool.limits().http1_idle, retiring));
    Ok(Opened::Http1(Free::new(http1)))
}

async fn drive_http1<B: Sendable, H: Handshake>(
    conn: impl Future<Output = hyper::Result<()>>,
    http1: Arc<Http1<B, H>>,
    idle: Duration,
    mut retiring: Retiring,
) {
    let mut conn = pin!(conn);
    let mut timer = pin!(tokio::time::sleep(idle));
    let ended = poll_fn(|cx| {
        http1.driver.register(cx.waker());
        if let Poll::Ready(ended) = conn.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        retiring.poll(cx, &http1.life);
        http1.settle();
        while timer.as_mut().poll(cx).is_ready() {
            let now = clock::now();
            let next = http1.life.pool.upgrade().map(|pool| pool.expire_http1(http1.life.id, now));
            timer.as_mut().reset(next.unwrap_or(now + idle).into());
        }
        Poll::Pending
    })
    .await;
    finish(&http1.life, ended);
}

async fn open_http2<B: Sendable, H: Handshake, F: FnOnce() + Send + Unpin + 'static>(
    life: Life<B, H>,
    mut socket: Socket<H::Io, F>,
    pool: &Arc<Pool<B, H>>,
    retiring: Retiring,
) -> Result<Opened<B, H>, Failure> {
    let settings = &pool.settings;
    let meshed = pool.endpoint.identity.is_some();
    let told = socket.tell_streams();
    let tasks = Streams::new(retiring.runtime.clone());
    let mut builder = hyper::client::conn::http2::Builder::new(tasks.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(settings.http2_stream_window)
        .initial_connection_window_size(settings.http2_connection_window)
        .keep_alive_interval(settings.ping_interval(meshed))
        .keep_alive_while_idle(meshed)
        .keep_alive_timeout(settings.http2_ping_timeout);
    let (sender, conn) = builder
        .handshake::<_, SendBody<B>>(TokioIo::new(socket))
        .await
        .map_err(|error| Failure::new(OpenFailure::Protocol, describe(&error)))?;
    // The peer's settings must come first (RFC 9113 §3.4). A peer that does not speak HTTP/2, or that only
    // accepts and closes, is found out here, before a request is given to it.
    let streams = told.await;
    let streams = streams.map_err(|_| Failure::new(OpenFailure::Protocol, "peer sent no HTTP/2 settings"))?;
    if streams == 0 {
        return Err(Failure::new(OpenFailure::Protocol, "peer allows no stream"));
    }
    let http2 = Arc::new(Http2::new(life, sender, streams));
    let runtime = retiring.runtime.clone();
    runtime.spawn(drive_http2(
        conn,
        tasks.drive(),
        Arc::downgrade(&http2),
        pool.limits().http2_idle,
        retiring,
    ));
    Ok(Opened::Http2(http2))
}

async fn drive_http2<B: Sendable, H: Handshake, Io>(
    conn: hyper::client::conn::http2::Connection<Io, SendBody<B>, Streams>,
    mut running: Running,
    http2: Weak<Http2<B, H>>,
    idle: Duration,
    mut retiring: Retiring,
) where
    Io: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let first = http2.upgrade().and_then(|http2| http2.life.retire_at);
    let first = first.map_or(clock::now() + idle, |at| at.min(clock::now() + idle));
    let mut timer = pin!(tokio::time::sleep_until(first.into()));
    // Boxed, so that it can be dropped before the streams end.
    let mut conn = Box::pin(conn);
    let ended = poll_fn(|cx| {
        let ended = conn.as_mut().poll(cx);
        let _under_way = running.poll(cx);
        if ended.is_ready() {
            return ended;
        }
        let Some(http2) = http2.upgrade() else { return Poll::Pending };
        let streams = u32::try_from(conn.current_max_send_streams()).unwrap_or(u32::MAX);
        http2.streams_max.store(streams, Ordering::Relaxed);
        retiring.poll(cx, &http2.life);
        while timer.as_mut().poll(cx).is_ready() {
            let now = clock::now();
            let next = http2.life.pool.upgrade().map(|pool| pool.expire_http2(&http2, now));
            timer.as_mut().reset(next.unwrap_or(now + idle).into());
        }
        Poll::Pending
    })
    .await;
    drop(conn);
    if let Some(http2) = http2.upgrade() {
        finish(&http2.life, ended);
    }
    // A peer that takes no new streams answers those it took.
    poll_fn(|cx| running.poll(cx)).await;
}

fn finish<B, H: Handshake>(life: &Life<B, H>, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
    if let Some(pool) = life.pool.upgrade() {
        pool.gone(life.id);
    }
}
