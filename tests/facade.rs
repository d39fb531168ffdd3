//! The mesh as a program uses it: real servers and clients on loopback.
#![cfg(feature = "http")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test is no library: it spawns and reads its own paused clock"
)]

use bytes::Bytes;
use enmesh::{CallOptions, Error, Mesh, RequestExt, ResponseExt};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// A server that answers every request by `answer`, over HTTP/1.1 and HTTP/2.
async fn server<F>(answer: F) -> SocketAddr
where
    F: Fn(Request<hyper::body::Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            let service = hyper::service::service_fn(move |request| {
                let response = answer(request);
                async move { Ok::<_, Infallible>(response) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(io, service).await.map_err(drop) });
        }
    });
    addr
}

fn text(status: u16, body: &str) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::from(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

async fn named(name: &'static str) -> (SocketAddr, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    let addr = server(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        text(200, name)
    });
    (addr.await, calls)
}

fn profile(routes: &str) -> String {
    format!(
        "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata:\n  name: web.ns.svc.cluster.local\nspec:\n{routes}"
    )
}

async fn read(response: Response<enmesh::ResBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_call_says_who_answered_by_which_route_after_how_many_attempts() {
    let failures = AtomicU32::new(1);
    let addr = server(move |_| {
        let fail =
            failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if fail { text(503, "") } else { text(200, "ok") }
    });
    let addr = addr.await;
    let routes = "  routes:\n  - name: list\n    condition: {pathRegex: /list}\n    isRetryable: true\n";
    let mesh = Mesh::builder().profile_yaml(&profile(routes)).endpoints("web.ns:80", [addr.to_string()]);
    let mesh = mesh.build().unwrap();
    let response = mesh.client().get("http://web.ns.svc.cluster.local/list").await.unwrap();
    let info = response.call_info();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((info.attempts, &*info.route), (2, "list"));
    assert_eq!(info.endpoint.as_ref().map(|endpoint| endpoint.addr), Some(addr));
    assert!(info.latency > Duration::ZERO);
    assert_eq!(read(response).await, "ok");
    let stats = mesh.stats();
    let list = stats.routes.iter().find(|route| route.route == "list").unwrap();
    assert_eq!((list.reading.requests, list.reading.successes, list.reading.retries()), (1, 1, 1));
    assert_eq!(list.dst, "web.ns.svc.cluster.local:80");
}

#[tokio::test]
async fn the_callers_own_options_hold() {
    let addr = server(|_| text(503, ""));
    let addr = addr.await;
    let routes = "  routes:\n  - name: all\n    condition: {pathRegex: /.*}\n    isRetryable: true\n";
    let mesh = Mesh::builder().profile_yaml(&profile(routes)).endpoints("web.ns", [addr.to_string()]);
    let client = mesh.build().unwrap().client();
    let request =
        Request::get("http://web.ns/x").body(()).unwrap().with_options(CallOptions::default().retries(0));
    assert_eq!(client.send(request).await.unwrap().call_info().attempts, 1);
}

#[tokio::test]
async fn a_timeout_of_the_whole_call_is_an_error_that_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let routes =
        "  routes:\n  - name: slow\n    condition: {pathRegex: /.*}\n    timeouts: {request: 30ms}\n";
    let mesh = Mesh::builder().profile_yaml(&profile(routes)).endpoints("web.ns:80", [addr]).build().unwrap();
    let error = mesh.client().get("http://web.ns/").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert_eq!((error.to_status().as_u16(), error.to_grpc()), (504, 4));
}

#[tokio::test]
async fn weights_are_exact_and_a_backend_has_its_own_endpoints() {
    let (a, a_calls) = named("a").await;
    let (b, b_calls) = named("b").await;
    let routes = "  routes:\n  - name: split\n    condition: {pathRegex: /.*}\n    backends:\n    - {service: \"a.ns:80\", weight: 9}\n    - {service: \"b.ns:80\", weight: 1}\n";
    let mesh = Mesh::builder()
        .profile_yaml(&profile(routes))
        .endpoints("a.ns:80", [a.to_string()])
        .endpoints("b.ns:80", [b.to_string()])
        .build()
        .unwrap();
    for _ in 0..100 {
        read(mesh.client().get("http://web.ns/").await.unwrap()).await;
    }
    assert_eq!((a_calls.load(Ordering::Relaxed), b_calls.load(Ordering::Relaxed)), (90, 10));
}

