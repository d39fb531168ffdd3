//! Linkerd's policy documents, as a cluster has them, against requests.

use enmesh::authz::client::Client;
use enmesh::authz::linkerd::compile::Cluster;
use enmesh::authz::linkerd::compile::Inbound;
use enmesh::authz::linkerd::compile::Workload;
use enmesh::authz::linkerd::words::Access;
use enmesh::authz::linkerd::words::Documents;
use enmesh::authz::linkerd::words::Speaks;
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::Action;
use enmesh::authz::settings::IdentityMatch;
use enmesh::authz::settings::NetworkMatch;
use enmesh::authz::settings::RateSettings;
use enmesh::profile::object;
use enmesh::route::head::RequestHead;
use enmesh::tls::identity::PeerIdentity;
use http::Request;
use std::collections::BTreeMap;
use std::time::SystemTime;

fn net(text: &str) -> NetworkMatch {
    NetworkMatch { cidr: text.parse().unwrap(), except: Vec::new() }
}

fn workload() -> Workload {
    Workload {
        namespace: "prod".into(),
        labels: BTreeMap::from([("app".to_owned(), "api".to_owned())]),
        port: 8080,
        port_name: Some("http".to_owned()),
        probe_paths: vec!["/healthz".to_owned()],
    }
}

fn import(text: &str, default: Access) -> Inbound {
    let (documents, faults) = Documents::read(&object::read(text, "policy.yaml"), "prod");
    let cluster = Cluster {
        trust_domain: "cluster.local".parse().unwrap(),
        networks: vec![net("10.0.0.0/8")],
        probe_networks: vec![net("10.9.0.0/16")],
        default,
    };
    let mut inbound = documents.compile(&workload(), &cluster);
    inbound.faults.splice(0..0, faults);
    inbound
}

