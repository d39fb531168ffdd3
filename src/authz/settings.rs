//! Floor 2: the words of authorization: rules, who they are for, and what is done without one.

use crate::authz::network::Network;
use crate::profile::matching::Condition;
use crate::tls::identity::BadIdentity;
use crate::tls::identity::Identity;
use crate::tls::identity::TrustDomain;
use std::str::FromStr;
use std::sync::Arc;

/// Who may do what on a server. Rules are tried in order; the first that holds decides, else `otherwise`.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthzSettings {
    /// The rules.
    pub rules: Vec<RuleSettings>,
    /// What is done when no rule holds. Default: deny.
    pub otherwise: Action,
    /// Our own trust domain: what `*`, namespaces and service accounts mean, unless a rule names another. Without
    /// it they match nobody.
    pub trust_domain: Option<TrustDomain>,
    /// How many of the requests that are let in are taken in a second. Default: any number.
    pub rates: RateSettings,
    /// The name of Linkerd's `Server` that they are of, in metrics. Default: none.
    pub server: Option<Arc<str>>,
}

/// How many requests a second a server takes, in all and of each client; each limit may be used up at once and then
/// fills evenly. What is denied is not counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateSettings {
    /// The policy's name, in metrics.
    pub name: Arc<str>,
    /// All clients together.
    pub total: Option<u32>,
    /// Each client; those without an identity together.
    pub identity: Option<u32>,
    /// These clients together, instead.
    pub overrides: Vec<(u32, Vec<IdentityMatch>)>,
}

impl Default for AuthzSettings {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            otherwise: Action::Deny,
            trust_domain: None,
            rates: RateSettings::default(),
            server: None,
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleSettings {
    /// Its name, in refusals and metrics.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// Which callers it is for.
    pub clients: Clients,
    /// Which requests it is for. Callers and chance are no conditions here.
    pub request: Condition,
    /// Whether it may allow `CONNECT` and protocol upgrades, behind which no further rule is asked. Default: no.
    pub upgrades: bool,
    /// What it was written as, in metrics. Default: one of our own.
    pub origin: Origin,
}

/// What a rule was written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Origin {
    /// A rule of our own `Authorization`, or one in code.
    #[default]
    Own,
    /// None: it is what is done by default.
    Default,
    /// Linkerd's `ServerAuthorization`.
    ServerAuthorization,
    /// Linkerd's `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// SMI's `TrafficTarget`.
    TrafficTarget,
}

impl RuleSettings {
    /// A rule for all requests of these callers.
    pub fn new(name: impl Into<Arc<str>>, action: Action, clients: Clients) -> Self {
        Self {
            name: name.into(),
            action,
            clients,
            request: Condition::Always,
            upgrades: false,
            origin: Origin::Own,
        }
    }

    /// The same, written as this.
    #[must_use]
    pub fn written_as(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// The same for these requests alone.
    #[must_use]
    pub fn on(mut self, request: Condition) -> Self {
        self.request = request;
        self
    }
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The request goes on.
    Allow,
    /// The request is refused: 403, gRPC 7.
    Deny,
    /// The request goes on, and is counted as one that would have been refused.
    Audit,
    /// The request is for no declared route: 404, gRPC 5 or 12 as the caller's dialect has it.
    NotFound,
}

impl Action {
    /// A word for metrics and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
            Self::NotFound => "not_found",
        }
    }
}

/// Which callers a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Clients {
    /// Everybody, with or without a certificate.
    #[default]
    Anyone,
    /// All of these; an empty list is for everybody.
    All(Vec<Clients>),
    /// At least one of these; an empty list is for nobody.
    Any(Vec<Clients>),
    /// All but these.
    Not(Box<Clients>),
    /// Callers with a certificate that proves this.
    Identity(IdentityMatch),
    /// Callers whose address is in one of these networks.
    Networks(Vec<NetworkMatch>),
}

/// A network without parts of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkMatch {
    /// The network.
    pub cidr: Network,
    /// What is not meant.
    pub except: Vec<Network>,
}

/// What a caller's identity must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityMatch {
    /// Any identity of our own trust domain. A federated domain is only meant where it is named.
    AnyLocal,
    /// This one.
    Exact(Identity),
    /// DNS identities of our own trust domain that end with this text, which begins with a dot or is empty. SPIFFE
    /// IDs are never meant.
    DnsSuffix(Arc<str>),
    /// SPIFFE IDs that begin with this text, which ends with a slash.
    SpiffePrefix(Arc<str>),
    /// Any identity that anchors of this trust domain vouch for.
    Domain(TrustDomain),
    /// Any identity of this Kubernetes namespace, of our own trust domain.
    Namespace(Arc<str>),
    /// This Kubernetes service account, of our own trust domain.
    ServiceAccount {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

impl IdentityMatch {
    /// DNS identities under `suffix`, which may begin with a dot; an empty one means every DNS identity.
    pub fn dns_suffix(suffix: &str) -> Self {
        let bare = suffix.strip_prefix('.').unwrap_or(suffix).to_ascii_lowercase();
        Self::DnsSuffix(if bare.is_empty() { Arc::from("") } else { format!(".{bare}").into() })
    }
}

impl FromStr for IdentityMatch {
    type Err = BadIdentity;

    /// Reads `*`, `*.suffix`, `spiffe://domain/*`, `spiffe://domain/path/*`, or one identity. A `*` anywhere else is
    /// an error: nothing here is a pattern.
    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        if text == "*" {
            return Ok(Self::AnyLocal);
        }
        if let Some(suffix) = text.strip_prefix("*.") {
            let Identity::Dns(name) = suffix.parse()? else { return text.parse().map(Self::Exact) };
            return Ok(Self::dns_suffix(name.as_str()));
        }
        let Some(before) = text.strip_suffix("/*") else { return text.parse().map(Self::Exact) };
        let Identity::Spiffe(id) = before.parse()? else { return text.parse().map(Self::Exact) };
        if id.path().is_empty() {
            id.trust_domain().parse().map(Self::Domain)
        } else {
            Ok(Self::SpiffePrefix(format!("{id}/").into()))
        }
    }
}
