//! Floor 1: writes a profile as `enmesh.dev/v1`, which says all that the model can.

use crate::profile::parse::DEFAULTS;
use crate::profile::service::DefaultsProfile;
use crate::profile::service::NoMatch;
use crate::profile::service::ServiceProfile;
use crate::profile::write::emit;
use crate::profile::write::route;
use crate::profile::write::service;
use crate::profile::write::settings;
use crate::profile::write::tree;
use crate::profile::write::tree::Tree;
use serde_json::Value;

impl ServiceProfile {
    /// The profile as an `enmesh.dev/v1` document in YAML. [`from_yaml`](Self::from_yaml) reads the same profile
    /// back, but for the places where it was written.
    pub fn to_yaml(&self) -> String {
        emit::yaml(&self.to_json())
    }

    /// The profile as an `enmesh.dev/v1` document in JSON.
    pub fn to_json(&self) -> Value {
        document("enmesh.dev/v1", self, spec(self))
    }
}

/// A ServiceProfile document around a `spec`.
pub(crate) fn document(api_version: &str, profile: &ServiceProfile, spec: Tree) -> Value {
    let metadata = Tree::default()
        .maybe("name", profile.name().map(ToString::to_string))
        .maybe("namespace", profile.namespace.as_deref());
    Tree::default()
        .with("apiVersion", api_version)
        .with("kind", "ServiceProfile")
        .with("metadata", metadata)
        .with("spec", spec)
        .into()
}

fn spec(profile: &ServiceProfile) -> Tree {
    let hosts: Vec<String> = profile.names.iter().skip(1).map(ToString::to_string).collect();
    let defaults =
        (profile.defaults != DefaultsProfile::Enmesh).then(|| tree::word(DEFAULTS, &profile.defaults));
    let opaque = profile.opaque_ports.iter();
    let opaque = opaque.fold(Tree::default(), |tree, port| tree.with(&port.to_string(), Tree::default()));
    Tree::default()
        .list("hosts", tree::texts(&hosts))
        .maybe("defaults", defaults)
        .list("routes", profile.routes.iter().map(route::route).collect())
        .maybe("noMatch", (profile.no_match == NoMatch::NotFound).then_some("NotFound"))
        .list("backends", route::backends(&profile.backends))
        .below("timeouts", settings::timeouts(&profile.timeouts))
        .maybe("retry", profile.retry.as_ref().map(settings::retry))
        .maybe("retryBudget", profile.retry_budget.as_ref().map(settings::budget))
        .below("balancer", service::balancer(&profile.balancer))
        .maybe("failureAccrual", profile.breaker.as_ref().map(service::breaker))
        .below("limits", service::limits(&profile.limits))
        .below("tls", service::tls(&profile.tls))
        .below("opaquePorts", opaque)
        .maybe("slo", profile.objective.as_ref().map(service::objective))
}
