//! Floor 2: decides whether a rule is for a caller.

use crate::authz::settings::Clients;
use crate::authz::settings::IdentityMatch;
use crate::authz::settings::NetworkMatch;
use crate::tls::identity::Identity;
use crate::tls::identity::PeerIdentity;
use crate::tls::identity::TrustDomain;
use std::net::IpAddr;

/// What is known of a caller.
#[derive(Debug, Clone, Copy, Default)]
pub struct Client<'a> {
    /// Who it has proved to be.
    pub peer: Option<&'a PeerIdentity>,
    /// Its address; `None` where the transport has none.
    pub address: Option<IpAddr>,
}

impl Clients {
    /// Whether it is for `client`, where `local` is our own trust domain.
    pub fn match_client(&self, client: &Client<'_>, local: Option<&TrustDomain>) -> bool {
        match self {
            Self::Anyone => true,
            Self::All(all) => all.iter().all(|clients| clients.match_client(client, local)),
            Self::Any(any) => any.iter().any(|clients| clients.match_client(client, local)),
            Self::Not(not) => !not.match_client(client, local),
            Self::Identity(test) => client.peer.is_some_and(|peer| test.matches(peer, local)),
            Self::Networks(networks) => {
                client.address.is_some_and(|address| networks.iter().any(|network| network.contains(address)))
            }
        }
    }
}

impl NetworkMatch {
    /// Whether the address is in the network and in no exception.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(address) && !self.except.iter().any(|except| except.contains(address))
    }
}

impl IdentityMatch {
    /// Whether `peer` is meant, where `local` is our own trust domain.
    pub fn matches(&self, peer: &PeerIdentity, local: Option<&TrustDomain>) -> bool {
        let is_local = || local == Some(&peer.trust_domain);
        match self {
            Self::AnyLocal => is_local(),
            Self::Exact(identity) => *identity == peer.identity,
            Self::DnsSuffix(suffix) => match &peer.identity {
                Identity::Dns(name) => is_local() && name.as_str().ends_with(&**suffix),
                Identity::Spiffe(_) => false,
            },
            Self::SpiffePrefix(prefix) => match &peer.identity {
                Identity::Spiffe(id) => id.as_str().starts_with(&**prefix),
                Identity::Dns(_) => false,
            },
            Self::Domain(domain) => *domain == peer.trust_domain,
            Self::Namespace(namespace) => {
                is_local() && peer.identity.kubernetes().is_some_and(|(named, _)| named == &**namespace)
            }
            Self::ServiceAccount { namespace, name } => {
                is_local() && peer.identity.kubernetes() == Some((&**namespace, &**name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn peer(name: &str, domain: &str) -> PeerIdentity {
        PeerIdentity {
            identity: name.parse().unwrap(),
            trust_domain: domain.parse().unwrap(),
            not_after: SystemTime::UNIX_EPOCH,
        }
    }

    /// Whether the match means who `name` proves to be by the anchors of the domain it names, or of `mesh`.
    fn check(text: &str, yes: &[&str], no: &[&str]) {
        let test: IdentityMatch = text.parse().unwrap();
        let local = "mesh".parse().unwrap();
        let matches = |name: &str| {
            let domain = name.parse::<Identity>().unwrap().trust_domain().unwrap_or("mesh").to_owned();
            test.matches(&peer(name, &domain), Some(&local))
        };
        for name in yes {
            assert!(matches(name), "{text} should mean {name}");
        }
        for name in no {
            assert!(!matches(name), "{text} should not mean {name}");
        }
    }

    const SA: &str = "web.prod.serviceaccount.identity.linkerd.mesh";

    #[test]
    fn names_are_texts_and_stars_stand_at_ends() {
        check("*", &["spiffe://mesh/a", "a.b", SA], &["spiffe://other/a"]);
        check("*.id.local", &["some.id.local"], &["id.local", "xid.local", "spiffe://mesh/some.id.local"]);
        check(
            "spiffe://mesh/a",
            &["spiffe://mesh/a"],
            &["spiffe://mesh/a/b", "spiffe://mesh/A", "spiffe://other/a"],
        );
        check("spiffe://other/*", &["spiffe://other/a"], &["spiffe://mesh/a"]);
        check("spiffe://mesh/ns/*", &["spiffe://mesh/ns/a"], &["spiffe://mesh/ns", "spiffe://mesh/nsx/a"]);
        check("cert-manager.io", &["cert-manager.io"], &["cert-managerxio"]);
        for bad in [
            "",
            "a*",
            "*a",
            "spiffe://mesh/*/a",
            "spiffe://*/a",
            "spiffe://mesh/a*",
            "*.",
            "*.spiffe://m/a",
            "a/*",
        ] {
            assert!(bad.parse::<IdentityMatch>().is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces_and_accounts_are_those_of_our_own_domain() {
        let local = "mesh".parse().unwrap();
        let namespace = IdentityMatch::Namespace("prod".into());
        let account = IdentityMatch::ServiceAccount { namespace: "prod".into(), name: "web".into() };
        for (name, domain, of_namespace, of_account) in [
            ("spiffe://mesh/ns/prod/sa/web", "mesh", true, true),
            (SA, "mesh", true, true),
            ("spiffe://mesh/ns/prod/sa/api", "mesh", true, false),
            ("spiffe://mesh/ns/dev/sa/web", "mesh", false, false),
            ("spiffe://other/ns/prod/sa/web", "other", false, false),
            ("spiffe://mesh/x/ns/prod/sa/web", "mesh", false, false),
        ] {
            let peer = peer(name, domain);
            assert_eq!(namespace.matches(&peer, Some(&local)), of_namespace, "{name}");
            assert_eq!(account.matches(&peer, Some(&local)), of_account, "{name}");
            assert!(!namespace.matches(&peer, None) && !account.matches(&peer, None), "{name}");
        }
    }

    #[test]
    fn callers_without_what_is_asked_for_are_not_meant() {
        let local = "mesh".parse().unwrap();
        let nobody = Client::default();
        let anyone = Clients::Identity(IdentityMatch::AnyLocal);
        assert!(!anyone.match_client(&nobody, Some(&local)));
        assert!(
            Clients::Not(Box::new(anyone)).match_client(&nobody, Some(&local)),
            "and that is what `not` is for"
        );
        let net = NetworkMatch {
            cidr: "10.0.0.0/8".parse().unwrap(),
            except: vec!["10.1.0.0/16".parse().unwrap()],
        };
        let networks = Clients::Networks(vec![net]);
        for (address, inside) in
            [("10.2.0.1", true), ("10.1.0.1", false), ("::ffff:10.2.0.1", true), ("::1", false)]
        {
            let client = Client { peer: None, address: Some(address.parse().unwrap()) };
            assert_eq!(networks.match_client(&client, None), inside, "{address}");
        }
        assert!(!networks.match_client(&nobody, None));
        assert!(
            Clients::All(vec![]).match_client(&nobody, None)
                && !Clients::Any(vec![]).match_client(&nobody, None)
        );
    }
}
