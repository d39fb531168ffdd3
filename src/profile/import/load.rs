//! Floor 1: reads documents of any dialect and makes profiles of them.
//!
//! ```
//! use enmesh::profile::import::{cluster::ImportSettings, load::load_text};
//!
//! let imported = load_text("
//! apiVersion: gateway.networking.k8s.io/v1
//! kind: HTTPRoute
//! metadata: {name: canary, namespace: shop}
//! spec:
//!   parentRefs: [{group: '', kind: Service, name: cart}]
//!   rules:
//!   - backendRefs: [{name: cart-v1, port: 80, weight: 9}, {name: cart-v2, port: 80, weight: 1}]
//! ", "cart.yaml", &ImportSettings::default());
//! assert_eq!(imported.profiles[0].names[0].to_string(), "cart.shop.svc.cluster.local");
//! assert!(imported.notes.iter().all(|notes| notes.faults.is_empty()));
//! ```

use crate::profile::import::cluster::Cluster;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::ImportSettings;
use crate::profile::import::cluster::Notes;
use crate::profile::import::egress;
use crate::profile::import::gateway_api::GatewayApi;
use crate::profile::import::gateway_parent;
use crate::profile::import::gateway_policy;
use crate::profile::import::gateway_route;
use crate::profile::import::merge;
use crate::profile::import::smi;
use crate::profile::import::smi::Smi;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::node::Node;
use crate::profile::node::Value;
use crate::profile::object;
use crate::profile::object::Object;
use crate::profile::parse;
use crate::profile::reader;
use crate::profile::service::ServiceProfile;

/// What documents became.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Imported {
    /// The profiles: of each service that anything is said about, and of each gateway's port that routes attach to.
    /// A profile's `namespace` says whose callers it is for: where it is not that of the service, it is a consumer's,
    /// and comes before the service's own for callers in that namespace.
    pub profiles: Vec<ServiceProfile>,
    /// Every document in order, with what is to say about it. Nothing is dropped in silence.
    pub notes: Vec<Notes>,
}

impl Imported {
    /// Whether a document was refused.
    pub fn any_rejected(&self) -> bool {
        let mut faults = self.notes.iter().flat_map(|notes| &notes.faults);
        faults.any(|fault| fault.severity == Severity::Rejected)
    }
}

/// Imports all documents of one text; `origin` is the name of its file.
pub fn load_text(text: &str, origin: &str, settings: &ImportSettings) -> Imported {
    load(object::read(text, origin), settings)
}

/// Imports documents, which may come from many files and refer to each other.
///
/// A refused document is left out, and the others stand as if it were not there; a caller that has a last good one
/// keeps that. Where a namespace's services are among the documents, they are taken to be all: a reference to another
/// one is answered with an error, as Gateway API has it. Where none is, nothing is said of them.
pub fn load(objects: Vec<Object>, settings: &ImportSettings) -> Imported {
    load_beside(objects, Vec::new(), settings)
}

/// The same beside profiles that were read already, which are merged with the others.
pub fn load_beside(
    objects: Vec<Object>,
    profiles: Vec<ServiceProfile>,
    settings: &ImportSettings,
) -> Imported {
    let mut documents = Documents::default();
    let mut cluster = Cluster { settings: settings.clone(), ..Cluster::default() };
    for object in &objects {
        documents.notes.push(Notes {
            origin: object.origin.clone(),
            object: described(object).into(),
            faults: Vec::new(),
        });
    }
    let mut dialects = Dialects::default();
    for (document, object) in objects.into_iter().enumerate() {
        dialects.read(object, document, &mut cluster, &mut documents);
    }
    let Dialects { mut gateway_api, smi, mut linkerd, grants } = dialects;
    linkerd.extend(profiles.into_iter().map(|profile| (usize::MAX, profile)));
    cluster.grants = grants;
    gateway_api.routes.sort_by_key(|route| route.identity.seniority());
    let mut profiles = gateway_api.profiles(&cluster, &mut documents);
    profiles.extend(smi.profiles(&cluster, &mut documents));
    let (places, linkerd): (Vec<usize>, Vec<ServiceProfile>) = linkerd.into_iter().unzip();
    let (profiles, faults) = merge::merge(profiles, linkerd, &settings.cluster_domain);
    for fault in faults {
        documents.say(places.first().copied().unwrap_or_default(), fault);
    }
    Imported { profiles, notes: documents.notes }
}

/// Whether an object is of a dialect that [`load`] understands, or tells something of the cluster that those refer to:
/// a service, a namespace, a config map.
pub fn is_read(object: &Object) -> bool {
    let group = object.group();
    match object.kind.as_str() {
        "Service" | "Namespace" | "ConfigMap" => object.api_version == "v1",
        // Routes of Linkerd's servers say who may call: they are read where access is.
        "HTTPRoute" if group == gateway_route::LINKERD => !is_of_server(object),
        "EgressNetwork" => group == gateway_route::LINKERD,
        "TrafficTarget" | "IdentityBinding" => false,
        _ => smi::is_smi(object) || [gateway_route::GROUP, EXPERIMENTAL].contains(&group),
    }
}

