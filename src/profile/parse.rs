//! Floor 1: reads ServiceProfiles: `linkerd.io/v1alpha2`, `linkerd.io/v1alpha1` and `enmesh.dev/v1`.
//!
//! ```
//! use enmesh::profile::{parse::parse, service::ServiceProfile};
//!
//! let text = "
//! apiVersion: linkerd.io/v1alpha2
//! kind: ServiceProfile
//! metadata: {name: web.default.svc.cluster.local, namespace: default}
//! spec:
//!   routes:
//!   - name: GET /books
//!     condition: {method: GET, pathRegex: /books}
//!     isRetryable: true
//!     timeout: 300ms
//! ";
//! assert_eq!(ServiceProfile::from_yaml(text)?.routes.len(), 1);
//!
//! let parsed = parse(&text.replace("300ms", "300"), "web.yaml");
//! let fault = &parsed.documents[0].faults[0];
//! assert_eq!(
//!     fault.to_string(),
//!     "10:14: spec.routes[0].timeout: must be a duration such as 250ms, 10s or 1m30s, not 300; write one"
//! );
//! # Ok::<(), enmesh::profile::invalid::Invalid>(())
//! ```

use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::invalid::Severity;
use crate::profile::name::ServiceName;
use crate::profile::object;
use crate::profile::object::Object;
use crate::profile::quantity;
use crate::profile::read::action;
use crate::profile::read::dialect::Dialect;
use crate::profile::read::route;
use crate::profile::read::service;
use crate::profile::read::settings;
use crate::profile::read::words;
use crate::profile::reader::Faults;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::route::Backend;
use crate::profile::route::WeightedBackend;
use crate::profile::service::DefaultsProfile;
use crate::profile::service::NoMatch;
use crate::profile::service::ServiceProfile;
use std::sync::Arc;

/// What was read of a text: every document, good or not.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parsed {
    /// The documents in order.
    pub documents: Vec<Document>,
}

/// What was read of one document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it stands: `file#0`.
    pub origin: Arc<str>,
    /// The profile, unless a fault refuses it.
    pub profile: Option<ServiceProfile>,
    /// All faults. Those of a good document say what has no effect, or another one than written.
    pub faults: Vec<Fault>,
}

impl Parsed {
    /// The good profiles, in order.
    pub fn into_profiles(self) -> Vec<ServiceProfile> {
        self.documents.into_iter().filter_map(|document| document.profile).collect()
    }

    /// Whether a document was refused.
    pub fn any_rejected(&self) -> bool {
        self.documents.iter().any(|document| document.profile.is_none())
    }
}

/// Reads all ServiceProfiles of a text; `origin` is the name of its file. A document of another kind is refused:
/// nothing is passed over in silence.
pub fn parse(text: &str, origin: &str) -> Parsed {
    Parsed { documents: object::read(text, origin).into_iter().map(profile).collect() }
}

impl ServiceProfile {
    /// The one profile of a text in YAML or JSON. What has no effect in it is told by [`parse`] alone.
    ///
    /// # Errors
    ///
    /// Every fault, if one of them refuses the document or if there is not exactly one document.
    pub fn from_yaml(text: &str) -> Result<Self, Invalid> {
        let mut documents = parse(text, "text").documents;
        if documents.len() > 1 {
            let problem = format!("has {} documents and one is wanted", documents.len());
            return Err(Fault::rejected("", problem, "read them with profile::parse::parse").into());
        }
        match documents.pop() {
            Some(Document { profile: Some(profile), .. }) => Ok(profile),
            Some(Document { faults, .. }) => Err(Invalid { faults }),
            None => Err(Fault::rejected("", "holds no document", "write a ServiceProfile").into()),
        }
    }
}

/// Whether an object is a ServiceProfile that [`profile`] reads.
pub fn is_profile(object: &Object) -> bool {
    object.kind == "ServiceProfile" && Dialect::of(&object.api_version).is_some()
}

/// Reads one object.
pub fn profile(object: Object) -> Document {
    let faults = Faults::default();
    for fault in &object.faults {
        faults.add(fault.clone());
    }
    let root = Field::root(&object.root, &faults);
    let dialect = Dialect::of(&object.api_version);
    let read = match dialect {
        // What is no YAML has one fault, which says so; another about its kind would only hide it.
        _ if faults.any_rejected() && !root.is_present() => None,
        Some(dialect) if object.kind == "ServiceProfile" => {
            root.fields(|f| read(f, dialect, &object.origin)).flatten()
        }
        Some(_) | None => {
            foreign(&object, &root);
            None
        }
    };
    let profile = read.filter(|_| !faults.any_rejected());
    Document { origin: object.origin, profile, faults: faults.into_vec() }
}

fn foreign(object: &Object, root: &Field<'_>) {
    let problem = match (object.kind.as_str(), object.api_version.as_str()) {
        ("ServiceProfile", version) => format!("apiVersion {version:?} is not known"),
        (kind, version) => format!("is no ServiceProfile (kind {kind:?}, apiVersion {version:?})"),
    };
    root.reject(problem, "write apiVersion linkerd.io/v1alpha2 or enmesh.dev/v1, and kind ServiceProfile");
}

