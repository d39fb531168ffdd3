//! Floor 1: names a workload: a SPIFFE ID or a Linkerd DNS identity, read strictly.
//!
//! The parser is our own: a URL library would accept, repair or decode what SPIFFE forbids, and then two
//! programs would read two names in one certificate.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

const SCHEME: &str = "spiffe://";
const LINKERD_INFIX: &str = ".serviceaccount.identity.";

/// Why a text names no workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadIdentity {
    /// The text as given, cut to 300 characters and escaped.
    pub given: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl BadIdentity {
    fn new(given: &str, reason: &'static str) -> Self {
        Self { given: given.chars().take(300).flat_map(char::escape_default).collect(), reason }
    }
}

impl fmt::Display for BadIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { given, reason } = self;
        write!(f, "`{given}` is not an identity: {reason}; write `spiffe://domain/path` or a dns name")
    }
}

impl std::error::Error for BadIdentity {}

/// The name of a SPIFFE trust domain: letters `a-z`, digits, `.`, `-` and `_`, at most 255 bytes.
///
/// Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The longest name, in bytes (SPIFFE-ID §2.1).
    pub const BYTES_MAX: usize = 255;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(name: &str) -> Result<(), &'static str> {
        if name.is_empty() {
            return Err("the trust domain is empty");
        }
        if name.len() > Self::BYTES_MAX {
            return Err("the trust domain is longer than 255 bytes");
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if !name.bytes().all(allowed) {
            return Err("only `a-z`, `0-9`, `.`, `-` and `_` may stand in a trust domain");
        }
        Ok(())
    }
}

impl FromStr for TrustDomain {
    type Err = BadIdentity;

    /// Reads `example.org`, or the ID of the domain itself: `spiffe://example.org`.
    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let name = text.strip_prefix(SCHEME).unwrap_or(text);
        Self::check(name).map_err(|reason| BadIdentity::new(text, reason))?;
        Ok(Self(name.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>[/<segment>…]`, kept byte for byte.
///
/// Read by the rules of SPIFFE-ID §2: lower-case scheme, a [`TrustDomain`], segments of letters, digits, `.`,
/// `-` and `_` that are neither empty nor `.` nor `..`, no trailing slash, nothing encoded, no port, user,
/// query or fragment, at most 2048 bytes. Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: u16,
}

impl SpiffeId {
    /// The longest ID, in bytes: what every SPIFFE program must support and none may exceed (SPIFFE-ID §2.3).
    pub const BYTES_MAX: usize = 2048;

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of its trust domain.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..usize::from(self.path_at)).unwrap_or_default()
    }

    /// Its path with the leading slash; empty for the ID of a trust domain itself.
    pub fn path(&self) -> &str {
        self.text.get(usize::from(self.path_at)..).unwrap_or_default()
    }

    /// Whether it is in this domain.
    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        self.trust_domain() == domain.as_str()
    }

    /// `(namespace, service account)` of a path `/ns/<namespace>/sa/<service account>`, as Kubernetes meshes
    /// write it.
    pub fn kubernetes(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }

    fn check_path(path: &str) -> Result<(), &'static str> {
        let Some(rest) = path.strip_prefix('/') else {
            return if path.is_empty() { Ok(()) } else { Err("the path does not begin with `/`") };
        };
        for segment in rest.split('/') {
            match segment {
                "" => return Err("a segment of the path is empty, or the path ends with `/`"),
                "." | ".." => return Err("`.` and `..` may not be segments of the path"),
                _ => {}
            }
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if !segment.bytes().all(allowed) {
                return Err("only letters, digits, `.`, `-` and `_` may stand in the path");
            }
        }
        Ok(())
    }
}

impl FromStr for SpiffeId {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let bad = |reason| BadIdentity::new(text, reason);
        if text.len() > Self::BYTES_MAX {
            return Err(bad("it is longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad("it does not begin with `spiffe://`"))?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        TrustDomain::check(domain).map_err(bad)?;
        Self::check_path(path).map_err(bad)?;
        let path_at =
            u16::try_from(SCHEME.len() + domain.len()).map_err(|_| bad("it is longer than 2048 bytes"))?;
        Ok(Self { text: text.into(), path_at })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A DNS name that names a workload, in lower case: Linkerd's
/// `<sa>.<ns>.serviceaccount.identity.<l5d-ns>.<trust domain>`, or any other.
///
/// Labels of letters, digits, `-` and `_`, 1 to 63 bytes each, 253 together; no wildcard, no trailing dot, no
/// IP address. Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsIdentity(Arc<str>);

/// The parts of a Linkerd identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkerdParts<'a> {
    /// The Kubernetes service account; may contain dots.
    pub service_account: &'a str,
    /// The Kubernetes namespace.
    pub namespace: &'a str,
    /// The namespace of Linkerd's control plane.
    pub control_namespace: &'a str,
    /// The trust domain.
    pub trust_domain: &'a str,
}

impl DnsIdentity {
    /// The longest name, in bytes (RFC 1035, without the trailing dot).
    pub const BYTES_MAX: usize = 253;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts, if it is written as Linkerd writes identities.
    ///
    /// A service account may itself contain dots, so the *last* `.serviceaccount.identity.` divides: otherwise
    /// an account named `a.b.serviceaccount.identity.…` would pass for another namespace's.
    pub fn linkerd(&self) -> Option<LinkerdParts<'_>> {
        let (left, right) = self.0.rsplit_once(LINKERD_INFIX)?;
        let (service_account, namespace) = left.rsplit_once('.')?;
        let (control_namespace, trust_domain) = right.split_once('.')?;
        Some(LinkerdParts { service_account, namespace, control_namespace, trust_domain })
    }
}

impl FromStr for DnsIdentity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let bad = |reason| BadIdentity::new(text, reason);
        if text.len() > Self::BYTES_MAX {
            return Err(bad("it is longer than 253 bytes"));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        for label in text.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(bad("a label is empty or longer than 63 bytes"));
            }
            if !label.bytes().all(allowed) {
                return Err(bad("only letters, digits, `-` and `_` may stand in a label"));
            }
        }
        if text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return Err(bad("an address is not a name"));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for DnsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DnsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a workload. Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// `spiffe://…`
    Spiffe(SpiffeId),
    /// A DNS name.
    Dns(DnsIdentity),
}

