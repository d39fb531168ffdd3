//! Floor 5: a certificate authority inside the process, for development and tests. Not for production.
//!
//! Its keys live in the memory of whoever runs it, unguarded by hardware, audit or revocation; every workload in that
//! process could issue itself any identity. It says so once, at warning level, when it is made.

use crate::stdx::base64::encode_onto;
use crate::stdx::rng::Rng;
use crate::tls::bundle::TrustBundles;
use crate::tls::epoch::read_wall;
use crate::tls::epoch::system_wall;
use crate::tls::identity::Identity;
use crate::tls::identity::TrustDomain;
use crate::tls::issuer::Issuer;
use crate::tls::issuer::Renewing;
use crate::tls::material::BadMaterial;
use crate::tls::material::Material;
use crate::tls::material::PrivateKey;
use crate::tls::renew::RenewalSettings;
use futures::future::BoxFuture;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::time_provider::TimeProvider;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;
use tokio::sync::watch;
use zeroize::Zeroize;
use zeroize::Zeroizing;

/// How far the authority's own validity begins in the past: a clock set back by hours must not make it invalid.
const CA_BACKDATE: Duration = Duration::from_secs(24 * 3600);

type Signer = CertifiedIssuer<'static, KeyPair>;

/// How a development authority issues.
#[derive(Debug, Clone)]
pub struct AuthoritySettings {
    /// How long a workload's certificate is valid. Default 1 h: short, so that renewal is exercised.
    pub leaf_life: Duration,
    /// How long the authority's own certificates are valid. Default 30 days.
    pub ca_life: Duration,
    /// How far validity begins in the past, for clocks that lag. Default 60 s.
    pub backdate: Duration,
    /// The wall clock, which tests turn. Default: the system's.
    pub wall: Arc<dyn TimeProvider>,
}

impl Default for AuthoritySettings {
    fn default() -> Self {
        Self {
            leaf_life: Duration::from_secs(3600),
            ca_life: Duration::from_secs(30 * 24 * 3600),
            backdate: Duration::from_secs(60),
            wall: system_wall(),
        }
    }
}

/// A development certificate authority: a root, an intermediate that signs, and the roots it vouches for. **Not for
/// production.** Clones are one authority.
#[derive(Clone)]
pub struct Authority {
    domain: TrustDomain,
    settings: AuthoritySettings,
    inner: Arc<Mutex<Inner>>,
    changes: Arc<watch::Sender<u64>>,
}

struct Inner {
    /// The roots in the bundle, oldest first; the last one signs new intermediates.
    roots: Vec<Signer>,
    intermediate: Signer,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// A workload's certificate and key as PEM texts.
pub struct IssuedPem {
    /// The certificate and its intermediate.
    pub chain: String,
    /// The private key, PKCS#8. Wiped when dropped.
    pub key: Zeroizing<String>,
    /// The roots of the trust domain.
    pub roots: String,
}

impl fmt::Debug for IssuedPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedPem").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority for a trust domain, with new keys.
    ///
    /// # Errors
    /// The crypto provider makes no key.
    pub fn new(domain: TrustDomain, settings: AuthoritySettings) -> Result<Self, BadMaterial> {
        let root = new_root(&domain, &settings)?;
        Self::with_root(domain, settings, root)
    }

    /// The authority whose root certificate and key these PEM texts are.
    ///
    /// # Errors
    /// The texts are no certificate and its key, or not ones of `domain`.
    pub fn from_pem(
        domain: TrustDomain,
        settings: AuthoritySettings,
        root: &str,
        key: &str,
    ) -> Result<Self, BadMaterial> {
        let key = KeyPair::from_pem(key).map_err(failed)?;
        let certificates = crate::tls::material::certificates("trust roots", root.as_bytes())?;
        let Some(der) = certificates.first() else { return Err(BadMaterial::NoDomain) };
        TrustBundles::new(domain.clone()).add_to(der.clone(), &domain).map_err(BadMaterial::Root)?;
        // A root is its name, key and dates: signed anew with the same ones it vouches for the same certificates.
        let ends = crate::tls::svid::read_signer(der).map_err(BadMaterial::Root)?;
        let mut params = ca_params(&domain, "root", &settings, BasicConstraints::Unconstrained);
        params.not_before = ends.not_before.into();
        params.not_after = ends.not_after.into();
        let root = Signer::self_signed(params, key).map_err(failed)?;
        Self::with_root(domain, settings, root)
    }

