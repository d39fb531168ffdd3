//! Other meshes' documents as profiles: precedence, frontends, backends, merging. Each rule of meshes.md §4 that is
//! about Gateway API or SMI has its case here.

use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::{Imported, load_text};
use enmesh::profile::invalid::Severity;
use enmesh::profile::route::{Action, Backend, Choice, Route};
use enmesh::profile::service::{NoMatch, ServiceProfile};
use enmesh::profile::settings::{BudgetSettings, Limit};
use enmesh::route::head::RequestHead;
use enmesh::route::matcher::Matcher;
use http::Request;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

fn imported(text: &str) -> Imported {
    load_text(text, "t", &ImportSettings::default())
}

fn faults(imported: &Imported) -> Vec<String> {
    imported.notes.iter().flat_map(|notes| &notes.faults).map(ToString::to_string).collect()
}

/// The profile of `name` for callers in `namespace`.
fn profile<'a>(imported: &'a Imported, name: &str, namespace: &str) -> &'a ServiceProfile {
    let is_it = |profile: &&ServiceProfile| {
        profile.names[0].to_string() == name && profile.namespace.as_deref() == Some(namespace)
    };
    imported
        .profiles
        .iter()
        .find(is_it)
        .unwrap_or_else(|| panic!("no {name} for {namespace}: {:#?}", imported.profiles))
}

fn found<'a>(profile: &'a ServiceProfile, head: &str, headers: &[&str]) -> Option<&'a Route> {
    let (method, uri) = head.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(uri);
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    let request = request.body(()).unwrap();
    let matcher = Matcher::compile(profile.routes.iter().map(|route| &route.condition)).unwrap();
    matcher.find(&RequestHead::of_request(&request)).map(|index| &profile.routes[index])
}

/// What becomes of a request: backends with weights, a status, or `none`.
fn outcome(profile: &ServiceProfile, head: &str, headers: &[&str]) -> String {
    let Some(route) = found(profile, head, headers) else { return "none".into() };
    match &route.action {
        Action::Respond(respond) => respond.status.to_string(),
        Action::Redirect(redirect) => format!("redirect {}", redirect.status),
        Action::Forward(forward) => {
            let one = |(backend, weight): (&Backend, u32)| match backend {
                Backend::Service { name, .. } => {
                    format!("{}:{weight}", name.host().split('.').next().unwrap())
                }
                Backend::Invalid { status, .. } => format!("{status}:{weight}"),
            };
            let backends = forward.backends.iter().map(|backend| one((&backend.backend, backend.weight)));
            backends.collect::<Vec<_>>().join(" ")
        }
    }
}

/// An HTTPRoute for service `web` of namespace `n`.
fn route(name: &str, spec: &str) -> String {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: n}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: web}}]\n{indented}---\n"
    )
}

/// Checks what becomes of requests to `web` under `text`.
fn check(text: &str, cases: &[(&str, &[&str], &str)]) {
    let imported = imported(text);
    assert!(!imported.any_rejected(), "{:#?}", faults(&imported));
    let profile = profile(&imported, "web.n.svc.cluster.local", "n");
    for (head, headers, expected) in cases {
        assert_eq!(outcome(profile, head, headers), *expected, "{head} {headers:?}\n{text}");
    }
}

/// A rule with these matches and a backend `to`.
fn rule(matches: &str, to: &str) -> String {
    format!("- matches: [{matches}]\n  backendRefs: [{{name: {to}, port: 80}}]\n")
}

fn path(kind: &str, value: &str) -> String {
    format!("path: {{type: {kind}, value: '{value}'}}")
}

#[test]
fn matches_are_ranked_and_not_listed() {
    let rules = [
        rule(&format!("{{{}}}", path("PathPrefix", "/")), "root"),
        rule(&format!("{{{}}}", path("Exact", "/one")), "exact"),
        rule(&format!("{{{}}}", path("PathPrefix", "/one")), "prefix"),
        rule(&format!("{{{}}}", path("RegularExpression", "/one|/two")), "regex"),
    ];
    let cases: &[(&str, &[&str], &str)] = &[
        ("GET /one", &[], "exact:1"),
        ("GET /one/x", &[], "prefix:1"),
        ("GET /two", &[], "root:1"),
        ("GET /onex", &[], "root:1"),
    ];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let rules: String = order.map(|index: usize| rules[index].clone()).concat();
        check(&route("r", &format!("rules:\n{rules}")), cases);
        // The order is one of all routes of the frontend.
        let apart = order
            .map(|index| route(&format!("r{index}"), &format!("rules:\n{}", self::rule_of(&rules, index))));
        check(&apart.concat(), cases);
    }
}

/// The rule of `rules` whose backend is the `index`-th name.
fn rule_of(rules: &str, index: usize) -> String {
    let name = ["root", "exact", "prefix", "regex"][index];
    let rules = rules.split("- matches").filter(|rule| rule.contains(&format!("name: {name},")));
    rules.map(|rule| format!("- matches{rule}")).collect()
}

