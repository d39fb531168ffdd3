//! Floor 5: what is known of one TLS connection: who is at its other end, and why it failed if it did.

use crate::tls::epoch::Epoch;
use crate::tls::identity::PeerIdentity;
use crate::tls::svid::Refusal;
use crate::tls::verify::Expected;
use crate::tls::verify::Side;
use crate::tls::verify::Verifier;
use crate::tls::verify::refusal_in;
use futures::FutureExt;
use rustls::CommonState;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The protocol agreed on inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `h2`.
    Http2,
    /// `http/1.1`.
    Http1,
}

impl Protocol {
    /// What the handshake has agreed on; `None` when the other end named nothing.
    pub(crate) fn agreed(state: &CommonState) -> Option<Self> {
        match state.alpn_protocol() {
            Some(b"h2") => Some(Self::Http2),
            Some(b"http/1.1") => Some(Self::Http1),
            _ => None,
        }
    }
}

/// One TLS connection after its handshake.
#[derive(Debug)]
pub struct Session {
    peer: Option<PeerIdentity>,
    protocol: Option<Protocol>,
    chain: Vec<CertificateDer<'static>>,
    side: Side,
    expected: Option<Expected>,
    epoch: Arc<Epoch>,
}

impl Session {
    /// Reads the outcome of a finished handshake. The chain was verified in it; its names are read again here,
    /// because rustls hands on the certificate and not the verdict.
    pub(crate) fn new(
        state: &CommonState,
        side: Side,
        expected: Option<Expected>,
        epoch: Arc<Epoch>,
    ) -> Result<Self, TlsError> {
        let chain: Vec<_> = state.peer_certificates().unwrap_or_default().to_vec();
        let name = |leaf: &CertificateDer<'_>| epoch.verifier().name_verified(leaf, expected.as_ref());
        let peer = chain.first().map(name).transpose().map_err(TlsError::Refused)?;
        let protocol = Protocol::agreed(state);
        Ok(Self { peer, protocol, chain, side, expected, epoch })
    }

    /// Who is at the other end; `None` for a client without a certificate, where that is allowed.
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.peer.as_ref()
    }

    /// What was agreed to be spoken inside; `None` when the other end named nothing.
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// Whether `verifier` would accept the peer's certificate at `now`, as the handshake did.
    pub(crate) fn check_again(&self, verifier: &Verifier, now: UnixTime) -> Result<(), Refusal> {
        match self.chain.split_first() {
            Some((leaf, rest)) => {
                verifier.verify(leaf, rest, self.side, now, self.expected.as_ref()).map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// The identity epoch under which the connection was made.
    pub fn epoch(&self) -> &Arc<Epoch> {
        &self.epoch
    }
}

/// Why there is no TLS connection. No byte of a request was written and none is handed on.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsError {
    /// We have no identity (yet); the text says why.
    NoIdentity(String),
    /// The handshake, or its first byte, took too long.
    Timeout(Duration),
    /// The peer's certificate was refused.
    Refused(Refusal),
    /// The peer refused us, or does not speak TLS 1.3, or speaks it wrongly.
    Protocol(rustls::Error),
    /// The transport failed.
    Io(io::Error),
}

/// Gives a handshake no more time than `max`.
pub(crate) fn within<T, E>(
    max: Duration,
    handshake: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, TlsError>>
where
    TlsError: From<E>,
{
    tokio::time::timeout(max, handshake).map(move |ended| match ended {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(TlsError::Timeout(max)),
    })
}

impl TlsError {
    /// The reason as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoIdentity(_) => "no_identity",
            Self::Timeout(_) => "timeout",
            Self::Refused(refusal) => refusal.label(),
            Self::Protocol(rustls::Error::AlertReceived(_)) => "refused_by_peer",
            Self::Protocol(_) => "protocol",
            Self::Io(_) => "io",
        }
    }
}

impl From<io::Error> for TlsError {
    /// Finds rustls's error inside the transport's, and our refusal inside rustls's.
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner.map(|inner| (refusal_in(inner), inner.clone())) {
            Some((Some(refusal), _)) => Self::Refused(refusal),
            Some((None, inner)) => Self::Protocol(inner),
            None => Self::Io(error),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIdentity(why) => write!(f, "no identity for tls: {why}"),
            Self::Timeout(after) => write!(f, "tls handshake was not done after {after:?}"),
            Self::Refused(_) => f.write_str("tls peer refused"),
            Self::Protocol(_) => f.write_str("tls handshake failed"),
            Self::Io(_) => f.write_str("tls transport failed"),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoIdentity(_) | Self::Timeout(_) => None,
            Self::Refused(refusal) => Some(refusal),
            Self::Protocol(error) => Some(error),
            Self::Io(error) => Some(error),
        }
    }
}
