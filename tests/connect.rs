//! Connections against real loopback servers, honest and otherwise.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "servers of tests end with the test")]

mod raw;

use bytes::Bytes;
use enmesh::connect::handshake::Established;
use enmesh::connect::handshake::Handshake;
use enmesh::connect::handshake::Offer;
use enmesh::connect::handshake::Plain;
use enmesh::connect::http::Connection;
use enmesh::connect::http::ResponseBody;
use enmesh::connect::settings::ConnectSettings;
use enmesh::discover::endpoint::Endpoint;
use enmesh::error::BoxError;
use enmesh::error::Error;
use enmesh::error::Scope;
use enmesh::profile::settings::Limit;
use futures::future::join_all;
use http::Request;
use http::Response;
use http::Version;
use http_body_util::BodyExt;
use http_body_util::Full;
use raw::Http2;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tower::ServiceExt;

type Client = Connection<Full<Bytes>, Plain>;

fn settings(change: impl FnOnce(&mut ConnectSettings)) -> ConnectSettings {
    let mut settings = ConnectSettings::default();
    change(&mut settings);
    settings
}

fn client(addr: SocketAddr, change: impl FnOnce(&mut ConnectSettings)) -> Client {
    Client::new(Endpoint::new(addr), settings(change), Plain)
}

fn request(version: Version, path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let body = Full::new(Bytes::from_static(body.as_bytes()));
    Request::post(format!("http://web.ns:81{path}")).version(version).body(body).unwrap()
}

async fn send(client: &Client, version: Version, path: &str, body: &'static str) -> Result<String, Error> {
    Ok(text(client.clone().oneshot(request(version, path, body)).await?).await)
}

async fn text(response: Response<ResponseBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Says what it got; `/never` is not answered and `/early` before the body was read.
async fn echo() -> SocketAddr {
    raw::each(|_, stream| async move {
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            let (head, body) = request.into_parts();
            if head.uri.path() == "/never" {
                std::future::pending::<()>().await;
            }
            let early = head.uri.path() == "/early";
            let body = if early { Bytes::new() } else { body.collect().await.unwrap().to_bytes() };
            let host = head.headers.get("host").map_or("-", |host| host.to_str().unwrap());
            let body = String::from_utf8_lossy(&body);
            let text = format!("{:?} {} {} {host} {body}", head.version, head.method, head.uri);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        });
        let _ = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new())
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await;
    })
    .await
}

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

#[tokio::test]
async fn both_versions_keep_the_callers_authority_and_reuse_the_connection() {
    let client = client(echo().await, |_| {});
    for _ in 0..3 {
        assert_eq!(
            send(&client, Version::HTTP_11, "/a?b", "x").await.unwrap(),
            "HTTP/1.1 POST /a?b web.ns:81 x"
        );
        assert_eq!(
            send(&client, Version::HTTP_2, "/a?b", "y").await.unwrap(),
            "HTTP/2.0 POST http://web.ns:81/a?b - y"
        );
    }
    let stats = client.stats().snapshot();
    assert_eq!((stats.opened, stats.reused, stats.in_use, stats.open), (2, 4, 0, 2), "{stats:?}");
}

#[tokio::test]
async fn discoverys_hint_makes_an_http1_request_go_by_http2() {
    let endpoint = Endpoint { http2: true, ..Endpoint::new(echo().await) };
    let client = Client::new(endpoint, ConnectSettings::default(), Plain);
    assert!(send(&client, Version::HTTP_11, "/", "").await.unwrap().starts_with("HTTP/2.0"));
}

