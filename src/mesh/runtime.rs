//! Floor 6: a running mesh: clients, servers, statistics, and its end.

#[cfg(feature = "admin")]
use crate::admin::fleet::{Fleet, Peer};
use crate::authz::layer::Gate;
use crate::authz::rules::AuthzPolicy;
use crate::authz::settings::AuthzSettings;
use crate::control::source::warn_of_faults;
use crate::error::{BoxError, Error};
use crate::fault::decide::FaultSwitch;
#[cfg(feature = "admin")]
use crate::mesh::admin::{self, Shown};
#[cfg(feature = "admin")]
use crate::mesh::api;
use crate::mesh::builder::MeshBuilder;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::mesh::builder::OwnIdentity as Rotating;
use crate::mesh::caller::Callers;
use crate::mesh::client::Client;
use crate::mesh::dialling::dialling;
use crate::mesh::directory::{Directory, Parts};
use crate::mesh::inbound::InboundLayer;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::mesh::inspect::IdentityView;
use crate::mesh::inspect::Inspection;
use crate::mesh::layer::MeshLayer;
#[cfg(all(feature = "admin", any(feature = "tls", feature = "ring")))]
use crate::mesh::live::OwnIdentity;
#[cfg(feature = "admin")]
use crate::mesh::live::{self, Live};
#[cfg(feature = "admin")]
use crate::mesh::look::Look;
use crate::mesh::recording::Recording;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::mesh::secure::SecureAccept;
use crate::mesh::services::Services;
use crate::mesh::sources;
use crate::mesh::stats::Stats;
use crate::mesh::tasks::{self, Tasks};
use crate::mesh::telemetry::Connections;
use crate::mesh::watching;
use crate::metrics::ledger::Collect;
use crate::metrics::registry::Registry;
use crate::metrics::rules::Rules;
use crate::metrics::set::MetricsSet;
use crate::metrics::text::Form;
use crate::profile::name::ServiceName;
use crate::serve::body::RequestBody;
use crate::serve::handshake::Plain as Plaintext;
use crate::serve::listen::{self, Drained};
use crate::serve::settings::ServeSettings;
use crate::stdx::clock::{self, Instant};
use crate::stdx::rng::Rng;
use crate::tap::hub::TapHub;
use crate::tap::redact::Redaction;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::acceptor::{Acceptor, Mode};
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::epoch::EpochSettings;
#[cfg(feature = "admin")]
use crate::tls::identity::Identity;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::rotate::{Identities, rotation};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tower_layer::Layer;
use tower_service::Service;

/// A mesh in this process. Cheap to clone; when the last clone and the last client are gone, its tasks end.
#[derive(Debug, Clone)]
pub struct Mesh {
    made: Arc<Made>,
}

/// What a mesh is made of.
#[derive(Debug)]
pub struct Made {
    services: Arc<Services>,
    metrics: Arc<MetricsSet>,
    connections: Arc<Connections>,
    rng: Rng,
    faults: FaultSwitch,
    serve: ServeSettings,
    gate: Option<Gate>,
    #[cfg(any(feature = "tls", feature = "ring"))]
    identities: Option<Identities>,
    #[cfg(any(feature = "tls", feature = "ring"))]
    accept: Mode,
    begun: Instant,
    draining: watch::Sender<bool>,
    serving: watch::Sender<usize>,
    recording: Recording,
    admin: OnceLock<SocketAddr>,
    #[cfg(feature = "admin")]
    shown_as: ShownAs,
}

/// Who the admin server says this process is, and whom else it asks.
#[cfg(feature = "admin")]
#[derive(Debug)]
struct ShownAs {
    name: ServiceName,
    peers: Vec<Peer>,
    observers: Vec<Identity>,
}

#[cfg(feature = "admin")]
impl ShownAs {
    fn of(name: &ServiceName, builder: &mut MeshBuilder) -> Self {
        let peers = std::mem::take(&mut builder.admin_peers);
        Self { name: name.clone(), peers, observers: std::mem::take(&mut builder.admin_observers) }
    }
}

impl Mesh {
    /// Builds a mesh in code.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// Builds a mesh from `ENMESH_*` variables, so that one binary is configured from outside:
    /// see [`VARIABLES`](crate::mesh::env::VARIABLES).
    ///
    /// # Errors
    /// [`Error::Config`] with every variable that cannot be read.
    pub fn from_env() -> Result<Self, Error> {
        MeshBuilder::from_env().build()
    }

    /// A client for any service; each request's authority names it.
    pub fn client(&self) -> Client {
        Client::new(Arc::clone(&self.made.services), None, self.made.rng.clone())
    }

