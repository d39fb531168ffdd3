//! Floor 1: reads SMI's TrafficSplit and HTTPRouteGroup, of all versions. Access control: `authz/smi.rs`.

use crate::profile::import::cluster::Cluster;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::Identity;
use crate::profile::import::cluster::Spot;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::matching::KeyMatch;
use crate::profile::matching::PathKind;
use crate::profile::matching::PathMatch;
use crate::profile::matching::TextMatch;
use crate::profile::matching::ValueMatch;
use crate::profile::name::ServiceName;
use crate::profile::object::Object;
use crate::profile::quantity;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::route::Action;
use crate::profile::route::Backend;
use crate::profile::route::Choice;
use crate::profile::route::Forward;
use crate::profile::route::Route;
use crate::profile::route::WeightedBackend;
use crate::profile::service::DefaultsProfile;
use crate::profile::service::ServiceProfile;
use http::HeaderName;
use http::Method;
use std::collections::BTreeMap;
use std::sync::Arc;

/// SMI's objects.
#[derive(Debug, Default)]
pub(crate) struct Smi {
    pub(crate) splits: Vec<Split>,
    pub(crate) groups: BTreeMap<(Arc<str>, Arc<str>), Vec<Named>>,
}

/// A match of an HTTPRouteGroup.
type Named = (Arc<str>, Condition);

/// A TrafficSplit.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    identity: Identity,
    service: Arc<str>,
    backends: Vec<(Arc<str>, u32)>,
    /// The groups whose requests alone are split.
    matches: Vec<(Arc<str>, Spot)>,
}

const KINDS: &[&str] = &[
    "TrafficSplit",
    "HTTPRouteGroup",
    "TrafficTarget",
    "IdentityBinding",
    "TrafficMetrics",
    "TCPRoute",
    "UDPRoute",
];

/// Whether an object is SMI's: by its group, or without an apiVersion by its kind, as the specification writes it.
pub(crate) fn is_smi(object: &Object) -> bool {
    let group = object.group();
    let bare = group.is_empty() && !matches!(object.api_version.as_str(), "v1");
    group.ends_with(".smi-spec.io") || bare && KINDS.contains(&object.kind.as_str())
}

impl Smi {
    /// Reads an object of SMI.
    pub(crate) fn read(
        &mut self,
        documents: &mut Documents,
        document: usize,
        object: &Object,
        namespace: &Arc<str>,
    ) {
        match object.kind.as_str() {
            "TrafficSplit" => {
                let split = documents.read(document, object, namespace, |f, identity| {
                    f.get("spec").required().fields(|f| split(f, identity))?
                });
                self.splits.extend(split.map(|(_, split)| split));
            }
            "HTTPRouteGroup" => {
                let group = documents.read(document, object, namespace, |f, _| {
                    // Before v1alpha3 there was no `spec`.
                    let (spec, bare) = (f.get("spec"), f.get("matches"));
                    match spec.is_present() {
                        true => spec.fields(|f| matches(&f.get("matches").required())),
                        false => Some(matches(&bare.required())),
                    }
                });
                let of = |identity: &Identity| (Arc::clone(&identity.namespace), Arc::clone(&identity.name));
                self.groups.extend(group.map(|(identity, group)| (of(&identity), group)));
            }
            "TCPRoute" | "UDPRoute" | "TrafficMetrics" => {
                let problem = format!("a {} says nothing about requests", object.kind);
                documents.say(document, Fault::new(Severity::Ignored, "kind", problem, "remove it"));
            }
            "TrafficTarget" | "IdentityBinding" => {
                let problem =
                    format!("is a {}: access control is not read here, and would be lost", object.kind);
                let remedy = "give it to the server: `authz::smi::TrafficTargets` reads it for `MeshBuilder::authorize`";
                documents.say(document, Fault::rejected("kind", problem, remedy));
            }
            kind => {
                let problem = format!("is a {kind}, which is not read: its effect would be lost");
                documents.say(document, Fault::rejected("kind", problem, "remove it"));
            }
        }
    }

