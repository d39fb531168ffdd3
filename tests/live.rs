//! The figures of running meshes, as their admin servers tell them: a scripted load gives exact numbers.
#![cfg(feature = "admin")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns")]

use bytes::Bytes;
use enmesh::Mesh;
use enmesh::admin::fleet::{self, Fleet, Question};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::TcpListener;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

const PROFILE: &str = r"
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: voting.emojivoto}
spec:
  slo: {availability: 0.5}
  retryBudget: {retryRatio: 1, minRetriesPerSecond: 100, ttl: 10s}
  routes:
  - name: GET /vote
    condition: {pathRegex: /vote}
    slo: {availability: 0.9, window: 24h}
  - name: GET /list
    condition: {pathRegex: /list}
    isRetryable: true
    slo: {availability: 0.999, latency: 10m, latencyTarget: 0.95}
  - name: GET /idle
    condition: {pathRegex: /idle}
";

/// A service `voting.emojivoto`: every fourth vote fails, and every list that was not asked for twice.
async fn voting() -> (Mesh, SocketAddr) {
    let mesh = Mesh::builder().name("voting.emojivoto:80").dns(false).profile_yaml(PROFILE).admin(ANY);
    let mesh = mesh.build().unwrap();
    let listener = TcpListener::bind(ANY).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let calls = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let app = tower::service_fn(move |request: Request<enmesh::serve::body::RequestBody>| {
        let list = request.uri().path() == "/list";
        let call = calls[usize::from(list)].fetch_add(1, Ordering::SeqCst);
        let fails = if list { call.is_multiple_of(2) } else { call % 4 == 3 };
        let response =
            Response::builder().status(if fails { 503 } else { 200 }).body(Full::<Bytes>::from("x"));
        async move { Ok::<_, Infallible>(response.unwrap()) }
    });
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app).await });
    (mesh, addr)
}

fn web(voting: SocketAddr, peers: &[String]) -> Mesh {
    let mesh = Mesh::builder().name("web.emojivoto").dns(false).profile_yaml(PROFILE).admin(ANY);
    mesh.endpoints("voting.emojivoto:80", [voting.to_string()]).admin_peers(peers).build().unwrap()
}

