//! Floor 2: how many requests in a time: in all, of each client, of each value of a key.

use crate::limit::keyed::KeyedRates;
use crate::profile::settings::{HashKey, RateLimit, RateScope};
use crate::stdx::gcra::{Gcra, Rate};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The rate limits of a route, a service or a server, and their memory. Shared without a lock.
///
/// Asked in Linkerd's order (`HTTPLocalRateLimitPolicy`, linkerd.md §7): all limits of the total, then the overrides
/// that name the client or else the limits of each identity, then those of keys; the first that refuses decides, and
/// what those before it have counted stays counted. Clients without an identity are one client, and requests without a
/// key are one key. Each limit is a GCRA: `burst` at once, then evenly.
#[derive(Debug)]
pub struct RateLimits {
    settings: Vec<RateLimit>,
    total: Vec<Gcra>,
    identity: Vec<KeyedRates>,
    overrides: Vec<Gcra>,
    /// The overrides of a client, as indices.
    named: BTreeMap<Arc<str>, Vec<usize>>,
    keys: Vec<(HashKey, KeyedRates)>,
}

/// Which kind of limit refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counted {
    /// All requests.
    Total,
    /// Those of one client.
    Identity,
    /// Those of the clients that an override names.
    Override,
    /// Those with one value of a key.
    Key,
}

impl Counted {
    /// The label `ratelimit_scope` of Linkerd's `inbound_http_local_ratelimit_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Identity => "identity",
            Self::Override => "override",
            Self::Key => "key",
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which kind of limit it was.
    pub counted: Counted,
    /// When to come back: what is asked sooner is refused. At most [`RETRY_AFTER_MAX`].
    pub retry_after: Duration,
}

/// The longest wait that a refusal names, for limits of zero too: within an hour somebody may have raised it.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

impl RateLimits {
    /// Limits that nobody has used. A burst of `None` is as many as `requests`, as in Linkerd.
    pub fn new(settings: &[RateLimit]) -> Self {
        let mut limits = Self {
            settings: settings.to_vec(),
            total: Vec::new(),
            identity: Vec::new(),
            overrides: Vec::new(),
            named: BTreeMap::new(),
            keys: Vec::new(),
        };
        for limit in settings {
            let rate = Rate::new(limit.requests, limit.per, limit.burst.unwrap_or(limit.requests));
            match &limit.scope {
                RateScope::Total => limits.total.push(Gcra::new(rate)),
                RateScope::Identity => limits.identity.push(KeyedRates::new(rate)),
                RateScope::Override(clients) => {
                    for client in clients {
                        let own = limits.named.entry(Arc::clone(client)).or_default();
                        own.push(limits.overrides.len());
                        own.dedup();
                    }
                    limits.overrides.push(Gcra::new(rate));
                }
                RateScope::Key(key) => limits.keys.push((key.clone(), KeyedRates::new(rate))),
            }
        }
        limits
    }

    /// What they were made from: limits of equal settings keep their memory in an update.
    pub fn settings(&self) -> &[RateLimit] {
        &self.settings
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// Whether the client's identity matters.
    pub fn wants_client(&self) -> bool {
        !self.identity.is_empty() || !self.overrides.is_empty()
    }

    /// Counts a request of `client`, an identity that it has proved (`None`: none). `key` hashes what the request says
    /// for a key, if it says anything.
    ///
    /// # Errors
    /// The first limit that is reached.
    pub fn admit(
        &self,
        client: Option<&str>,
        key: impl Fn(&HashKey) -> Option<u64>,
        now: Instant,
    ) -> Result<(), Refused> {
        for limit in &self.total {
            limit.admit(now).map_err(|wait| refused(Counted::Total, wait))?;
        }
        match client.and_then(|client| self.named.get(client)) {
            Some(own) => {
                for limit in own.iter().filter_map(|index| self.overrides.get(*index)) {
                    limit.admit(now).map_err(|wait| refused(Counted::Override, wait))?;
                }
            }
            None => {
                for limit in &self.identity {
                    limit.admit(client, now).map_err(|wait| refused(Counted::Identity, wait))?;
                }
            }
        }
        for (name, limit) in &self.keys {
            limit.admit(key(name), now).map_err(|wait| refused(Counted::Key, wait))?;
        }
        Ok(())
    }
}

fn refused(counted: Counted, wait: Duration) -> Refused {
    Refused { counted, retry_after: wait.min(RETRY_AFTER_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    fn limit(scope: RateScope, requests: u32) -> RateLimit {
        RateLimit { scope, requests, per: Duration::from_secs(1), burst: None }
    }

    /// Whether each of `asked` is admitted at once, or by which kind of limit it is refused.
    fn check(limits: &RateLimits, now: Instant, asked: &[(Option<&str>, Option<u64>, Option<Counted>)]) {
        for (index, (client, key, expected)) in asked.iter().enumerate() {
            let refused = limits.admit(*client, |_| *key, now).err().map(|refused| refused.counted);
            assert_eq!(refused, *expected, "request {index} of {client:?} with {key:?}");
        }
    }

    #[test]
    fn the_total_is_counted_first_and_stays_counted() {
        let now = clock::now();
        let limits = RateLimits::new(&[limit(RateScope::Identity, 1), limit(RateScope::Total, 3)]);
        check(
            &limits,
            now,
            &[
                (Some("a"), None, None),
                (Some("a"), None, Some(Counted::Identity)),
                (None, None, None),
                (Some("b"), None, Some(Counted::Total)),
            ],
        );
    }

    #[test]
    fn an_override_replaces_the_limit_of_each_identity_for_those_it_names_together() {
        let now = clock::now();
        let both = RateScope::Override(vec!["a".into(), "b".into(), "a".into()]);
        let limits = RateLimits::new(&[limit(RateScope::Identity, 1), limit(both, 3)]);
        check(
            &limits,
            now,
            &[
                (Some("a"), None, None),
                (Some("a"), None, None),
                (Some("b"), None, None),
                (Some("b"), None, Some(Counted::Override)),
                (None, None, None),
                (None, None, Some(Counted::Identity)),
                (Some("c"), None, None),
            ],
        );
    }

    #[test]
    fn each_value_of_a_key_is_counted_apart_and_those_without_one_together() {
        let now = clock::now();
        let limits = RateLimits::new(&[limit(RateScope::Key(HashKey::Header("tenant".into())), 1)]);
        check(
            &limits,
            now,
            &[
                (None, Some(1), None),
                (None, Some(1), Some(Counted::Key)),
                (None, Some(2), None),
                (None, None, None),
                (Some("a"), None, Some(Counted::Key)),
            ],
        );
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let now = clock::now();
        let wait = |requests, burst| {
            let limits =
                RateLimits::new(&[RateLimit { burst: Some(burst), ..limit(RateScope::Total, requests) }]);
            let mut waits = (0..5).map(|_| limits.admit(None, |_| None, now));
            waits.find_map(Result::err).map(|refused| refused.retry_after)
        };
        assert_eq!(wait(4, 2), Some(Duration::from_millis(250)));
        assert_eq!(wait(0, 2), Some(RETRY_AFTER_MAX));
        assert_eq!(wait(5, 5), None);
        assert!(RateLimits::new(&[]).is_empty());
    }
}