    fn with_root(
        domain: TrustDomain,
        settings: AuthoritySettings,
        root: Signer,
    ) -> Result<Self, BadMaterial> {
        tracing::warn!(trust_domain = %domain, "development certificate authority in use: not for production");
        let intermediate = new_intermediate(&domain, &settings, &root)?;
        let inner = Arc::new(Mutex::new(Inner { roots: vec![root], intermediate }));
        Ok(Self { domain, settings, inner, changes: Arc::new(watch::Sender::new(0)) })
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Issues a certificate with a new P-256 key.
    ///
    /// # Errors
    /// The identity is of another trust domain, or the crypto provider makes no key.
    pub fn issue(&self, identity: &Identity) -> Result<Material, BadMaterial> {
        let inner = self.lock();
        let (leaf, key) = self.sign(&inner, identity)?;
        let mut bundles = TrustBundles::new(self.domain.clone());
        for root in &inner.roots {
            bundles.add_to(root.der().clone(), &self.domain).map_err(BadMaterial::Root)?;
        }
        let chain = vec![leaf.der().clone(), inner.intermediate.der().clone()];
        Ok(Material { chain, key: PrivateKey::new(take_key(key)), bundles })
    }

    /// Issues a certificate as PEM texts.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub fn issue_pem(&self, identity: &Identity) -> Result<IssuedPem, BadMaterial> {
        let inner = self.lock();
        let (leaf, mut key) = self.sign(&inner, identity)?;
        let chain = leaf.pem() + &inner.intermediate.pem();
        let roots = inner.roots.iter().map(|root| root.pem()).collect();
        let key_pem = pem_of(&key);
        key.zeroize();
        Ok(IssuedPem { chain, key: key_pem, roots })
    }

    /// The roots of the trust domain as PEM.
    pub fn roots_pem(&self) -> String {
        self.lock().roots.iter().map(|root| root.pem()).collect()
    }

    /// The key of the newest root as PEM, for who keeps an authority between runs. Whoever has it is the authority.
    pub fn root_key_pem(&self) -> Zeroizing<String> {
        self.lock().roots.last().map(|root| pem_of(root.key())).unwrap_or_default()
    }

    /// A source of certificates for a workload, renewed by themselves.
    pub fn source(
        &self,
        identity: Identity,
        settings: RenewalSettings,
        rng: Rng,
    ) -> Renewing<AuthorityIssuer> {
        let issuer = AuthorityIssuer { changes: self.changes.subscribe(), authority: self.clone(), identity };
        Renewing::new(issuer, settings, rng).with_wall(Arc::clone(&self.settings.wall))
    }

