//! Floor 1: makes generated routes better than the reference's, where it is asked to.

use crate::profile::duration;
use crate::profile::generate::draft::Draft;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

/// What is done to routes beyond what the reference does. Nothing by default: the same input then gives the same
/// document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refinements {
    /// Path segments that look like ids become parameters, and the routes that are then alike become one.
    pub generalize: bool,
    /// Literal path segments stand before parameters, so that `/books/new` is not shadowed by `/books/{id}`.
    pub by_specificity: bool,
    /// Routes of idempotent methods (RFC 9110: GET, HEAD, OPTIONS, TRACE, PUT, DELETE) are retryable where the input
    /// says nothing.
    pub infer_retryable: bool,
    /// No two routes have one name.
    pub unique_names: bool,
    /// Routes get the 99.9th percentile of the latencies seen as their timeout, if there are at least
    /// [`LATENCIES_MIN`].
    pub timeouts: bool,
    /// The path of OpenAPI 3's first `servers[].url` counts like Swagger 2.0's `basePath`.
    pub server_paths: bool,
}

/// The least latencies that make a timeout: 100. Below that the percentile is the maximum of a handful.
pub const LATENCIES_MIN: usize = 100;

impl Refinements {
    /// The drafts, refined.
    pub(crate) fn refine(self, mut drafts: Vec<Draft>) -> Vec<Draft> {
        if self.generalize {
            drafts = generalized(drafts);
        }
        if self.infer_retryable {
            for draft in &mut drafts {
                let idempotent =
                    ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"].contains(&draft.method.as_str());
                draft.retryable = draft.retryable.or(idempotent.then_some(true));
            }
        }
        if self.timeouts {
            for draft in &mut drafts {
                draft.timeout = draft.timeout.take().or_else(|| timeout(&mut draft.latencies));
            }
        }
        if self.by_specificity {
            drafts.sort_by_cached_key(|draft| specificity(&draft.path));
        }
        if self.unique_names {
            make_unique(&mut drafts);
        }
        drafts
    }
}

fn generalized(drafts: Vec<Draft>) -> Vec<Draft> {
    let mut merged: Vec<Draft> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for draft in drafts {
        let mut draft = general(draft);
        match places.entry(draft.name.clone()) {
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(draft);
            }
            Entry::Occupied(place) => {
                if let Some(first) = merged.get_mut(*place.get()) {
                    first.latencies.append(&mut draft.latencies);
                }
            }
        }
    }
    merged
}

/// The route with parameters where its path has ids.
pub(crate) fn general(draft: Draft) -> Draft {
    let segments: Vec<&str> =
        draft.path.split('/').map(|segment| if is_id(segment) { "{id}" } else { segment }).collect();
    let path = segments.join("/");
    if path == draft.path {
        return draft;
    }
    Draft { name: format!("{} {path}", draft.method), path, ..draft }
}

/// Whether a path segment looks like an id: a number, a UUID, a ULID, or twelve and more hexadecimal digits.
fn is_id(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
    let hex = |b: &u8| b.is_ascii_hexdigit();
    let uuid = bytes.len() == 36
        && bytes
            .iter()
            .enumerate()
            .all(|(at, b)| if matches!(at, 8 | 13 | 18 | 23) { *b == b'-' } else { hex(b) });
    let ulid = bytes.len() == 26 && bytes.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    let number = digits > 0 && digits == bytes.len();
    number || uuid || (digits > 0 && (ulid || bytes.len() >= 12 && bytes.iter().all(hex)))
}

/// Sorts literal segments before parameters at the first difference.
fn specificity(path: &str) -> Vec<(bool, String)> {
    path.split('/').map(|segment| (segment.contains('{'), segment.to_owned())).collect()
}

fn make_unique(drafts: &mut [Draft]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for draft in drafts.iter() {
        *counts.entry(draft.name.clone()).or_default() += 1;
    }
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for draft in drafts {
        if counts.get(&draft.name).is_some_and(|count| *count > 1)
            && let Some(qualifier) = &draft.qualifier
        {
            draft.name = format!("{qualifier}/{}", draft.name);
        }
        let seen = taken.entry(draft.name.clone()).or_default();
        *seen += 1;
        if *seen > 1 {
            draft.name = format!("{} ({seen})", draft.name);
        }
    }
}

