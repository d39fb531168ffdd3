//! Floor 6: collects what a mesh is made of, and makes it.

use crate::authz::settings::AuthzSettings;
use crate::connect::settings::ConnectSettings;
use crate::control::authorization::AuthorizationFile;
use crate::control::chain::Chain;
use crate::control::documents;
use crate::control::fixed::Fixed;
use crate::control::source::{Source, by_name};
use crate::discover::endpoint::{Endpoint, EndpointSet};
use crate::error::Error;
use crate::mesh::env;
use crate::mesh::runtime::{Made, Mesh};
use crate::metrics::registry::Registry;
use crate::profile::import::cluster::ImportSettings;
use crate::profile::import::load;
use crate::profile::invalid::{Fault, Invalid, Severity};
use crate::profile::name::ServiceName;
use crate::profile::scope;
use crate::profile::service::ServiceProfile;
use crate::serve::settings::ServeSettings;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::acceptor::Mode;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::epoch::EpochSettings;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::material::Source as IdentitySource;
use crate::trace::log::LogFormat;
#[cfg(feature = "otel")]
use crate::trace::otel::{Otel, OtelSettings};
use crate::trace::settings::TraceSettings;
use http::HeaderName;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Where the certificates of a mesh come from.
#[cfg(any(feature = "tls", feature = "ring"))]
pub(crate) struct OwnIdentity {
    pub(crate) source: Box<dyn IdentitySource>,
    pub(crate) settings: EpochSettings,
}

#[cfg(any(feature = "tls", feature = "ring"))]
impl std::fmt::Debug for OwnIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnIdentity").field("source", &self.source.name()).finish_non_exhaustive()
    }
}

/// Where spans go.
#[cfg(feature = "otel")]
#[derive(Debug)]
pub(crate) enum Exporting {
    Otlp(OtelSettings),
    Own(Otel),
}

/// Where the lines of an access log go.
pub(crate) struct LogWriter(pub(crate) Box<dyn Write + Send>);

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogWriter")
    }
}

/// Builds a [`Mesh`]. Every setting here also has an environment variable (see [`Mesh::from_env`]).
///
/// Who is asked about a service, in order: what is written here, then the directories, then further sources, then DNS.
#[must_use = "a builder does nothing until `build`"]
#[derive(Debug, Default)]
pub struct MeshBuilder {
    pub(crate) name: Option<ServiceName>,
    pub(crate) cluster_domain: Option<Arc<str>>,
    pub(crate) profiles: Vec<ServiceProfile>,
    pub(crate) texts: Vec<String>,
    pub(crate) endpoints: BTreeMap<ServiceName, Vec<Endpoint>>,
    pub(crate) profiles_dir: Option<PathBuf>,
    pub(crate) endpoints_dir: Option<PathBuf>,
    pub(crate) more_profiles: Chain<Arc<ServiceProfile>>,
    pub(crate) more_endpoints: Chain<EndpointSet>,
    pub(crate) dns: Option<bool>,
    pub(crate) admin: Option<SocketAddr>,
    #[cfg(feature = "admin")]
    pub(crate) admin_peers: Vec<crate::admin::fleet::Peer>,
    #[cfg(feature = "admin")]
    pub(crate) admin_observers: Vec<crate::tls::identity::Identity>,
    pub(crate) registry: Option<Registry>,
    #[cfg(feature = "prometheus")]
    pub(crate) prometheus: Option<crate::metrics::prometheus::Prometheus>,
    pub(crate) connect: ConnectSettings,
    pub(crate) serve: ServeSettings,
    pub(crate) authz: Option<AuthzSettings>,
    pub(crate) policy_file: Option<AuthorizationFile>,
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub(crate) identity: Option<OwnIdentity>,
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub(crate) accept: Mode,
    pub(crate) trace: TraceSettings,
    pub(crate) access_log: Option<(LogFormat, LogWriter)>,
    pub(crate) hidden: Vec<HeaderName>,
    #[cfg(feature = "otel")]
    pub(crate) otel: Option<Exporting>,
    pub(crate) seed: Option<u64>,
    pub(crate) inject_faults: Option<bool>,
    pub(crate) faults: Vec<Fault>,
}