fn is_of_server(object: &Object) -> bool {
    let parents = object.root.get("spec").and_then(|spec| spec.get("parentRefs"));
    match parents.map(|parents| &parents.value) {
        Some(Value::List(parents)) => {
            parents.iter().any(|parent| parent.get("kind").and_then(Node::text) == Some("Server"))
        }
        Some(Value::Map(_) | Value::Scalar(_)) | None => false,
    }
}

fn described(object: &Object) -> String {
    let metadata = object.root.get("metadata");
    let text = |key: &str| metadata.and_then(|metadata| metadata.get(key)?.text()).unwrap_or_default();
    let (kind, namespace, name) = (object.kind.as_str(), text("namespace"), text("name"));
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}

/// The objects of all dialects.
#[derive(Debug, Default)]
struct Dialects {
    gateway_api: GatewayApi,
    smi: Smi,
    linkerd: Vec<(usize, ServiceProfile)>,
    grants: Vec<crate::profile::import::cluster::Grant>,
}

/// Kinds that stand in the same files and say nothing about requests.
const UNRELATED: &[&str] = &[
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "EndpointSlice",
    "Endpoints",
    "GatewayClass",
    "HorizontalPodAutoscaler",
    "Ingress",
    "Job",
    "LimitRange",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "Pod",
    "PodDisruptionBudget",
    "ReplicaSet",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "Secret",
    "Service",
    "ServiceAccount",
    "StatefulSet",
];

impl Dialects {
    fn read(&mut self, object: Object, document: usize, cluster: &mut Cluster, documents: &mut Documents) {
        if cluster.add(&object, document) {
            return;
        }
        let namespace = cluster.settings.namespace.clone();
        if parse::is_profile(&object) {
            let read = parse::profile(object);
            if let Some(notes) = documents.notes.get_mut(document) {
                notes.faults.extend(read.faults);
            }
            self.linkerd.extend(read.profile.map(|profile| (document, profile)));
            return;
        }
        if smi::is_smi(&object) {
            self.smi.read(documents, document, &object, &namespace);
            return;
        }
        let api = &mut self.gateway_api;
        match (object.group(), object.kind.as_str()) {
            (gateway_route::GROUP, "HTTPRoute" | "GRPCRoute") | (gateway_route::LINKERD, "HTTPRoute") => {
                api.routes.extend(gateway_route::read(documents, document, &object, &namespace));
            }
            (gateway_route::GROUP | EXPERIMENTAL, "Gateway" | "ListenerSet" | "XListenerSet") => {
                api.gateways.extend(gateway_parent::read(documents, document, &object, &namespace));
            }
            (gateway_route::LINKERD, "EgressNetwork") => {
                api.egress.extend(egress::read(documents, document, &object, &namespace));
            }
            (gateway_route::GROUP, "ReferenceGrant") => {
                self.grants.extend(gateway_parent::grant(documents, document, &object, &namespace));
            }
            (gateway_route::GROUP, "BackendTLSPolicy") => {
                api.policies.tls.extend(gateway_policy::tls(documents, document, &object, &namespace));
            }
            (EXPERIMENTAL, "XBackendTrafficPolicy") => {
                api.policies
                    .traffic
                    .extend(gateway_policy::traffic(documents, document, &object, &namespace));
            }
            _ => foreign(&object, document, documents),
        }
    }
}

/// The group of what Gateway API tries out.
const EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";

/// Says that a document is not understood. What is no YAML says so itself; a kind of a dialect that is understood is
/// refused, since requests would go another way without it.
fn foreign(object: &Object, document: usize, documents: &mut Documents) {
    for fault in &object.faults {
        documents.say(document, fault.clone());
    }
    if !object.faults.is_empty() {
        return;
    }
    let (kind, version) = (object.kind.as_str(), object.api_version.as_str());
    if UNRELATED.contains(&kind) {
        return;
    }
    let known = [gateway_route::GROUP, EXPERIMENTAL, gateway_route::LINKERD, "linkerd.io", "enmesh.dev"];
    let fault = match (kind, known.contains(&object.group())) {
        ("", _) => Fault::rejected("kind", "is missing", "write apiVersion, kind and metadata"),
        (_, true) => {
            let kinds = [
                "HTTPRoute",
                "GRPCRoute",
                "Gateway",
                "ListenerSet",
                "ReferenceGrant",
                "BackendTLSPolicy",
                "XBackendTrafficPolicy",
                "ServiceProfile",
            ];
            let problem = format!("kind {kind} of {version} is not read: its effect would be lost");
            Fault::rejected("kind", problem, reader::meant(kind, &kinds))
        }
        (_, false) => {
            let problem = format!("kind {kind} of {version} says nothing here");
            Fault::new(Severity::Ignored, "kind", problem, "remove it if it is not meant for something else")
        }
    };
    documents.say(document, fault.at(object.root.place));
}
