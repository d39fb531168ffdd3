//! Floor 2: makes the families of what arrived from what was counted of it.

use crate::metrics::arrivals::{Arrivals, Client, Heap};
use crate::metrics::emit::{legacy_endings, parts, route_words};
use crate::metrics::families;
use crate::metrics::ledger::Sink;
use crate::metrics::names::Direction;
use crate::metrics::rules::{Rule, Verdict};
use crate::metrics::tally::Told;
use metrics::Label;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The labels of Linkerd's server, group and kind of which are one's own or a policy's.
const SERVER: [[&str; 2]; 2] = [["", "default"], ["policy.linkerd.io", "server"]];

/// Tells everything that arrived at one listener. `secured`: this process has an identity, so a caller without one is told as such.
pub(crate) fn arrivals(arrivals: &Arrivals, secured: bool, retain: Duration, sink: &mut Sink<'_>) {
    let rules = arrivals.rules().all();
    for (client, heap) in arrivals.sweep(sink.now(), retain) {
        let told = heap.tally.read();
        let here = Here { client: &client, rule: rules.get(&heap.rule()), secured, heap: &heap };
        here.tell(arrivals.place().target, &told, sink);
    }
    let rest = arrivals.rest().read();
    if rest.begun > 0 {
        let overflow = [Label::from_static_parts("overflow", "true")];
        sink.counter(&families::REQUEST, &overflow, rest.begun);
        legacy_endings(&families::RESPONSE, &overflow, &rest, sink);
        sink.histogram(&families::LATENCY, &overflow, &rest.latency);
    }
}

struct Here<'a> {
    client: &'a Client,
    rule: Option<&'a Rule>,
    secured: bool,
    heap: &'a Heap,
}

impl Here<'_> {
    fn tell(&self, target: Option<SocketAddr>, told: &Told, sink: &mut Sink<'_>) {
        let Some(grpc) = self.grpc(told) else { return };
        let target = target_labels(target);
        let server = self.server();
        let client = match self.client {
            Client::Known(identity) => Some(identity.as_str()),
            Client::Other => Some("other"),
            Client::Unknown => None,
        };
        let peer = peer_labels(client, self.secured);
        let rule = self.rule.map(rule_labels);
        let [group, kind, name] = route_words(&self.heap.names, grpc);
        let route = [
            Label::new("route_group", group),
            Label::new("route_kind", kind),
            Label::new("route_name", name),
        ];
        let all = |parts: &[&[Label]]| parts.concat();
        for (ending, count) in &told.endings {
            if let Some(word) = ending.error() {
                let error = [Label::from_static_parts("error", word)];
                sink.counter(&families::IN_HTTP_ERRORS, &all(&[&error, &target, &server]), *count);
            }
        }
        let judged = rule.as_ref().map(|rule| all(&[&target, &peer, &server, &route, rule]));
        match (self.rule.map(|rule| rule.verdict), judged) {
            // What the policy refuses is no request of the application: Linkerd counts it here alone.
            (Some(Verdict::Denied), Some(labels)) => {
                return sink.counter(&families::AUTHZ_DENY, &labels, told.begun);
            }
            (Some(Verdict::NotFound), _) => {
                let rule = rule.unwrap_or_default();
                let labels = all(&[&target, &peer, &server, &rule]);
                return sink.counter(&families::ROUTE_NOT_FOUND, &labels, told.begun);
            }
            (Some(Verdict::Allowed), Some(labels)) => {
                sink.counter(&families::AUTHZ_ALLOW, &labels, told.begun);
            }
            (_, None) | (None, Some(_)) => {}
        }
        let who = [
            Label::from_static_parts("direction", Direction::Inbound.as_str()),
            Label::new("authority", Arc::clone(&self.heap.names.dst)),
        ];
        let labels = all(&[&who, &target, &peer, &server, &route, rule.as_deref().unwrap_or_default()]);
        sink.counter(&families::REQUEST, &labels, told.begun);
        legacy_endings(&families::RESPONSE, &labels, told, sink);
        sink.histogram(&families::LATENCY, &labels, &told.latency);
    }

    /// Whether it is told as gRPC; `None` before anything ended.
    fn grpc(&self, told: &Told) -> Option<bool> {
        (!told.endings.is_empty()).then(|| self.heap.is_grpc(told.is_grpc()).unwrap_or(false))
    }

    fn server(&self) -> [Label; 4] {
        let (own, _, port) = parts(&self.heap.names.dst);
        server_labels(self.rule.and_then(|rule| rule.server.as_deref()), own, port)
    }
}

/// The labels `srv_…`: of Linkerd's `Server`, or of this process's own service.
pub(crate) fn server_labels(server: Option<&str>, own: &str, port: &str) -> [Label; 4] {
    let [group, kind] = SERVER[usize::from(server.is_some())];
    [
        Label::from_static_parts("srv_group", group),
        Label::from_static_parts("srv_kind", kind),
        Label::new("srv_name", server.unwrap_or(own).to_owned()),
        Label::new("srv_port", port.to_owned()),
    ]
}

/// The labels `target_…` of a listener, as it was told to listen.
pub(crate) fn target_labels(target: Option<SocketAddr>) -> Vec<Label> {
    let Some(addr) = target else { return Vec::new() };
    vec![
        Label::new("target_addr", addr.to_string()),
        Label::new("target_ip", addr.ip().to_string()),
        Label::new("target_port", addr.port().to_string()),
    ]
}

/// The labels `tls`, `client_id` and `no_tls_reason` of a caller; `None`: one that proved nothing.
pub(crate) fn peer_labels(client: Option<&str>, secured: bool) -> Vec<Label> {
    match client {
        Some(name) => {
            vec![Label::from_static_parts("tls", "true"), Label::new("client_id", name.to_owned())]
        }
        None if secured => vec![
            Label::from_static_parts("tls", "no_identity"),
            Label::from_static_parts("no_tls_reason", "no_tls_from_remote"),
        ],
        None => vec![Label::from_static_parts("tls", "disabled")],
    }
}

fn rule_labels(rule: &Rule) -> Vec<Label> {
    vec![
        Label::from_static_parts("authz_group", rule.group),
        Label::from_static_parts("authz_kind", rule.kind),
        Label::new("authz_name", Arc::clone(&rule.name)),
    ]
}
