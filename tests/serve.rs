//! The server against real loopback clients and raw sockets.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "servers of tests end with the test")]

mod raw;

use bytes::Bytes;
use enmesh::connect::handshake::Plain;
use enmesh::connect::http::Connection;
use enmesh::connect::settings::ConnectSettings;
use enmesh::discover::endpoint::Endpoint;
use enmesh::error::BoxError;
use enmesh::serve::body::RequestBody;
use enmesh::serve::handshake::Accept;
use enmesh::serve::handshake::Accepted;
use enmesh::serve::handshake::Plain as Accepting;
use enmesh::serve::http::App;
use enmesh::serve::http::Remote;
use enmesh::serve::listen::Drained;
use enmesh::serve::listen::serve_with;
use enmesh::serve::settings::ServeSettings;
use enmesh::serve::stats::ServeStats;
use futures::StreamExt;
use http::Request;
use http::Response;
use http::Version;
use http_body_util::BodyExt;
use http_body_util::Full;
use raw::Http2;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

type Client = Connection<Full<Bytes>, Plain>;

struct Server {
    addr: SocketAddr,
    stats: Arc<ServeStats>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

impl Server {
    async fn start(app: impl App + Sync, settings: ServeSettings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stats = Arc::new(ServeStats::default());
        let task = tokio::spawn({
            let stats = stats.clone();
            async move {
                let stopped = async { drop(stopped.await) };
                serve_with(listener, Accepting, app, settings, stats, stopped).await
            }
        });
        Self { addr, stats, stop, task }
    }

    fn client(&self) -> Client {
        Client::new(Endpoint::new(self.addr), ConnectSettings::default(), Plain)
    }

    async fn stop(self) -> Drained {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

fn get(version: Version, path: &str) -> Request<Full<Bytes>> {
    let uri = format!("http://web.ns{path}");
    Request::get(uri).version(version).body(Full::default()).unwrap()
}

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

fn settings(change: impl FnOnce(&mut ServeSettings)) -> ServeSettings {
    let mut settings = ServeSettings::default();
    change(&mut settings);
    settings
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

type Reply = Result<Response<Full<Bytes>>, BoxError>;

/// Answers by path, and counts how often and how often at once it was asked.
#[derive(Clone, Default)]
struct Asked {
    times: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
}

struct Asking(Arc<AtomicUsize>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Asked {
    fn app(&self) -> impl App + Sync + use<> {
        let asked = self.clone();
        tower::service_fn(move |request| asked.clone().answer(request))
    }

    async fn answer(self, request: Request<RequestBody>) -> Reply {
        self.times.fetch_add(1, Ordering::Relaxed);
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        let _asking = Asking(self.now.clone());
        self.peak.fetch_max(now, Ordering::Relaxed);
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/never" => std::future::pending().await,
            "/slow" => tokio::time::sleep(millis(60)).await,
            "/panic" => panic!("on purpose"),
            "/fail" => return Err("on purpose".into()),
            "/unread" => return Ok(Response::builder().status(403).body(Full::default())?),
            _ => {}
        }
        let wait = head.uri.path() == "/wait";
        let body = body.collect().await?.to_bytes();
        if wait {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(Full::new(body)))
    }

    fn times(&self) -> usize {
        self.times.load(Ordering::Relaxed)
    }
}

/// Sends these bytes and gives all that comes back until the end of the stream.
async fn talk(addr: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    let _ =
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("no end");
    String::from_utf8_lossy(&answer).into_owned()
}

fn fits<S: App>(_: &S) {}

#[test]
fn axum_tonic_and_tower_apps_fit() {
    fits(&axum::Router::<()>::new());
    fits(&tonic::service::Routes::default());
    fits(&tower::service_fn(|_: Request<RequestBody>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
}

#[tokio::test]
async fn an_axum_router_answers_both_versions_on_one_port() {
    let app = axum::Router::new().route("/hello", axum::routing::get(|| async { "hello" }));
    let server = Server::start(app, ServeSettings::default()).await;
    let client = server.client();
    for version in BOTH {
        let response = client.clone().oneshot(get(version, "/hello")).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, version));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    raw::until("answered", || server.stats.snapshot().in_flight == 0).await;
    let stats = server.stats.snapshot();
    assert_eq!((stats.requests, stats.open), (2, 2));
    drop(client);
    assert_eq!(server.stop().await.aborted, 0);
}

#[tokio::test]
async fn requests_that_can_be_read_in_two_ways_are_refused_before_the_app() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), ServeSettings::default()).await;
    let bad = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\ncontent-length:0\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nX: a\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    ];
    for bytes in bad {
        // What follows must not be taken for a request of its own.
        let answer = talk(server.addr, &format!("{bytes}GET /next HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{bytes:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{bytes:?}: {answer}");
    }
    assert_eq!(asked.times(), 0);
    let good = "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    assert_eq!(talk(server.addr, good).await.matches("200 OK").count(), 2);
}

#[tokio::test]
async fn an_ambiguous_head_is_refused_behind_others_and_in_small_pieces() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), ServeSettings::default()).await;
    let first = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let bad =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = talk(server.addr, &format!("{first}{bad}{first}")).await;
    assert_eq!(
        (answer.matches("200 OK").count(), answer.matches("HTTP/1.1 400").count()),
        (1, 1),
        "{answer}"
    );
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in bad.bytes() {
        let _ = stream.write_all(&[byte]).await;
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    assert_eq!(asked.times(), 1);
}

