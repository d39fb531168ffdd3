//! Floor 5: decides whether a certificate proves who its holder is.
//!
//! The order is: the leaf by itself, the trust domain it names, that domain's anchors alone, the chain by
//! `rustls-webpki`, and each signing certificate of the chain that was found. On the client, who was expected.

use crate::tls::bundle::TrustBundle;
use crate::tls::bundle::TrustBundles;
use crate::tls::identity::Identity;
use crate::tls::identity::PeerIdentity;
use crate::tls::identity::TrustDomain;
use crate::tls::provider::crypto;
use crate::tls::svid::Leaf;
use crate::tls::svid::Names;
use crate::tls::svid::Refusal;
use crate::tls::svid::read_leaf;
use crate::tls::svid::read_signer;
use crate::tls::svid::system_time;
use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::OtherError;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use webpki::EndEntityCert;
use webpki::ExpirationPolicy;
use webpki::KeyUsage;
use webpki::RevocationCheckDepth;
use webpki::RevocationOptionsBuilder;
use webpki::UnknownStatusPolicy;
use webpki::VerifiedPath;

/// The most certificates a peer may send besides its own: real chains have one or two, overlapping rotations four.
const INTERMEDIATES_MAX: usize = 32;

/// How certificates are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifySettings {
    /// Which names a peer may prove. Default: SPIFFE IDs alone.
    pub names: Names,
    /// How far a peer's clock may differ from ours: validity is stretched by it at both ends. Default 0, because
    /// issuers already begin validity early; at most [`SKEW_MAX`](Self::SKEW_MAX).
    pub clock_skew: Duration,
    /// What becomes of a chain whose trust anchor itself has expired.
    pub expired_anchors: ExpiredAnchors,
}

impl VerifySettings {
    /// The largest clock skew: more would defeat short-lived certificates.
    pub const SKEW_MAX: Duration = Duration::from_secs(300);
}

/// What becomes of a chain whose trust anchor has expired. RFC 5280 leaves it open; OpenSSL and Go refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpiredAnchors {
    /// It is refused. The default.
    #[default]
    Refuse,
    /// It is accepted: an anchor is trusted because it is configured, not because of its date.
    Accept,
}

/// Which side of a handshake the holder of a certificate stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It accepted the connection.
    Server,
    /// It opened the connection.
    Client,
}

/// Who must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// This workload.
    Is(Identity),
    /// One of these workloads; of none, nobody.
    OneOf(Arc<[Identity]>),
    /// Any workload of this trust domain.
    MemberOf(TrustDomain),
    /// Any workload whose SPIFFE ID begins with this text, which names a trust domain and ends with a slash.
    Under(Arc<str>),
    /// Whoever one of these expects.
    AnyOf(Arc<[Expected]>),
}

impl Expected {
    /// The first of `names`, all vouched for by `domain`, that is expected.
    fn find<'a>(&self, names: &'a [Identity], domain: &TrustDomain) -> Option<&'a Identity> {
        match self {
            Self::Is(id) => names.iter().find(|name| *name == id),
            Self::OneOf(ids) => names.iter().find(|name| ids.contains(name)),
            Self::MemberOf(expected) => names.first().filter(|_| domain == expected),
            Self::Under(prefix) => names.iter().find(|name| is_under(name, prefix)),
            Self::AnyOf(all) => all.iter().find_map(|expected| expected.find(names, domain)),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Is(id) => write!(f, "{id}"),
            Self::OneOf(ids) => write!(f, "one of {} identities", ids.len()),
            Self::MemberOf(domain) => write!(f, "any workload of {domain}"),
            Self::Under(prefix) => write!(f, "any workload under {prefix}"),
            Self::AnyOf(all) => write!(f, "one of {} expectations", all.len()),
        }
    }
}

/// Whether a name is a SPIFFE ID that begins with a prefix of whole segments.
fn is_under(name: &Identity, prefix: &str) -> bool {
    let whole =
        prefix.strip_prefix("spiffe://").is_some_and(|rest| rest.ends_with('/') && !rest.starts_with('/'));
    whole && matches!(name, Identity::Spiffe(id) if id.as_str().starts_with(prefix))
}

/// Judges certificates against trust bundles. One is made for each identity epoch.
#[derive(Debug)]
pub struct Verifier {
    bundles: TrustBundles,
    settings: VerifySettings,
}

impl Verifier {
    /// A verifier that believes these bundles.
    pub fn new(bundles: TrustBundles, settings: VerifySettings) -> Self {
        let clock_skew = settings.clock_skew.min(VerifySettings::SKEW_MAX);
        Self { bundles, settings: VerifySettings { clock_skew, ..settings } }
    }

