//! Floor 2: who talks to whom, and whether mutual TLS holds between them.

use crate::metrics::names::Direction;
use crate::metrics::report::{Figures, Kind, Process, Row, grouped, take_processes};
use crate::profile::name::ServiceName;
use crate::tls::identity::Identity;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Calls from one to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    /// Who calls: the first label of a process's own name, or what an identity says; `None` when nothing tells.
    pub src: Option<String>,
    /// Its namespace, where its name has one.
    pub src_namespace: Option<String>,
    /// Who is called.
    pub dst: String,
    /// Its namespace.
    pub dst_namespace: Option<String>,
    /// Who is called, as callers write it (label `dst`).
    pub service: String,
    /// Who told it: the caller, or the called one.
    pub direction: Direction,
    /// Whether both ends proved who they are.
    pub secured: bool,
    /// Why not, in Linkerd's words.
    pub no_tls_reason: Option<String>,
    /// Who the caller proved to be.
    pub client_id: Option<String>,
    /// Who the called one must be; `None` where its replicas differ.
    pub server_id: Option<String>,
    /// What went over it.
    #[serde(flatten)]
    pub figures: Figures,
}

/// How calls to a service are secured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// Why they are not, if they are not.
    pub no_tls_reason: Option<&'static str>,
    /// Who its replicas are, if all are one.
    pub server_id: Option<String>,
}

/// The process whose rows are read.
#[derive(Debug, Clone, Default)]
pub struct Told<'a> {
    /// Its own service.
    pub name: &'a str,
    /// Its identity, if it has one.
    pub identity: Option<&'a str>,
    /// How it calls services, by label; a service that is not here is called without TLS.
    pub security: BTreeMap<String, Security>,
}

/// The edges that one process's rows tell of: routes that are called, and callers.
pub fn of(process: &Told<'_>, rows: &[Row]) -> Vec<Edge> {
    let met = rows.iter().filter(|row| row.figures.requests > 0);
    let edges = met.filter_map(|row| {
        let edge = match (row.key.kind, row.key.direction) {
            (Kind::Route, Direction::Outbound) => outbound(process, row),
            (Kind::Client, Direction::Inbound) => inbound(row),
            _ => return None,
        };
        Some(((&row.key.service, &row.key.client), edge))
    });
    grouped(edges, Edge::add, Edge::judge)
}

fn outbound(process: &Told<'_>, row: &Row) -> Edge {
    let (src, src_namespace) = labels(process.name);
    let (dst, dst_namespace) = labels(&row.key.service);
    let none = Security { no_tls_reason: Some("no_identity"), server_id: None };
    let security = process.security.get(&row.key.service).unwrap_or(&none);
    let secured = security.no_tls_reason.is_none();
    Edge {
        src: Some(src),
        src_namespace,
        dst,
        dst_namespace,
        service: row.key.service.clone(),
        direction: Direction::Outbound,
        secured,
        no_tls_reason: security.no_tls_reason.map(str::to_owned),
        client_id: process.identity.filter(|_| secured).map(str::to_owned),
        server_id: security.server_id.clone(),
        figures: row.figures.clone(),
    }
}

fn inbound(row: &Row) -> Edge {
    let client = row.key.client.as_deref().filter(|client| !client.is_empty());
    let (src, src_namespace) = client.map_or((None, None), workload);
    let (dst, dst_namespace) = labels(&row.key.service);
    Edge {
        src,
        src_namespace,
        dst,
        dst_namespace,
        service: row.key.service.clone(),
        direction: Direction::Inbound,
        secured: client.is_some(),
        no_tls_reason: client.is_none().then(|| "no_tls_from_remote".to_owned()),
        client_id: client.map(str::to_owned),
        server_id: None,
        figures: row.figures.clone(),
    }
}

/// The first two labels of a service's name. An address is one label.
fn labels(name: &str) -> (String, Option<String>) {
    let host = name.parse::<ServiceName>().map_or_else(|_| name.to_owned(), |name| name.host().to_owned());
    if host.parse::<std::net::IpAddr>().is_ok() {
        return (name.to_owned(), None);
    }
    let mut labels = host.split('.').map(str::to_owned);
    (labels.next().unwrap_or_default(), labels.next())
}

/// What an identity says of its bearer: the service account and its namespace, else the end of its path or its first label.
fn workload(identity: &str) -> (Option<String>, Option<String>) {
    match identity.parse::<Identity>() {
        Ok(identity) => match identity.kubernetes() {
            Some((namespace, name)) => (Some(name.to_owned()), Some(namespace.to_owned())),
            None => {
                let text = identity.as_str();
                let last = text.strip_prefix("spiffe://").map(|path| path.rsplit('/').next().unwrap_or(path));
                (Some(last.unwrap_or_else(|| text.split('.').next().unwrap_or(text)).to_owned()), None)
            }
        },
        Err(_) => (Some(identity.to_owned()), None),
    }
}

/// The edges of one process or of many.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Edges {
    /// The window that was asked for.
    pub window_secs: f64,
    /// Who was asked.
    pub processes: Vec<Process>,
    /// The edges, by caller and called.
    pub edges: Vec<Edge>,
}

type EdgeKey = (Option<String>, Option<String>, String, Direction, Option<String>, Option<String>, bool);

