//! What the TLS tests share: a wall clock to turn, an authority, and pipes.

use enmesh::tls::acceptor::Acceptor;
use enmesh::tls::acceptor::Mode;
use enmesh::tls::authority::Authority;
use enmesh::tls::authority::AuthoritySettings;
use enmesh::tls::connector::Connector;
use enmesh::tls::epoch::EpochSettings;
use enmesh::tls::material::Source;
use enmesh::tls::rotate::Identities;
use enmesh::tls::rotate::rotation;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A wall clock that runs with the runtime's, and that tests may turn.
#[derive(Debug)]
pub(crate) struct Wall {
    start: tokio::time::Instant,
    /// The reading at the start; a test that turns the clock adds to it.
    pub(crate) offset: AtomicI64,
}

impl Wall {
    /// A clock that shows `at` seconds after the Unix epoch.
    #[expect(clippy::disallowed_methods, reason = "a test's clock follows the runtime's")]
    pub(crate) fn at(at: i64) -> Arc<Self> {
        Arc::new(Self { start: tokio::time::Instant::now(), offset: AtomicI64::new(at) })
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.offset.load(Ordering::SeqCst) + self.start.elapsed().as_secs() as i64;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0) as u64)))
    }
}

/// An authority for `mesh.example` by this clock.
pub(crate) fn authority(wall: &Arc<Wall>) -> Authority {
    let settings = AuthoritySettings { wall: Arc::clone(wall) as _, ..AuthoritySettings::default() };
    Authority::new("mesh.example".parse().unwrap(), settings).unwrap()
}

/// `spiffe://mesh.example/<name>`.
pub(crate) fn id(name: &str) -> enmesh::tls::identity::Identity {
    format!("spiffe://mesh.example/{name}").parse().unwrap()
}

/// Epoch settings by this clock.
pub(crate) fn settings(wall: &Arc<Wall>) -> EpochSettings {
    EpochSettings { wall: Arc::clone(wall) as _, ..EpochSettings::default() }
}

/// Identities kept by a task.
pub(crate) fn keep(source: impl Source + 'static, settings: EpochSettings) -> Identities {
    let (identities, task) = rotation(source, settings);
    #[expect(clippy::disallowed_methods, reason = "the test's runtime ends it")]
    tokio::spawn(task);
    identities
}

/// A connector with the default limits.
pub(crate) fn connector(identities: &Identities) -> Connector {
    Connector::new(identities.clone(), Connector::HANDSHAKE_MAX)
}

/// An acceptor with the default limits.
pub(crate) fn acceptor(identities: &Identities, mode: Mode) -> Acceptor {
    Acceptor::new(identities.clone(), mode, Acceptor::HANDSHAKE_MAX)
}

/// A client's verifier that believes every server.
#[derive(Debug)]
pub(crate) struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        enmesh::tls::provider::crypto().signature_verification_algorithms.supported_schemes()
    }
}
