//! What `explain` says is what a running mesh does, with real backends: on random documents of producers and consumers,
//! with hosts, headers, parameters, filters of rules and of backends, splits and backends that are not there.
#![cfg(all(feature = "cli", feature = "http"))]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns its backends")]

use bytes::Bytes;
use enmesh::stdx::rng::Rng;
use enmesh::{Error, Mesh};
use http::{Request, Response};
use http_body_util::Empty;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use tokio::net::TcpListener;

/// The services that are there; `gone` is named too, and is not.
const SERVICES: [&str; 3] = ["web", "v1", "v2"];

/// A backend that answers with its name and with what it saw: host, path and the headers that begin with `x-`.
async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    let mut response = Response::builder()
                        .header("backend", name)
                        .header("seen-host", request.headers().get("host").unwrap())
                        .header("seen-path", request.uri().path_and_query().unwrap().as_str())
                        .header("x-gone", "from the backend");
                    for key in request.headers().keys().filter(|key| key.as_str().starts_with("x-")) {
                        let values =
                            request.headers().get_all(key).iter().map(|value| value.to_str().unwrap());
                        response =
                            response.header(format!("seen-{key}"), values.collect::<Vec<_>>().join(","));
                    }
                    Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
            tokio::spawn(async move { connection.await.map_err(drop) });
        }
    });
    addr
}

/// Draws from a seed.
struct Dice(Rng);

impl Dice {
    fn below(&self, end: u32) -> u32 {
        self.0.below(end)
    }

    fn is_one_of(&self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn one<'a>(&self, texts: &[&'a str]) -> &'a str {
        texts[self.below(texts.len() as u32) as usize]
    }

    fn key(&self, name: &str) -> Value {
        let (kind, value) = match self.below(3) {
            0 => ("Exact", "1"),
            1 => ("Exact", "2"),
            _ => ("RegularExpression", "[23]"),
        };
        json!({"name": name, "type": kind, "value": value})
    }

    fn matched(&self) -> Value {
        let mut matched = json!({"path": {
            "type": self.one(&["Exact", "PathPrefix", "PathPrefix", "RegularExpression"]),
            "value": self.one(&["/", "/a", "/a/b", "/b"]),
        }});
        if self.is_one_of(4) {
            matched["method"] = self.one(&["GET", "DELETE"]).into();
        }
        if self.is_one_of(3) {
            matched["headers"] = json!([self.key("x-h")]);
        }
        if self.is_one_of(3) {
            matched["queryParams"] = json!([self.key("q")]);
        }
        matched
    }

    /// `add` and `set` of headers whose names and values say where they come from.
    fn mods(&self, kind: &str, field: &str, from: &str) -> Value {
        json!({"type": kind, field: {
            "set": [{"name": "x-set", "value": from}], "add": [{"name": format!("x-add-{from}"), "value": from}],
            "remove": ["x-gone"],
        }})
    }

    fn rule(&self, index: u32) -> Value {
        if self.is_one_of(6) {
            let redirect = json!({"hostname": format!("rule{index}.test"), "statusCode": 301});
            return json!({
                "matches": [self.matched()], "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}],
            });
        }
        let mut filters =
            vec![self.mods("RequestHeaderModifier", "requestHeaderModifier", &format!("r{index}"))];
        if self.is_one_of(3) {
            filters.push(self.mods("ResponseHeaderModifier", "responseHeaderModifier", &format!("r{index}")));
        }
        if self.is_one_of(4) {
            let path = json!({"type": "ReplaceFullPath", "replaceFullPath": "/full"});
            filters.push(json!({"type": "URLRewrite", "urlRewrite": {"hostname": "new.test", "path": path}}));
        }
        let backend = |number: u32| {
            let name = self.one(&["web", "v1", "v2", "v1", "v2", "gone"]);
            let mut backend = json!({"name": name, "namespace": "ns", "port": 80, "weight": self.below(4)});
            if self.is_one_of(3) {
                let mods = self.mods("RequestHeaderModifier", "requestHeaderModifier", &format!("b{number}"));
                backend["filters"] = json!([mods]);
            }
            backend
        };
        json!({
            "matches": (0..=self.below(2)).map(|_| self.matched()).collect::<Vec<_>>(),
            "filters": filters,
            "backendRefs": (0..=self.below(3)).map(backend).collect::<Vec<_>>(),
        })
    }

    fn route(&self, namespace: &str) -> Value {
        let mut spec = json!({
            "parentRefs": [{"group": "", "kind": "Service", "name": "web", "namespace": "ns"}],
            "rules": (0..=self.below(4)).map(|index| self.rule(index)).collect::<Vec<_>>(),
        });
        if self.is_one_of(4) {
            spec["hostnames"] = json!([self.one(&["web.ns", "*.svc.cluster.local", "other.test"])]);
        }
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": format!("of-{namespace}"), "namespace": namespace}, "spec": spec,
        })
    }

    /// Routes of the service's own namespace and of its callers', what there is, and perhaps a profile beside them.
    fn documents(&self) -> String {
        let mut all = vec![self.route("ns"), self.route("cons")];
        all.extend(SERVICES.iter().map(|name| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "ns"},
                "spec": {"ports": [{"port": 80}]},
            })
        }));
        if !self.is_one_of(4) {
            all.push(json!({
                "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
                "metadata": {"name": "g", "namespace": "ns"},
                "spec": {
                    "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "cons"}],
                    "to": [{"group": "", "kind": "Service"}],
                },
            }));
        }
        if self.is_one_of(2) {
            all.push(json!({
                "apiVersion": "linkerd.io/v1alpha2", "kind": "ServiceProfile",
                "metadata": {"name": "web.ns.svc.cluster.local", "namespace": "ns"},
                "spec": {"routes": [{"name": "known", "condition": {"pathRegex": "/a.*"}, "timeout": "9s"}]},
            }));
        }
        all.iter().map(|document| format!("---\n{document}\n")).collect()
    }

    fn request(&self, from: &str) -> Value {
        json!({
            "host": self.one(&["web.ns", "web.ns:80", "web.ns.svc.cluster.local"]),
            "method": self.one(&["GET", "DELETE", "HEAD"]),
            "path": self.one(&["/", "/a", "/a/?q=1", "/a/b?q=2&q=1", "/a/b/c?q=3", "/ab", "/b?x", "/c"]),
            "headers": {"x-h": self.one(&["1", "2", "3"]), "x-gone": "from the caller", "x-set": "from the caller"},
            "from": {"namespace": from},
        })
    }
}

