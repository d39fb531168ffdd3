//! Live requests as an operator sees them: over HTTP from the admin server, of real calls.
#![cfg(feature = "admin")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns its own servers")]

use bytes::Bytes;
use enmesh::Mesh;
use enmesh::authz::settings::AuthzSettings;
use enmesh::tap::event::Event;
use enmesh::tap::text::{Width, lines};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Serves `app` behind the mesh's own server side.
async fn serve(mesh: &Mesh, answer: fn(&str) -> Response<Full<Bytes>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mesh = mesh.clone();
    tokio::spawn(async move {
        let app = tower::service_fn(move |request: Request<_>| {
            let response = answer(request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        mesh.serve(listener, app).await
    });
    addr
}

async fn ask(admin: SocketAddr, path: &str, accept: &str) -> Response<Incoming> {
    let stream = TcpStream::connect(admin).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", admin.to_string())
        .header("accept", accept)
        .body(Empty::<Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    // Held open as long as the response is read.
    tokio::spawn(async move { sender.ready().await });
    response
}

/// The lines of a stream, as they come.
struct Lines {
    body: Incoming,
    text: String,
}

impl Lines {
    async fn of(admin: SocketAddr, query: &str) -> Self {
        let response = ask(admin, &format!("/api/v1/tap{query}"), "*/*").await;
        assert_eq!(response.status(), StatusCode::OK);
        Self { body: response.into_body(), text: String::new() }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let line = line.to_owned();
                self.text = rest.to_owned();
                return Some(line);
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await;
            let data = frame.expect("an event in time")?.unwrap().into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(serde_json::from_str(&self.next().await.unwrap()).unwrap());
        }
        events
    }
}

/// The text of an event without what differs from run to run.
fn line(event: &Event) -> String {
    let all = lines(event, Width::Usual);
    let words = all.lines().next().unwrap();
    let fixed = |word: &&str| {
        !["id=", "src=", "dst=", "latency=", "duration="].iter().any(|key| word.starts_with(key))
    };
    words.split(' ').filter(fixed).collect::<Vec<_>>().join(" ")
}

const LOCAL: &str = "127.0.0.1:0";

/// A server that refuses its first request and denies `/secret`, and a client that retries.
async fn world() -> (Mesh, Mesh) {
    static FAILURES: AtomicU32 = AtomicU32::new(1);
    let policy = "apiVersion: enmesh.dev/v1\nkind: Authorization\nmetadata: {name: p}\nspec:\n  default: allow\n  rules:\n  - {name: no-secrets, action: deny, request: {pathRegex: /secret.*}}\n";
    let settings = AuthzSettings::from_yaml(policy);
    let server = Mesh::builder().name("web.ns:80").dns(false).admin(LOCAL.parse().unwrap());
    let server = match settings {
        Ok(settings) => server.authorize(settings),
        Err(invalid) => panic!("{invalid}"),
    };
    let server = server.build().unwrap();
    let addr = serve(&server, |path| {
        let fail = path == "/list"
            && FAILURES
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok();
        let status = if fail { 503 } else { 200 };
        Response::builder().status(status).body(Full::from("hello")).unwrap()
    });
    let addr = addr.await;
    let routes = "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata:\n  name: web.ns.svc.cluster.local\nspec:\n  routes:\n  - {name: list, condition: {pathRegex: /list}, isRetryable: true}\n";
    let client = Mesh::builder()
        .name("me.ns:1")
        .dns(false)
        .profile_yaml(routes)
        .endpoints("web.ns:80", [addr.to_string()])
        .admin(LOCAL.parse().unwrap())
        .build()
        .unwrap();
    (server, client)
}

#[tokio::test]
async fn calls_are_told_from_both_ends_with_their_retries_and_denials() {
    let (server, client) = world().await;
    let mut sent = Lines::of(client.admin_addr().unwrap(), "?headers=1").await;
    let mut arrived = Lines::of(server.admin_addr().unwrap(), "?direction=inbound").await;
    let mut failed = Lines::of(client.admin_addr().unwrap(), "?status=5xx&max=1").await;
    let request =
        Request::get("http://web.ns/list?q=secret").header("authorization", "Bearer x").body(()).unwrap();
    let response = client.client().send(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    let events = sent.events(6).await;
    let told: Vec<String> = events.iter().map(line).collect();
    let request =
        "req proxy=out tls=not_provided_by_service_discovery :method=GET :authority=web.ns :path=/list";
    let rest = "proxy=out tls=not_provided_by_service_discovery";
    // A response that is not read ends where its body is dropped: after the retry was decided.
    let mut expected = [
        request.to_owned(),
        format!("rsp {rest} :status=503"),
        format!("end {rest} response-length=0B"),
        format!("{request} retry=1 because=status 503"),
        format!("rsp {rest} :status=200"),
        format!("end {rest} response-length=5B"),
    ];
    expected.sort();
    let mut sorted = told.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert!(events[0].destination.port != 0);
    assert!(events.iter().all(|event| event.call == events[0].call && event.process == "me.ns:1"));
    let headers = events[0].request_init_event.as_ref().unwrap().headers.as_ref().unwrap();
    let secret = headers.iter().find(|header| header.name == "authorization").unwrap();
    assert_eq!(secret.value_str, "<hidden>");
    assert_eq!(failed.events(3).await[1].response_init_event.as_ref().unwrap().http_status, 503);
    assert_eq!(failed.next().await, None, "it wanted one request");

    let told: Vec<String> = arrived.events(6).await.iter().map(line).collect();
    assert_eq!(told[0], "req proxy=in  tls=no_tls_from_remote :method=GET :authority=web.ns :path=/list");
    assert_eq!(told[5], "end proxy=in  tls=no_tls_from_remote response-length=5B");
    let denied = client.client().get("http://web.ns/secret/x").await.unwrap();
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    let told: Vec<Event> = arrived.events(2).await;
    let end = told[1].response_end_event.as_ref().unwrap();
    assert_eq!((end.error.as_deref(), end.rule.as_deref()), (Some("denied"), Some("no-secrets")));
    assert!(told[0].source.port != 0 && told[0].source.ip == "127.0.0.1");
}

#[tokio::test]
async fn what_never_reaches_an_endpoint_is_told_with_its_error() {
    let mesh =
        Mesh::builder().dns(false).endpoints("web.ns:80", ["127.0.0.1:1"; 0]).admin(LOCAL.parse().unwrap());
    let mesh = mesh.build().unwrap();
    let mut tap = Lines::of(mesh.admin_addr().unwrap(), "?service=web*").await;
    let error = mesh.client().get("http://web.ns/").await.unwrap_err();
    assert_eq!(error.kind(), "no_endpoints");
    let events = tap.events(2).await;
    let end = events[1].response_end_event.as_ref().unwrap();
    assert_eq!((end.error.as_deref(), end.outcome.as_str()), (Some("no_endpoints"), "failure"));
    assert_eq!((events[0].destination.ip.as_str(), events[0].destination.port), ("0.0.0.0", 0));
}

#[tokio::test]
async fn observers_that_read_nothing_or_go_away_slow_nothing_and_leave_nothing() {
    let mesh = Mesh::builder().name("web.ns:80").dns(false).admin(LOCAL.parse().unwrap()).build().unwrap();
    let addr = serve(&mesh, |_| Response::new(Full::from("x"))).await;
    let admin = mesh.admin_addr().unwrap();
    let client = Mesh::builder().dns(false).endpoints("web.ns:80", [addr.to_string()]).build().unwrap();
    assert!(mesh.taps().is_idle());
    // One that never reads, so that its socket fills up.
    let stuck = ask(admin, "/api/v1/tap?rate=0&headers=1", "*/*").await;
    let mut gone = Lines::of(admin, "?rate=0").await;
    assert_eq!(mesh.taps().observers(), 2);
    for _ in 0..2_000 {
        let response = client.client().get("http://web.ns/").await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
    assert!(gone.next().await.is_some());
    drop((stuck, gone));
    // Each is noticed when the next events come.
    for _ in 0..10_000 {
        if mesh.taps().is_idle() {
            return;
        }
        client.client().get("http://web.ns/").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} observe still", mesh.taps().observers());
}

#[tokio::test]
async fn browsers_get_server_sent_events_and_mistakes_are_told() {
    let mesh = Mesh::builder().dns(false).admin(LOCAL.parse().unwrap()).build().unwrap();
    let admin = mesh.admin_addr().unwrap();
    let mut events = ask(admin, "/api/v1/tap", "text/event-stream").await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let first = events.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, ": observing\n\n");
    let _ = mesh.client().get("http://nobody.ns/a").await;
    let event = events.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(event.starts_with(b"data: {\"source\"") && event.ends_with(b"}\n\n"), "{event:?}");
    let bad = ask(admin, "/api/v1/tap?pth=/x", "*/*").await;
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    let told = bad.into_body().collect().await.unwrap().to_bytes();
    assert!(told.starts_with(b"`pth` is not known"), "{told:?}");
    let foreign =
        Request::get("/api/v1/tap").header("host", "evil.example").body(Empty::<Bytes>::new()).unwrap();
    let stream = TcpStream::connect(admin).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(foreign).await.unwrap().status(), StatusCode::FORBIDDEN);
}
