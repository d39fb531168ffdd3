//! Servers outside the mesh: `https://` by public or given authorities; and profiles whose `tls` changes while in use.
#![cfg(any(feature = "tls", feature = "ring"))]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns")]

use bytes::Bytes;
use enmesh::Error;
use enmesh::Mesh;
use enmesh::control::source::Snapshot;
use enmesh::control::source::Source;
use enmesh::control::source::Updates;
use enmesh::discover::endpoint::Endpoint;
use enmesh::profile::name::ServiceName;
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::ClientTls;
use enmesh::profile::settings::TlsMode;
use enmesh::tls::provider::crypto;
use futures::StreamExt;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// An authority of a web server, and its certificate as PEM.
struct WebCa {
    signer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl WebCa {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let signer =
            rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let pem = signer.pem();
        Self { signer, pem }
    }

    /// A server's configuration with a certificate of these names.
    fn server(&self, names: &[rcgen::SanType], ends: Option<(i32, u8, u8)>) -> Arc<rustls::ServerConfig> {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        if let Some((year, month, day)) = ends {
            params.not_after = rcgen::date_time_ymd(year, month, day);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.signer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(crypto()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

fn host(name: &str) -> rcgen::SanType {
    rcgen::SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> rcgen::SanType {
    rcgen::SanType::URI(name.try_into().unwrap())
}

/// A web server of another make that answers with the version, the scheme and the name of the handshake.
async fn web(config: Arc<rustls::ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(config);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let named = stream.get_ref().1.server_name().unwrap_or("nobody").to_owned();
                let app = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let scheme = request.uri().scheme_str().unwrap_or("none");
                    let text = format!("{:?} {scheme} {named}", request.version());
                    async move { Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(text)))) }
                });
                let io = TokioIo::new(stream);
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(io, app)
                    .await;
            });
        }
    });
    addr
}

fn profile(tls: ClientTls) -> ServiceProfile {
    ServiceProfile { tls, ..ServiceProfile::new("api.example.com".parse().unwrap()) }
}

fn simple(ca: &WebCa) -> ClientTls {
    ClientTls { mode: TlsMode::Simple, roots: Some(ca.pem.as_str().into()), ..ClientTls::default() }
}

fn mesh(addr: SocketAddr, http2: bool, tls: ClientTls) -> Mesh {
    let endpoint = Endpoint { http2, ..Endpoint::new(addr) };
    Mesh::builder().profile(profile(tls)).endpoint_set("api.example.com:443", [endpoint]).build().unwrap()
}

