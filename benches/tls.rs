//! What identity costs, as ratios: the verifier beside webpki, handshakes beside plain rustls, requests beside plaintext,
//! memory of a connection, and what a rotation does to the slowest requests.
//!
//! `cargo bench --bench tls`; `-- --smoke` for an instant of each.
#![expect(clippy::disallowed_methods, reason = "a bench reads the machine's clock and spawns")]

mod common;

use bytes::Bytes;
use common::Options;
use common::Row;
use enmesh::Mesh;
use enmesh::discover::endpoint::Endpoint;
use enmesh::stdx::rng::Rng;
use enmesh::tls::acceptor::Accepted;
use enmesh::tls::acceptor::Acceptor;
use enmesh::tls::acceptor::Mode;
use enmesh::tls::authority::Authority;
use enmesh::tls::authority::AuthoritySettings;
use enmesh::tls::connector::Connector;
use enmesh::tls::connector::ExpectedPeer;
use enmesh::tls::epoch::EpochSettings;
use enmesh::tls::identity::Identity;
use enmesh::tls::material::Fixed;
use enmesh::tls::renew::RenewalSettings;
use enmesh::tls::rotate::Identities;
use enmesh::tls::rotate::rotation;
use enmesh::tls::verify::Expected;
use enmesh::tls::verify::Side;
use enmesh::tls::verify::Verifier;
use enmesh::tls::verify::VerifySettings;
use http::Request;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::Full;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use stats_alloc::INSTRUMENTED_SYSTEM;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use tokio::io::duplex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const COMMAND: &str = "cargo bench --bench tls";

fn authority() -> Authority {
    Authority::new("mesh.example".parse().expect("a domain"), AuthoritySettings::default())
        .expect("an authority")
}

fn id(name: &str) -> Identity {
    format!("spiffe://mesh.example/{name}").parse().expect("an id")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Measures contestants in turn; of each the least mean time of many batches, since what disturbs only slows.
fn compared(options: &Options, rounds: u32, contestants: &mut [(&str, &mut dyn FnMut())]) -> Vec<Row> {
    let (batches, rounds) = if options.smoke { (1, 2) } else { (40, rounds) };
    let row = |(name, _): &(&str, _)| Row {
        name: (*name).to_owned(),
        nanos: f64::INFINITY,
        allocations: 0.0,
        instructions: None,
    };
    let mut rows: Vec<Row> = contestants.iter().map(row).collect();
    contestants.iter_mut().for_each(|(_, round)| round());
    for _ in 0..batches {
        for ((_, round), row) in contestants.iter_mut().zip(&mut rows) {
            let (before, begun) = (INSTRUMENTED_SYSTEM.stats(), Instant::now());
            (0..rounds).for_each(|_| round());
            row.nanos = row.nanos.min(begun.elapsed().as_nanos() as f64 / f64::from(rounds));
            let change = INSTRUMENTED_SYSTEM.stats() - before;
            row.allocations = change.allocations as f64 / f64::from(rounds);
        }
    }
    rows
}

const CHAIN: &str = "webpki: the chain alone";
const OURS: &str = "enmesh: names, usage, domain, chain";

fn verifying(options: &Options) {
    let ca = authority();
    let material = ca.issue(&id("api")).expect("a certificate");
    let anchors: Vec<CertificateDer<'static>> =
        material.bundles.of(ca.trust_domain()).expect("a bundle").certificates().to_vec();
    let (leaf, rest) = material.chain.split_first().expect("a leaf");
    let algorithms = enmesh::tls::provider::crypto().signature_verification_algorithms;
    let anchors: Vec<_> =
        anchors.iter().map(|der| webpki::anchor_from_trusted_cert(der).expect("an anchor")).collect();
    let now = UnixTime::now();
    let mut rows = Vec::new();
    let mut bare = || {
        let cert = webpki::EndEntityCert::try_from(leaf).expect("a leaf");
        let usage = webpki::KeyUsage::server_auth();
        cert.verify_for_usage(algorithms.all, &anchors, rest, now, usage, None, None).expect("a chain");
    };
    let other = ca.issue(&id("x")).expect("a certificate").bundles;
    let verifier = Verifier::new(other, VerifySettings::default());
    let expected = Expected::Is(id("api"));
    let mut ours = || {
        verifier.verify(leaf, rest, Side::Server, now, Some(&expected)).expect("a peer");
    };
    let contestants: [(&str, &mut dyn FnMut()); 2] = [(CHAIN, &mut bare), (OURS, &mut ours)];
    for (name, round) in contestants.into_iter().filter(|(name, _)| options.wants(name)) {
        rows.extend(common::measure(options, name, round));
    }
    common::print("verifying a certificate (leaf and one intermediate)", COMMAND, &rows);
}

fn identities(runtime: &Runtime, ca: &Authority, name: &str) -> Identities {
    let (identities, task) =
        rotation(Fixed::new(ca.issue(&id(name)).expect("a certificate")), EpochSettings::default());
    runtime.spawn(task);
    runtime.block_on(identities.ready());
    identities
}

/// rustls as it comes, with the same chain length, key exchange and no resumption.
fn plain_rustls(ca: &Authority) -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    let pem = ca.issue_pem(&"api.mesh.example".parse().expect("a name")).expect("a certificate");
    use rustls::pki_types::pem::PemObject;
    let chain =
        || CertificateDer::pem_slice_iter(pem.chain.as_bytes()).map(Result::unwrap).collect::<Vec<_>>();
    let key = || rustls::pki_types::PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).expect("a key");
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem.roots.as_bytes()) {
        roots.add(root.expect("a root")).expect("a root");
    }
    let roots = Arc::new(roots);
    let provider = Arc::clone(enmesh::tls::provider::crypto());
    let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("tls 1.3")
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain(), key())
        .expect("a client");
    client.resumption = rustls::client::Resumption::disabled();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("tls 1.3")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(chain(), key())
        .expect("a server");
    server.send_tls13_tickets = 0;
    server.alpn_protocols = client.alpn_protocols.clone();
    (Arc::new(client), Arc::new(server))
}

