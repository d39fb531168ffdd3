//! Identity services as processes of their own: the SPIFFE Workload API and Linkerd's identity service, written from their
//! public protobufs with prost and hyper, and what becomes of us when they refuse, hang, answer wrongly or restart.
#![cfg(all(any(feature = "tls", feature = "ring"), unix))]
#![expect(
    clippy::disallowed_methods,
    reason = "a test is no library: it spawns and waits for other processes"
)]

use bytes::Bytes;
use enmesh::stdx::rng::Rng;
use enmesh::tls::epoch::EpochSettings;
use enmesh::tls::issuer::Renewing;
use enmesh::tls::linkerd::LinkerdIdentity;
use enmesh::tls::linkerd::LinkerdSettings;
use enmesh::tls::material::Source;
use enmesh::tls::renew::RenewalSettings;
use enmesh::tls::rotate::Identities;
use enmesh::tls::rotate::rotation;
use enmesh::tls::svid::Names;
use enmesh::tls::verify::VerifySettings;
use enmesh::tls::workload_api::WorkloadApi;
use enmesh::tls::workload_api::WorkloadApiSettings;
use futures::StreamExt;
use http::HeaderMap;
use http::Request;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use prost::Message;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::KeyPair;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

/// A directory by which test and service talk: the service reads `mode` before each answer.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("enmesh-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn mode(&self, mode: &str) {
        let next = self.0.join("mode.next");
        fs::write(&next, mode).unwrap();
        fs::rename(next, self.0.join("mode")).unwrap();
    }

    async fn file(&self, name: &str) -> String {
        for _ in 0..500 {
            if let Ok(text) = fs::read_to_string(self.0.join(name)) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the service wrote no {name}");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A service as a process; it ends with the test.
struct Process(Child);

impl Process {
    fn start(service: &str, directory: &Directory) -> Self {
        let test = format!("{service}_as_a_process");
        let command = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env("ENMESH_SERVICE", &directory.0)
            .spawn();
        Self(command.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn keep(source: impl Source + 'static, settings: EpochSettings) -> Identities {
    let (identities, task) = rotation(source, settings);
    tokio::spawn(task);
    identities
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}

fn mode(directory: &Path) -> String {
    fs::read_to_string(directory.join("mode")).unwrap_or_default()
}

type Body = BoxBody<Bytes, Infallible>;

fn framed(message: &[u8]) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes.into()
}

fn trailers(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())])
}

fn grpc(body: Body) -> Response<Body> {
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// An answer without messages.
fn refused(code: &'static str, message: &str) -> Response<Body> {
    let builder = Response::builder().header("content-type", "application/grpc");
    let builder = builder.header("grpc-status", code).header("grpc-message", message);
    builder.body(BoxBody::default()).unwrap()
}

async fn serve<IO, F, R>(io: IO, answer: F)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer(request).await) }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

/// A signing authority of the service's own.
struct Ca {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        Self { root: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn leaf(san: rcgen::SanType) -> CertificateParams {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(24 * 3600)).into();
        params.subject_alt_names = vec![san];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    /// A certificate with its key, in DER.
    fn issue(&self, san: rcgen::SanType) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let leaf = Self::leaf(san).signed_by(&key, &self.root).unwrap();
        (leaf.der().to_vec(), key.serialize_der())
    }

    fn der(&self) -> Vec<u8> {
        self.root.der().to_vec()
    }
}

// ---- the Workload API, by workload.proto of SPIFFE ----

#[derive(Clone, PartialEq, prost::Message)]
struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

const WEB: &str = "spiffe://mesh.example/web";

