//! Floor 5: one connection of a server, from its handshake to its end.

use crate::serve::handshake::Accept;
use crate::serve::handshake::Accepted;
use crate::serve::handshake::Retired;
use crate::serve::http::App;
use crate::serve::http::PerConnection;
use crate::serve::http::Remote;
use crate::serve::http::Shared;
use crate::serve::peers::Held;
use crate::serve::peers::host_of;
use crate::serve::settings::ServeSettings;
use crate::serve::stats::Detected;
use crate::serve::stats::Event;
use crate::serve::wire;
use crate::serve::wire::Activity;
use crate::serve::wire::Wire;
use crate::stdx::clock;
use crate::stdx::rng::Rng;
use crate::stdx::traffic::Flow;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use std::future::Future;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio::time::timeout;

/// Counts a connection as closed, however its task ends.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.stats.count(Event::Closed);
    }
}

pub(crate) async fn run<S: App, A: Accept>(
    stream: TcpStream,
    remote: SocketAddr,
    app: S,
    accept: A,
    shared: Arc<Shared>,
    mut drain: watch::Receiver<bool>,
) {
    shared.stats.count(Event::Accepted);
    let open = Open(shared.clone());
    let local = stream.local_addr().ok();
    let activity = Arc::new(Activity::new(clock::now()));
    let ready = tokio::select! {
        biased;
        ready = prepare(stream, remote, &accept, &shared) => ready,
        // Nothing was asked yet, so nothing is owed.
        _ = drain.changed() => None,
    };
    let Some((accepted, http2, first)) = ready else { return };
    let named = accepted
        .name
        .clone()
        .map(|name| shared.place(Held::Named(name), shared.settings.connections_per_peer_max));
    if matches!(named, Some(None)) {
        return;
    }
    // Held to the end, so that what the peer's connections count is told.
    let traffic = shared.stats.traffic(accepted.name.as_ref());
    let flow = Flow::begin(&traffic.traffic);
    let wire = TokioIo::new(Wire::new(accepted.io, flow, (first, http2), activity.clone()));
    let identity = accepted.identity;
    let remote = Remote { addr: remote, local };
    let service = PerConnection { app, shared: shared.clone(), activity: activity.clone(), remote, identity };
    let settings = &shared.settings;
    if http2 {
        let conn = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.http2_streams_max)
            .max_pending_accept_reset_streams(settings.http2_pending_resets_max)
            .max_local_error_reset_streams(settings.http2_fault_resets_max)
            .max_header_list_size(settings.header_bytes_max)
            .keep_alive_interval(settings.http2_ping)
            .keep_alive_timeout(settings.http2_ping_timeout)
            .serve_connection(wire, service);
        drive(conn, |conn| conn.graceful_shutdown(), accepted.retired, &shared, &activity, drain).await;
    } else {
        let header_bytes_max = settings.header_bytes_max as usize;
        let conn = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // hyper's limit holds between requests too; ours are apart, and this one is behind them.
            .header_read_timeout(settings.header_timeout.max(settings.idle))
            .max_headers(settings.headers_max)
            .max_header_size(header_bytes_max)
            .max_buf_size(header_bytes_max.max(64 * 1024))
            .serve_connection(wire, service)
            .with_upgrades();
        drive(conn, |conn| conn.graceful_shutdown(), accepted.retired, &shared, &activity, drain).await;
    }
    drop((open, named, traffic));
}

/// The handshake and the first bytes; `None` when there is nothing to serve.
async fn prepare<A: Accept>(
    stream: TcpStream,
    remote: SocketAddr,
    accept: &A,
    shared: &Shared,
) -> Option<(Accepted<A::Io, A::Identity>, bool, Vec<u8>)> {
    let host = Held::Handshake(host_of(remote.ip()));
    let place = shared.place(host, shared.settings.handshakes_max.div_ceil(4))?;
    let handshake = async {
        // The semaphore is never closed.
        let _turn = shared.handshakes.acquire().await;
        accept.accept(stream, remote).await
    };
    let outcome = timeout(shared.settings.handshake_timeout, handshake).await;
    drop(place);
    let mut accepted = match outcome {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            shared.stats.handshake_failed(Some(error.as_ref()));
            tracing::debug!(%remote, %error, "handshake failed");
            return None;
        }
        Err(late) => {
            shared.stats.handshake_failed(None);
            tracing::debug!(%remote, error = %late, "handshake failed");
            return None;
        }
    };
    if let Some(http2) = accepted.http2 {
        return Some((accepted, http2, Vec::new()));
    }
    let begun = clock::now();
    let found = timeout(shared.settings.header_timeout, wire::detect(&mut accepted.io)).await;
    let how = match &found {
        Ok(Ok(Some((true, _)))) => Detected::Http2,
        Ok(Ok(Some((false, _)))) => Detected::Http1,
        Ok(Ok(None)) => Detected::NotHttp,
        Ok(Err(_)) => Detected::Error,
        Err(_) => Detected::Timeout,
    };
    shared.stats.detected(how, clock::now().saturating_duration_since(begun));
    match found {
        Ok(Ok(Some((http2, first)))) => Some((accepted, http2, first)),
        Ok(Ok(None) | Err(_)) => None,
        Err(_) => {
            shared.stats.count(Event::TimedOut);
            None
        }
    }
}

