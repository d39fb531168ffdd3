//! Floor 6: what the mesh knows: services by name, their profiles and replicas as sources tell them.
//!
//! Everything here happens off the request path, under one lock that no `await` is held over. Requests read what it
//! publishes: each service's policy, and each balancer's own snapshot.

use crate::balance::count::Count;
use crate::balance::layer::Balance;
use crate::balance::tell::TellLoadLayer;
use crate::connect::http::Connection as Wire;
use crate::control::source::{Snapshot, Source, SourceFault, Updates, warn_of_faults};
use crate::discover::endpoint::{Endpoint, EndpointSet};
use crate::fault::decide::FaultSwitch;
use crate::mesh::body::ReqBody;
use crate::mesh::history::{Change, History};
#[cfg(not(any(feature = "tls", feature = "ring")))]
use crate::mesh::insecure::Secure;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::mesh::secure::Secure;
use crate::mesh::settled::Settled;
use crate::mesh::stack::{self, Backend};
use crate::mesh::telemetry::tls_of;
use crate::metrics::names::Direction;
use crate::metrics::set::MetricsSet;
use crate::policy::compile::{Compiler, Policy};
use crate::policy::unhonoured::unhonoured;
use crate::profile::invalid::{Fault, Invalid};
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::ClientTls;
use crate::retry::replay::Replay;
use crate::stdx::rng::Rng;
use crate::tap::redact::Redaction;
use crate::timeout::body::Sending;
use arc_swap::ArcSwap;
use futures::{FutureExt, StreamExt};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// The connections to a replica in a running mesh.
pub type Connection = Wire<Sending<Replay<ReqBody>>, Secure>;

/// What a backend is in a running mesh.
pub type Target = Backend<Connection>;

/// Makes the connections of a replica of a service; how they are secured may change later.
pub type Connect = dyn Fn(&Arc<Endpoint>, &ServiceName, &ServiceProfile, watch::Receiver<Arc<ClientTls>>) -> Connection
    + Send
    + Sync;

/// The most services that callers may name. Names come from the program's own requests, but a program may take
/// them from outside; beyond this they are refused.
pub const SERVICES_MAX: usize = 10_000;

/// A service that callers name, and its policy now.
#[derive(Debug)]
pub struct Service {
    /// Its short name with a port.
    pub name: ServiceName,
    /// The policy; requests load it once.
    pub policy: ArcSwap<Policy<Target>>,
    /// Whether its source has said if it knows a profile; until then requests wait.
    pub settled: Settled,
}

/// One thing that a source said of one service.
#[derive(Debug)]
pub enum Update {
    /// Of its profile.
    Profile(Snapshot<Arc<ServiceProfile>>),
    /// Of its replicas.
    Endpoints(Snapshot<EndpointSet>),
}

/// What is known of one service.
#[derive(Debug, Default)]
pub struct Known {
    /// Its profile, if a source has one.
    pub profile: Option<Arc<ServiceProfile>>,
    /// Its replicas, if a source knows any.
    pub endpoints: Option<EndpointSet>,
    /// What is wrong with the profile's newest form; the last good one is in use.
    pub profile_faults: Arc<[SourceFault]>,
    /// What is wrong with the newest replicas.
    pub endpoint_faults: Arc<[SourceFault]>,
    service: Option<Arc<Service>>,
    target: Option<Target>,
    /// How connections to its replicas are secured.
    tls: watch::Sender<Arc<ClientTls>>,
}

impl Known {
    /// The balancer of its replicas, if anything is sent to it.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// Secures connections so from now on; those that are open and secured otherwise are retired.
    fn secure_by(&self, tls: &ClientTls) {
        self.tls.send_if_modified(|now| {
            let changes = **now != *tls;
            if changes {
                *now = Arc::new(tls.clone());
            }
            changes
        });
    }

    /// The service, if callers name it.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }
}