    /// The profiles: one for the root service of each split. Its other requests go to itself.
    pub(crate) fn profiles(self, cluster: &Cluster, documents: &mut Documents) -> Vec<ServiceProfile> {
        let mut profiles: Vec<ServiceProfile> = Vec::new();
        for split in &self.splits {
            let namespace = &split.identity.namespace;
            let Some(name) = full_name(cluster, namespace, &split.service) else { continue };
            if profiles.iter().any(|profile| profile.names.contains(&name)) {
                let problem = format!("is the second split of {}: the first one counts", split.service);
                let fault = Fault::new(Severity::Ignored, "spec.service", problem, "remove one of them");
                documents.say(split.identity.document, fault);
                continue;
            }
            let backends: Vec<WeightedBackend> = split
                .backends
                .iter()
                .filter_map(|(service, weight)| {
                    let name = full_name(cluster, namespace, service)?;
                    let backend = Backend::Service { name, subset: None };
                    Some(WeightedBackend { backend, weight: *weight, filters: Vec::new() })
                })
                .collect();
            let mut profile = ServiceProfile {
                names: vec![name],
                namespace: Some(Arc::clone(namespace)),
                defaults: DefaultsProfile::Smi,
                origin: Arc::clone(&split.identity.origin),
                ..ServiceProfile::default()
            };
            let failover = split.failover(documents);
            let forward = match failover {
                Some(primary) => in_order(backends, full_name(cluster, namespace, &primary)),
                None => Forward { backends, ..Forward::default() },
            };
            match (split.matches.is_empty(), forward.choice) {
                (true, Choice::Weighted | Choice::Sticky) => profile.backends = forward.backends,
                (true, Choice::FirstAvailable) => profile.routes.push(Route {
                    name: Arc::clone(&split.identity.name),
                    action: Action::Forward(forward),
                    origin: Arc::clone(&split.identity.origin),
                    ..Route::default()
                }),
                (false, _) => profile.routes = self.routes(split, &forward, documents),
            }
            profiles.push(profile);
        }
        profiles
    }

    fn routes(&self, split: &Split, forward: &Forward, documents: &mut Documents) -> Vec<Route> {
        let mut routes = Vec::new();
        for (name, spot) in &split.matches {
            let Some(group) = self.groups.get(&(Arc::clone(&split.identity.namespace), Arc::clone(name)))
            else {
                let problem = format!("names HTTPRouteGroup {name}, which is not among the files");
                let fault = Fault::new(Severity::RuntimeFailure, "", problem, "give the file that holds it");
                documents.say_at(split.identity.document, spot, fault);
                continue;
            };
            routes.extend(group.iter().map(|(one, condition)| Route {
                name: format!("{name}/{one}").into(),
                condition: condition.clone(),
                action: Action::Forward(forward.clone()),
                origin: Arc::clone(&split.identity.origin),
                ..Route::default()
            }));
        }
        routes
    }
}

impl Split {
    /// The primary service of a split that `linkerd-failover` is asked to control: its first backend unless an annotation
    /// names another. Here no controller need write weights: the first backend that has usable endpoints is asked.
    fn failover(&self, documents: &mut Documents) -> Option<Arc<str>> {
        let controller = self.identity.labels.get("failover.linkerd.io/controlled-by")?;
        if controller != "linkerd-failover" {
            return None;
        }
        if self.backends.len() > 2 {
            let problem =
                "has several fallbacks, which would share requests: the first usable one gets them all";
            let fault =
                Fault::new(Severity::Approximated, "spec.backends", problem, "write the best one first");
            documents.say(self.identity.document, fault);
        }
        let named = self.identity.annotations.get("failover.linkerd.io/primary-service");
        let known = named.filter(|named| self.backends.iter().any(|(service, _)| **service == ***named));
        if let Some(named) = named.filter(|_| known.is_none()) {
            let problem = format!("is {named}, which is none of the backends: the first one is the primary");
            let path = "metadata.annotations[\"failover.linkerd.io/primary-service\"]";
            documents
                .say(self.identity.document, Fault::new(Severity::Ignored, path, problem, "name a backend"));
        }
        known.map(|named| Arc::from(named.as_str())).or_else(|| Some(Arc::clone(&self.backends.first()?.0)))
    }
}

