//! Floor 2: reads Linkerd's policy documents.

use crate::authz::linkerd::matches;
use crate::authz::linkerd::words::Access;
use crate::authz::linkerd::words::Authorization;
use crate::authz::linkerd::words::Documents;
use crate::authz::linkerd::words::Expression;
use crate::authz::linkerd::words::Key;
use crate::authz::linkerd::words::LocalRates;
use crate::authz::linkerd::words::Port;
use crate::authz::linkerd::words::Required;
use crate::authz::linkerd::words::Route;
use crate::authz::linkerd::words::RouteKind;
use crate::authz::linkerd::words::Selector;
use crate::authz::linkerd::words::Server;
use crate::authz::linkerd::words::Speaks;
use crate::authz::linkerd::words::Target;
use crate::authz::network::Network;
use crate::authz::settings::Clients;
use crate::authz::settings::IdentityMatch;
use crate::authz::settings::NetworkMatch;
use crate::authz::settings::RateSettings;
use crate::profile::invalid::Fault;
use crate::profile::object;
use crate::profile::object::Metadata;
use crate::profile::object::Object;
use crate::profile::reader::Faults;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use std::sync::Arc;

const POLICY_GROUP: &str = "policy.linkerd.io";
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

impl Documents {
    /// Takes in what these objects say; objects of other kinds are passed over. `namespace` is that of objects that
    /// name none.
    ///
    /// A document with a fault that rejects it grants nothing: an authorization is left out, a server or route is kept
    /// as unusable, because without it more would be allowed.
    pub fn read(objects: &[Object], namespace: &str) -> (Self, Vec<Fault>) {
        let mut documents = Self::default();
        let mut all = Vec::new();
        for object in objects {
            let faults = Faults::default();
            documents.take(object, namespace, &faults);
            let named = |mut fault: Fault| {
                fault.path = format!("{}:{}", object.origin, fault.path);
                fault
            };
            all.extend(object.faults.iter().cloned().chain(faults.into_vec()).map(named));
        }
        (documents, all)
    }

    fn take(&mut self, object: &Object, namespace: &str, faults: &Faults) {
        let route = |group: &str| group == POLICY_GROUP || group == GATEWAY_GROUP;
        let root = Field::root(&object.root, faults);
        match (object.group(), object.kind.as_str()) {
            (POLICY_GROUP, "Server") => {
                if let Some((key, server)) = whole(&root, namespace, server) {
                    self.servers.insert(key, server.filter(|_| is_usable(object, faults)));
                }
            }
            (POLICY_GROUP, "AuthorizationPolicy") => {
                keep(&mut self.policies, object, faults, whole(&root, namespace, policy));
            }
            (POLICY_GROUP, "ServerAuthorization") => {
                let read = whole(&root, namespace, server_authorization);
                keep(&mut self.server_authorizations, object, faults, read);
            }
            (POLICY_GROUP, "MeshTLSAuthentication") => {
                keep(&mut self.mesh_tls, object, faults, whole(&root, namespace, mesh_tls));
            }
            (POLICY_GROUP, "NetworkAuthentication") => {
                keep(&mut self.networks, object, faults, whole(&root, namespace, networks_of));
            }
            (POLICY_GROUP, "HTTPLocalRateLimitPolicy") => {
                keep(&mut self.rates, object, faults, whole(&root, namespace, rates));
            }
            (group, "HTTPRoute") if route(group) => {
                self.take_route(object, &root, namespace, RouteKind::Http)
            }
            (group, "GRPCRoute") if route(group) => {
                self.take_route(object, &root, namespace, RouteKind::Grpc)
            }
            _ => {}
        }
    }

    fn take_route(&mut self, object: &Object, root: &Field<'_>, namespace: &str, kind: RouteKind) {
        let read = |spec: &mut Fields<'_>, metadata: &Metadata, _: &Arc<str>| {
            let servers = spec.get("parentRefs").each(|parent| parent.fields(parent_server).flatten());
            let matches = match kind {
                RouteKind::Http => matches::of_http(spec),
                RouteKind::Grpc => matches::of_grpc(spec),
            };
            Some(Route { servers, matches, created: metadata.created.clone() })
        };
        let Some(((namespace, name), route)) = whole(root, namespace, read) else { return };
        let usable = is_usable(object, root.faults());
        if usable && route.as_ref().is_some_and(|route| route.servers.is_empty()) {
            return; // a route of something else
        }
        self.routes.insert((namespace, kind, name), route.filter(|_| usable));
    }
}

