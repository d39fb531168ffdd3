//! Floor 1: makes actions of Gateway API's rules: which backends there are, and what stands for those there are not.

use crate::profile::import::cluster::Cluster;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::From;
use crate::profile::import::cluster::Spot;
use crate::profile::import::gateway_filter::BackendRef;
use crate::profile::import::gateway_filter::Doing;
use crate::profile::import::gateway_policy::Policies;
use crate::profile::import::gateway_route::GROUP;
use crate::profile::import::gateway_route::LINKERD;
use crate::profile::import::gateway_route::RouteObject;
use crate::profile::import::gateway_route::Rule;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::route::Action;
use crate::profile::route::Backend;
use crate::profile::route::Choice;
use crate::profile::route::Filter;
use crate::profile::route::Forward;
use crate::profile::route::Mirror;
use crate::profile::route::Redirect;
use crate::profile::route::RedirectPort;
use crate::profile::route::Respond;
use crate::profile::route::WeightedBackend;
use crate::profile::settings::Share;
use std::sync::Arc;

/// Where a rule is used.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Frontend {
    /// Calls to a service.
    Service,
    /// Calls to a host outside.
    Egress,
    /// A gateway's listener: its port, and whether it speaks TLS.
    Listener { port: u16, tls: bool },
}

/// One of the things a rule does, and for which share of what is left of its requests.
pub(crate) type Part = (Option<Share>, Action);

/// What makes actions.
#[derive(Debug)]
pub(crate) struct Actions<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) policies: &'a Policies,
    pub(crate) documents: &'a mut Documents,
}