fn explained(config: &str, requests: &[Value]) -> Vec<Value> {
    let input: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_enmesh"))
        .args(["explain", "--config", config])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// What is said to be set, added and removed, against what is there.
fn check_headers(said: &Value, there: &http::HeaderMap, prefix: &str, context: &str) {
    let found = |name: &str| there.get(format!("{prefix}{name}")).map(|value| value.to_str().unwrap());
    for (name, value) in said["set_headers"].as_object().unwrap() {
        assert_eq!(found(name), value.as_str(), "{name}: {context}");
    }
    for (name, value) in said["added_headers"].as_object().unwrap() {
        assert!(found(name).is_some_and(|all| all.ends_with(value.as_str().unwrap())), "{name}: {context}");
    }
    for name in said["removed_headers"].as_array().unwrap() {
        assert_eq!(found(name.as_str().unwrap()), None, "{name}: {context}");
    }
}

/// The share of each backend that is named; of those that are not there, by their status.
fn shares(answer: &Value) -> BTreeMap<String, f64> {
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    for backend in answer["backends"].as_array().unwrap() {
        let name = match backend["status"].as_u64() {
            Some(status) => status.to_string(),
            None => text(backend, "service").to_owned(),
        };
        *shares.entry(name).or_default() += backend["share"].as_f64().unwrap();
    }
    shares
}

/// What backend `name` saw and what came back, against what was said.
fn check_forwarded(name: &str, headers: &http::HeaderMap, answer: &Value, context: &str) {
    for (seen, said) in [("seen-host", "host"), ("seen-path", "path")] {
        assert_eq!(headers[seen].to_str().unwrap(), text(&answer["request"], said), "{context}");
    }
    let is_asked =
        |backend: &&Value| text(backend, "service") == name && backend["share"].as_f64() > Some(0.0);
    let own: Vec<&Value> = answer["backends"].as_array().unwrap().iter().filter(is_asked).collect();
    // Of several references to one service any may have been meant: they are not told apart here.
    if let [only] = own.as_slice() {
        let said = if only["request"].is_object() { &only["request"] } else { &answer["request"] };
        check_headers(said, headers, "seen-", context);
    }
    check_headers(&answer["response"], headers, "", context);
}

/// Sends a request so often that each backend's share shows, and holds what came back to what was said.
async fn check(mesh: &Mesh, request: &Value, answer: &Value, context: &str) {
    let shares = shares(answer);
    let times = if shares.len() > 1 { 12 } else { 1 };
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..times {
        let mut http = Request::builder().method(text(request, "method")).uri(format!(
            "http://{}{}",
            text(request, "host"),
            text(request, "path")
        ));
        for (name, value) in request["headers"].as_object().unwrap() {
            http = http.header(name, value.as_str().unwrap());
        }
        let response = match mesh.client().send(http.body(()).unwrap()).await {
            Ok(response) => response,
            Err(Error::NoRoute { .. }) => return assert_eq!(answer["outcome"], "no_route", "{context}"),
            Err(Error::InvalidBackend { status, .. }) => {
                *counts.entry(status.to_string()).or_default() += 1.0;
                continue;
            }
            Err(error) => panic!("{error}: {context}"),
        };
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        let Some(name) = header("backend") else {
            let kind = if header("location").is_some() { "redirect" } else { "respond" };
            assert_eq!(answer["outcome"], kind, "{context}");
            assert_eq!(header("location"), answer["redirect"]["location"].as_str(), "{context}");
            return assert_eq!(answer["status"], response.status().as_u16(), "{context}");
        };
        *counts.entry(name.to_owned()).or_default() += 1.0;
        check_forwarded(name, response.headers(), answer, context);
    }
    if answer["outcome"] == "reject" {
        return assert_eq!(counts.keys().next().map(String::as_str), Some("500"), "{context}");
    }
    for (name, share) in shares {
        let (count, due) = (counts.remove(&name).unwrap_or_default(), share * f64::from(times));
        assert!((count - due).abs() <= 2.0, "{name} answered {count} times for {due}: {context}");
        assert!(share > 0.0 || count == 0.0, "{name} has no weight: {context}");
    }
    assert!(counts.is_empty(), "{counts:?} were not named: {context}");
}

#[tokio::test]
async fn explain_says_where_a_running_mesh_sends_each_caller_s_requests() {
    let mut addresses = Vec::new();
    for name in SERVICES {
        addresses.push((name, backend(name).await));
    }
    let config = std::env::temp_dir().join(format!("enmesh-explain-running-{}.yaml", std::process::id()));
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..30 {
        let dice = Dice(Rng::seeded(seed));
        let documents = dice.documents();
        std::fs::write(&config, &documents).unwrap();
        for from in ["ns", "cons"] {
            let requests: Vec<Value> = (0..25).map(|_| dice.request(from)).collect();
            let answers = explained(config.to_str().unwrap(), &requests);
            assert_eq!(answers.len(), requests.len());
            let builder = Mesh::builder().dns(false).name(&format!("caller.{from}")).profile_yaml(&documents);
            let mesh = addresses
                .iter()
                .fold(builder, |builder, (name, addr)| {
                    builder.endpoints(&format!("{name}.ns"), [addr.to_string()])
                })
                .build()
                .unwrap();
            for (request, answer) in requests.iter().zip(&answers) {
                let context = format!("seed {seed}: {request}\n{answer}\n{documents}");
                check(&mesh, request, answer, &context).await;
                *outcomes.entry(text(answer, "outcome").to_owned()).or_default() += 1;
            }
        }
    }
    let _ = std::fs::remove_file(&config);
    let kinds: Vec<&str> = outcomes.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["forward", "no_route", "redirect", "reject", "respond"], "{outcomes:?}");
    assert!(outcomes.values().all(|count| *count >= 10), "{outcomes:?}");
}
