//! Throughput and latency over loopback: a mesh's client and `Connection` alone beside hyper-util's legacy client and a raw hyper sender.
//!
//! `cargo bench --bench loopback`; `-- --smoke` for a run of a few seconds, `-- --seconds 5` for longer rounds.
//! The server is one hyper in a thread of its own; each client has a current-thread runtime. Rounds of the
//! contestants alternate, and the best round of each counts, because what disturbs only slows. Ratios are
//! against the legacy client in the same run.

use bytes::Bytes;
use enmesh::connect::handshake::Plain;
use enmesh::connect::http::Connection;
use enmesh::connect::settings::ConnectSettings;
use enmesh::discover::endpoint::Endpoint;
use enmesh::mesh::client::Client;
use enmesh::mesh::runtime::Mesh;
use enmesh::stdx::clock;
use http::Request;
use http::Response;
use http::Version;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tower::Service;

type Body = Full<Bytes>;

/// A client that sends one request and reads the response to its end.
trait Contestant: Clone + 'static {
    fn name() -> &'static str;
    fn connect(addr: SocketAddr, http2: bool) -> impl Future<Output = Self>;
    fn call(&mut self, request: Request<Body>) -> impl Future<Output = ()>;
}

#[derive(Clone)]
struct Ours(Connection<Body, Plain>);

impl Contestant for Ours {
    fn name() -> &'static str {
        "enmesh"
    }

    async fn connect(addr: SocketAddr, http2: bool) -> Self {
        Self(Connection::new(Endpoint { http2, ..Endpoint::new(addr) }, ConnectSettings::default(), Plain))
    }

    async fn call(&mut self, request: Request<Body>) {
        finish(self.0.call(request).await.expect("a response")).await;
    }
}

/// The whole client: routes, metrics, timeouts, retries, balancing, and then the connection.
#[derive(Clone)]
struct Meshed {
    client: Client,
    /// Its tasks end with it.
    _mesh: Rc<Mesh>,
}

impl Contestant for Meshed {
    fn name() -> &'static str {
        "enmesh mesh"
    }

    async fn connect(addr: SocketAddr, _http2: bool) -> Self {
        let mesh = Mesh::builder().endpoints("bench.test:80", [addr.to_string()]).build().expect("a mesh");
        Self { client: mesh.service("bench.test:80").expect("a service"), _mesh: Rc::new(mesh) }
    }

    async fn call(&mut self, request: Request<Body>) {
        finish(self.client.call(request).await.expect("a response")).await;
    }
}

#[derive(Clone)]
struct Legacy(legacy::Client<legacy::connect::HttpConnector, Body>);

impl Contestant for Legacy {
    fn name() -> &'static str {
        "legacy"
    }

    async fn connect(_addr: SocketAddr, http2: bool) -> Self {
        let mut connector = legacy::connect::HttpConnector::new();
        connector.set_nodelay(true);
        Self(legacy::Client::builder(TokioExecutor::new()).http2_only(http2).build(connector))
    }

    async fn call(&mut self, request: Request<Body>) {
        finish(self.0.request(request).await.expect("a response")).await;
    }
}

/// A sender of its own for each HTTP/1.1 worker, one for all HTTP/2 workers: the floor.
enum Raw {
    Http1(SocketAddr, Option<hyper::client::conn::http1::SendRequest<Body>>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Clone for Raw {
    fn clone(&self) -> Self {
        match self {
            Self::Http1(addr, _) => Self::Http1(*addr, None),
            Self::Http2(sender) => Self::Http2(sender.clone()),
        }
    }
}

impl Contestant for Raw {
    fn name() -> &'static str {
        "raw hyper"
    }

    async fn connect(addr: SocketAddr, http2: bool) -> Self {
        if !http2 {
            return Self::Http1(addr, None);
        }
        let (sender, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), dial(addr).await)
            .await
            .expect("http2");
        spawn(conn);
        Self::Http2(sender)
    }

    async fn call(&mut self, mut request: Request<Body>) {
        match self {
            Self::Http1(addr, sender) => {
                if sender.is_none() {
                    let (new, conn) =
                        hyper::client::conn::http1::handshake(dial(*addr).await).await.expect("http1");
                    spawn(conn);
                    *sender = Some(new);
                }
                let host = request.uri().authority().expect("an authority").as_str().parse().expect("a host");
                request.headers_mut().insert("host", host);
                *request.uri_mut() = request.uri().path_and_query().cloned().expect("a path").into();
                let sender = sender.as_mut().expect("just made");
                sender.ready().await.expect("a connection");
                finish(sender.send_request(request).await.expect("a response")).await;
            }
            Self::Http2(sender) => finish(sender.send_request(request).await.expect("a response")).await,
        }
    }
}

async fn dial(addr: SocketAddr) -> TokioIo<TcpStream> {
    let stream = TcpStream::connect(addr).await.expect("a server");
    stream.set_nodelay(true).expect("nodelay");
    TokioIo::new(stream)
}

async fn finish<B: http_body::Body>(response: Response<B>) {
    assert_eq!(response.status(), 200);
    let mut body = std::pin::pin!(response.into_body());
    while let Some(frame) = body.frame().await {
        assert!(frame.is_ok());
    }
}

