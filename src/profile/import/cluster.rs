//! Floor 1: what importers know of a cluster: its services, namespaces and grants, as far as the files show them.

use crate::profile::invalid::Fault;
use crate::profile::invalid::Place;
use crate::profile::name::ServiceName;
use crate::profile::node::Node;
use crate::profile::node::Value;
use crate::profile::object;
use crate::profile::object::Metadata;
use crate::profile::object::Object;
use crate::profile::reader::Faults;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How documents are imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportSettings {
    /// What the names of services end in. Default `cluster.local`, as in Kubernetes.
    pub cluster_domain: Arc<str>,
    /// The namespace of objects that say none. Default `default`, as kubectl has it.
    pub namespace: Arc<str>,
}

impl Default for ImportSettings {
    fn default() -> Self {
        Self { cluster_domain: "cluster.local".into(), namespace: "default".into() }
    }
}

/// One document, and what is to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes {
    /// Where it stands: `file#0`.
    pub origin: Arc<str>,
    /// `HTTPRoute shop/cart`.
    pub object: Arc<str>,
    /// Everything that is wrong with it, has no effect, or another one than written.
    pub faults: Vec<Fault>,
}

/// Who an object is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    /// RFC 3339, which sorts by time.
    pub(crate) created: Option<Arc<str>>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) origin: Arc<str>,
    /// Which of the documents it is.
    pub(crate) document: usize,
}

impl Identity {
    /// The order in which Gateway API settles conflicts: the oldest, then by namespace and name. Objects from files
    /// without a time count as the youngest.
    pub(crate) fn seniority(&self) -> (bool, Option<Arc<str>>, Arc<str>, Arc<str>) {
        (self.created.is_none(), self.created.clone(), Arc::clone(&self.namespace), Arc::clone(&self.name))
    }
}

/// A place in a document, to speak about it later.
#[derive(Debug, Clone)]
pub(crate) struct Spot {
    pub(crate) path: String,
    pub(crate) place: Place,
}

impl Spot {
    pub(crate) fn of(field: &Field<'_>) -> Self {
        Self { path: field.path().to_owned(), place: field.place() }
    }
}

/// All documents of an import, as they are read.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    pub(crate) notes: Vec<Notes>,
}

impl Documents {
    /// Reads `object` strictly with `read`; `None` if it is refused. `namespace` is that of objects that say none.
    pub(crate) fn read<T>(
        &mut self,
        document: usize,
        object: &Object,
        namespace: &Arc<str>,
        read: impl FnOnce(&mut Fields<'_>, &Identity) -> Option<T>,
    ) -> Option<(Identity, T)> {
        let faults = Faults::default();
        object.faults.iter().for_each(|fault| faults.add(fault.clone()));
        let found = Field::root(&object.root, &faults).fields(|f| {
            let metadata = object::metadata(f);
            if metadata.name.is_empty() {
                f.get("metadata").look("name").reject("is missing", "give it a name");
            }
            let identity = identity(metadata, document, object, namespace);
            read(f, &identity).map(|found| (identity, found))
        });
        let refused = faults.any_rejected();
        if let Some(notes) = self.notes.get_mut(document) {
            notes.faults.extend(faults.into_vec());
        }
        found.flatten().filter(|_| !refused)
    }

    /// Says something about a document.
    pub(crate) fn say(&mut self, document: usize, fault: Fault) {
        if let Some(notes) = self.notes.get_mut(document)
            && !notes.faults.contains(&fault)
        {
            notes.faults.push(fault);
        }
    }

    /// Says something about a place in a document.
    pub(crate) fn say_at(&mut self, document: usize, spot: &Spot, fault: Fault) {
        let fault = Fault { path: spot.path.clone(), ..fault };
        self.say(document, fault.at(spot.place));
    }
}

fn identity(metadata: Metadata, document: usize, object: &Object, namespace: &Arc<str>) -> Identity {
    Identity {
        namespace: metadata.namespace.unwrap_or_else(|| Arc::clone(namespace)),
        name: metadata.name.into(),
        created: metadata.created.map(Arc::from),
        annotations: metadata.annotations,
        labels: metadata.labels,
        origin: Arc::clone(&object.origin),
        document,
    }
}

/// A Kubernetes service, as far as routes care.
#[derive(Debug, Clone, Default)]
pub(crate) struct KubeService {
    /// Its ports with their names.
    pub(crate) ports: Vec<(u16, Option<Arc<str>>)>,
    /// Whether it is only an alias for a host outside.
    pub(crate) external: bool,
    pub(crate) identity: Identity,
}

/// What a grant is for.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) group: Arc<str>,
    pub(crate) kind: Arc<str>,
    /// If only one is meant.
    pub(crate) name: Option<Arc<str>>,
}

