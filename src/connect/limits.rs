//! Floor 5: the limits of one replica's connections, and which of them may change while they are open.

use crate::connect::settings::ConnectSettings;
use std::time::Duration;

/// The connections in a row that may break without a response before their replica is left alone: as many as the
/// attempts that one request has by default.
pub(crate) const UNANSWERED_MAX: u32 = 3;

/// The failed openings in a row that a request waits through while other connections are in use.
pub(crate) const FAILURES_WAITED_MAX: u32 = 3;

/// What of [`ConnectSettings`] a profile may say, read under the pool's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolLimits {
    /// How long an opening may take.
    pub(crate) timeout: Duration,
    pub(crate) connections_max: u32,
    /// Streams at once over one HTTP/2 connection, whatever its peer allows.
    pub(crate) streams_max: u32,
    pub(crate) pending_max: u32,
    pub(crate) http1_idle: Duration,
    pub(crate) http2_idle: Duration,
    pub(crate) age_max: Option<Duration>,
    pub(crate) requests_max: Option<u64>,
}

impl PoolLimits {
    pub(crate) fn of(settings: &ConnectSettings) -> Self {
        Self {
            timeout: settings.timeout,
            connections_max: settings.connections_max.max(1),
            streams_max: settings.streams_max.unwrap_or(u32::MAX).max(1),
            pending_max: settings.pending_max,
            http1_idle: settings.http1_idle,
            http2_idle: settings.http2_idle,
            age_max: settings.age_max,
            requests_max: settings.requests_max,
        }
    }
}