#[tokio::test]
async fn an_http2_host_that_differs_from_the_authority_is_refused() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), ServeSettings::default()).await;
    // Raw hyper, because a connection of ours would make them one.
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, conn) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(conn);
    for (host, status) in [("a", 200), ("b", 400)] {
        let request = Request::get("http://a/").header("host", host).body(Full::<Bytes>::default()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), status);
    }
    assert_eq!((asked.times(), server.stats.snapshot().refused), (1, 1));
}

#[tokio::test]
async fn heads_have_limits_in_bytes_and_fields() {
    let server = Server::start(Asked::default().app(), settings(|s| s.header_bytes_max = 8192)).await;
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert!(talk(server.addr, &long).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101));
    assert!(talk(server.addr, &many).await.starts_with("HTTP/1.1 431 "));
    let crumbs = |count: usize| {
        let mut request = get(Version::HTTP_2, "/");
        for n in 0..count {
            request.headers_mut().append("cookie", format!("c{n}=1").parse().unwrap());
        }
        request
    };
    // Each field counts as 32 bytes more. What is over the limit is refused, and what is far over it ends the
    // connection.
    let client = server.client();
    assert_eq!(client.clone().oneshot(crumbs(300)).await.unwrap().status(), 431);
    assert_eq!(client.clone().oneshot(crumbs(100)).await.unwrap().status(), 200);
    let error = client.clone().oneshot(crumbs(5000)).await.unwrap_err();
    assert!(matches!(error, enmesh::error::Error::Transport { .. }), "{error:?}");
    assert_eq!(client.oneshot(get(Version::HTTP_2, "/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn bodies_have_a_limit_unless_they_are_grpcs() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), settings(|s| s.body_bytes_max = Some(3))).await;
    let post = |content_type: &str, framing: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {content_type}\r\n{framing}"
        )
    };
    let said = "Content-Length: 4\r\n\r\nabcd";
    let unsaid = "Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n";
    assert!(talk(server.addr, &post("text/plain", said)).await.starts_with("HTTP/1.1 413 "));
    assert_eq!(asked.times(), 0);
    // The app meets the end in the body, and here fails of it.
    assert!(talk(server.addr, &post("text/plain", unsaid)).await.starts_with("HTTP/1.1 500 "));
    // gRPC is spoken over HTTP/2, and its name buys nothing elsewhere.
    assert!(talk(server.addr, &post("application/grpc", said)).await.starts_with("HTTP/1.1 413 "));
    let mut grpc = get(Version::HTTP_2, "/").map(|_| Full::new(Bytes::from_static(b"abcd")));
    *grpc.method_mut() = http::Method::POST;
    grpc.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    let answer = server.client().oneshot(grpc).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "abcd");
    let fits = "Content-Length: 3\r\n\r\nabc";
    assert!(talk(server.addr, &post("text/plain", fits)).await.ends_with("abc"));
}

