//! Spans as a collector gets them: an OTLP receiver in a process of its own, and a real collector where there is one.
#![cfg(feature = "otel")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns its own servers")]

use bytes::Bytes;
use enmesh::Mesh;
use enmesh::trace::otel::{Otel, OtelSettings};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};

/// Set in the receiver's process, which is this binary again.
const RECEIVES: &str = "OTLP_TEST_RECEIVER";

/// Prints each span that it gets as a line of JSON.
struct Receiver;

fn value(pair: &KeyValue) -> Value {
    match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::IntValue(number)) => json!(number),
        other => json!(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn told(span: &Span, resource: &[KeyValue]) -> Value {
    let object = |pairs: &[KeyValue]| -> Value {
        pairs.iter().map(|pair| (pair.key.clone(), value(pair))).collect::<serde_json::Map<_, _>>().into()
    };
    let events: Vec<Value> = span
        .events
        .iter()
        .map(|event| json!({"name": event.name, "of": object(&event.attributes)}))
        .collect();
    json!({
        "trace": hex(&span.trace_id), "span": hex(&span.span_id), "parent": hex(&span.parent_span_id),
        "name": span.name, "kind": span.kind, "of": object(&span.attributes), "events": events,
        "took_ns": span.end_time_unix_nano - span.start_time_unix_nano,
        "status": span.status.as_ref().map(|status| (status.code, status.message.clone())),
        "resource": object(resource),
    })
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for spans in request.into_inner().resource_spans {
            let resource = spans.resource.map(|resource| resource.attributes).unwrap_or_default();
            for span in spans.scope_spans.iter().flat_map(|scope| &scope.spans) {
                println!("span {}", told(span, &resource));
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// What the receiver's process does until it is killed.
async fn receive() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("at {}", listener.local_addr().unwrap());
    let routes = tonic::service::Routes::new(TraceServiceServer::new(Receiver));
    let server = Mesh::builder().dns(false).build().unwrap();
    server.serve(listener, routes).await.unwrap();
}

/// A process that receives spans.
struct Collector {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    endpoint: String,
}

impl Collector {
    async fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "a_retried_call_is_a_trace_of_a_call_two_attempts_and_two_servers",
                "--nocapture",
            ])
            .env(RECEIVES, "1")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = lines.next_line().await.unwrap().expect("the receiver says where it is");
            if let Some((_, addr)) = line.split_once("at 127") {
                return Self { _child: child, lines, endpoint: format!("http://127{addr}") };
            }
        }
    }

    async fn spans(&mut self, count: usize) -> Vec<Value> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let line = tokio::time::timeout(Duration::from_secs(20), self.lines.next_line()).await;
            let line = line.expect("a span in time").unwrap().expect("the receiver lives");
            if let Some((_, span)) = line.split_once("span ") {
                spans.push(serde_json::from_str(span).unwrap());
            }
        }
        spans
    }
}

const ROUTES: &str = "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata:\n  name: web.ns.svc.cluster.local\nspec:\n  routes:\n  - {name: list, condition: {pathRegex: /list}, isRetryable: true}\n";

/// A server that refuses its first request, and a client; both export to `endpoint`.
async fn world(endpoint: &str) -> (Otel, Otel, Mesh, SocketAddr) {
    let settings = |zone: &str| {
        let mut settings = OtelSettings::at(endpoint);
        settings.attributes.push(("zone".to_owned(), zone.to_owned()));
        settings
    };
    let of_server = Otel::otlp("web.ns:80", &settings("s")).unwrap();
    let of_client = Otel::otlp("me.ns:1", &settings("c")).unwrap();
    let server = Mesh::builder().name("web.ns:80").dns(false).otel(of_server.clone()).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let failures = std::sync::Arc::new(AtomicU32::new(1));
    tokio::spawn(async move {
        let app = tower::service_fn(move |_| {
            let fail = failures
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok();
            let response =
                Response::builder().status(if fail { 503 } else { 200 }).body(Full::<Bytes>::from("hello"));
            async move { Ok::<_, Infallible>(response.unwrap()) }
        });
        server.serve(listener, app).await
    });
    let client = Mesh::builder()
        .name("me.ns:1")
        .dns(false)
        .profile_yaml(ROUTES)
        .endpoints("web.ns:80", [addr.to_string()])
        .endpoints("none.ns:80", [""; 0])
        .otel(of_client.clone())
        .build()
        .unwrap();
    (of_server, of_client, client, addr)
}

async fn flush(otel: &Otel) {
    let otel = otel.clone();
    tokio::task::spawn_blocking(move || otel.flush()).await.unwrap().unwrap();
}

