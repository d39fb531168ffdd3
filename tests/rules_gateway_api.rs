//! Rules of Gateway API that are easily got wrong, each with a case of its own beside the conformance tables: what
//! `docs/dialects/rules.md` points to.

use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::{Imported, load_text};
use enmesh::profile::route::{Action, Backend, Route};
use enmesh::profile::service::{NoMatch, ServiceProfile};
use enmesh::profile::settings::Limit;
use enmesh::route::filter::Filters;
use enmesh::route::head::RequestHead;
use enmesh::route::matcher::Matcher;
use enmesh::route::redirect::Redirection;
use http::Request;
use std::time::Duration;

fn imported(text: &str) -> Imported {
    let imported = load_text(text, "t", &ImportSettings::default());
    let told: Vec<_> = imported.notes.iter().flat_map(|notes| &notes.faults).collect();
    assert!(!imported.any_rejected(), "{text}\n{told:?}");
    imported
}

fn document(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: ns}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: web}}]\n{spec}\n"
    )
}

/// A route whose rules lead to services called by their letters.
fn rules(kind: &str, matches: &[&str]) -> ServiceProfile {
    let rule = |(index, matched): (usize, &&str)| {
        let to = char::from(b'a' + u8::try_from(index).unwrap());
        format!("  - matches: [{matched}]\n    backendRefs: [{{name: {to}, port: 80}}]\n")
    };
    let rules: String = matches.iter().enumerate().map(rule).collect();
    imported(&document(kind, &format!("  rules:\n{rules}"))).profiles.remove(0)
}

fn request(line: &str, headers: &[(&str, &str)]) -> Request<()> {
    let (method, path) = line.split_once(' ').unwrap();
    let uri = if path.starts_with('/') { format!("http://web.ns{path}") } else { format!("http://{path}") };
    let request = Request::builder().method(method).uri(uri);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

fn found<'p>(profile: &'p ServiceProfile, request: &Request<()>) -> Option<&'p Route> {
    let matcher = Matcher::compile(profile.routes.iter().map(|route| &route.condition)).unwrap();
    let head = RequestHead::of_request(request);
    let found = matcher.find(&head);
    assert_eq!(found, matcher.find_in_order(&head), "the index finds what a scan finds");
    found.map(|index| &profile.routes[index])
}

/// The letter of the backend, `-` where no rule is for the request.
fn to(profile: &ServiceProfile, line: &str, headers: &[(&str, &str)]) -> String {
    match found(profile, &request(line, headers)).map(|route| &route.action) {
        None => "-".to_owned(),
        Some(Action::Forward(forward)) => match &forward.backends[0].backend {
            Backend::Service { name, .. } => name.host().split('.').next().unwrap().to_owned(),
            Backend::Invalid { status, .. } => status.to_string(),
        },
        Some(action) => format!("{action:?}"),
    }
}

fn check(profile: &ServiceProfile, cases: &[(&str, &str)]) {
    for (line, expected) in cases {
        assert_eq!(to(profile, line, &[]), *expected, "{line}");
    }
}

#[test]
fn paths_are_compared_as_they_are_sent() {
    let profile = rules(
        "HTTPRoute",
        &[
            "{path: {type: Exact, value: /a%20b}}",
            "{path: {type: PathPrefix, value: /Foo/}}",
            "{path: {type: RegularExpression, value: '/v[0-9]+/é?x'}}",
        ],
    );
    check(
        &profile,
        &[
            ("GET /a%20b", "a"),
            ("GET /a%20b?q", "a"),
            ("GET /a%20B", "-"),
            ("GET /Foo", "b"),
            ("GET /Foo/", "b"),
            ("GET /Foo//x", "b"),
            ("GET /foo/", "-"),
            ("GET /Foobar", "-"),
            ("GET /v12/x", "c"),
            ("GET /v12/xy", "-"),
            ("GET /x/v12/x", "-"),
        ],
    );
}

#[test]
fn ties_go_by_method_then_headers_then_parameters_then_order() {
    let profile = rules(
        "HTTPRoute",
        &[
            "{path: {value: /p}, queryParams: [{name: a, value: '1'}, {name: b, value: '2'}]}",
            "{path: {value: /p}, headers: [{name: x, value: '1'}]}",
            "{path: {value: /p}, method: GET}",
            "{path: {value: /p}, method: GET, headers: [{name: x, value: '1'}]}",
            "{path: {value: /p}}",
            "{path: {value: /p}}",
        ],
    );
    let with = |line: &str, header: bool| to(&profile, line, if header { &[("x", "1")] } else { &[] });
    assert_eq!(with("GET /p?a=1&b=2", true), "d");
    assert_eq!(with("GET /p?a=1&b=2", false), "c");
    assert_eq!(with("POST /p?a=1&b=2", true), "b");
    assert_eq!(with("POST /p?a=1&b=2", false), "a");
    assert_eq!(with("POST /p?a=1", false), "e", "of two alike the first");
}

