//! Floor 0: the one error of every layer, and how it looks to HTTP and gRPC callers.

use http::StatusCode;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// An error of any type, for what comes from outside this crate.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Which time limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The whole call, over all attempts.
    Request,
    /// One attempt, up to its response's headers.
    Attempt,
    /// The response, counted from the end of the request's body.
    Response,
    /// The time between two frames.
    Idle,
    /// Opening a connection.
    Connect,
    /// Waiting for a place or an endpoint.
    Queue,
}

impl Scope {
    /// A short word for logs: `request`, `attempt`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Attempt => "attempt",
            Self::Response => "response",
            Self::Idle => "idle",
            Self::Connect => "connect",
            Self::Queue => "queue",
        }
    }
}

/// Why a call has no response.
///
/// Every layer returns it and accepts it, so stacked layers neither wrap nor lose it; only an error from
/// outside the crate is boxed, once. [`std::error::Error::source`] holds the cause and `Display` does not repeat
/// it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A time limit passed.
    Timeout {
        /// Which.
        scope: Scope,
        /// How long it was.
        after: Duration,
    },
    /// Every endpoint that could be asked is left alone by its breaker.
    BreakerOpen {
        /// The soonest that one is tried again.
        retry_in: Duration,
    },
    /// Discovery knows no endpoint of the service.
    NoEndpoints {
        /// The service.
        service: Arc<str>,
    },
    /// No route is for the request, and the profile says that it is then not found.
    NoRoute {
        /// The service.
        service: Arc<str>,
    },
    /// The route's backend reference leads nowhere.
    InvalidBackend {
        /// The HTTP status that the dialect gives it.
        status: u16,
        /// The gRPC code.
        grpc: u8,
        /// Why.
        reason: Arc<str>,
    },
    /// Too much at once: the request was refused before it was sent.
    Overloaded {
        /// When to come back, if known.
        retry_after: Option<Duration>,
    },
    /// A rate limit was reached.
    RateLimited {
        /// When to come back.
        retry_after: Duration,
    },
    /// The caller may not do this.
    Denied {
        /// The rule that says so.
        rule: Arc<str>,
    },
    /// Broken off on purpose by fault injection.
    Fault {
        /// The HTTP status.
        status: u16,
        /// The gRPC code.
        grpc: u8,
    },
    /// The request itself is unusable: no authority, a bad one, an unusable header.
    BadRequest {
        /// What is wrong, and what to do.
        reason: Arc<str>,
    },
    /// No connection could be opened.
    Connect {
        /// To where.
        endpoint: SocketAddr,
        /// Why.
        source: BoxError,
    },
    /// The TLS handshake failed, or the peer is not who it should be. Nothing of the request was sent.
    Tls {
        /// To where.
        endpoint: SocketAddr,
        /// Why.
        source: BoxError,
    },
    /// The connection or stream broke.
    Transport {
        /// To where, if known.
        endpoint: Option<SocketAddr>,
        /// Whether the peer certainly did not process the request (it refused it, or closed before taking it).
        unsent: bool,
        /// Why.
        source: BoxError,
    },
    /// The request's body, which the caller gave, broke off.
    Body(BoxError),
    /// The settings of the mesh are unusable.
    Config(BoxError),
    /// The mesh is shutting down.
    Closed,
    /// An error of a service that this crate does not know.
    Inner(BoxError),
}

impl Error {
    /// Whether the peer certainly did not process the request, so that it may be sent again whatever its method.
    pub fn is_unsent(&self) -> bool {
        match self {
            Self::Timeout { scope, .. } => matches!(scope, Scope::Connect | Scope::Queue),
            Self::Transport { unsent, .. } => *unsent,
            Self::Inner(_) | Self::Body(_) => false,
            Self::BreakerOpen { .. }
            | Self::NoEndpoints { .. }
            | Self::NoRoute { .. }
            | Self::InvalidBackend { .. }
            | Self::Overloaded { .. }
            | Self::RateLimited { .. }
            | Self::Denied { .. }
            | Self::Fault { .. }
            | Self::BadRequest { .. }
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Config(_)
            | Self::Closed => true,
        }
    }

