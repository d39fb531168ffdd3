//! Connections against real loopback servers.

#![expect(clippy::disallowed_methods, reason = "servers of tests end with the test")]

use bytes::Bytes;
use enmesh::connect::handshake::Plain;
use enmesh::connect::http::Connection;
use enmesh::connect::settings::ConnectSettings;
use enmesh::discover::endpoint::Endpoint;
use http::Request;
use http::Version;
use http_body_util::BodyExt;
use http_body_util::Full;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tower::ServiceExt;

type Client = Connection<Full<Bytes>, Plain>;

async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let text = format!(
                            "{:?} {} {} host={:?} {}",
                            head.version,
                            head.method,
                            head.uri,
                            head.headers.get("host"),
                            String::from_utf8_lossy(&body)
                        );
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(text))))
                    });
                let _ = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    addr
}

fn post(version: Version, body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://web.ns:81/a?b")
        .version(version)
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .unwrap()
}

async fn text(client: &Client, request: Request<Full<Bytes>>) -> String {
    let response = client.clone().oneshot(request).await.unwrap();
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn both_versions_keep_the_callers_authority_and_reuse_the_connection() {
    let client = Client::new(Endpoint::new(echo_server().await), ConnectSettings::default(), Plain);
    for _ in 0..3 {
        assert_eq!(
            text(&client, post(Version::HTTP_11, "x")).await,
            "HTTP/1.1 POST /a?b host=Some(\"web.ns:81\") x"
        );
        assert_eq!(
            text(&client, post(Version::HTTP_2, "y")).await,
            "HTTP/2.0 POST http://web.ns:81/a?b host=None y"
        );
    }
    let stats = client.stats().snapshot();
    assert_eq!((stats.opened, stats.reused, stats.in_use, stats.open), (2, 4, 0, 2), "{stats:?}");
}