impl Actions<'_> {
    /// What `rule` of `route` does: usually one thing; more if a backend redirects or mirrors by itself.
    pub(crate) fn of(&mut self, route: &RouteObject, rule: &Rule, frontend: Frontend) -> Vec<Part> {
        if let Some((spot, why)) = &rule.doing.broken {
            return vec![(None, self.broken(route, spot, why))];
        }
        if let Some(redirect) = &rule.doing.redirect {
            return vec![(None, Action::Redirect(redirected(redirect, frontend)))];
        }
        let to_parent = match frontend {
            Frontend::Service => rule.backends.is_empty() && route.linkerd,
            Frontend::Egress => rule.backends.iter().all(BackendRef::is_egress),
            Frontend::Listener { .. } => false,
        };
        if to_parent {
            return vec![(None, Action::Forward(self.forward(route, &rule.doing, Vec::new())))];
        }
        let total: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        if total == 0 {
            let problem = match rule.backends.is_empty() {
                true => "has no backendRefs: its requests are answered with 500",
                false => "has only backends of weight 0: its requests are answered with 500",
            };
            self.say(route, &rule.spot, problem, "name a backend, or give one a weight");
            return vec![(None, Action::Respond(failure(route)))];
        }
        self.split(route, rule, frontend)
    }

    /// Backends that do more than the model's backends can get a part of their own, drawn for each request.
    fn split(&mut self, route: &RouteObject, rule: &Rule, frontend: Frontend) -> Vec<Part> {
        let special = |backend: &&BackendRef| {
            let doing = &backend.doing;
            let does = doing.redirect.is_some() || doing.broken.is_some() || !doing.mirrors.is_empty();
            backend.weight > 0 && (does || rule.backends.len() == 1)
        };
        let mut parts = Vec::new();
        let mut left: u32 = rule.backends.iter().map(|backend| backend.weight).sum();
        for backend in rule.backends.iter().filter(special) {
            let share = Share { numerator: backend.weight, denominator: left };
            left -= backend.weight;
            let action = match (&backend.doing.broken, &backend.doing.redirect) {
                (Some((spot, why)), _) => self.broken(route, spot, why),
                (None, Some(redirect)) => Action::Redirect(redirected(redirect, frontend)),
                (None, None) => {
                    let mut doing = rule.doing.clone();
                    // The backend's own come next to it: last for requests, first for responses.
                    let own = backend.doing.filters.iter().cloned();
                    let (back, there): (Vec<Filter>, Vec<Filter>) =
                        own.partition(|filter| matches!(filter, Filter::ResponseHeaders(_)));
                    doing.filters = back.into_iter().chain(doing.filters).chain(there).collect();
                    doing.mirrors.extend(backend.doing.mirrors.iter().cloned());
                    let only = BackendRef { doing: Doing::default(), ..backend.clone() };
                    let backends = vec![self.weighted(route, &only)];
                    Action::Forward(self.forward(route, &doing, backends))
                }
            };
            parts.push(((left > 0).then_some(share), action));
        }
        if left > 0 {
            let others: Vec<&BackendRef> = rule.backends.iter().filter(|backend| !special(backend)).collect();
            let backends = others.into_iter().map(|backend| self.weighted(route, backend)).collect();
            parts.push((None, Action::Forward(self.forward(route, &rule.doing, backends))));
        }
        parts
    }

    fn weighted(&mut self, route: &RouteObject, backend: &BackendRef) -> WeightedBackend {
        let filters = backend.doing.filters.clone();
        WeightedBackend { backend: self.backend(route, backend), weight: backend.weight, filters }
    }

    fn forward(&mut self, route: &RouteObject, doing: &Doing, backends: Vec<WeightedBackend>) -> Forward {
        let mut mirrors = Vec::new();
        for (mirror, share) in &doing.mirrors {
            let backend = self.backend(route, mirror);
            if matches!(backend, Backend::Service { .. }) && share.numerator > 0 {
                mirrors.push(Mirror { backend, share: *share });
            }
        }
        Forward { backends, choice: Choice::Weighted, filters: doing.filters.clone(), mirrors }
    }

    /// The backend that `reference` names, or what answers in its place.
    fn backend(&mut self, route: &RouteObject, reference: &BackendRef) -> Backend {
        match self.resolve(route, reference) {
            Ok(backend) => backend,
            Err(reason) => {
                let problem = format!("{reason}: its share of requests is answered with an error");
                self.say(route, &reference.spot, problem, "correct the reference");
                let (status, grpc) = if route.grpc { (503, 14) } else { (500, 14) };
                Backend::Invalid { status, grpc, reason: reason.into() }
            }
        }
    }

    fn resolve(&self, route: &RouteObject, reference: &BackendRef) -> Result<Backend, String> {
        let BackendRef { group, kind, name, .. } = reference;
        if !matches!(&**group, "" | "core") || **kind != *"Service" {
            return Err(format!("is a {group}/{kind}, which cannot be a backend here"));
        }
        let own = &route.identity.namespace;
        let namespace = reference.namespace.as_ref().unwrap_or(own);
        let from = From {
            group: if route.linkerd { LINKERD } else { GROUP },
            kind: if route.grpc { "GRPCRoute" } else { "HTTPRoute" },
            namespace: own,
        };
        // Linkerd's own routes need no grant (linkerd.md §6.4).
        if namespace != own && !route.linkerd && !self.cluster.grants(from, namespace, name) {
            return Err(format!("names {namespace}/{name}, and no ReferenceGrant there allows it"));
        }
        let Some(port) = reference.port else {
            return Err(format!("names service {namespace}/{name} without a port"));
        };
        let Some(service) = self.cluster.service(namespace, name) else {
            return Err(format!("names service {namespace}/{name}, which does not exist"));
        };
        if service.is_some_and(|service| service.external) {
            return Err(format!("names service {namespace}/{name}, an ExternalName, which is not allowed"));
        }
        if service.is_some_and(|service| !service.ports.iter().any(|(own, _)| *own == port)) {
            return Err(format!("names port {port}, which service {namespace}/{name} does not have"));
        }
        if let Some(why) = self.policies.tls_fault(self.cluster, namespace, name, port) {
            return Err(why);
        }
        let full = self.cluster.service_name(namespace, name, Some(port));
        let name = full.ok_or_else(|| format!("names {namespace}/{name}, which is no name of a service"))?;
        Ok(Backend::Service { name, subset: None })
    }

    fn broken(&mut self, route: &RouteObject, spot: &Spot, why: &str) -> Action {
        self.say(route, spot, why, "remove the filter, or keep a proxy that knows it");
        Action::Respond(failure(route))
    }

    fn say(&mut self, route: &RouteObject, spot: &Spot, problem: impl Into<String>, remedy: &str) {
        let fault = Fault::new(Severity::RuntimeFailure, "", problem, remedy);
        self.documents.say_at(route.identity.document, spot, fault);
    }
}

/// 500, or UNAVAILABLE.
fn failure(route: &RouteObject) -> Respond {
    let body: Arc<str> =
        format!("{}/{} has no backend for this", route.identity.namespace, route.identity.name).into();
    Respond { status: 500, grpc: Some(14), body, headers: Vec::new() }
}

/// A redirect without scheme or port takes them from the listener (meshes.md §4.9, 80).
fn redirected(redirect: &Redirect, frontend: Frontend) -> Redirect {
    let mut redirect = redirect.clone();
    if let (Frontend::Listener { port, tls }, None) = (frontend, &redirect.scheme) {
        if redirect.port == RedirectPort::Default {
            redirect.port = RedirectPort::Port(port);
        }
        redirect.scheme = Some(if tls { "https" } else { "http" }.into());
    }
    redirect
}
