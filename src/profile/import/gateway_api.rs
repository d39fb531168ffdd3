//! Floor 1: puts Gateway API's objects together: one profile for each service and each gateway that routes are for.
//!
//! Gateway API has a total order over all matches on a frontend; a profile has first match. So every match of
//! every rule, and every host of it, becomes a route of its own, and these are sorted.

use crate::profile::import::cluster::Cluster;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::Identity;
use crate::profile::import::egress;
use crate::profile::import::egress::Egress;
use crate::profile::import::gateway_action::Actions;
use crate::profile::import::gateway_action::Frontend;
use crate::profile::import::gateway_match;
use crate::profile::import::gateway_match::MatchRank;
use crate::profile::import::gateway_parent;
use crate::profile::import::gateway_parent::Gateway;
use crate::profile::import::gateway_parent::Place;
use crate::profile::import::gateway_policy::Policies;
use crate::profile::import::gateway_route::GROUP;
use crate::profile::import::gateway_route::ParentRef;
use crate::profile::import::gateway_route::RouteObject;
use crate::profile::import::linkerd;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::matching::HostMatch;
use crate::profile::name::ServiceName;
use crate::profile::route::Action;
use crate::profile::route::Backend;
use crate::profile::route::Route;
use crate::profile::service::DefaultsProfile;
use crate::profile::service::NoMatch;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::Timeouts;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The objects of Gateway API.
#[derive(Debug, Default)]
pub(crate) struct GatewayApi {
    pub(crate) routes: Vec<RouteObject>,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) egress: Vec<Egress>,
    pub(crate) policies: Policies,
}

/// A service, or another parent: namespace and name.
type Service = (Arc<str>, Arc<str>);

/// Where in the order of its frontend a match stands, the least first.
type Rank = ((bool, Reverse<usize>), MatchRank, (bool, Option<Arc<str>>, Arc<str>, Arc<str>), usize, usize);

/// A route on a frontend, with the hosts that both name and what else must hold there.
pub(crate) struct Attached<'a> {
    pub(crate) route: &'a RouteObject,
    pub(crate) hosts: Vec<Option<HostMatch>>,
    pub(crate) besides: Option<Condition>,
    pub(crate) frontend: Frontend,
}

impl GatewayApi {
    /// The profiles.
    pub(crate) fn profiles(mut self, cluster: &Cluster, documents: &mut Documents) -> Vec<ServiceProfile> {
        self.policies.settle(cluster, documents);
        self.add_unknown_gateways(documents);
        self.note_unused_parents(cluster, documents);
        gateway_parent::number_sections(&mut self.routes, cluster, documents);
        let mut profiles = Vec::new();
        self.service_profiles(cluster, documents, &mut profiles);
        self.gateway_profiles(cluster, documents, &mut profiles);
        self.egress_profiles(cluster, documents, &mut profiles);
        profiles
    }

    /// A gateway that no file shows is taken as one listener for any host.
    fn add_unknown_gateways(&mut self, documents: &mut Documents) {
        let mut added: BTreeMap<Service, Vec<ParentRef>> = BTreeMap::new();
        for route in &self.routes {
            for parent in
                route.parents.iter().filter(|parent| *parent.group == *GROUP && *parent.kind == *"Gateway")
            {
                let is_it = |gateway: &Gateway| {
                    (&gateway.identity.namespace, &gateway.identity.name) == (&parent.namespace, &parent.name)
                };
                if self.gateways.iter().any(is_it) {
                    continue;
                }
                let problem = format!("gateway {}/{} is not among the files", parent.namespace, parent.name);
                let problem = format!("{problem}: it is taken as an HTTP listener for any host");
                let fault =
                    Fault::new(Severity::Approximated, "", problem, "give the file that holds it as well");
                documents.say_at(route.identity.document, &parent.spot, fault);
                let key = (Arc::clone(&parent.namespace), Arc::clone(&parent.name));
                added.entry(key).or_default().push(parent.clone());
            }
        }
        self.gateways.extend(added.into_iter().map(|((namespace, name), parents)| {
            let identity = Identity { namespace, name, document: usize::MAX, ..Identity::default() };
            Gateway::assumed(identity, &parents)
        }));
        self.gateways.sort_by_key(|gateway| gateway.identity.seniority());
    }

