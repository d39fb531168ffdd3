//! Floor 5: the step between an accepted socket and HTTP: nothing for plain text, TLS by a type of its own.

use crate::error::BoxError;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// Ready when a connection must not be used any longer, as when its peer's identity lost its trust.
pub type Retired = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stream ready for HTTP.
pub struct Accepted<Io, Identity> {
    /// The stream.
    pub io: Io,
    /// Whether ALPN chose HTTP/2; `None` when nothing was negotiated, and the first bytes then tell.
    pub http2: Option<bool>,
    /// Who the peer proved to be; handlers find it in the request's extensions.
    pub identity: Option<Identity>,
    /// The name under which its connections are counted together; `None`: by its address alone.
    pub name: Option<Arc<str>>,
    /// When the connection takes no more requests; those under way have
    /// [`ServeSettings::drain`](crate::serve::settings::ServeSettings::drain) to finish.
    pub retired: Option<Retired>,
}

impl<Io, Identity: fmt::Debug> fmt::Debug for Accepted<Io, Identity> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted")
            .field("http2", &self.http2)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// The step between an accepted socket and HTTP. [`Plain`] does nothing; TLS is another implementation.
pub trait Accept: Clone + Send + Sync + 'static {
    /// The stream that HTTP is spoken over.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What identifies a peer.
    type Identity: Clone + Send + Sync + 'static;

    /// Makes an accepted socket ready for HTTP; an error closes it. The time is limited by the caller.
    fn accept(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> impl Future<Output = Result<Accepted<Self::Io, Self::Identity>, BoxError>> + Send;
}

/// No handshake: plain text.
#[derive(Clone, Copy, Default)]
pub struct Plain;

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain")
    }
}

impl Accept for Plain {
    type Io = TcpStream;
    type Identity = Infallible;

    async fn accept(
        &self,
        stream: TcpStream,
        _remote: SocketAddr,
    ) -> Result<Accepted<TcpStream, Infallible>, BoxError> {
        Ok(Accepted { io: stream, http2: None, identity: None, name: None, retired: None })
    }
}
