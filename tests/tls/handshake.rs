//! Who may speak with whom, and what becomes of the others.

use crate::NOW;
use crate::support::*;
use crate::turn;
use crate::workload;
use enmesh::tls::acceptor::Accepted;
use enmesh::tls::acceptor::Mode;
use enmesh::tls::connector::ExpectedPeer;
use enmesh::tls::material::Fixed;
use enmesh::tls::session::Protocol;
use enmesh::tls::session::Session;
use enmesh::tls::session::TlsError;
use enmesh::tls::svid::Refusal;
use enmesh::tls::verify::Expected;
use rustls::HandshakeKind;
use rustls::NamedGroup;
use rustls::ProtocolVersion;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::DuplexStream;
use tokio::io::duplex;

fn name_of(session: &Session) -> &str {
    session.peer().unwrap().identity.as_str()
}

fn is(name: &str) -> ExpectedPeer {
    ExpectedPeer::new(Expected::Is(id(name)))
}

/// Everything that can still be read.
async fn rest<IO: AsyncRead + Unpin>(mut io: IO) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = io.read_to_end(&mut bytes).await;
    bytes
}

#[tokio::test(start_paused = true)]
async fn both_ends_know_each_other_and_speak_through() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let (web, api) = (workload(&ca, "web", &wall).await, workload(&ca, "api", &wall).await);
    let (near, far) = duplex(64 * 1024);
    let (connector, acceptor) = (connector(&web), acceptor(&api, Mode::Strict));
    let expected = is("api");
    let (client, server) = tokio::join!(connector.connect(near, &expected), acceptor.accept(far));
    let (mut client, client_session) = client.unwrap();
    let Accepted::Tls(mut server, server_session) = server.unwrap() else { panic!("plain") };
    assert_eq!(name_of(&client_session), "spiffe://mesh.example/api");
    assert_eq!(name_of(&server_session), "spiffe://mesh.example/web");
    assert_eq!(client_session.protocol(), Some(Protocol::Http2));
    let state = client.get_ref().1;
    assert_eq!(state.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = if cfg!(feature = "tls") { NamedGroup::X25519MLKEM768 } else { NamedGroup::X25519 };
    assert_eq!(state.negotiated_key_exchange_group().unwrap().name(), group);
    client.write_all(b"ping").await.unwrap();
    let mut seen = [0; 4];
    server.read_exact(&mut seen).await.unwrap();
    server.write_all(b"pong").await.unwrap();
    client.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"pong");
}

