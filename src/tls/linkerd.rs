//! Floor 5: certificates from Linkerd's identity service (linkerd.md §7.1, §9.5).
//!
//! The key is made once and stays for all renewals; each request carries a signing request of it and the projected token of
//! the service account, read anew. The service must prove itself by the trust anchors; we cannot yet, and need not.

use crate::stdx::protobuf::Value;
use crate::stdx::protobuf::fields;
use crate::stdx::protobuf::put;
use crate::tls::bundle::TrustBundles;
use crate::tls::epoch::anonymous_client;
use crate::tls::epoch::system_wall;
use crate::tls::grpc::Call;
use crate::tls::identity::DnsIdentity;
use crate::tls::identity::Identity;
use crate::tls::identity::TrustDomain;
use crate::tls::issuer::Issuer;
use crate::tls::material::BadMaterial;
use crate::tls::material::Material;
use crate::tls::material::PrivateKey;
use crate::tls::material::certificates;
use crate::tls::svid::Names;
use crate::tls::verify::Expected;
use crate::tls::verify::ServerVerifier;
use crate::tls::verify::Verifier;
use crate::tls::verify::VerifySettings;
use futures::future::BoxFuture;
use rcgen::CertificateParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::KeyPair;
use rcgen::SanType;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::ServerName;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroize;
use zeroize::Zeroizing;

const PATH: &str = "/io.linkerd.proxy.identity.Identity/Certify";

/// The largest token that is read: projected tokens have some 1.5 KiB.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// Where Linkerd's identity service is and as whom we ask.
#[derive(Debug, Clone)]
pub struct LinkerdSettings {
    /// `host:port` of the service: `linkerd-identity-headless.linkerd.svc.cluster.local:8080`.
    pub address: String,
    /// The service's own identity, as `LINKERD2_PROXY_IDENTITY_SVC_NAME` has it.
    pub server: DnsIdentity,
    /// Our identity: `<sa>.<ns>.serviceaccount.identity.<l5d-ns>.<trust domain>`.
    pub identity: DnsIdentity,
    /// The projected token of our service account, audience `identity.l5d.io`.
    pub token_file: PathBuf,
    /// The trust anchors as PEM.
    pub trust_anchors: String,
}

/// Linkerd's identity service as an issuer; [`Renewing`](crate::tls::issuer::Renewing) asks it in time. Epochs of its
/// certificates need [`Names::Linkerd`].
pub struct LinkerdIdentity {
    settings: LinkerdSettings,
    domain: TrustDomain,
    anchors: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for LinkerdIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkerdIdentity").field("identity", &self.settings.identity).finish_non_exhaustive()
    }
}

impl LinkerdIdentity {
    /// Makes a key and reads the trust anchors.
    ///
    /// # Errors
    /// The identity is not written as Linkerd writes it, the anchors are unreadable, or no key can be made.
    pub fn new(settings: LinkerdSettings) -> Result<Self, BadMaterial> {
        let parts = settings.identity.linkerd().ok_or(BadMaterial::NoDomain)?;
        let domain = parts.trust_domain.parse().map_err(|_| BadMaterial::NoDomain)?;
        let anchors = certificates("trust roots", settings.trust_anchors.as_bytes())?;
        let mut pair = KeyPair::generate().map_err(failed)?;
        let key = Zeroizing::new(pair.serialize_der());
        pair.zeroize();
        let this = Self { settings, domain, anchors, key };
        this.bundles()?;
        Ok(this)
    }

    fn bundles(&self) -> Result<TrustBundles, BadMaterial> {
        let mut bundles = TrustBundles::new(self.domain.clone());
        for anchor in &self.anchors {
            bundles.add_to(anchor.clone(), &self.domain).map_err(BadMaterial::Root)?;
        }
        Ok(bundles)
    }

    /// A signing request: our name as CN and as the one DNS name, and nothing else, or the service refuses it.
    fn signing_request(&self) -> Result<Vec<u8>, BadMaterial> {
        let name = self.settings.identity.as_str();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::DnsName(name.to_owned().try_into().map_err(failed)?)];
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.as_slice()));
        let mut pair =
            KeyPair::from_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let request = params.serialize_request(&pair).map_err(failed)?.der().to_vec();
        pair.zeroize();
        Ok(request)
    }

    async fn certify(&self) -> Result<Material, BadMaterial> {
        let token = self.token().await?;
        let mut message = Zeroizing::new(Vec::new());
        put(&mut message, 1, self.settings.identity.as_str().as_bytes());
        put(&mut message, 2, &token);
        put(&mut message, 3, &self.signing_request()?);
        let at = |why: &dyn fmt::Display| {
            BadMaterial::Source(format!("linkerd identity at {}: {why}", self.settings.address))
        };
        let stream = TcpStream::connect(&self.settings.address).await.map_err(|error| at(&error))?;
        let settings = VerifySettings { names: Names::Linkerd, ..VerifySettings::default() };
        let verifier = Arc::new(Verifier::new(self.bundles()?, settings));
        let expected = Expected::Is(Identity::Dns(self.settings.server.clone()));
        let config = anonymous_client(Arc::new(ServerVerifier { verifier, expected }), system_wall())
            .map_err(|_| BadMaterial::BadKey)?;
        let name =
            ServerName::try_from(self.settings.server.as_str().to_owned()).map_err(|error| at(&error))?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| at(&error))?;
        let authority = self.settings.address.as_str();
        let mut call =
            Call::start(stream, authority, PATH, &[], &message).await.map_err(|ended| at(&ended))?;
        let answer = call.next().await.map_err(|ended| at(&ended))?;
        let chain = read(&answer).ok_or_else(|| at(&"the answer is no CertifyResponse"))?;
        let key = PrivateKey::new(PrivatePkcs8KeyDer::from(self.key.to_vec()).into());
        Ok(Material { chain, key, bundles: self.bundles()? })
    }

    async fn token(&self) -> Result<Zeroizing<Vec<u8>>, BadMaterial> {
        let path = self.settings.token_file.clone();
        let read = tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let mut token = Zeroizing::new(Vec::with_capacity(4096));
            std::fs::File::open(&path)?.take(TOKEN_BYTES_MAX).read_to_end(&mut token)?;
            Ok::<_, std::io::Error>(token)
        });
        let path = self.settings.token_file.display();
        match read.await {
            Ok(Ok(token)) if !token.is_empty() => Ok(token),
            Ok(Ok(_)) => Err(BadMaterial::Source(format!("token {path}: it is empty"))),
            Ok(Err(error)) => Err(BadMaterial::Source(format!("token {path}: {error}"))),
            Err(_) => Err(BadMaterial::Source(format!("token {path}: reading it was cut off"))),
        }
    }
}

/// The chain of a `CertifyResponse`. Its `valid_until` is not needed: the certificate says it, signed.
fn read(message: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let (mut leaf, mut rest) = (None, Vec::new());
    for field in fields(message) {
        match field.ok()? {
            (1, Value::Bytes(der)) if !der.is_empty() => leaf = Some(CertificateDer::from(der.to_vec())),
            (2, Value::Bytes(der)) => rest.push(CertificateDer::from(der.to_vec())),
            _ => {}
        }
    }
    let mut chain = vec![leaf?];
    chain.append(&mut rest);
    Some(chain)
}

impl Issuer for LinkerdIdentity {
    fn name(&self) -> &'static str {
        "linkerd"
    }

    fn issue(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        Box::pin(self.certify())
    }
}

fn failed(error: rcgen::Error) -> BadMaterial {
    BadMaterial::Source(format!("signing request: {error}"))
}
