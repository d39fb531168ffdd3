//! Floor 2: Linkerd's policy documents as data.

use crate::authz::settings::Action;
use crate::authz::settings::Clients;
use crate::authz::settings::IdentityMatch;
use crate::authz::settings::NetworkMatch;
use crate::authz::settings::RateSettings;
use crate::profile::matching::Condition;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Namespace and name of an object.
pub type Key = (Arc<str>, Arc<str>);

/// A label selector: all of its parts must hold; an empty one selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// Labels that must be so.
    pub labels: Vec<(String, String)>,
    /// Expressions that must hold.
    pub expressions: Vec<Expression>,
}

/// One expression of a [`Selector`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// Whether the value must be one of `values` (or, with none, just be there), or must not.
    pub wanted: bool,
    /// The values; `None`: any.
    pub values: Option<Vec<String>>,
}

impl Selector {
    /// Whether it selects what has these labels.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let equal = |(key, value): &(String, String)| labels.get(key) == Some(value);
        self.labels.iter().all(equal) && self.expressions.iter().all(|expression| expression.holds(labels))
    }
}

impl Expression {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = match (labels.get(&self.key), &self.values) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(value), Some(values)) => values.contains(value),
        };
        found == self.wanted
    }
}

/// What is done where nothing else is said: Linkerd's words of `accessPolicy` and of the default inbound policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// `deny`.
    #[default]
    Deny,
    /// `audit`: allow, and note it.
    Audit,
    /// `all-unauthenticated`.
    AllUnauthenticated,
    /// `all-authenticated`.
    AllAuthenticated,
    /// `cluster-authenticated`.
    ClusterAuthenticated,
    /// `cluster-unauthenticated`.
    ClusterUnauthenticated,
}

impl Access {
    /// The words.
    pub const WORDS: [(&'static str, Self); 6] = [
        ("deny", Self::Deny),
        ("audit", Self::Audit),
        ("all-unauthenticated", Self::AllUnauthenticated),
        ("all-authenticated", Self::AllAuthenticated),
        ("cluster-authenticated", Self::ClusterAuthenticated),
        ("cluster-unauthenticated", Self::ClusterUnauthenticated),
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, access)| *access == self).map_or("deny", |(word, _)| word)
    }

    /// Whom it lets in, within the cluster's networks where it says so; `None`: nobody.
    pub(crate) fn clients(self, cluster: &[NetworkMatch]) -> Option<Clients> {
        let authenticated = || Clients::Identity(IdentityMatch::AnyLocal);
        let networks = || Clients::Networks(cluster.to_vec());
        match self {
            Self::Deny | Self::Audit => None,
            Self::AllUnauthenticated => Some(Clients::Anyone),
            Self::AllAuthenticated => Some(authenticated()),
            Self::ClusterAuthenticated => Some(Clients::All(vec![authenticated(), networks()])),
            Self::ClusterUnauthenticated => Some(networks()),
        }
    }

    /// What becomes of requests that no rule is for.
    pub(crate) fn otherwise(self) -> Action {
        if self == Self::Audit { Action::Audit } else { Action::Deny }
    }
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Its number.
    Number(u16),
    /// Its name in the workload's description.
    Name(String),
}

/// What a `Server` says is spoken on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speaks {
    /// `unknown`: it is detected.
    #[default]
    Unknown,
    /// `HTTP/1`.
    Http1,
    /// `HTTP/2`.
    Http2,
    /// `gRPC`.
    Grpc,
    /// `opaque`.
    Opaque,
    /// `TLS`, passed through.
    Tls,
}

impl Speaks {
    /// The words of `proxyProtocol`.
    pub const WORDS: [(&'static str, Self); 6] = [
        ("unknown", Self::Unknown),
        ("HTTP/1", Self::Http1),
        ("HTTP/2", Self::Http2),
        ("gRPC", Self::Grpc),
        ("opaque", Self::Opaque),
        ("TLS", Self::Tls),
    ];
}

/// A `Server`: one port of some workloads.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Which workloads.
    pub selector: Selector,
    /// The server's own labels, by which `ServerAuthorization` finds it.
    pub labels: BTreeMap<String, String>,
    /// Which port.
    pub port: Port,
    /// What is spoken.
    pub speaks: Speaks,
    /// What is done without a policy.
    pub access: Access,
}

/// What an authorization is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One `Server` of its namespace.
    Server(Arc<str>),
    /// Servers of its namespace by their labels.
    Servers(Selector),
    /// One route of its namespace.
    Route(RouteKind, Arc<str>),
    /// All servers of its namespace.
    Namespace,
}

/// The kinds of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// `HTTPRoute`.
    Http,
    /// `GRPCRoute`.
    Grpc,
}

/// What must be proved, by reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Required {
    /// A `MeshTLSAuthentication`.
    MeshTls(Key),
    /// A `NetworkAuthentication`.
    Network(Key),
    /// A service account itself.
    ServiceAccount(Key),
}

/// An `AuthorizationPolicy`, or a `ServerAuthorization`.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// What it is for.
    pub target: Target,
    /// What must be proved: all of it.
    pub required: Vec<Required>,
    /// Whom it lets in besides `required`: what a `ServerAuthorization` says itself.
    pub clients: Clients,
}

/// A route of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The names of the servers it belongs to.
    pub servers: Vec<Arc<str>>,
    /// Its matches, each with how special it is (the greater the more).
    pub matches: Vec<(Specificity, Condition)>,
    /// When it was made; older ones come first.
    pub created: Option<String>,
}

/// How special a match is, by Gateway API's order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Specificity {
    /// Exact before prefix before everything else.
    pub path: u8,
    /// The length of the path.
    pub length: usize,
    /// Whether a method is said.
    pub method: bool,
    /// How many headers.
    pub headers: usize,
    /// How many query parameters.
    pub queries: usize,
}

/// An `HTTPLocalRateLimitPolicy`: how many requests a second a server takes, in all and of each client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalRates {
    /// The name of the server.
    pub server: Arc<str>,
    /// The limits.
    pub rates: RateSettings,
}

/// All documents, by namespace and name, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Documents {
    /// `Server`; `None`: it is there and unusable.
    pub servers: BTreeMap<Key, Option<Server>>,
    /// `AuthorizationPolicy`.
    pub policies: BTreeMap<Key, Authorization>,
    /// `ServerAuthorization`.
    pub server_authorizations: BTreeMap<Key, Authorization>,
    /// `MeshTLSAuthentication`.
    pub mesh_tls: BTreeMap<Key, Vec<IdentityMatch>>,
    /// `NetworkAuthentication`.
    pub networks: BTreeMap<Key, Vec<NetworkMatch>>,
    /// `HTTPRoute` and `GRPCRoute`; `None`: it is there and unusable.
    pub routes: BTreeMap<(Arc<str>, RouteKind, Arc<str>), Option<Route>>,
    /// `HTTPLocalRateLimitPolicy`.
    pub rates: BTreeMap<Key, LocalRates>,
}