    fn note_unused_parents(&self, cluster: &Cluster, documents: &mut Documents) {
        let places = gateway_parent::places(cluster, &self.gateways);
        for route in &self.routes {
            if route.parents.is_empty() {
                let fault = Fault::new(
                    Severity::Ignored,
                    "spec.parentRefs",
                    "is empty: the route is for nothing",
                    "name a parent",
                );
                documents.say(route.identity.document, fault);
            }
            let mut note = |parent: &ParentRef, problem: String, remedy: &str| {
                let fault = Fault::new(Severity::Ignored, "", problem, remedy);
                documents.say_at(route.identity.document, &parent.spot, fault);
            };
            for parent in &route.parents {
                let kind = parent.kind.trim_start_matches('X');
                if gateway_parent::service_of(parent).is_some() || egress::of_parent(parent).is_some() {
                    continue;
                }
                if !matches!(kind, "Gateway" | "ListenerSet") {
                    let problem =
                        format!("a {}/{} is no parent that is served here", parent.group, parent.kind);
                    note(parent, problem, "attach the route to a Service or a Gateway");
                    continue;
                }
                let taken = places.iter().filter(|place| place.takes(cluster, route, parent));
                let mut hosts = taken.map(|place| place.hosts(route).len());
                if hosts.all(|hosts| hosts == 0) {
                    let problem =
                        format!("no listener of {}/{} takes this route", parent.namespace, parent.name);
                    note(parent, problem, "compare section, port, hostnames and allowedRoutes");
                }
            }
        }
    }

    /// The routes that name each parent of the kind that `of` knows, in order, with what of them names it; made once, for
    /// there may be thousands of both.
    pub(crate) fn by_parent(
        &self,
        of: impl Fn(&ParentRef) -> Option<Service>,
    ) -> BTreeMap<Service, Vec<(&RouteObject, Vec<ParentRef>)>> {
        let mut attached: BTreeMap<Service, Vec<(&RouteObject, Vec<ParentRef>)>> = BTreeMap::new();
        for route in &self.routes {
            for parent in &route.parents {
                let Some(named) = of(parent) else { continue };
                let routes = attached.entry(named).or_default();
                match routes.last_mut().filter(|(last, _)| std::ptr::eq(*last, route)) {
                    Some((_, parents)) => parents.push(parent.clone()),
                    None => routes.push((route, vec![parent.clone()])),
                }
            }
        }
        attached
    }

    fn service_profiles(&self, cluster: &Cluster, documents: &mut Documents, out: &mut Vec<ServiceProfile>) {
        let mut services: BTreeSet<Service> = self.policies.services().into_iter().collect();
        services.extend(
            self.routes.iter().flat_map(|route| route.parents.iter().filter_map(gateway_parent::service_of)),
        );
        let annotated = cluster.services.values().filter(|service| linkerd::is_annotated(&service.identity));
        services
            .extend(annotated.map(|service| {
                (Arc::clone(&service.identity.namespace), Arc::clone(&service.identity.name))
            }));
        let mut attached = self.by_parent(gateway_parent::service_of);
        for service in services {
            let routes = attached.remove(&service).unwrap_or_default();
            let mut ports: BTreeSet<Option<u16>> =
                routes.iter().flat_map(|(_, parents)| parents.iter().map(|parent| parent.port)).collect();
            ports.insert(None);
            if self.policies.tell_ports_apart(&service.0, &service.1) {
                let known = cluster.service(&service.0, &service.1).flatten();
                ports.extend(
                    known.into_iter().flat_map(|known| known.ports.iter().map(|(port, _)| Some(*port))),
                );
            }
            let scopes: BTreeSet<&Arc<str>> =
                routes.iter().map(|(route, _)| &route.identity.namespace).chain([&service.0]).collect();
            for port in &ports {
                for scope in &scopes {
                    let on_port = |(_, parents): &&(&RouteObject, Vec<ParentRef>)| {
                        parents.iter().any(|parent| parent.port.is_none() || parent.port == *port)
                    };
                    let of = |namespace: &Arc<str>| {
                        let of = routes.iter().filter(on_port).map(|(route, _)| *route);
                        of.filter(|route| route.identity.namespace == *namespace).collect::<Vec<_>>()
                    };
                    let mut chosen = of(scope);
                    let consumer = **scope != service.0;
                    if consumer && chosen.is_empty() {
                        continue;
                    }
                    // A consumer's routes replace the producer's (GAMMA), but for Linkerd's own kind.
                    if consumer && chosen.iter().all(|route| route.linkerd) {
                        chosen.extend(of(&service.0));
                    }
                    out.extend(self.service_profile(cluster, documents, &service, *port, scope, chosen));
                }
            }
        }
    }

