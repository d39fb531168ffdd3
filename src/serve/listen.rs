//! Floor 5: accepts connections until told to stop, then drains.

use crate::serve::connection;
use crate::serve::handshake::Accept;
use crate::serve::handshake::Plain;
use crate::serve::http::App;
use crate::serve::http::Shared;
use crate::serve::peers::Held;
use crate::serve::peers::host_of;
use crate::serve::settings::ServeSettings;
use crate::serve::stats::Event;
use crate::serve::stats::ServeStats;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a server stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Connections that were cut off because their requests took longer than the time to drain.
    pub aborted: usize,
}

/// Serves an app in plain text until `shutdown` is ready, then drains. See [`serve_with`].
pub async fn serve<S: App>(
    listener: TcpListener,
    app: S,
    settings: ServeSettings,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    serve_with(listener, Plain, app, settings, Arc::default(), shutdown).await
}

/// Serves an app until `shutdown` is ready: HTTP/1.1 and HTTP/2 on one port.
///
/// No error of `accept` ends it. After `shutdown` no connection is accepted, idle ones are closed, HTTP/2 peers
/// get a `GOAWAY`, and requests under way may finish until [`ServeSettings::drain`] is over. Dropping the future
/// cuts all connections off.
pub async fn serve_with<S: App, A: Accept>(
    listener: TcpListener,
    accept: A,
    app: S,
    settings: ServeSettings,
    stats: Arc<ServeStats>,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let slots = Arc::new(Semaphore::new(settings.connections_max.min(Semaphore::MAX_PERMITS)));
    let handshakes = Semaphore::new(settings.handshakes_max.clamp(1, Semaphore::MAX_PERMITS));
    let shared = Arc::new(Shared { settings, stats, peers: Arc::default(), handshakes });
    let (drain, draining) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = shutdown.as_mut() => break,
            Some(_) = connections.join_next() => {}
            (stream, remote, slot) = next(&listener, &slots, &shared) => {
                let host = Held::Connection(host_of(remote.ip()));
                let Some(place) = shared.place(host, shared.settings.connections_per_peer_max) else {
                    continue;
                };
                let served = connection::run(
                    stream, remote, app.clone(), accept.clone(), shared.clone(), draining.clone(),
                );
                connections.spawn(async move {
                    served.await;
                    drop((place, slot));
                });
            }
        }
    }
    drop((listener, draining));
    drain.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    let in_time = tokio::time::timeout(shared.settings.drain, all).await.is_ok();
    let aborted = if in_time { 0 } else { connections.len() };
    (0..aborted).for_each(|_| shared.stats.count(Event::Aborted));
    connections.shutdown().await;
    Drained { aborted }
}

/// The longest pause after an error of `accept`.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The next connection, when there is room for it. Errors are waited out: 5 ms after the first, then double.
async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shared: &Shared,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let stats = &shared.stats;
    let mut pause = Duration::from_millis(5);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, remote)) => {
                if let Err(error) = set_up(&stream, shared.settings.keepalive) {
                    // The peer is gone already, which the handshake then sees.
                    tracing::debug!(%remote, %error, "socket not set up");
                }
                return (stream, remote, slot);
            }
            Err(error) if is_of_one_connection(&error) => stats.count(Event::AcceptError),
            Err(error) => {
                stats.count(Event::AcceptError);
                tracing::warn!(%error, ?pause, "could not accept a connection; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

fn set_up(stream: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(time) = keepalive else { return Ok(()) };
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(time).with_interval(time))?;
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    socket.set_tcp_user_timeout(Some(time * 3))?;
    Ok(())
}

/// Whether the error is of the connection that was to be accepted, and says nothing of the next.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::ConnectionAborted;
    use io::ErrorKind::ConnectionRefused;
    use io::ErrorKind::ConnectionReset;
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
