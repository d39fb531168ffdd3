//! Floor 6: tells what the mesh itself knows as metrics: balancers, breakers, budgets, configuration, connections.

use crate::balance::count::Oddity;
use crate::balance::inspect::BalanceState;
use crate::connect::stats::ConnectStats;
use crate::discover::endpoint::Endpoint;
use crate::mesh::directory::{Known, Target};
use crate::mesh::services::Services;
use crate::metrics::arrived::{peer_labels, server_labels, target_labels};
use crate::metrics::emit::{parts, service_labels};
use crate::metrics::families::{self, Family};
use crate::metrics::ledger::{Collect, RETAIN, Sink};
use crate::metrics::set::{LISTENERS_MAX, Tls, endpoint_labels};
use crate::policy::route::RouteEntry;
use crate::profile::name::ServiceName;
use crate::profile::settings::TlsMode;
use crate::serve::stats::{DETECTED, ServeStats, TCP_ERRORS};
use crate::stdx::traffic::{ENDS, Volume};
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::rotate::Identities;
use metrics::Label;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

impl Collect for Services {
    fn collect(&self, sink: &mut Sink<'_>) {
        let version = Label::from_static_parts("version", env!("CARGO_PKG_VERSION"));
        sink.gauge(&families::BUILD_INFO, &[version], 1.0);
        let directory = self.directory();
        sink.gauge(&families::TAP_OBSERVERS, &[], self.watch.tap.observers() as f64);
        sink.counter(&families::TAP_DROPPED, &[], self.watch.tap.dropped());
        if let Some(log) = &self.watch.log {
            sink.counter(&families::ACCESS_LOG_DROPPED, &[], log.dropped());
        }
        #[cfg(feature = "otel")]
        if let Some(counts) = self.watch.otel.as_ref().map(crate::trace::otel::Otel::counts) {
            let results =
                [("ended", counts.ended()), ("exported", counts.exported()), ("failed", counts.failed())];
            for (result, spans) in results {
                sink.counter(&families::SPANS, &[Label::from_static_parts("result", result)], spans);
            }
        }
        sink.gauge(&families::CONFIG_GENERATION, &[], directory.generation() as f64);
        for (name, known) in directory.known() {
            service(&name.to_string().into(), known, sink);
        }
    }
}

/// The copies of a route's requests. The matches of one rule share what they count: it is told once.
fn mirrors(entry: &RouteEntry<Target>, told: &mut BTreeSet<usize>, sink: &mut Sink<'_>) {
    for mirror in entry.mirrors().iter().filter(|mirror| told.insert(Arc::as_ptr(&mirror.budget).addr())) {
        let labels = [
            Label::new("dst", Arc::clone(&mirror.entry.policy.service)),
            Label::new("rt_route", Arc::clone(&entry.policy.name)),
        ];
        for (result, count) in [("sent", mirror.budget.made()), ("skipped", mirror.budget.skipped())] {
            let result = Some(Label::from_static_parts("result", result));
            nonzero(&families::MIRRORED, &labels, result, count, sink);
        }
    }
}

fn service(name: &Arc<str>, known: &Known, sink: &mut Sink<'_>) {
    let policy = known.service().map(|service| service.policy.load_full());
    let state = known.target().map(|target| (target.inspect(), target.told()));
    let dst = policy.as_ref().map(|policy| policy.service());
    let dst = dst.or(state.as_ref().map(|(state, _)| &state.service)).unwrap_or(name);
    let labels = [Label::new("dst", Arc::clone(dst))];
    let faults = known.profile_faults.len() + known.endpoint_faults.len();
    sink.gauge(&families::CONFIG_FAULTS, &labels, faults as f64);
    if let Some(policy) = &policy {
        sink.gauge(&families::BUDGET_LEVEL, &labels, policy.budget().level(sink.now()) as f64);
        let mut told = BTreeSet::new();
        policy.routes().iter().for_each(|entry| mirrors(entry, &mut told, sink));
    }
    if let Some(target) = known.target() {
        for (reason, count) in Oddity::WORDS.into_iter().zip(target.oddities()) {
            nonzero(&families::PICKS, &labels, Some(Label::from_static_parts("reason", reason)), count, sink);
        }
        let (come, gone) = target.changes();
        let of = service_labels(target.service());
        for (op, count) in [("Add", come), ("Remove", gone)] {
            let op = Some(Label::from_static_parts("op", op));
            nonzero(&families::BALANCER_UPDATES, &of, op, count, sink);
        }
    }
    if let Some((state, told)) = state {
        balancer(&state, sink);
        let mut sums: BTreeMap<_, u64> = BTreeMap::new();
        told.into_iter().for_each(|(words, count)| *sums.entry(words).or_default() += count);
        for ((event, reason), count) in sums {
            let [dst] = labels.clone();
            let labels =
                [dst, Label::from_static_parts("event", event), Label::from_static_parts("reason", reason)];
            sink.counter(&families::BREAKER_EVENTS, &labels, count);
        }
    }
}

