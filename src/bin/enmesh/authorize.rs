//! Floor 7: asks Linkerd's authorization documents whether a request may pass, as a server's gate asks them.

use crate::output::Failure;
use enmesh::authz::client::Client;
use enmesh::authz::linkerd::compile::{Cluster, Workload};
use enmesh::authz::linkerd::words::{Access, Documents};
use enmesh::authz::path;
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::{Action, AuthzSettings, NetworkMatch};
use enmesh::authz::smi::{self, TrafficTargets};
use enmesh::policy::question::Question;
use enmesh::profile::name::ServiceName;
use enmesh::route::head::RequestHead;
use enmesh::tls::identity::{Identity, PeerIdentity, TrustDomain};
use serde_json::{Value, json};
use std::time::SystemTime;

/// Linkerd's default `clusterNetworks`.
const NETWORKS: [&str; 5] = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];

/// What files say about who may call whom.
#[derive(Debug)]
pub(crate) struct Authorizer {
    /// Of the process that is asked, in our own words: it comes before all others.
    own: Option<AuthzSettings>,
    documents: Documents,
    access: TrafficTargets,
    cluster: Cluster,
}

impl Authorizer {
    /// For a cluster of Linkerd's defaults, whose trust domain is named as its DNS domain.
    pub(crate) fn new(
        own: Option<AuthzSettings>,
        documents: Documents,
        access: TrafficTargets,
        domain: &str,
    ) -> Result<Self, Failure> {
        let trust_domain: TrustDomain =
            domain.parse().map_err(|bad| Failure::Usage(format!("--cluster-domain: {bad}")))?;
        let network = |text: &&str| text.parse().ok().map(|cidr| NetworkMatch { cidr, except: Vec::new() });
        let networks = NETWORKS.iter().filter_map(network).collect();
        let default = Access::AllUnauthenticated;
        let cluster = Cluster { trust_domain, networks, probe_networks: Vec::new(), default };
        Ok(Self { own, documents, access, cluster })
    }

    /// The decision about a request to `name`. `none`: no document speaks of authorization.
    pub(crate) fn decide(&self, asked: &Question, name: &ServiceName, head: &RequestHead<'_>) -> Value {
        let Some(settings) = self.settings(asked, name) else {
            return json!({"decision": "none", "rule": null});
        };
        let denied = |why: String| json!({"decision": "deny", "rule": why});
        if let Err(ambiguity) = path::check(head.path()) {
            return denied(format!("the path can be read in more than one way: {ambiguity}"));
        }
        let policy = match AuthzPolicy::compile(&settings) {
            Ok(policy) => policy,
            Err(invalid) => return denied(invalid.to_string()),
        };
        let peer = match self.peer(asked) {
            Ok(peer) => peer,
            Err(why) => return denied(why),
        };
        let decision = policy.decide(head, &Client { peer: peer.as_ref(), address: asked.from.ip });
        let word = match decision.action {
            Action::Allow | Action::Audit => "allow",
            Action::Deny | Action::NotFound => "deny",
        };
        json!({"decision": word, "rule": &**decision.rule})
    }

    /// What holds at the port that is asked; `None`: no document speaks of authorization.
    fn settings(&self, asked: &Question, name: &ServiceName) -> Option<AuthzSettings> {
        let namespace = asked.to.namespace.as_deref().or_else(|| name.host().split('.').nth(1));
        if self.own.is_some() {
            return self.own.clone();
        }
        if self.documents == Documents::default() && !self.access.is_empty() {
            let workload = smi::Workload {
                namespace: namespace.unwrap_or("default").into(),
                // The one that Kubernetes gives a pod that asks for none.
                account: asked.to.account.as_deref().unwrap_or("default").into(),
                labels: asked.to.labels.clone(),
                port: asked.port(),
            };
            let trust_domain = Some(self.cluster.trust_domain.clone());
            return Some(self.access.compile(&workload, trust_domain).settings);
        }
        if self.documents == Documents::default() {
            return None;
        }
        let workload = Workload {
            namespace: namespace.unwrap_or("default").into(),
            labels: asked.to.labels.clone(),
            port: asked.port(),
            port_name: None,
            probe_paths: Vec::new(),
        };
        Some(self.documents.compile(&workload, &self.cluster).settings)
    }

    /// Who calls, as the handshake would have proved it.
    fn peer(&self, asked: &Question) -> Result<Option<PeerIdentity>, String> {
        let Some(text) = &asked.from.identity else { return Ok(None) };
        let identity: Identity = text.parse().map_err(|bad| format!("from.identity: {bad}"))?;
        let named = identity.trust_domain().and_then(|domain| domain.parse().ok());
        let trust_domain = named.unwrap_or_else(|| self.cluster.trust_domain.clone());
        Ok(Some(PeerIdentity { identity, trust_domain, not_after: SystemTime::UNIX_EPOCH }))
    }
}
