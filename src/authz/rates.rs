//! Floor 3: the rate limits of a server compiled for requests to ask, and their memory.

use crate::authz::client::Client;
use crate::authz::settings::IdentityMatch;
use crate::authz::settings::RateSettings;
use crate::limit::rate::RateLimits;
use crate::limit::rate::Refused;
use crate::profile::settings::RateLimit;
use crate::profile::settings::RateScope;
use crate::tls::identity::TrustDomain;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

/// The rate limits of a server: the total, then the first override that means the client, or else each identity's own.
#[derive(Debug)]
pub struct ServerRates {
    settings: RateSettings,
    limits: RateLimits,
    /// The name under which the clients of each override are counted together.
    counted_as: Vec<Arc<str>>,
    trust_domain: Option<TrustDomain>,
}

impl ServerRates {
    /// Limits that nobody has used; `trust_domain` is our own. `None`: nothing is limited.
    pub fn new(settings: &RateSettings, trust_domain: Option<&TrustDomain>) -> Option<Self> {
        let limit = |scope, requests| RateLimit { scope, requests, per: Duration::from_secs(1), burst: None };
        let mut limits = Vec::new();
        limits.extend(settings.total.map(|rate| limit(RateScope::Total, rate)));
        limits.extend(settings.identity.map(|rate| limit(RateScope::Identity, rate)));
        // A space stands in no identity, so nobody can claim these names.
        let counted_as: Vec<Arc<str>> =
            (0..settings.overrides.len()).map(|index| format!("override {index}").into()).collect();
        let overrides = settings.overrides.iter().zip(&counted_as);
        limits.extend(
            overrides.map(|((rate, _), name)| limit(RateScope::Override(vec![Arc::clone(name)]), *rate)),
        );
        let trust_domain = trust_domain.cloned();
        (!limits.is_empty()).then(|| Self {
            settings: settings.clone(),
            limits: RateLimits::new(&limits),
            counted_as,
            trust_domain,
        })
    }

    /// The name of the policy, for metrics.
    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// Whether the memory of one is the memory of the other: they limit the same.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.settings == other.settings && self.trust_domain == other.trust_domain
    }

    /// Counts a request. Clients without an identity are one client.
    ///
    /// # Errors
    /// The first limit that is reached; what those before it have counted stays counted.
    pub fn admit(&self, client: &Client<'_>, now: Instant) -> Result<(), Refused> {
        let means = |clients: &[IdentityMatch]| {
            let local = self.trust_domain.as_ref();
            client.peer.is_some_and(|peer| clients.iter().any(|test| test.matches(peer, local)))
        };
        let mut overrides = self.settings.overrides.iter().zip(&self.counted_as);
        let counted_as = match overrides.find(|((_, clients), _)| means(clients)) {
            Some((_, name)) => Some(&**name),
            None => client.peer.map(|peer| peer.identity.as_str()),
        };
        self.limits.admit(counted_as, |_| None, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::rate::Counted;
    use crate::stdx::clock;
    use crate::tls::identity::PeerIdentity;
    use std::time::SystemTime;

    fn rates(total: Option<u32>, identity: Option<u32>, overrides: &[(u32, &[&str])]) -> ServerRates {
        let named =
            |name: &&str| IdentityMatch::ServiceAccount { namespace: "ns".into(), name: (*name).into() };
        let overrides = overrides.iter().map(|(rate, names)| (*rate, names.iter().map(named).collect()));
        let settings = RateSettings { name: "r".into(), total, identity, overrides: overrides.collect() };
        ServerRates::new(&settings, Some(&"mesh".parse().unwrap())).unwrap()
    }

    fn peer(name: &str) -> PeerIdentity {
        let identity: crate::tls::identity::Identity = name.parse().unwrap();
        let trust_domain = identity.trust_domain().unwrap().parse().unwrap();
        PeerIdentity { identity, trust_domain, not_after: SystemTime::UNIX_EPOCH }
    }

    fn check(rates: &ServerRates, now: Instant, caller: Option<&str>, expected: Option<Counted>) {
        let peer = caller.map(peer);
        let client = Client { peer: peer.as_ref(), address: None };
        let refused = rates.admit(&client, now).err().map(|refused| refused.counted);
        assert_eq!(refused, expected, "{caller:?}");
    }

    #[test]
    fn an_override_means_an_account_under_both_of_its_names_and_in_our_domain_alone() {
        let (rates, now) = (rates(None, Some(1), &[(2, &["web", "api"])]), clock::now());
        check(&rates, now, Some("spiffe://mesh/ns/ns/sa/web"), None);
        check(&rates, now, Some("web.ns.serviceaccount.identity.linkerd.mesh"), None);
        check(&rates, now, Some("spiffe://mesh/ns/ns/sa/api"), Some(Counted::Override));
        check(&rates, now, Some("spiffe://other/ns/ns/sa/web"), None);
        check(&rates, now, Some("spiffe://other/ns/ns/sa/web"), Some(Counted::Identity));
    }

    #[test]
    fn clients_without_an_identity_share_one_limit_and_the_total_is_asked_first() {
        let (rates, now) = (rates(Some(3), Some(1), &[]), clock::now());
        check(&rates, now, None, None);
        check(&rates, now, None, Some(Counted::Identity));
        check(&rates, now, Some("spiffe://mesh/a"), None);
        check(&rates, now, Some("spiffe://mesh/b"), Some(Counted::Total));
        check(&rates, now + Duration::from_secs(1), Some("spiffe://mesh/b"), None);
    }
}