#[tokio::test]
async fn a_body_may_not_pause_for_long_unless_it_is_grpcs() {
    let server = Server::start(Asked::default().app(), settings(|s| s.body_idle = Some(millis(20)))).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n";
    assert!(talk(server.addr, &format!("{head}\r\nhalf")).await.starts_with("HTTP/1.1 500 "));
    let mut peer = Http2::connect(server.addr).await;
    // POST, http, /, authority a, content-type application/grpc
    let grpc = [&[0x83, 0x86, 0x84, 0x41, 1, b'a', 0x0f, 0x10, 16][..], b"application/grpc"].concat();
    peer.send(raw::HEADERS, raw::END_HEADERS, 1, &grpc).await;
    peer.send(raw::DATA, 0, 1, b"half").await;
    tokio::time::sleep(millis(50)).await;
    peer.send(raw::DATA, raw::END_STREAM, 1, b"other").await;
    let answer = peer.next().await.unwrap();
    assert_eq!((answer.kind, answer.payload.first()), (raw::HEADERS, Some(&0x88)));
}

#[tokio::test]
async fn an_unread_body_is_not_the_next_request() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), ServeSettings::default()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let body = smuggled.repeat(30_000);
    let first = format!("POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let _ = stream.write_all(first.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    assert_eq!(asked.times(), 1);
}

#[tokio::test]
async fn slow_heads_are_cut_off_in_any_place() {
    let server = Server::start(Asked::default().app(), settings(|s| s.header_timeout = millis(30))).await;
    for begin in
        ["", "G", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nHost: a", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET"]
    {
        let start = Instant::now();
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer))
            .await
            .expect("cut off");
        assert!(start.elapsed() >= millis(29), "{begin:?} after {:?}", start.elapsed());
    }
    // A byte now and then does not help.
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let mut written = 0;
    while stream.write_all(b"G").await.is_ok() {
        written += 1;
        assert!(written < 200, "never cut off");
        tokio::time::sleep(millis(2)).await;
    }
    assert_eq!(server.stats.snapshot().timed_out, 6);
    raw::until("closed", || server.stats.snapshot().open == 0).await;
}

#[tokio::test]
async fn unused_connections_are_closed_and_used_ones_are_not() {
    let server = Server::start(
        Asked::default().app(),
        settings(|s| {
            s.idle = millis(25);
            s.header_timeout = millis(500);
        }),
    )
    .await;
    for version in BOTH {
        let client = server.client();
        let response = client.clone().oneshot(get(version, "/slow")).await.unwrap();
        assert_eq!(response.status(), 200, "{version:?} took longer than idle connections are kept");
        drop(response);
        raw::until("closed", || client.stats().snapshot().open == 0).await;
    }
}

#[tokio::test]
async fn connections_retire_without_hurting_a_request() {
    let server = Server::start(Asked::default().app(), settings(|s| s.age_max = Some(millis(20)))).await;
    for version in BOTH {
        let client = server.client();
        let response = client.clone().oneshot(get(version, "/slow")).await.unwrap();
        assert_eq!(response.status(), 200);
        drop(response);
        raw::until("closed", || client.stats().snapshot().open == 0).await;
    }
}

#[tokio::test]
async fn panics_and_errors_of_the_app_are_500_and_counted() {
    let server = Server::start(Asked::default().app(), ServeSettings::default()).await;
    for version in BOTH {
        let client = server.client();
        for path in ["/panic", "/fail", "/"] {
            let response = client.clone().oneshot(get(version, path)).await.unwrap();
            assert_eq!(response.status(), if path == "/" { 200 } else { 500 }, "{version:?} {path}");
        }
        assert_eq!(client.stats().snapshot().opened, 1, "the connection lives on");
    }
    raw::until("answered", || server.stats.snapshot().in_flight == 0).await;
    let stats = server.stats.snapshot();
    assert_eq!((stats.panics, stats.failed, stats.requests), (2, 2, 6));
}

#[tokio::test]
async fn a_body_that_panics_breaks_its_own_response_and_is_counted() {
    let app = tower::service_fn(|request: Request<RequestBody>| async move {
        let fine = request.uri().path() == "/";
        let frames = futures::stream::iter(0..3).map(move |n| {
            assert!(fine || n < 2, "on purpose");
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"x")))
        });
        Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(frames)))
    });
    let server = Server::start(app, ServeSettings::default()).await;
    for version in BOTH {
        let client = server.client();
        // HTTP/1.1 may not have sent the head yet when the body breaks.
        if let Ok(broken) = client.clone().oneshot(get(version, "/panic")).await {
            assert!(broken.into_body().collect().await.is_err(), "{version:?}");
        }
        let fine = client.oneshot(get(version, "/")).await.unwrap();
        assert_eq!(fine.into_body().collect().await.unwrap().to_bytes(), "xxx");
    }
    assert_eq!(server.stats.snapshot().panics, 2);
    raw::until("closed", || server.stats.snapshot().open == 0 && server.stats.snapshot().in_flight == 0)
        .await;
}

