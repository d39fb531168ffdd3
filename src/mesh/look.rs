//! Floor 6: what can be asked of a running mesh by who looks at it: its state, and what it would do with a request.

use crate::authz::client::Client;
use crate::authz::layer::Gate;
use crate::authz::settings::Action;
use crate::fault::decide::FaultSwitch;
use crate::mesh::directory::Directory;
use crate::mesh::hide;
use crate::mesh::inspect::{Inspection, parsed};
use crate::mesh::services::Services;
use crate::metrics::names::Direction;
use crate::metrics::set::MetricsSet;
use crate::policy::compile::{Compiler, Policy};
use crate::policy::question::Question;
use crate::policy::told::{told, unusable};
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use crate::route::head::RequestHead;
use crate::tls::identity::{Identity, PeerIdentity};
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::rotate::Identities;
use serde_json::{Value, json};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// Looks at a mesh without keeping it alive. Clones look at the same.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) services: Weak<Services>,
    pub(crate) gate: Option<Gate>,
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub(crate) identities: Option<Identities>,
}

impl Look {
    /// What the mesh knows; `None`: it is gone.
    pub(crate) fn inspect(&self) -> Option<Inspection> {
        #[cfg(any(feature = "tls", feature = "ring"))]
        let identity = self.identities.as_ref().map(crate::mesh::inspect::IdentityView::of);
        #[cfg(not(any(feature = "tls", feature = "ring")))]
        let identity = None;
        let services = self.services.upgrade()?;
        let directory = services.directory();
        Some(Inspection::of(&directory, identity, self.gate.as_ref()))
    }

    /// What the mesh would do with a request that it sends (`Outbound`) or that arrives (`Inbound`), in the form of
    /// `enmesh explain`. Asking changes nothing: a service that was not called so far is not watched for it.
    pub(crate) fn explain(&self, question: &Question, direction: Direction) -> Value {
        let explained = match direction {
            Direction::Outbound => self.outbound(question),
            Direction::Inbound => self.inbound(question),
        };
        let mut answer = explained.unwrap_or_else(|why| unusable(&question.id, &why));
        if let Some(services) = self.services.upgrade() {
            hide::in_explanation(&mut answer, &services.watch.tap.redaction);
        }
        answer
    }

    fn inbound(&self, question: &Question) -> Result<Value, String> {
        let services = self.services.upgrade().ok_or(GONE)?;
        let directory = services.directory();
        let (own, domain) = directory.own();
        let (own, domain, policy) = (own.clone(), Arc::clone(domain), directory.inbound().load_full());
        drop(directory);
        let authz = |head: &RequestHead<'_>| self.authorization(question, head);
        told(question, &policy, &own, &|()| own.clone(), authz, &domain)
    }

    fn outbound(&self, question: &Question) -> Result<Value, String> {
        let services = self.services.upgrade().ok_or(GONE)?;
        let directory = services.directory();
        let (_, domain) = directory.own();
        let domain = Arc::clone(domain);
        let name = asked_name(question, &domain)?;
        let none = |_: &RequestHead<'_>| json!({"decision": "none", "rule": null});
        let known = directory.known().find(|(known, _)| **known == name).map(|(_, known)| known);
        if let Some(service) = known.and_then(|known| known.service()) {
            let policy = service.policy.load_full();
            drop(directory);
            return told(question, &policy, &name, &|target| parsed(target.service(), &name), none, &domain);
        }
        let policy = uncalled(&directory, &name)?;
        drop(directory);
        let mut answer = told(question, &policy, &name, &ServiceName::clone, none, &domain)?;
        if let Some(Value::Array(why)) = answer.get_mut("why") {
            why.push(format!("this process has not called {name} so far").into());
        }
        Ok(answer)
    }

    fn authorization(&self, question: &Question, head: &RequestHead<'_>) -> Value {
        let Some(gate) = &self.gate else { return json!({"decision": "none", "rule": null}) };
        let peer = match peer(question) {
            Ok(peer) => peer,
            Err(why) => return json!({"decision": "deny", "rule": why}),
        };
        let (action, rule) = gate.explain(head, &Client { peer: peer.as_ref(), address: question.from.ip });
        let decision = match action {
            Action::Allow | Action::Audit => "allow",
            Action::Deny | Action::NotFound => "deny",
        };
        json!({"decision": decision, "rule": &*rule})
    }
}

const GONE: &str = "the mesh is gone";

/// The service that a question is about, as the directory calls it.
fn asked_name(question: &Question, domain: &str) -> Result<ServiceName, String> {
    let to = &question.to;
    let within = |service: &String| match &to.namespace {
        Some(namespace) if !service.contains('.') => format!("{service}.{namespace}"),
        Some(_) | None => service.clone(),
    };
    let text = to.service.as_ref().map(within).or_else(|| question.host().map(str::to_owned));
    let text =
        text.ok_or("host: is missing; name the service that is called, such as web-svc.emojivoto:80")?;
    let name: ServiceName = text.parse().map_err(|bad| format!("host: {bad}"))?;
    Ok(name.short(domain).or_port(question.port()))
}

/// The policy that a service would have if it were called.
fn uncalled(directory: &Directory, name: &ServiceName) -> Result<Policy<ServiceName>, String> {
    let known = directory.known().find(|(known, _)| *known == name);
    let profile = known.and_then(|(_, known)| known.profile.clone());
    let profile = profile.unwrap_or_else(|| Arc::new(ServiceProfile::new(name.clone())));
    let metrics = MetricsSet::unseen();
    let (service, own) = (name.to_string().into(), name.clone());
    let compiler = Compiler {
        service,
        own,
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    compiler.compile(profile, None, ServiceName::clone).map_err(|invalid| invalid.to_string())
}

/// Who calls, as the handshake would have proved it.
fn peer(question: &Question) -> Result<Option<PeerIdentity>, String> {
    let Some(text) = question.from.identity.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let identity: Identity = text.parse().map_err(|bad| format!("from.identity: {bad}"))?;
    let domain =
        identity.trust_domain().ok_or("from.identity: it has no trust domain; write spiffe://domain/path")?;
    let trust_domain = domain.parse().map_err(|bad| format!("from.identity: {bad}"))?;
    Ok(Some(PeerIdentity { identity, trust_domain, not_after: SystemTime::UNIX_EPOCH }))
}