    /// A client for one service, whatever authority its requests name; a tonic client's transport.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when `name` is no service name.
    pub fn service(&self, name: &str) -> Result<Client, Error> {
        let service = self.made.services.named(name)?;
        Ok(Client::new(Arc::clone(&self.made.services), Some(service), self.made.rng.clone()))
    }

    /// The client's policies around a service of the caller's own, which does the sending: routes, metrics, timeouts and
    /// retries, but no balancing and no connections.
    pub fn layer(&self) -> MeshLayer {
        MeshLayer::new(Arc::clone(&self.made.services), self.made.rng.clone())
    }

    /// The server side as a layer, for servers that are not started by [`serve`](Self::serve).
    pub fn inbound(&self) -> InboundLayer {
        self.inbound_at(None)
    }

    /// The same, for a server that listens at `addr`: what it counts says so.
    pub fn inbound_at(&self, addr: Option<SocketAddr>) -> InboundLayer {
        let arrivals = self.made.metrics.arrivals(addr);
        InboundLayer::new(Arc::clone(&self.made.services), self.made.gate.clone(), arrivals)
    }

    /// Turns the faults that profiles ask for off and on, from the next request on.
    pub fn faults(&self) -> &FaultSwitch {
        &self.made.faults
    }

    /// The gate before this mesh's servers, if the builder was told to authorize: a policy published there is for every
    /// request from then on.
    pub fn gate(&self) -> Option<&Gate> {
        self.made.gate.as_ref()
    }

    /// This process's identity, if the builder was told where it comes from: whether it is there, and until when.
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub fn identities(&self) -> Option<&Identities> {
        self.made.identities.as_ref()
    }

    /// What every route did since the mesh was made.
    pub fn stats(&self) -> Stats {
        Stats::read(&self.made.metrics, self.made.begun)
    }

    /// What the mesh knows now: services, routes, endpoints, and what was refused and why.
    pub fn inspect(&self) -> Inspection {
        #[cfg(any(feature = "tls", feature = "ring"))]
        let identity = self.made.identities.as_ref().map(IdentityView::of);
        #[cfg(not(any(feature = "tls", feature = "ring")))]
        let identity = None;
        Inspection::of(&self.made.services.directory(), identity, self.made.gate.as_ref())
    }

    /// Live requests, for whoever may see them: `GET /api/v1/tap` on the admin server shows the same.
    pub fn taps(&self) -> &Arc<TapHub> {
        &self.made.services.watch.tap
    }

    /// The metrics as Prometheus text, if the mesh records them itself (feature `prometheus`, and no registry given).
    pub fn metrics_text(&self) -> Option<String> {
        self.made.recording.render().map(|render| render(Form::Classic))
    }

    /// Passes what was counted until now on to the `metrics` recorder of the program, which else happens every 5 s. Does
    /// nothing when the mesh records its metrics itself.
    pub fn publish_metrics(&self) {
        self.made.recording.pass();
    }

    /// Where the admin server listens, if there is one; with port 0 given, the port that was free.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.made.admin.get().copied()
    }

    /// Ends the mesh's servers: each stops accepting, tells its peers, and finishes what is under way, for at most the
    /// drain time. Returns when all have ended. Clients go on working.
    pub async fn shutdown(&self) {
        self.made.draining.send_replace(true);
        let mut serving = self.made.serving.subscribe();
        // An error means that the sender is gone, which `self` holds.
        let _ = serving.wait_for(|servers| *servers == 0).await;
    }

    /// Serves `app` behind [`inbound`](Self::inbound) until [`shutdown`](Self::shutdown): HTTP/1.1 and HTTP/2 on one
    /// port, with the limits of [`ServeSettings`]. axum's `Router`, tonic's `Routes` and tower services fit.
    ///
    /// Dropping the future cuts its connections off.
    ///
    /// # Errors
    /// None at present: no failure of one connection ends a server.
    pub async fn serve<S, B>(&self, listener: TcpListener, app: S) -> Result<Drained, Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Error>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // A listener that cannot say where it listens is counted without an address.
        let target = listener.local_addr().ok();
        let app = self.inbound_at(target).layer(app);
        let mut draining = self.made.draining.subscribe();
        let serving = Serving::begin(&self.made.serving);
        // An error means that the sender is gone, which `self` holds.
        let shutdown = async move { drop(draining.wait_for(|draining| *draining).await) };
        let settings = self.made.serve.clone();
        let stats = self.made.connections.served(target);
        #[cfg(any(feature = "tls", feature = "ring"))]
        let drained = match &self.made.identities {
            Some(identities) => {
                let acceptor =
                    Acceptor::new(identities.clone(), self.made.accept, settings.handshake_timeout);
                let accept = SecureAccept::new(acceptor);
                listen::serve_with(listener, accept, app, settings, stats, shutdown).await
            }
            None => listen::serve_with(listener, Plaintext, app, settings, stats, shutdown).await,
        };
        #[cfg(not(any(feature = "tls", feature = "ring")))]
        let drained = listen::serve_with(listener, Plaintext, app, settings, stats, shutdown).await;
        drop(serving);
        Ok(drained)
    }
}

