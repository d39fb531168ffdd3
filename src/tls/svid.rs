//! Floor 5: reads certificates strictly: what an X.509-SVID may say, and what it must.
//!
//! `rustls-webpki` checks the chain; it knows nothing of key usage, URI names or trust domains. This is the layer
//! above it: SPIFFE X509-SVID §2–5, and no more lenient than the book.

use crate::tls::identity::Identity;
use crate::tls::identity::SpiffeId;
use crate::tls::identity::TrustDomain;
use rustls::pki_types::UnixTime;
use std::fmt;
use std::time::Duration;
use std::time::SystemTime;
use x509_parser::extensions::GeneralName;
use x509_parser::extensions::KeyUsage;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;
use x509_parser::prelude::X509Version;
use x509_parser::public_key::PublicKey;

/// The fewest bits of an RSA key (NIST SP 800-57, and the least that rustls verifies with).
const RSA_BITS_MIN: usize = 2048;

/// Why a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// It is not well-formed, or holds what no honest issuer writes.
    Malformed(&'static str),
    /// Its names are not those of one workload.
    Names(String),
    /// Its key usage or constraints are not those of its place in the chain.
    Usage(&'static str),
    /// Its key is too weak, or of an unknown kind.
    WeakKey(&'static str),
    /// No anchors are known for the trust domain it names.
    UnknownDomain(String),
    /// No chain leads from it to an anchor of its own trust domain.
    UnknownIssuer,
    /// It or a certificate of its chain is no longer valid.
    Expired,
    /// It or a certificate of its chain is not yet valid.
    NotYetValid,
    /// It or a certificate of its chain is revoked, or nothing current says that it is not.
    Revoked,
    /// The chain breaks another rule of RFC 5280; the text says which.
    Chain(String),
    /// It is valid, and somebody else's.
    Unexpected {
        /// Who was expected.
        expected: String,
        /// Who answered.
        presented: String,
    },
}

impl Refusal {
    /// The reason as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Names(_) => "names",
            Self::Usage(_) => "usage",
            Self::WeakKey(_) => "weak_key",
            Self::UnknownDomain(_) => "unknown_trust_domain",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::Chain(_) => "chain",
            Self::Unexpected { .. } => "identity_mismatch",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "the certificate is malformed: {why}"),
            Self::Names(why) => write!(f, "the certificate does not name one workload: {why}"),
            Self::Usage(why) => write!(f, "the certificate may not be used so: {why}"),
            Self::WeakKey(why) => write!(f, "the certificate's key is refused: {why}"),
            Self::UnknownDomain(domain) => {
                write!(f, "no trust anchors are known for trust domain `{domain}`")
            }
            Self::UnknownIssuer => {
                f.write_str("no chain leads to a trust anchor of the certificate's trust domain")
            }
            Self::Expired => f.write_str("a certificate of the chain has expired"),
            Self::NotYetValid => f.write_str("a certificate of the chain is not yet valid"),
            Self::Revoked => {
                f.write_str("a certificate of the chain is revoked, or its revocation list is not current")
            }
            Self::Chain(why) => write!(f, "the certificate chain is refused: {why}"),
            Self::Unexpected { expected, presented } => {
                write!(f, "the peer is `{presented}`, and `{expected}` was expected")
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// Which names a leaf may prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// Exactly one URI, a SPIFFE ID with a path; key usage as SPIFFE demands. The default.
    #[default]
    Spiffe,
    /// What Linkerd accepts besides: DNS names, several names of which any may be the expected one, and no key
    /// usage at all. For meshes whose certificates come from `linkerd-identity`.
    Linkerd,
}

/// What a leaf says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its names; the first is *the* name. One, unless [`Names::Linkerd`] allows more.
    pub names: Vec<Identity>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Reads a leaf and holds it to the rules that need no chain.
///
/// # Errors
/// [`Refusal`] by the first rule it breaks.
pub fn read_leaf(der: &[u8], rules: Names) -> Result<Leaf, Refusal> {
    let cert = read(der)?;
    if is_ca(&cert)? {
        return Err(Refusal::Usage("a workload's certificate may not be a ca"));
    }
    match key_usage(&cert)? {
        None if rules == Names::Linkerd => {}
        None => return Err(Refusal::Usage("key usage is missing")),
        Some((_, usage)) if usage.key_cert_sign() || usage.crl_sign() => {
            return Err(Refusal::Usage(
                "a workload's certificate may not sign certificates or revocation lists",
            ));
        }
        Some((_, usage)) if !usage.digital_signature() => {
            return Err(Refusal::Usage("key usage lacks digitalSignature"));
        }
        Some((false, _)) if rules == Names::Spiffe => {
            return Err(Refusal::Usage("key usage is not critical"));
        }
        Some(_) => {}
    }
    check_key(&cert)?;
    let names = match rules {
        Names::Spiffe => vec![Identity::Spiffe(one_spiffe_id(&cert)?)],
        Names::Linkerd => usable_names(&cert)?,
    };
    Ok(Leaf {
        names,
        not_before: time(cert.validity().not_before),
        not_after: time(cert.validity().not_after),
    })
}

/// What a signing certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The trust domain it names, if it names one.
    pub domain: Option<TrustDomain>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Reads a signing certificate and holds it to the rules that need no chain.
///
/// # Errors
/// [`Refusal`] by the first rule it breaks.
pub fn read_signer(der: &[u8]) -> Result<Signer, Refusal> {
    let cert = read(der)?;
    if !is_ca(&cert)? {
        return Err(Refusal::Usage("a signing certificate is not a ca"));
    }
    if key_usage(&cert)?.is_none_or(|(_, usage)| !usage.key_cert_sign()) {
        return Err(Refusal::Usage("a signing certificate lacks keyCertSign"));
    }
    check_key(&cert)?;
    let domain = match uris(&cert)?.as_slice() {
        [] => None,
        [uri] => Some(domain_of_signer(uri)?),
        _ => return Err(Refusal::Names("a signing certificate has more than one uri".to_owned())),
    };
    let validity = cert.validity();
    Ok(Signer { domain, not_before: time(validity.not_before), not_after: time(validity.not_after) })
}

fn domain_of_signer(uri: &str) -> Result<TrustDomain, Refusal> {
    let id: SpiffeId = uri.parse().map_err(|bad| Refusal::Names(format!("signing certificate: {bad}")))?;
    if !id.path().is_empty() {
        return Err(Refusal::Names(format!("a signing certificate names a workload (`{id}`)")));
    }
    id.trust_domain().parse().map_err(|bad| Refusal::Names(format!("signing certificate: {bad}")))
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, Refusal> {
    let (rest, cert) =
        X509Certificate::from_der(der).map_err(|_| Refusal::Malformed("it is not der of x.509"))?;
    if !rest.is_empty() {
        return Err(Refusal::Malformed("bytes follow it"));
    }
    if cert.version() != X509Version::V3 {
        return Err(Refusal::Malformed("it is not x.509 version 3"));
    }
    // Duplicate extensions: two readers could each believe another one.
    cert.extensions_map().map_err(|_| Refusal::Malformed("an extension stands twice"))?;
    Ok(cert)
}

fn is_ca(cert: &X509Certificate<'_>) -> Result<bool, Refusal> {
    let constraints = cert.basic_constraints().map_err(|_| Refusal::Malformed("basic constraints"))?;
    Ok(constraints.is_some_and(|constraints| constraints.value.ca))
}

/// Key usage and whether it is critical.
fn key_usage(cert: &X509Certificate<'_>) -> Result<Option<(bool, KeyUsage)>, Refusal> {
    let usage = cert.key_usage().map_err(|_| Refusal::Malformed("key usage"))?;
    Ok(usage.map(|extension| (extension.critical, *extension.value)))
}

fn names<'a>(cert: &'a X509Certificate<'a>) -> Result<&'a [GeneralName<'a>], Refusal> {
    let names =
        cert.subject_alternative_name().map_err(|_| Refusal::Malformed("subject alternative names"))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    for name in names {
        match name {
            GeneralName::Invalid(..) => {
                return Err(Refusal::Malformed("a subject alternative name is unreadable"));
            }
            GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
                if !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
                    return Err(Refusal::Malformed(
                        "a subject alternative name has control or non-ascii bytes",
                    ));
                }
            }
            GeneralName::OtherName(..)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    Ok(names)
}

fn uris<'a>(cert: &'a X509Certificate<'a>) -> Result<Vec<&'a str>, Refusal> {
    let uri = |name: &'a GeneralName<'a>| if let GeneralName::URI(text) = name { Some(*text) } else { None };
    Ok(names(cert)?.iter().filter_map(uri).collect())
}

fn one_spiffe_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, Refusal> {
    match uris(cert)?.as_slice() {
        [] => Err(Refusal::Names("it has no uri".to_owned())),
        [uri] => workload_id(uri),
        _ => Err(Refusal::Names("it has more than one uri".to_owned())),
    }
}

fn workload_id(uri: &str) -> Result<SpiffeId, Refusal> {
    let id: SpiffeId = uri.parse().map_err(|bad| Refusal::Names(format!("{bad}")))?;
    if id.path().is_empty() {
        return Err(Refusal::Names(format!("`{id}` names a trust domain, not a workload")));
    }
    Ok(id)
}

/// The names Linkerd would use, in the certificate's order: DNS names and SPIFFE IDs, others skipped.
fn usable_names(cert: &X509Certificate<'_>) -> Result<Vec<Identity>, Refusal> {
    let usable = |name: &GeneralName<'_>| {
        if let GeneralName::URI(text) = name {
            workload_id(text).ok().map(Identity::Spiffe)
        } else if let GeneralName::DNSName(text) = name {
            text.parse().ok().map(Identity::Dns)
        } else {
            None
        }
    };
    let names: Vec<Identity> = names(cert)?.iter().filter_map(usable).collect();
    if names.is_empty() {
        return Err(Refusal::Names("it has no dns name and no spiffe id".to_owned()));
    }
    Ok(names)
}

/// Refuses keys that are weak or that nobody here can judge.
fn check_key(cert: &X509Certificate<'_>) -> Result<(), Refusal> {
    const ED25519: &str = "1.3.101.112";
    const CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];
    let spki = cert.public_key();
    if spki.algorithm.algorithm.to_id_string() == ED25519 {
        return Ok(());
    }
    let parsed = spki.parsed().map_err(|_| Refusal::Malformed("the public key"))?;
    if let PublicKey::RSA(rsa) = &parsed {
        return if rsa.key_size() >= RSA_BITS_MIN {
            Ok(())
        } else {
            Err(Refusal::WeakKey("rsa of fewer than 2048 bits"))
        };
    }
    if !matches!(parsed, PublicKey::EC(_)) {
        return Err(Refusal::WeakKey("neither ecdsa, ed25519 nor rsa"));
    }
    let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    match curve {
        Some(curve) if CURVES.contains(&curve.to_id_string().as_str()) => Ok(()),
        Some(_) => Err(Refusal::WeakKey("a curve other than p-256, p-384 and p-521")),
        None => Err(Refusal::WeakKey("a curve without a name")),
    }
}

fn time(at: x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(at.timestamp().unsigned_abs());
    let time = if at.timestamp() < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A rustls time as the standard library's.
pub(crate) fn system_time(at: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at.as_secs())).unwrap_or(SystemTime::UNIX_EPOCH)
}
