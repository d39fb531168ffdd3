//! Floor 6: the mesh's own admin server: what it shows, and when the process is ready.

use crate::admin::readiness::{Latch, Readiness};
use crate::admin::server::{self, Admin};
use crate::error::Error;
use crate::mesh::inspect::Inspection;
use crate::mesh::services::Services;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use tokio::net::TcpListener;

/// Makes the metrics as text.
pub(crate) type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// An admin server that listens and is to be run.
pub(crate) struct Listening {
    pub(crate) addr: SocketAddr,
    pub(crate) run: futures::future::BoxFuture<'static, ()>,
    /// Held until the sources have told of this process's own service.
    pub(crate) first_update: Latch,
}

/// Listens at `addr`. It shows nothing once the mesh is gone.
///
/// # Errors
/// [`Error::Config`] when the address cannot be listened at.
pub(crate) fn listen(
    addr: SocketAddr,
    services: Weak<Services>,
    metrics: Option<Render>,
) -> Result<Listening, Error> {
    let refused = |error: std::io::Error| {
        let remedy = "choose another address, or port 0 for any that is free";
        Error::Config(format!("the admin server cannot listen at {addr}: {error}; {remedy}").into())
    };
    let listener = std::net::TcpListener::bind(addr).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let listener = TcpListener::from_std(listener).map_err(refused)?;
    let addr = listener.local_addr().map_err(refused)?;
    let readiness = Readiness::default();
    let first_update = readiness.latch("the first word of the sources of this service's profile");
    let mut admin = Admin::new(readiness).inspect(move || {
        let inspection = services.upgrade().map(|services| Inspection::of(&services.directory()));
        serde_json::to_value(inspection).unwrap_or_default()
    });
    if let Some(render) = metrics {
        admin = admin.metrics(move || render());
    }
    let run = Box::pin(async move {
        server::serve(listener, admin, std::future::pending()).await;
    });
    Ok(Listening { addr, run, first_update })
}