/// What the service says in this mode; `None`: nothing.
fn svids(mode: &str, ca: &Ca, partner: &Ca) -> Option<Vec<u8>> {
    let svid = |id: &str| {
        let (x509_svid, x509_svid_key) = ca.issue(rcgen::SanType::URI(id.try_into().unwrap()));
        let bundle = ca.der();
        X509Svid { spiffe_id: id.to_owned(), x509_svid, x509_svid_key, bundle, hint: String::new() }
    };
    let federated = |bundle: Vec<u8>| HashMap::from([("spiffe://partner.example".to_owned(), bundle)]);
    let response = |svids, federated_bundles| X509SvidResponse { svids, crl: Vec::new(), federated_bundles };
    match mode.split(' ').next().unwrap_or_default() {
        "good" => {
            let other = svid("spiffe://mesh.example/other");
            Some(response(vec![other, svid(WEB)], federated(partner.der())).encode_to_vec())
        }
        "revoked" => Some(response(vec![svid(WEB)], federated(Vec::new())).encode_to_vec()),
        "wrong" => Some(response(vec![svid("spiffe://mesh.example/other")], HashMap::new()).encode_to_vec()),
        "mismatch" => {
            let wrong = X509Svid { x509_svid_key: svid(WEB).x509_svid_key, ..svid(WEB) };
            Some(response(vec![wrong], HashMap::new()).encode_to_vec())
        }
        "empty" => Some(Vec::new()),
        "noise" => Some(vec![0xff; 40]),
        _ => None,
    }
}

#[tokio::test]
async fn workload_api_as_a_process() {
    let Some(directory) = std::env::var_os("ENMESH_SERVICE") else { return };
    let directory = Arc::new(PathBuf::from(directory));
    let cas = Arc::new((Ca::new(), Ca::new()));
    let socket = directory.join("api.sock");
    let _ = fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (directory, cas) = (Arc::clone(&directory), Arc::clone(&cas));
        let answer = move |request: Request<Incoming>| {
            let (directory, cas) = (Arc::clone(&directory), Arc::clone(&cas));
            async move {
                assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
                if request.headers().get("workload.spiffe.io").is_none_or(|value| value != "true") {
                    return refused("3", "security header missing");
                }
                let first = mode(&directory);
                match first.as_str() {
                    "refuse" => return refused("7", "no identity issued"),
                    "hang" => std::future::pending().await,
                    _ => {}
                }
                // An answer for each change of the mode, until it says to end.
                let stream = futures::stream::unfold(String::new(), move |said| {
                    let (directory, cas) = (Arc::clone(&directory), Arc::clone(&cas));
                    async move {
                        loop {
                            let mode = mode(&directory);
                            if mode == "end" && said != mode {
                                return Some((Ok(Frame::trailers(trailers("14"))), mode));
                            }
                            let message = svids(&mode, &cas.0, &cas.1).filter(|_| mode != said);
                            if let Some(message) = message {
                                return Some((Ok(Frame::data(framed(&message))), mode));
                            }
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    }
                });
                grpc(StreamBody::new(stream.boxed()).boxed_unsync_to_sync())
            }
        };
        tokio::spawn(serve(stream, answer));
    }
}

/// hyper wants bodies that are `Sync` nowhere; `BoxBody` does.
trait IntoSync {
    fn boxed_unsync_to_sync(self) -> Body;
}

