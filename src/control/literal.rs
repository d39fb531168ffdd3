//! Floor 5: services whose name is their address.

use crate::control::source::Snapshot;
use crate::control::source::Source;
use crate::control::source::Updates;
use crate::discover::endpoint::Endpoint;
use crate::discover::endpoint::EndpointSet;
use crate::profile::name::ServiceName;
use futures::StreamExt;
use futures::stream;
use std::net::{IpAddr, SocketAddr};

/// Knows every service whose host is an IP address: one endpoint, there. A name without a port stands for 80.
#[derive(Debug, Clone, Copy, Default)]
pub struct Literal;

impl Source<EndpointSet> for Literal {
    fn watch(&self, service: &ServiceName) -> Updates<EndpointSet> {
        let at =
            |ip: IpAddr| EndpointSet::new([Endpoint::new(SocketAddr::new(ip, service.port().unwrap_or(80)))]);
        stream::iter([Snapshot::good(service.host().parse().ok().map(at))]).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn an_address_is_its_own_endpoint_and_a_name_is_none() {
        let said = |name: &str| {
            let mut all: Vec<_> = Literal.watch(&name.parse().unwrap()).collect().now_or_never().unwrap();
            all.pop().and_then(|snapshot| snapshot.value)
        };
        let addr =
            |name| said(name).and_then(|set| set.iter().next().map(|endpoint| endpoint.addr.to_string()));
        assert_eq!(addr("127.0.0.1:81").as_deref(), Some("127.0.0.1:81"));
        assert_eq!(addr("[::1]").as_deref(), Some("[::1]:80"));
        assert_eq!(addr("web.ns:80"), None);
    }
}