#[test]
fn each_match_of_a_rule_has_its_own_rank() {
    let both = format!("{{{}}}, {{{}}}", path("Exact", "/a"), path("PathPrefix", "/"));
    let rules = format!(
        "rules:\n{}{}",
        rule(&both, "both"),
        rule(&format!("{{{}}}", path("PathPrefix", "/a")), "prefix")
    );
    check(
        &route("r", &rules),
        &[("GET /a", &[], "both:1"), ("GET /a/b", &[], "prefix:1"), ("GET /b", &[], "both:1")],
    );
}

#[test]
fn paths_come_before_methods_before_headers_before_parameters() {
    let header = "headers: [{name: x, value: '1'}]";
    let query = "queryParams: [{name: q, value: '1'}]";
    let rules = [
        rule(&format!("{{{}}}", path("PathPrefix", "/v2")), "path"),
        rule(
            &format!(
                "{{{}, headers: [{{name: x, value: '1'}}, {{name: z, value: '1'}}]}}",
                path("PathPrefix", "/")
            ),
            "two",
        ),
        rule(&format!("{{{}, {header}}}", path("PathPrefix", "/")), "one"),
        rule(&format!("{{{}, {query}}}", path("PathPrefix", "/")), "query"),
        rule(&format!("{{{}, method: POST}}", path("PathPrefix", "/")), "method"),
    ];
    check(
        &route("r", &format!("rules:\n{}", rules.concat())),
        &[
            ("POST /v2", &["x: 1", "z: 1"], "path:1"),
            ("POST /?q=1", &["x: 1", "z: 1"], "method:1"),
            ("GET /?q=1", &["x: 1", "z: 1"], "two:1"),
            ("GET /?q=1", &["x: 1"], "one:1"),
            ("GET /?q=1", &[], "query:1"),
            ("GET /", &[], "none"),
        ],
    );
}

#[test]
fn of_equals_the_oldest_wins_and_then_the_name() {
    let with = |name: &str, created: &str, to: &str| {
        route(name, &format!("rules:\n{}", rule("", to)))
            .replace("namespace: n}", &format!("namespace: n{created}}}"))
    };
    let (old, young) =
        (", creationTimestamp: '2020-01-01T00:00:00Z'", ", creationTimestamp: '2021-01-01T00:00:00Z'");
    check(&[with("a", young, "young"), with("z", old, "old")].concat(), &[("GET /", &[], "old:1")]);
    check(&[with("z", "", "second"), with("a", "", "first")].concat(), &[("GET /", &[], "first:1")]);
}

#[test]
fn hosts_come_before_paths_and_the_longest_first() {
    let with = |name: &str, host: &str, matches: &str| {
        route(name, &format!("hostnames: ['{host}']\nrules:\n{}", rule(matches, name)))
    };
    let text = [
        with("wild", "*.example.com", &format!("{{{}}}", path("Exact", "/foo"))),
        with("exact", "foo.example.com", &format!("{{{}}}", path("PathPrefix", "/"))),
        with("deep", "*.b.example.com", ""),
        route("any", &format!("rules:\n{}", rule("", "any"))),
    ];
    check(
        &text.concat(),
        &[
            ("GET http://foo.example.com/foo", &[], "exact:1"),
            ("GET http://x.example.com/foo", &[], "wild:1"),
            ("GET http://a.b.example.com/foo", &[], "deep:1"),
            ("GET http://example.com/foo", &[], "any:1"),
            ("GET http://x.example.com:8080/bar", &[], "any:1"),
        ],
    );
}

#[test]
fn a_name_that_stands_twice_counts_once() {
    let spec = "rules:\n- matches: [{headers: [{name: X, value: a}, {name: x, value: b}]}]\n  backendRefs: [{name: a, port: 80}]\n";
    let imported = imported(&route("r", spec));
    assert_eq!(outcome(&imported.profiles[0], "GET /", &["x: a"]), "a:1");
    assert!(faults(&imported)[0].contains("is the second for `x`"), "{:?}", faults(&imported));
}

const SERVICES: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: n}, spec: {ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: good, namespace: n}, spec: {ports: [{port: 80, name: http}]}}
- {apiVersion: v1, kind: Service, metadata: {name: alias, namespace: n}, spec: {type: ExternalName, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: far, namespace: m}, spec: {ports: [{port: 80}]}}
---
";

#[test]
fn an_invalid_backend_keeps_its_share() {
    let of = |backends: &str| {
        format!("{SERVICES}{}", route("r", &format!("rules:\n- backendRefs: [{backends}]\n")))
    };
    let to = |text: &str, expected: &str| check(&of(text), &[("GET /", &[], expected)]);
    to("{name: good, port: 80}, {name: gone, port: 80}", "good:1 500:1");
    to("{name: good, port: 81}", "500:1");
    to("{name: good}", "500:1");
    to("{name: alias, port: 80}", "500:1");
    to("{group: x.io, kind: Thing, name: good, port: 80}", "500:1");
    to("{name: far, namespace: m, port: 80, weight: 3}", "500:3");
    to("{name: unknown, namespace: elsewhere, port: 80}", "500:1");
    to("{name: good, port: 80, weight: 0}", "500");
    to("", "500");
    let grant = |from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: m}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: {from}, namespace: n}}]\n  to: [{to}]\n---\n"
        )
    };
    let far = of("{name: far, namespace: m, port: 80}");
    let granted =
        |from, to, expected| check(&format!("{}{far}", grant(from, to)), &[("GET /", &[], expected)]);
    granted("HTTPRoute", "{group: '', kind: Service}", "far:1");
    granted("HTTPRoute", "{group: '', kind: Service, name: far}", "far:1");
    granted("HTTPRoute", "{group: '', kind: Service, name: near}", "500:1");
    granted("GRPCRoute", "{group: '', kind: Service}", "500:1");
    granted("HTTPRoute", "{group: '', kind: Secret}", "500:1");
}

