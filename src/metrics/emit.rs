//! Floor 2: makes all families of a route, a backend or an endpoint from what was counted of it.

use crate::metrics::families::{self, Family};
use crate::metrics::ledger::Sink;
use crate::metrics::names::Direction;
use crate::metrics::route::{EndpointMetrics, Hedge, Injection, RouteKind, RouteMetrics, RouteNames, SKIPS};
use crate::metrics::series::Ending;
use crate::metrics::tally::Told;
use metrics::Label;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The families of one protocol.
struct Policy {
    duration: Family,
    statuses: Family,
    retries: Family,
    retry_successes: Family,
    retry_limit: Family,
    retry_overflow: Family,
    backend_requests: Family,
    backend_duration: Family,
    backend_statuses: Family,
}

const HTTP: Policy = Policy {
    duration: families::OUT_HTTP_DURATION,
    statuses: families::OUT_HTTP_STATUSES,
    retries: families::OUT_HTTP_RETRIES,
    retry_successes: families::OUT_HTTP_RETRY_SUCCESSES,
    retry_limit: families::OUT_HTTP_RETRY_LIMIT,
    retry_overflow: families::OUT_HTTP_RETRY_OVERFLOW,
    backend_requests: families::OUT_HTTP_BACKEND_REQUESTS,
    backend_duration: families::OUT_HTTP_BACKEND_DURATION,
    backend_statuses: families::OUT_HTTP_BACKEND_STATUSES,
};

const GRPC: Policy = Policy {
    duration: families::OUT_GRPC_DURATION,
    statuses: families::OUT_GRPC_STATUSES,
    retries: families::OUT_GRPC_RETRIES,
    retry_successes: families::OUT_GRPC_RETRY_SUCCESSES,
    retry_limit: families::OUT_GRPC_RETRY_LIMIT,
    retry_overflow: families::OUT_GRPC_RETRY_OVERFLOW,
    backend_requests: families::OUT_GRPC_BACKEND_REQUESTS,
    backend_duration: families::OUT_GRPC_BACKEND_DURATION,
    backend_statuses: families::OUT_GRPC_BACKEND_STATUSES,
};

/// Tells a route's families.
pub(crate) fn route(route: &RouteMetrics, retain: Duration, sink: &mut Sink<'_>) {
    let (names, calls) = (route.names(), route.calls().read());
    if calls.begun == 0 {
        return;
    }
    let base = sp_labels(names);
    sink.counter(&families::ROUTE_REQUEST, &base, calls.begun);
    legacy_endings(&families::ROUTE_RESPONSE, &base, &calls, sink);
    sink.histogram_with(&families::ROUTE_LATENCY, &base, &calls.latency, &route.exemplars().all());
    sink.counter(&families::CANCELLED, &base, calls.cancelled());
    sink.gauge(&families::IN_FLIGHT, &base, calls.in_flight() as f64);
    let left = route.left();
    if !left.is_empty() {
        sink.histogram(&families::DEADLINE_LEFT, &base, &left);
    }
    match names.direction {
        Direction::Inbound => inbound(route, &calls, sink),
        Direction::Outbound => outbound(route, &base, &calls, retain, sink),
    }
}

fn outbound(route: &RouteMetrics, base: &[Label], calls: &Told, retain: Duration, sink: &mut Sink<'_>) {
    let attempts = route.attempts_beside(calls);
    // What the protocol is shows with the first response; before, only errors are told.
    if !calls.endings.is_empty() {
        let grpc = route.is_grpc(calls.is_grpc()).unwrap_or(false);
        by_policy(route, calls, grpc, retain, sink);
    }
    let retries = route.retries();
    // Linkerd's family of errors is added up over all routes.
    for (ending, count) in &calls.endings {
        if let Some(word) = ending.error() {
            sink.counter(&families::OUT_HTTP_ERRORS, &[Label::from_static_parts("error", word)], *count);
        }
    }
    sink.counter(&families::ROUTE_ACTUAL_REQUEST, base, attempts.begun);
    legacy_endings(&families::ROUTE_ACTUAL_RESPONSE, base, &attempts, sink);
    sink.counter(&families::ROUTE_RETRYABLE, base, retries.sent + retries.no_budget());
    let skipped = with(base, Label::from_static_parts("skipped", "no_budget"));
    sink.counter(&families::ROUTE_RETRYABLE, &skipped, retries.no_budget());
    let faults = Injection::ALL.map(|(kind, word)| ("kind", word, route.injections(kind)));
    let hedges = Hedge::ALL.map(|(result, word)| ("result", word, route.hedges(result)));
    let both = faults.map(|told| (&families::FAULTS, told)).into_iter();
    let both = both.chain(hedges.map(|told| (&families::HEDGES, told)));
    for (family, (label, word, count)) in both.filter(|(_, (_, _, count))| *count > 0) {
        sink.counter(family, &with(base, Label::from_static_parts(label, word)), count);
    }
    for (reason, count) in SKIPS.into_iter().zip(retries.skips).filter(|(_, count)| *count > 0) {
        let labels = with(base, Label::from_static_parts("reason", reason));
        sink.counter(&families::RETRY_SKIPPED, &labels, count);
    }
}

