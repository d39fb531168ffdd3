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
    assert_eq!(
        told[0].destination.port, events[0].destination.port,
        "where it arrives is where it was sent to"
    );
    assert_eq!(told[0].destination.ip, "127.0.0.1");
    let port = told[0].destination.port;
    let mut there =
        Lines::of(server.admin_addr().unwrap(), &format!("?destination=127.0.0.1:{port}&max=1")).await;
    client.client().get("http://web.ns/").await.unwrap();
    assert_eq!(there.events(1).await[0].proxy_direction, "INBOUND");
}

#[tokio::test]
async fn what_a_rule_on_trial_would_refuse_is_told() {
    let policy = "apiVersion: enmesh.dev/v1\nkind: Authorization\nmetadata: {name: p}\nspec:\n  default: allow\n  rules:\n  - {name: trial, action: audit, request: {pathRegex: /old.*}}\n";
    let settings = AuthzSettings::from_yaml(policy).unwrap_or_else(|invalid| panic!("{invalid}"));
    let server =
        Mesh::builder().name("web.ns:80").dns(false).admin(LOCAL.parse().unwrap()).authorize(settings);
    let server = server.build().unwrap();
    let addr = serve(&server, |_| Response::new(Full::from("x"))).await;
    let client = Mesh::builder().dns(false).endpoints("web.ns:80", [addr.to_string()]).build().unwrap();
    let mut all = Lines::of(server.admin_addr().unwrap(), "").await;
    let mut audited = Lines::of(server.admin_addr().unwrap(), "?outcome=audited").await;
    for path in ["/new", "/old"] {
        let response = client.client().get(format!("http://web.ns{path}")).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
    let ends = |events: Vec<Event>| -> Vec<_> {
        events
            .into_iter()
            .filter_map(|event| event.response_end_event)
            .map(|end| (end.outcome, end.audit))
            .collect()
    };
    let (success, trial) = ("success".to_owned(), Some("trial".to_owned()));
    assert_eq!(ends(all.events(6).await), [(success.clone(), None), (success.clone(), trial.clone())]);
    let events = audited.events(3).await;
    assert_eq!(events[0].request_init_event.as_ref().unwrap().path, "/old");
    assert!(line(&events[2]).ends_with("response-length=1B audit=trial"), "{}", line(&events[2]));
    assert_eq!(ends(events), [(success, trial)]);
}

/// What an observer of many processes is told next that is no event.
async fn notice(lines: &mut Lines) -> serde_json::Value {
    loop {
        let line = lines.next().await.unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        if value.get("source").is_none() {
            return value;
        }
    }
}

/// A client of `server` whose admin server speaks for these too.
fn speaker(server: SocketAddr, peers: &[String]) -> Mesh {
    let mesh = Mesh::builder().name("me.ns:1").dns(false).endpoints("web.ns:80", [server.to_string()]);
    mesh.admin_peers(peers).admin(LOCAL.parse().unwrap()).build().unwrap()
}

#[tokio::test]
async fn one_server_shows_the_live_requests_of_its_peers_too() {
    let server = Mesh::builder().name("web.ns:80").dns(false).admin(LOCAL.parse().unwrap()).build().unwrap();
    let addr = serve(&server, |_| Response::new(Full::from("x"))).await;
    let port = server.admin_addr().unwrap().port();
    // One that takes connections and says nothing, one that nobody serves, and one by two of its addresses.
    let mute = TcpListener::bind(LOCAL).await.unwrap();
    let peers = [
        format!("http://{}", mute.local_addr().unwrap()),
        "http://127.0.0.1:1".to_owned(),
        format!("http://127.0.0.1:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
    ];
    let me = speaker(addr, &peers);
    let admin = me.admin_addr().unwrap();
    let mut all = Lines::of(admin, "?path=/a*").await;
    let mut told = [notice(&mut all).await, notice(&mut all).await];
    told.sort_by_key(|value| value.get("watching").is_some());
    assert_eq!(told[0]["lost"]["addr"], "http://127.0.0.1:1");
    assert!(told[0]["lost"]["error"].as_str().unwrap().contains("cannot be reached"), "{told:?}");
    let id = told[1]["watching"]["id"].as_str().unwrap().to_owned();
    let mut own = Lines::of(admin, "?local=1&path=/a*").await;
    let mut other = Lines::of(admin, &format!("?process={id}")).await;
    while notice(&mut other).await["watching"]["id"] != id.as_str() {}
    let mut few = Lines::of(admin, "?max=2&path=/b*").await;
    for value in [notice(&mut few).await, notice(&mut few).await] {
        assert!(value.get("lost").or(value.get("watching")).is_some(), "{value}");
    }
    me.client().get("http://web.ns/a").await.unwrap().into_body().collect().await.unwrap();
    let mut events = all.events(6).await;
    events.sort_by(|a, b| a.proxy_direction.cmp(&b.proxy_direction));
    let who: Vec<_> = events.iter().map(|event| (&*event.process, event.process_id == id)).collect();
    assert_eq!(
        who,
        [
            ("web.ns:80", true),
            ("web.ns:80", true),
            ("web.ns:80", true),
            ("me.ns:1", false),
            ("me.ns:1", false),
            ("me.ns:1", false)
        ]
    );
    assert!(own.events(3).await.iter().all(|event| event.process == "me.ns:1"));
    assert!(other.events(3).await.iter().all(|event| event.process == "web.ns:80"));
    for _ in 0..2 {
        me.client().get("http://web.ns/b").await.unwrap().into_body().collect().await.unwrap();
    }
    let mut ends = 0;
    while let Some(line) = few.next().await {
        ends += usize::from(line.contains("responseEndEvent"));
    }
    assert_eq!(ends, 2, "of all processes together");
    let nobody = ask(admin, "/api/v1/tap?local=1&process=0", "*/*").await;
    assert_eq!(nobody.status(), 421);
}

#[tokio::test]
async fn a_peer_that_goes_is_told_and_one_that_comes_back_is_watched_again() {
    let holder = std::net::TcpListener::bind(LOCAL).unwrap();
    let at = holder.local_addr().unwrap();
    drop(holder);
    let peer = || Mesh::builder().name("web.ns:80").dns(false).admin(at).build().unwrap();
    let first = peer();
    let me = speaker(at, &[format!("http://{at}")]);
    let mut all = Lines::of(me.admin_addr().unwrap(), "").await;
    let before = notice(&mut all).await["watching"]["id"].clone();
    first.shutdown().await;
    drop(first);
    let lost = notice(&mut all).await;
    assert_eq!(lost["lost"]["addr"], format!("http://{at}"), "{lost}");
    let _second = peer();
    let after = loop {
        let told = notice(&mut all).await;
        if let Some(told) = told.get("watching") {
            break told["id"].clone();
        }
    };
    assert!(
        before.is_string() && after.is_string() && before != after,
        "it is another process: {before} {after}"
    );
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
