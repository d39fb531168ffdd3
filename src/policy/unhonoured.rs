//! Floor 3: what a profile says and this version does not do. It is told, and never passed over in silence.

use crate::profile::invalid::{Fault, Severity};
use crate::profile::route::{Action, Backend, Forward, Route};
use crate::profile::service::ServiceProfile;
use crate::profile::settings::Limit;

/// Everything in `profile` that has no effect, with its path; empty when all of it has.
pub fn unhonoured(profile: &ServiceProfile) -> Vec<Fault> {
    let mut told = Vec::new();
    tell(
        !profile.opaque_ports.is_empty(),
        "spec.opaquePorts",
        "bytes that are not HTTP are not carried",
        &mut told,
    );
    for (index, route) in profile.routes.iter().enumerate() {
        of_route(route, &format!("spec.routes[{index}]"), &mut told);
    }
    told
}

fn of_route(route: &Route, at: &str, told: &mut Vec<Fault>) {
    tell(
        route.condition.asks_caller(&|caller| !caller.labels.is_empty()),
        &format!("{at}.condition"),
        "the labels of callers are not known while requests are served: a condition on them does not hold",
        told,
    );
    tell(
        route.timeouts.connect != Limit::Unset,
        &format!("{at}.timeouts.connect"),
        "all routes of a service share its connections: `spec.timeouts.connect` holds for them",
        told,
    );
    if let Action::Forward(forward) = &route.action {
        of_forward(forward, at, told);
    }
}

fn of_forward(forward: &Forward, at: &str, told: &mut Vec<Fault>) {
    let parts = forward.backends.iter().map(|weighted| &weighted.backend);
    let mut parts = parts.chain(forward.mirrors.iter().map(|mirror| &mirror.backend));
    let named = |backend: &Backend| matches!(backend, Backend::Service { subset: Some(_), .. });
    let problem = "subsets are not told apart: the whole service is asked";
    tell(parts.any(named), &format!("{at}.backends"), problem, told);
}

fn tell(is_said: bool, path: &str, problem: &str, told: &mut Vec<Fault>) {
    if is_said {
        told.push(Fault::new(
            Severity::Ignored,
            path,
            problem,
            "take it out, or wait for a version that does it",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::matching::{CallerMatch, Condition};
    use crate::profile::route::WeightedBackend;
    use crate::profile::settings::Timeouts;

    #[test]
    fn what_has_no_effect_is_told_with_its_path_and_the_rest_is_not() {
        let backend = Backend::Service { name: "a.ns".parse().unwrap(), subset: Some("v2".into()) };
        let backends = vec![WeightedBackend { backend, weight: 1, filters: Vec::new() }];
        let action = Action::Forward(Forward { backends, ..Forward::default() });
        let route = Route { action, ..Route::default() };
        let name = "web.ns".parse().unwrap();
        let labels = CallerMatch { labels: vec![("app".into(), "web".into())], ..CallerMatch::default() };
        let known = CallerMatch { namespaces: vec!["shop".into()], ..CallerMatch::default() };
        let asking = |caller| Route {
            condition: Condition::Not(Box::new(Condition::Caller(caller))),
            ..Route::default()
        };
        let connect = Timeouts { connect: Limit::Disabled, ..Timeouts::default() };
        let timed = Route { timeouts: connect, ..Route::default() };
        let routes = vec![Route::default(), route, asking(labels), asking(known), timed];
        let profile = ServiceProfile { routes, ..ServiceProfile::new(name) };
        let told: Vec<String> = unhonoured(&profile).into_iter().map(|fault| fault.path).collect();
        assert_eq!(
            told,
            ["spec.routes[1].backends", "spec.routes[2].condition", "spec.routes[4].timeouts.connect"]
        );
    }
}
