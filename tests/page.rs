//! The page of the admin server and what it asks: the files, what the mesh knows, and what it would do with a request.
#![cfg(feature = "admin")]

use enmesh::Mesh;
use enmesh::admin::fleet::{self, Fleet, Question};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

const VOTING: &str = r"
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: voting.emojivoto}
spec:
  retryBudget: {retryRatio: 0.2, minRetriesPerSecond: 10, ttl: 10s}
  routes:
  - name: vote
    condition: {pathRegex: /vote}
    timeouts: {request: 2s, attempt: 250ms}
    retry: {attempts: 3, on: [unavailable], idempotent: true}
  - name: list
    condition: {pathRegex: /list}
";

fn voting(peers: &[String]) -> Mesh {
    let mesh = Mesh::builder().name("voting.emojivoto:80").dns(false).profile_yaml(VOTING).admin(ANY);
    mesh.admin_peers(peers).build().unwrap()
}

fn web(peers: &[String]) -> Mesh {
    let mesh = Mesh::builder().name("web.emojivoto:80").dns(false).profile_yaml(VOTING).admin(ANY);
    let mesh = mesh.endpoints("voting.emojivoto:80", ["127.0.0.1:1", "127.0.0.1:2"]);
    let mesh = mesh.admin_peers(peers).build().unwrap();
    mesh.service("voting.emojivoto:80").unwrap();
    mesh
}

fn url(mesh: &Mesh) -> String {
    format!("http://{}", mesh.admin_addr().unwrap())
}

async fn ask(mesh: &Mesh, path: &str, body: Option<Value>) -> Result<Value, String> {
    let fleet = Fleet::new([url(mesh).parse().unwrap()], fleet::dns());
    fleet.ask(&Question { path: path.into(), body }).await.remove(0).answer
}

/// A whole response, as a browser's request with these headers gets it.
async fn raw(mesh: &Mesh, method: &str, path: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(mesh.admin_addr().unwrap()).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    String::from_utf8(response).unwrap()
}

