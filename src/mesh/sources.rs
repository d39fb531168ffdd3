//! Floor 6: who is asked about a service, in order: code, directories, further sources, DNS.

use crate::control::chain::Chain;
use crate::control::literal::Literal;
use crate::discover::endpoint::EndpointSet;
use crate::mesh::builder::MeshBuilder;
use crate::metrics::set::MetricsSet;
use crate::profile::service::ServiceProfile;
use std::sync::Arc;

/// The sources of a builder's mesh: of profiles, and of endpoints.
pub(crate) fn of(
    builder: &MeshBuilder,
    metrics: &MetricsSet,
) -> (Chain<Arc<ServiceProfile>>, Chain<EndpointSet>) {
    let (fixed_profiles, fixed_endpoints) = builder.fixed();
    let profiles = Chain::default().then(fixed_profiles);
    let endpoints = Chain::default().then(fixed_endpoints);
    let (profiles, endpoints) = directories(builder, metrics, profiles, endpoints);
    let profiles = profiles.then(builder.more_profiles.clone());
    let endpoints = endpoints.then(builder.more_endpoints.clone());
    (profiles, dns(builder, metrics, endpoints.then(Literal)))
}

/// Whether any of them needs a tokio runtime.
pub(crate) fn needs_runtime(builder: &MeshBuilder) -> bool {
    #[cfg(any(feature = "tls", feature = "ring"))]
    if builder.identity.is_some() {
        return true;
    }
    builder.profiles_dir.is_some()
        || builder.endpoints_dir.is_some()
        || builder.admin.is_some()
        || builder.policy_file.is_some()
        || builder.dns == Some(true)
}

#[cfg(feature = "files")]
fn directories(
    builder: &MeshBuilder,
    metrics: &MetricsSet,
    mut profiles: Chain<Arc<ServiceProfile>>,
    mut endpoints: Chain<EndpointSet>,
) -> (Chain<Arc<ServiceProfile>>, Chain<EndpointSet>) {
    use crate::control::file::Files;
    let watched = |path: &std::path::PathBuf| {
        Files::new(path).cluster_domain(builder.domain()).home(builder.home()).counted(metrics.registry())
    };
    match (&builder.profiles_dir, &builder.endpoints_dir) {
        (Some(one), Some(other)) if one == other => {
            let both = watched(one);
            (profiles, endpoints) = (profiles.then(both.clone()), endpoints.then(both));
        }
        (one, other) => {
            if let Some(path) = one {
                profiles = profiles.then(watched(path));
            }
            if let Some(path) = other {
                endpoints = endpoints.then(watched(path));
            }
        }
    }
    (profiles, endpoints)
}

#[cfg(not(feature = "files"))]
fn directories(
    _: &MeshBuilder,
    _: &MetricsSet,
    profiles: Chain<Arc<ServiceProfile>>,
    endpoints: Chain<EndpointSet>,
) -> (Chain<Arc<ServiceProfile>>, Chain<EndpointSet>) {
    (profiles, endpoints)
}

/// Adds DNS, unless it was switched off or there is no runtime to ask it on.
#[cfg(feature = "dns")]
fn dns(builder: &MeshBuilder, metrics: &MetricsSet, endpoints: Chain<EndpointSet>) -> Chain<EndpointSet> {
    use crate::control::dns::Dns;
    use crate::control::hickory::Hickory;
    if builder.dns == Some(false) || tokio::runtime::Handle::try_current().is_err() {
        return endpoints;
    }
    match Hickory::system() {
        Ok(resolver) => endpoints.then(Dns::new(resolver).counted(metrics.registry())),
        Err(error) => {
            tracing::warn!(%error, "DNS is not used: the system's resolver configuration cannot be read");
            endpoints
        }
    }
}

#[cfg(not(feature = "dns"))]
fn dns(_: &MeshBuilder, _: &MetricsSet, endpoints: Chain<EndpointSet>) -> Chain<EndpointSet> {
    endpoints
}