/// Drives a connection to its end; `close` lets it finish what it has and take nothing new.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    conn: C,
    close: impl Fn(Pin<&mut C>),
    retired: Option<Retired>,
    shared: &Shared,
    activity: &Activity,
    mut drain: watch::Receiver<bool>,
) {
    let settings = &shared.settings;
    let mut conn = pin!(conn);
    let mut look = pin!(sleep(pause(settings)));
    let mut aged = pin!(sleep(lifetime(settings.age_max)));
    let mut retired = retired.unwrap_or_else(|| Box::pin(pending()));
    let mut cut = pin!(sleep(settings.drain));
    let (mut closing, mut cutting) = (false, false);
    let mut before = Before::default();
    loop {
        tokio::select! {
            biased;
            ended = conn.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            _ = drain.changed(), if !closing => {
                closing = true;
                close(conn.as_mut());
            }
            () = aged.as_mut(), if !closing => {
                closing = true;
                close(conn.as_mut());
            }
            () = retired.as_mut(), if !cutting => {
                (closing, cutting) = (true, true);
                cut.as_mut().reset((clock::now() + settings.drain).into());
                close(conn.as_mut());
            }
            () = cut.as_mut(), if cutting => {
                shared.stats.count(Event::Aborted);
                return;
            }
            () = look.as_mut() => match next_look(shared, activity, &mut before, clock::now()) {
                Look::At(then) => look.as_mut().reset(then.into()),
                Look::Cut(why) => {
                    shared.stats.count(why);
                    return;
                }
                // A peer that does not close in answer to GOAWAY is cut off at the next look.
                Look::Idle if closing => return,
                Look::Idle => {
                    shared.stats.count(Event::TimedOut);
                    closing = true;
                    close(conn.as_mut());
                    look.as_mut().reset((clock::now() + settings.header_timeout).into());
                }
            },
        }
    }
}

/// How long a connection is used: up to a tenth less by chance, so that those opened together do not close
/// together.
fn lifetime(age_max: Option<Duration>) -> Duration {
    age_max.map_or(Duration::MAX, |age| age.mul_f64(1.0 - 0.1 * Rng::thread().unit()))
}

/// How long a connection may go without a look, whatever begins meanwhile: as long as its shortest limit.
fn pause(settings: &ServeSettings) -> Duration {
    let limits = [Some(settings.header_timeout), Some(settings.idle), settings.response_stall];
    limits.into_iter().flatten().fold(Duration::MAX, Duration::min)
}

enum Look {
    At(Instant),
    Idle,
    Cut(Event),
}

/// How a connection stood at the last look.
#[derive(Default)]
struct Before {
    /// How many writes there had been.
    written: u32,
    /// Since when responses have waited for the peer, and how many pieces it had taken then.
    waiting: Option<(u32, Instant)>,
    /// Since when the socket has taken nothing.
    blocked: Option<Instant>,
}

impl Before {
    /// Since when the peer has taken nothing of what waits for it, and whether something was written since the last look.
    fn look(&mut self, activity: &Activity, now: Instant) -> (Option<Instant>, bool) {
        let ((waiting, taken), (written, blocked)) = (activity.flow(), activity.writes());
        let moved = std::mem::replace(&mut self.written, written) != written;
        self.waiting = match self.waiting {
            _ if waiting == 0 => None,
            Some((before, since)) if before == taken => Some((before, since)),
            _ => Some((taken, now)),
        };
        self.blocked = match self.blocked {
            _ if !blocked => None,
            Some(since) if !moved => Some(since),
            _ => Some(now),
        };
        let waiting = self.waiting.map(|(_, since)| since);
        (waiting.into_iter().chain(self.blocked).min(), moved || blocked)
    }
}

fn next_look(shared: &Shared, activity: &Activity, before: &mut Before, now: Instant) -> Look {
    let settings = &shared.settings;
    let (stalled, moves) = before.look(activity, now);
    if let (Some(since), Some(max)) = (stalled, settings.response_stall)
        && since + max <= now
    {
        return Look::Cut(Event::Stalled);
    }
    let head = activity.head_since().map(|since| since + settings.header_timeout);
    if head.is_some_and(|until| until <= now) {
        return Look::Cut(Event::TimedOut);
    }
    // What the app has given may still be on its way.
    let idle = activity.idle_since().filter(|_| !moves).map(|since| since + settings.idle);
    if head.is_none() && idle.is_some_and(|until| until <= now) {
        return Look::Idle;
    }
    // A head may begin at once and a request end at once, so this is the soonest that either can be due.
    let soonest = now + pause(settings);
    Look::At([head, idle.filter(|_| head.is_none())].into_iter().flatten().fold(soonest, Instant::min))
}
