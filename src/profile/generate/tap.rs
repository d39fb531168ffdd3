//! Floor 1: a ServiceProfile from requests that were seen.

use crate::profile::generate::draft::Draft;
use crate::profile::generate::draft::Generated;
use crate::profile::generate::refine;
use crate::profile::generate::refine::Refinements;
use crate::profile::generate::target::Target;
use std::collections::BTreeMap;
use std::time::Duration;

/// The routes after which watching stops, by the reference's default.
pub const ROUTES_MAX: usize = 20;

/// How long the reference watches by default.
pub const WATCH: Duration = Duration::from_secs(5);

/// The most latencies that are kept of one route: 10,000, enough for a percentile of 99.9.
const LATENCIES_MAX: usize = 10_000;

/// Which way a request went past the one who saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the service that is watched.
    Inbound,
    /// From it.
    Outbound,
}

/// What was seen of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It began.
    Request,
    /// Its response began.
    Response,
    /// Its response ended, so long after it began.
    End(Duration),
}

/// A request that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which way it went.
    pub direction: Direction,
    /// What was seen of it.
    pub stage: Stage,
    /// Its method.
    pub method: String,
    /// Its path, with or without a query.
    pub path: String,
}

/// Generates a profile with a route for each `METHOD path` among the inbound requests, sorted by name. The path `/` is
/// none. It stops reading when `routes_max` routes are found; with [`Refinements::timeouts`] it reads on, for their
/// latencies.
pub fn from_tap(
    seen: impl IntoIterator<Item = Seen>,
    target: &Target,
    routes_max: usize,
    refinements: Refinements,
) -> Generated {
    let mut routes: BTreeMap<String, Draft> = BTreeMap::new();
    for Seen { direction, stage, method, path } in seen {
        let path = path.split('?').next().unwrap_or_default();
        if direction == Direction::Outbound || path == "/" {
            continue;
        }
        let draft = Draft::of_path(&method, path);
        let draft = if refinements.generalize { refine::general(draft) } else { draft };
        match stage {
            // The reference looks at its limit after it has added a route, so there is always one.
            Stage::Request if routes.len() < routes_max.max(1) => {
                routes.entry(draft.name.clone()).or_insert(draft);
            }
            Stage::Request | Stage::Response => {}
            Stage::End(latency) => {
                let known = routes.get_mut(&draft.name);
                if let Some(route) = known.filter(|route| route.latencies.len() < LATENCIES_MAX) {
                    route.latencies.push(latency);
                }
            }
        }
        if routes.len() >= routes_max.max(1) && !refinements.timeouts {
            break;
        }
    }
    Generated::new(target, refinements.refine(routes.into_values().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(path: &str, stage: Stage) -> Seen {
        Seen { direction: Direction::Inbound, stage, method: "GET".to_owned(), path: path.to_owned() }
    }

    fn routes(
        events: Vec<Seen>,
        routes_max: usize,
        refinements: Refinements,
    ) -> Vec<(String, Option<String>)> {
        let own = |text: &str| text.to_owned();
        let target = Target { service: own("a"), namespace: own("b"), cluster_domain: own("c") };
        let generated = from_tap(events, &target, routes_max, refinements);
        let routes = generated.document["spec"]["routes"].as_array().cloned().unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        routes.iter().map(|route| (text(&route["name"]).expect("a name"), text(&route["timeout"]))).collect()
    }

    #[test]
    fn reading_stops_at_the_limit_and_queries_do_not_count() {
        let events = || ["/b?x=1", "/b?x=2", "/a", "/c"].map(|path| seen(path, Stage::Request)).to_vec();
        let names = |routes_max| -> Vec<String> {
            routes(events(), routes_max, Refinements::default()).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(20), ["GET /a", "GET /b", "GET /c"]);
        assert_eq!(names(2), ["GET /a", "GET /b"]);
        assert_eq!(names(0), ["GET /b"]);
    }

    #[test]
    fn ids_are_one_route_whose_latencies_make_its_timeout() {
        let refinements = Refinements { generalize: true, timeouts: true, ..Refinements::default() };
        let events = (0..500_u64).flat_map(|id| {
            let path = format!("/users/{id}");
            [seen(&path, Stage::Request), seen(&path, Stage::End(Duration::from_millis(20 + id % 10)))]
        });
        let expected = vec![("GET /users/{id}".to_owned(), Some("29ms".to_owned()))];
        assert_eq!(routes(events.collect(), 1, refinements), expected);
    }
}
