//! The server against real loopback clients and raw sockets.

#![expect(clippy::disallowed_methods, reason = "servers of tests end with the test")]

use bytes::Bytes;
use enmesh::connect::handshake::Plain;
use enmesh::connect::http::Connection;
use enmesh::connect::settings::ConnectSettings;
use enmesh::discover::endpoint::Endpoint;
use enmesh::serve::handshake::Plain as Accepting;
use enmesh::serve::http::App;
use enmesh::serve::listen::Drained;
use enmesh::serve::listen::serve_with;
use enmesh::serve::settings::ServeSettings;
use enmesh::serve::stats::ServeStats;
use http::Request;
use http::Version;
use http_body_util::BodyExt;
use http_body_util::Full;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
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

#[tokio::test]
async fn an_axum_router_answers_both_versions_on_one_port() {
    let app = axum::Router::new().route("/hello", axum::routing::get(|| async { "hello" }));
    let server = Server::start(app, ServeSettings::default()).await;
    let client = server.client();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let response = client.clone().oneshot(get(version, "/hello")).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, version));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    let stats = server.stats.snapshot();
    assert_eq!((stats.requests, stats.in_flight, stats.open), (2, 0, 2));
    drop(client);
    assert_eq!(server.stop().await.aborted, 0);
}