#[test]
fn where_no_service_is_shown_nothing_is_said_of_them() {
    check(
        &route("r", "rules:\n- backendRefs: [{name: anything, port: 80}]\n"),
        &[("GET /", &[], "anything:1")],
    );
}

#[test]
fn a_filter_that_cannot_be_applied_answers_instead_of_passing() {
    let spec = "rules:\n- filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}]\n  backendRefs: [{name: a, port: 80}]\n";
    let imported = imported(&route("r", spec));
    assert_eq!(outcome(&imported.profiles[0], "GET /", &[]), "500");
    let fault = &imported.notes[0].faults[0];
    assert_eq!(
        (fault.severity, fault.path.as_str()),
        (Severity::RuntimeFailure, "spec.rules[0].filters[0].extensionRef")
    );
}

#[test]
fn a_backend_that_redirects_does_so_for_its_share() {
    let spec = "rules:\n- backendRefs:\n  - {name: a, port: 80, weight: 1, filters: [{type: RequestRedirect, requestRedirect: {hostname: b.c}}]}\n  - {name: b, port: 80, weight: 3}\n";
    let imported = imported(&route("r", spec));
    let profile = &imported.profiles[0];
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..10_000 {
        *counts.entry(outcome(profile, "GET /", &[])).or_default() += 1;
    }
    assert_eq!(counts.len(), 2, "{counts:?}");
    assert!(counts["redirect 302"].abs_diff(2_500) < 250, "{counts:?}");
}

#[test]
fn what_gateway_api_forbids_is_refused_with_its_place() {
    let refused = |spec: &str, expected: &str| {
        let imported = imported(&route("r", spec));
        let all = faults(&imported);
        assert!(all.iter().any(|fault| fault.contains(expected)), "{spec}\n{all:#?}");
        assert!(imported.any_rejected() && imported.profiles.is_empty(), "{spec}");
    };
    refused("rules: [{matches: [{path: {type: Exact, value: 'a'}}]}]", "does not begin with `/`");
    refused("rules: [{matches: [{path: {type: RegularExpression, value: '('}}]}]", "unclosed group");
    refused(
        "rules: [{timeouts: {request: 1s, backendRequest: 2s}}]",
        "timeouts.backendRequest: is longer than `request` (1s)",
    );
    refused("rules: [{timeouts: {request: 1.5s}}]", "must be a duration");
    refused("hostnames: ['10.0.0.1']", "no address");
    refused("hostnames: ['a:80']", "must be a host name");
    refused("rules: [{retry: {codes: [200]}}]", "from 400 to 599");
    refused(
        "rules: [{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a}]}]",
        "redirects, and has backends",
    );
    refused(
        "rules: [{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}]",
        "replaces a prefix, and the rule does not match exactly one",
    );
    refused("rules: [{matchs: []}]", "did you mean `matches`?");
    refused("rules: [{filters: [{type: CORS, cors: {}}, {type: CORS, cors: {}}]}]", "stands twice");
    refused(&format!("rules: [{}]", vec!["{}"; 17].join(", ")), "17 items and 16 at most");
}

#[test]
fn retries_timeouts_and_sessions_keep_what_is_not_said() {
    let spec = "
rules:
- timeouts: {request: 0s, backendRequest: 1s}
  retry: {codes: [503], attempts: 2, backoff: 100ms}
  sessionPersistence: {sessionName: s, absoluteTimeout: 1h}
  backendRefs: [{name: a, port: 80}]
";
    let imported = imported(&route("r", spec));
    let route = &imported.profiles[0].routes[0];
    assert_eq!((route.timeouts.request, route.timeouts.idle), (Limit::Disabled, Limit::Unset));
    assert_eq!(route.timeouts.attempt, Limit::After(Duration::from_secs(1)));
    let retry = route.retry.as_ref().unwrap();
    assert_eq!((retry.attempts_max, &retry.on.statuses[..]), (Some(3), &[503..=503][..]));
    assert!(retry.on.connect_failure && retry.on.attempt_timeout && retry.idempotent);
    let backoff = retry.backoff.unwrap();
    let least = backoff.base.mul_f32(1.0 - backoff.jitter);
    assert!(least >= Duration::from_millis(100), "the wait is at least what is said");
    assert_eq!(route.session.as_ref().unwrap().absolute, Some(Duration::from_secs(3600)));
}