/// What the directory is made of.
pub struct Parts {
    /// This process's own service.
    pub own: ServiceName,
    /// The suffix of Kubernetes names, `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Chance for balancers.
    pub rng: Rng,
    /// Where handles come from.
    pub metrics: Arc<MetricsSet>,
    /// Turns the faults of all routes off.
    pub faults: FaultSwitch,
    /// What is not told of updates.
    pub hidden: Redaction,
    /// Whether this process has an identity.
    pub secured: bool,
    /// Makes connections.
    pub connect: Box<Connect>,
    /// Who tells profiles.
    pub profiles: Box<dyn Source<Arc<ServiceProfile>>>,
    /// Who tells replicas.
    pub endpoints: Box<dyn Source<EndpointSet>>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("own", &self.own).finish_non_exhaustive()
    }
}

/// What the mesh knows.
#[derive(Debug)]
pub struct Directory {
    parts: Parts,
    known: BTreeMap<ServiceName, Known>,
    inbound: Arc<ArcSwap<Policy<()>>>,
    /// Tells callers how busy this process is, while its profile says so.
    tell: TellLoadLayer,
    streams: Streams,
    generation: u64,
    history: History,
    /// Whether the profile's sources have spoken of this process's own service, or cannot.
    spoken: bool,
}

/// Streams that nobody reads yet.
#[derive(Default)]
struct Streams(Vec<(ServiceName, futures::stream::BoxStream<'static, Update>)>);

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Streams").field(&self.0.len()).finish()
    }
}

impl Directory {
    /// A directory that asks its sources for what it is asked for. It knows this process's own service from the start.
    ///
    /// # Errors
    /// Never: a profile that says nothing compiles.
    pub fn new(parts: Parts) -> Result<Self, Invalid> {
        let own = parts.own.short(&parts.cluster_domain);
        let silent = Arc::new(ServiceProfile::new(parts.own.clone()));
        let inbound = inbound_policy(&parts.metrics, silent, &parts.own, None)?;
        let inbound = Arc::new(ArcSwap::from_pointee(inbound));
        let history = History::hiding(parts.hidden.clone());
        let (known, streams, tell) = (BTreeMap::new(), Streams::default(), TellLoadLayer::default());
        tell.set(false);
        let mut this = Self { parts, known, inbound, tell, streams, generation: 0, history, spoken: false };
        this.spoken = this.watch_profile(&own);
        Ok(this)
    }

    /// Whether the first word of this process's own profile has come already: nobody need wait for it.
    pub fn has_spoken(&self) -> bool {
        self.spoken
    }

    /// The policy of requests that arrive: that of this process's own service.
    pub fn inbound(&self) -> &Arc<ArcSwap<Policy<()>>> {
        &self.inbound
    }

    /// Tells callers how busy this process is, while its profile says so.
    pub fn tell(&self) -> &TellLoadLayer {
        &self.tell
    }

    /// The service that callers name so; made when first asked for.
    ///
    /// # Errors
    /// When too many services were named.
    pub fn service(&mut self, name: &ServiceName) -> Result<Arc<Service>, Invalid> {
        let name = name.short(&self.parts.cluster_domain).or_port(80);
        if let Some(service) = self.known.get(&name).and_then(Known::service) {
            return Ok(Arc::clone(service));
        }
        if self.known.len() >= SERVICES_MAX {
            return Err(
                Fault::rejected("", format!("{SERVICES_MAX} services are in use"), "name fewer").into()
            );
        }
        let settled = self.watch_profile(&name);
        let policy = self.compile(&name, None)?;
        let policy = ArcSwap::from_pointee(policy);
        let service = Arc::new(Service { name: name.clone(), policy, settled: Settled::new(settled) });
        self.known.entry(name).or_default().service = Some(Arc::clone(&service));
        Ok(service)
    }

    /// The profile in use: the source's, or one that says nothing.
    fn profile(&self, name: &ServiceName) -> Arc<ServiceProfile> {
        let said = self.known.get(name).and_then(|known| known.profile.clone());
        said.unwrap_or_else(|| Arc::new(ServiceProfile::new(name.clone())))
    }

