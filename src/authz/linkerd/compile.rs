//! Floor 2: makes one ordered rule list for one port of one workload of Linkerd's policy documents.
//!
//! As the policy controller and proxy together decide (linkerd.md §7.3): the port's `Server`, its routes by Gateway
//! API's precedence, each allowed to whom the policies of the route *or* of the server let in, and 404 where routes are
//! declared and none matches. Without a `Server` the default policy decides.

use crate::authz::linkerd::words::Access;
use crate::authz::linkerd::words::Authorization;
use crate::authz::linkerd::words::Documents;
use crate::authz::linkerd::words::Port;
use crate::authz::linkerd::words::Required;
use crate::authz::linkerd::words::Route;
use crate::authz::linkerd::words::RouteKind;
use crate::authz::linkerd::words::Server;
use crate::authz::linkerd::words::Speaks;
use crate::authz::linkerd::words::Specificity;
use crate::authz::linkerd::words::Target;
use crate::authz::settings::Action;
use crate::authz::settings::AuthzSettings;
use crate::authz::settings::Clients;
use crate::authz::settings::IdentityMatch;
use crate::authz::settings::NetworkMatch;
use crate::authz::settings::Origin;
use crate::authz::settings::RuleSettings;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::matching::PathKind;
use crate::profile::matching::PathMatch;
use crate::tls::identity::TrustDomain;
use http::Method;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The workload and port that a policy is made for, as its pod describes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The port.
    pub port: u16,
    /// The port's name, if it has one.
    pub port_name: Option<String>,
    /// The paths of its HTTP probes on this port, which the kubelet may always get.
    pub probe_paths: Vec<String>,
}

/// What holds for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The networks of the cluster.
    pub networks: Vec<NetworkMatch>,
    /// The networks that probes come from.
    pub probe_networks: Vec<NetworkMatch>,
    /// What is done on ports without a `Server`: `config.linkerd.io/default-inbound-policy` of the pod, else of the
    /// namespace, else of the control plane.
    pub default: Access,
}

/// What the documents say about one port.
#[derive(Debug, Clone, PartialEq)]
pub struct Inbound {
    /// Who may do what, and how much of it.
    pub settings: AuthzSettings,
    /// What is spoken.
    pub speaks: Speaks,
    /// What could not be honoured, besides the faults of the documents themselves.
    pub faults: Vec<Fault>,
}

/// An authorization that is resolved: whom it lets in, under which name.
type Grant = (Arc<str>, Origin, Clients);

impl Documents {
    /// What they say about `workload`.
    pub fn compile(&self, workload: &Workload, cluster: &Cluster) -> Inbound {
        let mut faults = Vec::new();
        let mut rules = probes(workload, cluster);
        let mut selected = self.servers.iter().filter(|((namespace, _), server)| {
            *namespace == workload.namespace && server.as_ref().is_none_or(|server| selects(server, workload))
        });
        let Some(((_, name), server)) = selected.next() else {
            rules.extend(
                cluster
                    .default
                    .clients(&cluster.networks)
                    .map(|clients| allow(default_name(cluster.default), Origin::Default, clients)),
            );
            let settings = settings(rules, cluster.default.otherwise(), cluster);
            return Inbound { settings, speaks: Speaks::Unknown, faults };
        };
        if let Some(((_, other), _)) = selected.next() {
            let problem = format!("{name} and {other} select port {} of one workload", workload.port);
            faults.push(Fault::new(
                Severity::Approximated,
                "servers",
                problem,
                format!("{name} is used; remove one"),
            ));
        }
        let Some(server) = server else {
            // It may be ours; what it would have refused is not known.
            let settings = settings(Vec::new(), Action::Deny, cluster);
            return Inbound { settings, speaks: Speaks::Unknown, faults };
        };
        let mut grants = self.grants(workload, &mut faults, |target| match target {
            Target::Server(named) => named == name,
            Target::Servers(selector) => selector.selects(&server.labels),
            Target::Namespace => true,
            Target::Route(..) => false,
        });
        grants.extend(
            server
                .access
                .clients(&cluster.networks)
                .map(|clients| (default_name(server.access), Origin::Default, clients)),
        );
        let routes = self.routes_of(name, workload);
        let otherwise = server.access.otherwise();
        if routes.is_empty() {
            rules.extend(grants.into_iter().map(|(name, origin, clients)| allow(name, origin, clients)));
            let settings = self.limited(name, workload, settings(rules, otherwise, cluster));
            return Inbound { settings, speaks: server.speaks, faults };
        }
        for matched in by_precedence(&routes) {
            let of_route = self.grants(workload, &mut faults, |target| {
                matches!(target, Target::Route(kind, named) if *kind == matched.kind && named == matched.name)
            });
            let on = |rule: RuleSettings| rule.on(matched.condition.clone());
            rules.extend(
                of_route
                    .into_iter()
                    .chain(grants.clone())
                    .map(|(name, origin, clients)| on(allow(name, origin, clients))),
            );
            let rest = RuleSettings::new(format!("route {}", matched.name), otherwise, Clients::Anyone);
            rules.push(on(rest.written_as(Origin::Default)));
        }
        let settings = self.limited(name, workload, settings(rules, Action::NotFound, cluster));
        Inbound { settings, speaks: server.speaks, faults }
    }