/// Calls one after the other, so that every call's script is known.
async fn load(mesh: &Mesh, votes: u32, lists: u32) {
    let client = mesh.client();
    for path in std::iter::repeat_n("vote", votes as usize).chain(std::iter::repeat_n("list", lists as usize))
    {
        let response = client.get(format!("http://voting.emojivoto/{path}")).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
}

fn url(mesh: &Mesh) -> String {
    format!("http://{}", mesh.admin_addr().unwrap())
}

/// What is told once nothing is under way: a server counts a call when its response is written, which may be after it was
/// read.
async fn ask(mesh: &Mesh, path: &str) -> Value {
    for _ in 0..500 {
        let told = ask_for(mesh, path).await.unwrap();
        let rows = told["rows"].as_array().into_iter().flatten();
        if rows.into_iter().all(|row| row["in_flight"] == 0) {
            return told;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("a call is under way for ever");
}

async fn ask_for(mesh: &Mesh, path: &str) -> Result<Value, String> {
    let fleet = Fleet::new([url(mesh).parse().unwrap()], fleet::dns());
    fleet.ask(&Question::get(path)).await.remove(0).answer
}

/// The row of a kind whose fields have these values.
fn row<'a>(report: &'a Value, kind: &str, fields: &[(&str, &str)]) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    let is_meant =
        |row: &&Value| row["kind"] == kind && fields.iter().all(|(key, value)| row[*key] == *value);
    let found: Vec<&Value> = rows.iter().filter(is_meant).collect();
    assert_eq!(found.len(), 1, "{kind} {fields:?} in {report:#}");
    found[0]
}

fn counts(row: &Value) -> [u64; 4] {
    ["requests", "successes", "failures", "cancelled"].map(|key| row[key].as_u64().unwrap())
}

#[tokio::test]
async fn a_scripted_load_is_told_exactly() {
    let (voting, addr) = voting().await;
    let web = web(addr, &[]);
    load(&web, 20, 10).await;
    let report = ask(&web, "/api/v1/stat?window=1m&histograms=1").await;
    let route = |name| row(&report, "route", &[("direction", "outbound"), ("route", name)]);
    let vote = route("GET /vote");
    assert_eq!(counts(vote), [20, 15, 5, 0]);
    assert_eq!(
        (vote["success_rate"].as_f64(), vote["actual"]["success_rate"].as_f64()),
        (Some(0.75), Some(0.75))
    );
    assert_eq!((vote["in_flight"].as_u64(), vote["retries"].as_u64()), (Some(0), Some(0)));
    let list = route("GET /list");
    assert_eq!(counts(list), [10, 10, 0, 0], "as callers see it");
    assert_eq!(counts(&list["actual"]), [20, 10, 10, 0], "as it is");
    assert_eq!((list["retries"].as_u64(), list["actual"]["success_rate"].as_f64()), (Some(10), Some(0.5)));
    let elapsed = list["elapsed_secs"].as_f64().unwrap();
    let ratio = list["rps"].as_f64().unwrap() * elapsed / 10.0;
    assert!((ratio - 1.0).abs() < 1e-9, "{list}");
    assert!(list["latency_ms"]["p999"].as_f64().unwrap() >= list["latency_ms"]["p50"].as_f64().unwrap());
    let histogram: Vec<u64> = serde_json::from_value(list["histogram"].clone()).unwrap();
    assert_eq!(histogram.chunks(2).map(|pair| pair[1]).sum::<u64>(), 10);
    let backend = row(&report, "backend", &[("route", "GET /list"), ("backend", "voting.emojivoto:80")]);
    assert_eq!(counts(backend), [20, 10, 10, 0]);
    let attempts: Vec<u64> = serde_json::from_value(list["actual"]["histogram"].clone()).unwrap();
    assert_eq!(attempts.chunks(2).map(|pair| pair[1]).sum::<u64>(), 20, "each attempt has its own latency");
    let endpoint =
        row(&report, "endpoint", &[("service", "voting.emojivoto:80"), ("endpoint", &addr.to_string())]);
    assert_eq!((counts(endpoint), &endpoint["tls"]), ([40, 25, 15, 0], &false.into()), "every attempt");
    assert!(endpoint["latency_ms"]["p50"].as_f64().is_some());
    let idle = route("GET /idle");
    assert!(idle["success_rate"].is_null() && idle["latency_ms"].is_null() && idle["rps"] == 0.0, "{idle}");

    let report = ask(&voting, "/api/v1/stat").await;
    let route = |name| row(&report, "route", &[("direction", "inbound"), ("route", name)]);
    assert_eq!(counts(route("GET /vote")), [20, 15, 5, 0]);
    assert_eq!(counts(route("GET /list")), [20, 10, 10, 0], "every attempt arrives");
    assert!(route("GET /list")["actual"].is_null() && route("GET /list").get("histogram").is_none());
    assert_eq!(report["processes"][0]["name"], "voting.emojivoto:80");
    let nobody = row(&report, "client", &[("client", "")]);
    assert_eq!((counts(nobody), &nobody["tls"]), ([40, 25, 15, 0], &false.into()));
}

/// What a process's own profile says of what arrives at it.
const GUARDED: &str = r"
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: voting.emojivoto}
spec:
  routes:
  - name: vote
    condition: {pathRegex: /vote}
    rateLimits: [{requests: 3, per: 1h, burst: 3}]
  - name: other
    condition: {pathRegex: /.*}
";

/// What a caller's says of the same service.
const HURRIED: &str = r"
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: voting.emojivoto}
spec:
  routes:
  - name: list
    condition: {pathRegex: /list}
    rateLimits: [{requests: 2, per: 1h, burst: 2}]
  - name: slow
    condition: {pathRegex: /slow}
    timeouts: {request: 50ms}
  - name: broken
    condition: {pathRegex: /broken}
    fault: {abort: {httpStatus: 503, percent: 100}}
  - name: other
    condition: {pathRegex: /.*}
";

const RULES: &str = r"
apiVersion: enmesh.dev/v1
kind: Authorization
metadata: {name: voting}
spec:
  default: allow
  rules:
  - {name: no-results, action: deny, request: {pathRegex: /secret}}
";