/// Who asks.
#[derive(Clone, Copy)]
enum By<'a> {
    /// A service account `name.namespace` of the cluster.
    Account(&'a str),
    /// A SPIFFE ID.
    Spiffe(&'a str),
    /// Nobody known, from this address.
    Address(&'a str),
}

fn decide(inbound: &Inbound, by: By<'_>, request: &str) -> (Action, String) {
    let policy = AuthzPolicy::compile(&inbound.settings).unwrap();
    let (method, uri) = request.split_once(' ').unwrap();
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let name = match by {
        By::Account(name) => Some(format!("{name}.serviceaccount.identity.linkerd.cluster.local")),
        By::Spiffe(id) => Some(id.to_owned()),
        By::Address(_) => None,
    };
    let peer = name.map(|name| {
        let identity: enmesh::tls::identity::Identity = name.parse().unwrap();
        let trust_domain = identity.trust_domain().unwrap().parse().unwrap();
        PeerIdentity { identity, trust_domain, not_after: SystemTime::UNIX_EPOCH }
    });
    let address = if let By::Address(address) = by { address } else { "10.1.1.1" };
    let client = Client { peer: peer.as_ref(), address: Some(address.parse().unwrap()) };
    let decision = policy.decide(&RequestHead::of_request(&request), &client);
    (decision.action, decision.rule.to_string())
}

fn check(inbound: &Inbound, by: By<'_>, request: &str, action: Action, rule: &str) {
    assert_eq!(decide(inbound, by, request), (action, rule.to_owned()), "{request}; {:#?}", inbound.faults);
}

const SERVER: &str = r#"
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: api, namespace: prod, labels: {tier: backend}}
spec:
  podSelector: {matchLabels: {app: api}}
  port: http
  proxyProtocol: HTTP/2
"#;

#[test]
fn without_a_server_the_default_policy_decides() {
    let (inside, outside) = (By::Address("10.1.1.1"), By::Address("8.8.8.8"));
    let account = By::Account("web.prod");
    let stranger = By::Spiffe("spiffe://other.example/web");
    for (default, of_account, of_inside, of_outside, of_stranger) in [
        (Access::AllUnauthenticated, true, true, true, true),
        (Access::AllAuthenticated, true, false, false, false),
        (Access::ClusterAuthenticated, true, false, false, false),
        (Access::ClusterUnauthenticated, true, true, false, true),
        (Access::Deny, false, false, false, false),
    ] {
        let inbound = import("", default);
        for (by, right) in
            [(account, of_account), (inside, of_inside), (outside, of_outside), (stranger, of_stranger)]
        {
            let action = decide(&inbound, by, "GET /").0;
            assert_eq!(action == Action::Allow, right, "{default:?} {action:?}");
        }
        // Probes are let in all the same, from where probes come.
        check(&inbound, By::Address("10.9.0.1"), "GET /healthz", Action::Allow, "probe");
    }
    check(&import("", Access::Audit), outside, "GET /", Action::Audit, "default");
}

#[test]
fn a_server_denies_whom_no_policy_lets_in() {
    let inbound = import(SERVER, Access::AllUnauthenticated);
    assert_eq!(inbound.speaks, Speaks::Http2);
    check(&inbound, By::Account("web.prod"), "GET /", Action::Deny, "default");
    check(&inbound, By::Address("10.9.0.1"), "GET /healthz", Action::Allow, "probe");
    check(&inbound, By::Address("10.1.0.1"), "GET /healthz", Action::Deny, "default");
    check(&inbound, By::Address("10.9.0.1"), "POST /healthz", Action::Deny, "default");
    let open = format!("{SERVER}  accessPolicy: all-authenticated\n");
    check(
        &import(&open, Access::Deny),
        By::Account("a.b"),
        "GET /",
        Action::Allow,
        "default:all-authenticated",
    );
    let audit = format!("{SERVER}  accessPolicy: audit\n");
    check(&import(&audit, Access::Deny), By::Address("8.8.8.8"), "GET /", Action::Audit, "default");
    // Another port, another workload, another namespace: not this server.
    for change in
        [("port: http", "port: 9090"), ("app: api", "app: web"), ("namespace: prod", "namespace: dev")]
    {
        let other = SERVER.replace(change.0, change.1);
        check(
            &import(&other, Access::AllUnauthenticated),
            By::Address("8.8.8.8"),
            "GET /",
            Action::Allow,
            "default:all-unauthenticated",
        );
    }
}

#[test]
fn a_policy_lets_in_who_proves_all_that_it_requires() {
    let text = format!(
        r#"{SERVER}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: friends, namespace: prod}}
spec:
  targetRef: {{group: policy.linkerd.io, kind: Server, name: api}}
  requiredAuthenticationRefs:
  - {{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: friends}}
  - {{group: policy.linkerd.io, kind: NetworkAuthentication, name: cluster}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: {{name: friends, namespace: prod}}
spec:
  identities: ["*.batch.serviceaccount.identity.linkerd.cluster.local", "spiffe://cluster.local/vm/1"]
  identityRefs:
  - {{kind: ServiceAccount, name: web}}
  - {{kind: Namespace, name: tools}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: NetworkAuthentication
metadata: {{name: cluster, namespace: prod}}
spec: {{networks: [{{cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}]}}
"#
    );
    let inbound = import(&text, Access::Deny);
    assert_eq!(inbound.faults, []);
    for name in ["web.prod", "any.batch", "x.tools"] {
        check(&inbound, By::Account(name), "GET /", Action::Allow, "friends");
    }
    check(&inbound, By::Spiffe("spiffe://cluster.local/vm/1"), "GET /", Action::Allow, "friends");
    for name in ["web.dev", "webx.prod", "batch.prod"] {
        check(&inbound, By::Account(name), "GET /", Action::Deny, "default");
    }
    check(&inbound, By::Address("10.1.1.1"), "GET /", Action::Deny, "default");
    check(&inbound, By::Spiffe("spiffe://evil.example/vm/1"), "GET /", Action::Deny, "default");

    // A reference that leads nowhere lets nobody in, and is told.
    let broken = text.replace("kind: NetworkAuthentication\nmetadata", "kind: Other\nmetadata");
    let inbound = import(&broken, Access::Deny);
    check(&inbound, By::Account("web.prod"), "GET /", Action::Deny, "default");
    assert!(
        inbound.faults.iter().any(|fault| fault.to_string().contains("prod/cluster")),
        "{:?}",
        inbound.faults
    );
}

#[test]
fn routes_have_their_own_policies_and_what_matches_none_is_not_found() {
    let text = format!(
        r#"{SERVER}
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {{name: read, namespace: prod}}
spec:
  parentRefs: [{{group: policy.linkerd.io, kind: Server, name: api}}]
  rules:
  - matches: [{{path: {{value: /}}, method: GET}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: admin, namespace: prod}}
spec:
  parentRefs: [{{group: policy.linkerd.io, kind: Server, name: api}}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: /admin}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: vote, namespace: prod}}
spec:
  parentRefs: [{{group: policy.linkerd.io, kind: Server, name: api}}]
  rules:
  - matches: [{{method: {{service: a.Voting, method: Vote}}}}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: readers, namespace: prod}}
spec:
  targetRef: {{group: policy.linkerd.io, kind: HTTPRoute, name: read}}
  requiredAuthenticationRefs: [{{kind: ServiceAccount, name: reader}}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: voters, namespace: prod}}
spec:
  targetRef: {{group: gateway.networking.k8s.io, kind: GRPCRoute, name: vote}}
  requiredAuthenticationRefs: [{{kind: ServiceAccount, name: voter}}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: operators, namespace: prod}}
spec:
  targetRef: {{group: policy.linkerd.io, kind: Server, name: api}}
  requiredAuthenticationRefs: [{{kind: ServiceAccount, name: operator}}]
"#
    );
    let inbound = import(&text, Access::Deny);
    assert_eq!(inbound.faults, []);
    check(&inbound, By::Account("reader.prod"), "GET /x", Action::Allow, "readers");
    check(&inbound, By::Account("reader.prod"), "GET /admin", Action::Deny, "route admin");
    check(&inbound, By::Account("reader.prod"), "POST /x", Action::NotFound, "default");
    check(&inbound, By::Account("operator.prod"), "GET /admin/x", Action::Allow, "operators");
    check(&inbound, By::Account("operator.prod"), "POST /x", Action::NotFound, "default");
    check(&inbound, By::Account("voter.prod"), "POST /a.Voting/Vote", Action::Allow, "voters");
    check(&inbound, By::Account("reader.prod"), "POST /a.Voting/Vote", Action::Deny, "route vote");
}

