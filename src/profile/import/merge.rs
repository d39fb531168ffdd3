//! Floor 1: merges a ServiceProfile with Gateway API's routes for the same service.
//!
//! Linkerd lets the profile silence the routes. Here both count: **a request goes where the routes say, and gets from
//! the profile what the routes leave open**. For each route, in order, there is one merged route for each of the
//! profile's (both conditions must hold; name and response classes are the profile's, timeouts, retries and the like the
//! route's or else the profile's), and then the route alone. Where the profile itself redirects, answers, or sends
//! elsewhere, the route decides. The profile's budget, overrides, opaque ports, balancer and breaker are the service's.

use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::name::ServiceName;
use crate::profile::route::Action;
use crate::profile::route::Route;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::Timeouts;
use std::collections::BTreeMap;

/// The most routes that a merge makes: as many as benches show to cost nothing.
const ROUTES_MAX: usize = 10_000;

/// Merges the `linkerd` profiles into the others for the same service; those that found no partner stay as they are.
pub(crate) fn merge(
    others: Vec<ServiceProfile>,
    linkerd: Vec<ServiceProfile>,
    domain: &str,
) -> (Vec<ServiceProfile>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut covered = vec![false; linkerd.len()];
    let mut all: Vec<ServiceProfile> = Vec::new();
    // By host, for there may be thousands of both.
    let host = |profile: &ServiceProfile| Some(profile.name()?.short(domain).without_port());
    let mut by_host: BTreeMap<ServiceName, Vec<usize>> = BTreeMap::new();
    for (index, profile) in linkerd.iter().enumerate() {
        if let Some(host) = host(profile) {
            by_host.entry(host).or_default().push(index);
        }
    }
    for other in others {
        let of_host = host(&other).and_then(|host| by_host.get(&host)).map_or(&[][..], Vec::as_slice);
        let partners = of_host.iter().filter_map(|index| Some((*index, linkerd.get(*index)?)));
        let partners = partners.filter(|(_, profile)| same_port(profile, &other));
        // The profile of the callers' namespace comes before that of the service's (linkerd.md §1.3).
        let own = |profile: &ServiceProfile| profile.namespace != other.namespace;
        match partners.min_by_key(|(_, profile)| own(profile)) {
            Some((index, profile)) => {
                let same_name = profile.names.iter().any(|name| other.names.contains(name));
                covered[index] |= same_name && profile.namespace == other.namespace;
                all.push(merged(other, profile, &mut faults));
            }
            None => all.push(other),
        }
    }
    all.extend(linkerd.into_iter().zip(covered).filter(|(_, covered)| !covered).map(|(profile, _)| profile));
    (all, faults)
}

/// Whether a profile of a service is for the port of another one of the same service.
fn same_port(profile: &ServiceProfile, other: &ServiceProfile) -> bool {
    let port = |profile: &ServiceProfile| profile.name().and_then(ServiceName::port);
    port(profile).is_none() || port(profile) == port(other)
}

fn merged(mut other: ServiceProfile, profile: &ServiceProfile, faults: &mut Vec<Fault>) -> ServiceProfile {
    other.retry_budget = profile.retry_budget.or(other.retry_budget);
    other.opaque_ports.extend(&profile.opaque_ports);
    if other.backends.is_empty() {
        other.backends.clone_from(&profile.backends);
    }
    // What only a profile of our own says.
    other.timeouts = filled(&other.timeouts, &profile.timeouts);
    other.retry = other.retry.or_else(|| profile.retry.clone());
    other.breaker = other.breaker.or_else(|| profile.breaker.clone());
    other.objective = other.objective.or(profile.objective);
    fill(&mut other.balancer, &profile.balancer);
    fill(&mut other.limits, &profile.limits);
    fill(&mut other.tls, &profile.tls);
    if other.routes.is_empty() {
        other.routes.clone_from(&profile.routes);
        (other.defaults, other.no_match) = (profile.defaults, profile.no_match);
        return other;
    }
    let count = other.routes.len().saturating_mul(profile.routes.len() + 1);
    if count > ROUTES_MAX {
        let problem = format!("would make {count} routes with those of Gateway API, more than {ROUTES_MAX}");
        let remedy = "write fewer rules in one of them; until then the profile's routes have no effect";
        faults.push(Fault::new(Severity::Ignored, "spec.routes", problem, remedy));
        return other;
    }
    other.routes = other.routes.iter().flat_map(|route| with_each(route, &profile.routes)).collect();
    other
}

/// What says nothing takes what `from` says.
fn fill<T: Clone + Default + PartialEq>(own: &mut T, from: &T) {
    if *own == T::default() {
        own.clone_from(from);
    }
}

fn with_each(route: &Route, routes: &[Route]) -> Vec<Route> {
    let forwards = matches!(route.action, Action::Forward(_));
    let own = routes.iter().filter(|_| forwards).map(|own| Route {
        name: own.name.clone(),
        condition: Condition::All(vec![route.condition.clone(), own.condition.clone()]),
        response_classes: own.response_classes.clone(),
        timeouts: filled(&route.timeouts, &own.timeouts),
        retry: route.retry.clone().or_else(|| own.retry.clone()),
        objective: own.objective.or(route.objective),
        fault: route.fault.clone().or_else(|| own.fault.clone()),
        rates: if route.rates.is_empty() { own.rates.clone() } else { route.rates.clone() },
        hash: if route.hash.is_empty() { own.hash.clone() } else { route.hash.clone() },
        session: route.session.clone().or_else(|| own.session.clone()),
        ..route.clone()
    });
    own.chain([route.clone()]).collect()
}

fn filled(timeouts: &Timeouts, from: &Timeouts) -> Timeouts {
    Timeouts {
        request: timeouts.request.or(from.request),
        response_headers: timeouts.response_headers.or(from.response_headers),
        response: timeouts.response.or(from.response),
        idle: timeouts.idle.or(from.idle),
        attempt: timeouts.attempt.or(from.attempt),
        connect: timeouts.connect.or(from.connect),
    }
}
