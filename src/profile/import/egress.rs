//! Floor 1: reads Linkerd's EgressNetwork, and makes profiles of the routes that are for it.
//!
//! Linkerd's proxy sees where a connection goes; a client in process sees what its request names. So routes for an
//! EgressNetwork become profiles of the hosts that they name, and one that names none is refused: its requests would
//! go past it.

use crate::profile::import::cluster::Cluster;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::Identity;
use crate::profile::import::cluster::Spot;
use crate::profile::import::gateway_action::Frontend;
use crate::profile::import::gateway_api::Attached;
use crate::profile::import::gateway_api::GatewayApi;
use crate::profile::import::gateway_api::without_conflicts;
use crate::profile::import::gateway_route::LINKERD;
use crate::profile::import::gateway_route::ParentRef;
use crate::profile::import::gateway_route::RouteObject;
use crate::profile::import::linkerd;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::matching::HostMatch;
use crate::profile::name::ServiceName;
use crate::profile::object::Object;
use crate::profile::reader::Fields;
use crate::profile::route::Action;
use crate::profile::route::Respond;
use crate::profile::route::Route;
use crate::profile::service::DefaultsProfile;
use crate::profile::service::NoMatch;
use crate::profile::service::ServiceProfile;
use std::collections::BTreeSet;
use std::sync::Arc;

/// An EgressNetwork.
#[derive(Debug, Clone)]
pub(crate) struct Egress {
    pub(crate) identity: Identity,
    /// Whether what no route is for is refused.
    pub(crate) deny: bool,
}

/// The namespace whose networks are for callers of all namespaces (linkerd.md §6.8).
const EVERYBODY: &str = "linkerd-egress";

/// Reads an EgressNetwork. One that denies is told to be refused; for the hosts that routes name it holds.
pub(crate) fn read(
    documents: &mut Documents,
    document: usize,
    object: &Object,
    namespace: &Arc<str>,
) -> Option<Egress> {
    let (identity, deny) = documents.read(document, object, namespace, |f, _| {
        f.get("spec").required().fields(|f| {
            networks(f);
            let policy = f.get("trafficPolicy").required();
            policy.word(&[("Allow", false), ("Deny", true)]).map(|deny| (deny, Spot::of(&policy)))
        })?
    })?;
    let (deny, spot) = deny;
    if deny {
        let problem = "is Deny, which holds here only for hosts that a route names: others would be called all the same";
        let remedy = "write Allow, and refuse other hosts where connections are made (a NetworkPolicy)";
        documents.say_at(document, &spot, Fault::rejected("", problem, remedy));
    }
    Some(Egress { identity, deny })
}

/// `networks`: which addresses are meant is not known before a name is looked up.
fn networks(f: &mut Fields<'_>) {
    let field = f.get("networks");
    let given = field.each(|item| {
        item.fields(|f| {
            f.get("except").each(|item| item.text().map(str::to_owned));
            f.get("cidr").required().text().map(str::to_owned)
        })?
    });
    if !given.is_empty() {
        let remedy = "name the hosts in the routes; addresses are not compared";
        field.approximate("are networks, and requests are told apart by the hosts that they name", remedy);
    }
}

