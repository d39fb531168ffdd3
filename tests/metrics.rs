//! What is counted is true: laws of conservation over real servers that fail in every way, and families as documented.
#![cfg(all(feature = "http", feature = "prometheus"))]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns")]

use bytes::Bytes;
use enmesh::metrics::families::{ALL, Kind};
use enmesh::stdx::rng::Rng;
use enmesh::{CallOptions, Mesh, RequestExt};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

type Labels = BTreeMap<String, String>;

/// Every series of an exposition, by name and labels.
fn series(text: &str) -> Vec<(String, Labels, f64)> {
    let one = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = match name.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (name, ""),
        };
        let mut found = Labels::new();
        let mut left = labels;
        while let Some((key, rest)) = left.split_once("=\"") {
            // No label of these tests holds a quote.
            let (value, rest) = rest.split_once('"').unwrap();
            found.insert(key.to_owned(), value.to_owned());
            left = rest.strip_prefix(',').unwrap_or(rest);
        }
        (name.to_owned(), found, value.parse().unwrap())
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(one).collect()
}

/// The sum of a family's series that have these labels.
fn sum(all: &[(String, Labels, f64)], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |found: &Labels| labels.iter().all(|(key, value)| found.get(*key).is_some_and(|v| v == value));
    all.iter().filter(|(n, found, _)| n == name && has(found)).map(|(.., value)| value).sum()
}

/// A server that answers by the path, in a way that the test asks for.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                let path = request.uri().path().to_owned();
                if path.starts_with("/slow") {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                if path.starts_with("/hedged") {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let status = path.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(200);
                let pieces = if path.starts_with("/break") { 3 } else { 2 };
                let frames = (0..pieces).map(|piece| match piece {
                    2 => Err(std::io::Error::other("broken")),
                    _ => Ok(Frame::data(Bytes::from_static(b"piece"))),
                });
                let body = StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>()));
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(async move {
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.map_err(drop)
            });
        }
    });
    addr
}

/// A server that breaks every connection once something was sent.
async fn breaker() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.readable().await.unwrap();
                let _ = stream.write_all(b"nonsense\r\n\r\n").await;
            });
        }
    });
    addr
}

const PROFILE: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.ns.svc.cluster.local}
spec:
  routes:
  - name: retried
    condition: {pathRegex: '/retried/.*'}
    isRetryable: true
    retry: {attempts: 3, backoff: {base: 1ms, max: 2ms}}
  - name: slow
    condition: {pathRegex: '/slow.*'}
    timeouts: {request: 40ms}
  - name: hedged
    condition: {pathRegex: '/hedged.*'}
    retry: {attempts: 2, idempotent: true, hedge: {after: 1ms}}
";

/// Calls in every way that a call can end.
async fn load(mesh: &Mesh, rng: &Rng, calls: u64) {
    let client = mesh.client();
    for n in 0..calls {
        let host = ["web.ns", "nobody.ns"][usize::from(rng.below(12) == 0)];
        let path = match rng.below(8) {
            0 => "/retried/503".to_owned(),
            1 => "/retried/200".to_owned(),
            2 if n % 4 == 0 => "/slow".to_owned(),
            2 => "/hedged/200".to_owned(),
            3 => "/break/200".to_owned(),
            4 => format!("/other/{}", 200 + rng.below(300)),
            _ => "/other/200".to_owned(),
        };
        let request = Request::get(format!("http://{host}{path}")).body(()).unwrap();
        let call =
            client.send(request.with_options(CallOptions::default().timeout(Duration::from_millis(400))));
        match rng.below(10) {
            0 => drop(call),
            1 => drop(tokio::time::timeout(Duration::from_micros(rng.below(900).into()), call).await),
            fate => {
                let Ok(mut response) = call.await else { continue };
                match fate {
                    2 => {}
                    3 => drop(response.body_mut().frame().await),
                    _ => drop(response.into_body().collect().await),
                }
            }
        }
    }
}

async fn mesh() -> Mesh {
    let (one, two, broken) = (server().await, server().await, breaker().await);
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let addresses = [one, two, broken, refused].map(|addr| addr.to_string());
    let builder = Mesh::builder().profile_yaml(PROFILE).endpoints("web.ns:80", addresses).dns(false).seed(7);
    builder.build().unwrap()
}

