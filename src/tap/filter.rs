//! Floor 2: decides which requests an observer sees, from what is known of them so far.

use crate::authz::network::Network;
use crate::classify::outcome::{Outcome, Verdict};
use crate::metrics::names::Direction;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The most conditions of one filter: far more than a person types.
pub const CONDITIONS_MAX: usize = 64;

/// The longest value of a condition, in bytes: longer than any path that is worth looking for.
pub const VALUE_BYTES_MAX: usize = 1024;

/// The name of the default route, as Linkerd's tools write it.
pub const DEFAULT_ROUTE: &str = "[DEFAULT]";

/// The requests a second that an observer sees unless it says otherwise: more than a person reads and a page draws.
pub const RATE: u32 = 100;

/// Why a filter cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFilter(String);

impl fmt::Display for BadFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadFilter {}

/// A text, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Text {
    text: Box<str>,
    is_prefix: bool,
}

impl Text {
    fn new(value: &str) -> Self {
        match value.strip_suffix('*') {
            Some(prefix) => Self { text: prefix.into(), is_prefix: true },
            None => Self { text: value.into(), is_prefix: false },
        }
    }

    fn matches(&self, subject: &str) -> bool {
        if self.is_prefix { subject.starts_with(&*self.text) } else { *subject == *self.text }
    }
}

/// Addresses of a network, and of one port if it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    network: Option<Network>,
    port: Option<u16>,
}

impl Place {
    fn parse(value: &str) -> Option<Self> {
        if let Ok(addr) = value.parse::<SocketAddr>() {
            return Some(Self { network: Some(addr.ip().into()), port: Some(addr.port()) });
        }
        if let Ok(network) = value.parse() {
            return Some(Self { network: Some(network), port: None });
        }
        let (network, port) = value.rsplit_once(':')?;
        let network = match network {
            "" => None,
            network => Some(network.trim_start_matches('[').trim_end_matches(']').parse().ok()?),
        };
        Some(Self { network, port: Some(port.parse().ok()?) })
    }

    fn matches(&self, addr: SocketAddr) -> bool {
        self.network.is_none_or(|network| network.contains(addr.ip()))
            && self.port.is_none_or(|port| port == addr.port())
    }
}

/// What is known of a request when it begins.
#[derive(Debug, Clone, Copy)]
pub struct Begun<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// Its method.
    pub method: &'a str,
    /// Its path, without the query.
    pub path: &'a str,
    /// The authority it names.
    pub authority: &'a str,
    /// The service it is for.
    pub service: &'a str,
    /// Its route; empty for the default route.
    pub route: &'a str,
    /// Where it comes from.
    pub source: Option<SocketAddr>,
    /// Who its caller has proved to be.
    pub source_identity: Option<&'a str>,
}

/// Where an attempt goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent<'a> {
    /// The endpoint's address.
    pub destination: Option<SocketAddr>,
    /// The endpoint's identity.
    pub identity: Option<&'a str>,
    /// What discovery says of the endpoint.
    pub labels: Option<&'a BTreeMap<Arc<str>, Arc<str>>>,
}

/// Which requests an observer sees. Of the values of one key one must match, and each key that is given must.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    directions: Vec<Direction>,
    methods: Vec<Text>,
    paths: Vec<Text>,
    authorities: Vec<Text>,
    services: Vec<Text>,
    routes: Vec<Text>,
    source_identities: Vec<Text>,
    destination_identities: Vec<Text>,
    sources: Vec<Place>,
    destinations: Vec<Place>,
    labels: Vec<(Box<str>, Text)>,
    statuses: Vec<(u16, u16)>,
    verdicts: Vec<Verdict>,
    audited: bool,
    /// The share of requests it sees, 0 to 1. Default: 1.
    pub sample: f64,
    /// At most so many requests a second; `None`: no limit. Default: [`RATE`].
    pub rate: Option<u32>,
    /// It ends after so many requests. Default: never.
    pub requests_max: Option<u64>,
    /// Whether it sees headers. Default: no.
    pub headers: bool,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            directions: Vec::new(),
            methods: Vec::new(),
            paths: Vec::new(),
            authorities: Vec::new(),
            services: Vec::new(),
            routes: Vec::new(),
            source_identities: Vec::new(),
            destination_identities: Vec::new(),
            sources: Vec::new(),
            destinations: Vec::new(),
            labels: Vec::new(),
            statuses: Vec::new(),
            verdicts: Vec::new(),
            audited: false,
            sample: 1.0,
            rate: Some(RATE),
            requests_max: None,
            headers: false,
        }
    }
}