/// Counts one server until it is dropped.
struct Serving(watch::Sender<usize>);

impl Serving {
    fn begin(servers: &watch::Sender<usize>) -> Self {
        servers.send_modify(|servers| *servers += 1);
        Self(servers.clone())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.send_modify(|servers| *servers -= 1);
    }
}

/// The switch of faults. Its chance is another one than the balancers', so that a fault moves no choice of theirs.
fn faults(builder: &MeshBuilder) -> FaultSwitch {
    let rng = builder.seed.map_or_else(Rng::thread, |seed| Rng::seeded(!seed));
    let faults = FaultSwitch::new(builder.inject_faults.unwrap_or(true)).with_rng(rng);
    if faults.is_on() {
        builder.profiles.iter().for_each(warn_of_faults);
    }
    faults
}

impl Made {
    pub(crate) fn of(mut builder: MeshBuilder) -> Result<Mesh, Error> {
        let recording = Recording::of(&builder)?;
        let policy_file = builder.policy_file.take();
        let (needs_runtime, admin) = (sources::needs_runtime(&builder), builder.admin);
        #[cfg(any(feature = "tls", feature = "ring"))]
        let (identities, rotating) = rotated(builder.identity.take(), recording.registry()).unzip();
        let rng = builder.seed.map_or_else(Rng::thread, Rng::seeded);
        let metrics = counted(&recording);
        let gate = gate(builder.authz.take(), recording.registry(), metrics.rules())?;
        let (profiles, endpoints) = sources::of(&builder, &metrics);
        let own = builder.name.clone().unwrap_or_else(ServiceName::localhost);
        #[cfg(feature = "admin")]
        let shown_as = ShownAs::of(&own, &mut builder);
        #[cfg(not(any(feature = "tls", feature = "ring")))]
        let identities = None;
        let (connections, connect) = dialling(&own, builder.connect.clone(), identities.as_ref());
        metrics.secure(connections.is_secured());
        let faults = faults(&builder);
        let directory = Directory::new(Parts {
            own: own.clone(),
            cluster_domain: builder.domain(),
            rng: rng.clone(),
            metrics: Arc::clone(&metrics),
            secured: connections.is_secured(),
            faults: faults.clone(),
            hidden: Redaction::and(builder.hidden.iter().cloned()),
            connect,
            profiles: Box::new(profiles),
            endpoints: Box::new(endpoints),
        })
        .map_err(|invalid| Error::Config(Box::new(invalid)))?;
        let (mut watch, lines) = watching::of(&mut builder, &own, &rng)?;
        watch.callers = Callers {
            home: builder.home(),
            #[cfg(any(feature = "tls", feature = "ring"))]
            identities: identities.clone(),
        };
        let services = Arc::new(Services::new(directory, watch));
        let told = [services.clone() as Arc<dyn Collect>, connections.clone()];
        told.iter().for_each(|source| metrics.add(source));
        let made = Self {
            services,
            metrics,
            connections,
            rng,
            faults,
            serve: builder.serve.clone(),
            gate,
            #[cfg(any(feature = "tls", feature = "ring"))]
            identities,
            #[cfg(any(feature = "tls", feature = "ring"))]
            accept: builder.accept,
            begun: clock::now(),
            draining: watch::Sender::new(false),
            serving: watch::Sender::new(0),
            recording,
            admin: OnceLock::new(),
            #[cfg(feature = "admin")]
            shown_as,
        };
        let mesh = Mesh { made: Arc::new(made) };
        mesh.made.start(needs_runtime || lines.is_some(), admin)?;
        lines.into_iter().for_each(|lines| mesh.made.spawn(lines));
        if let (Some(file), Some(gate)) = (policy_file, &mesh.made.gate) {
            mesh.made.spawn(file.watch(gate.clone()));
        }
        #[cfg(any(feature = "tls", feature = "ring"))]
        if let Some(rotating) = rotating {
            mesh.made.spawn(rotating);
        }
        Ok(mesh)
    }