/// The exposition once nothing is under way.
async fn at_rest(mesh: &Mesh) -> Vec<(String, Labels, f64)> {
    for _ in 0..500 {
        let all = series(&mesh.metrics_text().unwrap());
        let busy = sum(&all, "enmesh_in_flight", &[]);
        let (sent, ended) = (sum(&all, "request_total", &[]), sum(&all, "response_total", &[]));
        let given_up = sum(&all, "enmesh_endpoint_cancelled_total", &[]);
        if busy == 0.0 && sent == ended + given_up {
            return all;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("something is still under way:\n{}", mesh.metrics_text().unwrap());
}

#[tokio::test]
async fn every_call_and_every_attempt_is_counted_once_however_it_ends() {
    let mesh = mesh().await;
    load(&mesh, &Rng::seeded(11), 600).await;
    let all = at_rest(&mesh).await;
    let routes: Vec<Labels> = all
        .iter()
        .filter(|(name, ..)| name == "route_request_total")
        .map(|(_, labels, _)| labels.clone())
        .collect();
    assert!(routes.len() >= 4, "{routes:?}");
    for route in &routes {
        let (dst, name) = (route["dst"].as_str(), route.get("rt_route").map_or("", String::as_str));
        let mut own = vec![("dst", dst)];
        own.extend((!name.is_empty()).then_some(("rt_route", name)));
        let count = |family: &str, more: &[(&str, &str)]| {
            let labels: Vec<_> = own.iter().chain(more).copied().collect();
            let default = |found: &Labels| !name.is_empty() || !found.contains_key("rt_route");
            let mine: Vec<_> = all.iter().filter(|(_, found, _)| default(found)).cloned().collect();
            sum(&mine, family, &labels)
        };
        let requests = count("route_request_total", &[]);
        let responses = count("route_response_total", &[]);
        let cancelled = count("enmesh_cancelled_total", &[]);
        assert_eq!(requests, responses + cancelled, "{route:?}");
        let retries = count("route_retryable_total", &[])
            - 2.0 * count("route_retryable_total", &[("skipped", "no_budget")]);
        // One that the budget refused was not sent.
        let hedges =
            count("enmesh_hedges_total", &[]) - count("enmesh_hedges_total", &[("result", "no_budget")]);
        assert_eq!(count("route_actual_request_total", &[]), requests + retries + hedges, "{route:?}");
        // Cancelled calls that had headers are told so by both; the rest have no latency.
        let latencies = count("route_response_latency_ms_count", &[]);
        assert!(responses <= latencies && latencies <= requests, "{route:?}");
    }
    let requests = sum(&all, "route_request_total", &[]);
    let statuses: f64 = ["http", "grpc"]
        .iter()
        .map(|kind| sum(&all, &format!("outbound_{kind}_route_request_statuses_total"), &[]))
        .sum();
    assert_eq!(statuses, requests, "the policy families count the same calls");
    // What went to endpoints is what was attempted, less what no endpoint was there for.
    let nobody = sum(&all, "route_actual_request_total", &[("dst", "nobody.ns:80")]);
    let attempts = sum(&all, "route_actual_request_total", &[]) - nobody;
    let sent = sum(&all, "request_total", &[]);
    let shut = sum(
        &all,
        "route_actual_response_total",
        &[("error", "failfast"), ("dst", "web.ns.svc.cluster.local:80")],
    );
    assert!(
        sent <= attempts && attempts <= sent + shut + sum(&all, "enmesh_cancelled_total", &[]),
        "{sent} {attempts} {shut}"
    );
    for (family, least) in [
        ("enmesh_cancelled_total", 20.0),
        ("route_retryable_total", 20.0),
        ("enmesh_hedges_total", 10.0),
        ("outbound_http_route_retry_requests_total", 20.0),
        ("outbound_http_errors_total", 20.0),
        ("tcp_open_total", 3.0),
        ("tcp_read_bytes_total", 1000.0),
        ("tcp_write_bytes_total", 1000.0),
        ("enmesh_connect_failures_total", 1.0),
        ("outbound_http_balancer_endpoints", 4.0),
    ] {
        assert!(sum(&all, family, &[]) >= least, "{family}: {}", sum(&all, family, &[]));
    }
    drop(mesh);
}

#[tokio::test]
async fn every_series_is_of_a_documented_family_with_its_labels() {
    let mesh = mesh().await;
    load(&mesh, &Rng::seeded(5), 200).await;
    let text = mesh.metrics_text().unwrap();
    let mut types = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(types.insert(name, kind).is_none(), "{name} is told twice");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    for (name, labels, _) in series(&text) {
        let family = ALL.iter().find(|family| {
            let parts = ["", "_bucket", "_sum", "_count"];
            let histogram = matches!(family.kind, Kind::Histogram(..));
            let parts = if histogram { &parts[1..] } else { &parts[..1] };
            parts.iter().any(|part| format!("{}{part}", family.name) == name)
        });
        let family = family.unwrap_or_else(|| panic!("{name} is in no table"));
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(..) => "histogram",
        };
        assert_eq!(types.get(family.name), Some(&kind));
        for label in labels.keys().filter(|label| *label != "le" || kind != "histogram") {
            assert!(family.labels.split(' ').any(|known| known == label), "{name} has a label {label}");
        }
    }
}
