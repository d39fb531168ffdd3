//! Peers that take more than their share of a server: connections, handshakes, windows, floods. Raw sockets.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "servers of tests end with the test")]

mod raw;

use bytes::Bytes;
use enmesh::error::BoxError;
use enmesh::serve::body::RequestBody;
use enmesh::serve::handshake::Accept;
use enmesh::serve::handshake::Accepted;
use enmesh::serve::listen::serve_with;
use enmesh::serve::settings::ServeSettings;
use enmesh::serve::stats::ServeStats;
use http::Request;
use http::Response;
use http_body_util::Either;
use http_body_util::Full;
use http_body_util::StreamBody;
use raw::Http2;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A handshake that reads one byte: `S` is silent ever after, any other letter is the peer's name.
#[derive(Clone, Default)]
struct ByLetter;

impl Accept for ByLetter {
    type Io = TcpStream;
    type Identity = Infallible;

    async fn accept(
        &self,
        mut io: TcpStream,
        _remote: SocketAddr,
    ) -> Result<Accepted<TcpStream, Infallible>, BoxError> {
        let name = io.read_u8().await?;
        if name == b'S' {
            std::future::pending::<()>().await;
        }
        let name = char::from(name).to_string().into();
        Ok(Accepted { io, http2: None, identity: None, name: Some(name), retired: None })
    }
}

/// How many requests the app has seen.
type Seen = Arc<AtomicUsize>;

/// An app: `/big` has 8 MiB, `/silent` a body that never says anything, all else is empty.
async fn serve<A: Accept>(accept: A, settings: ServeSettings) -> (SocketAddr, Arc<ServeStats>, Seen) {
    let (listener, addr) = raw::listen().await;
    let (stats, seen) = (Arc::new(ServeStats::default()), Seen::default());
    let counted = Arc::clone(&seen);
    let app = tower::service_fn(move |request: Request<RequestBody>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let body = match request.uri().path() {
            "/big" => Either::Left(Full::new(Bytes::from(vec![7; 8 << 20]))),
            "/silent" => Either::Right(StreamBody::new(futures::stream::pending::<
                Result<http_body::Frame<Bytes>, Infallible>,
            >())),
            _ => Either::Left(Full::default()),
        };
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let serving = Arc::clone(&stats);
    tokio::spawn(async move {
        serve_with(listener, accept, app, settings, serving, std::future::pending()).await
    });
    (addr, stats, seen)
}

fn settings(change: impl FnOnce(&mut ServeSettings)) -> ServeSettings {
    let mut settings = ServeSettings::default();
    change(&mut settings);
    settings
}

/// Connects from one of this host's many addresses.
async fn from(host: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((host, 0))).unwrap();
    socket.connect(to).await.unwrap()
}

/// Sends these bytes and a request, and reads the first line of the answer; empty when there is none.
async fn ask(stream: &mut TcpStream, before: &str) -> String {
    let request = format!("{before}GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer));
    match read.await.expect("an answer or an end") {
        Ok(_) => String::from_utf8(answer).unwrap(),
        Err(_) => String::new(),
    }
}

const OK: &str = "HTTP/1.1 200";

#[tokio::test]
async fn an_address_has_its_share_of_connections_and_others_have_theirs() {
    let limit = settings(|s| s.connections_per_peer_max = 3);
    let (addr, stats, _) = serve(enmesh::serve::handshake::Plain, limit).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = from([127, 0, 0, 2], addr).await;
        assert_eq!(ask(&mut stream, "").await, OK);
        held.push(stream);
    }
    for _ in 0..5 {
        assert_eq!(ask(&mut from([127, 0, 0, 2], addr).await, "").await, "");
    }
    assert_eq!(ask(&mut from([127, 0, 0, 3], addr).await, "").await, OK);
    assert_eq!(stats.snapshot().over_peer_limit, 5);
    held.pop();
    raw::until("the place is free", || stats.snapshot().open <= 2).await;
    assert_eq!(ask(&mut from([127, 0, 0, 2], addr).await, "").await, OK);
}

