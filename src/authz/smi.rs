//! Floor 2: reads SMI's access control (TrafficTarget and IdentityBinding of all versions, with the HTTPRouteGroups and
//! TCPRoutes that they name), and says what holds for one workload.
//!
//! SMI denies by default and its targets only allow: where there is any target, whoever none of them names is refused.
//!
//! ```
//! use enmesh::authz::smi::{TrafficTargets, Workload};
//! use enmesh::profile::object;
//!
//! let text = "
//! apiVersion: access.smi-spec.io/v1alpha2
//! kind: TrafficTarget
//! metadata: {name: t, namespace: shop}
//! spec:
//!   destination: {kind: ServiceAccount, name: cart, namespace: shop}
//!   rules: [{kind: HTTPRouteGroup, name: routes, matches: [read]}]
//!   sources: [{kind: ServiceAccount, name: web, namespace: shop}]
//! ---
//! apiVersion: specs.smi-spec.io/v1alpha3
//! kind: HTTPRouteGroup
//! metadata: {name: routes, namespace: shop}
//! spec: {matches: [{name: read, methods: [GET]}]}
//! ";
//! let (targets, faults) = TrafficTargets::read(&object::read(text, "access.yaml"), "default");
//! assert!(faults.is_empty());
//! let cart = Workload { namespace: "shop".into(), account: "cart".into(), ..Workload::default() };
//! assert_eq!(targets.compile(&cart, None).settings.rules.len(), 1);
//! ```

use crate::authz::settings::Action;
use crate::authz::settings::AuthzSettings;
use crate::authz::settings::Clients;
use crate::authz::settings::IdentityMatch;
use crate::authz::settings::Origin;
use crate::authz::settings::RuleSettings;
use crate::profile::import::smi;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::object;
use crate::profile::object::Object;
use crate::profile::read::words;
use crate::profile::reader::Faults;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::tls::identity::Identity;
use crate::tls::identity::TrustDomain;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Namespace and name of an object.
type Key = (Arc<str>, Arc<str>);

/// The matches of a group by name.
type Group = Vec<(Arc<str>, Condition)>;

/// SMI's access control as data.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrafficTargets {
    targets: Vec<Target>,
    /// Matches by name; `None` for a group that cannot be read: it matches nothing.
    groups: BTreeMap<Key, Option<Group>>,
    /// Ports of a TCPRoute; none: all.
    ports: BTreeMap<Key, Option<Vec<u16>>>,
    bindings: BTreeMap<Key, Option<Binding>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Target {
    key: Key,
    origin: Arc<str>,
    destination: Subject,
    /// Before v1alpha2 a destination could name a port.
    port: Option<u16>,
    rules: Vec<Rule>,
    sources: Vec<Subject>,
}

#[derive(Debug, Clone, PartialEq)]
struct Subject {
    binding: bool,
    key: Key,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    http: bool,
    key: Key,
    /// The group's matches that are meant; none: all.
    matches: Vec<Arc<str>>,
}

/// An IdentityBinding: any of its schemes binds.
#[derive(Debug, Clone, PartialEq, Default)]
struct Binding {
    accounts: Vec<Arc<str>>,
    identities: Vec<Identity>,
    labels: Vec<(String, String)>,
}

/// What is asked about: a workload, and the port that is called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its Kubernetes service account.
    pub account: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The port; 0: any that some target allows.
    pub port: u16,
}

/// What holds for a workload.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Compiled {
    /// Who may do what.
    pub settings: AuthzSettings,
    /// What the targets refer to and is not there: those parts allow nothing.
    pub faults: Vec<Fault>,
}

/// Whether an object is access control of SMI's.
pub fn is_access(object: &Object) -> bool {
    smi::is_smi(object) && matches!(object.kind.as_str(), "TrafficTarget" | "IdentityBinding")
}

impl TrafficTargets {
    /// Takes in what these objects say; objects of other kinds are passed over. `namespace` is that of objects that
    /// name none. A document with a fault that refuses it allows nothing, and so does what refers to it.
    pub fn read(objects: &[Object], namespace: &str) -> (Self, Vec<Fault>) {
        let mut all = Self::default();
        let mut told = Vec::new();
        for object in objects.iter().filter(|object| smi::is_smi(object)) {
            let faults = Faults::default();
            object.faults.iter().for_each(|fault| faults.add(fault.clone()));
            all.take(object, namespace, &faults);
            let named = |fault: Fault| Fault { path: format!("{}:{}", object.origin, fault.path), ..fault };
            told.extend(faults.into_vec().into_iter().map(named));
        }
        (all, told)
    }