fn balancer(state: &BalanceState, sink: &mut Sink<'_>) {
    let labels = service_labels(&state.service);
    let ready = state.endpoints.iter().filter(|endpoint| endpoint.ready && endpoint.is_open()).count();
    for (word, count) in [("ready", ready), ("pending", state.endpoints.len() - ready)] {
        let mut labels = labels.clone();
        labels.push(Label::from_static_parts("endpoint_state", word));
        sink.gauge(&families::BALANCER_ENDPOINTS, &labels, count as f64);
    }
    sink.gauge(&families::BALANCER_P2C, &labels, state.endpoints.len() as f64);
    let dst = [Label::new("dst", Arc::clone(&state.service))];
    sink.gauge(&families::BREAKER_SHUT, &dst, f64::from(state.shut));
    sink.counter(&families::BREAKER_SPARED, &dst, state.spared);
}

/// No process has an identity without TLS.
#[cfg(not(any(feature = "tls", feature = "ring")))]
pub(crate) type Identities = std::convert::Infallible;

/// The connections of this process, both ends.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    dialled: Mutex<BTreeMap<Vec<Label>, Line>>,
    /// What this process's servers count, by where they listen.
    served: Mutex<BTreeMap<Option<SocketAddr>, Arc<ServeStats>>>,
    /// The bytes sent and received over connections that are no more, by [`ZONES`].
    past_zones: Mutex<[[u64; 2]; ZONES.len()]>,
    identities: Option<Identities>,
    own: Arc<str>,
}

/// Whether an endpoint is in the zone that its service's profile says is ours, in Linkerd's words.
const ZONES: [&str; 3] = ["Unknown", "Local", "Remote"];

/// The connections to one endpoint.
#[derive(Debug, Default)]
struct Line {
    /// Those of an endpoint that came back are others than before; what was before stays counted.
    past: Totals,
    live: Vec<Arc<ConnectStats>>,
    /// Its place in [`ZONES`], as was said last.
    zone: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    volume: Volume,
    failures: [u64; FAILURES.len()],
    resent: u64,
    /// Refused since too many waited; made to wait since no more connections may be opened.
    overflows: [u64; OVERFLOWS.len()],
}

/// Which limit of a pool kept a request back.
const OVERFLOWS: [&str; 2] = ["pending", "connections"];
/// Why connections could not be opened.
const FAILURES: [&str; 4] = ["timeout", "tcp", "handshake", "protocol"];

impl Totals {
    fn add(&mut self, stats: &ConnectStats) {
        let counts = stats.snapshot();
        let failures =
            [counts.failed_timeout, counts.failed_tcp, counts.failed_handshake, counts.failed_protocol];
        self.volume.add(&stats.traffic().read());
        self.failures.iter_mut().zip(failures).for_each(|(sum, more)| *sum += more);
        self.resent += counts.resent;
        let overflows = [counts.refused, counts.held];
        self.overflows.iter_mut().zip(overflows).for_each(|(sum, more)| *sum += more);
    }
}

impl Line {
    /// All connections until now. Those of endpoints that are gone become the past.
    fn totals(&mut self) -> Totals {
        let Self { past, live, .. } = self;
        live.retain(|stats| {
            let held = Arc::strong_count(stats) > 1;
            if !held {
                past.add(stats);
            }
            held
        });
        let mut totals = *past;
        live.iter().for_each(|stats| totals.add(stats));
        totals
    }
}

impl Connections {
    /// None yet, of the process that is `own` and has these certificates.
    pub(crate) fn of(own: &ServiceName, identities: Option<&Identities>) -> Self {
        Self { identities: identities.cloned(), own: own.to_string().into(), ..Self::default() }
    }

    /// What a server counts that listens at `target`.
    pub(crate) fn served(&self, target: Option<SocketAddr>) -> Arc<ServeStats> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended make room; what is beyond is counted as if it were not known where it listens.
        if served.len() >= LISTENERS_MAX && !served.contains_key(&target) {
            served.retain(|_, stats| Arc::strong_count(stats) > 1);
        }
        let target = target.filter(|_| served.len() < LISTENERS_MAX || served.contains_key(&target));
        Arc::clone(served.entry(target).or_default())
    }

    /// Whether this process has an identity.
    pub(crate) fn is_secured(&self) -> bool {
        self.identities.is_some()
    }

    /// Tells of the connections to an endpoint for as long as somebody else holds `stats`.
    pub(crate) fn add(
        &self,
        endpoint: &Endpoint,
        tls: Tls,
        own_zone: Option<&str>,
        stats: &Arc<ConnectStats>,
    ) {
        let mut labels = endpoint_labels(&"".into(), endpoint, tls);
        labels.retain(|label| label.key() != "authority");
        labels.insert(1, Label::from_static_parts("peer", "dst"));
        let mut dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        let line = dialled.entry(labels).or_default();
        line.zone = match (own_zone, endpoint.zone.as_deref()) {
            (Some(own), Some(its)) => 1 + usize::from(own != its),
            (None, _) | (_, None) => 0,
        };
        line.live.push(Arc::clone(stats));
    }
}