#[tokio::test]
async fn draining_lets_requests_finish_and_refuses_new_ones() {
    for version in BOTH {
        let server = Server::start(Asked::default().app(), ServeSettings::default()).await;
        let (client, idle) = (server.client(), server.client());
        idle.clone().oneshot(get(version, "/")).await.unwrap();
        let (addr, stats) = (server.addr, server.stats.clone());
        let slow = tokio::spawn(client.oneshot(get(version, "/slow")));
        raw::until("asked", || stats.snapshot().requests == 2).await;
        let drained = server.stop().await;
        assert_eq!(drained.aborted, 0);
        assert_eq!(slow.await.unwrap().unwrap().status(), 200);
        raw::until("closed", || idle.stats().snapshot().open == 0).await;
        assert!(TcpStream::connect(addr).await.is_err());
        assert_eq!((stats.snapshot().open, stats.snapshot().in_flight), (0, 0));
    }
}

#[tokio::test]
async fn draining_sends_goaway() {
    let server = Server::start(Asked::default().app(), ServeSettings::default()).await;
    let mut peer = Http2::connect(server.addr).await;
    raw::until("accepted", || server.stats.snapshot().open == 1).await;
    peer.send(raw::PING, 0, 0, &[0; 8]).await;
    assert_eq!(peer.next().await.unwrap().kind, raw::PING);
    let stopping = tokio::spawn(server.stop());
    let mut kinds = Vec::new();
    while let Some(frame) = peer.next().await {
        kinds.push(frame.kind);
        if frame.kind == raw::PING && frame.flags & raw::ACK == 0 {
            peer.send(raw::PING, raw::ACK, 0, &frame.payload).await;
        }
    }
    assert_eq!(kinds.first(), Some(&raw::GOAWAY), "{kinds:?}");
    assert_eq!(stopping.await.unwrap().aborted, 0);
}

#[tokio::test]
async fn draining_has_an_end() {
    for version in BOTH {
        let asked = Asked::default();
        let server = Server::start(asked.app(), settings(|s| s.drain = millis(20))).await;
        let never = tokio::spawn(server.client().oneshot(get(version, "/never")));
        let stats = server.stats.clone();
        raw::until("asked", || stats.snapshot().requests == 1).await;
        assert_eq!(server.stop().await.aborted, 1);
        assert!(never.await.unwrap().is_err());
        raw::until("dropped", || asked.now.load(Ordering::Relaxed) == 0).await;
        assert_eq!((stats.snapshot().in_flight, stats.snapshot().open, stats.snapshot().aborted), (0, 0, 1));
    }
}

#[tokio::test]
async fn dropping_the_server_cuts_everything_off() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), ServeSettings::default()).await;
    let never = tokio::spawn(server.client().oneshot(get(Version::HTTP_2, "/never")));
    raw::until("asked", || server.stats.snapshot().requests == 1).await;
    server.task.abort();
    assert!(never.await.unwrap().is_err());
    raw::until("dropped", || asked.now.load(Ordering::Relaxed) == 0 && server.stats.snapshot().open == 0)
        .await;
}

