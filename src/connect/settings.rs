//! Floor 5: how connections to a replica are opened, kept and closed.

use crate::connect::tcp::TcpSettings;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::Limit;
use crate::profile::settings::Limits;
use std::time::Duration;

/// The longest that opening a connection may take, whatever a profile says: Linux gives up after about two minutes.
const OPENING_MAX: Duration = Duration::from_secs(130);

/// How connections to one replica are opened, kept and closed. Every wait, queue and count is finite.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectSettings {
    /// The time for opening a connection: TCP, TLS and the peer's HTTP/2 settings together. Default 1 s
    /// (Linkerd): more is longer than one lost SYN takes to be sent again.
    pub timeout: Duration,
    /// Whether HTTP/2 is spoken without asking (prior knowledge). Default no; discovery's `http2` hint and a
    /// request that says HTTP/2, as gRPC's do, have the same effect.
    pub http2: bool,
    /// The most connections to the replica. Default 1024: far more than a healthy replica needs, far less than
    /// the ports there are.
    pub connections_max: u32,
    /// The most streams at once over one HTTP/2 connection; `None`: as many as its peer allows, the default.
    pub streams_max: Option<u32>,
    /// The most requests that wait for a connection. Default 1024; beyond it they fail as `Overloaded`.
    pub pending_max: u32,
    /// The most unused HTTP/1.1 connections that are kept. Default 64.
    pub idle_max: u32,
    /// How long an unused HTTP/1.1 connection is kept. Default 3 s (Linkerd): below the usual 5 s of servers, so
    /// that we close first and no request meets a closing connection.
    pub http1_idle: Duration,
    /// How long an unused HTTP/2 connection is kept. Default 5 min: its close is announced (`GOAWAY`), so it may
    /// be kept longer.
    pub http2_idle: Duration,
    /// How long a connection is used before a new one takes its place, up to a tenth less by chance; `None`:
    /// without end. Default 10 min, so that replicas behind one address get their share after a scale-up.
    pub age_max: Option<Duration>,
    /// How long requests may go on over a connection that must not be used any longer, because its peer's
    /// certificate ended or lost its trust; then it is cut off. Default 30 s.
    pub drain: Duration,
    /// The most requests over one connection; `None`: any number, the default.
    pub requests_max: Option<u64>,
    /// How often a request is sent again when the peer certainly did not process it: the connection closed
    /// before taking it, `REFUSED_STREAM`, or `GOAWAY` with a lower last stream. Default 2, at most 3; 0 saves
    /// the copy of an HTTP/2 request's head.
    pub resends_max: u8,
    /// The first upper bound of the wait after a failed opening. Default 100 ms (Linkerd).
    pub backoff_base: Duration,
    /// The last upper bound of that wait. Default 10 s (Linkerd's inbound one): one SYN each 5 s costs nothing,
    /// and a replica that is back is not shunned for a minute.
    pub backoff_max: Duration,
    /// How often HTTP/2 PINGs are sent when nothing is read: to replicas with an identity, which are of the mesh,
    /// also while no stream is open. Default: each 10 s to replicas of the mesh (Linkerd), and never to others,
    /// because gRPC servers hang up on a peer that pings more often than each 5 min (gRFC A8).
    pub http2_ping: Limit,
    /// How long a PING may stay unanswered. Default 5 s.
    pub http2_ping_timeout: Duration,
    /// The flow-control window of each HTTP/2 stream, in bytes. Default 1 MiB.
    pub http2_stream_window: u32,
    /// The flow-control window of each HTTP/2 connection, in bytes. Default 4 MiB.
    pub http2_connection_window: u32,
    /// How sockets are set up.
    pub tcp: TcpSettings,
}

impl Default for ConnectSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            http2: false,
            connections_max: 1024,
            streams_max: None,
            pending_max: 1024,
            idle_max: 64,
            http1_idle: Duration::from_secs(3),
            http2_idle: Duration::from_secs(300),
            age_max: Some(Duration::from_secs(600)),
            drain: Duration::from_secs(30),
            requests_max: None,
            resends_max: 2,
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            http2_ping: Limit::Unset,
            http2_ping_timeout: Duration::from_secs(5),
            http2_stream_window: 1 << 20,
            http2_connection_window: 4 << 20,
            tcp: TcpSettings::default(),
        }
    }
}

impl ConnectSettings {
    /// These settings with what a service's profile says of its connections.
    #[must_use]
    pub fn with_limits(mut self, limits: &Limits) -> Self {
        self.connections_max = limits.connections_max.map_or(self.connections_max, |n| n.max(1));
        self.streams_max = limits.streams_max.map(|n| n.max(1)).or(self.streams_max);
        self.pending_max = limits.pending_max.unwrap_or(self.pending_max);
        self.requests_max =
            limits.requests_per_connection_max.map(|n| u64::from(n.max(1))).or(self.requests_max);
        self.http1_idle = limits.idle.unwrap_or(self.http1_idle);
        self.http2_idle = limits.idle.unwrap_or(self.http2_idle);
        self.age_max = limits.connection_age_max.or(self.age_max);
        self
    }

    /// These settings with what a service's profile says of its connections, and of the time for opening one.
    #[must_use]
    pub fn with_profile(self, profile: &ServiceProfile) -> Self {
        let mut settings = self.with_limits(&profile.limits);
        settings.timeout = match profile.timeouts.connect {
            Limit::Unset => settings.timeout,
            Limit::Disabled => OPENING_MAX,
            Limit::After(time) => time.min(OPENING_MAX),
        };
        settings
    }

    /// The interval of PINGs to a replica, `None` for none.
    pub fn ping_interval(&self, meshed: bool) -> Option<Duration> {
        match self.http2_ping {
            Limit::Unset => meshed.then_some(Duration::from_secs(10)),
            Limit::Disabled => None,
            Limit::After(interval) => Some(interval),
        }
    }
}