    fn compile(
        &mut self,
        name: &ServiceName,
        before: Option<&Policy<Target>>,
    ) -> Result<Policy<Target>, Invalid> {
        let profile = self.profile(name);
        let metrics = Arc::clone(&self.parts.metrics);
        let (service, own) = (label(&profile, name), name.clone());
        let compiler = Compiler {
            service,
            own,
            direction: Direction::Outbound,
            metrics: &metrics,
            faults: self.parts.faults.clone(),
        };
        if compiler.faults.is_on() {
            warn_of_faults(&profile);
        }
        compiler.compile(profile, before, |backend| self.target(backend))
    }

    /// The balancer of a service's replicas; made when first asked for.
    fn target(&mut self, name: &ServiceName) -> Target {
        let name = name.short(&self.parts.cluster_domain).or_port(80);
        if let Some(target) = self.known.get(&name).and_then(Known::target) {
            return target.clone();
        }
        self.watch_profile(&name);
        let profile = self.profile(&name);
        let label = label(&profile, &name);
        let rng = self.parts.rng.clone();
        let target = Balance::new(Arc::clone(&label), &profile.balancer, profile.breaker.as_ref(), rng);
        let known = self.known.entry(name.clone()).or_default();
        known.secure_by(&profile.tls);
        let (metrics, secured, tls) =
            (Arc::clone(&self.parts.metrics), self.parts.secured, known.tls.subscribe());
        let target = target.counted(Count::new(move |endpoint| {
            metrics.endpoint(&label, endpoint, tls_of(secured, tls.borrow().mode, endpoint))
        }));
        known.target = Some(target.clone());
        let updates = self.parts.endpoints.watch(&name);
        self.watch(&name, updates, Update::Endpoints);
        target
    }

    /// Begins to watch a service's profile, if nobody did. Says whether the source has answered.
    fn watch_profile(&mut self, name: &ServiceName) -> bool {
        if self.known.contains_key(name) {
            return true;
        }
        self.known.insert(name.clone(), Known::default());
        let updates = self.parts.profiles.watch(name);
        self.watch(name, updates, Update::Profile)
    }