#[tokio::test]
async fn no_error_of_accept_ends_the_server_or_makes_it_spin() {
    let (listener, _) = raw::listen().await;
    // A listening socket that was shut down gives an error at each accept.
    socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
    let stats = Arc::new(ServeStats::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let app = Asked::default().app();
    let task =
        tokio::spawn(serve_with(listener, Accepting, app, ServeSettings::default(), stats.clone(), stopped));
    raw::until("errors", || stats.snapshot().accept_errors > 1).await;
    tokio::time::sleep(millis(50)).await;
    let errors = stats.snapshot().accept_errors;
    assert!(!task.is_finished() && errors < 10, "{errors} errors");
    stop.send(()).unwrap();
    assert_eq!(task.await.unwrap().aborted, 0);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let server = Server::start(Asked::default().app(), settings(|s| s.connections_max = 1)).await;
    let first = server.client();
    first.clone().oneshot(get(Version::HTTP_11, "/")).await.unwrap();
    let second = tokio::spawn(server.client().oneshot(get(Version::HTTP_11, "/")));
    tokio::time::sleep(millis(20)).await;
    assert!(!second.is_finished() && server.stats.snapshot().accepted == 1);
    drop(first);
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
}

/// Gives a name and, when told, retires the connection.
#[derive(Clone)]
struct Named {
    stuck: bool,
    retire: Arc<Notify>,
}

fn named(stuck: bool) -> Named {
    Named { stuck, retire: Arc::default() }
}

impl Accept for Named {
    type Io = TcpStream;
    type Identity = &'static str;

    async fn accept(
        &self,
        io: TcpStream,
        _remote: SocketAddr,
    ) -> Result<Accepted<TcpStream, &'static str>, BoxError> {
        if self.stuck {
            std::future::pending::<()>().await;
        }
        let retire = self.retire.clone();
        let retired = Box::pin(async move { retire.notified().await });
        Ok(Accepted { io, http2: None, identity: Some("alice"), name: None, retired: Some(retired) })
    }
}

#[tokio::test]
async fn handlers_see_who_asks_and_from_where() {
    let (listener, addr) = raw::listen().await;
    let app = tower::service_fn(|request: Request<RequestBody>| async move {
        let remote = request.extensions().get::<Remote>().unwrap().addr.ip();
        let name = request.extensions().get::<&'static str>().unwrap();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("{name} from {remote}")))))
    });
    let never = std::future::pending();
    tokio::spawn(serve_with(listener, named(false), app, ServeSettings::default(), Arc::default(), never));
    for version in BOTH {
        let client = Client::new(Endpoint::new(addr), ConnectSettings::default(), Plain);
        let body = client.oneshot(get(version, "/")).await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "alice from 127.0.0.1");
    }
}

#[tokio::test]
async fn a_retired_connection_finishes_what_it_has_within_its_time() {
    for (version, path) in BOTH.into_iter().flat_map(|version| [(version, "/slow"), (version, "/never")]) {
        let (listener, addr) = raw::listen().await;
        let (stats, accept) = (Arc::new(ServeStats::default()), named(false));
        let (limits, never) = (settings(|s| s.drain = millis(100)), std::future::pending());
        let app = Asked::default().app();
        tokio::spawn(serve_with(listener, accept.clone(), app, limits, stats.clone(), never));
        let client = Client::new(Endpoint::new(addr), ConnectSettings::default(), Plain);
        let asking = tokio::spawn(client.clone().oneshot(get(version, path)));
        raw::until("asked", || stats.snapshot().in_flight == 1).await;
        accept.retire.notify_one();
        assert_eq!(asking.await.unwrap().is_ok(), path == "/slow", "{version:?} {path}");
        raw::until("closed", || stats.snapshot().open == 0 && client.stats().snapshot().open == 0).await;
        assert_eq!(stats.snapshot().aborted, u64::from(path == "/never"));
    }
}

#[tokio::test]
async fn a_handshake_has_an_end() {
    let (listener, addr) = raw::listen().await;
    let stats = Arc::new(ServeStats::default());
    let (limits, never) = (settings(|s| s.handshake_timeout = millis(10)), std::future::pending());
    tokio::spawn(serve_with(listener, named(true), Asked::default().app(), limits, stats.clone(), never));
    assert_eq!(talk(addr, "GET / HTTP/1.1\r\n").await, "");
    assert_eq!(stats.snapshot().handshakes_failed, 1);
}

#[tokio::test]
async fn an_upgrade_hands_over_the_connection_and_a_declined_one_ends_it() {
    let app = tower::service_fn(|request: Request<RequestBody>| async move {
        if request.uri().path() == "/no" {
            return Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()));
        }
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 96];
            io.read_exact(&mut bytes).await.unwrap();
            io.write_all(&bytes).await.unwrap();
        });
        let response =
            Response::builder().status(101).header("upgrade", "echo").header("connection", "upgrade");
        Ok(response.body(Full::default()).unwrap())
    });
    let server = Server::start(app, ServeSettings::default()).await;
    let upgrade = "HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    // What an upgraded connection carries is nobody's business.
    let other =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let other = format!("{other:-<96}");
    let answer = talk(server.addr, &format!("GET /yes {upgrade}{other}")).await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with(&other), "{answer}");
    let answer = talk(server.addr, &format!("GET /no {upgrade}{other}")).await;
    assert!(answer.contains("connection: close") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
}

