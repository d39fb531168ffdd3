//! Floor 1: one replica of a service, as discovery describes it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// One replica of a service.
///
/// Two descriptions with one address are one replica: it keeps its latency, breaker and connections when only
/// the rest of the description changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its share among its peers, in thousandths of the usual one: 1000 is one share, 0 is none.
    pub weight_milli: u32,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// 0 is used first; the next only when too few of the former are usable.
    pub priority: u8,
    /// Whether it finishes what it has and gets nothing new.
    pub draining: bool,
    /// The identity its certificate must prove: a SPIFFE ID or a DNS name.
    pub identity: Option<Arc<str>>,
    /// The name sent in the TLS handshake, if not the identity or host.
    pub server_name: Option<Arc<str>>,
    /// Whether it is known to speak HTTP/2 without asking.
    pub http2: bool,
    /// What discovery says besides; metric labels `dst_<k>`.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

impl Endpoint {
    /// A replica at `addr` with one share and nothing else known.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            weight_milli: 1000,
            zone: None,
            priority: 0,
            draining: false,
            identity: None,
            server_name: None,
            http2: false,
            labels: BTreeMap::new(),
        }
    }
}

/// A full set of replicas, sorted by address without repetition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointSet {
    endpoints: Arc<[Endpoint]>,
}

impl EndpointSet {
    /// A set of these; of two with one address the later one stays.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let by_addr: BTreeMap<SocketAddr, Endpoint> = endpoints.into_iter().map(|e| (e.addr, e)).collect();
        Self { endpoints: by_addr.into_values().collect() }
    }

    /// The replicas in order of address.
    pub fn iter(&self) -> std::slice::Iter<'_, Endpoint> {
        self.endpoints.iter()
    }

    /// The same set, in which a replica that had an identity in `before` and now has none keeps it: discovery that
    /// forgets an identity must not make a connection less safe. A replica that was away meanwhile is a new one.
    #[must_use]
    pub fn keep_identities(self, before: &Self) -> Self {
        let lost = |endpoint: &Endpoint| {
            let same = before.endpoints.binary_search_by(|old| old.addr.cmp(&endpoint.addr)).ok()?;
            let old = before.endpoints.get(same)?;
            (endpoint.identity.is_none() && old.identity.is_some()).then(|| old.clone())
        };
        if !self.endpoints.iter().any(|endpoint| lost(endpoint).is_some()) {
            return self;
        }
        let kept = self.endpoints.iter().map(|endpoint| match lost(endpoint) {
            Some(old) => {
                Endpoint { identity: old.identity, server_name: old.server_name, ..endpoint.clone() }
            }
            None => endpoint.clone(),
        });
        Self { endpoints: kept.collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }
}

impl<'a> IntoIterator for &'a EndpointSet {
    type Item = &'a Endpoint;
    type IntoIter = std::slice::Iter<'a, Endpoint>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_each_address_once_and_in_order() {
        let at = |port: u16| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)));
        let later = Endpoint { weight_milli: 5, ..at(1) };
        let set = EndpointSet::new([at(2), at(1), later.clone()]);
        assert_eq!(set.iter().cloned().collect::<Vec<_>>(), vec![later, at(2)]);
    }

    #[test]
    fn an_identity_that_discovery_forgets_is_kept_while_the_replica_stays() {
        let at = |port: u16, identity: Option<&str>| Endpoint {
            identity: identity.map(Arc::from),
            ..Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)))
        };
        let before =
            EndpointSet::new([at(1, Some("spiffe://m/a")), at(2, None), at(3, Some("spiffe://m/c"))]);
        let after = EndpointSet::new([at(1, None), at(2, None), at(3, Some("spiffe://m/d")), at(4, None)]);
        let kept = after.keep_identities(&before);
        let names: Vec<_> = kept.iter().map(|endpoint| endpoint.identity.as_deref()).collect();
        assert_eq!(names, [Some("spiffe://m/a"), None, Some("spiffe://m/d"), None]);
        let gone = EndpointSet::new([at(2, None)]).keep_identities(&kept);
        let back = EndpointSet::new([at(1, None)]).keep_identities(&gone);
        assert!(back.iter().all(|endpoint| endpoint.identity.is_none()));
    }
}
