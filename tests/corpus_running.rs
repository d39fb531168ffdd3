//! Gateway API's conformance tables through the running stack, with real backends on loopback: run with
//! `ENMESH_CORPUS=…/shared/data`. Rows about TLS handshakes are decided in `corpus_gateway_api.rs`.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns")]

#[path = "support/corpus.rs"]
mod support;

use bytes::Bytes;
use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::load;
use enmesh::profile::object;
use enmesh::{Mesh, MeshBuilder};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{cases, check_location, corpus, files, json_of, list, vectors};
use tokio::net::TcpListener;

/// How backends behave at present, and whom they were: namespace and name of each call.
#[derive(Default)]
struct Stage {
    fail: u64,
    status: Option<u16>,
    calls: Vec<(String, String)>,
}

type Shared = Arc<Mutex<Stage>>;

/// A backend that answers with who it is and what it was asked.
async fn backend(namespace: String, name: String, stage: Shared) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (namespace, name, stage) = (namespace.clone(), name.clone(), Arc::clone(&stage));
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = answer(&namespace, &name, &request, &stage);
                let wait = request.uri().query() == Some("delay=1s");
                async move {
                    if wait {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    answer
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(io, service).await.map_err(drop) });
        }
    });
    addr
}

fn answer<B>(
    namespace: &str,
    name: &str,
    request: &Request<B>,
    stage: &Shared,
) -> Result<Response<Full<Bytes>>, &'static str> {
    let mut stage = stage.lock().unwrap();
    stage.calls.push((namespace.to_owned(), name.to_owned()));
    if stage.fail > 0 {
        stage.fail -= 1;
        let status = stage.status.ok_or("the connection breaks")?;
        return Ok(Response::builder().status(status).body(Full::default()).unwrap());
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: BTreeMap<&str, String> =
        request.headers().iter().map(|(name, value)| (name.as_str(), text(value))).collect();
    let path = request.uri().path_and_query().unwrap().as_str();
    let seen = json!({"name": name, "namespace": namespace, "path": path, "headers": headers});
    let response = Response::builder().header("grpc-status", "0").body(Full::from(seen.to_string()));
    Ok(response.unwrap())
}

/// All backends there are, started when they are first named.
#[derive(Default)]
struct World {
    stage: Shared,
    backends: BTreeMap<(String, String), SocketAddr>,
}

impl World {
    /// A mesh that has read these files and knows a replica of each of their services. `own` is its name.
    async fn mesh(&mut self, root: &Path, files: &[&str], own: &str) -> Mesh {
        let mut objects = Vec::new();
        for file in files {
            objects.extend(object::read(&std::fs::read_to_string(root.join(file)).unwrap(), file));
        }
        let mut builder = Mesh::builder().dns(false).name(own);
        for object in objects.iter().filter(|object| object.kind == "Service") {
            let text = |key: &str| object.root.get("metadata")?.get(key)?.text().map(str::to_owned);
            let key = (text("namespace").unwrap_or_else(|| "default".to_owned()), text("name").unwrap());
            let addr = match self.backends.get(&key) {
                Some(addr) => *addr,
                None => {
                    let addr = backend(key.0.clone(), key.1.clone(), Arc::clone(&self.stage)).await;
                    *self.backends.entry(key.clone()).or_insert(addr)
                }
            };
            builder = builder.endpoints(&format!("{}.{}", key.1, key.0), [addr.to_string()]);
        }
        let profiles = load(objects, &ImportSettings::default()).profiles;
        profiles.into_iter().fold(builder, MeshBuilder::profile).build().unwrap()
    }
}

struct Row<'a> {
    case: &'a Value,
    id: &'a str,
    mesh: &'a Mesh,
    stage: &'a Shared,
}

/// What came of a request.
struct Came {
    status: u16,
    headers: HeaderMap,
    echo: Value,
}

