//! Floor 5: what happened at a server, as plain counters.

use crate::stdx::traffic::Traffic;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

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
    plain: Arc<Traffic>,
    secure: Arc<Traffic>,
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

    /// Bytes, and how connections ended, of those whose peer proved who it is (`true`) or did not.
    pub fn traffic(&self, proved: bool) -> &Arc<Traffic> {
        if proved { &self.secure } else { &self.plain }
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