    /// The bundles it believes.
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// How far a peer's clock may differ from ours.
    pub(crate) fn clock_skew(&self) -> Duration {
        self.settings.clock_skew
    }

    /// Who the holder of this certificate is, if it proves it for `side` at `now`.
    ///
    /// `expected` is who must be at the other end; `None` believes any workload whose trust domain is known.
    ///
    /// # Errors
    /// [`Refusal`] with the first rule that is broken.
    pub fn verify(
        &self,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
        expected: Option<&Expected>,
    ) -> Result<PeerIdentity, Refusal> {
        check_count(intermediates)?;
        let leaf = read_leaf(leaf_der, self.settings.names)?;
        let domain = self.domain_of(&leaf)?;
        let bundle = self.bundles.of(&domain).filter(|bundle| !bundle.anchors().is_empty());
        let bundle = bundle.ok_or_else(|| Refusal::UnknownDomain(domain.to_string()))?;
        self.check_chain(leaf_der, intermediates, side, now, &domain, bundle)?;
        self.name(leaf, domain, expected)
    }

    /// Who the holder of a certificate is that [`verify`](Self::verify) has accepted before.
    pub(crate) fn name_verified(
        &self,
        leaf: &[u8],
        expected: Option<&Expected>,
    ) -> Result<PeerIdentity, Refusal> {
        let leaf = read_leaf(leaf, self.settings.names)?;
        let domain = self.domain_of(&leaf)?;
        self.name(leaf, domain, expected)
    }

    /// Chooses the expected name, or the first, of those that `domain` may vouch for.
    fn name(
        &self,
        leaf: Leaf,
        domain: TrustDomain,
        expected: Option<&Expected>,
    ) -> Result<PeerIdentity, Refusal> {
        let names: Vec<Identity> =
            leaf.names.into_iter().filter(|name| self.vouches(&domain, name)).collect();
        let found = match expected {
            Some(expected) => expected.find(&names, &domain),
            None => names.first(),
        };
        let Some(identity) = found.cloned() else {
            let presented = names.first().map(ToString::to_string).unwrap_or_default();
            let expected = expected.map(ToString::to_string).unwrap_or_default();
            return Err(Refusal::Unexpected { expected, presented });
        };
        Ok(PeerIdentity { identity, trust_domain: domain, not_after: leaf.not_after })
    }

    /// The trust domain that must vouch for a leaf: the one it names, or ours for a plain DNS name.
    fn domain_of(&self, leaf: &Leaf) -> Result<TrustDomain, Refusal> {
        let Some(named) = leaf.names.first().and_then(Identity::trust_domain) else {
            return Ok(self.bundles.local().clone());
        };
        named.parse().map_err(|_| Refusal::UnknownDomain(named.chars().take(255).collect()))
    }

    /// Whether anchors of `domain` may vouch for this name of a certificate with several.
    fn vouches(&self, domain: &TrustDomain, name: &Identity) -> bool {
        match name.trust_domain() {
            Some(named) => named == domain.as_str(),
            None => domain == self.bundles.local(),
        }
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
        domain: &TrustDomain,
        bundle: &TrustBundle,
    ) -> Result<(), Refusal> {
        let at = |time| self.check_chain_at(leaf, intermediates, side, time, domain, bundle);
        let skew = self.settings.clock_skew;
        let seconds = Duration::from_secs(now.as_secs());
        match at(now) {
            Err(Refusal::Expired) if !skew.is_zero() => {
                at(UnixTime::since_unix_epoch(seconds.saturating_sub(skew))).map_err(|_| Refusal::Expired)
            }
            Err(Refusal::NotYetValid) if !skew.is_zero() => {
                at(UnixTime::since_unix_epoch(seconds.saturating_add(skew))).map_err(|_| Refusal::NotYetValid)
            }
            judged => judged,
        }
    }