    /// Whether nothing is said of access.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    fn take(&mut self, object: &Object, namespace: &str, faults: &Faults) {
        let root = Field::root(&object.root, faults);
        match object.kind.as_str() {
            "TrafficTarget" => {
                let read = whole(&root, namespace, |f, key| target(f, key, &object.origin));
                self.targets.extend(read.and_then(|(_, target)| target).filter(|_| !faults.any_rejected()));
            }
            "HTTPRouteGroup" => {
                let read = whole(&root, namespace, |f, _| Some(smi::matches(&f.get("matches").required())));
                self.groups.extend(read.map(|(key, group)| (key, group.filter(|_| !faults.any_rejected()))));
            }
            "TCPRoute" => {
                let read = whole(&root, namespace, |f, _| {
                    let ports = f.get("matches").fields(|f| {
                        f.skip(&["name"]);
                        f.get("ports").each(|port| port.integer(1..=u16::MAX))
                    });
                    Some(ports.unwrap_or_default())
                });
                self.ports.extend(read.map(|(key, ports)| (key, ports.filter(|_| !faults.any_rejected()))));
            }
            "IdentityBinding" => {
                let read = whole(&root, namespace, |f, _| f.get("schemes").required().fields(binding));
                self.bindings.extend(read.map(|(key, one)| (key, one.filter(|_| !faults.any_rejected()))));
            }
            _ => {}
        }
    }

    /// Who may do what at `workload`. `trust_domain` is our own: what service accounts mean.
    pub fn compile(&self, workload: &Workload, trust_domain: Option<TrustDomain>) -> Compiled {
        let mut compiled = Compiled::default();
        compiled.settings.trust_domain = trust_domain;
        for target in &self.targets {
            if !self.is_destination(target, workload) {
                continue;
            }
            let Some(request) = self.request(target, workload.port, &mut compiled.faults) else { continue };
            let clients = self.clients(target, &mut compiled.faults);
            let name = format!("{}/{}", target.key.0, target.key.1);
            compiled.settings.rules.push(
                RuleSettings::new(name, Action::Allow, clients).on(request).written_as(Origin::TrafficTarget),
            );
        }
        compiled
    }

    fn is_destination(&self, target: &Target, workload: &Workload) -> bool {
        let (namespace, name) = &target.destination.key;
        let here = *namespace == workload.namespace;
        if !target.destination.binding {
            return here && *name == workload.account;
        }
        let Some(Some(binding)) = self.bindings.get(&target.destination.key) else { return false };
        let labelled = !binding.labels.is_empty()
            && binding.labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value));
        let own = format!("/ns/{}/sa/{}", workload.namespace, workload.account);
        let proves =
            |identity: &Identity| matches!(identity, Identity::Spiffe(id) if id.path().ends_with(&own));
        here && (binding.accounts.contains(&workload.account) || labelled)
            || binding.identities.iter().any(proves)
    }

    /// Which requests a target allows at `port`; `None`: none.
    fn request(&self, target: &Target, port: u16, faults: &mut Vec<Fault>) -> Option<Condition> {
        let mut missing = |rule: &Rule, what: &str| {
            let problem = format!("names {what} {}/{}, which cannot be used", rule.key.0, rule.key.1);
            faults.push(told(target, "spec.rules", problem));
        };
        if target.port.is_some_and(|own| port != 0 && own != port) {
            return None;
        }
        let (mut ports, mut ways) = (Vec::new(), Vec::new());
        let (mut asks_port, mut asks_way) = (false, false);
        for rule in &target.rules {
            if rule.http {
                asks_way = true;
                match self.groups.get(&rule.key) {
                    Some(Some(group)) => {
                        let meant = |name: &Arc<str>| rule.matches.is_empty() || rule.matches.contains(name);
                        let of = group.iter().filter(|(name, _)| meant(name));
                        ways.extend(of.map(|(_, condition)| condition.clone()));
                    }
                    _ => missing(rule, "HTTPRouteGroup"),
                }
            } else {
                asks_port = true;
                match self.ports.get(&rule.key) {
                    Some(Some(own)) if own.is_empty() => asks_port = false,
                    Some(Some(own)) => ports.extend(own),
                    _ => missing(rule, "TCPRoute"),
                }
            }
        }
        let open = !asks_port || port == 0 && !ports.is_empty() || ports.contains(&port);
        match (open, asks_way, ways.is_empty()) {
            (false, _, _) | (true, true, true) => None,
            (true, true, false) => Some(Condition::Any(ways)),
            // No rule of HTTP: every request at these ports. No rule at all allows nothing.
            (true, false, _) => (!target.rules.is_empty()).then_some(Condition::Always),
        }
    }

    fn clients(&self, target: &Target, faults: &mut Vec<Fault>) -> Clients {
        let mut any = Vec::new();
        let account = |namespace: &Arc<str>, name: &Arc<str>| {
            Clients::Identity(IdentityMatch::ServiceAccount {
                namespace: Arc::clone(namespace),
                name: Arc::clone(name),
            })
        };
        for source in &target.sources {
            if !source.binding {
                any.push(account(&source.key.0, &source.key.1));
                continue;
            }
            let Some(Some(binding)) = self.bindings.get(&source.key) else {
                let problem =
                    format!("names IdentityBinding {}/{}, which cannot be used", source.key.0, source.key.1);
                faults.push(told(target, "spec.sources", problem));
                continue;
            };
            any.extend(binding.accounts.iter().map(|name| account(&source.key.0, name)));
            let exact = |identity: &Identity| Clients::Identity(IdentityMatch::Exact(identity.clone()));
            any.extend(binding.identities.iter().map(exact));
            if binding.accounts.is_empty() && binding.identities.is_empty() {
                let problem = "binds by labels alone, and no certificate proves a label".to_owned();
                faults.push(told(target, "spec.sources", problem));
            }
        }
        Clients::Any(any)
    }
}