#[tokio::test]
async fn filters_of_one_backend_hold_for_it_alone() {
    use enmesh::profile::matching::Condition;
    use enmesh::profile::route::{Action, Backend, Filter, Forward, HeaderMods, Route, WeightedBackend};
    let echo = server(|request| {
        let seen = request.headers().get("x-for").map_or("none", |value| value.to_str().unwrap());
        text(200, seen)
    });
    let addr = echo.await;
    let set = |value: &str| HeaderMods { set: vec![("x-for".into(), value.into())], ..HeaderMods::default() };
    let to = |name: &str, filters| WeightedBackend {
        backend: Backend::Service { name: name.parse().unwrap(), subset: None },
        weight: 1,
        filters,
    };
    let own = vec![Filter::RequestHeaders(set("a")), Filter::ResponseHeaders(set("from a"))];
    let backends = vec![to("a.ns:80", own), to("b.ns:80", Vec::new())];
    let action = Action::Forward(Forward { backends, ..Forward::default() });
    let route = Route { name: "r".into(), condition: Condition::Always, action, ..Route::default() };
    let profile = enmesh::ServiceProfile {
        routes: vec![route],
        ..enmesh::ServiceProfile::new("web.ns".parse().unwrap())
    };
    let mesh = Mesh::builder()
        .profile(profile)
        .endpoints("a.ns:80", [addr.to_string()])
        .endpoints("b.ns:80", [addr.to_string()])
        .build()
        .unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let response = mesh.client().get("http://web.ns/").await.unwrap();
        let marked = response.headers().contains_key("x-for");
        seen.push((read(response).await, marked));
    }
    seen.sort();
    assert_eq!(seen, [("a".to_owned(), true), ("none".to_owned(), false)]);
}

#[tokio::test]
async fn unknown_names_and_bad_uris_are_errors_with_a_remedy() {
    let mesh = Mesh::builder().dns(false).build().unwrap();
    let error = mesh.client().get("/no-host").await.unwrap_err();
    assert!(matches!(&error, Error::BadRequest { reason } if reason.contains("names no service")), "{error}");
    let error = mesh.client().get("https://nobody.ns/").await.unwrap_err();
    assert!(
        matches!(&error, Error::BadRequest { reason } if reason.contains("tls: {mode: Mesh}")),
        "{error}"
    );
    let error = mesh.client().get("http://nobody.ns/").await.unwrap_err();
    assert!(matches!(error, Error::NoEndpoints { .. }), "{error:?}");
    let error = Mesh::builder().endpoints("web", ["not-an-address"]).build().unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("not-an-address") && cause.contains("write address:port"), "{cause}");
}

