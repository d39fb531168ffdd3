//! Floor 6: who calls, for routes that speak of callers: this process for what it sends, the proven peer for what arrives.

use crate::metrics::names::Direction;
use crate::route::head::Caller;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::identity::PeerIdentity;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::rotate::Identities;
use http::Request;
use std::sync::Arc;

/// What a mesh knows of callers. Labels of workloads it does not: nothing in a request proves them.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    /// The namespace of this process.
    pub(crate) home: Option<Arc<str>>,
    /// Its own identity, as it is now.
    #[cfg(any(feature = "tls", feature = "ring"))]
    pub(crate) identities: Option<Identities>,
}

impl Callers {
    /// Who sends `request`. Asked only where a route wants to know.
    #[cold]
    pub(crate) fn of<B>(&self, direction: Direction, request: &Request<B>) -> Caller {
        match direction {
            Direction::Outbound => self.ourselves(),
            Direction::Inbound => peer(request),
        }
    }

    fn ourselves(&self) -> Caller {
        #[cfg(any(feature = "tls", feature = "ring"))]
        let identity = self.identities.as_ref().and_then(Identities::current);
        #[cfg(any(feature = "tls", feature = "ring"))]
        let identity = identity.map(|epoch| epoch.identity().identity.as_str().into());
        #[cfg(not(any(feature = "tls", feature = "ring")))]
        let identity = None;
        Caller { namespace: self.home.clone(), identity, ..Caller::default() }
    }
}

/// The peer by its certificate; without one nothing is known.
#[cfg(any(feature = "tls", feature = "ring"))]
fn peer<B>(request: &Request<B>) -> Caller {
    let Some(peer) = request.extensions().get::<PeerIdentity>() else { return Caller::default() };
    let namespace = peer.identity.kubernetes().map(|(namespace, _)| namespace.into());
    Caller { namespace, identity: Some(peer.identity.as_str().into()), ..Caller::default() }
}

#[cfg(not(any(feature = "tls", feature = "ring")))]
fn peer<B>(_: &Request<B>) -> Caller {
    Caller::default()
}