#[test]
fn a_consumers_routes_are_for_its_callers_and_replace_the_producers() {
    let producer = route("p", &format!("rules:\n{}", rule("", "producer")));
    let consumer =
        route("c", &format!("rules:\n{}", rule(&format!("{{{}}}", path("Exact", "/c")), "consumer")))
            .replace("namespace: n}", "namespace: callers}")
            .replace("name: web}", "name: web, namespace: n}");
    let all = imported(&format!("{producer}{consumer}"));
    let name = "web.n.svc.cluster.local";
    assert_eq!(outcome(profile(&all, name, "n"), "GET /c", &[]), "producer:1");
    let theirs = profile(&all, name, "callers");
    assert_eq!(
        (outcome(theirs, "GET /c", &[]), outcome(theirs, "GET /", &[])),
        ("consumer:1".into(), "none".into())
    );
    assert_eq!(theirs.no_match, NoMatch::NotFound);
    // Linkerd's own kind is merged with what the producer has.
    let linkerd = consumer.replace("gateway.networking.k8s.io/v1", "policy.linkerd.io/v1beta3");
    let all = imported(&format!("{producer}{linkerd}"));
    let theirs = profile(&all, name, "callers");
    assert_eq!(
        (outcome(theirs, "GET /c", &[]), outcome(theirs, "GET /", &[])),
        ("consumer:1".into(), "producer:1".into())
    );
}

#[test]
fn a_parents_port_makes_a_frontend_of_its_own() {
    let on_80 = route("a", &format!("rules:\n{}", rule(&format!("{{{}}}", path("Exact", "/a")), "a")))
        .replace("name: web}", "name: web, port: 80}");
    let on_all = route("b", &format!("rules:\n{}", rule("", "b")));
    let all = imported(&format!("{on_80}{on_all}"));
    let of = |name| profile(&all, name, "n");
    assert_eq!(outcome(of("web.n.svc.cluster.local:80"), "GET /a", &[]), "a:1");
    assert_eq!(outcome(of("web.n.svc.cluster.local:80"), "GET /b", &[]), "b:1");
    assert_eq!(outcome(of("web.n.svc.cluster.local"), "GET /a", &[]), "b:1");
    let alone = imported(&on_80);
    assert_eq!(alone.profiles.len(), 1, "other ports are called as they are");
}

#[test]
fn a_grpc_route_and_an_http_route_do_not_share_a_frontend() {
    let http = route("h", &format!("rules:\n{}", rule("", "http")));
    let grpc = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g, namespace: n}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - matches: [{method: {service: a.B}}]
    backendRefs: [{name: service, port: 80}]
  - matches: [{method: {service: a.B, method: C}}]
    backendRefs: [{name: method, port: 80}]
  - matches: [{method: {type: RegularExpression, service: 'a\\..*'}}]
    backendRefs: [{name: regex, port: 80}]
";
    let all = imported(&format!("{http}{grpc}"));
    let profile = profile(&all, "web.n.svc.cluster.local", "n");
    assert_eq!(outcome(profile, "POST /a.B/C", &[]), "method:1");
    assert_eq!(outcome(profile, "POST /a.B/D", &[]), "service:1");
    assert_eq!(outcome(profile, "POST /a.X/D", &[]), "regex:1");
    assert_eq!(outcome(profile, "GET /a.B/C", &[]), "none");
    assert!(faults(&all)[0].contains("is not applied beside GRPCRoute n/g"), "{:?}", faults(&all));
}

#[test]
fn a_profile_and_routes_for_one_service_both_count() {
    let http = route(
        "canary",
        "rules:\n- timeouts: {request: 1s}\n  backendRefs: [{name: a, port: 80, weight: 9}, {name: b, port: 80}]\n",
    );
    let profile_text = "
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: web.n.svc.cluster.local, namespace: n}
spec:
  retryBudget: {retryRatio: 0.5, minRetriesPerSecond: 1, ttl: 10s}
  routes:
  - name: GET /list
    condition: {method: GET, pathRegex: /list}
    isRetryable: true
    timeout: 300ms
";
    let all = imported(&format!("{http}{profile_text}"));
    assert_eq!(all.profiles.len(), 1);
    let merged = &all.profiles[0];
    let list = found(merged, "GET /list", &[]).unwrap();
    assert_eq!((&*list.name, outcome(merged, "GET /list", &[])), ("GET /list", "a:9 b:1".into()));
    assert!(list.retry.is_some());
    assert_eq!(list.timeouts.request, Limit::After(Duration::from_secs(1)));
    assert_eq!(list.timeouts.response_headers, Limit::After(Duration::from_millis(300)));
    let other = found(merged, "GET /other", &[]).unwrap();
    assert_eq!((&*other.name, other.retry.is_some()), ("canary", false));
    let budget =
        BudgetSettings::Windowed { ratio_ppm: 500_000, min_per_second: 1, ttl: Duration::from_secs(10) };
    assert_eq!(merged.retry_budget, Some(budget));
    assert_eq!(merged.no_match, NoMatch::NotFound);
}