#[tokio::test]
async fn an_identity_has_its_share_from_wherever_it_calls() {
    let limit = settings(|s| s.connections_per_peer_max = 2);
    let (addr, stats, seen) = serve(ByLetter, limit).await;
    let mut held = Vec::new();
    for host in 2..4 {
        let mut stream = from([127, 0, 0, host], addr).await;
        assert_eq!(ask(&mut stream, "a").await, OK);
        held.push(stream);
    }
    for host in 4..8 {
        assert_eq!(ask(&mut from([127, 0, 0, host], addr).await, "a").await, "");
    }
    assert_eq!(ask(&mut from([127, 0, 0, 9], addr).await, "b").await, OK);
    assert_eq!((stats.snapshot().over_peer_limit, seen.load(Ordering::Relaxed)), (4, 3));
}

#[tokio::test]
async fn who_stalls_in_handshakes_leaves_room_for_others() {
    let limit = settings(|s| {
        s.handshakes_max = 8;
        s.handshake_timeout = Duration::from_secs(60);
    });
    let (addr, stats, _) = serve(ByLetter, limit).await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut stream = from([127, 0, 0, 2], addr).await;
        stream.write_all(b"S").await.unwrap();
        stalled.push(stream);
    }
    raw::until("those beyond a quarter are closed", || stats.snapshot().over_peer_limit == 38).await;
    assert_eq!(ask(&mut from([127, 0, 0, 3], addr).await, "x").await, OK);
}

#[tokio::test]
async fn handshakes_beyond_the_limit_wait_their_turn() {
    let limit = settings(|s| s.handshakes_max = 2);
    let (addr, _, _) = serve(ByLetter, limit).await;
    let mut first = Vec::new();
    for host in 2..4 {
        first.push(from([127, 0, 0, host], addr).await);
    }
    tokio::time::sleep(millis(20)).await;
    let mut third = from([127, 0, 0, 4], addr).await;
    let waits = tokio::time::timeout(millis(50), ask(&mut third, "x")).await;
    assert!(waits.is_err(), "there is no place yet");
    assert_eq!(ask(&mut first[0], "a").await, OK);
    let mut line = [0; 12];
    third.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, OK.as_bytes());
}

/// `GET` of a path, for HTTP/2.
fn get(path: &str) -> Vec<u8> {
    [&[0x82, 0x86, 0x44, u8::try_from(path.len()).unwrap()], path.as_bytes(), &[0x41, 1, b'a']].concat()
}