#[test]
fn documents_with_faults_never_let_more_in() {
    // A server that cannot be read: what it would have refused is unknown.
    let broken = SERVER.replace("proxyProtocol", "proxyProtocl");
    let inbound = import(&broken, Access::AllUnauthenticated);
    check(&inbound, By::Account("web.prod"), "GET /", Action::Deny, "default");
    assert!(inbound.faults[0].to_string().contains("did you mean `proxyProtocol`"), "{}", inbound.faults[0]);

    // An exception of a network that cannot be read takes the whole document with it.
    let text = format!(
        r#"{SERVER}
---
apiVersion: policy.linkerd.io/v1beta1
kind: ServerAuthorization
metadata: {{name: old, namespace: prod}}
spec:
  server: {{selector: {{matchLabels: {{tier: backend}}}}}}
  client:
    networks: [{{cidr: 10.0.0.0/8, except: [10.2.0.0/99]}}]
    unauthenticated: true
"#
    );
    check(&import(&text, Access::Deny), By::Address("10.1.1.1"), "GET /", Action::Deny, "default");
    let right = text.replace("/99", "/16");
    check(&import(&right, Access::Deny), By::Address("10.1.1.1"), "GET /", Action::Allow, "old");
    check(&import(&right, Access::Deny), By::Address("10.2.1.1"), "GET /", Action::Deny, "default");
    let mesh = right.replace("unauthenticated: true", "meshTLS: {serviceAccounts: [{name: web}], identities: [\"*.tools.serviceaccount.identity.linkerd.cluster.local\"]}");
    let inbound = import(&mesh, Access::Deny);
    check(&inbound, By::Account("web.prod"), "GET /", Action::Allow, "old");
    check(&inbound, By::Account("x.tools"), "GET /", Action::Allow, "old");
    check(&inbound, By::Account("api.prod"), "GET /", Action::Deny, "default");
    check(&inbound, By::Address("10.1.1.1"), "GET /", Action::Deny, "default");
}

#[test]
fn rate_limits_are_read_and_must_fit_into_each_other() {
    let text = |total: u32| {
        format!(
            r#"{SERVER}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {{name: r, namespace: prod}}
spec:
  targetRef: {{group: policy.linkerd.io, kind: Server, name: api}}
  total: {{requestsPerSecond: {total}}}
  identity: {{requestsPerSecond: 5}}
  overrides:
  - requestsPerSecond: 10
    clientRefs: [{{kind: ServiceAccount, name: batch, namespace: tools}}]
"#
        )
    };
    let rates = import(&text(35), Access::Deny).settings.rates;
    assert_eq!((&*rates.name, rates.total, rates.identity), ("r", Some(35), Some(5)));
    let batch = IdentityMatch::ServiceAccount { namespace: "tools".into(), name: "batch".into() };
    assert_eq!(rates.overrides, [(10, vec![batch])]);
    let inbound = import(&text(7), Access::Deny);
    assert!(
        inbound.settings.rates == RateSettings::default() && inbound.faults[0].to_string().contains("total"),
        "{:?}",
        inbound.faults
    );
}