#[test]
fn linkerds_annotations_set_a_services_and_a_routes_retries() {
    let service = "
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: n
  annotations: {retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: '2', timeout.linkerd.io/request: 5s, balancer.linkerd.io/failure-accrual: consecutive}
spec: {ports: [{port: 80}]}
---
";
    let all = imported(service);
    let web = profile(&all, "web.n.svc.cluster.local", "n");
    assert_eq!(web.retry.as_ref().unwrap().attempts_max, Some(3));
    assert_eq!(web.timeouts.request, Limit::After(Duration::from_secs(5)));
    assert!(web.breaker.is_some() && web.no_match == NoMatch::Forward);
    let annotated = route("r", "rules: [{backendRefs: [{name: web, port: 80}]}]").replace(
        "namespace: n}",
        "namespace: n, annotations: {timeout.linkerd.io/idle: 1s, retry.linkerd.io/limit: '1'}}",
    );
    let all = imported(&format!("{service}{annotated}"));
    let route = &all.profiles[0].routes[0];
    assert_eq!(
        (route.timeouts.idle, route.timeouts.request),
        (Limit::After(Duration::from_secs(1)), Limit::Unset)
    );
    assert_eq!(route.retry.as_ref().unwrap().on.statuses, [], "a route's retries replace the service's");
    // A bad one drops all of its kind on a service, and refuses a route.
    let all = imported(&service.replace("'2'", "'-1'"));
    assert!(all.profiles[0].retry.is_none() && all.profiles[0].breaker.is_some());
    assert!(faults(&all)[0].contains("retry.linkerd.io/limit"), "{:?}", faults(&all));
    assert!(imported(&annotated.replace("'1'", "'-1'")).any_rejected());
}

#[test]
fn linkerds_own_routes_send_what_has_no_backend_to_the_parent_and_need_no_grant() {
    let own =
        |spec: &str| route("r", spec).replace("gateway.networking.k8s.io/v1", "policy.linkerd.io/v1beta2");
    check(&own("rules: [{timeouts: {request: 1s}}]"), &[("GET /", &[], "")]);
    let far = own("rules: [{backendRefs: [{name: far, namespace: m, port: 80}]}]");
    check(&format!("{SERVICES}{far}"), &[("GET /", &[], "far:1")]);
}

#[test]
fn a_split_goes_by_weight_and_only_what_matches_is_split() {
    let split = |more: &str| {
        format!(
            "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: s, namespace: n}}\nspec:\n  \
             service: web\n  backends: [{{service: a, weight: 100m}}, {{service: b.m, weight: 900m}}]\n{more}---\n"
        )
    };
    let all = imported(&split(""));
    let backends: Vec<_> = all.profiles[0]
        .backends
        .iter()
        .map(|backend| match &backend.backend {
            Backend::Service { name, .. } => (name.to_string(), backend.weight),
            invalid => panic!("{invalid:?}"),
        })
        .collect();
    assert_eq!(backends, [("a.n.svc.cluster.local".into(), 100), ("b.m.svc.cluster.local".into(), 900)]);
    let group = "
kind: HTTPRouteGroup
metadata: {name: g, namespace: n}
spec:
  matches:
  - {name: api, pathRegex: /api, methods: ['*']}
  - {name: phone, headers: {user-agent: '.*iPhone.*'}, methods: [GET, HEAD]}
";
    let all = imported(&format!("{}{group}", split("  matches: [{kind: HTTPRouteGroup, name: g}]\n")));
    assert_eq!(faults(&all), [""; 0]);
    let web = &all.profiles[0];
    for (head, headers, expected) in [
        ("DELETE /api/x", &[][..], "a:100 b:900"),
        ("GET /x", &["user-agent: my iPhone 7"], "a:100 b:900"),
        ("POST /x", &["user-agent: my iPhone 7"], "none"),
        ("GET /v1/api", &[], "none"),
    ] {
        assert_eq!(outcome(web, head, headers), expected, "{head}");
    }
    assert_eq!(web.no_match, NoMatch::Forward, "the rest goes to the root service itself");
}

#[test]
fn a_split_that_fails_over_asks_the_first_usable_backend() {
    let split = |annotation: &str, backends: &str| {
        let text = format!(
            "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\n\
             metadata:\n  name: s\n  namespace: ns\n  labels: {{failover.linkerd.io/controlled-by: linkerd-failover}}\n  \
             annotations: {{{annotation}}}\nspec:\n  service: web\n  backends: {backends}\n"
        );
        let imported = imported(&text);
        let Action::Forward(forward) = &imported.profiles[0].routes[0].action else { panic!() };
        assert_eq!(forward.choice, Choice::FirstAvailable);
        let names = forward.backends.iter().map(|one| match &one.backend {
            Backend::Service { name, .. } => {
                format!("{}={}", name.host().split('.').next().unwrap(), one.weight)
            }
            Backend::Invalid { .. } => panic!(),
        });
        (names.collect::<Vec<_>>(), faults(&imported))
    };
    let two = "[{service: web-b, weight: 0}, {service: web-a, weight: 1}]";
    assert_eq!(split("", two), (vec!["web-b=1".to_owned(), "web-a=1".to_owned()], vec![]));
    let named = split("failover.linkerd.io/primary-service: web-a", two);
    assert_eq!(named, (vec!["web-a=1".to_owned(), "web-b=1".to_owned()], vec![]));
    let (names, told) = split("failover.linkerd.io/primary-service: web-c", two);
    assert_eq!((names[0].as_str(), told.len()), ("web-b=1", 1));
    let three = "[{service: a, weight: 1}, {service: b, weight: 0}, {service: c, weight: 0}]";
    let (_, told) = split("", three);
    assert!(told[0].contains("approximated") && told[0].contains("several fallbacks"), "{told:?}");
}