#[tokio::test]
async fn a_connection_that_closes_just_before_a_post_is_replaced() {
    // The peer's thread says so by another socket and then closes, while this thread waits. So in one turn of
    // the runtime first the caller runs and hands hyper the request, and then hyper meets the end of the stream.
    use std::io::Read;
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = |listener: &std::net::TcpListener| {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        stream
    };
    let (side, side_addr) = raw::listen().await;
    let (close, closed) = std::sync::mpsc::channel::<()>();
    let peer = std::thread::spawn(move || {
        let mut side = std::net::TcpStream::connect(side_addr).unwrap();
        let stream = serve(&listener);
        closed.recv().unwrap();
        side.write_all(b"x").unwrap();
        drop(stream);
        listener
    });
    let (mut side, _) = side.accept().await.unwrap();
    let client = client(addr, |_| {});
    assert_eq!(send(&client, Version::HTTP_11, "/", "a").await.unwrap(), "ok");
    // A read that finds nothing, so that the next one waits for the runtime.
    assert!(tokio::time::timeout(Duration::ZERO, side.read_exact(&mut [0])).await.is_err());
    close.send(()).unwrap();
    let listener = peer.join().unwrap();
    let again = std::thread::spawn(move || serve(&listener));
    side.read_exact(&mut [0]).await.unwrap();
    assert_eq!(send(&client, Version::HTTP_11, "/", "b").await.unwrap(), "ok");
    again.join().unwrap();
    let stats = client.stats().snapshot();
    assert_eq!((stats.opened, stats.resent, stats.in_use), (2, 1, 0), "{stats:?}");
}

