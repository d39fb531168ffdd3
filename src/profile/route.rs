//! Floor 1: a route: which requests, what becomes of them, and how their responses are judged.

use crate::profile::matching::{Condition, ResponseCondition, TextMatch};
use crate::profile::name::ServiceName;
use crate::profile::settings::{HashKey, Objective, RateLimit, RetrySettings, Share, Timeouts};
use std::sync::Arc;
use std::time::Duration;

/// One rule of a service. Rules are tried in order and the first whose condition holds is used.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Route {
    /// The name, which is the metric label `rt_route`. May repeat; empty only for the default route.
    pub name: Arc<str>,
    /// Which requests.
    pub condition: Condition,
    /// What becomes of them.
    pub action: Action,
    /// How responses are judged: the first class whose condition holds; none: by status (see `classify`).
    pub response_classes: Vec<ResponseClass>,
    /// How long.
    pub timeouts: Timeouts,
    /// Once more? `None`: never, beyond what a peer certainly did not process.
    pub retry: Option<RetrySettings>,
    /// What is broken on purpose.
    pub fault: Option<FaultSettings>,
    /// Rate limits of this route alone.
    pub rates: Vec<RateLimit>,
    /// What is hashed for this route, if not what the service says.
    pub hash: Vec<HashKey>,
    /// Cookie or header that pins a caller to one endpoint.
    pub session: Option<Session>,
    /// The objective.
    pub objective: Option<Objective>,
    /// Where the rule was written: `file#document:routes[0].matches[1]`.
    pub origin: Arc<str>,
}

impl Route {
    /// The backends that it names itself; none: those of its service.
    pub(crate) fn own_backends(&self) -> &[WeightedBackend] {
        match &self.action {
            Action::Forward(forward) => &forward.backends,
            Action::Redirect(_) | Action::Respond(_) => &[],
        }
    }
}

/// What becomes of a matched request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send it on.
    Forward(Forward),
    /// Tell the caller to ask elsewhere.
    Redirect(Redirect),
    /// Answer at once.
    Respond(Respond),
}

impl Default for Action {
    fn default() -> Self {
        Self::Forward(Forward::default())
    }
}

/// Where a request is sent on to, and what is changed on the way.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forward {
    /// The backends by weight; empty: the service itself.
    pub backends: Vec<WeightedBackend>,
    /// How one of several is chosen.
    pub choice: Choice,
    /// Changes, in order.
    pub filters: Vec<Filter>,
    /// Copies sent elsewhere, whose answers nobody sees.
    pub mirrors: Vec<Mirror>,
}

/// How one of several backends is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// By weight, each attempt anew.
    #[default]
    Weighted,
    /// The first that has a usable endpoint; another attempt goes to the next of them.
    FirstAvailable,
    /// By weight, and requests with the same key (the route's `hash`, else the balancer's) always to the same.
    Sticky,
}

/// A backend and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedBackend {
    /// Who.
    pub backend: Backend,
    /// How much; 0: never.
    pub weight: u32,
    /// Changes for this backend alone, after the route's.
    pub filters: Vec<Filter>,
}

/// A backend, or what stands for one that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A service, or a named part of it.
    Service {
        /// The service.
        name: ServiceName,
        /// The named part (Istio and Consul subsets).
        subset: Option<Arc<str>>,
    },
    /// A reference that leads nowhere: its share of requests gets this answer.
    Invalid {
        /// The HTTP status.
        status: u16,
        /// The gRPC code.
        grpc: u8,
        /// Why, for the operator.
        reason: Arc<str>,
    },
}

/// A change to a request or its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Change request headers.
    RequestHeaders(HeaderMods),
    /// Change response headers.
    ResponseHeaders(HeaderMods),
    /// Change path or host before it is sent.
    Rewrite(Rewrite),
    /// Answer browsers' cross-origin questions.
    Cors(Cors),
}

/// Changes to headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderMods {
    /// Set to this value, replacing all others.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// One value more.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Taken away.
    pub remove: Vec<Arc<str>>,
}

/// A change of path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PathRewrite {
    /// As it is.
    #[default]
    Keep,
    /// This path instead.
    Full(Arc<str>),
    /// This text instead of the matched path elements (Gateway API's table).
    PrefixElement(Arc<str>),
    /// This text instead of the matched text (Istio, Consul).
    PrefixString(Arc<str>),
    /// What the pattern finds, replaced by this substitution (`\1` or `$1`).
    Regex {
        /// The pattern.
        pattern: Arc<str>,
        /// The substitution.
        substitution: Arc<str>,
    },
}

/// A change of path and host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    /// The path.
    pub path: PathRewrite,
    /// The host.
    pub host: Option<Arc<str>>,
}

/// Where a redirect leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; `None`: as asked.
    pub scheme: Option<Arc<str>>,
    /// The host; `None`: as asked.
    pub host: Option<Arc<str>>,
    /// The port.
    pub port: RedirectPort,
    /// The path.
    pub path: PathRewrite,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The port of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RedirectPort {
    /// The scheme's own if a scheme is set, else the port asked (Gateway API).
    #[default]
    Default,
    /// This one.
    Port(u16),
    /// As in the request's authority (Istio `FROM_REQUEST_PORT`).
    FromRequest,
}

/// An answer without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    /// The HTTP status.
    pub status: u16,
    /// The gRPC code for gRPC callers.
    pub grpc: Option<u8>,
    /// The body.
    pub body: Arc<str>,
    /// Headers.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
}

/// A copy of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Who gets it.
    pub backend: Backend,
    /// How many of them.
    pub share: Share,
}

/// Cross-origin settings (Gateway API's field names).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// Origins that may ask: exact, or with a `*` in the host.
    pub allow_origins: Vec<TextMatch>,
    /// Methods.
    pub allow_methods: Vec<Arc<str>>,
    /// Request headers.
    pub allow_headers: Vec<Arc<str>>,
    /// Response headers a page may see.
    pub expose_headers: Vec<Arc<str>>,
    /// Whether credentials may be sent.
    pub allow_credentials: bool,
    /// How long the answer may be kept.
    pub max_age: Option<Duration>,
}

/// How a class of responses counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseClass {
    /// Which responses.
    pub condition: ResponseCondition,
    /// Whether they are failures.
    pub is_failure: bool,
}

/// What is broken on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultSettings {
    /// Held up for so long, for this share.
    pub delay: Option<(Duration, Share)>,
    /// Answered with this, for this share.
    pub abort: Option<(Abort, Share)>,
}

/// How a request is broken off on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Abort {
    /// With an HTTP status.
    Http(u16),
    /// With a gRPC code.
    Grpc(u8),
}

/// What pins a caller to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The cookie's or header's name.
    pub name: Arc<str>,
    /// Whether it is a header.
    pub header: bool,
    /// How long at most; `None`: as long as the caller keeps it.
    pub absolute: Option<Duration>,
    /// How long without a request.
    pub idle: Option<Duration>,
    /// Whether the cookie outlives the browser, up to `absolute`.
    pub permanent: bool,
}