async fn ask(mesh: &Mesh) -> Result<String, Error> {
    let response = mesh.client().get("https://api.example.com/").await?;
    Ok(String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn https_reaches_a_server_whose_host_a_given_authority_vouches_for() {
    let ca = WebCa::new();
    for name in ["api.example.com", "*.example.com"] {
        let addr = web(ca.server(&[host(name)], None)).await;
        assert_eq!(ask(&mesh(addr, true, simple(&ca))).await.unwrap(), "HTTP/2.0 https api.example.com");
        let answer = ask(&mesh(addr, false, simple(&ca))).await.unwrap();
        assert!(answer.ends_with("api.example.com"), "{answer}");
    }
    let sni = Some("edge.example.net".into());
    let addr = web(ca.server(&[host("edge.example.net"), uri("spiffe://web/edge")], None)).await;
    let named = ClientTls { sni: sni.clone(), ..simple(&ca) };
    assert_eq!(ask(&mesh(addr, true, named)).await.unwrap(), "HTTP/2.0 https edge.example.net");
    let by_uri = ClientTls {
        identities: vec![enmesh::profile::matching::TextMatch::Exact("spiffe://web/edge".into())],
        ..simple(&ca)
    };
    assert_eq!(ask(&mesh(addr, true, by_uri)).await.unwrap(), "HTTP/2.0 https api.example.com");
}

/// The error of a request that gets no answer, with its causes.
async fn refused(mesh: &Mesh) -> String {
    let error = ask(mesh).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    format!("{error}: {}", std::error::Error::source(&error).unwrap())
}

#[tokio::test]
async fn a_server_that_proves_too_little_is_sent_nothing_and_the_reason_is_told() {
    let (ca, other) = (WebCa::new(), WebCa::new());
    let right = [host("api.example.com")];
    for (server, why) in [
        (other.server(&right, None), "no chain leads"),
        (ca.server(&[host("example.com")], None), "was expected"),
        (ca.server(&[host("*.com")], None), "was expected"),
        (ca.server(&[uri("spiffe://mesh/api")], None), "was expected"),
        (ca.server(&[], None), "was expected"),
        (ca.server(&right, Some((2001, 1, 1))), "expired"),
    ] {
        let text = refused(&mesh(web(server).await, true, simple(&ca))).await;
        assert!(text.contains(why), "{why}: {text}");
    }
    let addr = web(ca.server(&right, None)).await;
    let by_system = ClientTls { roots: None, ..simple(&ca) };
    let text = refused(&mesh(addr, true, by_system)).await;
    assert!(text.contains("no chain leads") || text.contains("system"), "{text}");
    let by_prefix = ClientTls {
        identities: vec![enmesh::profile::matching::TextMatch::Prefix("api".into())],
        ..simple(&ca)
    };
    assert!(refused(&mesh(addr, true, by_prefix)).await.contains("whole host names"));
    let unreadable = ClientTls {
        roots: Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".into()),
        ..simple(&ca)
    };
    assert!(refused(&mesh(addr, true, unreadable)).await.contains("trust root"));
}

/// A server that keeps what it was sent, and answers in plaintext whatever it was.
async fn plaintext() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let wire = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&wire);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut bytes = vec![0; 16 * 1024];
                loop {
                    let n = stream.read(&mut bytes).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    seen.lock().unwrap().extend_from_slice(&bytes[..n]);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            });
        }
    });
    (addr, wire)
}

#[tokio::test]
async fn https_is_never_spoken_in_clear() {
    let (addr, wire) = plaintext().await;
    let mesh = mesh(addr, false, simple(&WebCa::new()));
    for _ in 0..20 {
        assert!(ask(&mesh).await.is_err());
    }
    let wire = wire.lock().unwrap();
    assert!(wire.first() == Some(&0x16));
    assert!(!wire.windows(3).any(|window| window == b"GET" || window == b"PRI"));
}

/// A source of one profile that a test changes.
#[derive(Clone)]
struct Told(watch::Receiver<Arc<ServiceProfile>>);

impl Source<Arc<ServiceProfile>> for Told {
    fn watch(&self, _: &ServiceName) -> Updates<Arc<ServiceProfile>> {
        let told = self.0.clone();
        let updates = futures::stream::unfold((told, true), |(mut told, first)| async move {
            if !first && told.changed().await.is_err() {
                return None;
            }
            let profile = Arc::clone(&told.borrow_and_update());
            Some((Snapshot::good(Some(profile)), (told, false)))
        });
        updates.boxed()
    }
}

#[tokio::test]
async fn a_profile_that_begins_to_require_tls_reaches_connections_that_are_open() {
    let (addr, wire) = plaintext().await;
    let off = ClientTls { mode: TlsMode::Off, ..ClientTls::default() };
    let (tell, told) = watch::channel(Arc::new(profile(off.clone())));
    let mesh = Mesh::builder()
        .profile_source(Told(told))
        .endpoint_set("api.example.com:80", [Endpoint::new(addr)])
        .build()
        .unwrap();
    let client = mesh.client();
    let ask = || async { client.get("http://api.example.com/").await };
    for _ in 0..3 {
        ask().await.unwrap();
    }
    tell.send_replace(Arc::new(profile(simple(&WebCa::new()))));
    let refused = async {
        while ask().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("the change reaches the connection");
    let before = wire.lock().unwrap().windows(3).filter(|window| *window == b"GET").count();
    for _ in 0..20 {
        assert!(matches!(ask().await, Err(Error::Tls { .. })));
    }
    let after = wire.lock().unwrap().windows(3).filter(|window| *window == b"GET").count();
    assert_eq!(before, after, "nothing more is sent in clear");
    tell.send_replace(Arc::new(profile(off)));
    let again = async {
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("and so does the change back");
}