impl MeshBuilder {
    /// A builder that holds what `ENMESH_*` variables say, to be completed in code: what is set here afterwards wins. See
    /// [`VARIABLES`](crate::mesh::env::VARIABLES).
    pub fn from_env() -> Self {
        env::read(std::env::vars())
    }

    /// This process's own service, `name.namespace[:port]`: its profile routes and counts what arrives. Default:
    /// `localhost`, for a process that only calls.
    pub fn name(mut self, name: &str) -> Self {
        self.name = self.parsed("name", name);
        self
    }

    /// The suffix of Kubernetes service names. Default `cluster.local`.
    pub fn cluster_domain(mut self, domain: impl Into<Arc<str>>) -> Self {
        self.cluster_domain = Some(domain.into());
        self
    }

    /// A profile written in code.
    pub fn profile(mut self, profile: ServiceProfile) -> Self {
        self.profiles.push(profile);
        self
    }

    /// Profiles from YAML or JSON, one or many documents. Faults show in [`build`](Self::build).
    pub fn profile_yaml(mut self, text: &str) -> Self {
        self.texts.push(text.to_owned());
        self
    }

    /// The replicas of a service, as `address:port`. A name without a port stands for all of its ports.
    pub fn endpoints<I>(mut self, service: &str, addresses: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let Some(name) = self.parsed::<ServiceName>("endpoints", service) else { return self };
        let mut found = Vec::new();
        for address in addresses {
            match address.as_ref().parse::<SocketAddr>() {
                Ok(addr) => found.push(Endpoint::new(addr)),
                Err(_) => self.faults.push(Fault::rejected(
                    format!("endpoints({service})"),
                    format!("`{}` is not an address", address.as_ref()),
                    "write address:port, such as 127.0.0.1:8080; for host names use DNS",
                )),
            }
        }
        self.endpoints.entry(name).or_default().extend(found);
        self
    }

    /// Replicas with weights, zones, identities.
    pub fn endpoint_set(mut self, service: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        if let Some(name) = self.parsed("endpoint_set", service) {
            self.endpoints.entry(name).or_default().extend(endpoints);
        }
        self
    }