fn is_usable(object: &Object, faults: &Faults) -> bool {
    let rejected = |fault: &Fault| fault.severity == crate::profile::invalid::Severity::Rejected;
    !faults.any_rejected() && !object.faults.iter().any(rejected)
}

fn keep<T>(
    into: &mut std::collections::BTreeMap<Key, T>,
    object: &Object,
    faults: &Faults,
    read: Option<(Key, Option<T>)>,
) {
    if let Some((key, Some(value))) = read
        && is_usable(object, faults)
    {
        into.insert(key, value);
    }
}

/// Reads an object: its key, and what `read` makes of its `spec`.
fn whole<T>(
    root: &Field<'_>,
    namespace: &str,
    read: impl FnOnce(&mut Fields<'_>, &Metadata, &Arc<str>) -> Option<T>,
) -> Option<(Key, Option<T>)> {
    root.fields(|fields| {
        let metadata = object::metadata(fields);
        let namespace = metadata.namespace.clone().unwrap_or_else(|| namespace.into());
        let spec = fields.get("spec").required();
        let value = spec.fields(|spec| read(spec, &metadata, &namespace)).flatten();
        ((namespace, metadata.name.as_str().into()), value)
    })
}

fn server(spec: &mut Fields<'_>, metadata: &Metadata, _: &Arc<str>) -> Option<Server> {
    let pods = spec.get("podSelector").fields(selector);
    let external = spec.get("externalWorkloadSelector").fields(selector);
    let selector = match (pods, external) {
        (Some(selector), None) | (None, Some(selector)) => selector,
        (None, None) | (Some(_), Some(_)) => {
            let one = "write `podSelector` or `externalWorkloadSelector`";
            spec.whole().reject("has not exactly one selector", one);
            return None;
        }
    };
    let port = spec.get("port").required();
    let text = port.literal()?;
    let port = match text.parse::<u16>() {
        Ok(0) => return port.must_be("a port or its name"),
        Ok(number) => Port::Number(number),
        Err(_) => Port::Name(text.to_owned()),
    };
    let speaks = spec.get("proxyProtocol").word(&Speaks::WORDS).unwrap_or_default();
    let access = spec.get("accessPolicy").word(&Access::WORDS).unwrap_or_default();
    Some(Server { selector, labels: metadata.labels.clone(), port, speaks, access })
}

fn selector(fields: &mut Fields<'_>) -> Selector {
    let labels = fields.get("matchLabels").pairs();
    let labels =
        labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.text()?.to_owned())));
    let labels = labels.collect();
    let expression = |fields: &mut Fields<'_>| {
        let key = fields.get("key").required().name()?.to_owned();
        let values: Vec<String> = fields.get("values").each(|value| value.text().map(str::to_owned));
        let words = [
            ("In", (true, true)),
            ("NotIn", (false, true)),
            ("Exists", (true, false)),
            ("DoesNotExist", (false, false)),
        ];
        let (wanted, by_value) = fields.get("operator").required().word(&words)?;
        Some(Expression { key, wanted, values: by_value.then_some(values) })
    };
    let expressions = fields.get("matchExpressions").each(|item| item.fields(expression).flatten());
    Selector { labels, expressions }
}

/// The `Server` that a parent reference names, if it names one.
fn parent_server(parent: &mut Fields<'_>) -> Option<Arc<str>> {
    parent.skip(&["sectionName", "port", "namespace"]);
    let (group, kind) = (parent.get("group").text(), parent.get("kind").text());
    let name = parent.get("name").required().name()?;
    (kind == Some("Server") && group == Some(POLICY_GROUP)).then(|| name.into())
}

/// A reference to an object: its group, kind, and key.
struct Reference<'a> {
    group: &'a str,
    kind: &'a str,
    key: Key,
}

fn reference<'a>(fields: &mut Fields<'a>, namespace: &Arc<str>) -> Option<Reference<'a>> {
    let group = fields.get("group").text().unwrap_or_default();
    let kind = fields.get("kind").required().name()?;
    let named = fields.get("namespace").text().filter(|text| !text.is_empty());
    let name = fields.get("name").required().name()?;
    let namespace = named.map_or_else(|| Arc::clone(namespace), Arc::from);
    Some(Reference { group, kind, key: (namespace, name.into()) })
}