#[expect(clippy::disallowed_methods, reason = "the tasks of a bench end with it")]
fn spawn(future: impl Future<Output: Send> + Send + 'static) {
    tokio::spawn(future);
}

/// One hyper server in a thread of its own.
fn server() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("nonblocking");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("nodelay");
                spawn(async move {
                    let service = hyper::service::service_fn(|_: Request<Incoming>| async {
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello world"))))
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    addr
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The first calls of a worker open connections and are not counted.
const WARM_UP: usize = 50;

#[derive(Clone, Copy)]
struct Case {
    http2: bool,
    concurrent: usize,
    time: Duration,
}

struct Round {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    /// Processor time of the client's thread for each request.
    cpu: Duration,
}

/// The processor time of this thread, where Linux tells it.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn round<C: Contestant>(case: Case, addr: SocketAddr) -> Round {
    let cpu_before = cpu();
    let runtime = runtime();
    let tasks = tokio::task::LocalSet::new();
    let (mut times, first, last): (Vec<Duration>, _, _) = tasks.block_on(&runtime, async move {
        let client = C::connect(addr, case.http2).await;
        let until = clock::now() + case.time;
        let worker = |mut client: C| async move {
            let mut times = Vec::with_capacity(1 << 16);
            let mut first = None;
            for n in 0.. {
                let version = if case.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
                let request = Request::get(format!("http://{addr}/api/list?shortcode=x"))
                    .version(version)
                    .header("user-agent", "bench")
                    .header("x-request-id", "0123456789")
                    .body(Full::default())
                    .expect("a request");
                let start = clock::now();
                client.call(request).await;
                let end = clock::now();
                if n >= WARM_UP {
                    first.get_or_insert(start);
                    times.push(end - start);
                }
                if n > WARM_UP && end >= until {
                    return (times, first, end);
                }
            }
            unreachable!("the loop has no other end")
        };
        let workers: Vec<_> =
            (0..case.concurrent).map(|_| tokio::task::spawn_local(worker(client.clone()))).collect();
        let mut all = (Vec::new(), until, until);
        for worker in workers {
            let (times, first, last) = worker.await.expect("a worker");
            all.0.extend(times);
            all.1 = all.1.min(first.unwrap_or(last));
            all.2 = all.2.max(last);
        }
        all
    });
    let calls = times.len() + case.concurrent * WARM_UP;
    let cpu = (cpu() - cpu_before) / u32::try_from(calls).unwrap_or(u32::MAX);
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Round { per_second: times.len() as f64 / (last - first).as_secs_f64(), p50: at(0.5), p99: at(0.99), cpu }
}

/// The best of each figure: what disturbs a round only makes it worse.
fn best(a: Option<Round>, b: Round) -> Option<Round> {
    let Some(a) = a else { return Some(b) };
    Some(Round {
        per_second: a.per_second.max(b.per_second),
        p50: a.p50.min(b.p50),
        p99: a.p99.min(b.p99),
        cpu: a.cpu.min(b.cpu),
    })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let smoke = args.iter().any(|arg| arg == "--smoke" || arg == "--test");
    let seconds =
        args.iter().position(|arg| arg == "--seconds").and_then(|at| args.get(at + 1)?.parse().ok());
    let rounds = if smoke { 2 } else { 8 };
    let time = Duration::from_secs_f64(seconds.unwrap_or(if smoke { 0.1 } else { 1.0 }));
    let addr = server();
    println!("cargo bench --bench loopback -- --seconds {}   ({rounds} rounds each)", time.as_secs_f64());
    println!(
        "{:<19} {:>8} {:>9} {:>9} {:>9} | ratio to legacy: {:>6} {:>6} {:>6}",
        "", "req/s", "p50", "p99", "cpu", "req/s", "1/p50", "1/cpu"
    );
    for http2 in [false, true] {
        for concurrent in [1, 32] {
            let case = Case { http2, concurrent, time };
            let (mut meshed, mut ours, mut legacy, mut raw) = (None, None, None, None);
            for _ in 0..rounds {
                meshed = best(meshed, round::<Meshed>(case, addr));
                ours = best(ours, round::<Ours>(case, addr));
                legacy = best(legacy, round::<Legacy>(case, addr));
                raw = best(raw, round::<Raw>(case, addr));
            }
            let Some(base) = legacy.as_ref().map(|round| (round.per_second, round.p50, round.cpu)) else {
                continue;
            };
            for (name, round) in
                [(Meshed::name(), meshed), (Ours::name(), ours), (Legacy::name(), legacy), (Raw::name(), raw)]
            {
                let Some(round) = round else { continue };
                let micros = |time: Duration| format!("{:.1}us", time.as_secs_f64() * 1e6);
                println!(
                    "{:<19} {:>8.0} {:>9} {:>9} {:>9} | {:>23.3} {:>6.3} {:>6.3}",
                    format!("{} x{concurrent} {name}", if http2 { "h2" } else { "h1" }),
                    round.per_second,
                    micros(round.p50),
                    micros(round.p99),
                    micros(round.cpu),
                    round.per_second / base.0,
                    base.1.as_secs_f64() / round.p50.as_secs_f64(),
                    base.2.as_secs_f64() / round.cpu.as_secs_f64(),
                );
            }
        }
    }
}
