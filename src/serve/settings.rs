//! Floor 5: the limits of a server. Every one is finite by default.

use std::time::Duration;

/// The limits of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeSettings {
    /// The most connections at once; beyond it new ones wait in the kernel's backlog. Default 10,000.
    pub connections_max: usize,
    /// The most connections at once of one peer: of an address (of IPv6, its first 64 bits), and of an identity where the
    /// handshake has proved one. Beyond it they are closed at once. Default 2,000: a fifth of `connections_max`, so that
    /// one peer alone cannot shut the others out; raise it behind a balancer that hides its callers' addresses.
    pub connections_per_peer_max: usize,
    /// The most handshakes at once; beyond it they wait their turn within `handshake_timeout`. One address may hold a
    /// quarter of them. Default 1,024: some 16 MiB of buffers, and at half a millisecond each the work of half a second.
    pub handshakes_max: usize,
    /// The idle time after which the kernel probes a peer, and the pause between probes; a peer that does not
    /// answer for three times as long is gone. Default 10 s (Linkerd); `None` for no probes.
    pub keepalive: Option<Duration>,
    /// The time for a TLS handshake. Default 10 s (Linkerd's detection timeout).
    pub handshake_timeout: Duration,
    /// The time from the first byte of a request's head, or from accepting, to the end of the head. Default 30 s
    /// (hyper): enough for any honest client, and a slow one holds a socket no longer.
    pub header_timeout: Duration,
    /// The most bytes of a request's head. Default 16 KiB (Node.js, and h2's default); beyond it 431.
    pub header_bytes_max: u32,
    /// The most header fields of an HTTP/1.1 request. Default 100 (hyper, Apache); beyond it 431. HTTP/2 counts
    /// each field as 32 bytes more and limits the bytes alone.
    pub headers_max: usize,
    /// The most bytes of a request's body; beyond it 413, or an error in the body when its length was not said.
    /// gRPC calls over HTTP/2 are exempt: their messages are limited one by one and their streams are endless. Default
    /// 64 MiB; `None` for no limit.
    pub body_bytes_max: Option<usize>,
    /// The longest pause within a request's body while it is awaited; gRPC calls are exempt, for their streams may
    /// rest. Default 30 s; `None` for any.
    pub body_idle: Option<Duration>,
    /// How long a peer may leave all responses of its connection waiting, by reading nothing or by opening no HTTP/2
    /// window; then the connection is cut off. Default 5 min: longer than a reader rests who will read on (nginx has 60 s
    /// between two writes); `None` for any.
    pub response_stall: Option<Duration>,
    /// How long a connection without a request under way is kept. Default 75 s (nginx): longer than clients keep
    /// theirs, so that they close first.
    pub idle: Duration,
    /// How long a connection is used before its peer is asked to open another (`GOAWAY`, `Connection: close`), up
    /// to a tenth less by chance; `None`, the default: without end.
    pub age_max: Option<Duration>,
    /// The most streams of an HTTP/2 connection at once. Default 200 (hyper); RFC 9113 wants at least 100.
    pub http2_streams_max: u32,
    /// The most streams that a peer opened and reset before we looked at them; beyond it the connection ends
    /// (rapid reset, CVE-2023-44487). Default 20 (h2).
    pub http2_pending_resets_max: usize,
    /// The most streams that we had to reset because of the peer's faults; beyond it the connection ends
    /// (CVE-2025-8671). Default 1024 (h2).
    pub http2_fault_resets_max: usize,
    /// How often the peer of an HTTP/2 connection is pinged when nothing is read; `None` for never. Default 20 s.
    pub http2_ping: Option<Duration>,
    /// How long a PING may stay unanswered. Default 10 s.
    pub http2_ping_timeout: Duration,
    /// How long requests under way may take to finish after the signal to stop, or on a connection whose peer lost
    /// its trust. Default 25 s: below the 30 s that
    /// Kubernetes waits before it kills.
    pub drain: Duration,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_peer_max: 2_000,
            handshakes_max: 1_024,
            keepalive: Some(Duration::from_secs(10)),
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            header_bytes_max: 16 * 1024,
            headers_max: 100,
            body_bytes_max: Some(64 << 20),
            body_idle: Some(Duration::from_secs(30)),
            response_stall: Some(Duration::from_secs(300)),
            idle: Duration::from_secs(75),
            age_max: None,
            http2_streams_max: 200,
            http2_pending_resets_max: 20,
            http2_fault_resets_max: 1024,
            http2_ping: Some(Duration::from_secs(20)),
            http2_ping_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(25),
        }
    }
}