/// The backends with the primary one first, whatever weights a controller wrote last.
fn in_order(backends: Vec<WeightedBackend>, primary: Option<ServiceName>) -> Forward {
    let is_primary = |one: &WeightedBackend| match &one.backend {
        Backend::Service { name, .. } => Some(name) == primary.as_ref(),
        Backend::Invalid { .. } => false,
    };
    let (first, others): (Vec<_>, Vec<_>) = backends.into_iter().partition(is_primary);
    let all = first.into_iter().chain(others);
    let backends = all.map(|one| WeightedBackend { weight: 1, ..one }).collect();
    Forward { backends, choice: Choice::FirstAvailable, ..Forward::default() }
}

/// A service as SMI names it: in the object's namespace, unless it is written with its own.
fn full_name(cluster: &Cluster, namespace: &str, service: &str) -> Option<ServiceName> {
    match service.split_once('.') {
        None => cluster.service_name(namespace, service, None),
        Some((name, rest)) => {
            let own = rest.split('.').next().unwrap_or(rest);
            cluster.service_name(own, name, None)
        }
    }
}

fn split(f: &mut Fields<'_>, identity: &Identity) -> Option<Split> {
    let service = words::name(&f.get("service").required());
    let backends_field = f.get("backends").required();
    let backends = backends_field.each(|item| {
        item.fields(|f| {
            let service = words::name(&f.get("service").required());
            let weight_field = f.get("weight").required();
            // In thousandths: v1alpha1 has quantities such as 100m, later versions whole numbers.
            let weight =
                weight_field.parse_literal(quantity::milli).and_then(|milli| match u32::try_from(milli) {
                    Ok(weight) => Some(weight),
                    Err(_) => weight_field.must_be("a weight from 0 to 4294967"),
                });
            Some((service?, weight?))
        })?
    });
    let sum: u64 = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if sum > u64::from(u32::MAX) {
        backends_field.reject(
            format!("has weights of {} in all, more than 4294967", sum / 1_000),
            "write smaller ones",
        );
    }
    let matches = f.get("matches").each(|item| {
        item.fields(|f| {
            f.skip(&["apiGroup"]);
            f.get("kind").word(&[("HTTPRouteGroup", ())]);
            words::name(&f.get("name").required()).map(|name| (name, Spot::of(&item)))
        })?
    });
    Some(Split { identity: identity.clone(), service: service?, backends, matches })
}

/// The matches of an HTTPRouteGroup: all parts of one must hold.
pub(crate) fn matches(field: &Field<'_>) -> Vec<Named> {
    field.each(|item| {
        item.fields(|f| {
            let name = words::name(&f.get("name").required());
            let path = words::regex(&f.get("pathRegex"))
                .map(|regex| Condition::Path(PathMatch::new(PathKind::RegexPrefix, regex)));
            let methods = f.get("methods").each(|item| {
                item.parse(|text| {
                    Method::from_bytes(text.as_bytes()).map_err(|_| "a method, or *".to_owned())
                })
            });
            // `*` is a token, and so a method of its own to the parser.
            let any = methods.is_empty() || methods.iter().any(|method| method.as_str() == "*");
            let methods = (!any).then_some(Condition::Method(methods));
            let headers = headers(&f.get("headers"));
            let parts = path.into_iter().chain(methods).chain(headers).collect();
            name.map(|name| (name, Condition::All(parts)))
        })?
    })
}

/// A mapping from header to pattern, or a list of such mappings; all must match.
fn headers(field: &Field<'_>) -> Vec<Condition> {
    let is_list = field.node().is_some_and(|node| matches!(node.value, crate::profile::node::Value::List(_)));
    let maps = if is_list { field.items() } else { vec![field.clone()] };
    let pairs = maps.iter().filter(|map| map.is_present()).flat_map(Field::pairs);
    pairs
        .filter_map(|(name, value)| {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                value.reject(format!("stands under {name:?}, which is no header"), "correct the name");
                return None;
            }
            let regex = words::regex(&value)?;
            Some(Condition::Header(KeyMatch::new(name, ValueMatch::Text(TextMatch::Regex(regex)))))
        })
        .collect()
}