const EGRESS: &str = "apiVersion: policy.linkerd.io/v1alpha1\nkind: EgressNetwork\nmetadata: {name: all, namespace: ns}\n\
                      spec: {trafficPolicy: Allow}\n";

fn egress_route(hosts: &str, backends: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: out, namespace: ns}}\n\
         spec:\n  parentRefs: [{{group: policy.linkerd.io, kind: EgressNetwork, name: all, port: 80}}]\n  hostnames: {hosts}\n  \
         rules:\n  - matches: [{{path: {{value: /v1}}}}]\n    backendRefs: {backends}\n    timeouts: {{request: 2s}}\n"
    )
}

#[test]
fn routes_of_an_egress_network_are_for_the_hosts_they_name() {
    let itself = "[{group: policy.linkerd.io, kind: EgressNetwork, name: all}]";
    for backends in ["[]", itself] {
        let imported = imported(&(EGRESS.to_owned() + &egress_route("[api.example.com]", backends)));
        assert_eq!(faults(&imported), [""; 0]);
        let [profile] = imported.profiles.as_slice() else { panic!("{:?}", imported.profiles) };
        assert_eq!(profile.names[0].to_string(), "api.example.com:80");
        assert_eq!((profile.namespace.as_deref(), profile.no_match), (Some("ns"), NoMatch::Forward));
        let Action::Forward(forward) = &profile.routes[0].action else { panic!() };
        assert!(forward.backends.is_empty(), "it goes where it was going");
        assert_eq!(profile.routes[0].timeouts.request.duration(), Some(Duration::from_secs(2)));
    }
    let elsewhere =
        imported(&(EGRESS.to_owned() + &egress_route("[api.example.com]", "[{name: gate, port: 80}]")));
    let Action::Forward(forward) = &elsewhere.profiles[0].routes[0].action else { panic!() };
    assert!(matches!(&forward.backends[0].backend, Backend::Service { .. }));
}

#[test]
fn annotations_of_an_egress_network_are_for_the_hosts_of_its_routes() {
    let annotations = "annotations: {retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: '3', timeout.linkerd.io/request: 9s, \
                       balancer.linkerd.io/failure-accrual: consecutive}";
    let annotated = EGRESS.replace("name: all,", &format!("name: all, {annotations},"));
    let imported = imported(&(annotated.clone() + &egress_route("[api.example.com]", "[]")));
    assert_eq!(faults(&imported), [""; 0]);
    let profile = &imported.profiles[0];
    assert_eq!(profile.retry.as_ref().unwrap().attempts_max, Some(4));
    assert_eq!(profile.timeouts.request.duration(), Some(Duration::from_secs(9)));
    assert!(profile.breaker.is_some());
    let told = faults(&self::imported(&annotated));
    assert!(told[0].contains("ignored: metadata.annotations: have no effect"), "{told:?}");
    let told = faults(&self::imported(&(annotated.replace("9s", "nine") + &egress_route("[a.test]", "[]"))));
    assert!(told[0].contains("metadata.annotations[\"timeout.linkerd.io/request\"]"), "{told:?}");
}

#[test]
fn what_of_an_egress_network_would_be_passed_by_is_refused() {
    for hosts in ["[]", "['*.example.com']"] {
        let imported = imported(&(EGRESS.to_owned() + &egress_route(hosts, "[]")));
        assert!(imported.any_rejected() && imported.profiles.is_empty(), "{hosts}: {:?}", imported.notes);
    }
    let deny = EGRESS.replace("Allow", "Deny") + &egress_route("[api.example.com]", "[]");
    let imported = imported(&deny);
    assert!(faults(&imported)[0].contains("spec.trafficPolicy: is Deny"), "{:?}", faults(&imported));
    let last = imported.profiles[0].routes.last().unwrap();
    assert!(
        matches!(&last.action, Action::Respond(respond) if respond.status == 403 && respond.grpc == Some(7))
    );
    let networks =
        EGRESS.replace("trafficPolicy", "networks: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}], trafficPolicy");
    assert!(faults(&self::imported(&networks))[0].contains("approximated: spec.networks"));
}

#[test]
fn linkerds_load_biaser_is_what_balancers_here_do_anyway() {
    let annotated = |annotations: &str| {
        faults(&imported(&format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: ns\n  annotations: {{{annotations}}}\n\
             spec: {{ports: [{{port: 80}}]}}\n"
        )))
    };
    let key = "balancer.alpha.linkerd.io/";
    assert!(annotated(&format!("{key}penalize-failures: 'true'"))[0].contains("approximated"));
    assert_eq!(annotated(&format!("{key}penalize-failures: 'false'")), [""; 0]);
    assert!(annotated(&format!("{key}penalize-failures: maybe"))[0].contains("ignored"));
    assert!(annotated(&format!("{key}load-biaser-penalty: 60d"))[0].contains("ignored"));
}