fn handshaking(options: &Options) {
    let (runtime, ca) = (runtime(), authority());
    let (client, server) = plain_rustls(&ca);
    let (client, server) =
        (tokio_rustls::TlsConnector::from(client), tokio_rustls::TlsAcceptor::from(server));
    let name = ServerName::try_from("api.mesh.example").expect("a name");
    let plain = async || {
        let (near, far) = duplex(64 * 1024);
        let (client, server) = tokio::join!(client.connect(name.clone(), near), server.accept(far));
        (client.expect("a client"), server.expect("a server"))
    };
    let (web, api) = (identities(&runtime, &ca, "web"), identities(&runtime, &ca, "api"));
    let connector = Connector::new(web, Connector::HANDSHAKE_MAX);
    let acceptor = Acceptor::new(api, Mode::Strict, Acceptor::HANDSHAKE_MAX);
    let expected = ExpectedPeer::new(Expected::Is(id("api")));
    let ours = async || {
        let (near, far) = duplex(64 * 1024);
        let (client, server) = tokio::join!(connector.connect(near, &expected), acceptor.accept(far));
        let Accepted::Tls(server, session) = server.expect("a server") else { panic!("plain") };
        (client.expect("a client"), (server, session))
    };
    let rows = compared(
        options,
        20,
        &mut [
            ("rustls: both ends, mutual, full", &mut || drop(runtime.block_on(plain()))),
            ("enmesh: both ends, mutual, full", &mut || drop(runtime.block_on(ours()))),
        ],
    );
    common::print("a handshake, both ends on one thread", COMMAND, &rows);
    println!("  {:.0} and {:.0} handshakes a second", 1e9 / rows[0].nanos, 1e9 / rows[1].nanos);

    let count = if options.smoke { 2 } else { 200 };
    let held = || INSTRUMENTED_SYSTEM.stats();
    let bytes = |before: stats_alloc::Stats| {
        let change = held() - before;
        (change.bytes_allocated as f64 - change.bytes_deallocated as f64) / f64::from(count)
    };
    let before = held();
    let kept: Vec<_> = (0..count).map(|_| runtime.block_on(plain())).collect();
    let bare = bytes(before);
    drop(kept);
    let before = held();
    let kept: Vec<_> = (0..count).map(|_| runtime.block_on(ours())).collect();
    let own = bytes(before);
    drop(kept);
    println!(
        "  heap of an open connection, both ends with their pipe: rustls {bare:.0} bytes, enmesh {own:.0} bytes, ratio {:.2}",
        own / bare
    );
}

