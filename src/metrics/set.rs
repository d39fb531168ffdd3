//! Floor 2: everything that is counted, made once and kept over updates.

use crate::discover::endpoint::Endpoint;
use crate::metrics::arrivals::{Arrivals, Place};
use crate::metrics::arrived;
use crate::metrics::emit;
use crate::metrics::kept::Kept;
use crate::metrics::ledger::{Collect, RETAIN, Sink};
use crate::metrics::names::Direction;
use crate::metrics::registry::Registry;
use crate::metrics::route::{EndpointMetrics, RouteKind, RouteMetrics, RouteNames};
use crate::metrics::rules::Rules;
use crate::metrics::tally::Tally;
use metrics::Label;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The most routes that are counted apart. Routes come from configuration, so this bounds a runaway one; what is
/// beyond counts under the service and route name `other`.
pub const ROUTES_MAX: usize = 20_000;

/// The most endpoints that are counted apart: twice the largest fleet that a balancer is measured with. Attempts at
/// further ones count as `target_addr="other"`.
pub const ENDPOINTS_MAX: usize = 20_000;

/// The most listeners whose requests are counted apart; those beyond are counted as if it were not known where they listen.
pub const LISTENERS_MAX: usize = 64;

/// All that is counted. Two profiles that name one route share its counters, and an update loses none.
pub struct MetricsSet {
    registry: Registry,
    routes: Kept<RouteNames, RouteMetrics>,
    endpoints: Kept<Vec<Label>, EndpointMetrics>,
    arrivals: Kept<Place, Arrivals>,
    rules: Arc<Rules>,
    /// Whether callers can prove who they are.
    secured: AtomicBool,
    more: Mutex<Vec<Weak<dyn Collect>>>,
}

impl fmt::Debug for MetricsSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsSet").field("routes", &self.routes.all().len()).finish_non_exhaustive()
    }
}

impl Default for MetricsSet {
    fn default() -> Self {
        Self::new(Registry::default())
    }
}

impl MetricsSet {
    /// A set whose further handles are resolved in `registry`.
    pub fn new(registry: Registry) -> Self {
        let (routes, endpoints) = (Kept::new(ROUTES_MAX), Kept::new(ENDPOINTS_MAX));
        let (arrivals, secured) = (Kept::new(LISTENERS_MAX), AtomicBool::new(false));
        Self { registry, routes, endpoints, arrivals, rules: Arc::default(), secured, more: Mutex::default() }
    }

    /// A set that nobody reads, for compiling apart from all that runs.
    pub fn unseen() -> Self {
        Self::new(Registry::own(Arc::new(metrics::NoopRecorder)))
    }

    /// Where handles are resolved.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Tells what `source` counts beside all else, for as long as somebody holds it.
    pub fn add(&self, source: &Arc<dyn Collect>) {
        let mut more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        more.retain(|source| source.strong_count() > 0);
        more.push(Arc::downgrade(source));
    }

    /// What is counted of a route of a ServiceProfile; made when first asked for. For compiling, not for requests.
    pub fn route(&self, direction: Direction, dst: &Arc<str>, route: &Arc<str>) -> Arc<RouteMetrics> {
        let kind = if route.is_empty() { RouteKind::Default } else { RouteKind::Profile };
        self.named(&RouteNames { direction, dst: Arc::clone(dst), route: Arc::clone(route), kind })
    }

    /// The same, of a route of any kind.
    pub fn named(&self, names: &RouteNames) -> Arc<RouteMetrics> {
        let other = || RouteNames {
            direction: names.direction,
            dst: "other".into(),
            route: "other".into(),
            kind: RouteKind::Default,
        };
        self.routes.get(names, other, |names| RouteMetrics::new(names.clone()))
    }