const T: &str = "94d7f6ec6b95f3e916179cb6cfd01390";

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_call_is_a_trace_of_a_call_two_attempts_and_two_servers() {
    if std::env::var_os(RECEIVES).is_some() {
        return receive().await;
    }
    let mut collector = Collector::start().await;
    let (of_server, of_client, client, addr) = world(&collector.endpoint).await;
    let request = Request::get("http://web.ns/list?secret=1")
        .header("traceparent", format!("00-{T}-55ccfce77f972614-01"))
        .body(())
        .unwrap();
    let response = client.client().send(request).await.unwrap();
    assert_eq!(of_client.counts().ended(), 1, "the first attempt ended; the call lasts until its body ends");
    tokio::time::sleep(Duration::from_millis(30)).await;
    response.into_body().collect().await.unwrap();
    flush(&of_client).await;
    flush(&of_server).await;
    let spans = collector.spans(5).await;
    assert!(spans.iter().all(|span| span["trace"] == T));
    let of_kind = |kind: i32| -> Vec<&Value> { spans.iter().filter(|span| span["kind"] == kind).collect() };
    let (calls, servers, attempts) = (of_kind(1), of_kind(2), of_kind(3));
    assert_eq!((calls.len(), servers.len(), attempts.len()), (1, 2, 2), "{spans:#?}");
    let call = calls[0];
    assert_eq!((&call["parent"], &call["name"]), (&json!("55ccfce77f972614"), &json!("GET list")));
    assert!(call["took_ns"].as_u64() >= Some(30_000_000), "to the end of the body");
    assert_eq!(call["events"][0]["name"], "retry");
    assert_eq!(call["events"][0]["of"]["because"], "status 503");
    assert_eq!(call["of"]["url.full"], "http://web.ns/list");
    assert_eq!(call["resource"]["service.name"], "me.ns:1");
    assert_eq!(call["resource"]["zone"], "c");
    for (number, (status, server)) in [503, 200].into_iter().zip(&servers).enumerate() {
        let attempt = attempts.iter().find(|span| span["of"]["http.request.resend_count"] == number).unwrap();
        assert_eq!(attempt["parent"], call["span"]);
        assert_eq!(attempt["of"]["http.response.status_code"], status);
        assert_eq!(attempt["of"]["network.peer.port"], addr.port());
        let answered =
            servers.iter().find(|server| server["parent"] == attempt["span"]).expect("its server's span");
        assert_eq!(answered["of"]["http.response.status_code"], status);
        assert_eq!(server["resource"]["zone"], "s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_calls_given_up_have_spans_too_and_unsampled_ones_none() {
    let mut collector = Collector::start().await;
    let (_, of_client, client, _) = world(&collector.endpoint).await;
    assert_eq!(client.client().get("http://none.ns/").await.unwrap_err().kind(), "no_endpoints");
    drop(client.client().get("http://web.ns/"));
    let unsampled = Request::get("http://web.ns/")
        .header("traceparent", format!("00-{T}-55ccfce77f972614-00"))
        .body(())
        .unwrap();
    client.client().send(unsampled).await.unwrap().into_body().collect().await.unwrap();
    flush(&of_client).await;
    let spans = collector.spans(3).await;
    let mut errors: Vec<_> = spans
        .iter()
        .map(|span| (span["kind"].as_i64(), span["of"]["error.type"].as_str(), span["status"][0].as_i64()))
        .collect();
    errors.sort();
    // The second call was given up with an attempt under way.
    assert_eq!(
        errors,
        [
            (Some(1), Some("cancelled"), Some(0)),
            (Some(1), Some("no_endpoints"), Some(2)),
            (Some(3), Some("cancelled"), Some(0))
        ]
    );
    assert!(spans.iter().all(|span| span["trace"] != T));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_costs_no_request_anything() {
    let settings = OtelSettings::at("http://127.0.0.1:1");
    let otel = Otel::otlp("me.ns:1", &settings).unwrap();
    let mesh =
        Mesh::builder().dns(false).endpoints("none.ns:80", [""; 0]).otel(otel.clone()).build().unwrap();
    for _ in 0..10_000 {
        assert!(mesh.client().get("http://none.ns/").await.is_err());
    }
    assert_eq!((otel.counts().ended(), otel.counts().exported()), (10_000, 0));
}

/// The collector of OpenTelemetry itself, built by `.ci/step collector`; its debug exporter writes what it got.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_takes_the_spans() {
    let Some(binary) = std::env::var_os("OTEL_COLLECTOR") else {
        eprintln!("skipped: OTEL_COLLECTOR is not set");
        return;
    };
    // The collector cannot tell which port was free, so one is found for it.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let config = std::env::temp_dir().join(format!("enmesh-collector-{port}.yaml"));
    let text = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\nexporters: {{debug: {{verbosity: detailed}}}}\nservice:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(binary)
        .arg("--config")
        .arg(&config)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut text = String::new();
    let mut read_to = async |word: &str| {
        let mut text = String::new();
        while !text.contains(word) {
            let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no {word:?} in {text}")).unwrap();
            text += &line.unwrap_or_else(|| panic!("it ended: {text}"));
            text.push('\n');
        }
        text
    };
    read_to("Everything is ready").await;
    let (_, of_client, client, _) = world(&format!("http://127.0.0.1:{port}")).await;
    let response = client.client().get("http://web.ns/list").await.unwrap();
    response.into_body().collect().await.unwrap();
    flush(&of_client).await;
    assert_eq!(of_client.counts().exported(), 3);
    text += &read_to("because: Str(status 503)").await;
    for word in [
        "Name           : GET list",
        "Kind           : Client",
        "service.name: Str(me.ns:1)",
        "http.request.resend_count: Int(1)",
    ] {
        if !text.contains(word) {
            text += &read_to(word).await;
        }
    }
    std::fs::remove_file(config).unwrap();
}
