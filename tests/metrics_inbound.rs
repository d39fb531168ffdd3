//! What arrives is counted by who sent it, on which route, and by which rule it was let in; and every request once.
#![cfg(all(feature = "http", feature = "prometheus", any(feature = "tls", feature = "ring")))]

use bytes::Bytes;
use enmesh::Mesh;
use enmesh::authz::settings::{Action, AuthzSettings, Clients, IdentityMatch, Origin, RuleSettings};
use enmesh::stdx::rng::Rng;
use enmesh::tls::identity::PeerIdentity;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::SystemTime;
use tower::{Layer, ServiceExt};

const PROFILE: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: api.ns.svc.cluster.local}
spec:
  routes:
  - name: even
    condition: {pathRegex: '/.*[02468]'}
";

fn peer(n: u64) -> PeerIdentity {
    PeerIdentity {
        identity: format!("spiffe://mesh.example/{n}").parse().unwrap(),
        trust_domain: "mesh.example".parse().unwrap(),
        not_after: SystemTime::UNIX_EPOCH,
    }
}

fn builder() -> enmesh::mesh::builder::MeshBuilder {
    Mesh::builder().name("api.ns:80").profile_yaml(PROFILE).dns(false)
}

/// Sends one request, and reads its response's body if `read`.
async fn send(mesh: &Mesh, at: Option<SocketAddr>, path: &str, from: Option<u64>, read: bool) {
    let app = tower::service_fn(|request: Request<Full<Bytes>>| async move {
        let status = if request.uri().path().contains("bad") { 500 } else { 200 };
        let response = Response::builder().status(status).body(Full::<Bytes>::from("x"));
        Ok::<_, Infallible>(response.unwrap())
    });
    let mut request = Request::get(format!("http://api.ns{path}")).body(Full::default()).unwrap();
    if let Some(from) = from {
        request.extensions_mut().insert(peer(from));
    }
    let response = mesh.inbound_at(at).layer(app).oneshot(request).await.unwrap();
    if read {
        response.into_body().collect().await.unwrap();
    }
}

/// The sum of all series of `family` that hold `text` in their labels.
fn sum(text: &str, family: &str, holding: &str) -> f64 {
    let of = |line: &&str| line.split(['{', ' ']).next() == Some(family) && line.contains(holding);
    text.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn labels_are_linkerds_and_what_a_policy_refuses_is_no_request_of_the_application() {
    let rule = |name: &str, action, who: u64| {
        let clients = Clients::Identity(IdentityMatch::Exact(peer(who).identity));
        RuleSettings::new(name, action, clients)
    };
    let settings = AuthzSettings {
        rules: vec![
            rule("friends", Action::Allow, 1).written_as(Origin::AuthorizationPolicy),
            rule("foes", Action::Deny, 2).written_as(Origin::ServerAuthorization),
        ],
        otherwise: Action::NotFound,
        server: Some("api-http".into()),
        ..AuthzSettings::default()
    };
    let mesh = builder().authorize(settings).build().unwrap();
    let at = Some("10.1.2.3:8080".parse().unwrap());
    send(&mesh, at, "/2", Some(1), true).await;
    send(&mesh, at, "/bad", Some(1), true).await;
    send(&mesh, at, "/2", Some(2), true).await;
    send(&mesh, at, "/2", None, true).await;
    let text = mesh.metrics_text().unwrap();
    let target = r#"target_addr="10.1.2.3:8080",target_ip="10.1.2.3",target_port="8080""#;
    let tls = |n: u32| format!(r#"tls="true",client_id="spiffe://mesh.example/{n}""#);
    let srv = r#"srv_group="policy.linkerd.io",srv_kind="server",srv_name="api-http",srv_port="80""#;
    let even = r#"route_group="linkerd.io",route_kind="ServiceProfile",route_name="even""#;
    let other = r#"route_group="",route_kind="default",route_name="http""#;
    let allow = r#"authz_group="policy.linkerd.io",authz_kind="authorizationpolicy",authz_name="friends""#;
    let deny = r#"authz_group="policy.linkerd.io",authz_kind="serverauthorization",authz_name="foes""#;
    let one = tls(1);
    let app = format!("direction=\"inbound\",authority=\"api.ns.svc.cluster.local:80\",{target},{one},{srv}");
    let end = |code, class| {
        format!("status_code=\"{code}\",classification=\"{class}\",grpc_status=\"\",error=\"\"")
    };
    for line in [
        format!("request_total{{{app},{even},{allow}}} 1"),
        format!("request_total{{{app},{other},{allow}}} 1"),
        format!("response_total{{{app},{even},{allow},{}}} 1", end(200, "success")),
        format!("response_total{{{app},{other},{allow},{}}} 1", end(500, "failure")),
        format!("response_latency_ms_count{{{app},{even},{allow}}} 1"),
        format!("inbound_http_authz_allow_total{{{target},{one},{srv},{even},{allow}}} 1"),
        format!("inbound_http_authz_deny_total{{{target},{},{srv},{even},{deny}}} 1", tls(2)),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
    assert_eq!(sum(&text, "inbound_http_route_not_found_total", "tls=\"disabled\""), 1.0);
    assert_eq!(sum(&text, "request_total", ""), 2.0, "the policy refused the others");
    assert_eq!(sum(&text, "route_request_total", "inbound"), 4.0, "they arrived nevertheless");
}

#[tokio::test]
async fn every_request_is_in_one_series_whoever_sent_it_and_callers_are_bounded() {
    let mesh = builder().build().unwrap();
    let rng = Rng::seeded(3);
    for n in 0..6000 {
        let from = (rng.below(10) > 0).then(|| rng.below(3000).into());
        let path = ["/2", "/3", "/bad"][rng.below(3) as usize];
        send(&mesh, None, path, from, n % 3 > 0).await;
    }
    let text = mesh.metrics_text().unwrap();
    let routes = sum(&text, "route_request_total", "inbound");
    assert_eq!((routes, sum(&text, "request_total", "")), (6000.0, 6000.0));
    for class in ["success", "failure"] {
        let class = format!("classification=\"{class}\"");
        assert_eq!(sum(&text, "response_total", &class), sum(&text, "route_response_total", &class));
    }
    assert_eq!(
        sum(&text, "response_latency_ms_count", ""),
        sum(&text, "route_response_latency_ms_count", "")
    );
    let clients: std::collections::BTreeSet<&str> = text
        .lines()
        .filter(|line| line.starts_with("request_total"))
        .filter_map(|line| line.split_once("client_id=\"")?.1.split('"').next())
        .collect();
    assert_eq!(
        clients.len(),
        enmesh::metrics::arrivals::CLIENTS_MAX + 1,
        "and those together that are too many"
    );
    assert!(clients.contains("other") && sum(&text, "request_total", "client_id=\"other\"") > 1000.0);
}
