//! Floor 6: makes the connections of replicas, and tells what they count.

use crate::connect::settings::ConnectSettings;
use crate::discover::endpoint::Endpoint;
use crate::mesh::directory::{Connect, Connection};
#[cfg(not(any(feature = "tls", feature = "ring")))]
use crate::mesh::insecure::Secure;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::mesh::secure::Secure;
#[cfg(not(any(feature = "tls", feature = "ring")))]
use crate::mesh::telemetry::Identities;
use crate::mesh::telemetry::{Connections, tls_of};
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::connector::Connector;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::rotate::Identities;
use std::sync::Arc;

/// What makes the connections of replicas, and what is told of them.
pub(crate) fn dialling(
    own: &ServiceName,
    settings: ConnectSettings,
    identities: Option<&Identities>,
) -> (Arc<Connections>, Box<Connect>) {
    let connections = Arc::new(Connections::of(own, identities));
    let secured = connections.is_secured();
    #[cfg(any(feature = "tls", feature = "ring"))]
    let connector = identities.map(|own| Connector::new(own.clone(), Connector::HANDSHAKE_MAX));
    let told = Arc::clone(&connections);
    let connect = move |endpoint: &Arc<Endpoint>, service: &ServiceName, profile: &ServiceProfile, tls| {
        #[cfg(any(feature = "tls", feature = "ring"))]
        let handshake = Secure::new(connector.clone(), service.host(), tls);
        #[cfg(not(any(feature = "tls", feature = "ring")))]
        let (_, handshake) = (service, Secure::new(tls));
        let connection = Connection::new(endpoint.as_ref().clone(), settings.clone(), handshake);
        let own_zone = profile.balancer.locality.as_ref().map(|locality| &*locality.zone);
        told.add(endpoint, tls_of(secured, profile.tls.mode, endpoint), own_zone, connection.stats());
        connection
    };
    (connections, Box::new(connect))
}
