//! Floor 5: a source written in code, which never changes.

use crate::control::source::CLUSTER_DOMAIN;
use crate::control::source::Snapshot;
use crate::control::source::Source;
use crate::control::source::Updates;
use crate::control::source::find;
use crate::discover::endpoint::Endpoint;
use crate::discover::endpoint::EndpointSet;
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use futures::StreamExt;
use futures::stream;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Values for services, fixed when the program was written or started.
///
/// A name without a port stands for every port of its host, and `web.ns` for `web.ns.svc.cluster.local`.
#[derive(Debug, Clone)]
pub struct Fixed<T> {
    values: BTreeMap<ServiceName, T>,
    domain: Arc<str>,
    home: Option<Arc<str>>,
}

impl<T> Default for Fixed<T> {
    /// Knows no service, in the cluster domain [`CLUSTER_DOMAIN`].
    fn default() -> Self {
        Self::new(CLUSTER_DOMAIN)
    }
}

impl<T> Fixed<T> {
    /// Knows no service of the cluster with this domain.
    pub fn new(cluster_domain: impl Into<Arc<str>>) -> Self {
        Self { values: BTreeMap::new(), domain: cluster_domain.into(), home: None }
    }

    /// The same for a process in the namespace `home`: there `web` is `web.home` where nobody knows it otherwise.
    #[must_use]
    pub fn home(mut self, home: Option<Arc<str>>) -> Self {
        self.home = home;
        self
    }

    /// Adds `value` for `service`, replacing an earlier one.
    #[must_use]
    pub fn with(mut self, service: ServiceName, value: T) -> Self {
        self.values.insert(service.short(&self.domain), value);
        self
    }
}

impl Fixed<EndpointSet> {
    /// Adds the replicas of `service` by address, with equal shares.
    #[must_use]
    pub fn at(self, service: ServiceName, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.with(service, EndpointSet::new(addresses.into_iter().map(Endpoint::new)))
    }
}

impl Fixed<Arc<ServiceProfile>> {
    /// Adds `profile` under each of its names.
    #[must_use]
    pub fn profile(mut self, profile: ServiceProfile) -> Self {
        let profile = Arc::new(profile);
        for name in &profile.names {
            self.values.insert(name.short(&self.domain), Arc::clone(&profile));
        }
        self
    }
}

impl<T: Clone + Send + Sync + 'static> Source<T> for Fixed<T> {
    fn watch(&self, service: &ServiceName) -> Updates<T> {
        let snapshot =
            Snapshot::good(find(&self.values, service, &self.domain, self.home.as_deref()).cloned());
        stream::iter([snapshot]).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    fn check<T: Clone + Send + Sync + 'static>(fixed: &Fixed<T>, service: &str) -> Option<T> {
        let all: Vec<_> = fixed.watch(&name(service)).collect().now_or_never().unwrap();
        assert_eq!(all.len(), 1);
        assert!(all[0].faults.is_empty());
        all[0].value.clone()
    }

    #[test]
    fn the_whole_name_comes_before_the_host_alone() {
        let fixed = Fixed::default().with(name("web"), 1).with(name("web:80"), 2);
        assert_eq!(check(&fixed, "WEB:80"), Some(2));
        assert_eq!(check(&fixed, "web:81"), Some(1));
        assert_eq!(check(&fixed, "emoji"), None);
    }

    #[test]
    fn all_spellings_of_a_cluster_s_service_are_one() {
        let fixed = Fixed::default().with(name("web.ns.svc.cluster.local"), 1);
        assert_eq!(check(&fixed, "web.ns:80"), Some(1));
        let fixed = Fixed::new("mesh.test").with(name("web.ns"), 1);
        assert_eq!(check(&fixed, "web.ns.svc.mesh.test:80"), Some(1));
        assert_eq!(check(&fixed, "web.ns.svc.cluster.local:80"), None);
    }

    #[test]
    fn a_profile_is_found_by_each_of_its_names() {
        let mut profile = ServiceProfile::new(name("web"));
        profile.names.push(name("web.emojivoto"));
        let fixed = Fixed::default().profile(profile);
        assert!(check(&fixed, "web:80").is_some());
        assert!(check(&fixed, "web.emojivoto").is_some());
        assert!(check(&fixed, "web.other").is_none());
    }

    #[test]
    fn addresses_become_endpoints() {
        let fixed =
            Fixed::default().at(name("web"), [([127, 0, 0, 1], 80).into(), ([127, 0, 0, 2], 80).into()]);
        assert_eq!(check(&fixed, "web:80").unwrap().len(), 2);
    }
}
