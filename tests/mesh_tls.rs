//! Meshes with identities on loopback: mutual TLS by default, identities that change under load, nothing in clear.
#![cfg(any(feature = "tls", feature = "ring"))]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns")]

use bytes::Bytes;
use enmesh::Error;
use enmesh::Mesh;
use enmesh::authz::settings::Action;
use enmesh::authz::settings::AuthzSettings;
use enmesh::authz::settings::Clients;
use enmesh::authz::settings::IdentityMatch;
use enmesh::authz::settings::RuleSettings;
use enmesh::discover::endpoint::Endpoint;
use enmesh::mesh::builder::MeshBuilder;
use enmesh::stdx::rng::Rng;
use enmesh::tls::acceptor::Mode;
use enmesh::tls::authority::Authority;
use enmesh::tls::authority::AuthoritySettings;
use enmesh::tls::epoch::EpochSettings;
use enmesh::tls::identity::Identity;
use enmesh::tls::identity::PeerIdentity;
use enmesh::tls::material::Fixed;
use enmesh::tls::renew::RenewalSettings;
use http::Request;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::Full;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tower::Layer;
use tower::ServiceExt;
use tower::service_fn;

fn authority() -> Authority {
    Authority::new("mesh.example".parse().unwrap(), AuthoritySettings::default()).unwrap()
}

fn id(name: &str) -> Identity {
    format!("spiffe://mesh.example/{name}").parse().unwrap()
}

/// Identities whose former connections end at once, so that tests need not wait minutes.
fn quick() -> EpochSettings {
    EpochSettings { old_epoch_max: Duration::from_millis(20), ..EpochSettings::default() }
}

fn meshed(ca: &Authority, name: &str) -> MeshBuilder {
    let source = ca.source(id(name), RenewalSettings::default(), Rng::thread());
    Mesh::builder().identity_with(source, quick())
}

/// A server that answers with who called; its mesh, its address, and how often it was asked.
struct Server {
    mesh: Mesh,
    addr: SocketAddr,
    calls: Arc<AtomicU32>,
}

async fn serve(builder: MeshBuilder) -> Server {
    let mesh = builder.build().unwrap();
    mesh.identities().unwrap().ready().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    let app = service_fn(move |request: Request<enmesh::serve::body::RequestBody>| {
        counter.fetch_add(1, Ordering::Relaxed);
        let peer = request.extensions().get::<PeerIdentity>().map(|peer| peer.identity.to_string());
        let header = request.headers().get("l5d-client-id").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(peer, header);
        let body = Full::new(Bytes::from(peer.unwrap_or_else(|| "nobody".to_owned())));
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app).await });
    Server { mesh, addr, calls }
}

fn at(addr: SocketAddr, identity: &str) -> Endpoint {
    Endpoint { identity: Some(identity.into()), http2: true, ..Endpoint::new(addr) }
}

async fn ask(mesh: &Mesh) -> Result<(u16, String), Error> {
    let response = mesh.client().get("http://api.ns/").await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

const API: &str = "spiffe://mesh.example/api";

#[tokio::test]
async fn two_meshes_with_identities_speak_mutual_tls() {
    let ca = authority();
    let server = serve(meshed(&ca, "api")).await;
    for http2 in [true, false] {
        let endpoint = Endpoint { http2, ..at(server.addr, API) };
        let client = meshed(&ca, "web").endpoint_set("api.ns:80", [endpoint]).build().unwrap();
        client.identities().unwrap().ready().await;
        assert_eq!(ask(&client).await.unwrap(), (200, "spiffe://mesh.example/web".to_owned()));
    }
}

#[tokio::test]
async fn a_strict_server_answers_no_plaintext_and_a_permissive_one_does() {
    let ca = authority();
    for (mode, answered) in [(Mode::Strict, false), (Mode::Permissive, true)] {
        let server = serve(meshed(&ca, "api").accepting(mode)).await;
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen).await;
        assert_eq!(seen.ends_with(b"nobody"), answered, "{mode:?} {}", String::from_utf8_lossy(&seen));
        assert_eq!(server.calls.load(Ordering::Relaxed), u32::from(answered));
    }
}

