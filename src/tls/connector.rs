//! Floor 5: opens TLS as a client, on any transport, and only with the workload that is expected.

use crate::tls::epoch::ALPN;
use crate::tls::identity::BadIdentity;
use crate::tls::identity::Identity;
use crate::tls::rotate::Identities;
use crate::tls::session::Session;
use crate::tls::session::TlsError;
use crate::tls::session::within;
use crate::tls::verify::Expected;
use crate::tls::verify::Side;
use rustls::pki_types::IpAddr;
use rustls::pki_types::Ipv4Addr;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Who must answer on a connection, and what is said to reach it.
#[derive(Debug, Clone)]
pub struct ExpectedPeer {
    /// Who must answer.
    pub identity: Expected,
    /// The name in the handshake (SNI), in clear on the wire; `None`: none is sent. It chooses nothing here: only
    /// `identity` decides who is believed.
    pub server_name: Option<ServerName<'static>>,
    /// The protocols offered, in order of preference. Default: `h2`, `http/1.1`.
    pub alpn: Vec<Vec<u8>>,
}

impl ExpectedPeer {
    /// Expects this, sends no name and offers `h2` and `http/1.1`.
    pub fn new(identity: Expected) -> Self {
        Self { identity, server_name: None, alpn: ALPN.iter().map(|protocol| protocol.to_vec()).collect() }
    }

    /// Expects the identity of an endpoint as discovery writes it: a SPIFFE ID, or a DNS name, which is also sent as
    /// server name, and without protocols, as Linkerd's proxies want it: they agree on none but their own.
    /// `server_name` overrides the name sent.
    ///
    /// # Errors
    /// `identity` is neither a SPIFFE ID nor a DNS name. A caller must then refuse the endpoint, not its identity.
    pub fn parse(identity: &str, server_name: Option<&str>) -> Result<Self, BadIdentity> {
        let identity: Identity = identity.parse()?;
        let own_name = if let Identity::Dns(name) = &identity { Some(name.as_str()) } else { None };
        let server_name = server_name.or(own_name).map(str::to_owned);
        let is_dns = matches!(identity, Identity::Dns(_));
        let peer = Self::new(Expected::Is(identity)).with_server_name(server_name.as_deref());
        Ok(if is_dns { peer.with_alpn([]) } else { peer })
    }

    /// The same, sending this name. One that no handshake can carry is left out: it proves nothing anyway.
    #[must_use]
    pub fn with_server_name(mut self, name: Option<&str>) -> Self {
        self.server_name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        self
    }

    /// The same, offering these protocols alone.
    #[must_use]
    pub fn with_alpn<'a>(mut self, protocols: impl IntoIterator<Item = &'a [u8]>) -> Self {
        self.alpn = protocols.into_iter().map(<[u8]>::to_vec).collect();
        self
    }
}

/// Opens TLS connections with the current identity. Cloning is reference counts.
#[derive(Debug, Clone)]
pub struct Connector {
    identities: Identities,
    handshake_max: Duration,
}

impl Connector {
    /// The default limit of a handshake: ten times what a distant peer needs, and not what a stalled one wants.
    pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

    /// Opens connections as whoever `identities` says that we are; a handshake may take `handshake_max`.
    pub fn new(identities: Identities, handshake_max: Duration) -> Self {
        Self { identities, handshake_max }
    }

    /// The identities it uses.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Does the handshake over `io`. Not one byte of a request may be written before it returns, and there is no
    /// way around it: on an error `io` is gone.
    ///
    /// # Errors
    /// We have no identity, the peer is not who is expected, it does not speak TLS 1.3, or it stalls.
    pub async fn connect<IO>(
        &self,
        io: IO,
        expected: &ExpectedPeer,
    ) -> Result<(TlsStream<IO>, Session), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let outcome = self.handshake(io, expected).await;
        self.identities.count_handshake("outbound", outcome.as_ref().err());
        outcome
    }

    async fn handshake<IO>(
        &self,
        io: IO,
        expected: &ExpectedPeer,
    ) -> Result<(TlsStream<IO>, Session), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let epoch = self.identities.demand()?;
        let config = epoch.client_for(&expected.identity, &expected.alpn);
        // An address is never sent as a server name, so this one means "no name".
        let unnamed = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
        let name = expected.server_name.clone().unwrap_or(unnamed);
        let handshake = TlsConnector::from(config).connect(name, io);
        let stream = within(self.handshake_max, handshake).await?;
        let session = Session::new(stream.get_ref().1, Side::Server, Some(expected.identity.clone()), epoch)?;
        match session.peer() {
            Some(_) => Ok((stream, session)),
            None => Err(TlsError::Protocol(rustls::Error::NoCertificatesPresented)),
        }
    }
}