impl Filter {
    /// Reads a filter from the pairs of a query: see `docs/tap.md`.
    ///
    /// # Errors
    /// What key or value cannot be read, and what could be written.
    pub fn parse<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, BadFilter> {
        let mut filter = Self::default();
        for (number, (key, value)) in pairs.into_iter().enumerate() {
            let (key, value) = (key.as_ref(), value.as_ref());
            if number >= CONDITIONS_MAX {
                return Err(BadFilter(format!(
                    "there are more than {CONDITIONS_MAX} conditions; leave some out"
                )));
            }
            if value.len() > VALUE_BYTES_MAX {
                let remedy = "write a shorter one, with a trailing `*`";
                return Err(BadFilter(format!("{key} is longer than {VALUE_BYTES_MAX} bytes; {remedy}")));
            }
            filter.set(key, value)?;
        }
        Ok(filter)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BadFilter> {
        let bad =
            |remedy: &str| BadFilter(format!("{key} cannot be read (`{}`); {remedy}", value.escape_debug()));
        match key {
            "method" => self.methods.push(Text::new(&value.to_ascii_uppercase())),
            "path" => self.paths.push(Text::new(value)),
            "authority" => self.authorities.push(Text::new(value)),
            "service" => self.services.push(Text::new(value)),
            "route" => self.routes.push(Text::new(if value == DEFAULT_ROUTE { "" } else { value })),
            "source_identity" => self.source_identities.push(Text::new(value)),
            "destination_identity" => self.destination_identities.push(Text::new(value)),
            "direction" => self.directions.push(match value {
                "inbound" => Direction::Inbound,
                "outbound" => Direction::Outbound,
                _ => return Err(bad("write inbound or outbound")),
            }),
            "source" | "destination" => {
                let place = Place::parse(value);
                let place =
                    place.ok_or_else(|| bad("write such as 10.0.0.1, 10.0.0.0/8, 10.0.0.1:80 or :80"))?;
                if key == "source" { self.sources.push(place) } else { self.destinations.push(place) }
            }
            "label" => {
                let (name, value) = value.split_once(':').ok_or_else(|| bad("write name:value"))?;
                self.labels.push((name.into(), Text::new(value)));
            }
            "status" => {
                self.statuses.push(statuses(value).ok_or_else(|| bad("write such as 503, 5xx or 500-599"))?);
            }
            "outcome" => match value {
                "success" => self.verdicts.push(Verdict::Success),
                "failure" => self.verdicts.push(Verdict::Failure),
                "cancelled" => self.verdicts.push(Verdict::Cancelled),
                "audited" => self.audited = true,
                _ => return Err(bad("write success, failure, cancelled or audited")),
            },
            "sample" => {
                let share = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
                self.sample = share.ok_or_else(|| bad("write a share from 0 to 1"))?;
            }
            "rate" => {
                let rate: u32 = value.parse().map_err(|_| bad("write requests a second, 0 for no limit"))?;
                self.rate = (rate > 0).then_some(rate);
            }
            "max" => {
                let max = value.parse().ok().filter(|max: &u64| *max > 0);
                self.requests_max = Some(max.ok_or_else(|| bad("write a number from 1"))?);
            }
            "headers" => self.headers = !matches!(value, "0" | "false"),
            // Of the stream, not of requests.
            "format" | "local" | "process" => {}
            _ => {
                let known = "method, path, authority, service, route, direction, source, source_identity, destination, \
                             destination_identity, label, status, outcome, sample, rate, max, headers, format, local, process";
                return Err(BadFilter(format!("`{}` is not known; known are {known}", key.escape_debug())));
            }
        }
        Ok(())
    }

    /// Whether a request that begins so may be seen.
    pub fn begins(&self, begun: &Begun<'_>) -> bool {
        let identity = begun.source_identity;
        (self.directions.is_empty() || self.directions.contains(&begun.direction))
            && any(&self.methods, begun.method)
            && any(&self.paths, begun.path)
            && any(&self.authorities, begun.authority)
            && any(&self.services, begun.service)
            && any(&self.routes, begun.route)
            && (self.source_identities.is_empty()
                || identity.is_some_and(|id| any(&self.source_identities, id)))
            && at(&self.sources, begun.source)
    }

    /// Whether an attempt that goes there may be seen. A label of the route counts as one of the endpoint.
    pub fn goes(&self, sent: &Sent<'_>, route: &str) -> bool {
        let label = |name: &str, text: &Text| {
            let of_endpoint = sent.labels.and_then(|labels| labels.get(name));
            of_endpoint.is_some_and(|value| text.matches(value)) || name == "route" && text.matches(route)
        };
        (self.destination_identities.is_empty()
            || sent.identity.is_some_and(|id| any(&self.destination_identities, id)))
            && at(&self.destinations, sent.destination)
            && self.labels.iter().all(|(name, text)| label(name, text))
    }

    /// Whether it must be known how a request ends before it may be seen.
    pub fn waits_for_end(&self) -> bool {
        self.audited || !self.verdicts.is_empty()
    }

    /// Whether it must be known how a request is answered before it may be seen.
    pub fn waits_for_status(&self) -> bool {
        !self.statuses.is_empty() || self.waits_for_end()
    }

    /// Whether a response of this status may be seen. `None`: there was none.
    pub fn answers(&self, status: Option<u16>) -> bool {
        self.statuses.is_empty()
            || status.is_some_and(|status| {
                self.statuses.iter().any(|(low, high)| (*low..=*high).contains(&status))
            })
    }

    /// Whether a request that ended so may be seen; a rule on trial would have refused it if it was `audited`.
    pub fn ends(&self, outcome: &Outcome, audited: bool) -> bool {
        !self.waits_for_end() || self.verdicts.contains(&outcome.verdict) || self.audited && audited
    }
}

fn any(texts: &[Text], subject: &str) -> bool {
    texts.is_empty() || texts.iter().any(|text| text.matches(subject))
}

fn at(places: &[Place], addr: Option<SocketAddr>) -> bool {
    places.is_empty() || addr.is_some_and(|addr| places.iter().any(|place| place.matches(addr)))
}

/// `503`, `5xx` or `500-599`.
fn statuses(value: &str) -> Option<(u16, u16)> {
    if let Some(class) = value.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|class| (1..=9).contains(class))?;
        return Some((class * 100, class * 100 + 99));
    }
    let (low, high) = value.split_once('-').unwrap_or((value, value));
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (low <= high).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::outcome::Cause;
    use proptest::prelude::*;

    fn filter(query: &str) -> Result<Filter, BadFilter> {
        Filter::parse(
            query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap()),
        )
    }

    const BEGUN: Begun<'_> = Begun {
        direction: Direction::Inbound,
        method: "GET",
        path: "/api/list",
        authority: "web.emojivoto:80",
        service: "web-svc.emojivoto:80",
        route: "",
        source: None,
        source_identity: Some("spiffe://m/ns/a/sa/b"),
    };

    #[test]
    fn each_key_must_match_by_one_of_its_values() {
        let check = |query: &str, expected: bool| {
            let begun = Begun { source: Some("10.0.0.7:999".parse().unwrap()), ..BEGUN };
            assert_eq!(filter(query).unwrap().begins(&begun), expected, "{query}");
        };
        check("", true);
        check("method=get&path=/api/*", true);
        check("method=POST&path=/api/*", false);
        check("method=POST&method=GET", true);
        check("path=/api", false);
        check("route=[DEFAULT]&direction=inbound", true);
        check("route=x", false);
        check("authority=web.emojivoto*&service=web*", true);
        check("source_identity=spiffe://m/*", true);
        check("source_identity=spiffe://n/*", false);
        check("source=10.0.0.0/8&direction=outbound", false);
        check("source=10.0.0.0/8", true);
        check("source=10.0.0.7:999&source=11.0.0.1", true);
        check("source=:998", false);
    }

    #[test]
    fn attempts_are_chosen_by_endpoint_and_ends_by_status() {
        let labels = BTreeMap::from([("zone".into(), "a".into())]);
        let sent =
            Sent { destination: Some("[::1]:80".parse().unwrap()), identity: None, labels: Some(&labels) };
        let goes = |query: &str| filter(query).unwrap().goes(&sent, "r");
        assert!(goes("") && goes("destination=[::1]:80&label=zone:a") && goes("label=route:r"));
        assert!(!goes("label=zone:b") && !goes("destination_identity=*") && !goes("destination=:81"));
        let answers = |query: &str, status| filter(query).unwrap().answers(status);
        assert!(answers("status=5xx", Some(503)) && answers("status=200-299&status=404", Some(404)));
        assert!(!answers("status=5xx", Some(200)) && !answers("status=5xx", None) && answers("", None));
        let failed = Outcome::new(Verdict::Failure, Cause::Reset);
        let ends = |query: &str, audited| filter(query).unwrap().ends(&failed, audited);
        assert!(ends("outcome=failure", false) && !ends("outcome=success", true) && ends("", true));
        assert!(ends("outcome=audited", true) && !ends("outcome=audited", false));
        assert!(ends("outcome=audited&outcome=success", true));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_remedy() {
        let check = |query: &str, says: &str| {
            let told = filter(query).unwrap_err().to_string();
            assert!(told.contains(says), "{query}: {told}");
        };
        check("patth=/x", "`patth` is not known");
        check("status=5x", "write such as 503");
        check("status=599-500", "write such as 503");
        check("sample=1.5", "from 0 to 1");
        check("sample=NaN", "from 0 to 1");
        check("max=0", "from 1");
        check("source=host", "10.0.0.0/8");
        check("label=zone", "name:value");
        check(&["path=/"; 65].join("&"), "more than 64");
        check(&format!("path={}", "x".repeat(1025)), "longer than 1024");
    }

    proptest! {
        #[test]
        fn nothing_panics(key in "[a-z_]{0,20}", value in ".{0,40}") {
            for key in [key.as_str(), "status", "source", "label", "sample", "rate"] {
                let _ = Filter::parse([(key, value.as_str())]);
            }
        }
    }
}
