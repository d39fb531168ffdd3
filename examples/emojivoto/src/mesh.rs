//! The mesh as this demo uses it: one for each service, with errors as text.

use enmesh::classify::respond::{Respond, RespondLayer};
use enmesh::metrics::names::Direction;
use enmesh::metrics::prometheus::Prometheus;
use enmesh::metrics::stat::Reading;
use enmesh::serve::settings::ServeSettings;
use enmesh::stdx::rng::Rng;
use enmesh::tls::authority::{Authority, AuthoritySettings};
use enmesh::tls::renew::RenewalSettings;
use enmesh::trace::settings::TraceSettings;
use enmesh::{MeshBuilder, ReqBody};

pub use enmesh::tls::acceptor::Mode;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use std::collections::BTreeSet;
use std::error::Error;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tower::Layer;

const TRUST_DOMAIN: &str = "emojivoto.example";

/// A transport for generated gRPC clients. The mesh's own errors become gRPC statuses.
pub type Client = Respond<enmesh::Client>;

/// What one service sends and serves through.
#[derive(Clone)]
pub struct Mesh {
    mesh: enmesh::Mesh,
}

/// The running totals of a route.
pub struct RouteTotal {
    /// Whether this service was called by it, and did not call.
    pub inbound: bool,
    /// The service that was called.
    pub service: String,
    /// The route's name.
    pub route: String,
    /// The totals.
    pub reading: Reading,
}

/// What the meshes of one demo have in common.
pub struct Surroundings<'a> {
    /// A directory of profiles.
    pub profiles: &'a Path,
    /// A directory of endpoints.
    pub endpoints: &'a Path,
    /// How long requests in flight may take to end.
    pub drain: Duration,
    /// Who vouches for the services.
    pub authority: &'a Authority,
}

/// Where a mesh shows itself, on loopback.
#[derive(Default)]
pub struct Shown {
    /// The port of the admin page; 0 is any free port.
    pub port: u16,
    /// The admin pages of others, which this one shows together with its own.
    pub others: Vec<String>,
}

impl Surroundings<'_> {
    /// The mesh of the service called `name`, whose identity is that of the service account `account`. It serves what
    /// `accepts` says, and calls others by mutual TLS.
    pub fn mesh(&self, name: &str, account: &str, accepts: Mode, shown: Shown) -> Result<Mesh, String> {
        let mut serving = ServeSettings::default();
        serving.drain = self.drain;
        let identity = identity(account).parse().map_err(|error| text(&error))?;
        let certificates = self.authority.source(identity, RenewalSettings::default(), Rng::thread());
        let builder = enmesh::Mesh::builder().name(name).dns(false).serving(serving);
        let builder = builder.profiles_dir(self.profiles).endpoints_dir(self.endpoints);
        let builder = builder.admin((Ipv4Addr::LOCALHOST, shown.port).into()).admin_peers(shown.others);
        // The demo is set up by its arguments; whether its calls are traced is for whoever looks at it.
        let is_traced = std::env::var_os("ENMESH_TRACE").is_some_and(|mode| mode == "record");
        let trace = if is_traced { TraceSettings::record() } else { TraceSettings::default() };
        build(builder.identity(certificates).accepting(accepts).trace(trace))
    }
}

/// The identity of a service account.
pub fn identity(account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/emojivoto/sa/{account}")
}

/// A certificate authority for one run. It lives and dies with the process.
pub fn authority() -> Result<Authority, String> {
    let domain = TRUST_DOMAIN.parse().map_err(|error| text(&error))?;
    Authority::new(domain, AuthoritySettings::default()).map_err(|error| text(&error))
}

impl Mesh {
    /// A mesh that the environment configures, called `name` unless that says another. It counts in `metrics`, or in a
    /// recorder of its own.
    pub fn from_env(name: &str, metrics: Option<Prometheus>) -> Result<Self, String> {
        let mut builder = MeshBuilder::from_env();
        if let Some(metrics) = metrics {
            builder = builder.prometheus(metrics);
        }
        if std::env::var_os("ENMESH_NAME").is_none_or(|name| name.is_empty()) {
            builder = builder.name(name);
        }
        build(builder)
    }

    /// A gRPC transport to `service`, `host[:port]`.
    pub fn service(&self, service: &str) -> Result<Client, String> {
        self.mesh.service(service).map(|client| RespondLayer.layer(client)).map_err(|error| text(&error))
    }

    /// Sends a GET, and reads an answer of at most `bytes_max`.
    pub async fn get(
        &self,
        uri: &str,
        host: Option<&HeaderValue>,
        bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header(header::HOST, host);
        }
        let request = request.body(ReqBody::empty()).map_err(|error| text(&error))?;
        let response = self.mesh.client().send(request).await.map_err(|error| text(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        let body = body.map_err(|error| text(error.as_ref()))?;
        Ok((status, body.to_bytes().to_vec()))
    }

    /// Serves `app` until [`shutdown`](Self::shutdown), and then finishes what is under way.
    pub async fn serve(&self, listener: TcpListener, app: axum::Router) -> Result<(), String> {
        let served = self.mesh.serve(listener, app).await;
        served.map(drop).map_err(|error| text(&error))
    }

    /// What each route did so far.
    pub fn routes(&self) -> Vec<RouteTotal> {
        let total = |route: enmesh::mesh::stats::RouteStats| RouteTotal {
            inbound: route.direction == Direction::Inbound,
            service: route.dst.to_string(),
            route: route.route.to_string(),
            reading: route.reading,
        };
        self.mesh.stats().routes.into_iter().map(total).collect()
    }

    /// What is wrong with profiles and endpoints; the last good ones are in use.
    pub fn faults(&self) -> Vec<String> {
        let services = self.mesh.inspect().services;
        // A fault of a file is told for every service that might have stood in it.
        let faults: BTreeSet<String> = services.into_iter().flat_map(|service| service.faults).collect();
        faults.into_iter().collect()
    }

    /// Logs each fault once when it comes, for as long as it is polled.
    pub async fn tell_faults(&self) {
        let mut told = Vec::new();
        loop {
            let faults = self.faults();
            for fault in faults.iter().filter(|fault| !told.contains(*fault)) {
                tracing::warn!("{fault}");
            }
            told = faults;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The URL of the page that shows this mesh, if it has one.
    pub fn page(&self) -> Option<String> {
        self.mesh.admin_addr().map(|addr| format!("http://{addr}"))
    }

    /// Ends the servers, each once its requests are finished.
    pub async fn shutdown(&self) {
        self.mesh.shutdown().await;
    }
}

fn build(builder: MeshBuilder) -> Result<Mesh, String> {
    builder.build().map(|mesh| Mesh { mesh }).map_err(|error| text(&error))
}

/// An error with its causes, as one line.
fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
