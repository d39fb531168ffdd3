//! Floor 5: what happened at a server, as plain counters.

use crate::metrics::kept::Kept;
use crate::stdx::clock::Instant;
use crate::stdx::histogram::Counts;
use crate::stdx::histogram::Histogram;
use crate::stdx::traffic::Traffic;
use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The most peers whose connections are counted apart; those beyond are counted as [`OTHER`].
pub const PEERS_MAX: usize = 1024;

/// The peers beyond [`PEERS_MAX`].
pub const OTHER: &str = "other";

/// Connections of one peer.
#[derive(Debug)]
pub struct PeerTraffic {
    /// Who it proved to be; `None`: nothing was proved.
    pub peer: Option<Arc<str>>,
    /// What went over them.
    pub traffic: Arc<Traffic>,
}

/// How it ended to look what is spoken, in Linkerd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detected {
    Http1,
    Http2,
    /// It closed without a byte.
    NotHttp,
    Timeout,
    Error,
}

/// The words of `Detected`.
pub const DETECTED: [&str; 5] = ["http/1", "http/2", "not_http", "read_timeout", "error"];

/// Why a connection ended before its first request, in Linkerd's words.
pub const TCP_ERRORS: [&str; 3] = ["tls detection timeout", "i/o", "unexpected"];

/// One thing that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    Accepted,
    Closed,
    Request,
    Answered,
    Refused,
    Panicked,
    Failed,
    AcceptError,
    HandshakeFailed,
    TimedOut,
    Aborted,
    OverPeerLimit,
    Stalled,
}

/// Counters of one server; read with [`snapshot`](Self::snapshot).
#[derive(Debug, Default)]
pub struct ServeStats {
    counters: [AtomicU64; 13],
    peers: Peers,
    detected: [AtomicU64; DETECTED.len()],
    detecting: Histogram,
    errors: [AtomicU64; TCP_ERRORS.len()],
}

#[derive(Debug)]
struct Peers(Kept<Option<Arc<str>>, PeerTraffic>);

impl Default for Peers {
    fn default() -> Self {
        Self(Kept::new(PEERS_MAX))
    }
}

/// Counters of one server at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ServeSnapshot {
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections that are open.
    pub open: u64,
    /// Requests since the start, refused ones not included.
    pub requests: u64,
    /// Requests under way, up to the end of the response's body.
    pub in_flight: u64,
    /// Requests refused with 400 or 413 before the app saw them.
    pub refused: u64,
    /// Panics of the app: answered with 500, or the end of the response if it had begun.
    pub panics: u64,
    /// Errors of the app, each answered with 500.
    pub failed: u64,
    /// Errors of `accept`, as when there are no file descriptors left.
    pub accept_errors: u64,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: u64,
    /// Connections closed because a head took too long or nothing happened.
    pub timed_out: u64,
    /// Connections cut off at the end of draining.
    pub aborted: u64,
    /// Connections closed because their peer had too many.
    pub over_peer_limit: u64,
    /// Connections cut off because their peer took no response.
    pub stalled: u64,
}

impl ServeStats {
    pub(crate) fn count(&self, event: Event) {
        self.counters[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts and logs a panic of the app.
    pub(crate) fn panicked(&self, panic: &(dyn Any + Send)) {
        self.count(Event::Panicked);
        let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => text,
            (None, Some(text)) => text.as_str(),
            (None, None) => "no message",
        };
        tracing::error!(panic = text, "the app panicked");
    }

    /// Bytes, and how connections ended, of the peer that proved to be this one, or of those that proved nothing. Asked
    /// once for a connection.
    pub fn traffic(&self, peer: Option<&Arc<str>>) -> Arc<PeerTraffic> {
        let make = |peer: &Option<Arc<str>>| PeerTraffic { peer: peer.clone(), traffic: Arc::default() };
        self.peers.0.get(&peer.cloned(), || Some(OTHER.into()), make)
    }

    /// The same of all peers. One without a connection for `retain` is forgotten after it was told once more.
    pub fn all_traffic(&self, now: Instant, retain: Duration) -> Vec<Arc<PeerTraffic>> {
        self.peers.0.sweep(now, retain)
    }

    /// How many connections were looked at for what they speak, by [`DETECTED`], and how long that took.
    pub fn detections(&self) -> ([u64; DETECTED.len()], Counts) {
        (self.detected.each_ref().map(|count| count.load(Ordering::Relaxed)), self.detecting.read())
    }

    /// How many connections ended before their first request, by [`TCP_ERRORS`].
    pub fn tcp_errors(&self) -> [u64; TCP_ERRORS.len()] {
        self.errors.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn detected(&self, how: Detected, took: Duration) {
        self.detecting.record(took);
        if let Some(count) = self.detected.get(how as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A handshake failed by this error, or took too long.
    pub(crate) fn handshake_failed(&self, error: Option<&(dyn std::error::Error + 'static)>) {
        self.count(Event::HandshakeFailed);
        let mut causes = std::iter::successors(error, |error| error.source());
        let word = match error {
            None => 0,
            Some(_) if causes.any(|error| error.is::<io::Error>()) => 1,
            Some(_) => 2,
        };
        self.errors[word].fetch_add(1, Ordering::Relaxed);
    }

    /// The counters now. They are read one by one, so requests under way may show in some and not in others.
    pub fn snapshot(&self) -> ServeSnapshot {
        let read = |event: Event| self.counters[event as usize].load(Ordering::Relaxed);
        let (closed, answered) = (read(Event::Closed), read(Event::Answered));
        let (accepted, requests) = (read(Event::Accepted), read(Event::Request));
        ServeSnapshot {
            accepted,
            open: accepted.saturating_sub(closed),
            requests,
            in_flight: requests.saturating_sub(answered),
            refused: read(Event::Refused),
            panics: read(Event::Panicked),
            failed: read(Event::Failed),
            accept_errors: read(Event::AcceptError),
            handshakes_failed: read(Event::HandshakeFailed),
            timed_out: read(Event::TimedOut),
            aborted: read(Event::Aborted),
            over_peer_limit: read(Event::OverPeerLimit),
            stalled: read(Event::Stalled),
        }
    }
}
