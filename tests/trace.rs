//! Contexts of traces through real calls: in, out, and on to what a handler sends.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns its own servers")]

use bytes::Bytes;
use enmesh::Mesh;
use enmesh::trace::context::{Format, TraceContext};
use enmesh::trace::log::LogFormat;
use enmesh::trace::settings::TraceSettings;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// The headers of every request that arrived.
type Seen = Arc<Mutex<Vec<HeaderMap>>>;

/// A server outside of the mesh that answers with these statuses in turn, and then with 200.
async fn upstream(statuses: &[u16]) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (seen, left) = (Seen::default(), Arc::new(Mutex::new(statuses.to_vec())));
    let told = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (told, left) = (Arc::clone(&told), Arc::clone(&left));
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                told.lock().unwrap().push(request.headers().clone());
                let mut left = left.lock().unwrap();
                let status = if left.is_empty() { 200 } else { left.remove(0) };
                let response = Response::builder().status(status).body(Full::<Bytes>::from("x"));
                async move { Ok::<_, Infallible>(response.unwrap()) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(io, service).await.map_err(drop) });
        }
    });
    (addr, seen)
}

const ROUTES: &str = "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata:\n  name: up.ns.svc.cluster.local\nspec:\n  routes:\n  - {name: all, condition: {pathRegex: /.*}, isRetryable: true}\n";

async fn mesh(settings: TraceSettings, statuses: &[u16]) -> (Mesh, Seen) {
    let (addr, seen) = upstream(statuses).await;
    let mesh = Mesh::builder().name("me.ns:1").dns(false).profile_yaml(ROUTES).trace(settings);
    (mesh.endpoints("up.ns:80", [addr.to_string()]).build().unwrap(), seen)
}

async fn send(mesh: &Mesh, headers: &[(&str, &str)]) {
    let mut request = Request::get("http://up.ns/").body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    mesh.client().send(request).await.unwrap().into_body().collect().await.unwrap();
}

fn last(seen: &Seen) -> HeaderMap {
    seen.lock().unwrap().last().cloned().unwrap()
}

const T: &str = "94d7f6ec6b95f3e916179cb6cfd01390";
const S: &str = "55ccfce77f972614";

#[tokio::test]
async fn what_is_not_asked_for_leaves_headers_alone() {
    let (mesh, seen) = mesh(TraceSettings::default(), &[]).await;
    let parent = format!("00-{T}-{S}-01");
    send(&mesh, &[("traceparent", &parent)]).await;
    assert_eq!(last(&seen)["traceparent"], parent);
    send(&mesh, &[]).await;
    assert_eq!(TraceContext::read(&last(&seen)), None);
}

#[tokio::test]
async fn each_attempt_is_a_span_of_its_own_in_the_format_that_came() {
    let single = format!("{T}-{S}-1");
    let parent = format!("00-{T}-{S}-00");
    for (headers, format, sampled) in [
        (vec![("traceparent", parent.as_str()), ("tracestate", "a=1")], Format::W3c, false),
        (vec![("b3", single.as_str())], Format::B3Single, true),
        (vec![("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-sampled", "1")], Format::B3Multi, true),
    ] {
        let (mesh, seen) = mesh(TraceSettings::record(), &[503]).await;
        send(&mesh, &headers).await;
        let seen: Vec<_> =
            seen.lock().unwrap().iter().map(|headers| TraceContext::read(headers).unwrap()).collect();
        assert_eq!(seen.len(), 2, "{format:?}");
        for context in &seen {
            assert_eq!(
                (context.trace.to_string().as_str(), context.sampled),
                (T, Some(sampled)),
                "{format:?}"
            );
            assert!(context.span.to_string() != S && context.formats.has(format), "{format:?}");
        }
        assert_ne!(seen[0].span, seen[1].span);
        assert_eq!(seen[0].state.is_some(), format == Format::W3c);
    }
}

#[tokio::test]
async fn a_trace_is_begun_where_there_is_none_and_a_share_is_recorded() {
    let settings = TraceSettings::record().formats(&[Format::W3c, Format::GrpcBinary]);
    let (all, seen) = mesh(settings, &[]).await;
    send(&all, &[]).await;
    let context = TraceContext::read(&last(&seen)).unwrap();
    assert!(context.formats.has(Format::GrpcBinary) && context.sampled == Some(true));
    let (none, seen) = mesh(settings.roots(0.0), &[]).await;
    send(&none, &[]).await;
    assert_eq!(TraceContext::read(&last(&seen)).unwrap().sampled, Some(false));
}

/// Serves an application that answers each request by a call to `up.ns`, through `mesh`.
async fn between(mesh: &Mesh) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mesh = mesh.clone();
    tokio::spawn(async move {
        let client = mesh.client();
        let app = tower::service_fn(move |_: Request<_>| {
            let client = client.clone();
            async move {
                // Before the call, so that the context is found after the first wait too.
                tokio::task::yield_now().await;
                client.get("http://up.ns/").await
            }
        });
        mesh.serve(listener, app).await
    });
    addr
}

async fn through(settings: TraceSettings) -> TraceContext {
    let (mesh, seen) = mesh(settings, &[]).await;
    let addr = between(&mesh).await;
    let outside = Mesh::builder().dns(false).endpoints("me.ns:1", [addr.to_string()]).build().unwrap();
    let parent = format!("00-{T}-{S}-01");
    let request =
        Request::get("http://me.ns:1/").header("traceparent", parent).header("tracestate", "a=1").body(());
    let response = outside.client().send(request.unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "x");
    TraceContext::read(&last(&seen)).unwrap()
}

#[tokio::test]
async fn what_a_handler_sends_stands_below_what_it_serves() {
    let recorded = through(TraceSettings::record()).await;
    assert_eq!((recorded.trace.to_string().as_str(), recorded.sampled), (T, Some(true)));
    assert!(recorded.span.to_string() != S && recorded.state.is_some());
    let passed = through(TraceSettings::pass()).await;
    assert_eq!((passed.trace.to_string().as_str(), passed.span.to_string().as_str()), (T, S));
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request_that_arrived() {
    let (up, _) = upstream(&[]).await;
    let log = Log::default();
    let mesh = Mesh::builder()
        .name("me.ns:1")
        .dns(false)
        .endpoints("up.ns:80", [up.to_string()])
        .access_log_to(LogFormat::Apache, log.clone())
        .build()
        .unwrap();
    let addr = between(&mesh).await;
    let outside = Mesh::builder().dns(false).endpoints("me.ns:1", [addr.to_string()]).build().unwrap();
    for _ in 0..3 {
        let request =
            Request::get("http://me.ns:1/a?secret").header("user-agent", "t\"est").body(()).unwrap();
        outside.client().send(request).await.unwrap().into_body().collect().await.unwrap();
    }
    let mut text = String::new();
    // The log is written by a thread of its own; half a minute is for a machine that is very busy.
    for _ in 0..3000 {
        text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        if text.lines().count() >= 3 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(text.matches("\"GET /a HTTP/1.1\" 200 1 \"-\" \"t\\\"est\"\n").count(), 3, "{text}");
}