    fn check_chain_at(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
        domain: &TrustDomain,
        bundle: &TrustBundle,
    ) -> Result<(), Refusal> {
        let crls: Vec<_> = bundle.crls().iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            let options = options.with_depth(RevocationCheckDepth::Chain);
            let options = options.with_status_policy(UnknownStatusPolicy::Deny);
            options.with_expiration_policy(ExpirationPolicy::Enforce).build()
        });
        let usage = match side {
            Side::Server => KeyUsage::server_auth(),
            Side::Client => KeyUsage::client_auth(),
        };
        // webpki tries every path; ours is the last path's reason, told by the side.
        let why = RefCell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            self.check_path(path, now, domain, bundle).map_err(|refusal| {
                *why.borrow_mut() = Some(refusal);
                webpki::Error::UnknownIssuer
            })
        };
        let cert = EndEntityCert::try_from(leaf).map_err(refusal_of)?;
        cert.verify_for_usage(
            crypto().signature_verification_algorithms.all,
            bundle.anchors(),
            intermediates,
            now,
            usage,
            revocation,
            Some(&judge),
        )
        .map(|_| ())
        .map_err(|error| why.take().unwrap_or_else(|| refusal_of(error)))
    }

    /// The rules for signing certificates, which webpki does not know.
    fn check_path(
        &self,
        path: &VerifiedPath<'_>,
        now: UnixTime,
        domain: &TrustDomain,
        bundle: &TrustBundle,
    ) -> Result<(), Refusal> {
        for cert in path.intermediate_certificates() {
            let signer = read_signer(&cert.der())?;
            if let Some(named) = signer.domain.filter(|named| named != domain) {
                return Err(Refusal::Names(format!(
                    "a signing certificate of `{named}` signs for `{domain}`"
                )));
            }
        }
        if self.settings.expired_anchors == ExpiredAnchors::Accept {
            return Ok(());
        }
        let now = system_time(now);
        match bundle.validity(path.anchor()) {
            Some(anchor) if anchor.not_after < now => Err(Refusal::Expired),
            Some(anchor) if anchor.not_before > now => Err(Refusal::NotYetValid),
            Some(_) => Ok(()),
            None => Err(Refusal::UnknownIssuer),
        }
    }
}

/// Whether a peer sends no more certificates than are looked at.
pub(crate) fn check_count(intermediates: &[CertificateDer<'_>]) -> Result<(), Refusal> {
    match intermediates.len() > INTERMEDIATES_MAX {
        true => Err(Refusal::Malformed("more than 32 intermediate certificates")),
        false => Ok(()),
    }
}

/// Whether a handshake is signed with the key of its certificate.
pub(crate) fn check_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature(message, cert, signed, &crypto().signature_verification_algorithms)
}

/// The signatures that [`check_signature`] understands.
pub(crate) fn signature_schemes() -> Vec<SignatureScheme> {
    crypto().signature_verification_algorithms.supported_schemes()
}

pub(crate) fn refusal_of(error: webpki::Error) -> Refusal {
    use webpki::Error as E;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "webpki adds errors; what we do not name is named by it"
    )]
    match error {
        E::CertExpired { .. } => Refusal::Expired,
        E::CertNotValidYet { .. } => Refusal::NotYetValid,
        E::CertRevoked | E::UnknownRevocationStatus | E::CrlExpired { .. } => Refusal::Revoked,
        // An anchor of the right name and the wrong key is a stranger all the same.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => Refusal::UnknownIssuer,
        E::CaUsedAsEndEntity => Refusal::Usage("a workload's certificate may not be a ca"),
        E::EndEntityUsedAsCa => Refusal::Usage("a signing certificate is not a ca"),
        E::RequiredEkuNotFoundContext(_) => Refusal::Usage("extended key usage does not cover this side"),
        other => Refusal::Chain(format!("{other:?}")),
    }
}

/// A refusal as rustls wants it: the alert tells the peer the common kinds and no more, the error us the reason.
impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(match refusal {
            Refusal::Expired => CertificateError::Expired,
            Refusal::NotYetValid => CertificateError::NotValidYet,
            Refusal::UnknownIssuer => CertificateError::UnknownIssuer,
            Refusal::Revoked => CertificateError::Revoked,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

/// The refusal inside an error of rustls, if it is one.
pub(crate) fn refusal_in(error: &rustls::Error) -> Option<Refusal> {
    let rustls::Error::InvalidCertificate(error) = error else { return None };
    #[expect(clippy::wildcard_enum_match_arm, reason = "only these are made of refusals")]
    match error {
        CertificateError::Expired => Some(Refusal::Expired),
        CertificateError::NotValidYet => Some(Refusal::NotYetValid),
        CertificateError::UnknownIssuer => Some(Refusal::UnknownIssuer),
        CertificateError::Revoked => Some(Refusal::Revoked),
        CertificateError::Other(OtherError(other)) => other.downcast_ref::<Refusal>().cloned(),
        _ => None,
    }
}

/// Never reached: the configurations speak TLS 1.3 alone.
pub(crate) const NO_TLS12: rustls::Error =
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered);

/// Judges servers, for one connection: it knows who is expected.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) expected: Expected,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify(leaf, intermediates, Side::Server, now, Some(&self.expected))?;
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

/// Judges clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) verifier: Arc<Verifier>,
    /// Whether a client without a certificate is refused in the handshake.
    pub(crate) mandatory: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: the list would tell strangers whom we trust, and grow with each federated domain.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verifier.verify(leaf, intermediates, Side::Client, now, None)?;
        Ok(ClientCertVerified::assertion())
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
