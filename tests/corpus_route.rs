//! Linkerd's matching vectors, from `shared/data/vectors`: run with `ENMESH_CORPUS=…/shared/data`.

#[path = "support/corpus.rs"]
mod support;

use enmesh::profile::matching::{
    Condition, GrpcMatch, HostMatch, KeyMatch, PathKind, PathMatch, TextMatch, ValueMatch,
};
use enmesh::route::head::RequestHead;
use enmesh::route::matcher::Matcher;
use http::{HeaderName, HeaderValue, Method, Request};
use serde_json::Value;
use support::{cases, list, vectors};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    // A space cannot stand in a URI; the vectors mean the path as it is sent.
    let mut request = Request::builder().method(method).uri(uri.replace(' ', "%20")).body(()).unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

fn find(conditions: &[Condition], request: &Request<()>) -> Option<usize> {
    let matcher = Matcher::compile(conditions).unwrap();
    let head = RequestHead::of_request(request);
    let found = matcher.find(&head);
    assert_eq!(found, matcher.find_in_order(&head), "the index and the scan differ for {request:?}");
    found
}

fn holds(condition: &Condition, request: &Request<()>) -> bool {
    find(std::slice::from_ref(condition), request).is_some()
}

fn path(kind: PathKind, value: &str) -> Condition {
    Condition::Path(PathMatch::new(kind, value))
}

/// A ServiceProfile's request condition.
fn profile_condition(value: &Value) -> Condition {
    let parts = value.as_object().unwrap().iter().map(|(key, value)| match key.as_str() {
        "pathRegex" => path(PathKind::Regex, text(value)),
        "method" => Condition::Method(vec![text(value).parse().unwrap()]),
        "all" => Condition::All(list(value).iter().map(profile_condition).collect()),
        "any" => Condition::Any(list(value).iter().map(profile_condition).collect()),
        "not" => Condition::Not(Box::new(profile_condition(value))),
        other => panic!("{other} is not known"),
    });
    Condition::All(parts.collect())
}

#[test]
fn profile_conditions_match_as_linkerd_matches_but_for_ungrouped_anchors() {
    let Some(vectors) = vectors("linkerd-sp-match.json") else { return };
    let mut differing = Vec::new();
    for case in cases(&vectors, "request") {
        let condition = profile_condition(&case["condition"]);
        for row in list(&case["requests"]) {
            let (method, uri) = (text(&row["method"]), text(&row["path"]));
            let matched = holds(&condition, &request(method, uri, &[]));
            if matched != row["match"].as_bool().unwrap() {
                assert_eq!(case["quirk"], true, "{condition:?} {method} {uri}");
                differing.push(uri);
            }
        }
    }
    // `^/a|/b$` without a group lets these in; as a group, it does not.
    assert_eq!(differing, ["/a/anything", "/x/b"]);
}

#[test]
fn a_bad_pattern_refuses_the_profile_and_widens_nothing() {
    let Some(vectors) = vectors("linkerd-sp-match.json") else { return };
    let cases = cases(&vectors, "invalid_regex");
    assert_eq!(cases.len(), 3);
    for case in cases {
        let faults = Matcher::compile([&profile_condition(&case["condition"])]).unwrap_err();
        assert!(faults[0].1.problem.contains("is not a pattern"), "{}", faults[0].1);
    }
}

#[test]
fn the_first_of_a_profiles_routes_wins() {
    let Some(vectors) = vectors("linkerd-sp-match.json") else { return };
    for case in cases(&vectors, "first_match") {
        let routes: Vec<_> =
            list(&case["routes"]).iter().map(|regex| path(PathKind::Regex, text(regex))).collect();
        let expected = case["route"].as_u64().map(|route| route as usize);
        assert_eq!(find(&routes, &request("GET", text(&case["path"]), &[])), expected, "{case}");
    }
}

fn host(pattern: &str) -> Condition {
    Condition::Host(vec![match pattern.strip_prefix("*.") {
        Some(suffix) => HostMatch::Suffix(suffix.into()),
        None => HostMatch::Exact(pattern.into()),
    }])
}