/// A mesh that serves, and one that calls it, both on this runtime.
fn meshes(runtime: &Runtime, ca: Option<&Authority>) -> (Mesh, Mesh) {
    let with_identity = |name: &str| match ca {
        Some(ca) => Mesh::builder().identity_with(
            ca.source(id(name), RenewalSettings::default(), Rng::thread()),
            EpochSettings { old_epoch_max: Duration::from_millis(50), ..EpochSettings::default() },
        ),
        None => Mesh::builder(),
    };
    runtime.block_on(async {
        let server = with_identity("api").build().expect("a mesh");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr: SocketAddr = listener.local_addr().expect("an address");
        let app = tower::service_fn(|_: Request<enmesh::serve::body::RequestBody>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello world"))))
        });
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener, app).await });
        let identity = ca.map(|_| "spiffe://mesh.example/api".into());
        let endpoint = Endpoint { http2: true, identity, ..Endpoint::new(addr) };
        let client = with_identity("web").endpoint_set("api:80", [endpoint]).build().expect("a mesh");
        for mesh in [&server, &client] {
            if let Some(identities) = mesh.identities() {
                identities.ready().await;
            }
        }
        (server, client)
    })
}

async fn ask(client: &Mesh) {
    let response = client.client().get("http://api:80/").await.expect("a response");
    response.into_body().collect().await.expect("a body");
}

fn requesting(options: &Options) {
    let ca = authority();
    let (clear, secure) = (runtime(), runtime());
    let ((_clear, in_clear), (_secure, in_tls)) = (meshes(&clear, None), meshes(&secure, Some(&ca)));
    let rows = compared(
        options,
        200,
        &mut [
            ("plaintext, HTTP/2 on loopback", &mut || clear.block_on(ask(&in_clear))),
            ("mutual TLS, HTTP/2 on loopback", &mut || secure.block_on(ask(&in_tls))),
        ],
    );
    common::print("a request on an open connection, both ends on one thread", COMMAND, &rows);
}

fn rotating(options: &Options) {
    let ca = authority();
    let runtime = runtime();
    let (_server, client) = meshes(&runtime, Some(&ca));
    let count = if options.smoke { 20 } else { 20_000 };
    let slowest = |rotate: bool| {
        let mut times: Vec<Duration> = (0..count)
            .map(|n| {
                if rotate && n % 1000 == 0 {
                    ca.rotate_intermediate().expect("a key");
                }
                let begun = Instant::now();
                runtime.block_on(ask(&client));
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        let at = |share: f64| times[((count - 1) as f64 * share) as usize].as_nanos() as f64;
        [at(0.5), at(0.99), at(0.999)]
    };
    slowest(false);
    let (still, moving) = (slowest(false), slowest(true));
    println!("\nrequests while leaves rotate every 1000 of them ({count}): ratio to none");
    for (name, share) in [("p50", 0), ("p99", 1), ("p99.9", 2)] {
        println!("  {name:<6} {:>9.0} ns, ratio {:.2}", moving[share], moving[share] / still[share]);
    }
}

fn main() {
    let options = Options::read();
    verifying(&options);
    if options.rounds.is_some() {
        return;
    }
    handshaking(&options);
    requesting(&options);
    rotating(&options);
}