    /// The authorizations of the workload's namespace whose target is meant, resolved.
    fn grants(
        &self,
        workload: &Workload,
        faults: &mut Vec<Fault>,
        is_meant: impl Fn(&Target) -> bool,
    ) -> Vec<Grant> {
        let mut grants = Vec::new();
        let servers = self.server_authorizations.iter().map(|one| (Origin::ServerAuthorization, one));
        let all = servers.chain(self.policies.iter().map(|one| (Origin::AuthorizationPolicy, one)));
        let here = all.filter(|(_, ((namespace, _), _))| *namespace == workload.namespace);
        for (origin, ((_, name), authorization)) in
            here.filter(|(_, (_, authorization))| is_meant(&authorization.target))
        {
            match self.clients(authorization) {
                Ok(clients) => grants.push((Arc::clone(name), origin, clients)),
                Err((namespace, missing)) => {
                    let fault = Fault::new(
                        Severity::Ignored,
                        format!("{name}.requiredAuthenticationRefs"),
                        format!("names {namespace}/{missing}, which is not there or unusable"),
                        "create it; until then the policy lets nobody in",
                    );
                    if !faults.contains(&fault) {
                        faults.push(fault);
                    }
                }
            }
        }
        grants
    }

    /// Whom an authorization lets in, or the reference that leads nowhere.
    fn clients(&self, authorization: &Authorization) -> Result<Clients, (Arc<str>, Arc<str>)> {
        let any = |identities: &Vec<IdentityMatch>| {
            Clients::Any(identities.iter().cloned().map(Clients::Identity).collect())
        };
        let mut all = vec![authorization.clients.clone()];
        for required in &authorization.required {
            all.push(match required {
                Required::MeshTls(key) => any(self.mesh_tls.get(key).ok_or_else(|| key.clone())?),
                Required::Network(key) => {
                    Clients::Networks(self.networks.get(key).ok_or_else(|| key.clone())?.clone())
                }
                Required::ServiceAccount((namespace, name)) => {
                    Clients::Identity(IdentityMatch::ServiceAccount {
                        namespace: Arc::clone(namespace),
                        name: Arc::clone(name),
                    })
                }
            });
        }
        Ok(Clients::All(all))
    }

    /// The routes of a server; an unusable one may be of any server of its namespace.
    fn routes_of(
        &self,
        server: &Arc<str>,
        workload: &Workload,
    ) -> Vec<(RouteKind, &Arc<str>, Option<&Route>)> {
        let here = self.routes.iter().filter(|((namespace, _, _), _)| *namespace == workload.namespace);
        here.filter(|(_, route)| route.as_ref().is_none_or(|route| route.servers.contains(server)))
            .map(|((_, kind, name), route)| (*kind, name, route.as_ref()))
            .collect()
    }

    /// The settings with the rate limits of their server.
    fn limited(&self, server: &Arc<str>, workload: &Workload, settings: AuthzSettings) -> AuthzSettings {
        let mut here = self.rates.iter().filter(|((namespace, _), _)| *namespace == workload.namespace);
        let settings = AuthzSettings { server: Some(Arc::clone(server)), ..settings };
        match here.find(|(_, rates)| rates.server == *server) {
            Some((_, of_server)) => AuthzSettings { rates: of_server.rates.clone(), ..settings },
            None => settings,
        }
    }
}

fn selects(server: &Server, workload: &Workload) -> bool {
    let port = match &server.port {
        Port::Number(number) => *number == workload.port,
        Port::Name(name) => workload.port_name.as_ref() == Some(name),
    };
    port && server.selector.selects(&workload.labels)
}

/// One match of a route, in the order in which they are tried.
struct Matched<'a> {
    kind: RouteKind,
    name: &'a Arc<str>,
    specificity: Specificity,
    created: Option<&'a str>,
    condition: &'a Condition,
}

/// The matches of all routes: the most special first, then the oldest, then by name.
fn by_precedence<'a>(routes: &[(RouteKind, &'a Arc<str>, Option<&'a Route>)]) -> Vec<Matched<'a>> {
    let mut all = Vec::new();
    for (kind, name, route) in routes {
        let Some(route) = route else { continue };
        for (specificity, condition) in &route.matches {
            let created = route.created.as_deref();
            all.push(Matched { kind: *kind, name, specificity: *specificity, created, condition });
        }
    }
    all.sort_by(|a, b| {
        let (a_age, b_age) = ((a.created.is_none(), a.created), (b.created.is_none(), b.created));
        b.specificity.cmp(&a.specificity).then(a_age.cmp(&b_age)).then(a.name.cmp(b.name))
    });
    all
}

fn probes(workload: &Workload, cluster: &Cluster) -> Vec<RuleSettings> {
    let from = || Clients::Networks(cluster.probe_networks.clone());
    let on = |path: &String| {
        let path = Condition::Path(PathMatch::new(PathKind::Exact, path.as_str()));
        Condition::All(vec![Condition::Method(vec![Method::GET]), path])
    };
    workload
        .probe_paths
        .iter()
        .map(|path| {
            RuleSettings::new("probe", Action::Allow, from()).on(on(path)).written_as(Origin::Default)
        })
        .collect()
}

fn default_name(access: Access) -> Arc<str> {
    format!("default:{}", access.as_str()).into()
}

/// Linkerd's rules mean the whole connection: upgrades go with what allows the request that asks for them.
fn allow(name: Arc<str>, origin: Origin, clients: Clients) -> RuleSettings {
    RuleSettings { upgrades: true, ..RuleSettings::new(name, Action::Allow, clients).written_as(origin) }
}

fn settings(rules: Vec<RuleSettings>, otherwise: Action, cluster: &Cluster) -> AuthzSettings {
    let trust_domain = Some(cluster.trust_domain.clone());
    AuthzSettings { rules, otherwise, trust_domain, ..AuthzSettings::default() }
}