/// What may refer to what across namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) namespace: Arc<str>,
    /// Group, kind and namespace.
    pub(crate) from: Vec<[Arc<str>; 3]>,
    pub(crate) to: Vec<Granted>,
}

/// Who refers to a service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From<'a> {
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
}

/// Namespace and name of an object.
type Key = (Arc<str>, Arc<str>);

/// The cluster as the files show it.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) settings: ImportSettings,
    pub(crate) services: BTreeMap<(Arc<str>, Arc<str>), KubeService>,
    pub(crate) namespaces: BTreeMap<Arc<str>, BTreeMap<String, String>>,
    pub(crate) grants: Vec<Grant>,
    /// The config maps, and the certificates that each holds under `ca.crt`.
    pub(crate) authorities: BTreeMap<Key, Option<Arc<str>>>,
}

impl Cluster {
    /// Takes in an object of Kubernetes itself; `false` if it is none that matters here.
    pub(crate) fn add(&mut self, object: &Object, document: usize) -> bool {
        let text = |node: Option<&Node>| node.and_then(Node::text).map(Arc::<str>::from);
        let metadata = object.root.get("metadata");
        let field = |key: &str| text(metadata.and_then(|metadata| metadata.get(key)));
        let namespace = field("namespace").unwrap_or_else(|| Arc::clone(&self.settings.namespace));
        let Some(name) = field("name") else { return false };
        match (object.group(), object.kind.as_str()) {
            ("", "Namespace") => {
                let labels = metadata.and_then(|metadata| metadata.get("labels"));
                self.namespaces.insert(name, texts(labels));
            }
            ("", "ConfigMap") => {
                let authority = object.root.get("data").and_then(|data| data.get("ca.crt"));
                let pem = authority.and_then(Node::text).filter(|text| is_certificate(text));
                self.authorities.insert((namespace, name), pem.map(Arc::from));
            }
            ("", "Service") => {
                let spec = object.root.get("spec");
                let service = KubeService {
                    ports: ports(spec),
                    external: text(spec.and_then(|spec| spec.get("type"))).as_deref() == Some("ExternalName"),
                    identity: Identity {
                        namespace: Arc::clone(&namespace),
                        name: Arc::clone(&name),
                        created: field("creationTimestamp"),
                        annotations: texts(metadata.and_then(|metadata| metadata.get("annotations"))),
                        labels: BTreeMap::new(),
                        origin: Arc::clone(&object.origin),
                        document,
                    },
                };
                self.services.insert((namespace, name), service);
            }
            _ => return false,
        }
        true
    }

    /// The full name of a service.
    pub(crate) fn service_name(&self, namespace: &str, name: &str, port: Option<u16>) -> Option<ServiceName> {
        let host = format!("{name}.{namespace}.svc.{}", self.settings.cluster_domain);
        let name: ServiceName = host.parse().ok()?;
        Some(name.or_some_port(port))
    }

    /// A service; `None` if it is missing among those of its namespace; an empty one if the files show none there at
    /// all, so that nothing can be said.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<Option<&KubeService>> {
        if let Some(service) = self.services.get(&(namespace.into(), name.into())) {
            return Some(Some(service));
        }
        let shown = self.services.keys().any(|(known, _)| **known == *namespace);
        (!shown).then_some(None)
    }

    /// Whether `from` may refer to the service `name` of another namespace.
    pub(crate) fn grants(&self, from: From<'_>, namespace: &str, name: &str) -> bool {
        let wanted = [from.group, from.kind, from.namespace];
        self.grants.iter().filter(|grant| *grant.namespace == *namespace).any(|grant| {
            let from = grant.from.iter().any(|from| from.iter().zip(wanted).all(|(a, b)| **a == *b));
            let to = grant.to.iter().any(|Granted { group, kind, name: only }| {
                group.is_empty() && **kind == *"Service" && only.as_ref().is_none_or(|only| **only == *name)
            });
            from && to
        })
    }
}

fn ports(spec: Option<&Node>) -> Vec<(u16, Option<Arc<str>>)> {
    let Some(Value::List(items)) = spec.and_then(|spec| spec.get("ports")).map(|ports| &ports.value) else {
        return Vec::new();
    };
    let port = |item: &Node| {
        let number = item.get("port")?.text()?.parse().ok()?;
        Some((number, item.get("name").and_then(Node::text).map(Arc::from)))
    };
    items.iter().filter_map(port).collect()
}

/// The texts of a mapping.
fn texts(node: Option<&Node>) -> BTreeMap<String, String> {
    let entries = node.map(Node::entries).unwrap_or_default();
    entries.iter().filter_map(|entry| Some((entry.key.clone(), entry.node.text()?.to_owned()))).collect()
}

/// Whether a text looks like PEM certificates; what they prove is seen when a connection is made.
fn is_certificate(text: &str) -> bool {
    text.contains("-----BEGIN CERTIFICATE-----") && text.contains("-----END CERTIFICATE-----")
}