fn told(target: &Target, path: &str, problem: String) -> Fault {
    let remedy = "correct it; until then this part allows nothing";
    Fault::new(Severity::RuntimeFailure, format!("{}:{path}", target.origin), problem, remedy)
}

/// Reads an object whose fields stand in `spec`, or before v1alpha2 and v1alpha3 beside `metadata`.
fn whole<T>(
    root: &Field<'_>,
    namespace: &str,
    read: impl FnOnce(&mut Fields<'_>, &Key) -> Option<T>,
) -> Option<(Key, Option<T>)> {
    root.fields(|fields| {
        let metadata = object::metadata(fields);
        let namespace = metadata.namespace.clone().unwrap_or_else(|| namespace.into());
        let key = (namespace, Arc::from(metadata.name.as_str()));
        let spec = fields.get("spec");
        let value = match spec.is_present() {
            true => spec.fields(|spec| read(spec, &key)).flatten(),
            false => read(fields, &key),
        };
        (key, value)
    })
}

fn target(f: &mut Fields<'_>, key: &Key, origin: &Arc<str>) -> Option<Target> {
    let mut port = None;
    let destination = f.get("destination").required();
    let destination = destination.fields(|f| {
        port = f.get("port").integer(1..=u16::MAX);
        subject(f, &key.0)
    });
    let (rules, specs) = (f.get("rules"), f.get("specs"));
    let sources = f.get("sources").required().each(|item| item.fields(|f| subject(f, &key.0))?);
    let rules =
        [rules, specs].into_iter().flat_map(|list| list.each(|item| item.fields(|f| rule(f, &key.0))?));
    Some(Target {
        key: key.clone(),
        origin: Arc::clone(origin),
        rules: rules.collect(),
        destination: destination??,
        port,
        sources,
    })
}

fn subject(f: &mut Fields<'_>, own: &Arc<str>) -> Option<Subject> {
    f.skip(&["group", "apiGroup"]);
    let binding = f.get("kind").required().word(&[("ServiceAccount", false), ("IdentityBinding", true)]);
    let namespace = words::name(&f.get("namespace")).unwrap_or_else(|| Arc::clone(own));
    let name = words::name(&f.get("name").required())?;
    Some(Subject { binding: binding?, key: (namespace, name) })
}

fn rule(f: &mut Fields<'_>, own: &Arc<str>) -> Option<Rule> {
    f.skip(&["group", "apiGroup"]);
    let kinds = [("HTTPRouteGroup", Some(true)), ("TCPRoute", Some(false)), ("UDPRoute", None)];
    let kind = f.get("kind").required().word(&kinds);
    let matches = words::names(&f.get("matches"));
    let name = words::name(&f.get("name").required())?;
    // No request comes by UDP: such a rule allows none.
    Some(Rule { http: kind.flatten()?, key: (Arc::clone(own), name), matches })
}

fn binding(f: &mut Fields<'_>) -> Binding {
    let labels = f.get("podLabelSelector").fields(|f| {
        let more = f.get("matchExpressions");
        if more.is_present() {
            more.reject("is not understood: it could bind who is not meant", "use matchLabels");
        }
        let pairs = f.get("matchLabels").pairs().into_iter();
        pairs.filter_map(|(key, value)| Some((key.to_owned(), value.text()?.to_owned()))).collect()
    });
    // Written without `spiffe://`.
    let identity = |text: &str| {
        let whole = if text.starts_with("spiffe://") { text.to_owned() } else { format!("spiffe://{text}") };
        whole.parse::<Identity>().map_err(|bad| format!("a SPIFFE ID ({bad})"))
    };
    Binding {
        labels: labels.unwrap_or_default(),
        identities: f.get("spiffeIdentities").each(|item| item.parse(identity)),
        accounts: words::name(&f.get("serviceAccount")).into_iter().collect(),
    }
}