    /// Replaces the intermediate. Certificates of the old one stay valid.
    ///
    /// # Errors
    /// The crypto provider makes no key.
    pub fn rotate_intermediate(&self) -> Result<(), BadMaterial> {
        let mut inner = self.lock();
        if let Some(root) = inner.roots.last() {
            inner.intermediate = new_intermediate(&self.domain, &self.settings, root)?;
        }
        drop(inner);
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    /// First step of a change of roots: a new root joins the bundle and signs nothing yet. Wait until every workload
    /// has it before [`rotate_intermediate`](Self::rotate_intermediate) signs with it.
    ///
    /// # Errors
    /// The crypto provider makes no key.
    pub fn add_root(&self) -> Result<(), BadMaterial> {
        let root = new_root(&self.domain, &self.settings)?;
        self.lock().roots.push(root);
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Last step: only the newest root stays. Certificates under the others are refused from then on.
    pub fn drop_old_roots(&self) {
        let mut inner = self.lock();
        let newest = inner.roots.len().saturating_sub(1);
        inner.roots.drain(..newest);
        drop(inner);
        self.changes.send_modify(|n| *n += 1);
    }

    fn sign(&self, inner: &Inner, identity: &Identity) -> Result<(rcgen::Certificate, KeyPair), BadMaterial> {
        if identity.trust_domain().is_some_and(|named| named != self.domain.as_str()) {
            let (expected, given) = (format!("a workload of {}", self.domain), identity.to_string());
            return Err(BadMaterial::WrongIdentity { expected, given });
        }
        let name = identity.as_str().to_owned().try_into().map_err(failed)?;
        let mut params = params(&self.settings, self.settings.backdate, self.settings.leaf_life);
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = vec![match identity {
            Identity::Spiffe(_) => SanType::URI(name),
            Identity::Dns(_) => SanType::DnsName(name),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let leaf = params.signed_by(&key, &inner.intermediate).map_err(failed)?;
        Ok((leaf, key))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An [`Authority`] as the issuer of one workload's certificates.
#[derive(Debug)]
pub struct AuthorityIssuer {
    authority: Authority,
    identity: Identity,
    changes: watch::Receiver<u64>,
}

impl Issuer for AuthorityIssuer {
    fn name(&self) -> &'static str {
        "authority"
    }

    fn issue(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        self.changes.mark_unchanged();
        Box::pin(std::future::ready(self.authority.issue(&self.identity)))
    }

    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

fn params(settings: &AuthoritySettings, backdate: Duration, life: Duration) -> CertificateParams {
    let now = read_wall(&*settings.wall);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = now.checked_sub(backdate).unwrap_or(SystemTime::UNIX_EPOCH).into();
    params.not_after = now.checked_add(life).unwrap_or(now).into();
    params
}

fn ca_params(
    domain: &TrustDomain,
    role: &str,
    settings: &AuthoritySettings,
    constraints: BasicConstraints,
) -> CertificateParams {
    let mut params = params(settings, settings.backdate.max(CA_BACKDATE), settings.ca_life);
    params.distinguished_name.push(DnType::OrganizationName, "enmesh development, not for production");
    params.distinguished_name.push(DnType::CommonName, format!("{role} of {domain}"));
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names =
        format!("spiffe://{domain}").try_into().map(|name| vec![SanType::URI(name)]).unwrap_or_default();
    params
}

fn new_root(domain: &TrustDomain, settings: &AuthoritySettings) -> Result<Signer, BadMaterial> {
    let params = ca_params(domain, "root", settings, BasicConstraints::Unconstrained);
    Signer::self_signed(params, KeyPair::generate().map_err(failed)?).map_err(failed)
}

fn new_intermediate(
    domain: &TrustDomain,
    settings: &AuthoritySettings,
    root: &Signer,
) -> Result<Signer, BadMaterial> {
    let params = ca_params(domain, "issuer", settings, BasicConstraints::Constrained(0));
    Signer::signed_by(params, KeyPair::generate().map_err(failed)?, root).map_err(failed)
}

/// A key as PEM. Written here because a general writer leaves copies behind.
fn pem_of(key: &KeyPair) -> Zeroizing<String> {
    let der = Zeroizing::new(key.serialize_der());
    // Room for all of it at once: a growing text would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(der.len() * 2 + 80));
    text.push_str("-----BEGIN PRIVATE KEY-----\n");
    for line in der.chunks(48) {
        encode_onto(&mut text, line);
        text.push('\n');
    }
    text.push_str("-----END PRIVATE KEY-----\n");
    text
}

fn take_key(mut key: KeyPair) -> PrivateKeyDer<'static> {
    let der = PrivatePkcs8KeyDer::from(key.serialize_der());
    key.zeroize();
    der.into()
}

fn failed(error: rcgen::Error) -> BadMaterial {
    BadMaterial::Source(format!("authority: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_rcgen_writes_them_and_in_one_piece() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let theirs = key.serialize_pem().replace("\r\n", "\n");
            let ours = pem_of(&key);
            assert_eq!(ours.trim_end(), theirs.trim_end());
            assert!(ours.capacity() >= key.serialize_der().len() * 2, "it never grew");
        }
    }
}