impl GatewayApi {
    /// For each host that routes of an EgressNetwork name, a profile for callers in the network's namespace.
    pub(crate) fn egress_profiles(
        &self,
        cluster: &Cluster,
        documents: &mut Documents,
        out: &mut Vec<ServiceProfile>,
    ) {
        let attached = self.by_parent(of_parent);
        for egress in &self.egress {
            let key = (Arc::clone(&egress.identity.namespace), Arc::clone(&egress.identity.name));
            let Some(all) = attached.get(&key) else {
                if linkerd::is_annotated(&egress.identity) {
                    let problem = "have no effect: no route of this network names a host";
                    let remedy = "attach an HTTPRoute or a GRPCRoute with hostnames";
                    let fault = Fault::new(Severity::Ignored, "metadata.annotations", problem, remedy);
                    documents.say(egress.identity.document, fault);
                }
                continue;
            };
            let routes: Vec<&RouteObject> = all.iter().map(|(route, _)| *route).collect();
            let ports: BTreeSet<Option<u16>> =
                all.iter().flat_map(|(_, parents)| parents.iter().map(|parent| parent.port)).collect();
            for host in hosts(&routes, documents) {
                for port in &ports {
                    let on_port = |parent: &ParentRef| parent.port.is_none() || parent.port == *port;
                    let names =
                        |route: &RouteObject| route.hosts.contains(&HostMatch::Exact(Arc::clone(&host)));
                    let own =
                        all.iter().filter(|(route, parents)| names(route) && parents.iter().any(on_port));
                    let chosen = without_conflicts(own.map(|(route, _)| *route).collect(), true, documents);
                    let Some(first) = chosen.first() else { continue };
                    let attached = chosen.iter().map(|route| Attached {
                        route,
                        hosts: vec![Some(HostMatch::Exact(Arc::clone(&host)))],
                        besides: None,
                        frontend: Frontend::Egress,
                    });
                    let mut routes = self.ordered(cluster, documents, attached.collect());
                    routes.extend(egress.deny.then(|| denied(egress)));
                    let everybody = *egress.identity.namespace == *EVERYBODY;
                    let grpc = chosen.iter().any(|route| route.grpc);
                    let mut profile = ServiceProfile {
                        names: name(&host, *port).into_iter().collect(),
                        namespace: (!everybody).then(|| Arc::clone(&egress.identity.namespace)),
                        defaults: DefaultsProfile::Linkerd,
                        routes,
                        no_match: NoMatch::Forward,
                        origin: Arc::clone(&first.identity.origin),
                        ..ServiceProfile::default()
                    };
                    linkerd::annotate(&mut profile, &egress.identity, grpc, documents);
                    out.push(profile);
                }
            }
        }
    }
}

/// The egress network that a parent is, if it is one.
pub(crate) fn of_parent(parent: &ParentRef) -> Option<(Arc<str>, Arc<str>)> {
    let is_egress = *parent.group == *LINKERD && *parent.kind == *"EgressNetwork";
    is_egress.then(|| (Arc::clone(&parent.namespace), Arc::clone(&parent.name)))
}

/// The hosts that `routes` name; a route without hosts, or with wildcards, is told to be refused.
fn hosts(routes: &[&RouteObject], documents: &mut Documents) -> BTreeSet<Arc<str>> {
    let mut hosts = BTreeSet::new();
    for route in routes {
        let open = route.hosts.iter().any(|host| matches!(host, HostMatch::Suffix(_)));
        if open || route.hosts.is_empty() {
            let problem = match open {
                true => {
                    "has wildcards, which name no service: requests to those hosts would go past the route"
                }
                false => "are missing: requests would go past the route",
            };
            let remedy = "name each host that is called";
            documents.say(route.identity.document, Fault::rejected("spec.hostnames", problem, remedy));
        }
        for host in &route.hosts {
            if let HostMatch::Exact(host) = host {
                hosts.insert(Arc::clone(host));
            }
        }
    }
    hosts
}

/// The names of the profile for `host`, on one port or on all.
fn name(host: &str, port: Option<u16>) -> Option<ServiceName> {
    let name: ServiceName = host.parse().ok()?;
    Some(name.or_some_port(port))
}

/// The last route of a network that denies: what none allows.
fn denied(egress: &Egress) -> Route {
    let respond =
        Respond { status: 403, grpc: Some(7), body: "traffic not allowed".into(), headers: Vec::new() };
    Route {
        name: "egress denied".into(),
        condition: Condition::Always,
        action: Action::Respond(respond),
        origin: Arc::clone(&egress.identity.origin),
        ..Route::default()
    }
}