    /// What is counted of an endpoint of the service `dst`; made when first asked for. `tls` says how it is spoken to.
    pub fn endpoint(&self, dst: &Arc<str>, endpoint: &Endpoint, tls: Tls) -> Arc<EndpointMetrics> {
        let labels = endpoint_labels(dst, endpoint, tls);
        let other = || {
            vec![
                Label::from_static_parts("direction", Direction::Outbound.as_str()),
                Label::from_static_parts("target_addr", "other"),
            ]
        };
        let make = |labels: &Vec<Label>| EndpointMetrics { labels: labels.clone(), tally: Tally::default() };
        self.endpoints.get(&labels, other, make)
    }

    /// What counts what arrives at a listener; made when first asked for.
    pub fn arrivals(&self, target: Option<SocketAddr>) -> Arc<Arrivals> {
        let make = |place: &Place| Arrivals::new(place.clone(), Arc::clone(&self.rules));
        self.arrivals.get(&Place { target }, Place::default, make)
    }

    /// What arrived at all listeners.
    pub fn all_arrivals(&self) -> Vec<Arc<Arrivals>> {
        self.arrivals.all()
    }

    /// The rules that decide about what arrives, by number.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Whether callers can prove who they are: whether this process has an identity.
    pub fn secure(&self, secured: bool) {
        self.secured.store(secured, Ordering::Relaxed);
    }

    /// All routes, by direction, service and name.
    pub fn all(&self) -> Vec<Arc<RouteMetrics>> {
        self.routes.all()
    }

    /// All endpoints, by their labels.
    pub fn endpoints(&self) -> Vec<Arc<EndpointMetrics>> {
        self.endpoints.all()
    }
}

impl Collect for MetricsSet {
    fn collect(&self, sink: &mut Sink<'_>) {
        let now = sink.now();
        for route in self.routes.sweep(now, RETAIN) {
            emit::route(&route, RETAIN, sink);
        }
        for endpoint in self.endpoints.sweep(now, RETAIN) {
            emit::endpoint(&endpoint, sink);
        }
        let secured = self.secured.load(Ordering::Relaxed);
        for listener in self.arrivals.sweep(now, RETAIN) {
            arrived::arrivals(&listener, secured, RETAIN, sink);
        }
        let more = self.more.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for source in more.iter().filter_map(Weak::upgrade) {
            source.collect(sink);
        }
    }
}

/// How an endpoint is spoken to, as the labels `tls` and `no_tls_reason` tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// This process has no identity.
    Disabled,
    /// By mutual TLS.
    Mutual,
    /// In plain text, since nobody told the endpoint's identity.
    NoIdentity,
}

/// The labels of an endpoint, in Linkerd's order (linkerd.md §8.2).
pub fn endpoint_labels(dst: &Arc<str>, endpoint: &Endpoint, tls: Tls) -> Vec<Label> {
    let mut labels = vec![
        Label::from_static_parts("direction", Direction::Outbound.as_str()),
        Label::new("authority", Arc::clone(dst)),
        Label::new("target_addr", endpoint.addr.to_string()),
        Label::new("target_ip", endpoint.addr.ip().to_string()),
        Label::new("target_port", endpoint.addr.port().to_string()),
    ];
    match tls {
        Tls::Disabled => labels.push(Label::from_static_parts("tls", "disabled")),
        Tls::NoIdentity => {
            labels.push(Label::from_static_parts("tls", "no_identity"));
            labels.push(Label::from_static_parts("no_tls_reason", "not_provided_by_service_discovery"));
        }
        Tls::Mutual => {
            labels.push(Label::from_static_parts("tls", "true"));
            let identity = endpoint.identity.clone().unwrap_or_default();
            labels.push(Label::new("server_id", identity));
        }
    }
    for (key, value) in &endpoint.labels {
        labels.push(Label::new(dst_label(key), Arc::clone(value)));
    }
    labels
}

/// The label `dst_<key>`, with what Prometheus does not allow in a name replaced.
fn dst_label(key: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("dst_{}", key.chars().map(allowed).collect::<String>())
}