    fn service_profile(
        &self,
        cluster: &Cluster,
        documents: &mut Documents,
        service: &Service,
        port: Option<u16>,
        scope: &Arc<str>,
        routes: Vec<&RouteObject>,
    ) -> Option<ServiceProfile> {
        let (namespace, name) = (&service.0, &service.1);
        let routes = without_conflicts(routes, true, documents);
        let attached = routes.iter().map(|route| Attached {
            route,
            hosts: if route.hosts.is_empty() {
                vec![None]
            } else {
                route.hosts.iter().cloned().map(Some).collect()
            },
            besides: None,
            frontend: Frontend::Service,
        });
        let mut profile = ServiceProfile {
            names: vec![cluster.service_name(namespace, name, port)?],
            namespace: Some(Arc::clone(scope)),
            defaults: DefaultsProfile::GatewayApi,
            routes: self.ordered(cluster, documents, attached.collect()),
            no_match: if routes.is_empty() { NoMatch::Forward } else { NoMatch::NotFound },
            origin: routes.first().map(|route| Arc::clone(&route.identity.origin)).unwrap_or_default(),
            ..ServiceProfile::default()
        };
        let bare = profile.clone();
        if let Some(known) = cluster.service(namespace, name).flatten() {
            let grpc = routes.iter().any(|route| route.grpc) || routes.is_empty();
            linkerd::annotate(&mut profile, &known.identity, grpc, documents);
            if profile.origin.is_empty() {
                profile.origin = Arc::clone(&known.identity.origin);
            }
            if profile.routes.is_empty() {
                profile.defaults = DefaultsProfile::Linkerd;
            }
        }
        let only =
            cluster.service(namespace, name).flatten().and_then(|known| match known.ports.as_slice() {
                [(port, _)] => Some(*port),
                _ => None,
            });
        if let Some(tls) = self.policies.client_tls(cluster, namespace, name, port.or(only).unwrap_or(0)) {
            profile.tls = tls;
        }
        profile.retry_budget = self.policies.traffic_of(namespace, name).and_then(|policy| policy.budget);
        let says_something = !profile.routes.is_empty()
            || ServiceProfile {
                origin: Arc::clone(&bare.origin),
                defaults: bare.defaults,
                ..profile.clone()
            } != bare;
        says_something.then_some(profile)
    }

    fn gateway_profiles(&self, cluster: &Cluster, documents: &mut Documents, out: &mut Vec<ServiceProfile>) {
        let places = gateway_parent::places(cluster, &self.gateways);
        let mut frontends: BTreeMap<(Service, u16), Vec<Place<'_>>> = BTreeMap::new();
        for place in places {
            let gateway = (Arc::clone(&place.gateway.namespace), Arc::clone(&place.gateway.name));
            frontends.entry((gateway, place.listener.port)).or_default().push(place);
        }
        let mut claimed = BTreeSet::new();
        for ((gateway, port), places) in frontends {
            let mut attached = Vec::new();
            for place in &places {
                let taken = |route: &&RouteObject| {
                    route.parents.iter().any(|parent| place.takes(cluster, route, parent))
                        && !place.hosts(route).is_empty()
                };
                let routes = without_conflicts(self.routes.iter().filter(taken).collect(), false, documents);
                let besides = narrower(place, &places);
                attached.extend(routes.into_iter().map(|route| Attached {
                    route,
                    hosts: place.hosts(route),
                    besides: besides.clone(),
                    frontend: Frontend::Listener { port, tls: place.listener.tls },
                }));
            }
            // A listener without routes answers 404: its own document says so.
            let first = attached.first().map(|first| &first.route.identity.origin);
            let shown = places.iter().map(|place| &place.owner.origin).find(|origin| !origin.is_empty());
            let Some(origin) = first.or(shown).map(Arc::clone) else { continue };
            let mut names: Vec<ServiceName> =
                format!("{}.{}:{port}", gateway.1, gateway.0).parse().into_iter().collect();
            for host in attached.iter().flat_map(|attached| attached.hosts.iter().flatten()) {
                if let HostMatch::Exact(host) = host
                    && let Ok(name) = format!("{host}:{port}").parse::<ServiceName>()
                    && claimed.insert(name.clone())
                {
                    names.push(name);
                }
            }
            out.push(ServiceProfile {
                names,
                namespace: Some(gateway.0),
                defaults: DefaultsProfile::GatewayApi,
                routes: self.ordered(cluster, documents, attached),
                no_match: NoMatch::NotFound,
                origin,
                ..ServiceProfile::default()
            });
        }
    }