fn is_core(group: &str) -> bool {
    matches!(group, "" | "core")
}

fn policy(spec: &mut Fields<'_>, _: &Metadata, namespace: &Arc<str>) -> Option<Authorization> {
    let target = spec.get("targetRef").required();
    let target = target.fields(|fields| {
        let reference = reference(fields, namespace)?;
        let name = Arc::clone(&reference.key.1);
        match (reference.group, reference.kind) {
            _ if reference.key.0 != *namespace => None,
            (POLICY_GROUP, "Server") => Some(Target::Server(name)),
            (POLICY_GROUP | GATEWAY_GROUP, "HTTPRoute") => Some(Target::Route(RouteKind::Http, name)),
            (POLICY_GROUP | GATEWAY_GROUP, "GRPCRoute") => Some(Target::Route(RouteKind::Grpc, name)),
            (group, "Namespace") if is_core(group) && *name == **namespace => Some(Target::Namespace),
            _ => None,
        }
        .or_else(|| {
            let known = "name a Server, HTTPRoute or GRPCRoute of this namespace, or this Namespace";
            fields.whole().reject(format!("is a {}", reference.kind), known);
            None
        })
    });
    let required = spec.get("requiredAuthenticationRefs").each(|item| {
        item.fields(|fields| {
            let reference = reference(fields, namespace)?;
            match (reference.group, reference.kind) {
                (POLICY_GROUP, "MeshTLSAuthentication") => Some(Required::MeshTls(reference.key)),
                (POLICY_GROUP, "NetworkAuthentication") => Some(Required::Network(reference.key)),
                (group, "ServiceAccount") if is_core(group) => Some(Required::ServiceAccount(reference.key)),
                (_, kind) => {
                    let known = "name a MeshTLSAuthentication, NetworkAuthentication or ServiceAccount";
                    fields.whole().reject(format!("is a {kind}"), known);
                    None
                }
            }
        })
        .flatten()
    });
    Some(Authorization { target: target.flatten()?, required, clients: Clients::Anyone })
}

fn mesh_tls(spec: &mut Fields<'_>, _: &Metadata, namespace: &Arc<str>) -> Option<Vec<IdentityMatch>> {
    let mut identities = spec.get("identities").each(identity);
    identities.extend(spec.get("identityRefs").each(|item| {
        item.fields(|fields| {
            let reference = reference(fields, namespace)?;
            match (is_core(reference.group), reference.kind) {
                (true, "ServiceAccount") => Some(service_account(reference.key)),
                (true, "Namespace") => Some(IdentityMatch::Namespace(reference.key.1)),
                _ => {
                    fields
                        .whole()
                        .reject(format!("is a {}", reference.kind), "name a ServiceAccount or a Namespace");
                    None
                }
            }
        })
        .flatten()
    }));
    if identities.is_empty() {
        spec.whole().reject("names nobody", "write `identities` or `identityRefs`");
        return None;
    }
    Some(identities)
}

fn identity(item: Field<'_>) -> Option<IdentityMatch> {
    item.parse(|text| text.parse().map_err(|_| "an identity, `*` or `*.suffix`".to_owned()))
}

fn service_account((namespace, name): Key) -> IdentityMatch {
    IdentityMatch::ServiceAccount { namespace, name }
}

fn networks_of(spec: &mut Fields<'_>, _: &Metadata, _: &Arc<str>) -> Option<Vec<NetworkMatch>> {
    let networks = networks(&spec.get("networks").required());
    if networks.is_empty() {
        spec.whole().reject("names no network", "write `networks`");
        return None;
    }
    Some(networks)
}

fn networks(field: &Field<'_>) -> Vec<NetworkMatch> {
    let network = |field: Field<'_>| {
        field.parse(|text| text.parse::<Network>().map_err(|_| "a network such as 10.0.0.0/8".to_owned()))
    };
    field.each(|item| {
        item.fields(|fields| {
            let cidr = network(fields.get("cidr").required());
            // An exception that cannot be read must not widen the network: the fault refuses the document.
            let except = fields.get("except").each(network);
            Some(NetworkMatch { cidr: cidr?, except })
        })
        .flatten()
    })
}