fn read(f: &mut Fields<'_>, dialect: Dialect, origin: &Arc<str>) -> Option<ServiceProfile> {
    let place = f.get("metadata");
    let metadata = object::metadata(f);
    let name = name(&place, dialect);
    let first = f.get("apiVersion").text() == Some("linkerd.io/v1alpha1");
    let spec = f.get("spec");
    let mut profile = ServiceProfile {
        names: name.into_iter().collect(),
        namespace: metadata.namespace,
        defaults: if dialect == Dialect::Linkerd {
            DefaultsProfile::Linkerd
        } else {
            DefaultsProfile::Enmesh
        },
        origin: Arc::clone(origin),
        ..ServiceProfile::default()
    };
    spec.fields(|f| {
        let routes = f.get("routes");
        // The schema of v1alpha1 has no default for it.
        let routes = if first { routes.required() } else { routes };
        profile.routes = routes.each(|item| route::route(&item, dialect, origin));
        profile.retry_budget = settings::budget(&f.get("retryBudget"), dialect);
        profile.backends = overrides(&f.get("dstOverrides"), dialect);
        profile.opaque_ports = opaque_ports(&f.get("opaquePorts"));
        if dialect == Dialect::Enmesh {
            more(f, &mut profile);
        }
    });
    (!profile.names.is_empty()).then_some(profile)
}

/// `metadata.name`: a name of Kubernetes for Linkerd; in `enmesh.dev/v1` any host, with a port if wanted.
fn name(field: &Field<'_>, dialect: Dialect) -> Option<ServiceName> {
    let field = field.look("name").required();
    match dialect {
        Dialect::Linkerd => field.parse(object::subdomain).and_then(|()| words::service(&field)),
        Dialect::Enmesh => words::service(&field),
    }
}

/// `dstOverrides`. Weights are kept in thousandths, exactly.
fn overrides(field: &Field<'_>, dialect: Dialect) -> Vec<WeightedBackend> {
    let backends = field.each(|item| {
        item.fields(|f| {
            let (authority, weight_field) = (f.get("authority").required(), f.get("weight").required());
            let weight = weight_field.parse_literal(quantity::milli).and_then(|milli| {
                let fits = u32::try_from(milli).ok();
                if fits.is_none() {
                    weight_field.must_be::<()>("a weight from 0 to 4294967");
                }
                fits
            });
            let text = authority.text()?;
            let service = match (text.parse::<ServiceName>(), dialect) {
                (Ok(name), _) => Some(name),
                (Err(_), Dialect::Enmesh) => words::service(&authority),
                (Err(bad), Dialect::Linkerd) => {
                    let problem = format!("is no host ({}): it gets nothing", bad.reason);
                    authority.fault(Severity::Ignored, problem, "write host or host:port");
                    None
                }
            };
            let backend = Backend::Service { name: service?, subset: None };
            Some(WeightedBackend { backend, weight: weight?, filters: Vec::new() })
        })?
    });
    action::check_weights(field, &backends);
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        field
            .ignore("has only weights of 0: traffic goes to the service itself", "give one of them a weight");
        return Vec::new();
    }
    backends
}

/// `opaquePorts`: a mapping of ports to `{}`, as Linkerd's code has it, or a list of ports, as its schema has it.
fn opaque_ports(field: &Field<'_>) -> Vec<u16> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let what = "a port from 1 to 65535";
    let is_list = field.node().is_some_and(|node| matches!(node.value, crate::profile::node::Value::List(_)));
    let mut ports: Vec<u16> = if is_list {
        field.each(|item| item.parse_literal(|text| port(text).ok_or_else(|| what.to_owned())))
    } else {
        let read = |(key, value): (&str, Field<'_>)| {
            value.fields(|_| ());
            let port = port(key);
            if port.is_none() {
                value.reject(format!("the key must be {what}, not {key:?}"), "write one");
            }
            port
        };
        field.pairs().into_iter().filter_map(read).collect()
    };
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The names of [`DefaultsProfile`].
pub const DEFAULTS: &[(&str, DefaultsProfile)] = &[
    ("enmesh", DefaultsProfile::Enmesh),
    ("linkerd", DefaultsProfile::Linkerd),
    ("gateway-api", DefaultsProfile::GatewayApi),
    ("istio", DefaultsProfile::Istio),
    ("consul", DefaultsProfile::Consul),
    ("app-mesh", DefaultsProfile::AppMesh),
    ("service-fabric", DefaultsProfile::ServiceFabric),
    ("smi", DefaultsProfile::Smi),
];

/// The fields that `enmesh.dev/v1` has besides.
fn more(f: &mut Fields<'_>, profile: &mut ServiceProfile) {
    profile.names.extend(f.get("hosts").each(|item| words::service(&item)));
    profile.defaults = f.get("defaults").word(DEFAULTS).unwrap_or_default();
    let no_match = [("Forward", NoMatch::Forward), ("NotFound", NoMatch::NotFound)];
    profile.no_match = f.get("noMatch").word(&no_match).unwrap_or_default();
    let backends = f.get("backends");
    if backends.is_present() && f.has("dstOverrides") {
        backends.reject("stands beside `dstOverrides`", "remove one of them");
    } else if backends.is_present() {
        profile.backends = action::backends(&backends);
    }
    profile.timeouts = settings::timeouts(&f.get("timeouts"));
    profile.retry = settings::retry(&f.get("retry"));
    profile.balancer = service::balancer(&f.get("balancer"));
    profile.breaker = service::breaker(&f.get("failureAccrual"));
    profile.limits = service::limits(&f.get("limits"));
    profile.tls = service::tls(&f.get("tls"));
    profile.objective = service::objective(&f.get("slo"));
}