    /// All matches of all routes of a frontend, in the order in which they are tried.
    pub(crate) fn ordered(
        &self,
        cluster: &Cluster,
        documents: &mut Documents,
        attached: Vec<Attached<'_>>,
    ) -> Vec<Route> {
        let mut ranked: Vec<(Rank, Vec<Route>)> = Vec::new();
        for Attached { route, hosts, besides, frontend } in attached {
            for (rule_index, rule) in route.rules.iter().enumerate() {
                let mut actions = Actions { cluster, policies: &self.policies, documents };
                let parts = actions.of(route, rule, frontend);
                for (match_index, one) in rule.matches.iter().enumerate() {
                    for host in &hosts {
                        let host_rank = gateway_match::host_rank(host.as_ref());
                        let rank = (
                            host_rank,
                            one.rank.clone(),
                            route.identity.seniority(),
                            rule_index,
                            match_index,
                        );
                        let host = host.iter().map(|host| Condition::Host(vec![host.clone()]));
                        let conditions: Vec<Condition> =
                            host.chain(besides.clone()).chain(one.parts.iter().cloned()).collect();
                        let origin = format!(
                            "{}:spec.rules[{rule_index}].matches[{match_index}]",
                            route.identity.origin
                        );
                        let routes = parts.iter().map(|(share, action)| {
                            let share = share.map(Condition::Fraction);
                            let mut made = Route {
                                name: rule.name.clone().unwrap_or_else(|| Arc::clone(&route.identity.name)),
                                condition: Condition::All(conditions.iter().cloned().chain(share).collect()),
                                action: action.clone(),
                                timeouts: said(route, &rule.timeouts),
                                retry: route.retry.clone().or_else(|| rule.retry.clone()),
                                session: rule.session.clone(),
                                origin: origin.as_str().into(),
                                ..Route::default()
                            };
                            self.add_traffic_policy(cluster, &mut made);
                            made
                        });
                        ranked.push((rank, routes.collect()));
                    }
                }
            }
        }
        ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
        ranked.into_iter().flat_map(|(_, routes)| routes).collect()
    }

    /// What an XBackendTrafficPolicy says of a route's only backend.
    fn add_traffic_policy(&self, cluster: &Cluster, route: &mut Route) {
        let Action::Forward(forward) = &route.action else { return };
        let [only] = forward.backends.as_slice() else { return };
        let Backend::Service { name, .. } = &only.backend else { return };
        let short = name.short(&cluster.settings.cluster_domain);
        let Some((service, namespace)) = short.host().split_once('.') else { return };
        let Some(policy) = self.policies.traffic_of(namespace, service) else { return };
        if let Some(retry) = &mut route.retry {
            retry.budget = retry.budget.or(policy.budget);
        }
        route.session = route.session.take().or_else(|| policy.session.clone());
    }
}

/// The timeouts of a rule: Linkerd's annotations on its route replace them.
fn said(route: &RouteObject, rule: &Timeouts) -> Timeouts {
    match &route.timeouts {
        None => *rule,
        Some(own) => {
            Timeouts { attempt: own.attempt.or(rule.attempt), request: own.request.or(rule.request), ..*own }
        }
    }
}

/// Not the hosts of other listeners of the port that are narrower: each request meets one listener alone.
fn narrower(place: &Place<'_>, places: &[Place<'_>]) -> Option<Condition> {
    let narrower = |other: &&HostMatch| match &place.listener.host {
        None => true,
        Some(own) => *other != own && gateway_match::intersection(own, other).as_ref() == Some(*other),
    };
    let hosts: Vec<HostMatch> =
        places.iter().filter_map(|other| other.listener.host.as_ref()).filter(narrower).cloned().collect();
    (!hosts.is_empty()).then(|| Condition::Not(Box::new(Condition::Host(hosts))))
}

/// `routes` without those that cannot stand beside others: an HTTPRoute and a GRPCRoute for the same hosts. On a
/// gateway the older stays (Gateway API), on a service the GRPCRoute (linkerd.md §6.1).
pub(crate) fn without_conflicts<'a>(
    mut routes: Vec<&'a RouteObject>,
    grpc_first: bool,
    documents: &mut Documents,
) -> Vec<&'a RouteObject> {
    routes.sort_by_key(|route| (grpc_first && !route.grpc, route.identity.seniority()));
    let mut kept: Vec<&RouteObject> = Vec::new();
    for route in routes {
        let meets = |other: &&&RouteObject| {
            let both =
                |a: &HostMatch| other.hosts.iter().any(|b| gateway_match::intersection(a, b).is_some());
            other.grpc != route.grpc
                && (route.hosts.is_empty() || other.hosts.is_empty() || route.hosts.iter().any(both))
        };
        match kept.iter().find(meets) {
            Some(other) => {
                let (kind, identity) = (if other.grpc { "GRPCRoute" } else { "HTTPRoute" }, &other.identity);
                let problem =
                    format!("is not applied beside {kind} {}/{}", identity.namespace, identity.name);
                let remedy = "give them different hosts, or write both as one kind";
                documents.say(
                    route.identity.document,
                    Fault::new(Severity::RuntimeFailure, "spec", problem, remedy),
                );
            }
            None => kept.push(route),
        }
    }
    kept
}