fn server_authorization(spec: &mut Fields<'_>, _: &Metadata, namespace: &Arc<str>) -> Option<Authorization> {
    let target = spec.get("server").required().fields(|server| {
        let name = server.get("name").name().map(|name| Target::Server(name.into()));
        let by_labels = server.get("selector").fields(selector).map(Target::Servers);
        match (name, by_labels) {
            (Some(target), None) | (None, Some(target)) => Some(target),
            _ => {
                server.whole().reject("has not exactly one of name and selector", "write one");
                None
            }
        }
    });
    let client = spec.get("client").required();
    let clients = client.fields(|client| client_of(client, namespace)).flatten();
    Some(Authorization { target: target.flatten()?, required: Vec::new(), clients: clients? })
}

fn client_of(client: &mut Fields<'_>, namespace: &Arc<str>) -> Option<Clients> {
    let mut all = Vec::new();
    let networks_field = client.get("networks");
    if networks_field.is_present() {
        all.push(Clients::Networks(networks(&networks_field)));
    }
    let unauthenticated = client.get("unauthenticated").bool().unwrap_or(false);
    let mesh_tls = client.get("meshTLS").fields(|tls| {
        let any_tls = tls.get("unauthenticatedTLS").bool().unwrap_or(false);
        let mut any: Vec<_> = tls.get("identities").each(identity);
        any.extend(tls.get("serviceAccounts").each(|item| {
            item.fields(|fields| {
                let name = fields.get("name").required().name()?;
                let named = fields.get("namespace").text().filter(|text| !text.is_empty());
                let namespace = named.map_or_else(|| Arc::clone(namespace), Arc::from);
                Some(service_account((namespace, name.into())))
            })
            .flatten()
        }));
        if any_tls {
            let closer = "a certificate of our own trust domain is asked for all the same";
            tls.get("unauthenticatedTLS").approximate("admits TLS without an identity", closer);
            any.push(IdentityMatch::AnyLocal);
        }
        Clients::Any(any.into_iter().map(Clients::Identity).collect())
    });
    match mesh_tls {
        Some(clients) if !unauthenticated => all.push(clients),
        None if !unauthenticated => {
            client.whole().reject("says neither `unauthenticated` nor `meshTLS`", "write one");
            return None;
        }
        _ => {}
    }
    Some(Clients::All(all))
}

fn rates(spec: &mut Fields<'_>, metadata: &Metadata, namespace: &Arc<str>) -> Option<LocalRates> {
    let server = spec.get("targetRef").required().fields(|fields| {
        let reference = reference(fields, namespace)?;
        if (reference.group, reference.kind) != (POLICY_GROUP, "Server") || reference.key.0 != *namespace {
            fields.whole().reject(format!("is a {}", reference.kind), "name a Server of this namespace");
            return None;
        }
        Some(reference.key.1)
    });
    let total = rate(&spec.get("total"));
    let identity = rate(&spec.get("identity"));
    let overrides = spec.get("overrides").each(|item| {
        item.fields(|fields| {
            let rate = fields.get("requestsPerSecond").required().integer(1..=u32::MAX)?;
            let clients = fields.get("clientRefs").required().each(|item| {
                item.fields(|fields| {
                    let reference = reference(fields, namespace)?;
                    if reference.kind != "ServiceAccount" || !is_core(reference.group) {
                        fields.whole().reject(format!("is a {}", reference.kind), "name a ServiceAccount");
                        return None;
                    }
                    Some(service_account(reference.key))
                })
                .flatten()
            });
            Some((rate, clients))
        })
        .flatten()
    });
    for rate in identity.iter().chain(overrides.iter().map(|(rate, _)| rate)) {
        if total.is_some_and(|total| *rate > total) {
            spec.get("total").reject("is less than a limit within it", "raise it, or lower the other");
        }
    }
    let name = metadata.name.as_str().into();
    Some(LocalRates { server: server.flatten()?, rates: RateSettings { name, total, identity, overrides } })
}

fn rate(field: &Field<'_>) -> Option<u32> {
    field.fields(|fields| fields.get("requestsPerSecond").required().integer(1..=u32::MAX)).flatten()
}