#[tokio::test]
async fn a_peer_that_leaves_after_any_byte_leaves_nothing() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), ServeSettings::default()).await;
    let http1 = b"POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd".to_vec();
    // :method GET, :scheme http, :path /, :authority a
    let head =
        Http2::frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
    let http2 =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &Http2::frame(raw::SETTINGS, 0, 0, &[]), &head]
            .concat();
    for bytes in [http1, http2] {
        for length in 0..=bytes.len() {
            let mut stream = TcpStream::connect(server.addr).await.unwrap();
            stream.write_all(&bytes[..length]).await.unwrap();
            if length % 2 == 0 {
                raw::reset(stream);
            }
        }
        raw::until("closed", || server.stats.snapshot().open == 0 && server.stats.snapshot().in_flight == 0)
            .await;
    }
    assert_eq!(asked.now.load(Ordering::Relaxed), 0);
}

/// What a flood may do at most: the connection ends, few were asked at once, and nothing stays.
async fn flood(name: &str, pieces: impl Iterator<Item = Vec<u8>>) {
    let asked = Asked::default();
    let server = Server::start(asked.app(), ServeSettings::default()).await;
    let mut peer = Http2::connect(server.addr).await;
    let mut ended = false;
    for piece in pieces {
        if peer.stream.write_all(&piece).await.is_err() {
            ended = true;
            break;
        }
        tokio::task::yield_now().await;
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), async {
        while let Some(frame) = peer.next().await {
            ended |= frame.kind == raw::GOAWAY;
        }
    })
    .await;
    assert!(ended, "{name}: the connection lives on");
    assert!(asked.peak.load(Ordering::Relaxed) <= 200, "{name}");
    raw::until(name, || server.stats.snapshot().open == 0 && server.stats.snapshot().in_flight == 0).await;
    assert_eq!(asked.now.load(Ordering::Relaxed), 0, "{name}");
    let honest = server.client().oneshot(get(Version::HTTP_2, "/")).await.unwrap();
    assert_eq!(honest.status(), 200, "{name}");
}

const NEVER: &[u8] = &[0x82, 0x86, 0x44, 6, b'/', b'n', b'e', b'v', b'e', b'r', 0x41, 1, b'a'];

#[tokio::test]
async fn http2_floods_end_the_connection_and_leave_nothing() {
    let frame = Http2::frame;
    let open = |id: u32| frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, id, NEVER);
    let ids = || (0..20_000u32).map(|n| 2 * n + 1);
    let rst = |id: u32| frame(raw::RST_STREAM, 0, id, &8u32.to_be_bytes());
    flood("rapid reset", ids().map(|id| [open(id), rst(id)].concat())).await;
    // A window update by nothing makes the server reset the stream.
    flood("made you reset", ids().map(|id| [open(id), frame(8, 0, id, &[0; 4])].concat())).await;
    let begun = frame(raw::HEADERS, raw::END_HEADERS, 1, NEVER);
    let empty = vec![frame(raw::DATA, 0, 1, &[]); 1000].concat();
    flood("empty data", std::iter::once(begun).chain(std::iter::repeat_n(empty, 1000))).await;
    let begun = frame(raw::HEADERS, 0, 1, NEVER);
    // Literals without indexing: x: y.
    let more = frame(raw::CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'].repeat(100));
    flood("continuation", std::iter::once(begun).chain(std::iter::repeat_n(more, 10_000))).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_the_others_served() {
    let asked = Asked::default();
    let server = Server::start(asked.app(), settings(|s| s.http2_streams_max = 10)).await;
    let mut peer = Http2::connect(server.addr).await;
    for n in 0..15u32 {
        peer.send(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 2 * n + 1, NEVER).await;
    }
    for _ in 0..5 {
        let frame = peer.next().await.unwrap();
        assert_eq!(
            (frame.kind, frame.payload),
            (raw::RST_STREAM, raw::REFUSED_STREAM.to_be_bytes().to_vec())
        );
    }
    raw::until("asked", || asked.times() == 10).await;
}
