//! Floor 6: the mesh's own admin server: what it shows, and when the process is ready.

use crate::admin::fleet::Fleet;
use crate::admin::readiness::{Latch, Readiness};
use crate::admin::server::{self, Admin};
use crate::error::Error;
use crate::mesh::api::{self, Figures};
use crate::mesh::live::Live;
use crate::mesh::look::Look;
use crate::mesh::pages;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::mesh::secure::{self, SecureAccept};
use crate::mesh::tap::{self, Taps};
use crate::metrics::text::Form;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::serve::listen;
use crate::tap::hub::TapHub;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::acceptor::{Acceptor, Mode};
use crate::tls::identity::Identity;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::renew::Alarm;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::rotate::{Identities, Status};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Makes the metrics as text.
pub(crate) type Render = Arc<dyn Fn(Form) -> String + Send + Sync>;

/// An admin server that listens and is to be run.
pub(crate) struct Listening {
    pub(crate) addr: SocketAddr,
    pub(crate) run: futures::future::BoxFuture<'static, ()>,
    /// What holds `/ready` up.
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub(crate) readiness: Readiness,
    /// Held until the sources have told of this process's own service.
    pub(crate) first_update: Latch,
}

/// What an admin server shows.
pub(crate) struct Shown {
    pub(crate) look: Look,
    /// The metrics, if they are the mesh's own.
    pub(crate) metrics: Option<Render>,
    pub(crate) live: Arc<Live>,
    /// The admin servers of other processes that it speaks for too.
    pub(crate) fleet: Fleet,
    /// Where live requests are told.
    pub(crate) taps: Arc<TapHub>,
    /// Who may see them from another machine.
    pub(crate) observers: Vec<Identity>,
}

/// Listens at `addr`. It shows nothing once the mesh is gone.
///
/// # Errors
/// [`Error::Config`] when the address cannot be listened at.
pub(crate) fn listen(addr: SocketAddr, show: Shown) -> Result<Listening, Error> {
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
    #[cfg(any(feature = "tls", feature = "ring"))]
    let shown = readiness.clone();
    let Shown { look, metrics, live, fleet, taps, observers } = show;
    #[cfg(any(feature = "tls", feature = "ring"))]
    let identities = look.identities.clone().filter(|_| !observers.is_empty());
    #[cfg(any(feature = "tls", feature = "ring"))]
    let prove = look.identities.clone().map(secure::prove);
    #[cfg(not(any(feature = "tls", feature = "ring")))]
    let prove = None;
    let mut admin = tap::page(Admin::new(readiness), Taps::new(taps, fleet.clone(), prove));
    if let Some(render) = metrics {
        admin = admin.metrics_as(move |form| render(form));
    }
    let figures = Figures::new(&admin, live, fleet);
    admin = pages::add(api::pages(admin, &figures), &figures, look);
    admin = observers.into_iter().fold(admin, Admin::observer);
    #[cfg(any(feature = "tls", feature = "ring"))]
    let run = Box::pin(serve(listener, admin, identities));
    #[cfg(not(any(feature = "tls", feature = "ring")))]
    let run = Box::pin(async move {
        server::serve(listener, admin, std::future::pending()).await;
    });
    Ok(Listening {
        addr,
        run,
        #[cfg(any(feature = "tls", feature = "ring"))]
        readiness: shown,
        first_update,
    })
}

/// Serves in plain text, and where somebody may prove who it is by mutual TLS beside it.
#[cfg(any(feature = "tls", feature = "ring"))]
async fn serve(listener: TcpListener, admin: Admin, identities: Option<Identities>) {
    let settings = server::settings();
    let forever = std::future::pending();
    match identities {
        Some(identities) => {
            let acceptor = Acceptor::new(identities, Mode::Permissive, settings.handshake_timeout);
            let accept = SecureAccept::new(acceptor);
            listen::serve_with(listener, accept, admin, settings, Arc::default(), forever).await;
        }
        None => {
            server::serve(listener, admin, forever).await;
        }
    }
}

/// Holds readiness up while this process has no valid certificate, and says why.
#[cfg(any(feature = "tls", feature = "ring"))]
pub(crate) async fn wait_for_identity(readiness: Readiness, identities: Identities) {
    let mut held: Option<(String, Latch)> = None;
    let look = |status: Status| {
        let missing = (status.alarm == Alarm::Expired).then(|| {
            format!("a valid certificate: {}", status.fault.as_deref().unwrap_or("none has come yet"))
        });
        if held.as_ref().map(|(reason, _)| reason) != missing.as_ref() {
            // The next latch is there before the last one goes.
            held = missing.map(|reason| (reason.clone(), readiness.latch(reason)));
        }
    };
    identities.follow(look).await;
}
