//! Floor 6: puts mutual TLS between TCP and HTTP, at both ends: the wire knows nothing of identities, and TLS nothing
//! of HTTP.

use crate::connect::handshake::Established;
use crate::connect::handshake::Handshake;
use crate::connect::handshake::Offer;
use crate::connect::handshake::Protocol as ClientProtocol;
use crate::connect::handshake::retired_once;
use crate::discover::endpoint::Endpoint;
use crate::error::BoxError;
use crate::profile::matching::TextMatch;
use crate::profile::settings::ClientTls;
use crate::profile::settings::TlsMode;
use crate::serve::handshake::Accept;
use crate::serve::handshake::Accepted;
use crate::stdx::rng::Rng;
use crate::tls::acceptor::Accepted as Taken;
use crate::tls::acceptor::Acceptor;
use crate::tls::connector::Connector;
use crate::tls::connector::ExpectedPeer;
use crate::tls::identity::PeerIdentity;
use crate::tls::outside::OutsideConnector;
use crate::tls::outside::OutsideName;
use crate::tls::outside::Roots;
use crate::tls::prefixed::Prefixed;
use crate::tls::rotate::Identities;
use crate::tls::session::Protocol;
use crate::tls::session::Session;
use crate::tls::verify::Expected;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::future::select;
use pin_project::pin_project;
use rustls::pki_types::ServerName;
use std::io;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream as ServerStream;

/// A stream with TLS or without.
#[pin_project(project = Stream)]
#[derive(Debug)]
pub enum Either<P, T> {
    /// Without.
    Plain(#[pin] P),
    /// With.
    Tls(#[pin] T),
}

impl<P: AsyncRead, T: AsyncRead> AsyncRead for Either<P, T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.project() {
            Stream::Plain(io) => io.poll_read(cx, into),
            Stream::Tls(io) => io.poll_read(cx, into),
        }
    }
}

impl<P: AsyncWrite, T: AsyncWrite> AsyncWrite for Either<P, T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.project() {
            Stream::Plain(io) => io.poll_write(cx, bytes),
            Stream::Tls(io) => io.poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.project() {
            Stream::Plain(io) => io.poll_write_vectored(cx, slices),
            Stream::Tls(io) => io.poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.project() {
            Stream::Plain(io) => io.poll_flush(cx),
            Stream::Tls(io) => io.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.project() {
            Stream::Plain(io) => io.poll_shutdown(cx),
            Stream::Tls(io) => io.poll_shutdown(cx),
        }
    }
}

/// Waits until a connection must take no further request.
fn until_retired(identities: Identities, session: Session) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let why = identities.retired(&session, &Rng::thread()).await;
        let peer = session.peer().map(|peer| peer.identity.to_string());
        tracing::debug!(reason = why.label(), peer = peer.as_deref(), "connection retired");
        identities.count_retired(&why);
    })
}

/// How connections to one replica are secured: as its service's profile says now, and as this process can.
#[derive(Debug, Clone)]
pub struct Secure {
    connector: Option<Connector>,
    host: Arc<str>,
    tls: watch::Receiver<Arc<ClientTls>>,
    outside: Arc<Mutex<Option<Outside>>>,
}

/// What a server outside the mesh is connected to by, and the settings that it was made from.
type Outside = (Arc<ClientTls>, OutsideConnector);

impl Secure {
    /// Secures connections to a replica of the service at `host` by what `tls` shows; connections that were opened by
    /// other settings than it then shows are retired. Without a connector this process has no identity.
    pub fn new(
        connector: Option<Connector>,
        host: impl Into<Arc<str>>,
        tls: watch::Receiver<Arc<ClientTls>>,
    ) -> Self {
        Self { connector, host: host.into(), tls, outside: Arc::default() }
    }

    /// Whom to expect at `endpoint`; `None` for plaintext. What requires TLS and cannot have it is an error: nothing
    /// falls back.
    fn expected(
        &self,
        tls: &ClientTls,
        endpoint: &Endpoint,
    ) -> Result<Option<(&Connector, ExpectedPeer)>, BoxError> {
        let named = endpoint.identity.is_some() || !tls.identities.is_empty();
        let connector = match (tls.mode, &self.connector) {
            (TlsMode::Off, _) | (TlsMode::Auto, None) => return Ok(None),
            (TlsMode::Auto, Some(_)) if !named => return Ok(None),
            (TlsMode::Auto | TlsMode::Mesh | TlsMode::Simple, Some(connector)) => connector,
            (TlsMode::Mesh | TlsMode::Simple, None) => {
                return Err("the profile requires mutual tls, and this process has no identity source".into());
            }
        };
        let server_name = tls.sni.as_deref().or(endpoint.server_name.as_deref());
        let peer = match (tls.identities.as_slice(), &endpoint.identity) {
            ([], Some(identity)) => ExpectedPeer::parse(identity, server_name)?,
            ([], None) => {
                return Err("the profile requires mutual tls, and nothing names the peer's identity".into());
            }
            (all, _) => {
                let all: Result<Vec<_>, _> = all.iter().map(listed).collect();
                ExpectedPeer::new(Expected::AnyOf(all?.into())).with_server_name(server_name)
            }
        };
        Ok(Some((connector, peer)))
    }