impl Edges {
    /// Puts many processes' edges together. One that both its ends tell of is shown as its caller sees it; of callers that
    /// prove nothing the called one cannot say which they are, so they are left out where a caller told of itself.
    pub fn merge(all: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self::default();
        let mut edges = Vec::new();
        for report in all {
            whole.window_secs = whole.window_secs.max(report.window_secs);
            if take_processes(&mut whole.processes, report.processes) {
                edges.extend(report.edges.into_iter().map(|edge| (edge.key(), edge)));
            }
        }
        whole.edges = grouped(edges, Edge::add, Edge::judge);
        let called = |edge: &Edge| (edge.dst.clone(), edge.dst_namespace.clone(), edge.client_id.clone());
        let told = |edge: &&Edge| edge.direction == Direction::Outbound;
        let told: BTreeSet<_> = whole.edges.iter().filter(told).map(called).collect();
        whole.edges.retain(|edge| edge.direction == Direction::Outbound || !told.contains(&called(edge)));
        whole
    }

    /// Forgets the histograms.
    pub fn strip(&mut self) {
        self.edges.iter_mut().for_each(|edge| edge.figures.histogram = None);
    }
}

impl Edge {
    fn add(&mut self, other: &Self) {
        self.figures.add(&other.figures);
    }

    fn judge(&mut self) {
        self.figures.judge();
    }

    fn key(&self) -> EdgeKey {
        (
            self.src.clone(),
            self.src_namespace.clone(),
            self.service.clone(),
            self.direction,
            self.client_id.clone(),
            self.server_id.clone(),
            self.secured,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::report::{Facts, RowKey};
    use crate::metrics::stat::{Causes, Reading};
    use std::time::Duration;

    fn row(key: RowKey, requests: u64) -> Row {
        let reading = Reading { requests, successes: requests, ..Reading::default() };
        Row {
            key,
            process: None,
            facts: Facts::default(),
            elapsed_secs: 1.0,
            in_flight: 0,
            figures: Figures::of(&reading, Duration::from_secs(1)),
            retries: 0,
            no_budget: 0,
            causes: Causes::default(),
            failed_by: BTreeMap::new(),
            actual: None,
            series: None,
        }
    }

    fn route(service: &str, route: &str, requests: u64) -> Row {
        row(RowKey::route(Direction::Outbound, service, route), requests)
    }

    fn report(id: &str, edges: Vec<Edge>) -> Edges {
        let process = Process { id: Some(id.to_owned()), ..Process::default() };
        Edges { window_secs: 60.0, processes: vec![process], edges }
    }

    const WEB_ID: &str = "web.emojivoto.serviceaccount.identity.linkerd.cluster.local";

    fn web(secured: bool) -> Edges {
        let security = Security { no_tls_reason: None, server_id: Some("voting-id".into()) };
        let known =
            if secured { [("voting.emojivoto:80".to_owned(), security)].into() } else { BTreeMap::new() };
        let told = Told { name: "web.emojivoto", identity: Some(WEB_ID), security: known };
        let rows = [
            route("voting.emojivoto:80", "a", 3),
            route("voting.emojivoto:80", "b", 4),
            route("idle:80", "", 0),
        ];
        report("web", of(&told, &rows))
    }

    fn voting(client: &str) -> Edges {
        let rows = [row(RowKey::client("voting.emojivoto.svc.cluster.local:80", client), 7)];
        report("voting", of(&Told { name: "voting.emojivoto", ..Told::default() }, &rows))
    }

    #[test]
    fn an_edge_is_one_service_s_routes_together() {
        let edges = Edges::merge([web(true)]).edges;
        let [edge] = &edges[..] else { panic!("{edges:?}") };
        assert_eq!((edge.src.as_deref(), edge.src_namespace.as_deref()), (Some("web"), Some("emojivoto")));
        assert_eq!((&*edge.dst, edge.dst_namespace.as_deref()), ("voting", Some("emojivoto")));
        assert_eq!((edge.figures.requests, edge.secured), (7, true));
        assert_eq!((edge.client_id.as_deref(), edge.server_id.as_deref()), (Some(WEB_ID), Some("voting-id")));
    }

    #[test]
    fn what_both_ends_tell_is_shown_once() {
        assert_eq!(Edges::merge([web(true), voting(WEB_ID)]).edges.len(), 1);
        assert_eq!(Edges::merge([web(false), voting("")]).edges.len(), 1);
        let stranger = Edges::merge([web(true), voting("spiffe://mesh/ns/ops/sa/cron")]).edges;
        let srcs: Vec<_> = stranger.iter().map(|edge| edge.src.as_deref()).collect();
        assert_eq!(srcs, [Some("cron"), Some("web")]);
        let alone = Edges::merge([voting("")]).edges;
        assert_eq!(
            (alone[0].src.as_deref(), alone[0].no_tls_reason.as_deref()),
            (None, Some("no_tls_from_remote"))
        );
    }

    #[test]
    fn without_an_identity_nothing_is_secured() {
        let edges = Edges::merge([web(false)]).edges;
        assert_eq!((edges[0].secured, edges[0].no_tls_reason.as_deref()), (false, Some("no_identity")));
        assert_eq!(edges[0].client_id, None);
    }

    #[test]
    fn names_are_cut_into_labels() {
        assert_eq!(labels("10.0.0.1:80"), ("10.0.0.1:80".to_owned(), None));
        assert_eq!(labels("localhost"), ("localhost".to_owned(), None));
        assert_eq!(labels("web.ns.svc.cluster.local:80"), ("web".to_owned(), Some("ns".to_owned())));
        assert_eq!(workload("spiffe://mesh/team/cart").0.as_deref(), Some("cart"));
    }
}