#[tokio::test]
async fn a_connection_that_closed_is_not_used_again() {
    let addr = raw::each(|_, mut stream| async move {
        raw::read_http1(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let client = client(addr, |_| {});
    for _ in 0..3 {
        assert_eq!(send(&client, Version::HTTP_11, "/", "a").await.unwrap(), "ok");
        raw::until("closed", || client.stats().snapshot().open == 0).await;
    }
    assert_eq!((client.stats().snapshot().opened, client.stats().snapshot().resent), (3, 0));
}

#[tokio::test]
async fn a_refused_replica_is_left_alone_for_a_while() {
    let (listener, addr) = raw::listen().await;
    drop(listener);
    let client = client(addr, |s| s.backoff_base = Duration::from_secs(3600));
    for _ in 0..5 {
        let error = send(&client, Version::HTTP_11, "/", "").await.unwrap_err();
        assert!(matches!(error, Error::Connect { endpoint, .. } if endpoint == addr), "{error:?}");
        assert!(error.is_unsent());
    }
    assert_eq!(client.stats().snapshot().failed_tcp, 1);
}

#[tokio::test]
async fn a_replica_that_is_back_is_used_after_the_wait() {
    let (listener, addr) = raw::listen().await;
    drop(listener);
    let client = client(addr, |s| s.backoff_base = Duration::from_millis(5));
    assert!(send(&client, Version::HTTP_11, "/", "").await.is_err());
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        while raw::read_http1(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(6)).await;
    assert_eq!(send(&client, Version::HTTP_11, "/", "").await.unwrap(), "ok");
}

#[tokio::test]
async fn a_peer_that_accepts_and_closes_is_no_hot_loop() {
    for version in BOTH {
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let addr = raw::each(move |_, stream| {
            counter.fetch_add(1, Ordering::Relaxed);
            drop(stream);
            std::future::ready(())
        })
        .await;
        let client = client(addr, |s| s.backoff_base = Duration::from_secs(3600));
        for _ in 0..50 {
            send(&client, version, "/", "x").await.unwrap_err();
        }
        let times = accepted.load(Ordering::Relaxed);
        assert!(times <= 5, "{version:?}: connected {times} times");
        raw::until("all closed", || client.stats().snapshot().open == 0).await;
        assert_eq!(client.stats().snapshot().in_use, 0);
    }
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_with_its_body() {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = bodies.clone();
    let addr = raw::each(move |_, stream| {
        let seen = seen.clone();
        async move {
            let mut peer = Http2::accept(stream, &[]).await;
            let mut refused = false;
            while let Some((stream, body)) = peer.request().await {
                seen.lock().unwrap().push(String::from_utf8(body).unwrap());
                if refused {
                    peer.respond(stream, b"ok").await;
                } else {
                    peer.rst(stream, raw::REFUSED_STREAM).await;
                }
                refused = !refused;
            }
        }
    })
    .await;
    let client = client(addr, |_| {});
    assert_eq!(send(&client, Version::HTTP_2, "/", "body").await.unwrap(), "ok");
    assert_eq!(send(&client, Version::HTTP_2, "/", "").await.unwrap(), "ok");
    assert_eq!(*bodies.lock().unwrap(), ["body", "body", "", ""]);
    let stats = client.stats().snapshot();
    assert_eq!((stats.opened, stats.resent, stats.in_use), (1, 2, 0), "{stats:?}");
}

#[tokio::test]
async fn refusals_are_at_most_three_and_then_an_unsent_error() {
    for resends in [0u8, 1, 2, 3, 200] {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        let addr = raw::each(move |_, stream| {
            let counter = counter.clone();
            async move {
                let mut peer = Http2::accept(stream, &[]).await;
                while let Some((stream, _)) = peer.request().await {
                    counter.fetch_add(1, Ordering::Relaxed);
                    peer.rst(stream, raw::REFUSED_STREAM).await;
                }
            }
        })
        .await;
        let client = client(addr, |s| s.resends_max = resends);
        let error = send(&client, Version::HTTP_2, "/", "x").await.unwrap_err();
        assert!(matches!(error, Error::Transport { unsent: true, .. }), "{error:?}");
        assert_eq!(sent.load(Ordering::Relaxed), usize::from(resends.min(3)) + 1);
    }
}

#[tokio::test]
async fn goaway_sends_only_the_streams_above_the_last_again() {
    let addr = raw::each(move |number, stream| async move {
        let mut peer = Http2::accept(stream, &[]).await;
        if number > 0 {
            while let Some((stream, _)) = peer.request().await {
                peer.respond(stream, b"second").await;
            }
            return;
        }
        let (first, _) = peer.request().await.unwrap();
        let (second, _) = peer.request().await.unwrap();
        assert_eq!((first, second), (1, 3));
        peer.goaway(first, 0).await;
        // The stream below the last one is served to its end.
        tokio::task::yield_now().await;
        peer.respond(first, b"first").await;
        assert!(peer.request().await.is_none());
    })
    .await;
    let client = client(addr, |_| {});
    // A connection must be open for both to go by it.
    let (a, b) =
        tokio::join!(send(&client, Version::HTTP_2, "/", "a"), send(&client, Version::HTTP_2, "/", "b"));
    let mut texts = [a.unwrap(), b.unwrap()];
    texts.sort();
    assert_eq!(texts, ["first", "second"]);
    let stats = client.stats().snapshot();
    assert_eq!((stats.opened, stats.resent, stats.in_use), (2, 1, 0), "{stats:?}");
}

#[tokio::test]
async fn a_goaway_loop_ends_in_an_unsent_error() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let addr = raw::each(move |_, stream| {
        let counter = counter.clone();
        async move {
            let mut peer = Http2::accept(stream, &[]).await;
            if peer.request().await.is_some() {
                counter.fetch_add(1, Ordering::Relaxed);
                peer.goaway(0, 0).await;
            }
        }
    })
    .await;
    let client = client(addr, |s| s.backoff_base = Duration::ZERO);
    let error = send(&client, Version::HTTP_2, "/", "x").await.unwrap_err();
    assert!(error.is_unsent(), "{error:?}");
    assert_eq!(sent.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_break_after_the_head_is_an_error_of_the_body_and_sent_once() {
    for version in BOTH {
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        let addr = raw::each(move |_, mut stream| {
            let counter = counter.clone();
            async move {
                if version == Version::HTTP_11 {
                    raw::read_http1(&mut stream).await.unwrap();
                    counter.fetch_add(1, Ordering::Relaxed);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
                    raw::reset(stream);
                } else {
                    let mut peer = Http2::accept(stream, &[]).await;
                    let (stream, _) = peer.request().await.unwrap();
                    counter.fetch_add(1, Ordering::Relaxed);
                    peer.send(raw::HEADERS, raw::END_HEADERS, stream, &[0x88]).await;
                    peer.send(raw::DATA, 0, stream, b"half").await;
                    peer.rst(stream, raw::REFUSED_STREAM).await;
                    peer.next().await;
                }
            }
        })
        .await;
        let client = client(addr, |_| {});
        let response = client.clone().oneshot(request(version, "/", "")).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
        assert_eq!(requests.load(Ordering::Relaxed), 1);
        assert_eq!((client.stats().snapshot().in_use, client.stats().snapshot().resent), (0, 0));
    }
}

#[tokio::test]
async fn a_break_before_the_head_is_not_unsent() {
    for version in BOTH {
        let addr = raw::each(move |_, mut stream| async move {
            if version == Version::HTTP_11 {
                raw::read_http1(&mut stream).await.unwrap();
            } else {
                let mut peer = Http2::accept(stream, &[]).await;
                peer.request().await.unwrap();
                stream = peer.stream;
            }
            raw::reset(stream);
        })
        .await;
        let client = client(addr, |_| {});
        let error = send(&client, version, "/", "x").await.unwrap_err();
        assert!(matches!(error, Error::Transport { unsent: false, .. }), "{error:?}");
    }
}

/// Serves one stream at a time on each connection and complains of a second.
async fn one_stream_at_a_time() -> SocketAddr {
    raw::each(|_, stream| async move {
        let mut peer = Http2::accept(stream, &[(3, 1)]).await;
        while let Some((stream, _)) = peer.request().await {
            let pause = tokio::time::sleep(Duration::from_millis(5));
            tokio::select! {
                biased;
                // Its caller may go away, but no other stream may begin.
                frame = peer.next() => assert!(frame.is_none_or(|frame| frame.kind == raw::RST_STREAM)),
                () = pause => peer.respond(stream, b"ok").await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn as_many_connections_as_the_allowed_streams_need() {
    let client = client(one_stream_at_a_time().await, |_| {});
    let all = join_all((0..10).map(|_| send(&client, Version::HTTP_2, "/", ""))).await;
    assert!(all.iter().all(|one| one.as_deref().is_ok_and(|text| text == "ok")), "{all:?}");
    let stats = client.stats().snapshot();
    assert!(stats.opened > 1 && stats.opened <= 10, "{stats:?}");
    assert_eq!((stats.in_use, stats.resent, stats.failed_protocol), (0, 0, 0), "{stats:?}");
}

#[tokio::test]
async fn requests_queue_when_no_more_connections_are_allowed() {
    for version in BOTH {
        let addr = if version == Version::HTTP_2 { one_stream_at_a_time().await } else { echo().await };
        let client = client(addr, |s| s.connections_max = 1);
        let all = join_all((0..10).map(|_| send(&client, version, "/", ""))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        let stats = client.stats().snapshot();
        assert_eq!((stats.opened, stats.in_use), (1, 0), "{stats:?}");
    }
}

#[tokio::test]
async fn the_queue_is_finite() {
    let client = client(echo().await, |s| {
        s.connections_max = 1;
        s.pending_max = 2;
    });
    let all = join_all((0..5).map(|_| send(&client, Version::HTTP_11, "/", ""))).await;
    let refused = all.iter().filter(|one| matches!(one, Err(Error::Overloaded { .. }))).count();
    assert_eq!((refused, all.iter().filter(|one| one.is_ok()).count()), (3, 2));
}

/// Polls a future `polls` times with the rest of the world running in between, then drops it.
async fn drop_after<F: Future>(polls: usize, future: F) -> bool {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
        if polled {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    false
}

#[tokio::test]
async fn dropping_the_future_after_any_poll_leaks_nothing() {
    for version in BOTH {
        for path in ["/", "/never"] {
            let client = client(echo().await, |s| s.connections_max = 2);
            for polls in 0..8 {
                let call = |_: usize| drop_after(polls, send(&client, version, path, "x"));
                join_all((0..5).map(call)).await;
                raw::until("given back", || client.stats().snapshot().in_use == 0).await;
                // Every place is there again: two at once can be served.
                let two = join_all((0..2).map(|_| send(&client, version, "/", "y"))).await;
                assert!(two.iter().all(Result::is_ok), "{version:?} {path} {polls}: {two:?}");
            }
            let stats = client.stats().clone();
            drop(client);
            raw::until("closed", || stats.snapshot().open == 0).await;
            assert_eq!(stats.snapshot().in_use, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_with_calls_that_go_away_leave_nothing_and_lose_no_place() {
    for version in BOTH {
        let addr = if version == Version::HTTP_2 { one_stream_at_a_time().await } else { echo().await };
        let client = client(addr, |s| s.connections_max = 4);
        let rng = enmesh::stdx::rng::Rng::seeded(7);
        let calls = (0..40).map(|_| {
            let (client, rng) = (client.clone(), rng.clone());
            tokio::spawn(async move {
                for _ in 0..10 {
                    let patience = Duration::from_micros(u64::from(rng.below(30_000)));
                    let call = send(&client, version, "/", "x");
                    if let Ok(ended) = tokio::time::timeout(patience, call).await {
                        ended.unwrap();
                    }
                }
            })
        });
        for call in join_all(calls).await {
            call.unwrap();
        }
        raw::until("given back", || client.stats().snapshot().in_use == 0).await;
        let all = join_all((0..8).map(|_| send(&client, version, "/", "y"))).await;
        assert!(all.iter().all(Result::is_ok), "{version:?}: {all:?}");
        assert!(client.stats().snapshot().open <= 4, "{:?}", client.stats().snapshot());
        let stats = client.stats().clone();
        drop(client);
        raw::until("closed", || stats.snapshot().open == 0).await;
    }
}

#[tokio::test]
async fn a_call_is_not_left_waiting_when_the_runtime_of_the_opener_ends() {
    let other =
        std::thread::spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let other = other.join().unwrap();
    let told = Told { stuck: true, ..Told::default() };
    let settings = settings(|s| s.timeout = Duration::from_secs(3600));
    let client = Connection::<Full<Bytes>, Told>::new(Endpoint::new(echo().await), settings, told);
    // The opener belongs to the other runtime, and a second call waits here for what it would open.
    let mut first = Box::pin(client.clone().oneshot(request(Version::HTTP_2, "/", "")));
    let other = std::thread::spawn(move || {
        other.block_on(async {
            assert!(tokio::time::timeout(Duration::from_millis(5), &mut first).await.is_err());
        });
        (other, first)
    });
    let (other, _first) = other.join().unwrap();
    let waiting = tokio::spawn(client.clone().oneshot(request(Version::HTTP_2, "/", "")));
    tokio::time::sleep(Duration::from_millis(2)).await;
    std::thread::spawn(move || drop(other)).join().unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_whose_request_went_away_is_kept_for_the_next() {
    for version in BOTH {
        let client = client(echo().await, |_| {});
        assert!(!drop_after(1, send(&client, version, "/", "")).await);
        raw::until("opened", || client.stats().snapshot().opened == 1).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        send(&client, version, "/", "").await.unwrap();
        let stats = client.stats().snapshot();
        assert_eq!((stats.opened, stats.reused), (1, 1), "{version:?} {stats:?}");
    }
}

#[tokio::test]
async fn an_unread_small_body_does_not_cost_the_connection() {
    for version in BOTH {
        let client = client(echo().await, |_| {});
        for _ in 0..5 {
            drop(client.clone().oneshot(request(version, "/", "x")).await.unwrap());
            raw::until("given back", || client.stats().snapshot().in_use == 0).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(client.stats().snapshot().opened, 1, "{version:?}");
    }
}

#[tokio::test]
async fn unused_connections_close_after_their_time() {
    for version in BOTH {
        let client = client(echo().await, |s| {
            s.http1_idle = Duration::from_millis(20);
            s.http2_idle = Duration::from_millis(20);
        });
        for _ in 0..20 {
            send(&client, version, "/", "").await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(client.stats().snapshot().opened, 1, "in use all the time");
        raw::until("closed", || client.stats().snapshot().open == 0).await;
        send(&client, version, "/", "").await.unwrap();
    }
}

#[tokio::test]
async fn connections_retire_by_age_and_by_requests() {
    for version in BOTH {
        let client = client(echo().await, |s| s.age_max = Some(Duration::ZERO));
        for _ in 0..3 {
            send(&client, version, "/", "").await.unwrap();
        }
        assert_eq!(client.stats().snapshot().opened, 3);
        raw::until("closed", || client.stats().snapshot().open == 0).await;
        let client = self::client(client.endpoint().addr, |s| s.requests_max = Some(2));
        for _ in 0..6 {
            send(&client, version, "/", "").await.unwrap();
        }
        assert_eq!(client.stats().snapshot().opened, 3, "{version:?}");
    }
}

#[tokio::test]
async fn an_unused_http2_connection_closes_at_its_age() {
    let client = client(echo().await, |s| {
        s.age_max = Some(Duration::from_millis(50));
        s.http2_idle = Duration::from_secs(3600);
    });
    send(&client, Version::HTTP_2, "/", "").await.unwrap();
    raw::until("closed", || client.stats().snapshot().open == 0).await;
}

#[tokio::test]
async fn a_connection_rests_only_when_the_request_was_sent_to_its_end() {
    type Frames = futures::channel::mpsc::Receiver<Result<http_body::Frame<Bytes>, Infallible>>;
    type Body = http_body_util::StreamBody<Frames>;
    let client =
        Connection::<Body, Plain>::new(Endpoint::new(echo().await), ConnectSettings::default(), Plain);
    let (mut sender, body) = futures::channel::mpsc::channel(1);
    let early = Request::post("http://a/early").body(Body::new(body)).unwrap();
    let response = client.clone().oneshot(early).await.unwrap();
    text(response).await;
    let (_, body) = futures::channel::mpsc::channel(1);
    let other = Request::get("http://a/").body(Body::new(body)).unwrap();
    text(client.clone().oneshot(other).await.unwrap()).await;
    assert_eq!(client.stats().snapshot().opened, 2, "the first one still sends");
    let _ = sender.try_send(Ok(http_body::Frame::data(Bytes::from_static(b"late"))));
    drop(sender);
    raw::until("given back", || client.stats().snapshot().in_use == 0).await;
}

#[tokio::test]
async fn an_upgrade_passes_by_http1_even_where_http2_is_the_rule() {
    let addr = raw::each(|_, mut stream| async move {
        let head = raw::read_http1(&mut stream).await.unwrap();
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    })
    .await;
    let endpoint = Endpoint { http2: true, ..Endpoint::new(addr) };
    let client = Client::new(endpoint, ConnectSettings::default(), Plain);
    let upgrade = Request::get("http://a/chat").header("upgrade", "echo").header("connection", "upgrade");
    let response = client.clone().oneshot(upgrade.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut upgraded = hyper_util::rt::TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    upgraded.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    upgraded.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    assert_eq!(client.stats().snapshot().open, 1);
    drop(upgraded);
    raw::until("closed", || client.stats().snapshot().open == 0).await;
}

#[tokio::test]
async fn a_peer_without_http2_or_without_streams_is_found_before_a_request_is_sent() {
    let http1 = raw::each(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    let none = raw::each(|_, stream| async move {
        let mut peer = Http2::accept(stream, &[(3, 0)]).await;
        assert!(peer.request().await.is_none());
    })
    .await;
    for addr in [http1, none] {
        let client = client(addr, |_| {});
        let error = send(&client, Version::HTTP_2, "/", "").await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        raw::until("closed", || client.stats().snapshot().open == 0).await;
        assert_eq!(client.stats().snapshot().failed_protocol, 1);
    }
}

#[tokio::test]
async fn streams_lowered_to_none_make_requests_wait_or_fail_unsent_and_nothing_leaks() {
    let addr = raw::each(|number, stream| async move {
        let mut peer = Http2::accept(stream, if number == 0 { &[] } else { &[(3, 0)] }).await;
        if number > 0 {
            assert!(peer.request().await.is_none(), "no request comes where no stream is allowed");
            return;
        }
        let (stream, _) = peer.request().await.unwrap();
        peer.settings(&[(3, 0)]).await;
        peer.respond(stream, b"ok").await;
        while peer.next().await.is_some() {}
    })
    .await;
    let client = client(addr, |_| {});
    assert_eq!(send(&client, Version::HTTP_2, "/", "").await.unwrap(), "ok");
    for _ in 0..3 {
        let waiting =
            tokio::time::timeout(Duration::from_millis(20), send(&client, Version::HTTP_2, "/", ""));
        // It waits for a stream, or learns from another connection that the peer allows none (reliability.md F-16).
        let ended = waiting.await;
        assert!(matches!(&ended, Err(_) | Ok(Err(Error::Connect { .. }))), "{ended:?}");
    }
    raw::until("given back", || client.stats().snapshot().in_use == 0).await;
}

#[tokio::test]
async fn a_window_that_never_opens_holds_one_stream_only_until_its_request_goes() {
    let addr = raw::each(|_, stream| async move {
        let mut peer = Http2::accept(stream, &[(4, 0)]).await;
        while peer.next().await.is_some() {}
    })
    .await;
    let client = client(addr, |_| {});
    let waiting =
        tokio::time::timeout(Duration::from_millis(20), send(&client, Version::HTTP_2, "/", "body"));
    assert!(waiting.await.is_err());
    assert_eq!(client.stats().snapshot().in_use, 0);
}

#[tokio::test]
async fn an_unanswered_ping_ends_the_connection_and_its_requests() {
    let addr = raw::each(|_, stream| async move {
        let mut peer = Http2::accept(stream, &[]).await;
        while peer.next().await.is_some() {}
    })
    .await;
    let client = client(addr, |s| {
        s.http2_ping = Limit::After(Duration::from_millis(10));
        s.http2_ping_timeout = Duration::from_millis(10);
    });
    let error = send(&client, Version::HTTP_2, "/", "x").await.unwrap_err();
    assert!(matches!(error, Error::Transport { unsent: false, .. }), "{error:?}");
    raw::until("closed", || client.stats().snapshot().open == 0).await;
}

/// A handshake that never ends, or gives connections that retire when told.
#[derive(Clone, Default)]
struct Told {
    stuck: bool,
    retire: Arc<Notify>,
}

impl Handshake for Told {
    type Io = TcpStream;

    async fn handshake(
        &self,
        io: TcpStream,
        _endpoint: &Endpoint,
        _offer: Offer,
    ) -> Result<Established<TcpStream>, BoxError> {
        if self.stuck {
            std::future::pending::<()>().await;
        }
        let retire = self.retire.clone();
        let retired = Box::pin(async move { retire.notified().await });
        Ok(Established { io, protocol: None, secure: false, retired: Some(retired) })
    }
}

#[tokio::test]
async fn a_retired_connection_takes_nothing_new_and_is_cut_off_in_the_end() {
    for version in BOTH {
        let told = Told::default();
        let settings = settings(|s| s.drain = Duration::from_millis(30));
        let endpoint = Endpoint::new(echo().await);
        let client = Connection::<Full<Bytes>, Told>::new(endpoint, settings, told.clone());
        // One retires unused, one while a request is under way.
        let one = client.clone().oneshot(request(version, "/", "")).await.unwrap();
        text(one).await;
        told.retire.notify_one();
        raw::until("closed", || client.stats().snapshot().open == 0).await;
        let never = tokio::spawn(client.clone().oneshot(request(version, "/never", "")));
        raw::until("asked", || client.stats().snapshot().opened == 2).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        told.retire.notify_one();
        tokio::time::sleep(Duration::from_millis(2)).await;
        let other = client.clone().oneshot(request(version, "/", "")).await.unwrap();
        text(other).await;
        assert_eq!(client.stats().snapshot().opened, 3, "{version:?}");
        assert!(!never.is_finished());
        let error = never.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Transport { unsent: false, .. }), "{error:?}");
        raw::until("one left", || client.stats().snapshot().open == 1).await;
    }
}

#[tokio::test]
async fn opening_takes_no_longer_than_its_time() {
    let settings = settings(|s| s.timeout = Duration::from_millis(10));
    let told = Told { stuck: true, ..Told::default() };
    let client = Connection::<Full<Bytes>, Told>::new(Endpoint::new(echo().await), settings, told);
    let error = client.clone().oneshot(request(Version::HTTP_11, "/", "")).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { scope: Scope::Connect, .. }), "{error:?}");
    assert_eq!(client.stats().snapshot().failed_timeout, 1);
}

#[test]
fn outside_a_runtime_it_is_an_error_and_no_panic() {
    let client = client(([127, 0, 0, 1], 1).into(), |_| {});
    let mut call = pin!(send(&client, Version::HTTP_11, "/", ""));
    let polled = call.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    let Poll::Ready(Err(error)) = polled else { panic!("it waits for what cannot come") };
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert!(error.is_unsent());
}

#[tokio::test]
async fn a_body_that_breaks_is_the_callers_error() {
    use http_body::Frame;
    type Frames = Vec<Result<Frame<Bytes>, std::io::Error>>;
    type Body = http_body_util::StreamBody<futures::stream::Iter<<Frames as IntoIterator>::IntoIter>>;
    for version in BOTH {
        let client =
            Connection::<Body, Plain>::new(Endpoint::new(echo().await), ConnectSettings::default(), Plain);
        let frames: Frames =
            vec![Ok(Frame::data(Bytes::from_static(b"x"))), Err(std::io::Error::other("broke"))];
        let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
        let request = Request::post("http://a/").version(version).body(body).unwrap();
        let error = client.clone().oneshot(request).await.unwrap_err();
        assert!(matches!(error, Error::Body(_)), "{version:?}: {error:?}");
        assert_eq!(client.stats().snapshot().in_use, 0);
    }
}
