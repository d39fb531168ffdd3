//! What a profile says of connections, and of load told to callers, holds and changes while requests run: real servers and
//! clients on loopback.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "servers of tests end with the test")]

mod raw;

use bytes::Bytes;
use enmesh::control::source::{Snapshot, Source, Updates};
use enmesh::error::Scope;
use enmesh::profile::name::ServiceName;
use enmesh::{CallOptions, Error, Mesh, RequestExt, ServiceProfile};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Profiles that a test changes.
#[derive(Debug, Clone)]
struct Told(watch::Receiver<Arc<ServiceProfile>>);

impl Source<Arc<ServiceProfile>> for Told {
    fn watch(&self, _: &ServiceName) -> Updates<Arc<ServiceProfile>> {
        let stream = futures::stream::unfold((self.0.clone(), true), |(mut told, first)| async move {
            if !first {
                told.changed().await.ok()?;
            }
            let value = told.borrow_and_update().clone();
            Some((Snapshot::good(Some(value)), (told, false)))
        });
        Box::pin(stream)
    }
}

fn profile(spec: &str) -> Arc<ServiceProfile> {
    let text = format!(
        "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {{name: web.ns.svc.cluster.local}}\nspec: {spec}"
    );
    Arc::new(ServiceProfile::from_yaml(&text).unwrap())
}