#[tokio::test]
async fn another_workload_at_the_address_is_never_asked_and_the_right_one_is() {
    let ca = authority();
    let (right, wrong) = (serve(meshed(&ca, "api")).await, serve(meshed(&ca, "other")).await);
    let profile = "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata:\n  name: api.ns.svc.cluster.local\nspec:\n  routes:\n  - name: all\n    condition: {pathRegex: /.*}\n    retry: {attempts: 3, on: [connect-failure]}\n";
    let endpoints = [at(right.addr, API), at(wrong.addr, API)];
    let client =
        meshed(&ca, "web").profile_yaml(profile).endpoint_set("api.ns:80", endpoints).build().unwrap();
    client.identities().unwrap().ready().await;
    for _ in 0..50 {
        assert_eq!(ask(&client).await.unwrap().0, 200);
    }
    assert_eq!((right.calls.load(Ordering::Relaxed), wrong.calls.load(Ordering::Relaxed)), (50, 0));

    let alone = meshed(&ca, "web").endpoint_set("api.ns:80", [at(wrong.addr, API)]).build().unwrap();
    alone.identities().unwrap().ready().await;
    let error = ask(&alone).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    assert_eq!(wrong.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_peer_that_speaks_plaintext_sees_no_byte_of_a_request() {
    let ca = authority();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let wire = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&wire);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 16 * 1024];
            let n = stream.read(&mut bytes).await.unwrap_or(0);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            seen.lock().unwrap().extend_from_slice(&bytes[..n]);
        }
    });
    let client = meshed(&ca, "web").endpoint_set("api.ns:80", [at(addr, API)]).build().unwrap();
    client.identities().unwrap().ready().await;
    for _ in 0..20 {
        assert!(ask(&client).await.is_err());
    }
    let wire = wire.lock().unwrap();
    assert!(wire.first() == Some(&0x16));
    assert!(!wire.windows(3).any(|window| window == b"GET" || window == b"PRI"));
}

#[tokio::test]
async fn a_mesh_whose_identity_is_not_there_yet_sends_nothing_and_says_why() {
    let ca = authority();
    let server = serve(meshed(&ca, "api")).await;
    let (_feed, source) = enmesh::tls::material::Fed::new();
    let client =
        Mesh::builder().identity(source).endpoint_set("api.ns:80", [at(server.addr, API)]).build().unwrap();
    let error = ask(&client).await.unwrap_err();
    let text = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(text.contains("has not answered yet"), "{text}");
    assert_eq!(server.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn who_may_is_judged_by_the_proven_identity_of_each_request() {
    let ca = authority();
    let only = |name: &str| AuthzSettings {
        rules: vec![RuleSettings::new(
            "friends",
            Action::Allow,
            Clients::Identity(IdentityMatch::Exact(id(name))),
        )],
        otherwise: Action::Deny,
        ..AuthzSettings::default()
    };
    let server = serve(meshed(&ca, "api").authorize(only("web"))).await;
    let client = |name| meshed(&ca, name).endpoint_set("api.ns:80", [at(server.addr, API)]).build().unwrap();
    let (web, other) = (client("web"), client("other"));
    for mesh in [&web, &other] {
        mesh.identities().unwrap().ready().await;
    }
    assert_eq!(ask(&web).await.unwrap().0, 200);
    assert_eq!(ask(&other).await.unwrap().0, 403);
    // The same connections, another policy.
    let policy = enmesh::authz::rules::AuthzPolicy::compile(&only("other")).unwrap();
    server.mesh.gate().unwrap().publish(policy);
    assert_eq!(ask(&web).await.unwrap().0, 403);
    assert_eq!(ask(&other).await.unwrap().0, 200);
}

#[tokio::test]
async fn rotations_under_load_fail_no_request() {
    let ca = authority();
    let (a, b) = (serve(meshed(&ca, "api")).await, serve(meshed(&ca, "api")).await);
    let endpoints = [at(a.addr, API), Endpoint { http2: false, ..at(b.addr, API) }];
    let client = meshed(&ca, "web").endpoint_set("api.ns:80", endpoints).build().unwrap();
    let all = [&a.mesh, &b.mesh, &client];
    for mesh in all {
        mesh.identities().unwrap().ready().await;
    }
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (client, done, asked) = (client.clone(), Arc::clone(&done), Arc::clone(&asked));
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    match ask(&client).await {
                        Ok((200, _)) => {}
                        other => failed.push(format!("{other:?}")),
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                failed
            })
        })
        .collect();
    // Each step lasts until ten more requests have ended, however slow the machine is.
    let everyone_has = async |step: &str| {
        let before = asked.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(40)).await;
        while asked.load(Ordering::Relaxed) < before + 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for mesh in all {
            assert_eq!(mesh.identities().unwrap().status().fault, None, "{step}");
        }
    };
    // 20 leaves by 5 issuers, with 2 changes of roots between them.
    for round in 0..5 {
        for _ in 0..4 {
            ca.rotate_intermediate().unwrap();
            everyone_has("leaf").await;
        }
        if round % 2 == 1 {
            ca.add_root().unwrap();
            everyone_has("new root").await;
            ca.rotate_intermediate().unwrap();
            everyone_has("signed by it").await;
            ca.drop_old_roots();
            everyone_has("old root gone").await;
        }
    }
    done.store(true, Ordering::Relaxed);
    for asker in askers {
        assert_eq!(asker.await.unwrap(), Vec::<String>::new());
    }
    assert!(asked.load(Ordering::Relaxed) >= 200);
    assert!(client.identities().unwrap().status().epoch >= 20);
}