/// The paths that a file of the page names in quotes.
fn named(text: &str) -> Vec<String> {
    let parts = text.split(['"', '\'', '`', ' ', ')']);
    parts.filter(|part| part.starts_with("/page/") && part.len() > 6).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_page_is_whole_and_asks_no_other_address() {
    let mesh = web(&[]);
    let host = "host: localhost:1\r\n";
    let (mut waiting, mut seen) = (vec!["/".to_owned()], Vec::new());
    while let Some(path) = waiting.pop() {
        let response = raw(&mesh, "GET", &path, host, "").await;
        let (head, text) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        let policy = "content-security-policy: default-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
        assert!(head.contains(policy) && head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        let ours = !path.starts_with("/page/uplot");
        if ours {
            // The one address in it names a kind of markup, and is never asked.
            let others = text.replace("http://www.w3.org/2000/svg", "").replace("https?:\\/\\/", "");
            assert!(!others.contains("http://") && !others.contains("https://"), "{path}");
            assert!(!text.contains("innerHTML") && !text.contains("eval("), "{path}");
            let lines = text.lines().count();
            assert!(lines < 500, "{path} has {lines} lines");
        }
        let new = named(text).into_iter().filter(|path| ours && !seen.contains(path));
        waiting.extend(new.collect::<Vec<_>>());
        seen.push(path);
    }
    seen.sort();
    seen.dedup();
    assert!(seen.len() >= 18, "{seen:?}");
}

#[tokio::test]
async fn another_site_and_a_foreign_name_get_nothing() {
    let mesh = web(&[]);
    let body = r#"{"host":"voting.emojivoto","path":"/vote"}"#;
    let asked = [
        ("GET", "/", ""),
        ("GET", "/page/main.js", ""),
        ("GET", "/api/v1/inspect", ""),
        ("POST", "/api/v1/explain", body),
    ];
    for (method, path, body) in asked {
        for headers in [
            "host: evil.test\r\n",
            "host: evil.test:4191\r\norigin: http://evil.test:4191\r\nsec-fetch-site: same-origin\r\n",
            "host: localhost\r\nsec-fetch-site: cross-site\r\n",
            "host: localhost\r\norigin: http://evil.test\r\n",
            "host: localhost\r\norigin: null\r\n",
        ] {
            let response = raw(&mesh, method, path, headers, body).await;
            assert!(response.starts_with("HTTP/1.1 403"), "{method} {path} {headers:?}: {response}");
            assert!(!response.contains("emojivoto") && !response.contains("<html"), "{response}");
        }
        let own = "host: localhost:1\r\norigin: http://localhost:1\r\nsec-fetch-site: same-origin\r\n";
        let response = raw(&mesh, method, path, own, body).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{method} {path}: {response}");
        assert!(!response.to_lowercase().contains("access-control-allow"), "{response}");
    }
}

#[tokio::test]
async fn what_each_process_knows_is_told_by_its_id() {
    let voting = voting(&[]);
    let web = web(&[url(&voting), "http://127.0.0.1:1".to_owned()]);
    let told = ask(&web, "/api/v1/inspect", None).await.unwrap();
    let processes = told["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 3);
    assert!(processes[2]["error"].as_str().unwrap().contains("cannot be reached"));
    let of = |at: usize| &told["inspections"][processes[at]["id"].as_str().unwrap()];
    assert_eq!((&of(0)["name"], &of(1)["name"]), (&json!("web.emojivoto:80"), &json!("voting.emojivoto:80")));

    let services = of(0)["services"].as_array().unwrap();
    let service = services.iter().find(|service| service["name"] == "voting.emojivoto:80").unwrap();
    assert_eq!(service["endpoints"].as_array().unwrap().len(), 2);
    assert_eq!(
        service["endpoints"][0]["breaker"],
        json!({"state": "open", "reason": null, "retry_in_ms": null})
    );
    assert_eq!(service["balancer"]["algorithm"], "recently_freed");
    assert_eq!(service["retry_budget"], json!({"ratio": 0.2, "min_per_second": 10, "ttl": "10s"}));
    assert_eq!(service["retry_budget_level"], 100);
    assert_eq!(service["routes"][0]["timeouts"]["attempt"], "250ms");
    assert_eq!(service["routes"][0]["retry"]["attempts_max"], 3);
    let backend = json!({"service": "voting.emojivoto:80", "share": 1.0, "status": null});
    assert_eq!(service["routes"][0]["backends"], json!([backend]));
    let updates = of(0)["updates"].as_array().unwrap();
    let update = |kind: &str| updates.iter().find(|update| update["kind"] == kind).unwrap();
    assert_eq!(update("endpoints")["lines"][0], json!({"op": "+", "text": "127.0.0.1:1"}));
    assert_eq!(update("profile")["service"], "voting.emojivoto:80");

    let local = ask(&web, "/api/v1/inspect?local=1", None).await.unwrap();
    assert_eq!(local["processes"].as_array().unwrap().len(), 1);
    let id = processes[1]["id"].as_str().unwrap();
    let one = ask(&web, &format!("/api/v1/inspect?process={id}"), None).await.unwrap();
    assert_eq!(one["inspections"].as_object().unwrap().keys().collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_request_is_explained_by_the_process_that_is_asked() {
    let voting = voting(&[]);
    let web = web(&[url(&voting)]);
    let explain = |question: Value| ask(&web, "/api/v1/explain", Some(question));
    let sent = explain(json!({"id": 7, "host": "voting.emojivoto", "path": "/list?x=1"})).await.unwrap();
    assert_eq!(
        (&sent["id"], &sent["outcome"], &sent["route"]),
        (&json!(7), &json!("forward"), &json!("list"))
    );
    assert_eq!(sent["why"], json!(["routes[0]: path ~/vote does not match"]));
    assert_eq!(sent["backends"][0]["service"], "voting");

    let processes = ask(&web, "/api/v1/inspect", None).await.unwrap()["processes"].clone();
    let id = &processes[1]["id"];
    let there = json!({"process": id, "direction": "inbound", "host": "voting.emojivoto", "path": "/vote"});
    let there = explain(there).await.unwrap();
    assert_eq!((&there["route"], &there["authz"]["decision"]), (&json!("vote"), &json!("none")));
    let nobody = explain(json!({"process": "0", "path": "/"})).await.unwrap_err();
    assert!(nobody.contains("answered 404") || nobody.contains("has no such page"), "{nobody}");

    // Asking does not make the mesh know what it did not.
    let unknown = explain(json!({"host": "other.ns", "path": "/"})).await.unwrap();
    assert_eq!(unknown["why"][1], "this process has not called other.ns:80 so far");
    let known = ask(&web, "/api/v1/inspect?local=1", None).await.unwrap().to_string();
    assert!(!known.contains("other.ns"), "{known}");

    for (question, part) in
        [(json!({"path": "/"}), "host: is missing"), (json!({"host": "a b", "path": "/"}), "host")]
    {
        let answer = explain(question).await.unwrap();
        assert_eq!(answer["status"], 400);
        assert!(answer["why"][0].as_str().unwrap().contains(part), "{answer}");
    }
    assert!(explain(json!([1])).await.unwrap_err().contains("the body is no request"));
}
