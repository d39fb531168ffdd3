//! Floor 1: reads gateways and their listeners, and says which listeners a route attaches to.

use crate::profile::import::cluster::Cluster;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::Grant;
use crate::profile::import::cluster::Granted;
use crate::profile::import::cluster::Identity;
use crate::profile::import::gateway_match;
use crate::profile::import::gateway_route::GROUP;
use crate::profile::import::gateway_route::ParentRef;
use crate::profile::import::gateway_route::RouteObject;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::HostMatch;
use crate::profile::object::Object;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A Gateway, or a ListenerSet that adds listeners to one.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) identity: Identity,
    pub(crate) listeners: Vec<Listener>,
    /// The gateway that a ListenerSet adds to.
    pub(crate) parent: Option<(Arc<str>, Arc<str>)>,
    /// From which namespaces a gateway takes ListenerSets.
    pub(crate) sets: Namespaces,
}

/// A listener of a gateway.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    pub(crate) host: Option<HostMatch>,
    /// HTTP or HTTPS; others carry no requests.
    http: bool,
    pub(crate) tls: bool,
    namespaces: Namespaces,
    /// The kinds it takes; none said: all.
    kinds: Vec<Arc<str>>,
}

/// Which namespaces something is taken from.
#[derive(Debug, Clone)]
pub(crate) enum Namespaces {
    None,
    Same,
    All,
    /// Those with these labels.
    Labelled(BTreeMap<String, String>),
}

impl Namespaces {
    fn admit(&self, cluster: &Cluster, own: &str, other: &str) -> bool {
        match self {
            Self::None => false,
            Self::Same => own == other,
            Self::All => true,
            Self::Labelled(wanted) => {
                let labels = cluster.namespaces.get(other);
                // Kubernetes gives each namespace this label.
                let own_name =
                    |key: &str, value: &str| key == "kubernetes.io/metadata.name" && value == other;
                let has = |key: &String, value: &String| {
                    own_name(key, value) || labels.is_some_and(|labels| labels.get(key) == Some(value))
                };
                wanted.iter().all(|(key, value)| has(key, value))
            }
        }
    }
}

impl Gateway {
    /// A gateway that no file shows, with the listeners that `parents` name.
    pub(crate) fn assumed(identity: Identity, parents: &[ParentRef]) -> Self {
        let mut listeners: Vec<Listener> = Vec::new();
        for parent in parents {
            let (name, port) = (parent.section.clone().unwrap_or_default(), parent.port.unwrap_or(80));
            if !listeners.iter().any(|listener| listener.name == name && listener.port == port) {
                let namespaces = Namespaces::All;
                listeners.push(Listener {
                    name,
                    port,
                    host: None,
                    http: true,
                    tls: false,
                    namespaces,
                    kinds: Vec::new(),
                });
            }
        }
        Self { identity, listeners, parent: None, sets: Namespaces::None }
    }
}

/// Reads a Gateway or a ListenerSet.
pub(crate) fn read(
    documents: &mut Documents,
    document: usize,
    object: &Object,
    namespace: &Arc<str>,
) -> Option<Gateway> {
    let is_set = object.kind.ends_with("ListenerSet");
    let (identity, (listeners, parent, sets)) =
        documents.read(document, object, namespace, |f, identity| {
            f.get("spec").required().fields(|f| {
                f.skip(&["gatewayClassName", "addresses", "infrastructure", "tls", "defaultScope"]);
                let sets =
                    f.get("allowedListeners").fields(|f| namespaces(&f.get("namespaces"), Namespaces::None));
                let parent = f.get("parentRef").fields(|f| {
                    f.skip(&["group", "kind"]);
                    let namespace =
                        words::name(&f.get("namespace")).unwrap_or_else(|| Arc::clone(&identity.namespace));
                    words::name(&f.get("name").required()).map(|name| (namespace, name))
                });
                let listeners = f.get("listeners").each(|item| item.fields(listener)?);
                (listeners, parent.flatten().filter(|_| is_set), sets.unwrap_or(Namespaces::None))
            })
        })?;
    Some(Gateway { identity, listeners, parent, sets })
}