#[test]
fn hosts_and_paths_match_as_linkerds_routes_do() {
    let Some(vectors) = vectors("linkerd-route-match.json") else { return };
    for case in cases(&vectors, "host") {
        let condition = host(text(&case["match"]["host"]));
        for (name, expected) in case["cases"].as_object().unwrap() {
            let by_header = request("GET", "/", &[("host", name)]);
            let by_authority = request("GET", &format!("http://{name}:8080/"), &[]);
            for request in [by_header, by_authority] {
                assert_eq!(holds(&condition, &request), !expected.is_null(), "{condition:?} {name}");
            }
        }
    }
    for case in cases(&vectors, "path") {
        let (kind, value) = case["match"].as_object().unwrap().iter().next().unwrap();
        let kind = match kind.as_str() {
            "exact" => PathKind::Exact,
            "prefix" => PathKind::PrefixElement,
            "regex" => PathKind::Regex,
            other => panic!("{other} is not known"),
        };
        let condition = path(kind, text(value));
        for (uri, expected) in case["cases"].as_object().unwrap() {
            assert_eq!(
                holds(&condition, &request("GET", uri, &[])),
                !expected.is_null(),
                "{condition:?} {uri}"
            );
        }
    }
}

fn key(value: &Value) -> KeyMatch {
    let (kind, pair) = value.as_object().unwrap().iter().next().unwrap();
    let value = text(&pair[1]);
    let test = match kind.as_str() {
        "exact" => TextMatch::Exact(value.into()),
        "regex" => TextMatch::Regex(value.into()),
        other => panic!("{other} is not known"),
    };
    KeyMatch::new(text(&pair[0]), ValueMatch::Text(test))
}

#[test]
fn headers_and_parameters_match_as_linkerds_routes_do() {
    let Some(vectors) = vectors("linkerd-route-match.json") else { return };
    for case in cases(&vectors, "header") {
        let condition = Condition::Header(key(&case["match"]));
        for (said, expected) in case["cases"].as_object().unwrap() {
            let values = said.split_once(": ").map_or("", |(_, values)| values);
            let values = values.split_once(" (").map_or(values, |(values, _)| values);
            let headers: Vec<_> = values.split('|').filter(|v| !v.is_empty()).map(|v| ("foo", v)).collect();
            assert_eq!(
                holds(&condition, &request("GET", "/", &headers)),
                expected.as_bool().unwrap(),
                "{said}"
            );
        }
    }
    for case in cases(&vectors, "query") {
        let condition = Condition::Query(key(&case["match"]));
        for (query, expected) in case["cases"].as_object().unwrap() {
            let request = request("GET", &format!("/{query}"), &[]);
            assert_eq!(holds(&condition, &request), expected.as_bool().unwrap(), "{condition:?} {query}");
        }
    }
}

#[test]
fn all_parts_of_a_match_must_hold() {
    let Some(vectors) = vectors("linkerd-route-match.json") else { return };
    let cases = cases(&vectors, "combined");
    assert_eq!(cases.len(), 3);
    let condition = Condition::All(vec![
        path(PathKind::Exact, text(&cases[1]["match"]["path"]["exact"])),
        Condition::Header(key(&serde_json::json!({"exact": ["x-foo", "bar"]}))),
        Condition::Query(key(&serde_json::json!({"exact": ["foo", "bar"]}))),
        Condition::Method(vec![Method::GET]),
    ]);
    let with = |method| request(method, "/foo/bar?foo=bar", &[("x-foo", "bar")]);
    assert!(holds(&Condition::Always, &with("GET")));
    assert_eq!(holds(&condition, &with("GET")), !cases[1]["result"].is_null());
    assert_eq!(holds(&condition, &with("HEAD")), !cases[2]["result"].is_null());
}

#[test]
fn grpc_calls_match_by_service_and_method() {
    let Some(vectors) = vectors("linkerd-route-match.json") else { return };
    for case in cases(&vectors, "grpc") {
        let name = |key: &str| case["match"][key].as_str().map(|name| TextMatch::Exact(name.into()));
        let condition = Condition::Grpc(GrpcMatch { service: name("service"), method: name("method") });
        let (method, uri) = text(&case["request"]).split_once(' ').unwrap();
        assert!(holds(&condition, &request(method, uri, &[])), "{case}");
        assert!(!holds(&condition, &request("GET", uri, &[])), "{case}");
    }
}
