//! Floor 6: what the mesh knows, as data to be shown.

use crate::authz::layer::Gate;
use crate::authz::settings::Action;
use crate::mesh::directory::{Directory, Known, Target};
use crate::mesh::history::{Refusal, Update, UpdateView, millis};
use crate::policy::compile::Policy;
use crate::policy::limits::SharedLimits;
use crate::policy::route::{self, RouteEntry};
use crate::policy::told;
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use crate::retry::budget::Budget;
use crate::stdx::clock;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

pub use crate::mesh::replicas::{BalancerView, BreakerView, EndpointView, EventView};

/// What the mesh knows at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// This process's own service.
    pub name: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How many updates changed anything.
    pub generation: u64,
    /// Every service that is known, by name.
    pub services: Vec<ServiceState>,
    /// The last updates, the newest first; what each changed is worked out when it is written.
    #[serde(serialize_with = "told_all")]
    pub updates: Vec<Arc<Update>>,
    /// What was refused last, the newest first.
    pub refused: Vec<Refusal>,
    /// This process's certificate; `None`: it has no source of any.
    pub identity: Option<IdentityView>,
    /// Who may do what on this process's servers; `None`: everybody everything.
    pub authorization: Option<AuthorizationView>,
}

/// Who may do what.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AuthorizationView {
    /// The rules, in order, and what is done without one.
    pub rules: Vec<RuleView>,
    /// What is wrong with the newest policy; the last good one is in use.
    pub faults: Vec<String>,
    /// How many policies were refused.
    pub refused: u64,
    /// How long ago the policy's source was heard, in milliseconds.
    pub age_ms: u64,
}

/// One rule of authorization.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RuleView {
    /// Its name, as it stands in metrics and refusals.
    pub name: String,
    /// `allow`, `deny`, `audit` or `not_found`.
    pub action: &'static str,
    /// How many requests it kept out, or would have if it were not on trial (`audit`), since the policy is in use.
    pub refusals: u64,
}

impl AuthorizationView {
    pub(crate) fn of(gate: &Gate) -> Self {
        let state = gate.state();
        let rule = |((name, action), refusals): (&(Arc<str>, Action), &u64)| RuleView {
            name: name.to_string(),
            action: action.as_str(),
            refusals: *refusals,
        };
        Self {
            rules: state.rules.iter().zip(&state.refusals).map(rule).collect(),
            faults: state.faults.iter().map(ToString::to_string).collect(),
            refused: state.refused,
            age_ms: u64::try_from(state.age.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// One service.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ServiceState {
    /// Its short name.
    pub name: String,
    /// The label `dst`, which stands in metrics and statistics.
    pub label: Option<String>,
    /// Whether it is this process's own.
    pub own: bool,
    /// Where its profile was written; `None`: nobody gave one.
    pub profile: Option<String>,
    /// What its profile says besides routes: timeouts, retries, balancer, breaker, limits, TLS.
    pub settings: Value,
    /// Its routes, in order.
    pub routes: Vec<RouteState>,
    /// How much its retry budget holds, in whole retries.
    pub retry_budget_level: Option<u64>,
    /// The rules of its retry budget.
    pub retry_budget: Option<Value>,
    /// The limit of what this process sends to it at once, if it has one.
    pub limit: Option<LimitView>,
    /// The same of what arrives, if it is this process's own.
    pub inbound_limit: Option<LimitView>,
    /// How its replicas are chosen; `None`: nothing is sent to it.
    pub balancer: Option<BalancerView>,
    /// Its replicas.
    pub endpoints: Vec<EndpointView>,
    /// What is wrong with the newest input; the last good one is in use.
    pub faults: Vec<String>,
}

/// A limit of requests at once.
#[derive(Debug, Clone, Copy, Serialize)]
#[non_exhaustive]
pub struct LimitView {
    /// How many may be in flight now.
    pub limit: u32,
    /// How many are.
    pub in_flight: u32,
    /// How many wait for a place.
    pub waiting: u32,
}

impl LimitView {
    fn of(limits: &SharedLimits) -> Option<Self> {
        let places = &limits.places.as_ref()?.limit;
        Some(Self { limit: places.limit(), in_flight: places.in_flight(), waiting: places.waiting() })
    }
}

/// One route.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RouteState {
    /// Its name; empty for the default route.
    pub name: String,
    /// Whether failures are tried again, beyond what was certainly not processed.
    pub retries: bool,
    /// The limit of a whole call.
    pub timeout: Option<Duration>,
    /// All its timeouts, as `enmesh explain` writes them.
    pub timeouts: Value,
    /// How it is tried again, as `enmesh explain` writes it; `null` if it is not.
    pub retry: Value,
    /// How much the budget that bounds its retries holds.
    pub retry_budget_level: Option<u64>,
    /// What is broken on purpose, as `enmesh explain` writes it; `null` if nothing is.
    pub fault: Value,
    /// Where its requests go, with shares of 1.
    pub backends: Vec<BackendState>,
}

/// A backend of a route.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BackendState {
    /// The service, or why there is none.
    pub service: String,
    /// Its share of the route's requests, 0 to 1.
    pub share: f64,
    /// What is answered for it, if it cannot be.
    pub status: Option<u16>,
}

/// This process's certificate.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct IdentityView {
    /// The name that it proves; `None` before the first certificate.
    pub identity: Option<String>,
    /// How many certificates this process has had.
    pub epoch: u64,
    /// When it begins to be valid, in milliseconds since the Unix epoch.
    pub not_before_ms: Option<u64>,
    /// When it ends, likewise.
    pub not_after_ms: Option<u64>,
    /// `calm`, `low` (at most 30 % of its life is left), `critical` (10 %) or `expired`.
    pub alarm: &'static str,
    /// Why the last one was not taken over.
    pub fault: Option<String>,
    /// How many were not taken over.
    pub refused: u64,
}