fn listener(f: &mut Fields<'_>) -> Option<Listener> {
    f.skip(&["tls"]);
    let protocol = f.get("protocol").required();
    let tls = protocol.text() == Some("HTTPS");
    let http = tls || protocol.text() == Some("HTTP");
    protocol_note(&protocol, http);
    let host = gateway_match::hostname(&f.get("hostname"));
    let allowed = f.get("allowedRoutes").fields(|f| {
        let namespaces = namespaces(&f.get("namespaces"), Namespaces::Same);
        let kinds = f.get("kinds").each(|item| {
            item.fields(|f| {
                f.skip(&["group"]);
                words::name(&f.get("kind").required())
            })?
        });
        (namespaces, kinds)
    });
    let (namespaces, kinds) = allowed.unwrap_or((Namespaces::Same, Vec::new()));
    let port = f.get("port").required().integer(1..=u16::MAX);
    let name = words::name(&f.get("name").required())?;
    Some(Listener { name, port: port?, host, http, tls, namespaces, kinds })
}

fn protocol_note(protocol: &Field<'_>, http: bool) {
    if !http {
        let problem = format!("is {}: no HTTP requests come this way", protocol.shown());
        protocol.ignore(problem, "use HTTP or HTTPS for what routes are to see");
    }
}

fn namespaces(field: &Field<'_>, default: Namespaces) -> Namespaces {
    let read = |f: &mut Fields<'_>| {
        let selector = f.get("selector");
        let labels = selector.fields(|f| {
            let more = f.get("matchExpressions");
            if more.is_present() {
                more.reject("is not understood: it could admit routes that must not be", "use matchLabels");
            }
            let pairs = f.get("matchLabels").pairs().into_iter();
            pairs.filter_map(|(key, value)| Some((key.to_owned(), value.text()?.to_owned()))).collect()
        });
        let words = [
            ("None", Namespaces::None),
            ("Same", Namespaces::Same),
            ("All", Namespaces::All),
            ("Selector", Namespaces::Labelled(labels.unwrap_or_default())),
        ];
        let from = f.get("from");
        if from.is_present() { from.word(&words) } else { None }
    };
    field.fields(read).flatten().unwrap_or(default)
}

/// Reads a ReferenceGrant.
pub(crate) fn grant(
    documents: &mut Documents,
    document: usize,
    object: &Object,
    namespace: &Arc<str>,
) -> Option<Grant> {
    let text = |field: Field<'_>| Arc::<str>::from(field.text().unwrap_or_default());
    let (identity, (from, to)) = documents.read(document, object, namespace, |f, _| {
        f.get("spec").required().fields(|f| {
            let from = f.get("from").required().each(|item| {
                item.fields(|f| {
                    [
                        text(f.get("group")),
                        text(f.get("kind").required()),
                        text(f.get("namespace").required()),
                    ]
                })
            });
            let to = f.get("to").required().each(|item| {
                item.fields(|f| Granted {
                    group: text(f.get("group")),
                    kind: text(f.get("kind").required()),
                    name: words::name(&f.get("name")),
                })
            });
            (from, to)
        })
    })?;
    Some(Grant { namespace: identity.namespace, from, to })
}

/// The service that a parent is, if it is one: its namespace and name.
pub(crate) fn service_of(parent: &ParentRef) -> Option<(Arc<str>, Arc<str>)> {
    let is_service = matches!(&*parent.group, "" | "core") && *parent.kind == *"Service";
    is_service.then(|| (Arc::clone(&parent.namespace), Arc::clone(&parent.name)))
}