#[test]
fn several_values_count_as_the_specification_has_it() {
    let profile = rules(
        "HTTPRoute",
        &[
            "{headers: [{name: X-Multi, value: two}]}",
            "{queryParams: [{name: q, value: a b}]}",
            "{headers: [{name: x-re, type: RegularExpression, value: 'v[12]'}]}",
        ],
    );
    assert_eq!(
        to(&profile, "GET /", &[("x-multi", "one"), ("x-multi", "two")]),
        "a",
        "any of several headers"
    );
    assert_eq!(to(&profile, "GET /", &[("x-multi", "Two")]), "-", "values have their case");
    assert_eq!(to(&profile, "GET /?q=a%20b&q=x", &[]), "b", "the first parameter, decoded");
    assert_eq!(to(&profile, "GET /?q=a+b", &[]), "b", "a plus is a blank");
    assert_eq!(to(&profile, "GET /?q=x&q=a%20b", &[]), "-", "not the second");
    assert_eq!(to(&profile, "GET /?Q=a%20b", &[]), "-", "names of parameters have their case");
    assert_eq!(to(&profile, "GET /", &[("x-re", "v1")]), "c");
    assert_eq!(to(&profile, "GET /", &[("x-re", "v1x")]), "-", "a pattern covers the whole value");
}

#[test]
fn hosts_have_no_port_and_wildcards_have_one_label_or_more() {
    let text = document(
        "HTTPRoute",
        "  hostnames: ['*.example.com', exact.example.com]\n  rules:\n  - backendRefs: [{name: a, port: 80}]",
    );
    let profile = &imported(&text).profiles[0];
    for (host, expected) in [
        ("a.example.com", "a"),
        ("a.b.example.com:8080", "a"),
        ("A.EXAMPLE.com", "a"),
        ("exact.example.com.", "a"),
        ("example.com", "-"),
        ("xexample.com", "-"),
        ("a.example.com.evil", "-"),
    ] {
        assert_eq!(to(profile, &format!("GET {host}/"), &[]), expected, "{host}");
    }
    assert_eq!(profile.no_match, NoMatch::NotFound);
}

#[test]
fn grpc_methods_are_names_before_patterns_and_the_longest_first() {
    let profile = rules(
        "GRPCRoute",
        &[
            "{method: {type: RegularExpression, service: 'shop[.].*', method: 'Get.*'}}",
            "{method: {service: shop.Cart}}",
            "{method: {service: shop.Cart, method: Get}}",
            "{method: {method: List}}",
        ],
    );
    check(
        &profile,
        &[
            ("POST /shop.Cart/Get", "c"),
            ("POST /shop.Cart/GetAll", "b"),
            ("POST /shop.Desk/GetAll", "a"),
            ("POST /shop.Desk/List", "d"),
            ("POST /shop.Desk/Lists", "-"),
            ("POST /shop.Desk/Get/x", "-"),
            ("GET /shop.Cart/Get", "-"),
            ("POST /Get", "-"),
        ],
    );
}

#[test]
fn prefixes_are_rewritten_by_elements_and_queries_are_kept() {
    for (matched, with, path, expected) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo/", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "", "/foo/bar", "/bar"),
        ("/foo/", "", "/foo/bar", "/bar"),
        ("/foo", "", "/foo", "/"),
        ("/foo/", "/", "/foo", "/"),
        ("/foo", "/", "/foo/bar?q=1", "/bar?q=1"),
        ("/", "/xyz", "/foo", "/xyz/foo"),
        ("/foo", "/a%20b", "/foo/%2e", "/a%20b/%2e"),
    ] {
        let text = document(
            "HTTPRoute",
            &format!(
                "  rules:\n  - matches: [{{path: {{type: PathPrefix, value: {matched}}}}}]\n    filters: [{{type: URLRewrite, urlRewrite: \
                 {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{with}'}}}}}}]\n    backendRefs: [{{name: a, port: 80}}]"
            ),
        );
        let profile = &imported(&text).profiles[0];
        let mut request = request(&format!("GET {path}"), &[]);
        let route = found(profile, &request).unwrap();
        let Action::Forward(forward) = &route.action else { panic!() };
        Filters::compile(&forward.filters, &route.condition).unwrap().apply(&mut request);
        let seen = request.uri().path_and_query().unwrap().as_str();
        assert_eq!(seen, expected, "{matched} by {with:?} of {path}");
    }
}

#[test]
fn redirects_name_the_port_only_where_it_is_not_the_schemes_own() {
    for (redirect, asked, expected) in [
        ("{scheme: https}", "web.ns:8080/p", "https://web.ns/p"),
        ("{scheme: https, port: 443}", "web.ns/p", "https://web.ns/p"),
        ("{scheme: https, port: 80}", "web.ns/p", "https://web.ns:80/p"),
        ("{port: 8083}", "web.ns/p?q=1", "http://web.ns:8083/p?q=1"),
        ("{hostname: other.test}", "web.ns:8080/p", "http://other.test:8080/p"),
        ("{path: {type: ReplaceFullPath, replaceFullPath: /n}}", "web.ns/p?q=1", "http://web.ns/n?q=1"),
        ("{statusCode: 308}", "[::1]:8080/p", "http://[::1]:8080/p"),
    ] {
        let text = document(
            "HTTPRoute",
            &format!("  rules:\n  - filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]"),
        );
        let profile = &imported(&text).profiles[0];
        let request = request(&format!("GET {asked}"), &[]);
        let route = found(profile, &request).unwrap();
        let Action::Redirect(redirect) = &route.action else { panic!("{:?}", route.action) };
        let redirection = Redirection::compile(redirect, &route.condition).unwrap();
        assert_eq!(redirection.location(&RequestHead::of_request(&request)), expected, "{asked}");
        let status = redirection.status().as_u16();
        assert_eq!(status, if expected.contains("::1") { 308 } else { 302 });
    }
}