impl Inspection {
    pub(crate) fn of(directory: &Directory, identity: Option<IdentityView>, gate: Option<&Gate>) -> Self {
        let (own, domain) = directory.own();
        let short = own.short(domain);
        let services = directory.known().map(|(name, known)| {
            let inbound = (*name == short).then(|| directory.inbound().load_full());
            ServiceState::of(name, known, inbound.as_deref(), domain)
        });
        Self {
            authorization: gate.map(AuthorizationView::of),
            name: own.to_string(),
            at_ms: millis(clock::wall()),
            generation: directory.generation(),
            services: services.collect(),
            updates: directory.history().updates(),
            refused: directory.history().refusals(),
            identity,
        }
    }
}

impl ServiceState {
    fn of(name: &ServiceName, known: &Known, inbound: Option<&Policy<()>>, domain: &str) -> Self {
        let policy = known.service().map(|service| service.policy.load_full());
        let label = |target: &Target| parsed(target.service(), name);
        let routes = match (&policy, inbound) {
            (Some(policy), _) => routes(policy, &label, domain),
            (None, Some(policy)) => routes(policy, &|()| name.clone(), domain),
            (None, None) => Vec::new(),
        };
        let budget = policy.as_ref().map(|policy| policy.budget());
        let faults = known.profile_faults.iter().chain(known.endpoint_faults.iter());
        let state = known.target().map(|target| (target, target.inspect()));
        Self {
            name: name.to_string(),
            label: policy.as_ref().map(|policy| policy.service().to_string()),
            own: inbound.is_some(),
            profile: known.profile.as_ref().map(|profile| profile.origin.to_string()),
            settings: known.profile.as_ref().map(settings).unwrap_or_default(),
            routes,
            retry_budget_level: budget.map(|budget| level(budget)),
            retry_budget: budget.map(|budget| told::budget(budget.settings())),
            limit: policy.as_ref().and_then(|policy| LimitView::of(policy.limits())),
            inbound_limit: inbound.and_then(|policy| LimitView::of(policy.limits())),
            balancer: state.as_ref().map(|(target, state)| BalancerView::of(target, state)),
            endpoints: state
                .iter()
                .flat_map(|(_, state)| state.endpoints.iter().map(EndpointView::of))
                .collect(),
            faults: faults.map(ToString::to_string).collect(),
        }
    }
}

impl RouteState {
    fn of<T>(entry: &RouteEntry<T>, naming: &dyn Fn(&T) -> ServiceName, domain: &str) -> Self {
        let (policy, total) =
            (&entry.policy, entry.weights().iter().map(|weight| u64::from(*weight)).sum::<u64>());
        let backend = |(target, weight): (&route::Target<T>, &u32)| {
            let share = if total == 0 { 0.0 } else { f64::from(*weight) / total as f64 };
            match target {
                route::Target::Service(target, _) => {
                    BackendState { service: naming(target).short(domain).to_string(), share, status: None }
                }
                route::Target::Invalid { status, reason, .. } => {
                    BackendState { service: reason.to_string(), share, status: Some(*status) }
                }
            }
        };
        Self {
            name: policy.name.to_string(),
            retries: policy.retry_is_asked,
            timeout: policy.timeouts.request.or(policy.timeouts.response_headers),
            timeouts: told::timeouts(policy),
            retry: told::retry(policy).unwrap_or_default(),
            retry_budget_level: policy.retry.as_ref().map(|retry| level(retry.budget())),
            fault: policy.faults().map(|faults| told::fault(faults.settings())).unwrap_or_default(),
            backends: entry.backends().iter().zip(entry.weights()).map(backend).collect(),
        }
    }
}

#[cfg(any(feature = "tls", feature = "ring"))]
impl IdentityView {
    pub(crate) fn of(identities: &crate::tls::rotate::Identities) -> Self {
        let (status, epoch) = (identities.status(), identities.current());
        Self {
            identity: status.identity,
            epoch: status.epoch,
            not_before_ms: epoch.map(|epoch| millis(epoch.not_before())),
            not_after_ms: status.not_after.map(millis),
            alarm: status.alarm.as_str(),
            fault: status.fault,
            refused: status.refused,
        }
    }
}

fn routes<T>(policy: &Policy<T>, naming: &dyn Fn(&T) -> ServiceName, domain: &str) -> Vec<RouteState> {
    let all = policy.routes().iter().chain(policy.default_route());
    all.map(|entry| RouteState::of(entry, naming, domain)).collect()
}

/// The name that a label is made of.
pub(crate) fn parsed(label: &str, otherwise: &ServiceName) -> ServiceName {
    label.parse().unwrap_or_else(|_| otherwise.clone())
}

fn level(budget: &Budget) -> u64 {
    budget.level(clock::now())
}

/// What a profile says besides its routes.
fn settings(profile: &Arc<ServiceProfile>) -> Value {
    let mut spec = profile.to_json().get_mut("spec").map(Value::take).unwrap_or_default();
    if let Value::Object(fields) = &mut spec {
        fields.shift_remove("routes");
    }
    spec
}

fn told_all<S: Serializer>(updates: &[Arc<Update>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(updates.iter().map(|update| -> Arc<UpdateView> { update.told() }).map(Told))
}

struct Told(Arc<UpdateView>);

impl Serialize for Told {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