impl<S> IntoSync for StreamBody<S>
where
    S: futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Unpin + 'static,
{
    fn boxed_unsync_to_sync(self) -> Body {
        let (sender, receiver) = futures::channel::mpsc::channel(1);
        tokio::spawn(async move {
            let mut sender = sender;
            let mut this = self;
            while let Some(frame) = this.next().await {
                use futures::SinkExt;
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        });
        BodyExt::boxed(StreamBody::new(receiver))
    }
}

fn workload_api(directory: &Directory) -> Identities {
    let settings = WorkloadApiSettings {
        identity: Some(WEB.parse().unwrap()),
        answer_max: Duration::from_millis(500),
        ..WorkloadApiSettings::at(&format!("unix://{}", directory.0.join("api.sock").display()))
    };
    keep(WorkloadApi::new(settings, Rng::seeded(1)), EpochSettings::default())
}

#[tokio::test]
async fn the_workload_api_gives_identities_and_federated_bundles_as_they_change() {
    let directory = Directory::new("workload");
    directory.mode("good 1");
    let process = Process::start("workload_api", &directory);
    let identities = workload_api(&directory);
    let epoch = identities.ready().await;
    assert_eq!(epoch.identity().identity.as_str(), WEB);
    let partner = "partner.example".parse().unwrap();
    assert_eq!(epoch.verifier().bundles().of(&partner).unwrap().certificates().len(), 1);

    directory.mode("good 2");
    let epoch = identities.changed(1).await;
    assert_eq!(epoch.number(), 2);
    directory.mode("revoked");
    let epoch = identities.changed(2).await;
    assert!(epoch.verifier().bundles().of(&partner).unwrap().certificates().is_empty());

    // What is wrong is told, and changes nothing.
    for (mode, why) in [
        ("wrong", "and not spiffe://mesh.example/web"),
        ("empty", "has 0 identities"),
        ("noise", "no protobuf message"),
    ] {
        directory.mode(mode);
        until(why, || identities.status().fault.is_some_and(|fault| fault.contains(why))).await;
        assert_eq!(identities.status().epoch, 3, "{mode}");
    }
    // The agent restarts, with another authority behind it.
    drop(process);
    until("a broken call", || identities.status().fault.is_some_and(|fault| fault.contains("grpc code 14")))
        .await;
    directory.mode("good 3");
    let _process = Process::start("workload_api", &directory);
    let epoch = identities.changed(3).await;
    assert_eq!((epoch.number(), identities.status().fault), (4, None));
}

#[tokio::test]
async fn a_workload_api_that_refuses_or_hangs_is_asked_again_until_it_answers() {
    let directory = Directory::new("workload-faults");
    directory.mode("refuse");
    let identities = workload_api(&directory);
    until("no socket", || identities.status().fault.is_some_and(|fault| fault.contains("grpc code 14")))
        .await;
    let _process = Process::start("workload_api", &directory);
    for (mode, why) in
        [("refuse", "no identity issued"), ("hang", "no answer in time"), ("end", "grpc code 14")]
    {
        directory.mode(mode);
        until(why, || identities.status().fault.is_some_and(|fault| fault.contains(why))).await;
        assert_eq!(identities.status().epoch, 0);
    }
    directory.mode("good");
    tokio::time::timeout(Duration::from_secs(5), identities.ready()).await.unwrap();
}

// ---- Linkerd's identity service, by identity.proto of linkerd2-proxy-api ----

#[derive(Clone, PartialEq, prost::Message)]
struct CertifyRequest {
    #[prost(string, tag = "1")]
    identity: String,
    #[prost(bytes = "vec", tag = "2")]
    token: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    certificate_signing_request: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CertifyResponse {
    #[prost(bytes = "vec", tag = "1")]
    leaf_certificate: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    intermediate_certificates: Vec<Vec<u8>>,
    #[prost(message, tag = "3")]
    valid_until: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

const SERVER: &str = "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local";
const OURS: &str = "web.emojivoto.serviceaccount.identity.linkerd.cluster.local";

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64(der).as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).unwrap());
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn base64(bytes: &[u8]) -> String {
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word =
            three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for index in 0..4 {
            let letter = alphabet[(word >> (18 - 6 * index)) as usize & 63];
            text.push(if index <= three.len() { letter } else { '=' });
        }
    }
    text
}

/// The rules of Linkerd's server (linkerd.md §7.1), and the faults of the mode.
async fn certify(request: Request<Incoming>, directory: &Path, ca: &Ca) -> Response<Body> {
    assert_eq!(request.uri().path(), "/io.linkerd.proxy.identity.Identity/Certify");
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let request = CertifyRequest::decode(&bytes[5..]).unwrap();
    let csr = request.certificate_signing_request.into();
    let Ok(mut csr) = rcgen::CertificateSigningRequestParams::from_der(&csr) else {
        return refused("3", "bad signing request");
    };
    let names = csr.params.subject_alt_names.clone();
    let mode = mode(directory);
    if mode == "hang" {
        std::future::pending::<()>().await;
    }
    if request.token != fs::read(directory.join("token")).unwrap() || mode == "refuse" {
        return refused("9", "token not authenticated");
    }
    let is_named =
        matches!(names.as_slice(), [rcgen::SanType::DnsName(name)] if name.as_str() == request.identity);
    if !is_named || request.identity != OURS {
        return refused("9", "identity mismatch");
    }
    let san = match mode.as_str() {
        "wrong" => rcgen::SanType::DnsName(
            "admin.emojivoto.serviceaccount.identity.linkerd.cluster.local".try_into().unwrap(),
        ),
        _ => names[0].clone(),
    };
    csr.params = Ca::leaf(san);
    if mode == "expired" {
        csr.params.not_after = (SystemTime::now() - Duration::from_secs(30)).into();
    }
    let leaf_certificate = match mode.as_str() {
        "foreign key" => ca.issue(names[0].clone()).0,
        "empty" => Vec::new(),
        _ => csr.signed_by(&ca.root).unwrap().der().to_vec(),
    };
    let answer =
        CertifyResponse { leaf_certificate, intermediate_certificates: Vec::new(), valid_until: None };
    let frames = [Ok(Frame::data(framed(&answer.encode_to_vec()))), Ok(Frame::trailers(trailers("0")))];
    grpc(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))))
}

