//! Floor 5: the step between TCP and HTTP: nothing for plain text, TLS by a type of its own.

use crate::discover::endpoint::Endpoint;
use crate::error::BoxError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// The two versions of HTTP that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1: one request at a time on a connection.
    Http1,
    /// HTTP/2: many.
    Http2,
}

/// What the client is willing to speak, for ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offer {
    /// HTTP/1.1 only, as for an upgrade.
    Http1,
    /// HTTP/2 only.
    Http2,
    /// HTTP/2, or else HTTP/1.1.
    Either,
}

/// Ready when a connection must not be used any longer, as when its peer's identity lost its trust.
pub type Retired = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits until what is `shown` is over; never, if nobody shows anything any longer.
pub(crate) fn retired_once<T: Send + Sync + 'static>(
    mut shown: watch::Receiver<T>,
    is_over: impl FnMut(&T) -> bool + Send + 'static,
) -> Retired {
    Box::pin(async move {
        if shown.wait_for(is_over).await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// A stream ready for HTTP.
pub struct Established<Io> {
    /// The stream.
    pub io: Io,
    /// What was agreed on; `None` when nothing was negotiated, and what the client prefers is then spoken.
    pub protocol: Option<Protocol>,
    /// Whether it is encrypted: the scheme of HTTP/2 requests is then `https`.
    pub secure: bool,
    /// When the connection takes no more requests; those under way have
    /// [`ConnectSettings::drain`](crate::connect::settings::ConnectSettings::drain) to finish.
    pub retired: Option<Retired>,
}

impl<Io> fmt::Debug for Established<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Established")
            .field("protocol", &self.protocol)
            .field("secure", &self.secure)
            .finish_non_exhaustive()
    }
}

/// The step between TCP and HTTP. [`Plain`] does nothing; TLS is another implementation.
pub trait Handshake: Clone + Send + Sync + 'static {
    /// The stream that HTTP is spoken over.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Makes a connected socket ready for HTTP with this replica. An error means that nothing of a request was
    /// sent; the time is limited by the caller.
    fn handshake(
        &self,
        stream: TcpStream,
        endpoint: &Endpoint,
        offer: Offer,
    ) -> impl Future<Output = Result<Established<Self::Io>, BoxError>> + Send;
}

/// No handshake: plain text.
#[derive(Clone, Copy, Default)]
pub struct Plain;

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain")
    }
}

impl Handshake for Plain {
    type Io = TcpStream;

    async fn handshake(
        &self,
        stream: TcpStream,
        _endpoint: &Endpoint,
        _offer: Offer,
    ) -> Result<Established<TcpStream>, BoxError> {
        Ok(Established { io: stream, protocol: None, secure: false, retired: None })
    }
}
