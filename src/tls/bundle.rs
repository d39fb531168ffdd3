//! Floor 5: the trust anchors of each trust domain, kept apart.

use crate::tls::identity::TrustDomain;
use crate::tls::svid::Refusal;
use crate::tls::svid::read_signer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::TrustAnchor;
use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;
use webpki::CertRevocationList;
use webpki::OwnedCertRevocationList;

/// An anchor and when it is valid (which webpki does not look at).
pub(crate) struct Anchor {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

/// The anchors of one trust domain, and what it has revoked.
///
/// Without anchors it revokes the domain: nobody who names it is believed (SPIFFE Bundle §4).
#[derive(Default)]
pub struct TrustBundle {
    der: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    validity: Vec<Anchor>,
    crls: Vec<CertRevocationList<'static>>,
    crls_der: Vec<Vec<u8>>,
}

impl TrustBundle {
    /// The most anchors of one domain: a rotation needs two, a large federation some more.
    pub const ANCHORS_MAX: usize = 64;

    /// The most revocation lists of one domain.
    pub const CRLS_MAX: usize = 64;

    /// The anchors as certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.der
    }

    /// When the first of its anchors ends, for a warning in time; nothing without anchors.
    pub fn first_expiry(&self) -> Option<SystemTime> {
        self.validity.iter().map(|anchor| anchor.not_after).min()
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    pub(crate) fn crls(&self) -> &[CertRevocationList<'static>] {
        &self.crls
    }

    /// The validity of the anchor that webpki used.
    pub(crate) fn validity(&self, used: &TrustAnchor<'_>) -> Option<&Anchor> {
        let same = |anchor: &TrustAnchor<'_>| {
            anchor.subject == used.subject && anchor.subject_public_key_info == used.subject_public_key_info
        };
        let of_each = self.anchors.iter().zip(&self.validity);
        of_each.filter(|(anchor, _)| same(anchor)).map(|(_, validity)| validity).max_by_key(|v| v.not_after)
    }

    fn push(
        &mut self,
        der: CertificateDer<'static>,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<(), Refusal> {
        if self.der.contains(&der) {
            return Ok(());
        }
        if self.der.len() >= Self::ANCHORS_MAX {
            return Err(Refusal::Malformed("more than 64 trust anchors in one trust domain"));
        }
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|_| Refusal::Malformed("a trust anchor is unreadable"))?
            .to_owned();
        self.anchors.push(anchor);
        self.validity.push(Anchor { not_before, not_after });
        self.der.push(der);
        Ok(())
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("anchors", &self.der.len())
            .field("crls", &self.crls.len())
            .finish()
    }
}

/// Trust bundles by trust domain. Anchors of one domain never vouch for another.
#[derive(Debug)]
pub struct TrustBundles {
    local: TrustDomain,
    by_domain: BTreeMap<TrustDomain, TrustBundle>,
}

impl TrustBundles {
    /// The most trust domains.
    pub const DOMAINS_MAX: usize = 256;

    /// No anchors yet; `local` is our own trust domain.
    pub fn new(local: TrustDomain) -> Self {
        let by_domain = BTreeMap::from([(local.clone(), TrustBundle::default())]);
        Self { local, by_domain }
    }

    /// Our own trust domain.
    pub fn local(&self) -> &TrustDomain {
        &self.local
    }

    /// The bundle of a domain, if it is known.
    pub fn of(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        self.by_domain.get(domain)
    }

    /// The domains and their bundles, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &TrustBundle)> {
        self.by_domain.iter()
    }

    /// Makes a domain known, with no anchors if it is new: until some are added, nobody of it is believed.
    ///
    /// # Errors
    /// More than 256 trust domains.
    pub fn know(&mut self, domain: &TrustDomain) -> Result<(), Refusal> {
        if !self.by_domain.contains_key(domain) && self.by_domain.len() >= Self::DOMAINS_MAX {
            return Err(Refusal::Malformed("more than 256 trust domains"));
        }
        self.by_domain.entry(domain.clone()).or_default();
        Ok(())
    }

    /// Adds an anchor to the domain that it names, or to `otherwise` if it names none.
    ///
    /// # Errors
    /// The anchor is no signing certificate, is weak, names a workload, or is one too many.
    pub fn add(&mut self, der: CertificateDer<'static>, otherwise: &TrustDomain) -> Result<(), Refusal> {
        let signer = read_signer(&der)?;
        let domain = signer.domain.as_ref().unwrap_or(otherwise);
        self.know(domain)?;
        match self.by_domain.get_mut(domain) {
            Some(bundle) => bundle.push(der, signer.not_before, signer.not_after),
            None => Ok(()),
        }
    }

    /// Adds an anchor that must be of `domain`: one that names another is refused.
    ///
    /// # Errors
    /// As [`add`](Self::add), and an anchor that names another domain.
    pub fn add_to(&mut self, der: CertificateDer<'static>, domain: &TrustDomain) -> Result<(), Refusal> {
        match read_signer(&der)?.domain {
            Some(named) if named != *domain => {
                Err(Refusal::Names(format!("an anchor of `{named}` stands in the bundle of `{domain}`")))
            }
            _ => self.add(der, domain),
        }
    }

    /// Adds a revocation list (DER). From then on a certificate of this domain is believed only while a current
    /// list of its issuer says nothing against it.
    ///
    /// # Errors
    /// The list is unreadable, or is one too many.
    pub fn add_crl(&mut self, der: &[u8], domain: &TrustDomain) -> Result<(), Refusal> {
        let crl = OwnedCertRevocationList::from_der(der)
            .map_err(|_| Refusal::Malformed("a revocation list is unreadable or of an unsupported kind"))?;
        self.know(domain)?;
        let Some(bundle) = self.by_domain.get_mut(domain) else { return Ok(()) };
        if bundle.crls.len() >= TrustBundle::CRLS_MAX {
            return Err(Refusal::Malformed("more than 64 revocation lists in one trust domain"));
        }
        bundle.crls.push(crl.into());
        bundle.crls_der.push(der.to_vec());
        Ok(())
    }

    /// Whether the same anchors and revocation lists stand here for the same domains.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.local == other.local
            && self.by_domain.len() == other.by_domain.len()
            && self
                .by_domain
                .iter()
                .zip(&other.by_domain)
                .all(|((a, x), (b, y))| a == b && x.der == y.der && x.crls_der == y.crls_der)
    }
}