impl Row<'_> {
    fn request(&self) -> Request<()> {
        let request = &self.case["request"];
        let host = request["host"].as_str().filter(|host| !host.is_empty()).unwrap_or("unnamed.test");
        let query =
            request["query"].as_str().map(|query| format!("?{}", query.replace(['<', '>', ' '], "_")));
        let path = request["path"].as_str().unwrap();
        let path = path.replace("<echo service>", "echo.Echo").replace("<method>", "Echo");
        let uri = format!("http://{host}{path}{}", query.unwrap_or_default());
        let method = request["method"].as_str().unwrap();
        let mut http = Request::builder().method(method).uri(uri).body(()).unwrap();
        for (name, value) in request["headers"].as_object().into_iter().flatten() {
            let name: HeaderName = name.parse().unwrap();
            http.headers_mut().insert(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
        }
        if self.id.starts_with("grpc") {
            http.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        http
    }

    async fn send(&self) -> Came {
        let client = match self.case["gateway"].as_str() {
            Some(gateway) => {
                let (namespace, name) = gateway.split_once('/').unwrap();
                let port = self.case["listener_port"].as_u64().unwrap_or(80);
                self.mesh.service(&format!("{name}.{namespace}:{port}")).unwrap()
            }
            None if self.case["client"].is_null() => {
                self.mesh.service("same-namespace.gateway-conformance-infra:80").unwrap()
            }
            None => self.mesh.client(),
        };
        let response = match client.send(self.request()).await {
            Ok(response) => response,
            Err(error) => {
                let status = error.to_status().as_u16();
                return Came { status, headers: HeaderMap::new(), echo: json!({"error": error.to_string()}) };
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
        let echo = serde_json::from_slice(&body).unwrap_or_default();
        Came { status: head.status.as_u16(), headers: head.headers, echo }
    }

    fn expect(&self, key: &str) -> &Value {
        &self.case["expect"][key]
    }

    /// Whether a handshake is what the row is about.
    fn is_of_tls(&self) -> bool {
        let sni = self.expect("backend_request")["sni"].is_string();
        sni || self.expect("kind") == "failure"
    }

    async fn check(&self) {
        let behaviour = &self.case["backend_behavior"];
        {
            let mut stage = self.stage.lock().unwrap();
            stage.calls.clear();
            stage.fail = behaviour["fail_first_n_attempts"].as_u64().unwrap_or(0);
            stage.status =
                behaviour["failure"]["http_status"].as_u64().map(|status| u16::try_from(status).unwrap());
        }
        match self.expect("kind").as_str().unwrap() {
            "backend" => self.check_backend(&self.send().await).await,
            "status" => {
                let came = self.send().await;
                let statuses = list(self.expect("status"));
                // A broken connection is Linkerd's 502 here, where gateways say 500 or 503 (docs/dialects/gateway-api.md).
                let broken = came.status == 502 && behaviour["failure"]["tcp_reset"] == true;
                let told = broken || statuses.contains(&came.status.into());
                assert!(told, "{}: {} {}", self.id, came.status, came.echo);
                self.check_response(&came);
            }
            "redirect" => self.check_redirect(&self.send().await),
            "grpc_status" => {
                let came = self.send().await;
                assert_eq!(came.headers["grpc-status"], "12", "{}", self.id);
            }
            "distribution" => self.check_shares().await,
            "distribution_per_backend_headers" => {
                for _ in 0..50 {
                    let came = self.send().await;
                    let who = who(&came.echo);
                    for (name, value) in self.expect("per_backend_headers")[&who].as_object().unwrap() {
                        assert_eq!(
                            came.echo["headers"][name.to_ascii_lowercase()],
                            *value,
                            "{}: {who}",
                            self.id
                        );
                    }
                }
            }
            other => panic!("{}: {other} is not known", self.id),
        }
    }

    async fn check_backend(&self, came: &Came) {
        let statuses = list(self.expect("status"));
        assert!(
            came.status == 200 || statuses.contains(&came.status.into()),
            "{}: {} {}",
            self.id,
            came.status,
            came.echo
        );
        let expected = self.expect("backend");
        for key in ["name", "namespace"] {
            let wanted = &expected[key];
            assert!(
                wanted.is_null() || *wanted == came.echo[key],
                "{}: {} for {expected}",
                self.id,
                came.echo
            );
        }
        let sent = self.expect("backend_request");
        let waived =
            list(self.expect("not_asserted_upstream")).iter().any(|what| what == "backend_request.path");
        if let (Some(path), false) = (sent["path"].as_str(), waived) {
            let seen = came.echo["path"].as_str().unwrap();
            assert_eq!(seen.split('?').next(), path.split('?').next(), "{}", self.id);
        }
        for (name, value) in sent["headers"].as_object().into_iter().flatten() {
            assert_eq!(came.echo["headers"][name.to_ascii_lowercase()], *value, "{}: {name}", self.id);
        }
        for name in list(&sent["absent_headers"]) {
            let name = name.as_str().unwrap().to_ascii_lowercase();
            assert!(came.echo["headers"][&name].is_null(), "{}: {name}", self.id);
        }
        self.check_response(came);
        self.check_copies().await;
    }

    fn check_response(&self, came: &Came) {
        let response = self.expect("response");
        let text = |name: &str| came.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        for (name, value) in response["headers"].as_object().into_iter().flatten() {
            assert_eq!(text(name).as_deref(), value.as_str(), "{}: {name}", self.id);
        }
        let plain = |text: &str| text.replace(' ', "");
        for (name, values) in response["headers_one_of"].as_object().into_iter().flatten() {
            let seen = text(name).unwrap_or_else(|| panic!("{}: no {name}: {:?}", self.id, came.headers));
            let one = list(values).iter().any(|value| plain(value.as_str().unwrap()) == plain(&seen));
            assert!(one, "{}: {name} is {seen} and none of {values}", self.id);
        }
        for name in list(&response["absent_headers"]) {
            assert_eq!(text(&name.as_str().unwrap().to_ascii_lowercase()), None, "{}: {name}", self.id);
        }
    }

    /// Copies arrive some time after the answer.
    async fn check_copies(&self) {
        let expected = list(self.expect("mirrored_to"));
        let calls = |name: &Value| {
            let stage = self.stage.lock().unwrap();
            stage.calls.iter().filter(|(_, called)| *name == **called).count()
        };
        let percent = |one: &Value| one["percent"].as_f64().unwrap_or(100.0);
        let more = if expected.iter().any(|one| percent(one) < 100.0) { 199 } else { 0 };
        for _ in 0..more {
            let _ = self.send().await;
        }
        for one in expected {
            let due = (percent(one) * f64::from(more + 1) / 100.0).round() as usize;
            for _ in 0..500 {
                if calls(&one["name"]) >= due {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(calls(&one["name"]).abs_diff(due) <= 1, "{}: {} of {due}", self.id, calls(&one["name"]));
        }
    }

    fn check_redirect(&self, came: &Came) {
        assert!(list(self.expect("status")).contains(&came.status.into()), "{}: {}", self.id, came.status);
        let location: Uri = came.headers["location"].to_str().unwrap().parse().unwrap();
        check_location(self.id, self.expect("redirect"), &location);
    }

    async fn check_shares(&self) {
        const REQUESTS: usize = 500;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..REQUESTS {
            *counts.entry(who(&self.send().await.echo)).or_default() += 1;
        }
        for (name, share) in self.expect("backends").as_object().unwrap() {
            let count = counts.get(name).copied().unwrap_or(0);
            let due = share.as_f64().unwrap() * REQUESTS as f64;
            assert!((count as f64 - due).abs() <= 1.0, "{}: {name} got {count} of {due}", self.id);
        }
    }
}

fn who(echo: &Value) -> String {
    format!("{}/{}", echo["namespace"].as_str().unwrap_or("?"), echo["name"].as_str().unwrap_or("?"))
}

#[tokio::test]
async fn every_row_of_the_tables_is_so_with_real_backends() {
    let Some(root) = corpus("config/gateway-api") else { return };
    let mut world = World::default();
    let stage = Arc::clone(&world.stage);
    let mut checked: BTreeMap<String, usize> = BTreeMap::new();
    for file in files(&root.join("cases"), &["json"]) {
        let table = json_of(file);
        let mut meshes: BTreeMap<String, Mesh> = BTreeMap::new();
        for case in cases(&table, "cases") {
            let id = case["id"].as_str().unwrap();
            if case["expect"]["contradicts_manifest"].is_string() {
                continue;
            }
            let mut files: Vec<&str> = vec![table["base_manifest"].as_str().unwrap()];
            match case["manifest"].as_str() {
                Some(manifest) => files.push(manifest),
                None => {
                    files.extend(table["route_file"].as_str());
                    files.extend(list(&table["extra_route_files"]).iter().filter_map(Value::as_str));
                }
            }
            let namespace = case["client"]["namespace"].as_str().unwrap_or("gateway-conformance-infra");
            let own = format!("client.{namespace}");
            let key = format!("{own} {files:?}");
            if !meshes.contains_key(&key) {
                let mesh = world.mesh(&root, &files, &own).await;
                meshes.insert(key.clone(), mesh);
            }
            let row = Row { case, id, mesh: &meshes[&key], stage: &stage };
            if row.is_of_tls() {
                continue;
            }
            row.check().await;
            *checked.entry(row.expect("kind").as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    eprintln!("{checked:?}");
    assert!(checked.values().sum::<usize>() > 230 && checked.len() >= 6, "{checked:?}");
}

/// The services that a profile splits its requests among, and their weights.
fn split(profile: &enmesh::ServiceProfile) -> Vec<(String, u32)> {
    use enmesh::profile::route::{Action, Backend};
    let of_route = profile.routes.iter().find_map(|route| match &route.action {
        Action::Forward(forward) if !forward.backends.is_empty() => Some(&forward.backends),
        _ => None,
    });
    let backends = of_route.unwrap_or(&profile.backends).iter();
    let named = backends.filter_map(|weighted| match &weighted.backend {
        Backend::Service { name, .. } => {
            Some((name.short("cluster.local").host().to_owned(), weighted.weight))
        }
        Backend::Invalid { .. } => None,
    });
    named.collect()
}

/// Who answered so many requests to `service` in a mesh with this profile and these replicas.
async fn asked(
    profile: &enmesh::ServiceProfile,
    replicas: &[(String, Vec<String>)],
    times: usize,
) -> BTreeMap<String, usize> {
    let builder = Mesh::builder().dns(false).profile(profile.clone());
    let add = |builder: MeshBuilder, (name, addrs): &(String, Vec<String>)| builder.endpoints(name, addrs);
    let mesh = replicas.iter().fold(builder, add).build().unwrap();
    let service = profile.names[0].short("cluster.local").host().to_owned();
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let came = match mesh.client().get(format!("http://{service}/")).await {
            Ok(response) => response.into_body().collect().await.unwrap().to_bytes(),
            Err(_) => Bytes::new(),
        };
        let echo: Value = serde_json::from_slice(&came).unwrap_or_default();
        let name = echo["name"].as_str().unwrap_or("error");
        *answers.entry(name.to_owned()).or_default() += 1;
    }
    answers
}

#[tokio::test]
async fn splits_of_smi_are_so_with_real_backends() {
    let Some(root) = corpus("config/smi") else { return };
    let stage = Shared::default();
    let mut checked = 0;
    for folder in ["extracted", "emojivoto/training/traffic-split"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let profiles = load(object::read(&text, "f"), &ImportSettings::default()).profiles;
            // With matches only some requests are split: `import.rs` has those.
            for profile in profiles.iter().filter(|profile| profile.backends.len() > 1) {
                let split = split(profile);
                let mut replicas = Vec::new();
                for (name, _) in &split {
                    let (service, namespace) = name.split_once('.').unwrap();
                    let addr = backend(namespace.to_owned(), service.to_owned(), Arc::clone(&stage)).await;
                    replicas.push((name.clone(), vec![addr.to_string()]));
                }
                let answers = asked(profile, &replicas, 100).await;
                let total: u32 = split.iter().map(|(_, weight)| weight).sum();
                for (name, weight) in split.iter().filter(|_| total > 0) {
                    let due = f64::from(*weight) * 100.0 / f64::from(total);
                    let service = name.split('.').next().unwrap();
                    let got = answers.get(service).copied().unwrap_or(0) as f64;
                    assert!((got - due).abs() <= 1.0, "{path:?}: {service} got {got} of {due}");
                }
                checked += 1;
            }
        }
    }
    assert!(checked >= 3, "{checked}");
}

#[tokio::test]
async fn failover_goes_where_linkerds_controller_would_send_it() {
    let Some(vectors) = vectors("linkerd-failover.json") else { return };
    let (label, annotation) = (vectors["label"].as_str().unwrap(), vectors["annotation"].as_str().unwrap());
    for case in cases(&vectors, "cases") {
        let ready = case["ready"].as_object().unwrap();
        let weights = &case["in"];
        let backends: Vec<String> =
            ready.keys().map(|name| format!("{{service: {name}, weight: {}}}", weights[name])).collect();
        let text = format!(
            "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{name: x, namespace: ns, labels: {{{label}}}, \
             annotations: {{{annotation}: p}}}}\nspec: {{service: web, backends: [{}]}}\n",
            backends.join(", ")
        );
        let profile = load(object::read(&text, "f"), &ImportSettings::default()).profiles.remove(0);
        let stage = Shared::default();
        let mut replicas = Vec::new();
        for (name, ready) in ready {
            let addr = backend("ns".to_owned(), name.clone(), Arc::clone(&stage)).await.to_string();
            let addrs = if ready.as_bool().unwrap() { vec![addr] } else { Vec::new() };
            replicas.push((format!("{name}.ns"), addrs));
        }
        let answers = asked(&profile, &replicas, 10).await;
        // The primary while it is ready, else one of those that are; with nobody ready an error, and no one else.
        let any = ready.values().any(|ready| ready.as_bool().unwrap());
        let expected = match (ready["p"].as_bool().unwrap(), any) {
            (true, _) => "p",
            (false, true) => ready.iter().find(|(_, ready)| ready.as_bool().unwrap()).unwrap().0.as_str(),
            (false, false) => "error",
        };
        assert_eq!(answers, BTreeMap::from([(expected.to_owned(), 10)]), "{case}");
    }
}
