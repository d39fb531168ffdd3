//! Floor 5: a whole identity as it comes from a source: chain, key and trust bundles, before it is believed.

use crate::tls::bundle::TrustBundles;
use crate::tls::identity::Identity;
use crate::tls::identity::TrustDomain;
use crate::tls::svid::Names;
use crate::tls::svid::Refusal;
use crate::tls::svid::read_leaf;
use futures::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use zeroize::Zeroize;

/// A private key, DER-encoded. Its bytes are wiped when it is dropped and never shown.
pub struct PrivateKey(PrivateKeyDer<'static>);

impl PrivateKey {
    /// Takes a key over.
    pub fn new(der: PrivateKeyDer<'static>) -> Self {
        Self(der)
    }

    /// Reads the first private key of a PEM text: PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// There is none, or it is encrypted.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadMaterial> {
        PrivateKeyDer::from_pem_slice(pem).map(Self).map_err(|_| BadMaterial::Unreadable {
            part: "private key",
            why: "no unencrypted pkcs#8, pkcs#1 or sec1 key in pem".to_owned(),
        })
    }

    pub(crate) fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// A whole identity: our certificate chain, the key to it, and whom we believe.
#[derive(Debug)]
pub struct Material {
    /// Our certificate, then the intermediates up to (not including) an anchor.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate.
    pub key: PrivateKey,
    /// Whom we believe.
    pub bundles: TrustBundles,
}

impl Material {
    /// The most certificates of our own chain.
    pub const CHAIN_MAX: usize = 10;

    /// Reads PEM texts. Each root is filed under the trust domain it names, or else under `domain`; without a
    /// `domain` it is the one that our certificate names.
    ///
    /// # Errors
    /// A part is missing or unreadable, or a root is refused. Whether the parts fit each other is checked when
    /// the material is published.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        roots: &[u8],
        domain: Option<&TrustDomain>,
    ) -> Result<Self, BadMaterial> {
        let chain = certificates("certificate chain", chain)?;
        let domain = match domain {
            Some(domain) => domain.clone(),
            None => domain_of(&chain)?,
        };
        let mut bundles = TrustBundles::new(domain.clone());
        for root in certificates("trust roots", roots)? {
            bundles.add(root, &domain).map_err(BadMaterial::Root)?;
        }
        for crl in CertificateRevocationListDer::pem_slice_iter(roots) {
            let crl = crl.map_err(|error| BadMaterial::unreadable("trust roots", &error))?;
            bundles.add_crl(&crl, &domain).map_err(BadMaterial::Root)?;
        }
        Ok(Self { chain, key: PrivateKey::from_pem(key)?, bundles })
    }
}

/// Reads every certificate of a PEM text; at least one must be there.
pub(crate) fn certificates(
    part: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, BadMaterial> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(BadMaterial::Unreadable { part, why: "no certificate in pem".to_owned() })
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(BadMaterial::unreadable(part, &error)),
    }
}

fn domain_of(chain: &[CertificateDer<'static>]) -> Result<TrustDomain, BadMaterial> {
    let leaf =
        chain.first().map(|leaf| read_leaf(leaf, Names::Linkerd)).transpose().map_err(BadMaterial::Own)?;
    let named = leaf.iter().flat_map(|leaf| &leaf.names).find_map(Identity::trust_domain);
    named.and_then(|named| named.parse().ok()).ok_or(BadMaterial::NoDomain)
}

/// Why an identity was not taken over. The one before stays.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadMaterial {
    /// A part cannot be read.
    Unreadable {
        /// Which part.
        part: &'static str,
        /// Why.
        why: String,
    },
    /// Key and certificate are of different pairs, as when one of two files has been written.
    KeyMismatch,
    /// The key is of a kind that cannot sign here.
    BadKey,
    /// Our own certificate would be refused by others like us.
    Own(Refusal),
    /// A root or revocation list is refused.
    Root(Refusal),
    /// The certificate is another workload's.
    WrongIdentity {
        /// Whose it should be.
        expected: String,
        /// Whose it is.
        given: String,
    },
    /// The certificate names no trust domain, and none was configured.
    NoDomain,
    /// The source could not be asked, or did not answer; the text says why.
    Source(String),
}

impl BadMaterial {
    fn unreadable(part: &'static str, error: &rustls::pki_types::pem::Error) -> Self {
        // The error of the PEM reader may show a line of the file: only its kind is told.
        let why = match error {
            rustls::pki_types::pem::Error::MissingSectionEnd { .. } => "a pem section has no end",
            rustls::pki_types::pem::Error::Base64Decode(_) => "a pem section is not base64",
            _ => "it is not pem",
        };
        Self::Unreadable { part, why: why.to_owned() }
    }

    /// The reason as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::KeyMismatch => "key_mismatch",
            Self::BadKey => "bad_key",
            Self::Own(refusal) => refusal.label(),
            Self::Root(_) => "bad_root",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::NoDomain => "no_trust_domain",
            Self::Source(_) => "source",
        }
    }
}

impl fmt::Display for BadMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { part, why } => write!(f, "{part}: {why}"),
            Self::KeyMismatch => {
                f.write_str("the private key is not the certificate's; write both, then both are read")
            }
            Self::BadKey => {
                f.write_str("the private key is of no supported kind; use ecdsa p-256, p-384, ed25519 or rsa")
            }
            Self::Own(refusal) => write!(f, "our own certificate: {refusal}"),
            Self::Root(refusal) => write!(f, "trust roots: {refusal}"),
            Self::WrongIdentity { expected, given } => {
                write!(f, "the certificate is `{given}`'s and `{expected}`'s was expected")
            }
            Self::NoDomain => f.write_str("the certificate names no trust domain; configure one"),
            Self::Source(why) => write!(f, "identity source: {why}"),
        }
    }
}

impl std::error::Error for BadMaterial {}

/// Where identities come from: a stream of whole ones.
///
/// The caller asks again after each answer, be it good or bad; a source keeps its own pace and never answers in a
/// hot loop. When it is dropped between answers nothing is lost.
pub trait Source: Send {
    /// A word for logs and pages: `files`, `authority`, …
    fn name(&self) -> &'static str;

    /// Waits for the next identity.
    fn next(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>>;

    /// Hears that the last identity was taken over.
    fn taken(&mut self) {}

    /// Hears that the last identity was not taken over.
    fn refused(&mut self) {}
}

impl Source for Box<dyn Source> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        (**self).next()
    }

    fn taken(&mut self) {
        (**self).taken();
    }

    fn refused(&mut self) {
        (**self).refused();
    }
}

/// One identity that never changes. For tests and for certificates that outlive the process.
#[derive(Debug)]
pub struct Fixed(Option<Material>);

impl Fixed {
    /// A source of this one identity.
    pub fn new(material: Material) -> Self {
        Self(Some(material))
    }
}

impl Source for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        let material = self.0.take();
        Box::pin(async move {
            match material {
                Some(material) => Ok(material),
                None => std::future::pending().await,
            }
        })
    }
}

/// A source fed by the program itself: each identity sent through the channel is offered in turn.
#[derive(Debug)]
pub struct Fed(tokio::sync::mpsc::Receiver<Material>);

impl Fed {
    /// A source, and the sender that feeds it. Few identities wait: a sender waits for the ones before.
    pub fn new() -> (tokio::sync::mpsc::Sender<Material>, Self) {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        (sender, Self(receiver))
    }
}

impl Source for Fed {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        Box::pin(async {
            match self.0.recv().await {
                Some(material) => Ok(material),
                None => std::future::pending().await,
            }
        })
    }
}