#[tokio::test]
async fn a_mesh_serves_and_another_calls_it() {
    let serving = Mesh::builder()
        .name("web.ns")
        .profile_yaml(&profile("  routes:\n  - name: hi\n    condition: {pathRegex: /hi}\n"));
    let serving = serving.build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let app = axum::Router::new().route("/hi", axum::routing::get(|| async { "hello" }));
    let server = tokio::spawn({
        let serving = serving.clone();
        async move { serving.serve(listener, app).await }
    });
    let calling = Mesh::builder().endpoints("web.ns:80", [addr]).build().unwrap();
    assert_eq!(read(calling.client().get("http://web.ns/hi").await.unwrap()).await, "hello");
    let stats = serving.stats();
    let hi = stats.routes.iter().find(|route| route.route == "hi").unwrap();
    assert_eq!((hi.direction.as_str(), hi.reading.requests, hi.reading.successes), ("inbound", 1, 1));
    serving.shutdown().await;
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_meshs_policies_wrap_any_service() {
    use tower::{Layer, ServiceExt};
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    let inner = tower::service_fn(move |_| {
        let first = counter.fetch_add(1, Ordering::Relaxed) == 0;
        async move { Ok::<_, Error>(text(if first { 500 } else { 200 }, "inner")) }
    });
    let routes = "  routes:\n  - name: r\n    condition: {pathRegex: /.*}\n    isRetryable: true\n";
    let mesh = Mesh::builder().profile_yaml(&profile(routes)).build().unwrap();
    let service = mesh.layer().layer(inner);
    let request = Request::get("http://web.ns/").body(Full::<Bytes>::default()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!((response.status(), calls.load(Ordering::Relaxed)), (StatusCode::OK, 2));
}

#[cfg(feature = "files")]
#[tokio::test]
async fn an_edit_on_disk_changes_behaviour_and_a_bad_one_keeps_the_last_good() {
    let (addr, _) = named("x").await;
    let dir = std::env::temp_dir().join(format!("enmesh-facade-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let write = |file: &str, text: &str| {
        std::fs::write(dir.join(".new"), text).unwrap();
        std::fs::rename(dir.join(".new"), dir.join(file)).unwrap();
    };
    let route =
        |name: &str| profile(&format!("  routes:\n  - name: {name}\n    condition: {{pathRegex: /.*}}\n"));
    write("web.yaml", &route("before"));
    let endpoints = format!(
        "apiVersion: enmesh.dev/v1\nkind: Endpoints\nmetadata: {{name: 'web.ns:80'}}\nspec: {{endpoints: [{{address: '{addr}'}}]}}\n"
    );
    write("endpoints.yaml", &endpoints);
    let mesh = Mesh::builder().profiles_dir(&dir).endpoints_dir(&dir).dns(false).build().unwrap();
    let client = mesh.client();
    let route_now = || async { client.get("http://web.ns/").await.unwrap().call_info().route.to_string() };
    assert_eq!(route_now().await, "before", "the first request waits for the directory");
    write("web.yaml", &route("after"));
    let changed = async {
        while route_now().await != "after" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), changed).await.expect("the edit shows");
    write(
        "web.yaml",
        "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {name: web.ns}\nspec: {routs: []}\n",
    );
    let told = async {
        loop {
            let shown = serde_json::to_string(&mesh.inspect()).unwrap();
            if shown.contains("routs") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("the fault shows");
    assert_eq!(route_now().await, "after");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn a_grpc_caller_gets_a_grpc_status_and_another_an_error() {
    let mesh = Mesh::builder().dns(false).build().unwrap();
    let request = || Request::post("http://nobody.ns/pkg.Service/Method");
    let error = mesh.client().send(request().body(()).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::NoEndpoints { .. }), "{error:?}");
    let grpc = request().header("content-type", "application/grpc").body(()).unwrap();
    let response = mesh.client().send(grpc).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "no endpoint of nobody.ns:80 is known");
}

#[tokio::test]
async fn a_replica_that_cannot_be_reached_costs_no_caller_a_failure() {
    let (good, _) = named("good").await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let addrs = [good.to_string(), gone.to_string()];
    let mesh = Mesh::builder().endpoints("web.ns:80", addrs).build().unwrap();
    for _ in 0..50 {
        let request = Request::post("http://web.ns/").body("not idempotent").unwrap();
        assert_eq!(read(mesh.client().send(request).await.unwrap()).await, "good");
    }
}

/// Tells what a test sends.
struct Told<T>(tokio::sync::watch::Receiver<T>);

impl<T: Clone + Send + Sync + 'static> enmesh::control::source::Source<T> for Told<T> {
    fn watch(&self, _: &enmesh::profile::name::ServiceName) -> enmesh::control::source::Updates<T> {
        let stream = futures::stream::unfold((self.0.clone(), true), |(mut told, first)| async move {
            if !first {
                told.changed().await.ok()?;
            }
            let value = told.borrow_and_update().clone();
            Some((enmesh::control::source::Snapshot::good(Some(value)), (told, false)))
        });
        Box::pin(stream)
    }
}

#[tokio::test]
async fn updates_under_load_drop_no_request_and_lose_no_memory() {
    use enmesh::discover::endpoint::{Endpoint, EndpointSet};
    let ((a, a_calls), (b, b_calls)) = (named("a").await, named("b").await);
    let both = EndpointSet::new([Endpoint::new(a), Endpoint::new(b)]);
    let one = EndpointSet::new([Endpoint::new(a)]);
    let route = |name: &str| {
        let text = profile(&format!(
            "  routes:\n  - name: {name}\n    condition: {{pathRegex: /.*}}\n    isRetryable: true\n"
        ));
        Arc::new(enmesh::ServiceProfile::from_yaml(&text).unwrap())
    };
    let (endpoints, watched) = tokio::sync::watch::channel(both.clone());
    let (profiles, told) = tokio::sync::watch::channel(route("r0"));
    let mesh =
        Mesh::builder().profile_source(Told(told)).endpoint_source(Told(watched)).dns(false).build().unwrap();
    let load = (0..4).map(|_| {
        let client = mesh.client();
        tokio::spawn(async move {
            for _ in 0..250 {
                let response = client.get("http://web.ns/").await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                read(response).await;
            }
        })
    });
    let load: Vec<_> = load.collect();
    for round in 1..=100 {
        endpoints.send_replace(if round % 2 == 0 { both.clone() } else { one.clone() });
        profiles.send_replace(route(&format!("r{}", round % 3)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for task in load {
        task.await.unwrap();
    }
    assert_eq!(
        a_calls.load(Ordering::Relaxed) + b_calls.load(Ordering::Relaxed),
        1000,
        "each call was sent once"
    );
    let stats = mesh.stats();
    let total = |f: fn(&enmesh::metrics::stat::Reading) -> u64| {
        stats.routes.iter().map(|r| f(&r.reading)).sum::<u64>()
    };
    assert_eq!((total(|r| r.requests), total(|r| r.successes), total(|r| r.failures)), (1000, 1000, 0));
}

#[tokio::test]
async fn a_client_is_kept_up_to_date_when_the_mesh_itself_is_dropped() {
    use enmesh::discover::endpoint::{Endpoint, EndpointSet};
    let ((a, _), (b, _)) = (named("a").await, named("b").await);
    let (endpoints, watched) = tokio::sync::watch::channel(EndpointSet::new([Endpoint::new(a)]));
    let client = Mesh::builder().endpoint_source(Told(watched)).dns(false).build().unwrap().client();
    assert_eq!(read(client.get("http://web.ns/").await.unwrap()).await, "a");
    endpoints.send_replace(EndpointSet::new([Endpoint::new(b)]));
    let moved = async {
        while read(client.get("http://web.ns/").await.unwrap()).await != "b" {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), moved).await.expect("the update comes");
}

#[cfg(feature = "prometheus")]
#[tokio::test]
async fn metrics_have_linkerds_names_and_labels() {
    let (addr, _) = named("x").await;
    let routes = "  routes:\n  - name: list\n    condition: {pathRegex: /.*}\n";
    let mesh = Mesh::builder()
        .profile_yaml(&profile(routes))
        .endpoints("web.ns:80", [addr.to_string()])
        .build()
        .unwrap();
    read(mesh.client().get("http://web.ns/").await.unwrap()).await;
    let text = mesh.metrics_text().unwrap();
    let labels = "direction=\"outbound\",dst=\"web.ns.svc.cluster.local:80\",rt_route=\"list\"";
    let ended = "status_code=\"200\",classification=\"success\",grpc_status=\"\",error=\"\"";
    for line in [
        format!("route_request_total{{{labels}}} 1"),
        format!("route_response_total{{{labels},{ended}}} 1"),
        format!("route_actual_request_total{{{labels}}} 1"),
        format!("route_actual_response_total{{{labels},{ended}}} 1"),
        format!("route_response_latency_ms_count{{{labels}}} 1"),
        format!("route_response_latency_ms_bucket{{{labels},le=\"50000\"}} 1"),
    ] {
        assert!(text.lines().any(|seen| seen == line), "{line}\n{text}");
    }
}
