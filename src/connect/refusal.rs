//! Floor 5: tells what the failure of an HTTP/2 response says: of the request, and of the connection.

use std::error::Error as StdError;

/// What the failure of a response says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The peer refused the stream and did not process the request (RFC 9113 §8.7); the connection is well.
    Refused,
    /// The peer closes the connection and named a lower last stream: it did not process the request.
    GoneAway,
    /// The same, but because of a fault that it found on the connection.
    Expelled,
    /// The stream was reset; the connection is well.
    Reset,
    /// The connection broke.
    Broken,
}

impl Ended {
    /// Reads it from hyper's error.
    ///
    /// h2 gives a remote `GOAWAY` as the error of just those streams above the last one; the others end with the
    /// connection's own error.
    pub(crate) fn of(error: &hyper::Error) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
                return match (error.is_reset(), error.is_remote()) {
                    (true, true) if refused => Self::Refused,
                    (true, _) => Self::Reset,
                    (false, true) if error.is_go_away() => match error.reason() {
                        Some(h2::Reason::NO_ERROR) => Self::GoneAway,
                        _ => Self::Expelled,
                    },
                    (false, _) => Self::Broken,
                };
            }
            cause = error.source();
        }
        Self::Broken
    }

    /// Whether the peer certainly did not process the request.
    pub(crate) fn is_unsent(self) -> bool {
        matches!(self, Self::Refused | Self::GoneAway | Self::Expelled)
    }

    /// Whether the request may be sent again at once. After a fault it may not: if it is itself the fault, it
    /// would end the next connection too.
    pub(crate) fn may_resend(self) -> bool {
        matches!(self, Self::Refused | Self::GoneAway)
    }

    /// Whether the connection takes no more requests.
    pub(crate) fn is_of_connection(self) -> bool {
        matches!(self, Self::GoneAway | Self::Expelled | Self::Broken)
    }
}