/// The families of one protocol.
fn by_policy(route: &RouteMetrics, calls: &Told, grpc: bool, retain: Duration, sink: &mut Sink<'_>) {
    let retries = route.retries();
    let policy = if grpc { &GRPC } else { &HTTP };
    let labels = policy_labels(route.names(), grpc);
    sink.histogram_with(&policy.duration, &labels, &calls.latency, &route.exemplars().all());
    policy_endings(&policy.statuses, &labels, grpc, calls, sink);
    for (family, count) in [
        (&policy.retries, retries.sent),
        (&policy.retry_successes, retries.succeeded),
        (&policy.retry_limit, retries.spent()),
        (&policy.retry_overflow, retries.no_budget()),
    ] {
        sink.counter(family, &labels, count);
    }
    for backend in route.backends().sweep(sink.now(), retain) {
        let told = backend.tally.read();
        let mut labels = labels.clone();
        object_labels(BACKEND, ["core", "Service"], &backend.name, &mut labels);
        sink.counter(&policy.backend_requests, &labels, told.begun);
        sink.histogram(&policy.backend_duration, &labels, &told.latency);
        policy_endings(&policy.backend_statuses, &labels, grpc, &told, sink);
    }
}

fn inbound(route: &RouteMetrics, calls: &Told, sink: &mut Sink<'_>) {
    if calls.endings.is_empty() {
        return;
    }
    let (names, grpc) = (route.names(), route.is_grpc(calls.is_grpc()).unwrap_or(false));
    let (requests, statuses, duration) = if grpc {
        (&families::IN_GRPC_REQUESTS, &families::IN_GRPC_STATUSES, &families::IN_GRPC_DURATION)
    } else {
        (&families::IN_HTTP_REQUESTS, &families::IN_HTTP_STATUSES, &families::IN_HTTP_DURATION)
    };
    let (name, _, port) = parts(&names.dst);
    let exemplars = route.exemplars().all();
    let [group, kind, route] = route_words(names, grpc);
    let labels = [
        Label::from_static_parts("parent_group", ""),
        Label::from_static_parts("parent_kind", "default"),
        Label::new("parent_name", name.to_owned()),
        Label::new("parent_port", port.to_owned()),
        Label::new("route_group", group),
        Label::new("route_kind", kind),
        Label::new("route_name", route),
    ];
    sink.counter(requests, &labels, calls.begun);
    sink.histogram_with(duration, &labels, &calls.latency, &exemplars);
    for (ending, count) in calls.endings.iter().filter(|(ending, _)| !ending.is_cancelled()) {
        let labels = with(&labels, ending.status_label(grpc, ["status", "status"]));
        sink.counter(statuses, &labels, *count);
    }
}

/// Tells an endpoint's families.
pub(crate) fn endpoint(endpoint: &EndpointMetrics, sink: &mut Sink<'_>) {
    let told = endpoint.tally.read();
    if told.begun == 0 {
        return;
    }
    sink.counter(&families::REQUEST, &endpoint.labels, told.begun);
    legacy_endings(&families::RESPONSE, &endpoint.labels, &told, sink);
    sink.histogram(&families::LATENCY, &endpoint.labels, &told.latency);
    sink.counter(&families::ENDPOINT_CANCELLED, &endpoint.labels, told.cancelled());
}

pub(crate) fn legacy_endings(family: &Family, base: &[Label], told: &Told, sink: &mut Sink<'_>) {
    endings(
        family,
        base,
        told.endings.iter().filter(|(ending, _)| !ending.is_cancelled()),
        sink,
        |ending, labels| {
            ending.legacy_labels(labels);
        },
    );
}

fn policy_endings(family: &Family, base: &[Label], grpc: bool, told: &Told, sink: &mut Sink<'_>) {
    endings(family, base, told.endings.iter(), sink, |ending, labels| ending.policy_labels(grpc, labels));
}