impl Identity {
    /// The name as it stands in a certificate.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Spiffe(id) => id.as_str(),
            Self::Dns(name) => name.as_str(),
        }
    }

    /// The trust domain it names: always for SPIFFE, for DNS if it is written as Linkerd writes it.
    pub fn trust_domain(&self) -> Option<&str> {
        match self {
            Self::Spiffe(id) => Some(id.trust_domain()),
            Self::Dns(name) => name.linkerd().map(|parts| parts.trust_domain),
        }
    }

    /// `(namespace, service account)`, if the name says them.
    pub fn kubernetes(&self) -> Option<(&str, &str)> {
        match self {
            Self::Spiffe(id) => id.kubernetes(),
            Self::Dns(name) => name.linkerd().map(|parts| (parts.namespace, parts.service_account)),
        }
    }
}

impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        if text.contains(':') { text.parse().map(Self::Spiffe) } else { text.parse().map(Self::Dns) }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who the other end of a connection has proved to be. Cloning is reference counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its name.
    pub identity: Identity,
    /// The trust domain whose anchors vouch for it.
    pub trust_domain: TrustDomain,
    /// When its certificate ends.
    pub not_after: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, right: bool) {
        let parsed = text.parse::<SpiffeId>();
        assert_eq!(parsed.is_ok(), right, "{text:?}: {parsed:?}");
        if let Ok(id) = parsed {
            assert_eq!(id.to_string(), text);
            assert_eq!(format!("{SCHEME}{}{}", id.trust_domain(), id.path()), text);
            assert_eq!(text.parse::<Identity>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn spiffe_ids_are_read_by_the_book() {
        let longest_domain = "a".repeat(255);
        let path_for = |whole: usize| "a".repeat(whole - "spiffe://m/".len());
        for text in [
            "spiffe://mesh.example",
            "spiffe://mesh.example/a",
            "spiffe://mesh.example/.../a..b/_-",
            "spiffe://1.2.3.4/X",
            &format!("spiffe://{longest_domain}/x"),
            &format!("spiffe://m/{}", path_for(2048)),
        ] {
            check(text, true);
        }
        for text in [
            "",
            "spiffe",
            "spiffe:",
            "spiffe:/",
            "spiffe://",
            "spiffe:///x",
            "Spiffe://m/x",
            "spiffe:/m/x",
            "https://m/x",
            "spiffe://m/",
            "spiffe://m//x",
            "spiffe://m/./x",
            "spiffe://m/x/..",
            "spiffe://m/x/",
            "spiffe://M/x",
            "spiffe://m:80/x",
            "spiffe://u@m/x",
            "spiffe://m?x",
            "spiffe://m/x#f",
            "spiffe://m/%61",
            "spiffe://m/é",
            "spiffe://m/x\0",
            &format!("spiffe://{longest_domain}a/x"),
            &format!("spiffe://m/{}", path_for(2049)),
        ] {
            check(text, false);
        }
    }

    /// Every byte, once in the trust domain and once in the path: 512 values against the alphabets of the
    /// specification, written out.
    #[test]
    fn each_of_256_bytes_is_judged_in_both_places() {
        let domain = "abcdefghijklmnopqrstuvwxyz0123456789.-_";
        let path = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
        for byte in 0..=255u8 {
            let holds = |alphabet: &str| alphabet.bytes().any(|b| b == byte);
            let sweep = |before: &str, after: &str| {
                let bytes = [before.as_bytes(), &[byte], after.as_bytes()].concat();
                match std::str::from_utf8(&bytes) {
                    Ok(text) => text.parse::<SpiffeId>().is_ok_and(|id| id.to_string() == text),
                    Err(_) => false,
                }
            };
            // A slash ends the domain and begins a segment, so `m/x/p` and `/px` with it in are right too.
            assert_eq!(
                sweep("spiffe://m", "x/p"),
                holds(domain) || byte == b'/',
                "{byte} in the trust domain"
            );
            assert_eq!(sweep("spiffe://m/p", "x"), holds(path) || byte == b'/', "{byte} in the path");
        }
    }

    #[test]
    fn dns_identities_are_lower_cased_and_taken_apart() {
        let name: DnsIdentity =
            "Web.Emojivoto.serviceaccount.identity.linkerd.cluster.local".parse().unwrap();
        assert_eq!(name.as_str(), "web.emojivoto.serviceaccount.identity.linkerd.cluster.local");
        let parts = name.linkerd().unwrap();
        assert_eq!((parts.service_account, parts.namespace), ("web", "emojivoto"));
        assert_eq!((parts.control_namespace, parts.trust_domain), ("linkerd", "cluster.local"));
        let long = "a.".repeat(127);
        for bad in
            ["", ".", "a.", ".a", "a..b", "*.a", "a b", "1.2.3.4", "a/b", "é", "a\0b", &long, &"a".repeat(64)]
        {
            assert!(bad.parse::<DnsIdentity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_account_cannot_borrow_a_namespace_by_its_name() {
        let name = "admin.prod.serviceaccount.identity.l5d.td.evil.serviceaccount.identity.l5d.td";
        let id: Identity = name.parse().unwrap();
        assert_eq!(id.kubernetes(), Some(("evil", "admin.prod.serviceaccount.identity.l5d.td")));
        assert_eq!(id.trust_domain(), Some("td"));
    }

    #[test]
    fn kubernetes_paths_have_exactly_four_segments() {
        let parts = |text: &str| {
            text.parse::<SpiffeId>().unwrap().kubernetes().map(|(n, a)| (n.to_owned(), a.to_owned()))
        };
        assert_eq!(parts("spiffe://m/ns/prod/sa/web"), Some(("prod".to_owned(), "web".to_owned())));
        for other in [
            "spiffe://m/ns/prod/sa/web/x",
            "spiffe://m/ns/a/b/sa/web",
            "spiffe://m/x/ns/a/sa/b",
            "spiffe://m",
        ] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn a_fault_shows_the_value_escaped_and_cut() {
        let fault = "spiffe://m/\x1b[31m".parse::<SpiffeId>().unwrap_err().to_string();
        assert!(fault.contains("\\u{1b}") && !fault.contains('\x1b'), "{fault}");
        assert!("x/".repeat(5000).parse::<SpiffeId>().unwrap_err().to_string().len() < 500);
    }
}