/// A parent Service's `sectionName` is the name of a port: its number takes its place. A parent that has no such port
/// is left out.
pub(crate) fn number_sections(routes: &mut [RouteObject], cluster: &Cluster, documents: &mut Documents) {
    for route in routes {
        let document = route.identity.document;
        route.parents.retain_mut(|parent| {
            let (Some((namespace, name)), Some(section)) = (service_of(parent), parent.section.clone())
            else {
                return true;
            };
            let mut say = |severity, problem: String| {
                let fault = Fault::new(severity, "", problem, "name the Service's port by its number");
                documents.say_at(document, &parent.spot, fault);
            };
            let Some(known) = cluster.service(&namespace, &name).flatten() else {
                let problem = format!("which port of {namespace}/{name} `{section}` is, no file says");
                say(Severity::Approximated, format!("{problem}: all are meant"));
                return true;
            };
            let is_it = |(port, own): &&(u16, Option<Arc<str>>)| {
                own.as_ref() == Some(&section) && parent.port.is_none_or(|wanted| wanted == *port)
            };
            let port = known.ports.iter().find(is_it).map(|(port, _)| *port);
            if port.is_none() {
                say(Severity::Ignored, format!("{namespace}/{name} has no such port `{section}`"));
            }
            parent.port = port;
            port.is_some()
        });
    }
}

/// A listener with the gateway it belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The gateway; of a ListenerSet's listener the one it adds to.
    pub(crate) gateway: &'a Identity,
    /// The Gateway or ListenerSet that has the listener.
    pub(crate) owner: &'a Identity,
    pub(crate) is_set: bool,
    pub(crate) listener: &'a Listener,
}

/// All listeners that carry requests.
pub(crate) fn places<'a>(cluster: &Cluster, gateways: &'a [Gateway]) -> Vec<Place<'a>> {
    let mut places = Vec::new();
    for owner in gateways {
        let of = |parent: &(Arc<str>, Arc<str>)| {
            let is = |gateway: &&Gateway| {
                gateway.parent.is_none()
                    && (&gateway.identity.namespace, &gateway.identity.name) == (&parent.0, &parent.1)
            };
            gateways.iter().find(is).filter(|gateway| {
                gateway.sets.admit(cluster, &gateway.identity.namespace, &owner.identity.namespace)
            })
        };
        let gateway = match &owner.parent {
            Some(parent) => of(parent),
            None => Some(owner),
        };
        let Some(gateway) = gateway else { continue };
        places.extend(owner.listeners.iter().filter(|listener| listener.http).map(|listener| Place {
            gateway: &gateway.identity,
            owner: &owner.identity,
            is_set: owner.parent.is_some(),
            listener,
        }));
    }
    places
}

impl Place<'_> {
    /// Whether `route` attaches here through `parent`.
    pub(crate) fn takes(&self, cluster: &Cluster, route: &RouteObject, parent: &ParentRef) -> bool {
        let kind = if self.is_set { "ListenerSet" } else { "Gateway" };
        let named = parent.kind.trim_start_matches('X') == kind
            && (*parent.group == *GROUP || parent.kind.starts_with('X'))
            && (&parent.namespace, &parent.name) == (&self.owner.namespace, &self.owner.name)
            && parent.section.as_ref().is_none_or(|section| *section == self.listener.name)
            && parent.port.is_none_or(|port| port == self.listener.port);
        let own = if route.grpc { "GRPCRoute" } else { "HTTPRoute" };
        let kinds = &self.listener.kinds;
        named
            && (kinds.is_empty() || kinds.iter().any(|kind| **kind == *own))
            && self.listener.namespaces.admit(cluster, &self.owner.namespace, &route.identity.namespace)
    }

    /// The hosts that both `route` and the listener name: `[None]` if neither names one, nothing if they do not meet.
    pub(crate) fn hosts(&self, route: &RouteObject) -> Vec<Option<HostMatch>> {
        match (&self.listener.host, route.hosts.is_empty()) {
            (host, true) => vec![host.clone()],
            (None, false) => route.hosts.iter().cloned().map(Some).collect(),
            (Some(own), false) => {
                let mut hosts: Vec<Option<HostMatch>> = Vec::new();
                for both in route.hosts.iter().filter_map(|host| gateway_match::intersection(own, host)) {
                    if !hosts.contains(&Some(both.clone())) {
                        hosts.push(Some(both));
                    }
                }
                hosts
            }
        }
    }
}