    /// A watched directory of profiles: an edit takes effect within a second (feature `files`).
    pub fn profiles_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.profiles_dir = Some(path.into());
        self
    }

    /// A watched directory of `Endpoints` documents (feature `files`). It may be the profiles' directory.
    pub fn endpoints_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.endpoints_dir = Some(path.into());
        self
    }

    /// One more source of profiles, asked after the directories.
    pub fn profile_source(mut self, source: impl Source<Arc<ServiceProfile>>) -> Self {
        self.more_profiles = self.more_profiles.then(source);
        self
    }

    /// One more source of endpoints, asked after the directories.
    pub fn endpoint_source(mut self, source: impl Source<EndpointSet>) -> Self {
        self.more_endpoints = self.more_endpoints.then(source);
        self
    }

    /// Whether names that no other source knows are looked up in DNS. Default: yes, with feature `dns`.
    pub fn dns(mut self, on: bool) -> Self {
        self.dns = Some(on);
        self
    }

    /// Where the admin server listens (feature `admin`): `/metrics`, `/live`, `/ready`, `/inspect`. Default: nowhere.
    pub fn admin(mut self, addr: SocketAddr) -> Self {
        self.admin = Some(addr);
        self
    }

    /// The admin servers of other processes, `http://host:port` each, whose figures this one's admin server shows together with its
    /// own (feature `admin`). A host that is a service of this mesh stands for all of its replicas, any other name for all
    /// addresses that DNS has; `localhost` is one. Only what is written here is ever asked.
    #[cfg(feature = "admin")]
    pub fn admin_peers<I>(mut self, urls: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        for url in urls {
            let peer = self.parsed("admin_peers", url.as_ref());
            self.admin_peers.extend(peer);
        }
        self
    }

    /// Who may see live requests at the admin server from another machine: callers that prove one of these identities by mutual TLS.
    /// The admin server of a mesh with an [`identity`](Self::identity) then takes TLS beside plain text. Default: nobody; on this
    /// machine everybody may.
    #[cfg(feature = "admin")]
    pub fn admin_observers<I>(mut self, identities: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        for identity in identities {
            let identity = self.parsed("admin_observers", identity.as_ref());
            self.admin_observers.extend(identity);
        }
        self
    }

    /// Where metric handles are resolved. Default: the `metrics` recorder that the program has installed by now; with
    /// feature `prometheus`, a Prometheus recorder of the mesh's own. `Registry::global()` asks for the former.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Counts in `prometheus`, which the program may count in too; `/metrics` shows it, and the mesh keeps it small.
    #[cfg(feature = "prometheus")]
    pub fn prometheus(mut self, prometheus: crate::metrics::prometheus::Prometheus) -> Self {
        self.prometheus = Some(prometheus);
        self
    }

    /// How connections are opened and kept.
    pub fn connect(mut self, settings: ConnectSettings) -> Self {
        self.connect = settings;
        self
    }

    /// How [`Mesh::serve`] serves.
    pub fn serving(mut self, settings: ServeSettings) -> Self {
        self.serve = settings;
        self
    }

    /// Who may do what on the servers of this mesh. Default: everybody everything. Another policy can be published
    /// while it serves: [`Mesh::gate`].
    pub fn authorize(mut self, settings: AuthzSettings) -> Self {
        self.authz = Some(settings);
        self.policy_file = None;
        self
    }

    /// The same, as a watched file with an `Authorization` document says it: an edit is for every request within two
    /// seconds, also on open connections. What is wrong with an edit shows in [`Mesh::inspect`], and the last good policy
    /// stands; what is wrong with the file now shows in [`build`](Self::build).
    pub fn authorize_file(mut self, path: impl Into<PathBuf>) -> Self {
        match AuthorizationFile::open(path) {
            Ok((file, settings)) => {
                self.authz = Some(settings);
                self.policy_file = Some(file);
            }
            Err(invalid) => self.faults.extend(invalid.faults),
        }
        self
    }

    /// Where this process's certificates come from. From then on its servers speak mutual TLS
    /// ([`accepting`](Self::accepting)), and so do its clients with every replica whose identity discovery or a profile
    /// names (feature `tls`).
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub fn identity(self, source: impl IdentitySource + 'static) -> Self {
        self.identity_with(source, EpochSettings::default())
    }

    /// The same, with how certificates are checked.
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub fn identity_with(mut self, source: impl IdentitySource + 'static, settings: EpochSettings) -> Self {
        self.identity = Some(OwnIdentity { source: Box::new(source), settings });
        self
    }

    /// What the servers of a mesh with an identity take. Default: [`Mode::Strict`].
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub fn accepting(mut self, mode: Mode) -> Self {
        self.accept = mode;
        self
    }

    /// Whether the faults that profiles ask for are injected into what this process sends. Default: yes. While the mesh
    /// runs, [`Mesh::faults`] turns them off and on.
    pub fn inject_faults(mut self, on: bool) -> Self {
        self.inject_faults = Some(on);
        self
    }

    /// What is done with the contexts of traces in requests' headers. Default: they are left alone. Exporting spans records.
    pub fn trace(mut self, settings: TraceSettings) -> Self {
        self.trace = settings;
        self
    }

    /// Exports spans as OTLP to a collector (feature `otel`). The mesh must then be built inside a tokio runtime.
    #[cfg(feature = "otel")]
    pub fn otlp(mut self, settings: OtelSettings) -> Self {
        self.otel = Some(Exporting::Otlp(settings));
        self
    }

    /// Exports spans by an exporter of the caller's own (feature `otel`).
    #[cfg(feature = "otel")]
    pub fn otel(mut self, otel: Otel) -> Self {
        self.otel = Some(Exporting::Own(otel));
        self
    }

    /// Writes a line for each request that arrives to standard error. Default: none.
    pub fn access_log(self, format: LogFormat) -> Self {
        self.access_log_to(format, std::io::stderr())
    }

    /// The same to any writer, on a thread of its own; what it cannot take in time is dropped and counted.
    pub fn access_log_to(mut self, format: LogFormat, writer: impl Write + Send + 'static) -> Self {
        self.access_log = Some((format, LogWriter(Box::new(writer))));
        self
    }

    /// Headers whose values no tap may show, beside those that prove who somebody is, which none ever shows.
    pub fn hide_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.hidden.extend(names);
        self
    }

    /// Makes every choice by chance repeatable. For tests.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Makes the mesh. With a directory, DNS or an admin server it must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault of what was given, or when the admin address cannot be listened at.
    pub fn build(mut self) -> Result<Mesh, Error> {
        self.read_texts();
        let faults = std::mem::take(&mut self.faults);
        if !faults.is_empty() {
            return Err(Error::Config(Box::new(Invalid { faults })));
        }
        Made::of(self)
    }

    pub(crate) fn domain(&self) -> Arc<str> {
        self.cluster_domain.clone().unwrap_or_else(|| "cluster.local".into())
    }

    fn read_texts(&mut self) {
        let mut objects = Vec::new();
        for text in std::mem::take(&mut self.texts) {
            match documents::parse("profile_yaml", &text) {
                Ok(parsed) => {
                    parsed.notes.iter().for_each(note);
                    objects.extend(parsed.objects);
                    self.profiles.extend(parsed.profiles.into_iter().map(Arc::unwrap_or_clone));
                    for (name, set) in parsed.endpoints {
                        self.endpoints.entry(name).or_default().extend(set.iter().cloned());
                    }
                }
                Err(invalid) => self.faults.extend(invalid.faults),
            }
        }
        if !objects.is_empty() {
            let settings = ImportSettings { cluster_domain: self.domain(), ..ImportSettings::default() };
            let profiles = std::mem::take(&mut self.profiles);
            let imported = load::load_beside(objects, profiles, &settings);
            self.profiles = imported.profiles;
            for fault in imported.notes.into_iter().flat_map(|notes| notes.faults) {
                if fault.severity == Severity::Rejected {
                    self.faults.push(fault);
                } else {
                    note(&fault);
                }
            }
        }
    }

    /// The namespace that this process lives in, if its name says so.
    pub(crate) fn home(&self) -> Option<Arc<str>> {
        self.name.as_ref().and_then(|name| scope::home(name, &self.domain()))
    }

    /// What is written in code, as sources.
    pub(crate) fn fixed(&self) -> (Fixed<Arc<ServiceProfile>>, Fixed<EndpointSet>) {
        let (domain, home) = (self.domain(), self.home());
        // The last one written for the same callers is used, as with every other setting here.
        let written = self.profiles.iter().rev().map(|profile| (&(), Arc::new(profile.clone())));
        let (by_name, _) = by_name(written, home.as_deref(), &domain);
        let profiles =
            by_name.into_iter().fold(Fixed::new(&*domain).home(home.clone()), |fixed, (name, profile)| {
                fixed.with(name, profile)
            });
        let endpoints = Fixed::new(&*domain).home(home);
        let endpoints = self.endpoints.iter().fold(endpoints, |fixed, (name, endpoints)| {
            fixed.with(name.short(&domain), EndpointSet::new(endpoints.iter().cloned()))
        });
        (profiles, endpoints)
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, setting: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(bad) => {
                self.faults.push(Fault::rejected(setting, format!("{bad}"), ""));
                None
            }
        }
    }
}

/// Says in the log what is ignored or approximated of a text: nobody else is there yet to be told.
fn note(fault: &Fault) {
    tracing::warn!(%fault, "of a profile written in code");
}