#[tokio::test]
async fn linkerd_identity_as_a_process() {
    let Some(directory) = std::env::var_os("ENMESH_SERVICE") else { return };
    let directory = Arc::new(PathBuf::from(directory));
    let ca = Arc::new(Ca::new());
    let (leaf, key) = ca.issue(rcgen::SanType::DnsName(SERVER.try_into().unwrap()));
    let provider = Arc::clone(enmesh::tls::provider::crypto());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.into()], key.try_into().unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    fs::write(directory.join("roots"), pem("CERTIFICATE", &ca.der())).unwrap();
    fs::write(directory.join("address.next"), listener.local_addr().unwrap().to_string()).unwrap();
    fs::rename(directory.join("address.next"), directory.join("address")).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (directory, ca, acceptor) = (Arc::clone(&directory), Arc::clone(&ca), acceptor.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = move |request| {
                let (directory, ca) = (Arc::clone(&directory), Arc::clone(&ca));
                async move { certify(request, &directory, &ca).await }
            };
            serve(stream, answer).await;
        });
    }
}

async fn linkerd(directory: &Directory, server: &str) -> Identities {
    let settings = LinkerdSettings {
        address: directory.file("address").await,
        server: server.parse().unwrap(),
        identity: OURS.parse().unwrap(),
        token_file: directory.0.join("token"),
        trust_anchors: directory.file("roots").await,
    };
    let renewal = RenewalSettings {
        retry_max: Duration::from_millis(200),
        retry_min: Duration::from_millis(50),
        answer_max: Duration::from_millis(500),
        ..RenewalSettings::linkerd()
    };
    let source = Renewing::new(LinkerdIdentity::new(settings).unwrap(), renewal, Rng::seeded(1));
    let verify = VerifySettings { names: Names::Linkerd, ..VerifySettings::default() };
    keep(source, EpochSettings { verify, identity: Some(OURS.parse().unwrap()), ..EpochSettings::default() })
}

#[tokio::test]
async fn linkerds_identity_service_certifies_us_in_spite_of_all_faults() {
    let directory = Directory::new("linkerd");
    fs::write(directory.0.join("token"), "an old token").unwrap();
    directory.mode("refuse");
    let _process = Process::start("linkerd_identity", &directory);
    let identities = linkerd(&directory, SERVER).await;
    for (mode, why) in [
        ("refuse", "token not authenticated"),
        ("hang", "did not answer within"),
        ("wrong", "`admin.emojivoto"),
        ("expired", "expired"),
        ("foreign key", "not the certificate's"),
        ("empty", "no CertifyResponse"),
    ] {
        directory.mode(mode);
        until(why, || identities.status().fault.is_some_and(|fault| fault.contains(why))).await;
        assert_eq!(identities.status().epoch, 0, "{mode}");
    }
    directory.mode("good");
    // Tokens are projected anew by the kubelet: each request reads the file.
    fs::write(directory.0.join("token"), "a new token").unwrap();
    let epoch = tokio::time::timeout(Duration::from_secs(5), identities.ready()).await.unwrap();
    assert_eq!(epoch.identity().identity.as_str(), OURS);
    assert_eq!(epoch.identity().trust_domain.as_str(), "cluster.local");
}

#[tokio::test]
async fn an_identity_service_that_is_not_whom_we_expect_gets_no_token() {
    let directory = Directory::new("linkerd-impostor");
    fs::write(directory.0.join("token"), "secret").unwrap();
    directory.mode("good");
    let _process = Process::start("linkerd_identity", &directory);
    let other = "other.linkerd.serviceaccount.identity.linkerd.cluster.local";
    let identities = linkerd(&directory, other).await;
    until("a refusal", || identities.status().fault.is_some_and(|fault| fault.contains(other))).await;
    assert_eq!(identities.status().epoch, 0);
}