#[test]
fn what_is_not_understood_is_said_and_never_dropped() {
    let say = |text: &str| faults(&imported(text));
    assert_eq!(say("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"), [""; 0]);
    assert!(say("apiVersion: x.io/v1\nkind: Thing\nmetadata: {name: a}\n")[0].contains("says nothing here"));
    assert!(
        say("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRout\nmetadata: {name: a}\n")[0]
            .contains("did you mean `HTTPRoute`?")
    );
    assert!(
        say("apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {name: a}\n")[0]
            .contains("access control")
    );
    assert!(say("5\n")[0].contains("is missing"));
    assert!(!say("a: [\n").is_empty());
    let unattached =
        route("r", "").replace("group: '', kind: Service, name: web", "group: x.io, kind: Mesh, name: web");
    assert!(say(&unattached)[0].contains("no parent that is served here"), "{:?}", say(&unattached));
}

/// Documents with nearly every field of every kind.
fn rich() -> String {
    let more = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: n}
spec:
  gatewayClassName: c
  listeners:
  - {name: a, port: 80, protocol: HTTP, hostname: '*.a.com', allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {x: z}}}, kinds: [{kind: HTTPRoute}]}}
  - {name: b, port: 443, protocol: HTTPS, tls: {mode: Terminate}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: t, namespace: n}
spec:
  targetRefs: [{group: '', kind: Service, name: good, sectionName: http}]
  validation: {wellKnownCACertificates: System, hostname: a.com, subjectAltNames: [{type: URI, uri: spiffe://a/b}]}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: {name: x, namespace: n}
spec:
  targetRefs: [{group: '', kind: Service, name: good}]
  retryConstraint: {budget: {percent: 30, interval: 20s}, minRetryRate: {count: 5, interval: 2s}}
---
";
    let spec = "
hostnames: ['x.a.com', '*.b.com']
rules:
- name: first
  matches: [{path: {type: PathPrefix, value: /a}, method: GET, headers: [{name: h, value: v, type: RegularExpression}], queryParams: [{name: q, value: v}]}]
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}}
  - {type: URLRewrite, urlRewrite: {hostname: h.i, path: {type: ReplacePrefixMatch, replacePrefixMatch: /z}}}
  - {type: RequestMirror, requestMirror: {backendRef: {name: good, port: 80}, fraction: {numerator: 1, denominator: 3}}}
  - {type: CORS, cors: {allowOrigins: ['https://*.a.com'], allowMethods: [GET], maxAge: 3}}
  timeouts: {request: 10s, backendRequest: 1s}
  retry: {codes: [500], attempts: 2, backoff: 10ms}
  sessionPersistence: {sessionName: s, type: Cookie, cookieConfig: {lifetimeType: Session}}
  backendRefs: [{name: good, port: 80, weight: 1}, {name: far, namespace: m, port: 80, filters: [{type: RequestRedirect, requestRedirect: {port: 1}}]}]
";
    let on_gateway =
        route("g", spec).replace("group: '', kind: Service, name: web", "name: gw, sectionName: a");
    let split = "kind: TrafficSplit\nmetadata: {name: s, namespace: n}\nspec: {service: web, backends: [{service: a, weight: 1}], matches: [{kind: HTTPRouteGroup, name: g}]}\n---\n";
    let egress = format!("{EGRESS}{}---\n", egress_route("[api.example.com]", "[]"));
    let failover = "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: f, namespace: m, labels: {failover.linkerd.io/controlled-by: linkerd-failover}}\nspec: {service: far, backends: [{service: a, weight: 1}, {service: b, weight: 0}]}\n---\n";
    format!("{SERVICES}{more}{egress}{failover}{}{on_gateway}{split}", route("r", spec))
}

#[test]
fn nearly_every_field_is_understood() {
    let all = imported(&rich());
    assert!(!all.any_rejected(), "{:#?}", faults(&all));
    assert!(all.profiles.len() >= 3);
    let budget =
        BudgetSettings::Windowed { ratio_ppm: 300_000, min_per_second: 2, ttl: Duration::from_secs(20) };
    assert_eq!(profile(&all, "good.n.svc.cluster.local", "n").retry_budget, Some(budget));
}

/// `text` with some of its characters and lines changed.
fn mutated(text: &str, changes: &[(usize, u8, usize)]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (at, kind, with) in changes {
        let count = lines.len().max(1);
        let (at, other) = (at % count, with % count);
        match kind % 6 {
            0 => drop(lines.get(at).is_some().then(|| lines.remove(at))),
            1 => lines.insert(at, lines.get(other).cloned().unwrap_or_default()),
            2 => lines.swap(at.min(count - 1), other.min(count - 1)),
            3 => {
                lines[at] =
                    lines[at].replace(['1', '/', '\'', '{'], ["0", "-1", ":", "\u{e9}", "["][with % 5])
            }
            4 => {
                let cut = lines[at].char_indices().nth(with % 40).map(|(index, _)| index);
                lines[at].truncate(cut.unwrap_or(usize::MAX));
            }
            _ => {
                let words: Vec<String> = lines[other].split([' ', ',', ':']).map(str::to_owned).collect();
                let word = words.get(with % words.len().max(1)).cloned().unwrap_or_default();
                lines[at].push_str(&word);
            }
        }
    }
    lines.join("\n")
}

