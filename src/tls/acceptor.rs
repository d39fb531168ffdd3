//! Floor 5: accepts connections as a server: always TLS, TLS or plain, or always plain.

use crate::tls::prefixed::Prefixed;
use crate::tls::rotate::Identities;
use crate::tls::session::Session;
use crate::tls::session::TlsError;
use crate::tls::session::within;
use crate::tls::verify::Side;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The first byte of every TLS connection: a handshake record. No text protocol and no HTTP/2 preface begins so.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// TLS with a client certificate; anything else ends in the handshake. The default: safety is not opted into.
    #[default]
    Strict,
    /// TLS with or without a client certificate, and plaintext. Who calls is for authorization to demand. A client
    /// certificate that is offered must still be valid.
    Permissive,
    /// Plaintext; a TLS hello is handed on as the bytes that it is.
    Off,
}

/// An accepted connection.
#[derive(Debug)]
pub enum Accepted<IO> {
    /// Plaintext, from the first byte on.
    Plain(Prefixed<IO>),
    /// TLS. Boxed, being some 1.5 KiB and by far the larger.
    Tls(Box<TlsStream<Prefixed<IO>>>, Session),
}

/// Accepts connections with the current identity. Cloning is reference counts.
#[derive(Debug, Clone)]
pub struct Acceptor {
    identities: Option<Identities>,
    mode: Mode,
    handshake_max: Duration,
}

impl Acceptor {
    /// The default limit of detection and handshake together (Linkerd's detection alone has 10 s).
    pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

    /// Accepts what `mode` says as whoever `identities` says that we are; first byte and handshake together may
    /// take `handshake_max`.
    pub fn new(identities: Identities, mode: Mode, handshake_max: Duration) -> Self {
        Self { identities: Some(identities), mode, handshake_max }
    }

    /// Accepts plaintext alone.
    pub fn plain() -> Self {
        Self { identities: None, mode: Mode::Off, handshake_max: Self::HANDSHAKE_MAX }
    }

    /// What it takes.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The identities it uses; `None` if it takes plaintext alone.
    pub fn identities(&self) -> Option<&Identities> {
        self.identities.as_ref()
    }

    /// Accepts one connection. Plaintext waits for its first byte and no longer.
    ///
    /// # Errors
    /// The connection is over: it is neither TLS that we take nor, where that is allowed, plaintext, or it stalls.
    pub async fn accept<IO>(&self, io: IO) -> Result<Accepted<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let identities = match (&self.identities, self.mode) {
            (Some(identities), Mode::Strict | Mode::Permissive) => identities,
            _ => return Ok(Accepted::Plain(Prefixed::untouched(io))),
        };
        let outcome = within(self.handshake_max, self.detect(identities, io)).await;
        match &outcome {
            Ok(Accepted::Plain(_)) => {}
            Ok(Accepted::Tls(..)) => identities.count_handshake("inbound", None),
            Err(error) => identities.count_handshake("inbound", Some(error)),
        }
        outcome
    }

    async fn detect<IO>(&self, identities: &Identities, io: IO) -> Result<Accepted<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let io = match self.mode {
            Mode::Strict => Prefixed::untouched(io),
            Mode::Permissive | Mode::Off => {
                let io = Prefixed::read_ahead(io).await.map_err(TlsError::Io)?;
                if io.prefix().first() != Some(&TLS_HANDSHAKE) {
                    return Ok(Accepted::Plain(io));
                }
                io
            }
        };
        let epoch = identities.demand()?;
        let config = epoch.server(self.mode == Mode::Strict);
        let stream = TlsAcceptor::from(std::sync::Arc::clone(config)).accept(io).await?;
        let session = Session::new(stream.get_ref().1, Side::Client, None, epoch)?;
        Ok(Accepted::Tls(Box::new(stream), session))
    }
}
