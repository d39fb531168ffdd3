//! Floor 5: TLS to servers outside the mesh: they prove a host's name by public or given authorities, we prove nothing.
//!
//! TLS 1.3 alone, no resumption, no way back to plaintext: as inside the mesh. Revocation is not asked for.

use crate::tls::epoch::anonymous_client;
use crate::tls::epoch::system_wall;
use crate::tls::material::BadMaterial;
use crate::tls::material::certificates;
use crate::tls::provider::crypto;
use crate::tls::session::Protocol;
use crate::tls::session::TlsError;
use crate::tls::session::within;
use crate::tls::svid::Refusal;
use crate::tls::verify::NO_TLS12;
use crate::tls::verify::check_count;
use crate::tls::verify::check_signature;
use crate::tls::verify::refusal_of;
use crate::tls::verify::signature_schemes;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use webpki::EndEntityCert;
use webpki::KeyUsage;

/// The most certificates of a bundle: the public ones are some 150.
const ROOTS_MAX: usize = 1000;

/// The authorities that servers outside the mesh are verified by. Cloning is a reference count.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// The certificates of a PEM text.
    ///
    /// # Errors
    /// There is none, there are more than 1000, or one is unusable as an authority.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadMaterial> {
        let all = certificates("trust roots", pem)?;
        if all.len() > ROOTS_MAX {
            let why = format!("more than {ROOTS_MAX} certificates");
            return Err(BadMaterial::Unreadable { part: "trust roots", why });
        }
        let mut roots = RootCertStore::empty();
        for root in all {
            let unusable = |_| BadMaterial::Root(Refusal::Malformed("a trust root is unreadable"));
            roots.add(root).map_err(unusable)?;
        }
        Ok(Self(Arc::new(roots)))
    }

    /// The system's, read once in the life of the process (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured).
    ///
    /// # Errors
    /// The system has none that can be read; the next call looks again.
    pub async fn system() -> Result<Self, BadMaterial> {
        static SYSTEM: OnceCell<Roots> = OnceCell::const_new();
        let read = async {
            let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let found =
                found.map_err(|_| BadMaterial::Source("reading the system's roots was cut off".into()))?;
            let mut roots = RootCertStore::empty();
            // One that cannot be read is one authority less to believe.
            let (added, _) = roots.add_parsable_certificates(found.certs);
            match (added, found.errors.first()) {
                (1.., _) => Ok(Self(Arc::new(roots))),
                (_, Some(error)) => Err(BadMaterial::Source(format!("the system's roots: {error}"))),
                (_, None) => Err(BadMaterial::Source("the system has no roots".to_owned())),
            }
        };
        SYSTEM.get_or_try_init(|| read).await.cloned()
    }
}

/// What a server's certificate must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutsideName {
    /// This host or address, as RFC 6125 compares it: a `*` of the certificate stands for one label.
    Host(ServerName<'static>),
    /// Exactly this URI.
    Uri(Arc<str>),
}

impl OutsideName {
    /// A URI, if it has `://`, else a host or an address.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        if text.contains("://") {
            return Ok(Self::Uri(text.into()));
        }
        let name = ServerName::try_from(text.to_owned());
        name.map(Self::Host).map_err(|_| TlsError::NoIdentity(format!("`{text}` is no host name")))
    }
}

/// Opens TLS connections to one server outside the mesh.
#[derive(Debug, Clone)]
pub struct OutsideConnector {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    handshake_max: Duration,
}

impl OutsideConnector {
    /// Opens connections on which a server answers that proves one of `names` by `roots`. `server_name` is sent in the
    /// handshake, in clear. A handshake may take `handshake_max`.
    ///
    /// # Errors
    /// The crypto provider cannot speak TLS 1.3.
    pub fn new(
        roots: Roots,
        names: Vec<OutsideName>,
        server_name: ServerName<'static>,
        handshake_max: Duration,
    ) -> Result<Self, TlsError> {
        Self::with_wall(roots, names, server_name, handshake_max, system_wall())
    }

    /// The same, by another wall clock; for tests.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_wall(
        roots: Roots,
        names: Vec<OutsideName>,
        server_name: ServerName<'static>,
        handshake_max: Duration,
        wall: Arc<dyn TimeProvider>,
    ) -> Result<Self, TlsError> {
        let verifier = Arc::new(Verifier { roots, names });
        let config = anonymous_client(verifier, wall).map_err(TlsError::Protocol)?;
        Ok(Self { config: Arc::new(config), server_name, handshake_max })
    }

    /// Does the handshake over `io`, offering these protocols; says what is then spoken. On an error `io` is gone.
    ///
    /// # Errors
    /// The server does not prove one of the names, does not speak TLS 1.3, or stalls.
    pub async fn connect<IO>(
        &self,
        io: IO,
        alpn: &[&[u8]],
    ) -> Result<(TlsStream<IO>, Option<Protocol>), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let handshake = TlsConnector::from(Arc::new(config)).connect(self.server_name.clone(), io);
        let stream = within(self.handshake_max, handshake).await?;
        let protocol = Protocol::agreed(stream.get_ref().1);
        Ok((stream, protocol))
    }
}

/// Judges servers outside the mesh.
#[derive(Debug)]
struct Verifier {
    roots: Roots,
    names: Vec<OutsideName>,
}

impl Verifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        check_count(rest)?;
        let cert = EndEntityCert::try_from(leaf).map_err(refusal_of)?;
        let algorithms = crypto().signature_verification_algorithms.all;
        let usage = KeyUsage::server_auth();
        cert.verify_for_usage(algorithms, &self.roots.0.roots, rest, now, usage, None, None)
            .map_err(refusal_of)?;
        let proves = |name: &OutsideName| match name {
            OutsideName::Host(host) => cert.verify_is_valid_for_subject_name(host).is_ok(),
            OutsideName::Uri(uri) => cert.valid_uri_names().any(|name| name == &**uri),
        };
        if self.names.iter().any(proves) {
            return Ok(());
        }
        let shown = |name: &OutsideName| match name {
            OutsideName::Host(host) => host.to_str().into_owned(),
            OutsideName::Uri(uri) => uri.to_string(),
        };
        let expected: Vec<String> = self.names.iter().map(shown).collect();
        let presented = "another name".to_owned();
        Err(Refusal::Unexpected { expected: expected.join(" or "), presented })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature_schemes()
    }
}