/// How `endpoint` is spoken to by a process that has an identity if `secured`.
pub(crate) fn tls_of(secured: bool, mode: TlsMode, endpoint: &Endpoint) -> Tls {
    match (secured, mode, &endpoint.identity) {
        (false, _, _) => Tls::Disabled,
        (true, TlsMode::Off, _) | (true, _, None) => Tls::NoIdentity,
        (true, _, Some(_)) => Tls::Mutual,
    }
}

impl Collect for Connections {
    fn collect(&self, sink: &mut Sink<'_>) {
        #[cfg(any(feature = "tls", feature = "ring"))]
        if let Some(identities) = &self.identities {
            let status = identities.status();
            sink.counter(&families::IDENTITY_REFUSED, &[], status.refused);
        }
        self.dialled(sink);
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (target, stats) in served {
            self.accepted(target, &stats, sink);
        }
    }
}

impl Connections {
    /// Tells of connections to endpoints.
    fn dialled(&self, sink: &mut Sink<'_>) {
        let mut past = self.past_zones.lock().unwrap_or_else(PoisonError::into_inner);
        let mut live = [[0; 2]; ZONES.len()];
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner).retain(|labels, line| {
            let totals = line.totals();
            tell(labels, &totals.volume, sink);
            let is_past = line.live.is_empty();
            let zones = if is_past { &mut *past } else { &mut live };
            zones[line.zone][0] += totals.volume.written;
            zones[line.zone][1] += totals.volume.read;
            let addr: Vec<Label> =
                labels.iter().filter(|label| label.key() == "target_addr").cloned().collect();
            for (reason, count) in FAILURES.into_iter().zip(totals.failures) {
                let reason = Label::from_static_parts("reason", reason);
                nonzero(&families::CONNECT_FAILURES, &addr, Some(reason), count, sink);
            }
            for (limit, count) in OVERFLOWS.into_iter().zip(totals.overflows) {
                let limit = Label::from_static_parts("limit", limit);
                nonzero(&families::CONNECT_OVERFLOWS, &addr, Some(limit), count, sink);
            }
            nonzero(&families::RESENT, &addr, None, totals.resent, sink);
            !is_past
        });
        for ((zone, live), past) in ZONES.into_iter().zip(live).zip(*past) {
            for (op, bytes) in [("Send", live[0] + past[0]), ("Recv", live[1] + past[1])] {
                let labels = [Label::from_static_parts("op", op)];
                let zone = Some(Label::from_static_parts("zone_locality", zone));
                nonzero(&families::TRANSFER_COST, &labels, zone, bytes, sink);
            }
        }
    }

    /// Tells of connections from callers to one listener.
    fn accepted(&self, target: Option<SocketAddr>, stats: &ServeStats, sink: &mut Sink<'_>) {
        let (target, server) = (target_labels(target), self.server());
        for peer in stats.all_traffic(sink.now(), RETAIN) {
            let client = match &peer.peer {
                None => peer_labels(None, self.is_secured()),
                Some(name) => peer_labels(Some(name), true),
            };
            let side =
                [Label::from_static_parts("direction", "inbound"), Label::from_static_parts("peer", "src")];
            let labels = [&side[..], &target, &client, &server].concat();
            let volume = peer.traffic.read();
            if volume.opened > 0 {
                tell(&labels, &volume, sink);
            }
        }
        let (detected, took) = stats.detections();
        for (result, count) in DETECTED.into_iter().zip(detected) {
            let result = Some(Label::from_static_parts("result", result));
            nonzero(&families::DETECTED, &server, result, count, sink);
        }
        if !took.is_empty() {
            sink.histogram(&families::DETECT_SECONDS, &server, &took);
        }
        for (error, count) in TCP_ERRORS.into_iter().zip(stats.tcp_errors()) {
            let labels = [&target[..], &server].concat();
            let error = Some(Label::from_static_parts("error", error));
            nonzero(&families::IN_TCP_ERRORS, &labels, error, count, sink);
        }
    }

    /// The labels of the server that connections come to: a policy is for requests, so it is this process itself.
    fn server(&self) -> [Label; 4] {
        let (name, _, port) = parts(&self.own);
        server_labels(None, name, port)
    }
}

fn tell(labels: &[Label], volume: &Volume, sink: &mut Sink<'_>) {
    sink.counter(&families::TCP_OPEN, labels, volume.opened);
    sink.gauge(&families::TCP_OPEN_NOW, labels, volume.open() as f64);
    sink.counter(&families::TCP_READ, labels, volume.read);
    sink.counter(&families::TCP_WRITE, labels, volume.written);
    for (errno, count) in ENDS.into_iter().zip(volume.ended) {
        nonzero(&families::TCP_CLOSE, labels, Some(Label::from_static_parts("errno", errno)), count, sink);
    }
}

/// Tells what happened at all.
fn nonzero(family: &Family, labels: &[Label], more: Option<Label>, count: u64, sink: &mut Sink<'_>) {
    if count > 0 {
        let labels: Vec<Label> = labels.iter().cloned().chain(more).collect();
        sink.counter(family, &labels, count);
    }
}
