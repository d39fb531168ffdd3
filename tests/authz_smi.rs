//! SMI's access control: what its documents allow, version by version.

#[path = "support/corpus.rs"]
mod support;

use enmesh::authz::client::Client;
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::Action;
use enmesh::authz::smi::{TrafficTargets, Workload};
use enmesh::profile::object;
use enmesh::route::head::RequestHead;
use enmesh::tls::identity::PeerIdentity;
use http::Request;
use std::time::SystemTime;

const GROUP: &str = "
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: routes, namespace: shop}
spec:
  matches:
  - {name: read, methods: [GET, HEAD]}
  - {name: api, pathRegex: /api, methods: ['*'], headers: {x-version: '2'}}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {name: ports, namespace: shop}
spec: {matches: {ports: [8080]}}
";

fn target(rules: &str, sources: &str) -> String {
    format!(
        "{GROUP}---\napiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: t, namespace: shop}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: cart, namespace: shop}}\n  rules: {rules}\n  sources: {sources}\n"
    )
}

fn workload(account: &str, port: u16) -> Workload {
    Workload { namespace: "shop".into(), account: account.into(), port, ..Workload::default() }
}

fn read(text: &str) -> TrafficTargets {
    let (targets, faults) = TrafficTargets::read(&object::read(text, "f"), "shop");
    assert_eq!(faults, [], "{text}");
    targets
}

/// Whether a caller with this service account may send `request` to `to`.
fn allows(targets: &TrafficTargets, to: &Workload, from: &str, request: &str) -> bool {
    let domain = "cluster.local".parse().ok();
    let policy = AuthzPolicy::compile(&targets.compile(to, domain).settings).unwrap();
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut http = Request::builder().method(method).uri(format!("http://cart.shop{path}"));
    if let Some(version) = words.next() {
        http = http.header("x-version", version);
    }
    let http = http.body(()).unwrap();
    let (namespace, account) = from.split_once('/').unwrap();
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap();
    let peer = PeerIdentity {
        identity,
        trust_domain: "cluster.local".parse().unwrap(),
        not_after: SystemTime::UNIX_EPOCH,
    };
    let head = RequestHead::of_request(&http);
    let decision = policy.decide(&head, &Client { peer: Some(&peer), address: None });
    decision.action == Action::Allow
}

fn check(text: &str, to: &Workload, cases: &[(&str, &str, bool)]) {
    let targets = read(text);
    for (from, request, expected) in cases {
        assert_eq!(allows(&targets, to, from, request), *expected, "{from} {request}\n{text}");
    }
}

#[test]
fn a_target_allows_its_sources_what_its_rules_say_and_nobody_else() {
    let all = target(
        "[{kind: HTTPRouteGroup, name: routes}]",
        "[{kind: ServiceAccount, name: web, namespace: shop}]",
    );
    check(
        &all,
        &workload("cart", 80),
        &[
            ("shop/web", "GET /x", true),
            ("shop/web", "POST /x", false),
            ("shop/web", "POST /api/x 2", true),
            ("shop/web", "POST /x/api 2", false),
            ("shop/web", "POST /api/x 22", false),
            ("shop/other", "GET /x", false),
            ("other/web", "GET /x", false),
        ],
    );
    check(&all, &workload("other", 80), &[("shop/web", "GET /x", false)]);
    let named = target(
        "[{kind: HTTPRouteGroup, name: routes, matches: [api]}]",
        "[{kind: ServiceAccount, name: web, namespace: shop}, {kind: ServiceAccount, name: bot, namespace: ops}]",
    );
    check(
        &named,
        &workload("cart", 80),
        &[("shop/web", "GET /x", false), ("ops/bot", "GET /api 2", true), ("ops/web", "GET /api 2", false)],
    );
}

#[test]
fn ports_and_routes_both_must_hold() {
    let sources = "[{kind: ServiceAccount, name: web, namespace: shop}]";
    let both = target(
        "[{kind: TCPRoute, name: ports}, {kind: HTTPRouteGroup, name: routes, matches: [read]}]",
        sources,
    );
    check(&both, &workload("cart", 8080), &[("shop/web", "GET /", true), ("shop/web", "POST /", false)]);
    check(&both, &workload("cart", 80), &[("shop/web", "GET /", false)]);
    let ports = target("[{kind: TCPRoute, name: ports}]", sources);
    check(&ports, &workload("cart", 8080), &[("shop/web", "POST /", true)]);
    check(&ports, &workload("cart", 80), &[("shop/web", "POST /", false)]);
    check(&target("[]", sources), &workload("cart", 80), &[("shop/web", "GET /", false)]);
    check(
        &target("[{kind: UDPRoute, name: ports}]", sources),
        &workload("cart", 8080),
        &[("shop/web", "GET /", false)],
    );
}