/// A server that answers each request when the test lets it.
#[derive(Debug)]
struct Gate {
    /// Requests in the server now, by connection.
    busy: Mutex<Vec<usize>>,
    open: AtomicUsize,
    go: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { busy: Mutex::default(), open: AtomicUsize::new(0), go: Arc::new(Semaphore::new(0)) })
    }

    async fn start(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, gate) = (listener.local_addr().unwrap(), Arc::clone(self));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&gate).connection(stream));
            }
        });
        addr
    }

    async fn connection(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let number = {
            let mut busy = self.busy.lock().unwrap();
            busy.push(0);
            busy.len() - 1
        };
        self.open.fetch_add(1, SeqCst);
        let service = hyper::service::service_fn(|_: Request<hyper::body::Incoming>| {
            let gate = Arc::clone(&self);
            async move {
                gate.busy.lock().unwrap()[number] += 1;
                gate.go.acquire().await.unwrap().forget();
                gate.busy.lock().unwrap()[number] -= 1;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            }
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
        let _ = server.serve_connection(io, service).await;
        self.open.fetch_sub(1, SeqCst);
    }

    /// Requests in the server by connection, those with none left out.
    fn busy(&self) -> Vec<usize> {
        self.busy.lock().unwrap().iter().copied().filter(|busy| *busy > 0).collect()
    }
}

/// A mesh whose profile the test changes, over one endpoint.
fn mesh(addr: SocketAddr, first: Arc<ServiceProfile>) -> (Mesh, watch::Sender<Arc<ServiceProfile>>) {
    let (profiles, told) = watch::channel(first);
    let mesh =
        Mesh::builder().profile_source(Told(told)).endpoints("web.ns:80", [addr.to_string()]).dns(false);
    (mesh.build().unwrap(), profiles)
}

async fn ask(mesh: &Mesh, version: Version) -> Result<String, Error> {
    let request = Request::get("http://web.ns/").version(version).body(()).unwrap();
    // What was not sent would be tried again, and then fail otherwise.
    let request = request.with_options(CallOptions::default().retries(0));
    let body = mesh.client().send(request).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// So many calls, in tasks of their own.
fn calls(mesh: &Mesh, version: Version, count: usize) -> Vec<tokio::task::JoinHandle<Result<String, Error>>> {
    let call = |_| {
        let mesh = mesh.clone();
        tokio::spawn(async move { ask(&mesh, version).await })
    };
    (0..count).map(call).collect()
}

#[tokio::test]
async fn the_most_connections_of_a_profile_hold_and_change_while_requests_wait() {
    let gate = Gate::new();
    let limits = |connections: u32| {
        profile(&format!("{{limits: {{maxConnections: {connections}, maxPending: 3, idleTimeout: 1m}}}}"))
    };
    let (mesh, profiles) = mesh(gate.start().await, limits(2));
    let mut all = calls(&mesh, Version::HTTP_11, 2);
    raw::until("two are sent", || gate.busy() == [1, 1]).await;
    // Of four more three wait for a connection; there is no room for the other.
    let mut more: FuturesUnordered<_> = calls(&mesh, Version::HTTP_11, 4).into_iter().collect();
    let refused = more.next().await.unwrap().unwrap();
    let retry_after = Some(Duration::from_secs(1));
    assert!(
        matches!(&refused, Err(Error::Overloaded { retry_after: told }) if *told == retry_after),
        "{refused:?}"
    );
    assert_eq!(gate.busy(), [1, 1]);
    profiles.send_replace(limits(4));
    raw::until("two more go at once", || gate.busy() == [1, 1, 1, 1]).await;
    profiles.send_replace(limits(1));
    gate.go.add_permits(5);
    all.extend(more);
    assert!(join_all(all).await.into_iter().all(|one| one.unwrap().is_ok()));
    raw::until("the surplus is closed", || gate.open.load(SeqCst) == 1).await;
    gate.go.add_permits(1);
    assert_eq!(ask(&mesh, Version::HTTP_11).await.unwrap(), "ok");
    assert_eq!(gate.busy.lock().unwrap().len(), 4, "the last one is used again");
    #[cfg(feature = "prometheus")]
    {
        let text = mesh.metrics_text().unwrap();
        let told = |limit: &str| {
            text.lines().any(|line| {
                line.starts_with("enmesh_connect_overflows_total{")
                    && line.contains(&format!("limit=\"{limit}\""))
            })
        };
        assert!(told("connections") && told("pending"), "{text}");
    }
}

#[tokio::test]
async fn the_most_streams_of_a_profile_hold_and_change_while_requests_wait() {
    let gate = Gate::new();
    let limits = |streams: u32| {
        profile(&format!("{{limits: {{maxConnections: 2, maxConcurrentStreams: {streams}}}}}"))
    };
    let (mesh, profiles) = mesh(gate.start().await, limits(3));
    let all = calls(&mesh, Version::HTTP_2, 8);
    raw::until("six of eight are sent", || gate.busy() == [3, 3]).await;
    profiles.send_replace(limits(5));
    raw::until("the others go on the same connections", || gate.busy().iter().sum::<usize>() == 8).await;
    assert_eq!(gate.busy().len(), 2);
    gate.go.add_permits(8);
    assert!(join_all(all).await.into_iter().all(|one| one.unwrap().is_ok()));
}

#[tokio::test]
async fn the_time_for_opening_a_connection_is_the_profiles() {
    // It accepts, and never says that it speaks HTTP/2.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let times = |ms: u32| profile(&format!("{{timeouts: {{connect: {ms}ms}}}}"));
    let (mesh, profiles) = mesh(addr, times(30));
    let after = |end: Result<String, Error>| match end {
        Err(Error::Timeout { scope: Scope::Connect, after }) => Some(after.as_millis()),
        _ => None,
    };
    assert_eq!(after(ask(&mesh, Version::HTTP_2).await), Some(30));
    profiles.send_replace(times(40));
    // In between the endpoint is left alone for a while.
    let mut seen = None;
    while seen != Some(40) {
        seen = after(ask(&mesh, Version::HTTP_2).await).or(seen);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_tells_its_load_while_its_profile_says_so() {
    let gate = Gate::new();
    let (profiles, told) = watch::channel(profile("{balancer: {reports: true}}"));
    let serving = Mesh::builder().name("web.ns").profile_source(Told(told)).dns(false).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let held = Arc::clone(&gate.go);
    let app = tower::service_fn(move |request: Request<_>| {
        let held = Arc::clone(&held);
        async move {
            if request.uri().path() == "/held" {
                held.acquire().await.unwrap().forget();
            }
            drop::<Request<enmesh::serve::body::RequestBody>>(request);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    tokio::spawn({
        let serving = serving.clone();
        async move { serving.serve(listener, app).await }
    });
    let calling = Mesh::builder().endpoints("web.ns:80", [addr.to_string()]).dns(false).build().unwrap();
    let load = async || {
        let response = calling.client().get("http://web.ns/").await.unwrap();
        let report = enmesh::balance::report::read(response.headers());
        response.into_body().collect().await.unwrap();
        report.and_then(|report| report.in_flight)
    };
    assert_eq!(load().await, Some(1.0));
    let client = calling.client();
    let other = tokio::spawn(async move { client.get("http://web.ns/held").await.map(|it| it.status()) });
    while load().await != Some(2.0) {}
    gate.go.add_permits(1);
    assert_eq!(other.await.unwrap().unwrap(), 200);
    while load().await != Some(1.0) {}
    profiles.send_replace(profile("{balancer: {reports: false}}"));
    while load().await.is_some() {}
    profiles.send_replace(profile("{balancer: {reports: true}}"));
    while load().await != Some(1.0) {}
}
