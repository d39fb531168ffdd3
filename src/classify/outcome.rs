//! Floor 1: how a call or an attempt ended.

use crate::error::{Error, Scope};
use std::fmt;
use std::time::Duration;

/// Whether an end counts for or against the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It went well.
    Success,
    /// It did not.
    Failure,
    /// The caller went away before it was known.
    Cancelled,
}

impl Verdict {
    /// One word for logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What was seen at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A response with this HTTP status.
    Status(u16),
    /// A gRPC response with this code, in headers or trailers.
    Grpc(u8),
    /// A time limit passed.
    Timeout(Scope),
    /// No connection could be opened, or its handshake failed.
    Connect,
    /// The peer certainly did not process the request.
    Refused,
    /// The connection or stream broke before the end.
    Reset,
    /// Nothing was sent: a limit, a breaker or a policy of ours refused.
    Local,
    /// The caller went away.
    Dropped,
}

impl Cause {
    /// One word for logs; one of a fixed set.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Grpc(_) => "grpc",
            Self::Timeout(_) => "timeout",
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Local => "local",
            Self::Dropped => "dropped",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Grpc(code) => write!(f, "grpc-status {code}"),
            Self::Timeout(scope) => write!(f, "{} timeout", scope.as_str()),
            Self::Connect | Self::Refused | Self::Reset | Self::Local | Self::Dropped => {
                f.write_str(self.as_str())
            }
        }
    }
}

/// How a call or an attempt ended: made once, in `classify`, and read by everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// For or against the peer.
    pub verdict: Verdict,
    /// What was seen.
    pub cause: Cause,
    /// When the peer wants to be asked again (`Retry-After`, gRPC pushback).
    pub retry_after: Option<Duration>,
}

impl Outcome {
    /// The caller went away.
    pub const DROPPED: Self = Self { verdict: Verdict::Cancelled, cause: Cause::Dropped, retry_after: None };

    /// An end with no hint when to come back.
    pub fn new(verdict: Verdict, cause: Cause) -> Self {
        Self { verdict, cause, retry_after: None }
    }

    /// How an attempt ended that has no response.
    pub fn of_error(error: &Error) -> Self {
        let cause = match error {
            Error::Timeout { scope: Scope::Connect, .. } | Error::Connect { .. } | Error::Tls { .. } => {
                Cause::Connect
            }
            Error::Timeout { scope, .. } => Cause::Timeout(*scope),
            Error::Transport { unsent: true, .. } => Cause::Refused,
            Error::Transport { .. } | Error::Inner(_) => Cause::Reset,
            Error::Fault { status, .. } | Error::InvalidBackend { status, .. } => Cause::Status(*status),
            Error::Body(_) => return Self::new(Verdict::Cancelled, Cause::Reset),
            _ => Cause::Local,
        };
        Self { verdict: Verdict::Failure, cause, retry_after: error.retry_after() }
    }

    /// Whether it counts against the peer.
    pub fn is_failure(&self) -> bool {
        self.verdict == Verdict::Failure
    }

    /// Whether the peer (or we) said that it is overloaded: HTTP 429 or 503, gRPC RESOURCE_EXHAUSTED or
    /// UNAVAILABLE.
    pub fn is_overload(&self) -> bool {
        matches!(self.cause, Cause::Status(429 | 503) | Cause::Grpc(8 | 14))
    }
}