#[test]
fn a_time_of_zero_is_none_and_what_is_not_said_stays_so() {
    let timeouts = |text: &str| {
        let spec = format!("  rules:\n  - backendRefs: [{{name: a, port: 80}}]\n{text}");
        imported(&document("HTTPRoute", &spec)).profiles.remove(0).routes.remove(0)
    };
    assert_eq!(timeouts("").timeouts.request, Limit::Unset);
    let zero = timeouts("    timeouts: {request: 0s, backendRequest: 1h1m1s1ms}");
    let long = Duration::from_millis(3_661_001);
    assert_eq!((zero.timeouts.request, zero.timeouts.attempt), (Limit::Disabled, Limit::After(long)));
    let retry = timeouts("    retry: {codes: [503, 504], attempts: 2, backoff: 100ms}").retry.unwrap();
    assert_eq!((retry.attempts_max, retry.on.statuses.len(), retry.idempotent), (Some(3), 2, true));
    assert!(
        retry.on.connect_failure && retry.on.attempt_timeout,
        "connections and attempts in time are retried unasked"
    );
    assert_eq!(timeouts("    retry: {attempts: 0}").retry.unwrap().attempts_max, Some(1));
}

#[test]
fn a_grant_is_for_its_kind_and_namespace_and_name() {
    let shares = |grant: &str| {
        let services = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: other}\nspec: {ports: [{port: 80}]}\n---\n";
        let route =
            document("HTTPRoute", "  rules:\n  - backendRefs: [{name: a, namespace: other, port: 80}]");
        let grant = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: other}}\nspec: {grant}\n"
        );
        let profile = imported(&(services.to_owned() + &route + &grant)).profiles.remove(0);
        to(&profile, "GET /", &[])
    };
    let from = |kind: &str, namespace: &str| {
        format!("from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {namespace}}}]")
    };
    let ours = from("HTTPRoute", "ns");
    assert_eq!(shares(&format!("{{{ours}, to: [{{group: '', kind: Service}}]}}")), "a");
    assert_eq!(shares(&format!("{{{ours}, to: [{{group: '', kind: Service, name: a}}]}}")), "a");
    assert_eq!(shares(&format!("{{{ours}, to: [{{group: '', kind: Service, name: b}}]}}")), "500");
    assert_eq!(shares(&format!("{{{ours}, to: [{{group: '', kind: Secret}}]}}")), "500");
    for (kind, namespace) in [("GRPCRoute", "ns"), ("HTTPRoute", "else")] {
        let from = from(kind, namespace);
        assert_eq!(
            shares(&format!("{{{from}, to: [{{group: '', kind: Service}}]}}")),
            "500",
            "{kind} {namespace}"
        );
    }
}

#[test]
fn a_section_of_a_service_is_the_port_of_that_name() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: ns}\n\
                   spec: {ports: [{name: http, port: 80}, {name: admin, port: 81}]}\n";
    let names = |parent: &str, beside: &str| -> Vec<String> {
        let route = document("HTTPRoute", "  rules:\n  - backendRefs: [{name: a, port: 80}]");
        let route = route.replace("name: web}", &format!("name: web, {parent}}}"));
        let profiles = imported(&(route + beside)).profiles;
        profiles.iter().flat_map(|profile| &profile.names).map(ToString::to_string).collect()
    };
    assert_eq!(names("sectionName: admin", service), ["web.ns.svc.cluster.local:81"]);
    assert_eq!(names("sectionName: admin, port: 81", service), ["web.ns.svc.cluster.local:81"]);
    assert_eq!(names("sectionName: admin, port: 80", service), [""; 0], "both must hold");
    assert_eq!(names("sectionName: gone", service), [""; 0], "it is for nothing, and told");
    assert_eq!(names("sectionName: admin", ""), ["web.ns.svc.cluster.local"], "no file shows the ports: all");
}

#[test]
fn a_listener_without_routes_answers_404() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gate, namespace: ns}\n\
                   spec: {gatewayClassName: x, listeners: [{name: http, port: 80, protocol: HTTP}]}\n";
    let profile = imported(gateway).profiles.remove(0);
    assert_eq!((profile.names[0].to_string().as_str(), profile.routes.len()), ("gate.ns:80", 0));
    assert_eq!(profile.no_match, NoMatch::NotFound);
}