fn endings<'a>(
    family: &Family,
    base: &[Label],
    counts: impl Iterator<Item = &'a (Ending, u64)>,
    sink: &mut Sink<'_>,
    write: impl Fn(Ending, &mut Vec<Label>),
) {
    // Endings that differ by what a family does not show are one series: added up here, so that the sum is one source's.
    let mut sums: BTreeMap<Vec<Label>, u64> = BTreeMap::new();
    for (ending, count) in counts {
        let mut labels = base.to_vec();
        write(*ending, &mut labels);
        *sums.entry(labels).or_default() += count;
    }
    for (labels, count) in sums {
        sink.counter(family, &labels, count);
    }
}

pub(crate) fn with(base: &[Label], one: Label) -> Vec<Label> {
    base.iter().cloned().chain([one]).collect()
}

fn sp_labels(names: &RouteNames) -> Vec<Label> {
    let mut labels = vec![
        Label::from_static_parts("direction", names.direction.as_str()),
        Label::new("dst", Arc::clone(&names.dst)),
    ];
    if !names.route.is_empty() {
        labels.push(Label::new("rt_route", Arc::clone(&names.route)));
    }
    labels
}

/// The labels of an object: group, kind, namespace, name, port, section.
type ObjectLabels = [&'static str; 6];
const PARENT: ObjectLabels =
    ["parent_group", "parent_kind", "parent_namespace", "parent_name", "parent_port", "parent_section_name"];
const BACKEND: ObjectLabels = [
    "backend_group",
    "backend_kind",
    "backend_namespace",
    "backend_name",
    "backend_port",
    "backend_section_name",
];

fn object_labels(
    names: ObjectLabels,
    [group, kind]: [&'static str; 2],
    object: &str,
    labels: &mut Vec<Label>,
) {
    let (name, namespace, port) = parts(object);
    let values = [group, kind, namespace, name, port, ""];
    labels.extend(names.into_iter().zip(values).map(|(name, value)| Label::new(name, value.to_owned())));
}

/// The labels of a service as the backend that its traffic goes to when no route says another: for balancers.
pub fn service_labels(dst: &str) -> Vec<Label> {
    let mut labels = Vec::new();
    object_labels(PARENT, ["core", "Service"], dst, &mut labels);
    object_labels(BACKEND, ["core", "Service"], dst, &mut labels);
    labels
}

fn policy_labels(names: &RouteNames, grpc: bool) -> Vec<Label> {
    let mut labels = Vec::new();
    object_labels(PARENT, ["core", "Service"], &names.dst, &mut labels);
    let [group, kind, route] = route_words(names, grpc);
    // A default route is no object, and has no namespace (linkerd2-proxy `Meta::Default`).
    let namespace = if names.kind == RouteKind::Default { "" } else { parts(&names.dst).1 };
    labels.push(Label::new("route_group", group));
    labels.push(Label::new("route_kind", kind));
    labels.push(Label::new("route_namespace", namespace.to_owned()));
    labels.push(Label::new("route_name", route));
    labels.push(Label::from_static_parts("hostname", ""));
    labels
}

/// The group, the kind and the name of a route.
pub(crate) fn route_words(names: &RouteNames, grpc: bool) -> [String; 3] {
    let (group, kind) = match (names.kind, grpc) {
        (RouteKind::Default, _) => ("", "default"),
        (RouteKind::Profile, _) => ("linkerd.io", "ServiceProfile"),
        (RouteKind::Gateway, true) => ("gateway.networking.k8s.io", "GRPCRoute"),
        (RouteKind::Gateway, false) => ("gateway.networking.k8s.io", "HTTPRoute"),
    };
    let name = match (&*names.route, grpc) {
        ("", true) => "grpc",
        ("", false) => "http",
        (name, _) => name,
    };
    [group.to_owned(), kind.to_owned(), name.to_owned()]
}

/// The name, the namespace and the port of `name.namespace:port`.
pub(crate) fn parts(object: &str) -> (&str, &str, &str) {
    let (host, port) = match object.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
        _ => (object, ""),
    };
    if host.parse::<std::net::IpAddr>().is_ok() {
        return (host, "", port);
    }
    let (name, rest) = host.split_once('.').unwrap_or((host, ""));
    (name, rest.split('.').next().unwrap_or(""), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_name_is_taken_apart() {
        let check = |text, expected| assert_eq!(parts(text), expected);
        check("web.shop:80", ("web", "shop", "80"));
        check("web:80", ("web", "", "80"));
        check("web", ("web", "", ""));
        check("api.example.com:443", ("api", "example", "443"));
        check("10.0.0.1:80", ("10.0.0.1", "", "80"));
    }
}
