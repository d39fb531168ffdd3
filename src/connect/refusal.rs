//! Floor 5: tells whether a peer certainly did not process a request that failed.

use std::error::Error as StdError;

/// How a peer said that it did not process a request (RFC 9113 §8.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It refused the stream; the connection is well.
    Stream,
    /// It closes the connection and named a lower last stream.
    GoAway,
}

/// Whether this error of an HTTP/2 response is a refusal.
///
/// h2 gives a remote `GOAWAY` as the error of just those streams above the last one; the others end with the
/// connection's own error.
pub(crate) fn refusal(error: &hyper::Error) -> Option<Refusal> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return match error.is_remote() {
                true if refused => Some(Refusal::Stream),
                true if error.is_go_away() => Some(Refusal::GoAway),
                _ => None,
            };
        }
        cause = error.source();
    }
    None
}
