//! The admin pages: what they answer, to whom, and what they cost others.
#![cfg(feature = "admin")]

use bytes::Bytes;
use enmesh::admin::asked::Asked;
use enmesh::admin::guard::Access;
use enmesh::admin::readiness::Readiness;
use enmesh::admin::server::{self, Admin, BODY_BYTES_MAX, RENDER_MAX};
use enmesh::serve::http::Remote;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

fn admin() -> Admin {
    Admin::new(Readiness::default())
        .metrics(|| "# TYPE a counter\na 1\n".to_owned())
        .inspect(|| json!({"services": []}))
        .host("Web.emojivoto")
}

async fn ask(admin: &Admin, method: &str, path: &str, host: Option<&str>) -> Response<String> {
    let request = Request::builder().method(method).uri(path);
    let request = host.into_iter().fold(request, |request, host| request.header("host", host));
    let response = admin.clone().oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(parts, String::from_utf8(body.to_vec()).unwrap())
}

async fn check(method: &str, path: &str, host: Option<&str>, status: u16, body: &str) {
    let response = ask(&admin(), method, path, host).await;
    let seen = (response.status().as_u16(), response.body().as_str());
    assert!(seen.0 == status && seen.1.contains(body), "{method} {path} {host:?}: {seen:?}");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn each_page_is_answered() {
    let local = Some("localhost:4191");
    check("GET", "/live", local, 200, "live\n").await;
    check("GET", "/ready", local, 200, "ready\n").await;
    check("GET", "/metrics", local, 200, "a 1\n").await;
    check("HEAD", "/metrics", local, 200, "").await;
    check("GET", "/metrics?x=1", local, 200, "a 1\n").await;
    check("GET", "/inspect", local, 200, "\"services\": []").await;
    check("GET", "/", local, 404, "there are: /live /ready /metrics /inspect\n").await;
    check("GET", "/metrics/", local, 404, "").await;
    let metrics = ask(&admin(), "GET", "/metrics", local).await;
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let bare = ask(&Admin::new(Readiness::default()), "GET", "/metrics", local).await;
    assert_eq!(
        (bare.status(), bare.body().as_str()),
        (StatusCode::NOT_FOUND, "no such page; there are: /live /ready\n")
    );
}

#[tokio::test]
async fn nothing_but_reading_is_answered() {
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "QUERY"] {
        check(method, "/metrics", Some("127.0.0.1"), 405, "").await;
    }
    assert_eq!(ask(&admin(), "POST", "/live", None).await.headers()["allow"], "GET, HEAD");
}

#[tokio::test]
async fn a_foreign_host_reads_nothing() {
    for host in
        ["evil.test", "evil.test:4191", "127.0.0.1.evil.test", "localhost.evil.test", "", "[evil]:1", "a:b:c"]
    {
        check("GET", "/metrics", Some(host), 403, "Host").await;
        check("GET", "/inspect", Some(host), 403, "Host").await;
        check("GET", "/live", Some(host), 200, "live").await;
        check("GET", "/ready", Some(host), 200, "ready").await;
    }
    for host in [
        "127.0.0.1",
        "10.0.0.1:4191",
        "[::1]:4191",
        "[fd00::1]",
        "LOCALHOST",
        "localhost.:1",
        "web.EMOJIVOTO:1",
    ] {
        check("GET", "/metrics", Some(host), 200, "a 1").await;
    }
    check("GET", "http://evil.test/metrics", Some("localhost"), 403, "Host").await;
    check("GET", "/metrics", None, 200, "a 1").await;
}