    /// What connects to a server outside the mesh; made once for the same settings.
    async fn outside(&self, tls: &Arc<ClientTls>, endpoint: &Endpoint) -> Result<OutsideConnector, BoxError> {
        let known = || self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connector)) = known().as_ref().filter(|(made_from, _)| made_from == tls) {
            return Ok(connector.clone());
        }
        let host = tls.sni.as_deref().or(endpoint.server_name.as_deref()).unwrap_or(&self.host);
        let server_name = ServerName::try_from(host.to_owned())?;
        let names = match tls.identities.as_slice() {
            [] => vec![OutsideName::Host(server_name.clone())],
            all => all.iter().map(proved).collect::<Result<_, _>>()?,
        };
        let roots = match &tls.roots {
            Some(pem) => Roots::from_pem(pem.as_bytes())?,
            None => Roots::system().await?,
        };
        let connector = OutsideConnector::new(roots, names, server_name, Connector::HANDSHAKE_MAX)?;
        *known() = Some((Arc::clone(tls), connector.clone()));
        Ok(connector)
    }
}

/// One identity of a profile.
fn listed(text: &TextMatch) -> Result<Expected, BoxError> {
    match text {
        TextMatch::Exact(name) => Ok(Expected::Is(name.parse()?)),
        TextMatch::Prefix(prefix) if prefix.ends_with('/') => Ok(Expected::Under(Arc::clone(prefix))),
        TextMatch::Prefix(_) | TextMatch::Suffix(_) | TextMatch::Contains(_) | TextMatch::Regex(_) => {
            Err("identities of a peer are whole names, or prefixes that end with a slash".into())
        }
    }
}

/// One name of a server outside the mesh.
fn proved(text: &TextMatch) -> Result<OutsideName, BoxError> {
    match text {
        TextMatch::Exact(name) => Ok(OutsideName::parse(name)?),
        TextMatch::Prefix(_) | TextMatch::Suffix(_) | TextMatch::Contains(_) | TextMatch::Regex(_) => {
            Err("identities of a server outside the mesh are whole host names or uris".into())
        }
    }
}

/// The protocols that an offer names in a handshake.
fn alpn(offer: Offer) -> &'static [&'static [u8]] {
    match offer {
        Offer::Http1 => &[b"http/1.1"],
        Offer::Http2 => &[b"h2"],
        Offer::Either => &[b"h2", b"http/1.1"],
    }
}

fn spoken(protocol: Option<Protocol>) -> Option<ClientProtocol> {
    protocol.map(|protocol| match protocol {
        Protocol::Http1 => ClientProtocol::Http1,
        Protocol::Http2 => ClientProtocol::Http2,
    })
}

impl Handshake for Secure {
    type Io = Either<TcpStream, Box<ClientStream<TcpStream>>>;

    async fn handshake(
        &self,
        stream: TcpStream,
        endpoint: &Endpoint,
        offer: Offer,
    ) -> Result<Established<Self::Io>, BoxError> {
        let tls = Arc::clone(&self.tls.borrow());
        let used = Arc::clone(&tls);
        let changed = retired_once(self.tls.clone(), move |tls| *tls != used);
        if tls.mode == TlsMode::Simple {
            let connector = self.outside(&tls, endpoint).await?;
            let (stream, protocol) = connector.connect(stream, alpn(offer)).await?;
            let io = Either::Tls(Box::new(stream));
            return Ok(Established { io, protocol: spoken(protocol), secure: true, retired: Some(changed) });
        }
        let Some((connector, peer)) = self.expected(&tls, endpoint)? else {
            let io = Either::Plain(stream);
            return Ok(Established { io, protocol: None, secure: false, retired: Some(changed) });
        };
        let peer = if offer == Offer::Either { peer } else { peer.with_alpn(alpn(offer).iter().copied()) };
        let (stream, session) = connector.connect(stream, &peer).await?;
        let protocol = spoken(session.protocol());
        let retired = until_retired(connector.identities().clone(), session);
        let retired = select(retired, changed).map(|_| ()).boxed();
        let io = Either::Tls(Box::new(stream));
        Ok(Established { io, protocol, secure: true, retired: Some(retired) })
    }
}

/// Proves to a peer that is asked by its address who we are; it may be any workload of our own trust domain.
#[cfg(feature = "admin")]
pub(crate) fn prove(identities: Identities) -> crate::admin::dial::Prove {
    let connector = Connector::new(identities, Connector::HANDSHAKE_MAX);
    Arc::new(move |stream| {
        let connector = connector.clone();
        Box::pin(async move {
            let own = connector.identities().demand()?.identity().trust_domain.clone();
            let peer = ExpectedPeer::new(Expected::MemberOf(own)).with_alpn([&b"http/1.1"[..]]);
            let (stream, _) = connector.connect(stream, &peer).await?;
            Ok(Box::new(stream) as Box<dyn crate::admin::dial::Wire>)
        })
    })
}

/// How a server's connections are secured.
#[derive(Debug, Clone)]
pub struct SecureAccept(Acceptor);

impl SecureAccept {
    /// Accepts by `acceptor`.
    pub fn new(acceptor: Acceptor) -> Self {
        Self(acceptor)
    }
}

impl Accept for SecureAccept {
    type Io = Either<Prefixed<TcpStream>, Box<ServerStream<Prefixed<TcpStream>>>>;
    type Identity = PeerIdentity;

    async fn accept(
        &self,
        stream: TcpStream,
        _remote: SocketAddr,
    ) -> Result<Accepted<Self::Io, PeerIdentity>, BoxError> {
        match self.0.accept(stream).await? {
            Taken::Plain(io) => {
                Ok(Accepted { io: Either::Plain(io), http2: None, identity: None, name: None, retired: None })
            }
            Taken::Tls(io, session) => {
                let http2 = session.protocol().map(|protocol| protocol == Protocol::Http2);
                let identity = session.peer().cloned();
                let retired =
                    self.0.identities().map(|identities| until_retired(identities.clone(), session));
                let name = identity.as_ref().map(|peer| peer.identity.as_str().into());
                Ok(Accepted { io: Either::Tls(io), http2, identity, name, retired })
            }
        }
    }
}