/// Words that mean something somewhere.
const WORDS: &[&str] = &[
    "",
    "/",
    "/a",
    "GET",
    "*",
    "Exact",
    "PathPrefix",
    "RegularExpression",
    "(",
    "web",
    "ns",
    "80",
    "0s",
    "1h",
    "-1",
    "Service",
    "EgressNetwork",
    "Gateway",
    "HTTPRouteGroup",
    "ServiceAccount",
    "IdentityBinding",
    "TCPRoute",
    "RequestMirror",
    "CORS",
    "URLRewrite",
    "RequestRedirect",
    "ReplaceFullPath",
    "Deny",
    "Allow",
    "true",
    "5xx",
    "a.b.c",
    "*.a.com",
    "policy.linkerd.io",
];
/// Keys that do.
const KEYS: &[&str] = &[
    "parentRefs",
    "hostnames",
    "rules",
    "matches",
    "path",
    "type",
    "value",
    "headers",
    "queryParams",
    "method",
    "filters",
    "backendRefs",
    "name",
    "namespace",
    "port",
    "weight",
    "kind",
    "group",
    "timeouts",
    "request",
    "retry",
    "codes",
    "attempts",
    "service",
    "backends",
    "pathRegex",
    "methods",
    "spec",
    "destination",
    "sources",
    "specs",
    "schemes",
    "spiffeIdentities",
    "serviceAccount",
    "ports",
    "networks",
    "cidr",
    "trafficPolicy",
    "listeners",
    "protocol",
    "allowedRoutes",
    "from",
    "to",
    "targetRefs",
    "validation",
    "caCertificateRefs",
    "hostname",
    "requestMirror",
    "cors",
    "urlRewrite",
    "requestRedirect",
    "replaceFullPath",
    "percent",
    "fraction",
    "sessionPersistence",
    "sessionName",
    "cookieConfig",
    "lifetimeType",
    "annotations",
];
/// A value made of words that mean something somewhere.
fn anything() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        prop::sample::select(WORDS).prop_map(|word| json!(word)),
        any::<i64>().prop_map(|number| json!(number)),
        any::<bool>().prop_map(|is| json!(is)),
        Just(Value::Null),
        ".{0,8}".prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(prop::sample::select(KEYS).prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Every kind that is imported.
const KINDS: &[(&str, &str)] = &[
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("gateway.networking.k8s.io/v1", "ListenerSet"),
    ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant"),
    ("gateway.networking.k8s.io/v1", "BackendTLSPolicy"),
    ("gateway.networking.x-k8s.io/v1alpha1", "XBackendTrafficPolicy"),
    ("policy.linkerd.io/v1beta3", "HTTPRoute"),
    ("policy.linkerd.io/v1alpha1", "EgressNetwork"),
    ("linkerd.io/v1alpha2", "ServiceProfile"),
    ("enmesh.dev/v1", "ServiceProfile"),
    ("split.smi-spec.io/v1alpha4", "TrafficSplit"),
    ("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup"),
    ("specs.smi-spec.io/v1alpha4", "TCPRoute"),
    ("access.smi-spec.io/v1alpha3", "TrafficTarget"),
    ("access.smi-spec.io/v1alpha4", "IdentityBinding"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_tree_makes_it_panic_whatever_its_kind(
        trees in prop::collection::vec((prop::sample::select(KINDS), anything()), 1..6)
    ) {
        let objects: Vec<String> = trees
            .into_iter()
            .map(|((version, kind), spec)| serde_json::json!({
                "apiVersion": version, "kind": kind, "metadata": {"name": "web", "namespace": "ns"}, "spec": spec,
            }).to_string())
            .collect();
        let text = objects.join("\n---\n");
        for profile in &imported(&text).profiles {
            let matcher = Matcher::compile(profile.routes.iter().map(|route| &route.condition));
            prop_assert!(matcher.is_ok(), "{:?}", matcher.err());
            let _ = profile.to_gateway_api(Some(80), "cluster.local");
            let _ = profile.to_linkerd();
        }
        let (targets, _) = enmesh::authz::smi::TrafficTargets::read(&enmesh::profile::object::read(&text, "t"), "ns");
        let workload = enmesh::authz::smi::Workload { namespace: "ns".into(), account: "web".into(), port: 80, ..Default::default() };
        let settings = targets.compile(&workload, None).settings;
        prop_assert!(enmesh::authz::rules::AuthzPolicy::compile(&settings).is_ok());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_document_makes_it_panic_and_what_loads_compiles(
        changes in prop::collection::vec((any::<usize>(), any::<u8>(), any::<usize>()), 1..8)
    ) {
        let all = imported(&mutated(&rich(), &changes));
        for profile in &all.profiles {
            prop_assert!(!profile.names.is_empty());
            let matcher = Matcher::compile(profile.routes.iter().map(|route| &route.condition));
            prop_assert!(matcher.is_ok(), "{:?}", matcher.err());
        }
    }
}