    /// Runs a task until the mesh ends, if there is a runtime.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            self.services.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(&runtime, task);
        }
    }

    /// Starts what needs tasks. A mesh whose every source is written in code needs none, and no runtime.
    fn start(&self, needs_runtime: bool, admin: Option<SocketAddr>) -> Result<(), Error> {
        let Ok(runtime) = Handle::try_current() else {
            return match needs_runtime {
                false => Ok(()),
                true => Err(Error::Config(
                    "a mesh with a watched file or directory, DNS, an identity, an access log or an admin server must \
                     be built inside a tokio runtime"
                        .into(),
                )),
            };
        };
        let mut tasks = self.services.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = self.start_admin(admin, &runtime, &mut tasks)?;
        let ready = if self.services.directory().has_spoken() { Box::new(()) } else { ready };
        let told = Arc::clone(&self.services.streams);
        tasks.spawn(&runtime, tasks::update(Arc::downgrade(&self.services), told, ready));
        if let Some(upkeep) = self.recording.upkeep() {
            tasks.spawn(&runtime, upkeep);
        }
        Ok(())
    }

    /// Starts the admin server, if one is wanted. What it gives back is to be dropped when the sources have spoken.
    #[cfg(feature = "admin")]
    fn start_admin(
        &self,
        addr: Option<SocketAddr>,
        runtime: &Handle,
        tasks: &mut Tasks,
    ) -> Result<Box<dyn Send>, Error> {
        let Some(addr) = addr else { return Ok(Box::new(())) };
        let show = self.shown();
        let sampling = live::sampling(Arc::downgrade(&show.live));
        let listening = admin::listen(addr, show)?;
        tasks.spawn(runtime, sampling);
        // Set once: a mesh is started once.
        let _ = self.admin.set(listening.addr);
        tasks.spawn(runtime, listening.run);
        #[cfg(any(feature = "tls", feature = "ring"))]
        if let Some(identities) = &self.identities {
            let waiting = admin::wait_for_identity(listening.readiness, identities.clone());
            tasks.spawn(runtime, waiting);
        }
        Ok(Box::new(listening.first_update))
    }

    /// What the admin server shows.
    #[cfg(feature = "admin")]
    fn shown(&self) -> Shown {
        let services = Arc::downgrade(&self.services);
        #[cfg(any(feature = "tls", feature = "ring"))]
        let identity = self
            .identities
            .clone()
            .map(|identities| -> OwnIdentity { Arc::new(move || identities.status().identity) });
        #[cfg(not(any(feature = "tls", feature = "ring")))]
        let identity = None;
        let taps = Arc::clone(&self.services.watch.tap);
        let (id, name) = (taps.id().to_owned(), self.shown_as.name.clone());
        let live = Live::new(id, name, Arc::clone(&self.metrics), services.clone(), identity);
        let fleet = Fleet::new(self.shown_as.peers.iter().cloned(), api::lookup(services.clone()));
        let look = Look {
            services,
            gate: self.gate.clone(),
            #[cfg(any(feature = "tls", feature = "ring"))]
            identities: self.identities.clone(),
        };
        let live = Arc::new(live);
        let told: Arc<dyn Collect> = live.clone();
        self.metrics.add(&told);
        let observers = self.shown_as.observers.clone();
        Shown { look, metrics: self.recording.render(), live, fleet, taps, observers }
    }

    #[cfg(not(feature = "admin"))]
    fn start_admin(
        &self,
        addr: Option<SocketAddr>,
        _: &Handle,
        _: &mut Tasks,
    ) -> Result<Box<dyn Send>, Error> {
        match addr {
            None => Ok(Box::new(())),
            Some(_) => Err(Error::Config("an admin server needs the crate's feature `admin`".into())),
        }
    }
}

/// The identities of a mesh, and the task that keeps them fresh.
#[cfg(any(feature = "tls", feature = "ring"))]
fn rotated(
    own: Option<Rotating>,
    registry: &Registry,
) -> Option<(Identities, impl Future<Output = ()> + Send + 'static)> {
    let own = own?;
    Some(rotation(own.source, EpochSettings { registry: registry.clone(), ..own.settings }))
}

/// All that is counted, and told where metrics go.
fn counted(recording: &Recording) -> Arc<MetricsSet> {
    let metrics = Arc::new(MetricsSet::new(recording.registry().clone()));
    recording.add(&(metrics.clone() as Arc<dyn Collect>));
    metrics
}

/// The gate of these settings.
fn gate(
    settings: Option<AuthzSettings>,
    registry: &Registry,
    rules: &Arc<Rules>,
) -> Result<Option<Gate>, Error> {
    let Some(settings) = settings else { return Ok(None) };
    let policy = AuthzPolicy::compile(&settings).map_err(|invalid| Error::Config(Box::new(invalid)))?;
    Ok(Some(Gate::told(policy, registry.clone(), Arc::clone(rules))))
}