#[tokio::test]
async fn what_the_mesh_itself_ended_is_told_by_its_cause() {
    let rules = enmesh::authz::settings::AuthzSettings::from_yaml(RULES).unwrap();
    let voting = Mesh::builder().name("voting.emojivoto:80").dns(false).profile_yaml(GUARDED).admin(ANY);
    let voting = voting.authorize(rules).build().unwrap();
    let listener = TcpListener::bind(ANY).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = tower::service_fn(|request: Request<enmesh::serve::body::RequestBody>| async move {
        if request.uri().path() == "/slow" {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("x")))
    });
    let serving = voting.clone();
    tokio::spawn(async move { serving.serve(listener, app).await });
    let web = Mesh::builder().name("web.emojivoto").dns(false).profile_yaml(HURRIED).admin(ANY);
    let web = web
        .endpoints("voting.emojivoto:80", [addr.to_string()])
        .endpoints("gone:80", ["127.0.0.1:1".to_owned()]);
    let web = web.admin_peers([url(&voting)]).build().unwrap();
    let client = web.client();
    for (path, times) in [("vote", 5), ("list", 6), ("slow", 2), ("secret", 4), ("fine", 3), ("broken", 2)] {
        for _ in 0..times {
            if let Ok(response) = client.get(format!("http://voting.emojivoto/{path}")).await {
                response.into_body().collect().await.unwrap();
            }
        }
    }
    assert!(client.get("http://gone/").await.is_err());
    // Both processes together.
    let report = ask(&web, "/api/v1/stat?kind=route,client&window=5m").await;
    let of = |service: &str, direction: &str, route: &str| {
        let fields = [("service", service), ("direction", direction), ("route", route)];
        let row = row(&report, "route", &fields);
        let causes = ["shed", "denied", "late", "unreached", "faults"].map(|key| row[key].as_u64().unwrap());
        (row["requests"].as_u64().unwrap(), row["failures"].as_u64().unwrap(), causes)
    };
    let told = |direction, route| of("voting.emojivoto:80", direction, route);
    let how = |direction: &str, route: &str| {
        let fields = [("service", "voting.emojivoto:80"), ("direction", direction), ("route", route)];
        row(&report, "route", &fields)["failed_by"].clone()
    };
    assert_eq!(how("inbound", "vote"), serde_json::json!({"rate limited": 2}));
    assert_eq!(how("outbound", "slow"), serde_json::json!({"request timeout": 2}));
    assert_eq!(how("inbound", "other"), serde_json::json!({"denied": 4}));
    assert_eq!(how("outbound", "broken"), serde_json::json!({"status 503": 2}));
    assert_eq!(how("outbound", "other"), Value::Null, "none failed");
    assert_eq!(told("inbound", "vote"), (5, 2, [2, 0, 0, 0, 0]), "by the server's rate");
    assert_eq!(told("outbound", "list"), (6, 4, [4, 0, 0, 0, 0]), "by the caller's rate");
    assert_eq!(told("outbound", "slow"), (2, 2, [0, 0, 2, 0, 0]), "by the caller's timeout");
    assert_eq!(told("inbound", "other"), (4 + 2 + 2 + 3, 4, [0, 4, 0, 0, 0]), "by the server's rules");
    assert_eq!(told("outbound", "broken"), (2, 2, [0, 0, 0, 0, 2]), "on purpose");
    assert_eq!(of("gone:80", "outbound", ""), (1, 1, [0, 0, 0, 1, 0]), "nobody is there");
    assert_eq!(told("outbound", "other").2, [0; 5], "what a peer answered is its answer");
    let nobody = row(&report, "client", &[("client", "")]);
    assert_eq!((&nobody["shed"], &nobody["denied"]), (&2.into(), &4.into()), "by caller too");
}