    /// The endpoint this happened at, if one was chosen.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        match self {
            Self::Connect { endpoint, .. } | Self::Tls { endpoint, .. } => Some(*endpoint),
            Self::Transport { endpoint, .. } => *endpoint,
            _ => None,
        }
    }

    /// When the caller may come back, if that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::BreakerOpen { retry_in } => Some(*retry_in),
            Self::Overloaded { retry_after } => *retry_after,
            Self::RateLimited { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// The HTTP status that stands for this error (linkerd.md §3.6).
    pub fn to_status(&self) -> StatusCode {
        let code = match self {
            Self::Timeout { .. } => 504,
            Self::BreakerOpen { .. } | Self::NoEndpoints { .. } | Self::Overloaded { .. } | Self::Closed => {
                503
            }
            Self::NoRoute { .. } => 404,
            Self::InvalidBackend { status, .. } | Self::Fault { status, .. } => *status,
            Self::RateLimited { .. } => 429,
            Self::Denied { .. } => 403,
            Self::BadRequest { .. } => 400,
            Self::Connect { .. } | Self::Tls { .. } | Self::Transport { .. } => 502,
            Self::Body(_) | Self::Config(_) | Self::Inner(_) => 500,
        };
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The gRPC code that stands for this error (linkerd.md §3.6).
    pub fn to_grpc(&self) -> u8 {
        match self {
            Self::Timeout { .. } => 4,
            Self::NoRoute { .. } => 12,
            Self::InvalidBackend { grpc, .. } | Self::Fault { grpc, .. } => *grpc,
            Self::RateLimited { .. } => 8,
            Self::Denied { .. } => 7,
            Self::BadRequest { .. } => 3,
            Self::BreakerOpen { .. }
            | Self::NoEndpoints { .. }
            | Self::Overloaded { .. }
            | Self::Closed
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Transport { .. } => 14,
            Self::Body(_) | Self::Config(_) | Self::Inner(_) => 13,
        }
    }

    /// A short word for logs and metrics labels; one of a fixed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::NoEndpoints { .. } => "no_endpoints",
            Self::NoRoute { .. } => "no_route",
            Self::InvalidBackend { .. } => "invalid_backend",
            Self::Overloaded { .. } => "overloaded",
            Self::RateLimited { .. } => "rate_limited",
            Self::Denied { .. } => "denied",
            Self::Fault { .. } => "fault",
            Self::BadRequest { .. } => "bad_request",
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Transport { .. } => "transport",
            Self::Body(_) => "body",
            Self::Config(_) => "config",
            Self::Closed => "closed",
            Self::Inner(_) => "inner",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { scope, after } => write!(f, "{} timeout passed after {after:?}", scope.as_str()),
            Self::BreakerOpen { retry_in } => {
                write!(f, "every endpoint is left alone by its breaker; the next is tried in {retry_in:?}")
            }
            Self::NoEndpoints { service } => write!(f, "no endpoint of {service} is known"),
            Self::NoRoute { service } => write!(f, "no route of {service} is for this request"),
            Self::InvalidBackend { reason, .. } => write!(f, "the route's backend cannot be used: {reason}"),
            Self::Overloaded { .. } => f.write_str("too many requests at once"),
            Self::RateLimited { retry_after } => {
                write!(f, "rate limit reached; come back in {retry_after:?}")
            }
            Self::Denied { rule } => write!(f, "denied by {rule}"),
            Self::Fault { status, grpc } => write!(f, "broken on purpose with status {status}, gRPC {grpc}"),
            Self::BadRequest { reason } => write!(f, "unusable request: {reason}"),
            Self::Connect { endpoint, .. } => write!(f, "could not connect to {endpoint}"),
            Self::Tls { endpoint, .. } => write!(f, "TLS with {endpoint} failed"),
            Self::Transport { endpoint: Some(endpoint), .. } => write!(f, "connection to {endpoint} broke"),
            Self::Transport { endpoint: None, .. } => f.write_str("connection broke"),
            Self::Body(_) => f.write_str("the request's body broke off"),
            Self::Config(_) => f.write_str("unusable configuration"),
            Self::Closed => f.write_str("the mesh is shutting down"),
            Self::Inner(_) => f.write_str("the inner service failed"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Tls { source, .. } | Self::Transport { source, .. } => {
                Some(source.as_ref())
            }
            Self::Body(source) | Self::Config(source) | Self::Inner(source) => Some(source.as_ref()),
            _ => None,
        }
    }
}

impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<BoxError> for Error {
    /// Finds this crate's error again below a foreign layer that boxed it.
    fn from(error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => *error,
            Err(error) => Self::Inner(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boxed_error_is_found_again() {
        let boxed: BoxError = Box::new(Error::Closed);
        assert!(matches!(Error::from(boxed), Error::Closed));
        assert!(matches!(Error::from(BoxError::from("x")), Error::Inner(_)));
    }

    #[test]
    fn display_leaves_the_cause_to_source() {
        let error = Error::Connect { endpoint: ([127, 0, 0, 1], 1).into(), source: "refused".into() };
        assert_eq!(error.to_string(), "could not connect to 127.0.0.1:1");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("refused"));
        assert_eq!((error.to_status().as_u16(), error.to_grpc(), error.is_unsent()), (502, 14, true));
    }
}