#[tokio::test(start_paused = true)]
async fn a_client_refuses_everybody_but_whom_it_expects() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let (web, api) = (workload(&ca, "web", &wall).await, workload(&ca, "api", &wall).await);
    let (connector, acceptor) = (connector(&web), acceptor(&api, Mode::Strict));
    let of = |domain: &str| Expected::MemberOf(domain.parse().unwrap());
    for (expected, right) in [
        (Expected::Is(id("api")), true),
        (Expected::Is(id("other")), false),
        (Expected::Is("spiffe://other.example/api".parse().unwrap()), false),
        (Expected::Is("api.mesh.example".parse().unwrap()), false),
        (Expected::OneOf(Arc::new([id("x"), id("api")])), true),
        (Expected::OneOf(Arc::new([])), false),
        (of("mesh.example"), true),
        (of("other.example"), false),
    ] {
        let (near, far) = duplex(64 * 1024);
        let expected = ExpectedPeer::new(expected);
        let (client, server) = tokio::join!(connector.connect(near, &expected), acceptor.accept(far));
        assert_eq!(client.is_ok(), right, "{expected:?}");
        if let Err(error) = client {
            assert_eq!(error.label(), "identity_mismatch");
            // The server learns it from an alert in the handshake: it was shown no certificate and no request.
            assert!(matches!(server, Err(TlsError::Protocol(_))), "{expected:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_name_is_sent_as_discovery_says_and_proves_nothing() {
    let expected = ExpectedPeer::parse("spiffe://mesh.example/api", Some("api.mesh.svc")).unwrap();
    assert_eq!(expected.server_name, Some(ServerName::try_from("api.mesh.svc").unwrap()));
    let dns = "api.ns.serviceaccount.identity.linkerd.cluster.local";
    assert_eq!(ExpectedPeer::parse(dns, None).unwrap().server_name, Some(ServerName::try_from(dns).unwrap()));
    assert!(ExpectedPeer::parse("spiffe://mesh.example/api", None).unwrap().server_name.is_none());
    assert!(ExpectedPeer::parse("not an identity", None).is_err());
}

#[tokio::test(start_paused = true)]
async fn tls_that_fails_never_falls_back_and_shows_no_byte_of_a_request() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let connector = connector(&workload(&ca, "web", &wall).await);
    let answers: [&[u8]; 4] =
        [b"HTTP/1.1 200 OK\r\n\r\n", b"", b"\x15\x03\x03\x00\x02\x02\x28", b"\x16\x03\x03\xff\xff"];
    for attempt in 0..100 {
        let (near, mut far) = duplex(64 * 1024);
        let expected = is("api");
        let server = async {
            let mut hello = vec![0; 16 * 1024];
            let n = far.read(&mut hello).await.unwrap();
            far.write_all(answers[attempt % 4]).await.unwrap();
            far.shutdown().await.unwrap();
            hello.truncate(n);
            hello.extend(rest(&mut far).await);
            hello
        };
        let (outcome, wire) = tokio::join!(connector.connect(near, &expected), server);
        assert!(outcome.is_err(), "{attempt}");
        // What was sent is one handshake record, and perhaps an alert; a request would need `connect` to succeed.
        assert_eq!(wire[0], 0x16, "{attempt}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_strict_port_takes_tls_with_a_certificate_and_nothing_else() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let acceptor = acceptor(&workload(&ca, "api", &wall).await, Mode::Strict);
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").await.unwrap();
    assert!(matches!(acceptor.accept(far).await, Err(TlsError::Protocol(_))));

    let (near, far) = duplex(64 * 1024);
    let client = anonymous(&[b"h2"]);
    let (_, server) = tokio::join!(open(&client, near), acceptor.accept(far));
    let error = server.err().unwrap();
    assert!(matches!(error, TlsError::Protocol(rustls::Error::NoCertificatesPresented)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_permissive_port_takes_all_three_and_says_who_it_is() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let acceptor = acceptor(&workload(&ca, "api", &wall).await, Mode::Permissive);
    for text in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00", b""] {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(text).await.unwrap();
        near.shutdown().await.unwrap();
        let Accepted::Plain(io) = acceptor.accept(far).await.unwrap() else { panic!("tls") };
        assert_eq!(rest(io).await, text);
    }

    let (near, far) = duplex(64 * 1024);
    let client = anonymous(&[b"h2"]);
    let (client, server) = tokio::join!(open(&client, near), acceptor.accept(far));
    let Accepted::Tls(_, session) = server.unwrap() else { panic!("plain") };
    assert!(client.is_ok() && session.peer().is_none());

    // A certificate that is offered must be good, also here.
    let stranger = authority(&wall);
    let connector = connector(&workload(&stranger, "web", &wall).await);
    let (near, far) = duplex(64 * 1024);
    let expected = is("api");
    let (client, _) = tokio::join!(connector.connect(near, &expected), acceptor.accept(far));
    assert_eq!(client.err().unwrap().label(), "unknown_issuer");
}

#[tokio::test(start_paused = true)]
async fn plaintext_is_handed_on_at_its_first_byte() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let acceptor = acceptor(&workload(&ca, "api", &wall).await, Mode::Permissive);
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"G").await.unwrap();
    let start = enmesh::stdx::clock::now();
    let Accepted::Plain(io) = acceptor.accept(far).await.unwrap() else { panic!("tls") };
    assert_eq!((io.prefix(), (enmesh::stdx::clock::now() - start)), (&b"G"[..], Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn an_off_port_hands_everything_on_untouched() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let acceptor = acceptor(&workload(&ca, "api", &wall).await, Mode::Off);
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"\x16\x03\x01").await.unwrap();
    near.shutdown().await.unwrap();
    let Accepted::Plain(io) = acceptor.accept(far).await.unwrap() else { panic!("tls") };
    assert_eq!(rest(io).await, b"\x16\x03\x01");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_limit_on_both_sides() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let api = workload(&ca, "api", &wall).await;
    for mode in [Mode::Strict, Mode::Permissive] {
        let (_near, far) = duplex(64 * 1024);
        let outcome = acceptor(&api, mode).accept(far).await;
        assert!(matches!(outcome, Err(TlsError::Timeout(_))), "{mode:?}");
    }
    let (near, _far) = duplex(64 * 1024);
    assert!(matches!(connector(&api).connect(near, &is("x")).await, Err(TlsError::Timeout(_))));
}

#[tokio::test(start_paused = true)]
async fn without_an_identity_there_is_no_tls_and_a_reason() {
    let wall = Wall::at(NOW);
    let (_feed, source) = enmesh::tls::material::Fed::new();
    let nobody = keep(source, settings(&wall));
    let (near, far) = duplex(64 * 1024);
    let error = connector(&nobody).connect(near, &is("api")).await.err().unwrap();
    assert!(error.to_string().contains("not answered yet"), "{error}");
    assert_eq!(rest(far).await, b"", "nothing was sent");
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"\x16").await.unwrap();
    assert!(matches!(acceptor(&nobody, Mode::Permissive).accept(far).await, Err(TlsError::NoIdentity(_))));
}

#[tokio::test(start_paused = true)]
async fn protocols_are_agreed_on_or_the_handshake_ends() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let acceptor = acceptor(&workload(&ca, "api", &wall).await, Mode::Permissive);
    for (offered, agreed) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(Some(Protocol::Http2))),
        (&[&b"http/1.1"[..]][..], Some(Some(Protocol::Http1))),
        (&[][..], Some(None)),
        (&[&b"foo"[..]][..], None),
    ] {
        let (near, far) = duplex(64 * 1024);
        let client = anonymous(offered);
        let (_, server) = tokio::join!(open(&client, near), acceptor.accept(far));
        let seen = match server {
            Ok(Accepted::Tls(_, session)) => Some(session.protocol()),
            _ => None,
        };
        assert_eq!(seen, agreed, "{offered:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_are_never_resumed_even_for_a_client_that_keeps_them() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let acceptor = acceptor(&workload(&ca, "api", &wall).await, Mode::Permissive);
    let mut config = rustls::ClientConfig::clone(&anonymous(&[b"h2"]));
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..3 {
        let (near, far) = duplex(64 * 1024);
        let (client, server) = tokio::join!(open(&config, near), acceptor.accept(far));
        let Accepted::Tls(mut server, _) = server.unwrap() else { panic!("plain") };
        let mut client = client.unwrap();
        server.write_all(b"x").await.unwrap();
        client.read_u8().await.unwrap();
        let state = client.get_ref().1;
        assert_eq!((state.handshake_kind(), state.tls13_tickets_received()), (Some(HandshakeKind::Full), 0));
        assert!(!state.is_early_data_accepted());
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_has_ended_does_not_open_another_connection() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let frozen = keep(Fixed::new(ca.issue(&id("web")).unwrap()), settings(&wall));
    frozen.ready().await;
    let api = workload(&ca, "api", &wall).await;
    let (connector, acceptor, expected) = (connector(&frozen), acceptor(&api, Mode::Strict), is("api"));
    let (near, far) = duplex(64 * 1024);
    let (client, server) = tokio::join!(connector.connect(near, &expected), acceptor.accept(far));
    assert!(client.is_ok() && server.is_ok());
    turn(&wall, 3601);
    // Ours is renewed meanwhile, so that only the client's is old.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (near, far) = duplex(64 * 1024);
    let (_, server) = tokio::join!(connector.connect(near, &expected), acceptor.accept(far));
    assert!(matches!(server, Err(TlsError::Refused(Refusal::Expired))), "{server:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_speaks_only_tls_1_2_is_turned_away() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let acceptor = acceptor(&workload(&ca, "api", &wall).await, Mode::Permissive);
    // A ClientHello of TLS 1.2: no supported_versions, one ECDHE suite, SNI-less, secp256r1.
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0xc0, 0x2b, 1, 0],
        &[0, 22, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    let hello = [&[0x16, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8], body.as_slice()].concat();
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(&hello).await.unwrap();
    let outcome = acceptor.accept(far).await;
    assert!(matches!(outcome, Err(TlsError::Protocol(rustls::Error::PeerIncompatible(_)))), "{outcome:?}");
}

/// A client of another make without a certificate, which believes every server.
fn anonymous(protocols: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let provider = Arc::clone(enmesh::tls::provider::crypto());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

async fn open(
    config: &Arc<rustls::ClientConfig>,
    io: DuplexStream,
) -> std::io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
    let name = ServerName::try_from("any.example").unwrap();
    tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, io).await
}