#[test]
fn what_is_missing_or_refused_allows_nothing_and_is_told() {
    for rules in ["[{kind: HTTPRouteGroup, name: gone}]", "[{kind: TCPRoute, name: gone}]"] {
        let targets = read(&target(rules, "[{kind: ServiceAccount, name: web, namespace: shop}]"));
        let compiled = targets.compile(&workload("cart", 8080), None);
        assert_eq!((compiled.settings.rules.len(), compiled.faults.len()), (0, 1), "{rules}");
    }
    let bound = target("[{kind: TCPRoute, name: ports}]", "[{kind: IdentityBinding, name: gone}]");
    let compiled = read(&bound).compile(&workload("cart", 8080), None);
    assert!(compiled.faults[0].problem.contains("IdentityBinding shop/gone"), "{:?}", compiled.faults);
    assert!(!allows(&read(&bound), &workload("cart", 8080), "shop/web", "GET /"));
    let bad = target(
        "[{kind: HTTPRouteGroup, name: routes, machtes: [read]}]",
        "[{kind: ServiceAccount, name: web}]",
    );
    let (targets, faults) = TrafficTargets::read(&object::read(&bad, "f"), "shop");
    assert!(targets.is_empty() && faults.len() == 1, "{faults:?}");
}

#[test]
fn a_binding_stands_for_accounts_and_identities() {
    let binding = "---\napiVersion: access.smi-spec.io/v1alpha4\nkind: IdentityBinding\nmetadata: {name: b, namespace: ops}\n\
                   spec:\n  schemes:\n    serviceAccount: bot\n    spiffeIdentities: [cluster.local/ns/far/sa/away]\n    \
                   podLabelSelector: {matchLabels: {app: bot}}\n";
    let text =
        target("[{kind: TCPRoute, name: ports}]", "[{kind: IdentityBinding, name: b, namespace: ops}]")
            + binding;
    check(
        &text,
        &workload("cart", 8080),
        &[("ops/bot", "GET /", true), ("far/away", "GET /", true), ("shop/bot", "GET /", false)],
    );
    let to = text.replace(
        "kind: ServiceAccount, name: cart, namespace: shop",
        "kind: IdentityBinding, name: b, namespace: ops",
    );
    let ops = |account: &str| Workload { namespace: "ops".into(), ..workload(account, 8080) };
    check(&to, &ops("bot"), &[("ops/bot", "GET /", true)]);
    check(&to, &ops("else"), &[("ops/bot", "GET /", false)]);
    let mut labelled = ops("else");
    labelled.labels.insert("app".to_owned(), "bot".to_owned());
    check(&to, &labelled, &[("ops/bot", "GET /", true)]);
}

#[test]
fn the_first_version_had_no_spec() {
    let text = "apiVersion: specs.smi-spec.io/v1alpha1\nkind: HTTPRouteGroup\nmetadata: {name: routes}\nmatches: [{name: read, methods: [GET]}]\n---\n\
                apiVersion: access.smi-spec.io/v1alpha1\nkind: TrafficTarget\nmetadata: {name: t}\n\
                destination: {kind: ServiceAccount, name: cart, namespace: shop, port: 8080}\n\
                specs: [{kind: HTTPRouteGroup, name: routes, matches: [read]}]\n\
                sources: [{kind: ServiceAccount, name: web, namespace: shop}]\n";
    check(text, &workload("cart", 8080), &[("shop/web", "GET /", true), ("shop/web", "POST /", false)]);
    check(text, &workload("cart", 80), &[("shop/web", "GET /", false)]);
}

#[test]
fn every_access_document_of_the_corpus_is_read() {
    let Some(folder) = support::corpus("config/smi/extracted") else { return };
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().contains("traffic-access") {
            continue;
        }
        let objects = object::read(&std::fs::read_to_string(&path).unwrap(), "f");
        let (targets, faults) = TrafficTargets::read(&objects, "default");
        assert_eq!(faults, [], "{path:?}");
        let any = objects.iter().any(|object| object.kind == "TrafficTarget");
        assert_eq!(targets.is_empty(), !any, "{path:?}");
        read += 1;
    }
    assert!(read >= 6);
}