#[tokio::test]
async fn many_processes_are_one_exactly() {
    let (voting, addr) = voting().await;
    let other = web(addr, &[]);
    let nobody = "http://127.0.0.1:1".to_owned();
    // Itself is among its peers, as where all processes are given one list.
    let web = web(addr, &[url(&other), url(&voting), nobody]);
    load(&web, 8, 0).await;
    load(&other, 12, 0).await;
    let whole = ask(&web, "/api/v1/stat?kind=route&series=1").await;
    let out = row(&whole, "route", &[("direction", "outbound"), ("route", "GET /vote")]);
    assert_eq!(counts(out), [20, 15, 5, 0]);
    assert_eq!(out["series"]["rps"].as_array().unwrap().len(), 60);
    assert_eq!(
        counts(row(&whole, "route", &[("direction", "inbound"), ("route", "GET /vote")])),
        [20, 15, 5, 0]
    );
    let processes = whole["processes"].as_array().unwrap();
    let names: Vec<&str> = processes.iter().map(|process| process["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["web.emojivoto", "web.emojivoto", "voting.emojivoto:80", ""]);
    let error = processes[3]["error"].as_str().unwrap();
    assert!(
        error.starts_with("cannot be reached") && processes[3]["addr"] == "http://127.0.0.1:1",
        "{error}"
    );
    let apart = ask(&web, "/api/v1/stat?by=process&kind=route").await;
    let rows = apart["rows"].as_array().unwrap().iter();
    let told: Vec<u64> = rows
        .filter(|row| {
            row["process"] == "web.emojivoto" && row["route"] == "GET /vote" && row["direction"] == "outbound"
        })
        .map(|row| row["requests"].as_u64().unwrap())
        .collect();
    assert_eq!(told.iter().sum::<u64>(), 20, "{told:?}");
    let alone = ask(&web, "/api/v1/stat?local=1").await;
    assert_eq!(counts(row(&alone, "route", &[("direction", "outbound"), ("route", "GET /vote")]))[0], 8);
}

#[tokio::test]
async fn edges_say_who_talks_to_whom() {
    let (voting, addr) = voting().await;
    let web = web(addr, &[url(&voting)]);
    load(&web, 4, 1).await;
    let edges = ask(&web, "/api/v1/edges").await;
    let all = edges["edges"].as_array().unwrap();
    let edge = all.iter().find(|edge| edge["src"] == "web").unwrap();
    assert_eq!((&edge["dst"], &edge["dst_namespace"]), (&"voting".into(), &"emojivoto".into()));
    assert_eq!((&edge["secured"], &edge["no_tls_reason"]), (&false.into(), &"no_identity".into()));
    assert_eq!(counts(edge), [5, 4, 1, 0]);
    assert_eq!(all.len(), 1, "{edges:#}");
}

/// Two processes that prove who they are to each other.
#[cfg(feature = "tls")]
mod proved {
    use super::*;
    use enmesh::discover::endpoint::Endpoint;
    use enmesh::mesh::builder::MeshBuilder;
    use enmesh::stdx::rng::Rng;
    use enmesh::tls::authority::{Authority, AuthoritySettings};
    use enmesh::tls::renew::RenewalSettings;

    async fn meshed(ca: &Authority, name: &str, builder: MeshBuilder) -> Mesh {
        let id = format!("spiffe://mesh.example/ns/emojivoto/sa/{name}").parse().unwrap();
        let source = ca.source(id, RenewalSettings::default(), Rng::thread());
        let mesh = builder.dns(false).profile_yaml(PROFILE).admin(ANY).identity(source).build().unwrap();
        mesh.identities().unwrap().ready().await;
        mesh
    }

    #[tokio::test]
    async fn callers_are_told_apart_and_edges_have_a_lock() {
        let ca = Authority::new("mesh.example".parse().unwrap(), AuthoritySettings::default()).unwrap();
        let voting = meshed(&ca, "voting", Mesh::builder().name("voting.emojivoto:80")).await;
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = tower::service_fn(|_: Request<enmesh::serve::body::RequestBody>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("x")))
        });
        let serving = voting.clone();
        tokio::spawn(async move { serving.serve(listener, app).await });
        let identity = "spiffe://mesh.example/ns/emojivoto/sa/voting";
        let endpoint = Endpoint { identity: Some(identity.into()), ..Endpoint::new(addr) };
        let mut callers = Vec::new();
        for (name, votes) in [("web", 3), ("bot", 5)] {
            let builder = Mesh::builder()
                .name(&format!("{name}.emojivoto"))
                .endpoint_set("voting.emojivoto:80", [endpoint.clone()])
                .admin_peers([url(&voting)]);
            let mesh = meshed(&ca, name, builder).await;
            load(&mesh, votes, 0).await;
            callers.push(mesh);
        }
        let report = ask(&voting, "/api/v1/stat?kind=client").await;
        for (name, votes) in [("web", 3), ("bot", 5)] {
            let id = format!("spiffe://mesh.example/ns/emojivoto/sa/{name}");
            let row = row(&report, "client", &[("client", &id), ("service", "voting.emojivoto:80")]);
            assert_eq!((counts(row)[..2].to_vec(), &row["tls"]), (vec![votes, votes], &true.into()));
        }
        let told = ask(&callers[0], "/api/v1/edges").await;
        let edges = told["edges"].as_array().unwrap();
        let web = edges.iter().find(|edge| edge["src"] == "web").unwrap();
        assert_eq!(
            (&web["direction"], &web["secured"], &web["server_id"]),
            (&"outbound".into(), &true.into(), &identity.into())
        );
        assert_eq!(web["client_id"], "spiffe://mesh.example/ns/emojivoto/sa/web");
        let bot = edges.iter().find(|edge| edge["src"] == "bot").unwrap();
        assert_eq!(
            (&bot["direction"], &bot["secured"], &bot["requests"]),
            (&"inbound".into(), &true.into(), &5.into())
        );
        assert_eq!(edges.len(), 2, "{told:#}");
    }

    #[tokio::test]
    async fn live_requests_are_shown_elsewhere_to_allowed_identities_alone() {
        // An address of this machine that is not loopback; a packet need not be sent to learn it.
        let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let ip = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).map(|addr| addr.ip());
        let Some(ip) = ip.ok().filter(|ip| !ip.is_loopback() && !ip.is_unspecified()) else {
            return eprintln!("skipped: this machine has no address but loopback");
        };
        let ca = Authority::new("mesh.example".parse().unwrap(), AuthoritySettings::default()).unwrap();
        let id = |name: &str| format!("spiffe://mesh.example/ns/emojivoto/sa/{name}");
        let mesh = |name: &str| {
            let source = ca.source(id(name).parse().unwrap(), RenewalSettings::default(), Rng::thread());
            Mesh::builder().dns(false).identity(source)
        };
        let shown = mesh("web").admin((ip, 0).into()).admin_observers([id("ops")]).build().unwrap();
        shown.identities().unwrap().ready().await;
        let admin = shown.admin_addr().unwrap();
        let status = async |name: &str, proves: bool| {
            let identity = proves.then(|| id("web").as_str().into());
            let endpoint = Endpoint { identity, ..Endpoint::new(admin) };
            let observer = mesh(name).endpoint_set(&admin.to_string(), [endpoint]).build().unwrap();
            observer.identities().unwrap().ready().await;
            observer.client().get(format!("http://{admin}/api/v1/tap")).await.unwrap().status().as_u16()
        };
        assert_eq!(status("ops", true).await, 200);
        assert_eq!(status("other", true).await, 403);
        assert_eq!(status("ops", false).await, 403, "in plain text nobody proves anything");

        // One that speaks for others proves to them who it is, and says for whom it asks.
        let peer = |observers: &[&str]| {
            let observers: Vec<String> = observers.iter().map(|name| id(name)).collect();
            mesh("voting")
                .name("voting.emojivoto:80")
                .admin((ip, 0).into())
                .admin_observers(observers)
                .build()
                .unwrap()
        };
        let peers = [peer(&["web", "ops"]), peer(&["web"]), peer(&["other"])];
        let speaker = mesh("web").admin((ip, 0).into()).admin_observers([id("ops")]);
        let speaker = speaker.admin_peers(peers.iter().map(url)).build().unwrap();
        for one in peers.iter().chain([&speaker]) {
            one.identities().unwrap().ready().await;
        }
        let admin = speaker.admin_addr().unwrap();
        let endpoint = Endpoint { identity: Some(id("web").as_str().into()), ..Endpoint::new(admin) };
        let ops = mesh("ops").endpoint_set(&admin.to_string(), [endpoint]).build().unwrap();
        ops.identities().unwrap().ready().await;
        let mut body = ops.client().get(format!("http://{admin}/api/v1/tap")).await.unwrap().into_body();
        let (mut text, mut told) = (String::new(), std::collections::BTreeMap::new());
        while told.len() < 3 {
            let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
            text.push_str(std::str::from_utf8(&data).unwrap());
            while let Some((line, rest)) = text.split_once('\n') {
                let value: Value = serde_json::from_str(line).unwrap();
                let what = value.get("watching").or(value.get("lost")).unwrap();
                told.insert(
                    what["addr"].as_str().unwrap().to_owned(),
                    what["error"].as_str().map(str::to_owned),
                );
                text = rest.to_owned();
            }
        }
        let [shows, hides, refuses] = peers.each_ref().map(|peer| told[&url(peer)].as_deref());
        assert_eq!(shows, None, "both may see it");
        assert_eq!(hides, Some("answered 403: it is asked for an identity that may not see this"));
        assert_eq!(refuses, Some("answered 403: this is shown to loopback and to allowed identities alone"));
    }

    #[tokio::test]
    async fn no_page_shows_a_secret() {
        let secret = "s3cr3t-t0ken";
        // A profile may set what proves who somebody is, or ask for it.
        let profile = format!(
            "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {{name: bank.emojivoto}}\nspec:\n  routes:\n  \
             - name: keyed\n    condition: {{headers: [{{name: x-api-key, value: {secret}}}]}}\n  \
             - name: rest\n    condition: {{pathRegex: .*}}\n    filters: [{{requestHeaderModifier: {{set: [{{name: Authorization, value: {secret}}}]}}}}]\n"
        );
        let ca = Authority::new("mesh.example".parse().unwrap(), AuthoritySettings::default()).unwrap();
        let (_voting, addr) = voting().await;
        let builder = Mesh::builder()
            .name("web.emojivoto")
            .endpoints("voting.emojivoto:80", [addr.to_string()])
            .profile_yaml(&profile);
        let mesh = meshed(&ca, "web", builder).await;
        let request = Request::get("http://voting.emojivoto/vote")
            .header("authorization", format!("Bearer {secret}"))
            .header("cookie", format!("session={secret}"))
            .body(())
            .unwrap();
        mesh.client()
            .send(request.map(|()| Bytes::new()))
            .await
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap();
        mesh.service("bank.emojivoto:80").unwrap();
        let fleet = Fleet::new([url(&mesh).parse().unwrap()], fleet::dns());
        let mut questions = ["/inspect", "/api/v1/inspect", "/api/v1/stat", "/api/v1/edges", "/api/v1/slo"]
            .map(Question::get)
            .to_vec();
        let body = Some(serde_json::json!({"host": "bank.emojivoto:80", "path": "/"}));
        questions.push(Question { path: "/api/v1/explain".to_owned(), body });
        for question in questions {
            let said = fleet.ask(&question).await.remove(0).answer.unwrap().to_string();
            assert!(!said.contains(secret) && !said.contains("PRIVATE KEY"), "{}: {said}", question.path);
            let is_hidden = ["/inspect", "/api/v1/inspect", "/api/v1/explain"].contains(&&*question.path);
            assert_eq!(said.contains("<hidden>"), is_hidden, "{}: {said}", question.path);
        }
    }
}

