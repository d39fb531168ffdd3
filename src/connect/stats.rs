//! Floor 5: what happened on the connections of one replica, as plain counters.

use crate::stdx::traffic::Traffic;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// Counters of one replica's connections; read with [`snapshot`](Self::snapshot).
#[derive(Debug, Default)]
pub struct ConnectStats {
    opened: AtomicU64,
    closed: AtomicU64,
    in_use: AtomicU64,
    reused: AtomicU64,
    resent: AtomicU64,
    refused: AtomicU64,
    held: AtomicU64,
    failed: [AtomicU64; 4],
    traffic: Arc<Traffic>,
}

/// Why a connection could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenFailure {
    /// The time for opening passed.
    Timeout,
    /// TCP failed: refused, unreachable, reset.
    Tcp,
    /// The handshake failed: TLS, or an identity that is not the expected one.
    Handshake,
    /// The peer does not speak the protocol, or allows no stream.
    Protocol,
}

/// Counters of one replica's connections at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConnectSnapshot {
    /// Connections opened since the start.
    pub opened: u64,
    /// Connections closed since the start.
    pub closed: u64,
    /// Connections that are open.
    pub open: u64,
    /// Requests that hold a connection or stream, up to the end of the response's body.
    pub in_use: u64,
    /// Requests that needed no new connection.
    pub reused: u64,
    /// Requests sent again because the peer certainly did not process them.
    pub resent: u64,
    /// Requests that were refused because too many waited for a connection.
    pub refused: u64,
    /// Requests that waited because no more connections may be opened.
    pub held: u64,
    /// Openings that took too long.
    pub failed_timeout: u64,
    /// Openings that TCP refused.
    pub failed_tcp: u64,
    /// Openings that failed in the handshake.
    pub failed_handshake: u64,
    /// Openings that met another protocol, or no stream allowed.
    pub failed_protocol: u64,
}

impl ConnectStats {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn taken(&self) {
        self.in_use.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn returned(&self) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn reused(&self) {
        self.reused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn resent(&self) {
        self.resent.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn held(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, why: OpenFailure) {
        self.failed[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes, and how connections ended.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// The counters now. They are read one by one, so requests under way may show in some and not in others.
    pub fn snapshot(&self) -> ConnectSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failed = |why: OpenFailure| read(&self.failed[why as usize]);
        let closed = read(&self.closed);
        let opened = read(&self.opened);
        ConnectSnapshot {
            opened,
            closed,
            open: opened.saturating_sub(closed),
            in_use: read(&self.in_use),
            reused: read(&self.reused),
            resent: read(&self.resent),
            refused: read(&self.refused),
            held: read(&self.held),
            failed_timeout: failed(OpenFailure::Timeout),
            failed_tcp: failed(OpenFailure::Tcp),
            failed_handshake: failed(OpenFailure::Handshake),
            failed_protocol: failed(OpenFailure::Protocol),
        }
    }
}
