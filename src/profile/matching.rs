//! Floor 1: the words that say which requests a rule is for.

use http::Method;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A condition on a request. Absent parts match everything; a `Condition` never widens by losing a part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Condition {
    /// Every request.
    #[default]
    Always,
    /// All of them; an empty list matches everything.
    All(Vec<Condition>),
    /// At least one of them; an empty list matches nothing.
    Any(Vec<Condition>),
    /// Not this one.
    Not(Box<Condition>),
    /// One of these methods, compared exactly (methods are case-sensitive).
    Method(Vec<Method>),
    /// The path, without the query and not percent-decoded.
    Path(PathMatch),
    /// A request header.
    Header(KeyMatch),
    /// A query parameter (percent-decoded name and value).
    Query(KeyMatch),
    /// The authority's host (any of them). The port is ignored.
    Host(Vec<HostMatch>),
    /// `http` or `https`, compared without case.
    Scheme(Arc<str>),
    /// The port the authority names, or the scheme's own port.
    Port(u16),
    /// A gRPC call (POST and a `/service/method` path).
    Grpc(GrpcMatch),
    /// Who calls.
    Caller(CallerMatch),
    /// This share of requests, drawn at random for each.
    Fraction(crate::profile::settings::Share),
}

impl Condition {
    /// Whether some part of it is a condition on the caller for which `is_asked` holds.
    pub fn asks_caller(&self, is_asked: &impl Fn(&CallerMatch) -> bool) -> bool {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().any(|part| part.asks_caller(is_asked)),
            Self::Not(part) => part.asks_caller(is_asked),
            Self::Caller(caller) => is_asked(caller),
            Self::Always
            | Self::Method(_)
            | Self::Path(_)
            | Self::Header(_)
            | Self::Query(_)
            | Self::Host(_)
            | Self::Scheme(_)
            | Self::Port(_)
            | Self::Grpc(_)
            | Self::Fraction(_) => false,
        }
    }
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathMatch {
    /// The comparison.
    pub kind: PathKind,
    /// What to compare with; for [`PathKind::Regex`] a pattern in `regex` syntax, matched against the whole path.
    pub value: Arc<str>,
    /// Whether ASCII case is ignored.
    pub ignore_case: bool,
}

impl PathMatch {
    /// A case-sensitive match.
    pub fn new(kind: PathKind, value: impl Into<Arc<str>>) -> Self {
        Self { kind, value: value.into(), ignore_case: false }
    }
}

/// The ways to compare a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// Equal, byte for byte.
    Exact,
    /// Begins with the text: `/foo` matches `/foobar` (Istio, Consul, App Mesh).
    PrefixString,
    /// Begins with the path elements: `/foo` matches `/foo` and `/foo/x`, not `/foobar`; a trailing `/` of the
    /// value is ignored (Gateway API).
    PrefixElement,
    /// The pattern matches the whole path, as if written `^(?:…)$`.
    Regex,
    /// The pattern matches from the start of the path, as if written `^(?:…)` (SMI).
    RegexPrefix,
    /// Ends with the text.
    Suffix,
    /// Contains the text.
    Contains,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TextMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Begins with it.
    Prefix(Arc<str>),
    /// Ends with it.
    Suffix(Arc<str>),
    /// Contains it.
    Contains(Arc<str>),
    /// The pattern matches the whole text, as if written `^(?:…)$`.
    Regex(Arc<str>),
}

/// A condition on a header or a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyMatch {
    /// The name. Header names are compared without case, parameter names with it.
    pub name: Arc<str>,
    /// The test on the value.
    pub value: ValueMatch,
    /// Whether the answer is turned round: then an absent key matches.
    pub invert: bool,
    /// Whether ASCII case of the value is ignored.
    pub ignore_case: bool,
    /// What to do with several values of one name.
    pub multi: Multi,
}

impl KeyMatch {
    /// A case-sensitive match that any of several values satisfies.
    pub fn new(name: impl Into<Arc<str>>, value: ValueMatch) -> Self {
        Self { name: name.into(), value, invert: false, ignore_case: false, multi: Multi::Any }
    }
}

/// The test on the value of a header or parameter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// The key is there, whatever its value.
    Present,
    /// The value compares so.
    Text(TextMatch),
    /// The value is a decimal integer in this range.
    Integer(RangeInclusive<i64>),
}

/// What to do with several values of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Multi {
    /// One of them must satisfy the test (Linkerd).
    Any,
    /// The first one is tested.
    First,
    /// They are joined with a comma first (Envoy, gRPC).
    Joined,
}

/// A host name, or a wildcard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// This name, compared without case; a trailing dot is ignored.
    Exact(Arc<str>),
    /// One or more labels before this suffix: `*.example.com` is `Suffix("example.com")` and does not match
    /// `example.com` itself.
    Suffix(Arc<str>),
}

/// A gRPC service and method; what is absent matches any.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct GrpcMatch {
    /// The full service name: `emojivoto.v1.VotingService`.
    pub service: Option<TextMatch>,
    /// The method name: `VoteDoughnut`.
    pub method: Option<TextMatch>,
}

/// Who calls; what is absent matches any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallerMatch {
    /// One of these namespaces.
    pub namespaces: Vec<Arc<str>>,
    /// All of these workload labels.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// One of these identities.
    pub identities: Vec<TextMatch>,
}

/// A condition on how a response ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseCondition {
    /// All of them; an empty list matches everything.
    All(Vec<ResponseCondition>),
    /// At least one of them; an empty list matches nothing.
    Any(Vec<ResponseCondition>),
    /// Not this one.
    Not(Box<ResponseCondition>),
    /// The HTTP status lies in this range.
    Status(RangeInclusive<u16>),
}