/// Every page of a mesh but the probes, as a mesh answers a browser that another site's page sends.
#[tokio::test]
async fn another_site_s_page_gets_nothing_from_a_mesh() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mesh, _) = voting().await;
    let addr = mesh.admin_addr().unwrap();
    let answer = |request: String| async move {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let mut pages =
        vec![("GET", "/shutdown", 404), ("POST", "/shutdown", 404), ("POST", "/api/v1/explain", 403)];
    let read = ["/", "/inspect", "/api/v1/inspect", "/api/v1/stat", "/api/v1/edges", "/api/v1/slo"];
    pages.extend(read.map(|path| ("GET", path, 403)));
    for (method, path, status) in pages {
        for header in ["Origin: http://evil.test", "Sec-Fetch-Site: cross-site", "Host: evil.test"] {
            let host = if header.starts_with("Host") { "" } else { "Host: localhost\r\n" };
            let request = format!(
                "{method} {path} HTTP/1.1\r\n{host}{header}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
            let answer = answer(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {path} {header}: {answer}");
            assert!(
                !answer.contains("voting.emojivoto") && !answer.contains("access-control-allow"),
                "{answer}"
            );
        }
    }
}

/// A crowd that asks for every page without end takes neither the runtime's threads nor its order: requests go on, each page is
/// made one at a time, and the probes answer.
#[tokio::test]
async fn a_crowd_at_the_admin_server_stops_no_request() {
    let (voting, addr) = voting().await;
    let web = web(addr, &[url(&voting)]);
    let crowd: Vec<_> = (0..12)
        .map(|n| {
            let path = ["/api/v1/stat?series=1", "/api/v1/edges", "/inspect", "/api/v1/slo"][n % 4];
            let fleet = Fleet::new([url(&web).parse().unwrap()], fleet::dns());
            tokio::spawn(async move {
                loop {
                    // It may be told to come back later.
                    let _ = fleet.ask(&Question::get(path)).await;
                }
            })
        })
        .collect();
    load(&web, 40, 0).await;
    assert_eq!(ask_for(&web, "/live").await.unwrap_err().split(':').next(), Some("answered with no JSON"));
    crowd.iter().for_each(tokio::task::JoinHandle::abort);
    let report = ask(&web, "/api/v1/stat?local=1").await;
    assert_eq!(
        counts(row(&report, "route", &[("direction", "outbound"), ("route", "GET /vote")])),
        [40, 30, 10, 0]
    );
}

#[tokio::test]
async fn objectives_are_judged_over_all_processes() {
    let (voting, addr) = voting().await;
    let other = web(addr, &[]);
    let web = web(addr, &[url(&other), url(&voting)]);
    load(&web, 8, 2).await;
    load(&other, 12, 2).await;
    ask(&voting, "/api/v1/stat").await;
    let told = ask(&web, "/api/v1/slo").await;
    let objectives = told["objectives"].as_array().unwrap();
    let of = |direction: &str, route: Option<&str>, kind: &str| {
        let is_meant =
            |o: &&Value| o["direction"] == direction && o["route"].as_str() == route && o["kind"] == kind;
        let found: Vec<&Value> = objectives.iter().filter(is_meant).collect();
        assert_eq!(found.len(), 1, "{direction} {route:?} {kind}: {told:#}");
        found[0].clone()
    };
    let counts = |o: &Value| (o["total"].as_u64().unwrap(), o["bad"].as_u64().unwrap());
    let vote = of("outbound", Some("GET /vote"), "availability");
    assert_eq!(counts(&vote), (20, 5));
    let close =
        |value: &Value, expected: f64| assert!((value.as_f64().unwrap() - expected).abs() < 1e-6, "{vote:#}");
    close(&vote["sli"], 0.75);
    close(&vote["budget_left"], 1.0 - 0.25 / 0.1);
    close(&vote["burn"][0]["long_rate"], 2.5);
    assert_eq!(vote["burn"].as_array().unwrap().len(), 2, "no window longer than a day");
    assert_eq!(vote["burn"][0]["firing"], true);
    assert_eq!(counts(&of("outbound", Some("GET /list"), "availability")), (4, 0));
    assert_eq!(counts(&of("outbound", Some("GET /list"), "latency")), (4, 0));
    assert_eq!(counts(&of("inbound", Some("GET /list"), "availability")), (8, 4), "as the server sees it");
    assert_eq!(counts(&of("outbound", None, "availability")), (24, 5), "all routes of the service");
}

#[cfg(feature = "prometheus")]
#[tokio::test]
async fn objectives_are_metrics_too() {
    let (_voting, addr) = voting().await;
    let web = web(addr, &[]);
    load(&web, 8, 0).await;
    let text = web.metrics_text().unwrap();
    let labels = r#"direction="outbound",dst="voting.emojivoto:80",rt_route="GET /vote",kind="availability""#;
    for line in [
        format!("enmesh_slo_total{{{labels}}} 8"),
        format!("enmesh_slo_bad_total{{{labels}}} 2"),
        format!("enmesh_slo_objective_ratio{{{labels}}} 0.9"),
        format!("enmesh_slo_burn_rate{{{labels},window=\"1h\"}} 2.5"),
    ] {
        assert!(text.lines().any(|found| found.starts_with(&line)), "{line} in {text}");
    }
}

#[tokio::test]
async fn what_is_asked_wrongly_is_told() {
    let (voting, _) = voting().await;
    for (query, why) in [
        ("window=2h", "window: is no time from 1s to 1h (2h)"),
        ("window=x", "window: is no time"),
        ("kind=route,pod", "kind: is not known (pod)"),
    ] {
        let refused = ask_for(&voting, &format!("/api/v1/stat?{query}")).await.unwrap_err();
        assert!(refused.starts_with("answered 400") && refused.contains(why), "{refused}");
    }
    let missing = ask_for(&voting, "/api/v1/nothing").await.unwrap_err();
    assert!(missing.contains("has no such page"), "{missing}");
}

/// The tool as it is run.
#[cfg(feature = "cli")]
mod tool {
    use super::*;

    /// Exit status, standard output and standard error.
    async fn enmesh(args: &[&str]) -> (i32, String, String) {
        let ran =
            tokio::process::Command::new(env!("CARGO_BIN_EXE_enmesh")).args(args).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (ran.status.code().unwrap(), text(ran.stdout), text(ran.stderr))
    }

    /// The cells of a table's lines, which stand three spaces apart.
    fn cells(table: &str) -> Vec<Vec<&str>> {
        table
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect()
    }

    #[tokio::test]
    async fn it_shows_what_many_processes_did_and_who_was_not_reached() {
        let (voting, addr) = voting().await;
        let (one, two) = (web(addr, &[]), web(addr, &[]));
        load(&one, 8, 2).await;
        load(&two, 12, 2).await;
        ask(&voting, "/api/v1/stat").await;
        let (one, two, voting) = (url(&one), url(&two), url(&voting));
        let all = [&*one, &*two, &*voting, "http://127.0.0.1:1"];
        let run = |args: &'static [&'static str]| {
            let args = [args, &["--admin"], &all[..]].concat();
            async move { enmesh(&args).await }
        };
        let (status, out, err) = run(&["routes"]).await;
        assert_eq!(status, 0, "{err}");
        assert!(err.starts_with("http://127.0.0.1:1: cannot be reached"), "{err}");
        let table = cells(&out);
        assert_eq!(
            table[0],
            ["ROUTE", "SERVICE", "SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99"]
        );
        let line = |table: &[Vec<&str>], name: &str| {
            let found = table.iter().find(|line| line[0] == name);
            found
                .unwrap_or_else(|| panic!("{name}: {table:?}"))
                .iter()
                .map(|cell| (*cell).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(line(&table, "GET /vote")[1..3], ["voting.emojivoto:80", "75.00%"]);
        assert_eq!(line(&table, "GET /idle")[2..], ["-", "-", "-", "-", "-"]);

        let (_, out, _) = run(&["routes", "-o", "wide", "--to", "voting"]).await;
        let table = cells(&out);
        assert_eq!(table[0][2..6], ["EFFECTIVE_SUCCESS", "EFFECTIVE_RPS", "ACTUAL_SUCCESS", "ACTUAL_RPS"]);
        let list = line(&table, "GET /list");
        assert_eq!((&*list[2], &*list[4], &*list[9]), ("100.00%", "50.00%", "-"));

        let (_, out, _) = run(&["stat", "-o", "wide"]).await;
        let table = cells(&out);
        assert_eq!(table[0][..4], ["NAME", "MESHED", "SUCCESS", "RPS"]);
        let row = line(&table, "voting.emojivoto:80");
        // 20 votes of which 5 failed, and 8 lists of which 4 did.
        assert_eq!((&*row[1], &*row[2], row.last().map(|all| &**all)), ("1/1", "67.86%", Some("28")));

        let (_, out, _) = run(&["edges"]).await;
        let table = cells(&out);
        assert_eq!(table[0], ["SRC", "DST", "SRC_NS", "DST_NS", "SECURED"]);
        assert_eq!(table[1..], [["web", "voting", "emojivoto", "emojivoto", "no_identity"]]);

        let (_, out, _) = run(&["slo", "-o", "json"]).await;
        let told: Value = serde_json::from_str(&out).unwrap();
        let vote = told["objectives"].as_array().unwrap().iter();
        let mut vote = vote.filter(|o| o["route"] == "GET /vote" && o["direction"] == "outbound");
        assert_eq!(vote.next().unwrap()["bad"], 5);
        let (_, out, _) = run(&["slo"]).await;
        let table = cells(&out);
        assert!(
            table
                .iter()
                .any(|line| line[1] == "GET /vote" && line[3..6] == ["90% succeed", "75.00%", "-150.00%"]),
            "{out}"
        );
    }

    #[tokio::test]
    async fn when_nobody_is_reached_it_says_why_and_fails() {
        let (status, out, err) = enmesh(&["stat", "--admin", "http://127.0.0.1:1"]).await;
        assert_eq!((status, &*out), (3, ""));
        assert!(err.contains("http://127.0.0.1:1: cannot be reached"), "{err}");
        let (status, _, err) = enmesh(&["stat", "--admin", "https://127.0.0.1:1"]).await;
        assert!(status == 2 && err.contains("admin servers speak http"), "{err}");
        let (voting, _) = voting().await;
        let (status, _, err) = enmesh(&["stat", "--admin", &url(&voting), "-t", "2h"]).await;
        assert!(status == 3 && err.contains("window: is no time from 1s to 1h (2h)"), "{err}");
    }

    #[tokio::test]
    async fn one_server_speaks_for_its_peers() {
        let (voting, addr) = voting().await;
        let web = web(addr, &[url(&voting)]);
        load(&web, 4, 0).await;
        ask(&voting, "/api/v1/stat").await;
        let (_, out, _) = enmesh(&["routes", "--admin", &url(&web)]).await;
        assert!(cells(&out).iter().any(|line| line[0] == "GET /vote" && line[2] == "75.00%"), "{out}");
        let (_, out, _) = enmesh(&["routes", "--admin", &url(&web), "-o", "json"]).await;
        let told: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(told["processes"].as_array().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn top_counts_live_requests_by_path() {
        let (voting, addr) = voting().await;
        let web = web(addr, &[]);
        let (one, two) = (url(&web), url(&voting));
        let args = ["top", "--for", "3s", "-o", "json", "--admin", &one, &two, "http://127.0.0.1:1"];
        let loading = async {
            // The observers say when they are there.
            while web.taps().observers() == 0 || voting.taps().observers() == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            load(&web, 8, 2).await;
        };
        let ((status, out, err), ()) = tokio::join!(enmesh(&args), loading);
        assert!(status == 0 && err.contains("cannot be reached"), "{err}");
        let told: Value = serde_json::from_str(&out).unwrap();
        let line = |source: &str, path: &str| {
            let lines = told["lines"].as_array().unwrap().iter();
            let mut lines = lines.filter(|line| line["source"] == source && line["path"] == path);
            lines.next().unwrap_or_else(|| panic!("{source} {path}: {told:#}")).clone()
        };
        let vote = line("web.emojivoto", "/vote");
        assert_eq!(
            (&vote["count"], &vote["success_rate"], &vote["destination"]),
            (&8.into(), &0.75.into(), &addr.to_string().into())
        );
        let list = line("127.0.0.1", "/list");
        assert_eq!(
            (&list["count"], &list["success_rate"], &list["method"]),
            (&4.into(), &0.5.into(), &"GET".into())
        );
    }

    #[tokio::test]
    async fn it_asks_again_until_it_is_stopped() {
        use tokio::io::AsyncReadExt;
        let (voting, _) = voting().await;
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_enmesh"))
            .args(["stat", "--watch=1", "--admin", &url(&voting)])
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (mut out, mut text) = (child.stdout.take().unwrap(), Vec::new());
        while text.windows(6).filter(|bytes| bytes == b"MESHED").count() < 2 {
            assert_ne!(out.read_buf(&mut text).await.unwrap(), 0);
        }
        assert!(!text.contains(&0x1b), "no terminal, no colours");
    }

    #[tokio::test]
    async fn every_subcommand_has_an_example_and_a_manual_page() {
        let (_, help, _) = enmesh(&["--help"]).await;
        let commands: Vec<&str> = help
            .lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1)
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help")
            .collect();
        assert!(commands.len() >= 11, "{commands:?}");
        for name in commands {
            let (_, help, _) = enmesh(&[name, "--help"]).await;
            assert!(help.contains("Example"), "{name}: {help}");
            let (status, page, _) = enmesh(&["man", name]).await;
            assert!(status == 0 && page.contains(".SH SYNOPSIS"), "{name}");
        }
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let (status, script, _) = enmesh(&["completions", shell]).await;
            assert!(status == 0 && script.contains("routes") && script.contains("explain"), "{shell}");
        }
        let (status, _, err) = enmesh(&["man", "nothing"]).await;
        assert!(status == 2 && err.contains("there are: profile, "), "{err}");
    }
}