#[tokio::test]
async fn readiness_says_what_it_waits_for() {
    let readiness = Readiness::default();
    let admin = Admin::new(readiness.clone());
    let latches = [readiness.latch("a certificate"), readiness.latch("endpoints of web.ns:80")];
    let response = ask(&admin, "GET", "/ready", None).await;
    let body = "not ready\nwaiting for a certificate\nwaiting for endpoints of web.ns:80\n";
    assert_eq!((response.status().as_u16(), response.body().as_str()), (503, body));
    drop(latches);
    assert_eq!(ask(&admin, "GET", "/ready", None).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn pages_are_rendered_one_at_a_time_and_off_the_runtime_s_threads() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let here = std::thread::current().id();
    let admin = Admin::new(Readiness::default()).metrics({
        let most = Arc::clone(&most);
        move || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            assert_ne!(std::thread::current().id(), here);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            "page".to_owned()
        }
    });
    let pages = (0..50).map(|_| ask(&admin, "GET", "/metrics", None));
    let pages = futures::future::join_all(pages).await;
    assert!(pages.iter().all(|page| page.status() == 200 && page.body() == "page"));
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_hangs_or_panics_takes_nobody_with_it() {
    let (release, hang) = mpsc::channel::<()>();
    let hang = Mutex::new(hang);
    let admin = Admin::new(Readiness::default())
        .metrics(move || {
            let _ = hang.lock().unwrap().recv();
            "page".to_owned()
        })
        .inspect(|| panic!("planted"));
    let first = ask(&admin, "GET", "/metrics", None);
    let (first, ()) = tokio::join!(first, async {
        // The clock stands still while a blocking thread works: it is pushed.
        for _ in 0..10 {
            tokio::time::advance(RENDER_MAX / 5).await;
        }
    });
    assert_eq!(first.status(), 503);
    assert_eq!(ask(&admin, "GET", "/live", None).await.status(), 200);
    release.send(()).unwrap();
    assert_eq!(ask(&admin, "GET", "/inspect", None).await.status(), 500);
    release.send(()).unwrap();
    assert_eq!(ask(&admin, "GET", "/metrics", None).await.status(), 200);
}

/// Sends bytes to a served admin and reads until it closes.
async fn raw(bytes: &[u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = server::serve(listener, admin(), async {
        let _ = stopped.await;
    });
    let asking = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let _ = stop.send(());
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(serving, asking).1 }).await.unwrap()
}

#[tokio::test]
async fn it_is_served_with_small_limits() {
    let get = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let answer = raw(format!("{get}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("a 1\n"), "{answer}");
    let long = BODY_BYTES_MAX + 1;
    let answer = raw(format!("{get}Content-Length: {long}\r\n\r\nbody").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let answer = raw(format!("{get}X: {}\r\n\r\n", "x".repeat(9 * 1024)).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = raw(b"GET /live HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "no Host: {answer}");
}

#[tokio::test]
async fn a_page_that_is_given_is_answered_for_its_method_and_who_may_see_it() {
    let echo = |asked: Asked| -> BoxFuture<'static, _> {
        Box::pin(async move {
            let said = format!("{} {:?} {}", asked.method, asked.value("x"), asked.body.len());
            server::text(StatusCode::OK, &said)
        })
    };
    let admin = admin()
        .route(Method::GET, "/a", Access::Read, echo)
        .route(Method::POST, "/a", Access::Read, echo)
        .route(Method::GET, "/p", Access::Private, echo);
    let local = Some("localhost");
    assert_eq!(ask(&admin, "GET", "/a?x=1", local).await.body(), "GET Some(\"1\") 0");
    let refused = ask(&admin, "PUT", "/a", local).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["allow"]),
        (405, &"GET, POST, HEAD".parse().unwrap())
    );
    assert_eq!(ask(&admin, "GET", "/p", local).await.status(), 403, "nobody knows where it comes from");
    let post = |bytes: usize, site: &str, from: [u8; 4]| {
        let request = Request::post("/a").header("host", "localhost").header("sec-fetch-site", site);
        let mut request = request.body(Full::new(Bytes::from(vec![b'x'; bytes]))).unwrap();
        request.extensions_mut().insert(Remote { addr: (from, 1).into(), local: None });
        admin.clone().oneshot(request)
    };
    assert_eq!(post(BODY_BYTES_MAX, "none", [127, 0, 0, 1]).await.unwrap().status(), 200);
    assert_eq!(post(BODY_BYTES_MAX + 1, "none", [127, 0, 0, 1]).await.unwrap().status(), 413);
    assert_eq!(post(1, "cross-site", [127, 0, 0, 1]).await.unwrap().status(), 403);
}