/// The 99.9th percentile (nearest rank), rounded up to two digits, 10 ms at least.
fn timeout(latencies: &mut [Duration]) -> Option<String> {
    if latencies.len() < LATENCIES_MIN {
        return None;
    }
    latencies.sort_unstable();
    let rank = (latencies.len() * 999).div_ceil(1_000);
    let quantile = latencies.get(rank.saturating_sub(1))?;
    let millis = u64::try_from(quantile.as_micros().div_ceil(1_000)).ok()?.max(10);
    let unit = 10_u64.pow(millis.ilog10().saturating_sub(1));
    Some(duration::to_text(Duration::from_millis(millis.div_ceil(unit) * unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refine(refinements: Refinements, paths: &[&str]) -> Vec<String> {
        let drafts = paths.iter().map(|path| Draft::of_path("GET", path)).collect();
        refinements.refine(drafts).into_iter().map(|draft| draft.path).collect()
    }

    #[test]
    fn ids_become_parameters_and_words_do_not() {
        let all = Refinements { generalize: true, ..Refinements::default() };
        let seen = refine(
            all,
            &[
                "/v1/users/1234",
                "/v1/users/99",
                "/v1/users/6f1e0b0a-3c1d-4e0a-9b1a-0a1b2c3d4e5f/pets",
                "/blobs/0123456789abcdef",
                "/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV",
                "/words/deadbeef",
                "/v2/facade",
                "/",
            ],
        );
        assert_eq!(
            seen,
            [
                "/v1/users/{id}",
                "/v1/users/{id}/pets",
                "/blobs/{id}",
                "/orders/{id}",
                "/words/deadbeef",
                "/v2/facade",
                "/"
            ]
        );
    }

    #[test]
    fn literal_segments_come_before_parameters() {
        let all = Refinements { by_specificity: true, ..Refinements::default() };
        let paths = ["/{any}", "/books/{id}", "/books/~new", "/books/{id}/x", "/a"];
        assert_eq!(refine(all, &paths), ["/a", "/books/~new", "/books/{id}", "/books/{id}/x", "/{any}"]);
    }

    #[test]
    fn names_are_made_unique_and_methods_say_what_is_retryable() {
        let all = Refinements { unique_names: true, infer_retryable: true, ..Refinements::default() };
        let rpc = |service: &str| Draft {
            name: "Get".to_owned(),
            method: "POST".to_owned(),
            qualifier: Some(service.to_owned()),
            ..Draft::default()
        };
        let put = Draft { retryable: Some(false), ..Draft::of_path("PUT", "/a") };
        let drafts = all.refine(vec![rpc("A"), rpc("B"), rpc("B"), put, Draft::of_path("GET", "/b")]);
        let seen: Vec<_> = drafts.iter().map(|draft| (draft.name.as_str(), draft.retryable)).collect();
        assert_eq!(
            seen,
            [
                ("A/Get", None),
                ("B/Get", None),
                ("B/Get (2)", None),
                ("PUT /a", Some(false)),
                ("GET /b", Some(true))
            ]
        );
    }

    #[test]
    fn timeouts_come_from_the_slowest_of_a_thousand() {
        let millis = |n: u64| Duration::from_millis(n);
        let mut few: Vec<Duration> = (0..99).map(millis).collect();
        assert_eq!(timeout(&mut few), None);
        let mut many: Vec<Duration> = (1..=1_000).rev().map(millis).collect();
        assert_eq!(timeout(&mut many).as_deref(), Some("1s"));
        let mut quick = vec![Duration::from_micros(120); 100];
        assert_eq!(timeout(&mut quick).as_deref(), Some("10ms"));
        let mut odd = vec![millis(1_234); 100];
        assert_eq!(timeout(&mut odd).as_deref(), Some("1.3s"));
    }
}