#[tokio::test]
async fn a_peer_that_takes_no_response_is_cut_off_and_one_that_waits_for_it_is_not() {
    let limit = settings(|s| s.response_stall = Some(millis(150)));
    let (addr, stats, seen) = serve(enmesh::serve::handshake::Plain, limit).await;
    // HTTP/2: no window is ever opened.
    let mut shut = Http2::connect(addr).await;
    shut.settings(&[(4, 0)]).await;
    for id in [1, 3, 5] {
        shut.send(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, id, &get("/big")).await;
    }
    // HTTP/1.1: nothing is ever read.
    let mut deaf = TcpStream::connect(addr).await.unwrap();
    // More than the kernel keeps for it.
    deaf.write_all(&b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n".repeat(8)).await.unwrap();
    // Of this one the app has nothing to give.
    let mut patient = Http2::connect(addr).await;
    patient.send(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 1, &get("/silent")).await;
    raw::until("asked", || seen.load(Ordering::Relaxed) >= 5).await;
    raw::until("cut off", || stats.snapshot().stalled == 2).await;
    raw::until("gone", || stats.snapshot().open == 1 && stats.snapshot().in_flight == 1).await;
    let end = tokio::time::timeout(Duration::from_secs(5), async { while shut.next().await.is_some() {} });
    end.await.expect("the connection has ended");
    tokio::time::sleep(millis(400)).await;
    assert_eq!((stats.snapshot().stalled, stats.snapshot().open), (2, 1));
}

/// Limits that a response of 8 MiB would break if its way to a slow reader counted as nothing.
fn short() -> ServeSettings {
    settings(|s| {
        s.response_stall = Some(millis(400));
        (s.idle, s.header_timeout) = (millis(100), millis(100));
    })
}

#[tokio::test]
async fn a_slow_reader_that_reads_on_gets_everything() {
    let (addr, stats, _) = serve(enmesh::serve::handshake::Plain, short()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut piece, mut total) = (vec![0; 128 << 10], 0);
    while total < 8 << 20 {
        let n = stream.read(&mut piece).await.unwrap();
        assert!(n > 0, "cut off after {total} bytes");
        total += n;
        tokio::time::sleep(millis(10)).await;
    }
    assert_eq!(stats.snapshot().stalled, 0);
    raw::until("idle", || stats.snapshot().open == 0).await;
}

#[tokio::test]
async fn a_slow_reader_of_http2_that_opens_its_window_gets_everything() {
    let (addr, stats, _) = serve(enmesh::serve::handshake::Plain, short()).await;
    let mut peer = Http2::connect(addr).await;
    peer.send(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 1, &get("/big")).await;
    let mut total = 0;
    while total < 8 << 20 {
        let frame = peer.next().await.expect("not cut off");
        if frame.kind == raw::DATA {
            total += frame.payload.len();
            let opened = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
            peer.send(8, 0, 0, &opened).await;
            peer.send(8, 0, 1, &opened).await;
            tokio::time::sleep(millis(2)).await;
        }
    }
    assert_eq!(stats.snapshot().stalled, 0);
}

#[tokio::test]
async fn who_answers_no_ping_is_gone_also_with_a_request_under_way() {
    let limit = settings(|s| (s.http2_ping, s.http2_ping_timeout) = (Some(millis(50)), millis(50)));
    let (addr, stats, _) = serve(enmesh::serve::handshake::Plain, limit).await;
    let mut peer = Http2::connect(addr).await;
    peer.send(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 1, &get("/silent")).await;
    raw::until("under way", || stats.snapshot().in_flight == 1).await;
    raw::until("gone", || stats.snapshot().open == 0 && stats.snapshot().in_flight == 0).await;
}

/// Sends frames that each want an answer, and reads none; how many bytes went out before the pipe was full.
async fn unread_flood(frame: Vec<u8>) {
    let limit = settings(|s| (s.http2_ping, s.http2_ping_timeout) = (Some(millis(50)), millis(100)));
    let (addr, stats, _) = serve(enmesh::serve::handshake::Plain, limit).await;
    let mut peer = Http2::connect(addr).await;
    let flood = frame.repeat(4096);
    let mut sent = 0;
    while sent < 256 << 20 {
        match tokio::time::timeout(Duration::from_secs(5), peer.stream.write(&flood)).await {
            Ok(Ok(n)) => sent += n,
            // The connection has ended.
            Ok(Err(_)) => break,
            Err(_) => panic!("neither taken nor ended"),
        }
    }
    assert!(sent < 64 << 20, "{sent} bytes were taken whose answers nobody reads");
    raw::until("gone", || stats.snapshot().open == 0).await;
    assert_eq!(ask(&mut TcpStream::connect(addr).await.unwrap(), "").await, OK);
}

#[tokio::test]
async fn floods_of_pings_and_settings_whose_answers_nobody_reads_end_the_connection() {
    unread_flood(Http2::frame(raw::PING, 0, 0, &[7; 8])).await;
    unread_flood(Http2::frame(raw::SETTINGS, 0, 0, &[])).await;
}

#[tokio::test]
async fn a_header_that_unfolds_to_megabytes_is_refused_and_reaches_nobody() {
    let (addr, stats, seen) = serve(enmesh::serve::handshake::Plain, ServeSettings::default()).await;
    let mut peer = Http2::connect(addr).await;
    // A literal of 4,000 bytes with indexing, then the index of it, one byte each.
    let literal = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let folded = [&get("/")[..], &literal, &[0xbe; 10_000]].concat();
    for id in 0..20u32 {
        let block = if id == 0 { &folded[..] } else { &[&get("/")[..], &[0xbe; 10_000]].concat()[..] };
        peer.send(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 2 * id + 1, block).await;
    }
    let answers = async {
        let mut refused = 0;
        while refused < 20 {
            match peer.next().await {
                Some(frame) if frame.kind == raw::GOAWAY => break,
                // 431, which stands in no static table, or a reset.
                Some(frame) if frame.kind == raw::HEADERS || frame.kind == raw::RST_STREAM => refused += 1,
                Some(_) => {}
                None => break,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), answers).await.expect("each is answered");
    assert_eq!(seen.load(Ordering::Relaxed), 0, "the app is not asked");
    drop(peer);
    raw::until("gone", || stats.snapshot().open == 0).await;
    assert_eq!(ask(&mut TcpStream::connect(addr).await.unwrap(), "").await, OK);
}
