//! Floor 5: refuses endpoints that no service can stand at.

use crate::discover::endpoint::Endpoint;
use crate::discover::endpoint::EndpointSet;
use crate::profile::invalid::Fault;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Which addresses a source may name.
///
/// The unspecified address, multicast, broadcast and port 0 are always refused: whoever writes them to a registry
/// is mistaken, or hopes to reach what listens on this host. With [`only`](Self::only) a mesh also refuses, say,
/// loopback and link-local addresses, where cloud metadata services are.
#[derive(Clone, Default)]
pub struct Screen {
    allow: Option<Arc<dyn Fn(IpAddr) -> bool + Send + Sync>>,
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").field("allow", &self.allow.is_some()).finish()
    }
}

impl Screen {
    /// Refuses besides every address that `allow` does not.
    pub fn only(allow: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self { allow: Some(Arc::new(allow)) }
    }

    /// Why nothing is sent to `addr`, if so.
    pub fn refuses(&self, addr: SocketAddr) -> Option<&'static str> {
        let ip = addr.ip().to_canonical();
        if addr.port() == 0 {
            Some("port 0 cannot be connected to")
        } else if ip.is_unspecified() {
            Some("the unspecified address is nobody's")
        } else if ip.is_multicast() || ip == Ipv4Addr::BROADCAST {
            Some("a group of hosts is no endpoint")
        } else if self.allow.as_ref().is_some_and(|allow| !allow(ip)) {
            Some("the address is outside the networks that are allowed")
        } else {
            None
        }
    }

    /// The endpoints that pass, and a fault for each that does not. `path` says where the set was written.
    pub fn sift(
        &self,
        path: &str,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> (EndpointSet, Vec<Fault>) {
        let mut faults = Vec::new();
        let passed = endpoints.into_iter().filter(|endpoint| match self.refuses(endpoint.addr) {
            None => true,
            Some(reason) => {
                let problem = format!("{} is refused: {reason}", endpoint.addr);
                faults.push(Fault::rejected(path, problem, "name the address that the service listens at"));
                false
            }
        });
        (EndpointSet::new(passed), faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(screen: &Screen, passes: bool, addresses: &[&str]) {
        for address in addresses {
            assert_eq!(screen.refuses(address.parse().unwrap()).is_none(), passes, "{address}");
        }
    }

    #[test]
    fn what_is_nobody_s_address_is_always_refused() {
        let bad =
            ["0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80", "10.0.0.1:0", "224.0.0.1:80", "[ff02::1]:80"];
        check(&Screen::default(), false, &bad);
        check(&Screen::default(), false, &["255.255.255.255:80", "[::ffff:239.1.1.1]:80"]);
        check(&Screen::default(), true, &["127.0.0.1:22", "169.254.169.254:80", "[::1]:80", "10.0.0.1:80"]);
    }

    #[test]
    fn an_allow_list_narrows_what_is_left_and_cannot_widen_it() {
        let screen = Screen::only(|ip| matches!(ip, IpAddr::V4(v4) if v4.is_private()));
        check(&screen, true, &["10.0.0.1:80", "[::ffff:10.0.0.1]:80"]);
        check(&screen, false, &["127.0.0.1:22", "169.254.169.254:80", "[::1]:80", "8.8.8.8:53"]);
        check(&Screen::only(|_| true), false, &["0.0.0.0:80", "10.0.0.1:0"]);
    }

    #[test]
    fn sifting_keeps_the_good_and_names_the_bad() {
        let at = |text: &str| Endpoint::new(text.parse().unwrap());
        let (set, faults) = Screen::default().sift("endpoints", [at("10.0.0.1:80"), at("0.0.0.0:80")]);
        assert_eq!(set, EndpointSet::new([at("10.0.0.1:80")]));
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            faults,
            [
                "endpoints: 0.0.0.0:80 is refused: the unspecified address is nobody's; name the address that the \
              service listens at"
            ]
        );
    }
}