    /// Takes what a source says at once, and keeps the rest of its stream for whoever reads streams.
    fn watch<T: Send + 'static>(
        &mut self,
        name: &ServiceName,
        updates: Updates<T>,
        wrap: fn(Snapshot<T>) -> Update,
    ) -> bool {
        let mut stream = updates.map(wrap).boxed();
        let first = stream.next().now_or_never();
        let answered = first.is_some();
        match first {
            Some(Some(update)) => {
                self.apply(name, update);
                self.streams.0.push((name.clone(), stream));
            }
            Some(None) => {}
            None => self.streams.0.push((name.clone(), stream)),
        }
        answered
    }

    /// The streams that were begun since this was last asked, by service.
    pub fn take_streams(&mut self) -> Vec<(ServiceName, futures::stream::BoxStream<'static, Update>)> {
        std::mem::take(&mut self.streams.0)
    }

    /// Takes one update in. What does not compile is refused with its faults, and the last good stays.
    pub fn apply(&mut self, name: &ServiceName, update: Update) {
        match update {
            Update::Profile(snapshot) => self.apply_profile(name, snapshot),
            Update::Endpoints(snapshot) => self.apply_endpoints(name, snapshot),
        }
    }

    fn apply_profile(&mut self, name: &ServiceName, snapshot: Snapshot<Arc<ServiceProfile>>) {
        let mut faults = snapshot.faults.to_vec();
        let mut good = true;
        if let Some(profile) = &snapshot.value {
            let told = match check(profile) {
                Ok(()) => unhonoured(profile),
                Err(invalid) => {
                    good = false;
                    invalid.faults
                }
            };
            faults.extend(told.into_iter().map(|fault| SourceFault::new(Arc::clone(&profile.origin), fault)));
        }
        let known = self.known.entry(name.clone()).or_default();
        self.history.faults(name, &known.profile_faults, &faults);
        known.profile_faults = faults.into();
        let changed = good && known.profile != snapshot.value;
        if changed {
            let before = std::mem::replace(&mut known.profile, snapshot.value.clone());
            self.generation += 1;
            self.history.update(self.generation, name, Change::Profile(before, snapshot.value));
            self.republish(name);
        }
        if let Some(service) = self.known.get(name).and_then(Known::service) {
            service.settled.set();
        }
    }

    /// Compiles a service's policy anew and swaps it. Requests under way keep theirs.
    fn republish(&mut self, name: &ServiceName) {
        let profile = self.profile(name);
        if *name == self.parts.own.short(&self.parts.cluster_domain) {
            let before = self.inbound.load_full();
            let policy =
                inbound_policy(&self.parts.metrics, Arc::clone(&profile), &self.parts.own, Some(&before));
            if let Ok(policy) = policy {
                self.inbound.store(Arc::new(policy));
            }
            self.tell.set(profile.balancer.reports);
        }
        if let Some(service) = self.known.get(name).and_then(Known::service).cloned() {
            let before = service.policy.load_full();
            if let Ok(policy) = self.compile(name, Some(&before)) {
                service.policy.store(Arc::new(policy));
            }
        }
        if let Some(target) = self.known.get(name).and_then(Known::target) {
            target.settings(&profile.balancer, profile.breaker.as_ref());
            target.each(|replica| limit(replica.inner(), &profile));
        }
        if let Some(known) = self.known.get(name) {
            known.secure_by(&profile.tls);
        }
    }

    fn apply_endpoints(&mut self, name: &ServiceName, snapshot: Snapshot<EndpointSet>) {
        let profile = self.profile(name);
        let connect = &self.parts.connect;
        let known = self.known.entry(name.clone()).or_default();
        self.history.faults(name, &known.endpoint_faults, &snapshot.faults);
        known.endpoint_faults = snapshot.faults;
        let before = known.endpoints.as_ref();
        let value =
            snapshot.value.map(|set| before.map_or(set.clone(), |before| set.keep_identities(before)));
        if known.endpoints != value || value.is_none() {
            let before = std::mem::replace(&mut known.endpoints, value.clone());
            self.generation += 1;
            if before != value {
                self.history.update(self.generation, name, Change::Endpoints(before, value));
            }
            if let Some(target) = &known.target {
                let set = known.endpoints.clone().unwrap_or_default();
                let tls = &known.tls;
                target.update(&set, |endpoint| {
                    let connection = connect(endpoint, name, &profile, tls.subscribe());
                    limit(&connection, &profile);
                    stack::replica(connection)
                });
            }
        }
    }

    /// How many updates changed anything.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The last updates, and what was refused.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// This process's own service, and the suffix of Kubernetes names.
    pub fn own(&self) -> (&ServiceName, &Arc<str>) {
        (&self.parts.own, &self.parts.cluster_domain)
    }

    /// Everything known, by the short name of the service.
    pub fn known(&self) -> impl Iterator<Item = (&ServiceName, &Known)> {
        self.known.iter()
    }
}

/// Holds the connections of a replica to what its service's profile says.
fn limit(connection: &Connection, profile: &ServiceProfile) {
    connection.limit(&connection.settings().clone().with_profile(profile));
}

/// Whether a profile compiles, apart from all that runs.
fn check(profile: &Arc<ServiceProfile>) -> Result<(), Invalid> {
    let Some(name) = profile.name() else {
        return Err(Fault::rejected("metadata.name", "the profile names no service", "give it a name").into());
    };
    let metrics = MetricsSet::unseen();
    let (service, own) = ("".into(), name.clone());
    let compiler = Compiler {
        service,
        own,
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    compiler.compile(Arc::clone(profile), None, |_| ()).map(|_| ())
}

fn inbound_policy(
    metrics: &MetricsSet,
    profile: Arc<ServiceProfile>,
    own: &ServiceName,
    before: Option<&Policy<()>>,
) -> Result<Policy<()>, Invalid> {
    let service = label(&profile, own);
    let compiler = Compiler {
        service,
        own: own.clone(),
        direction: Direction::Inbound,
        metrics,
        faults: FaultSwitch::default(),
    };
    compiler.compile(profile, before, |_| ())
}

/// The label `dst`: the profile's own name, with the port that callers use.
fn label(profile: &ServiceProfile, name: &ServiceName) -> Arc<str> {
    let own = profile.name().unwrap_or(name);
    match name.port() {
        Some(port) => own.or_port(port).to_string().into(),
        None => own.to_string().into(),
    }
}