#[tokio::test]
async fn a_withdrawn_root_closes_the_open_connections_of_its_leaves() {
    let ca = authority();
    let server = serve(meshed(&ca, "api")).await;
    let frozen = Mesh::builder()
        .identity(Fixed::new(ca.issue(&id("frozen")).unwrap()))
        .endpoint_set("api.ns:80", [at(server.addr, API)])
        .build()
        .unwrap();
    frozen.identities().unwrap().ready().await;
    assert_eq!(ask(&frozen).await.unwrap().0, 200);
    let before = server.mesh.identities().unwrap().status().epoch;
    ca.add_root().unwrap();
    ca.rotate_intermediate().unwrap();
    ca.drop_old_roots();
    server.mesh.identities().unwrap().changed(before).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asked = server.calls.load(Ordering::Relaxed);
    assert!(ask(&frozen).await.is_err());
    assert_eq!(server.calls.load(Ordering::Relaxed), asked, "no request got through");
}

#[cfg(feature = "admin")]
#[tokio::test]
async fn a_process_without_a_certificate_is_not_ready_and_says_why() {
    let ca = authority();
    let (feed, source) = enmesh::tls::material::Fed::new();
    let mesh = Mesh::builder().identity(source).dns(false).admin(([127, 0, 0, 1], 0).into()).build().unwrap();
    let addr = mesh.admin_addr().unwrap();
    let ready = async || {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET /ready HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let until = async |what: &str| {
        for _ in 0..200 {
            let text = ready().await;
            if text.contains(what) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}: {}", ready().await);
    };
    until("none has come yet").await;
    let wrong = enmesh::tls::material::Material { chain: Vec::new(), ..ca.issue(&id("web")).unwrap() };
    feed.send(wrong).await.unwrap();
    until("it is empty").await;
    feed.send(ca.issue(&id("web")).unwrap()).await.unwrap();
    until("200 OK").await;
}

/// The value of the first series of `/metrics` that begins so.
#[cfg(feature = "prometheus")]
fn shown(mesh: &Mesh, series: &str) -> Option<f64> {
    let text = mesh.metrics_text().unwrap();
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[cfg(feature = "prometheus")]
#[tokio::test]
async fn identity_handshakes_and_decisions_are_counted_where_the_mesh_counts() {
    let ca = authority();
    let only_web = AuthzSettings {
        rules: vec![RuleSettings::new(
            "friends",
            Action::Allow,
            Clients::Identity(IdentityMatch::Exact(id("web"))),
        )],
        ..AuthzSettings::default()
    };
    let server = serve(meshed(&ca, "api").authorize(only_web)).await;
    for (name, status) in [("web", 200), ("other", 403)] {
        let client = meshed(&ca, name).endpoint_set("api.ns:80", [at(server.addr, API)]).build().unwrap();
        client.identities().unwrap().ready().await;
        assert_eq!(ask(&client).await.unwrap().0, status);
        assert_eq!(shown(&client, "tls_handshakes_total{direction=\"outbound\"}"), Some(1.0));
    }
    let port = server.addr.port();
    let target = format!("target_addr=\"127.0.0.1:{port}\",target_ip=\"127.0.0.1\",target_port=\"{port}\"");
    let tls = |name: &str| format!("tls=\"true\",client_id=\"spiffe://mesh.example/{name}\"");
    let srv = "srv_group=\"\",srv_kind=\"default\",srv_name=\"localhost\",srv_port=\"\"";
    let route = "route_group=\"\",route_kind=\"default\",route_name=\"http\"";
    let friends = "authz_group=\"enmesh.dev\",authz_kind=\"authorization\",authz_name=\"friends\"";
    let nobody = "authz_group=\"\",authz_kind=\"default\",authz_name=\"default\"";
    let (web, other) = (tls("web"), tls("other"));
    for (series, value) in [
        (&*format!("inbound_http_authz_allow_total{{{target},{web},{srv},{route},{friends}}}"), 1.0),
        (&format!("inbound_http_authz_deny_total{{{target},{other},{srv},{route},{nobody}}}"), 1.0),
        (
            &format!(
                "request_total{{direction=\"inbound\",authority=\"localhost\",{target},{web},{srv},{route},{friends}}}"
            ),
            1.0,
        ),
        (&format!("tcp_open_total{{direction=\"inbound\",peer=\"src\",{target},{other},{srv}}}"), 1.0),
        (&format!("tcp_open_total{{direction=\"inbound\",peer=\"src\",{target},{web},{srv}}}"), 1.0),
        ("tls_handshakes_total{direction=\"inbound\"}", 2.0),
        ("control_identity_epoch", 1.0),
        ("control_identity_cert_refreshes_total", 1.0),
        ("control_identity_cert_alarm{level=\"low\"}", 0.0),
    ] {
        assert_eq!(shown(&server.mesh, series), Some(value), "{series}");
    }
    assert!(shown(&server.mesh, "control_identity_cert_expiration_timestamp_seconds").unwrap() > 1.7e9);
    assert!(shown(&server.mesh, "control_identity_cert_seconds_left").unwrap() > 3000.0);
}

#[tokio::test]
async fn routes_know_the_proven_caller_of_what_arrives_and_no_other() {
    const BY_CALLER: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: api.ns}
spec:
  routes:
  - name: theirs
    condition: {caller: {identities: ['spiffe://mesh.example/ns/test/sa/bot'], namespaces: [test]}}
";
    let mesh = Mesh::builder().name("api.ns:80").profile_yaml(BY_CALLER).dns(false).build().unwrap();
    let app =
        service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let counted = || {
        let theirs = mesh.stats().routes.into_iter().find(|row| row.route == "theirs");
        theirs.map_or(0, |row| row.reading.requests)
    };
    let callers =
        [Some("spiffe://mesh.example/ns/test/sa/bot"), Some("spiffe://mesh.example/ns/test/sa/web"), None];
    for caller in callers {
        let mut request = Request::get("http://api.ns/").body(()).unwrap();
        if let Some(caller) = caller {
            request.extensions_mut().insert(PeerIdentity {
                identity: caller.parse().unwrap(),
                trust_domain: "mesh.example".parse().unwrap(),
                not_after: std::time::SystemTime::UNIX_EPOCH,
            });
        }
        mesh.inbound().layer(app).oneshot(request).await.unwrap();
        assert_eq!(counted(), 1, "{caller:?}");
    }
}
