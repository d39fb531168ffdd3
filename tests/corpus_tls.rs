//! The identity corpus: every SPIFFE ID and certificate case, by verifier and by handshake.
#![cfg(any(feature = "tls", feature = "ring"))]

#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/tls.rs"]
mod support;

use corpus::vectors;
use enmesh::tls::acceptor::Mode;
use enmesh::tls::bundle::TrustBundles;
use enmesh::tls::connector::ExpectedPeer;
use enmesh::tls::identity::TrustDomain;
use enmesh::tls::material::Fixed;
use enmesh::tls::session::TlsError;
use enmesh::tls::svid::Names;
use enmesh::tls::svid::Refusal;
use enmesh::tls::verify::Expected;
use enmesh::tls::verify::Side;
use enmesh::tls::verify::Verifier;
use enmesh::tls::verify::VerifySettings;
use rustls::ClientConfig;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use support::*;

#[test]
fn spiffe_ids_of_the_corpus_are_judged_right() {
    let Some(cases) = vectors("security-cases.json") else { return };
    let mut seen = 0;
    for case in cases["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        if !id.starts_with("spiffe-id/") {
            continue;
        }
        seen += 1;
        let input = case["vector"]["input"].as_str().unwrap();
        let parsed = input.parse::<enmesh::tls::identity::SpiffeId>();
        match case["vector"]["decision"].as_bool() {
            Some(right) => assert_eq!(parsed.is_ok(), right, "{id}: {parsed:?}"),
            // A matter of policy: ours is to refuse what is too long.
            None => assert!(parsed.is_err() || input.len() <= 2048, "{id}: {parsed:?}"),
        }
        if let Ok(parsed) = parsed {
            assert_eq!(parsed.to_string(), input, "{id}");
        }
    }
    assert!(seen >= 20, "only {seen} cases");
}

/// One certificate of the corpus.
struct Case {
    id: String,
    expect: String,
    names: Names,
    sides: Vec<Side>,
    now: UnixTime,
    domain: TrustDomain,
    peer_id: Option<String>,
    anchors: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
}

fn certificate(pem: &Value) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_str().unwrap().as_bytes()).unwrap()
}

/// Seconds since the Unix epoch of `2026-06-01T00:00:00+00:00`; days by Howard Hinnant's `days_from_civil`.
fn seconds(time: &str) -> i64 {
    let (date, clock) =
        time.strip_suffix("+00:00").or(time.strip_suffix('Z')).unwrap().split_once('T').unwrap();
    let numbers =
        |text: &str, by: char| text.split(by).map(|n| n.parse::<i64>().unwrap()).collect::<Vec<_>>();
    let (date, clock) = (numbers(date, '-'), numbers(clock, ':'));
    let (year, month) = if date[1] > 2 { (date[0], date[1] - 3) } else { (date[0] - 1, date[1] + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + date[2] - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    days * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2]
}

fn cases() -> Vec<Case> {
    let Some(corpus) = vectors("svid-corpus.json") else { return Vec::new() };
    let list = |value: &Value| value.as_array().unwrap().iter().map(certificate).collect::<Vec<_>>();
    let case = |case: &Value| Case {
        id: case["id"].as_str().unwrap().to_owned(),
        expect: case["expect"].as_str().unwrap().to_owned(),
        names: if case["mode"] == "spiffe" { Names::Spiffe } else { Names::Linkerd },
        sides: case["usage"]
            .as_array()
            .unwrap()
            .iter()
            .map(|usage| if usage == "server" { Side::Server } else { Side::Client })
            .collect(),
        now: UnixTime::since_unix_epoch(Duration::from_secs(
            seconds(case["validation_time"].as_str().unwrap()) as u64,
        )),
        domain: case["trust_domain"].as_str().unwrap().parse().unwrap(),
        peer_id: case["expected_peer_id"].as_str().map(str::to_owned),
        anchors: list(&case["trust_anchors"]),
        chain: [vec![certificate(&case["peer"])], list(&case["intermediates"])].concat(),
    };
    let cases: Vec<Case> = corpus["cases"].as_array().unwrap().iter().map(case).collect();
    assert!(cases.len() >= 40, "only {} cases", cases.len());
    cases
}

impl Case {
    /// The bundles: each anchor under the domain it names, or the case's own.
    fn bundles(&self) -> Result<TrustBundles, Refusal> {
        let mut bundles = TrustBundles::new(self.domain.clone());
        for anchor in &self.anchors {
            bundles.add(anchor.clone(), &self.domain)?;
        }
        Ok(bundles)
    }

    fn settings(&self) -> VerifySettings {
        VerifySettings { names: self.names, ..VerifySettings::default() }
    }

    fn judge(&self, side: Side) -> Result<String, Refusal> {
        let verifier = Verifier::new(self.bundles()?, self.settings());
        let peer = verifier.verify(&self.chain[0], &self.chain[1..], side, self.now, None)?;
        Ok(peer.identity.to_string())
    }
}

#[test]
fn the_verifier_judges_each_certificate_of_the_corpus_right() {
    for case in cases() {
        for side in &case.sides {
            let judged = case.judge(*side);
            match case.expect.as_str() {
                "accept" => {
                    let name = judged.unwrap_or_else(|refusal| panic!("{}: {refusal}", case.id));
                    assert!(case.peer_id.as_ref().is_none_or(|id| *id == name), "{}: {name}", case.id);
                }
                "reject" => assert!(judged.is_err(), "{}: accepted as {judged:?}", case.id),
                "policy" => eprintln!("policy: {} as {side:?}: {judged:?}", case.id),
                other => panic!("{}: {other}", case.id),
            }
        }
    }
}

/// The corpus has certificates and no keys. A peer that presents one with another key is refused for the
/// certificate where the verifier refuses it, and for the signature, which comes after, where it does not.
fn is_for_the_signature(error: &TlsError) -> bool {
    use rustls::CertificateError::{BadSignature, UnsupportedSignatureAlgorithmForPublicKeyContext};
    let TlsError::Protocol(rustls::Error::InvalidCertificate(error)) = error else { return false };
    matches!(error, BadSignature | UnsupportedSignatureAlgorithmForPublicKeyContext { .. })
}

#[tokio::test(start_paused = true)]
async fn handshakes_judge_each_certificate_of_the_corpus_as_the_verifier_does() {
    for case in cases() {
        let Ok(mut bundles) = case.bundles() else {
            assert_ne!(case.expect, "accept", "{}", case.id);
            continue;
        };
        // Ours must be vouched for too, or it would not be published: our root joins.
        let wall = Wall::at(case.now.as_secs() as i64);
        let authority = authority(&wall);
        let mut material = authority.issue(&id("us")).unwrap();
        let ours = material.bundles.of(authority.trust_domain()).unwrap().certificates()[0].clone();
        bundles.add(ours, &case.domain).unwrap();
        material.bundles = bundles;
        let mut settings = settings(&wall);
        settings.verify = case.settings();
        let identities = keep(Fixed::new(material), settings);
        identities.ready().await;
        for side in &case.sides {
            let error = match side {
                Side::Server => answered_by(&case, &identities).await,
                Side::Client => called_by(&case, &identities).await,
            };
            match case.judge(*side) {
                Ok(_) => assert!(is_for_the_signature(&error), "{}: {error:?}", case.id),
                Err(refusal) => {
                    assert!(
                        matches!(&error, TlsError::Refused(seen) if *seen == refusal),
                        "{}: {error:?}",
                        case.id
                    );
                }
            }
        }
    }
}

fn another_key(chain: &[CertificateDer<'static>]) -> Arc<SingleCertAndKey> {
    let key = rcgen::KeyPair::generate().unwrap().serialize_der();
    let provider = enmesh::tls::provider::crypto();
    let key = provider.key_provider.load_private_key(key.try_into().unwrap()).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain.to_vec(), key)))
}

/// Our client meets a server that presents the case.
async fn answered_by(case: &Case, identities: &enmesh::tls::rotate::Identities) -> TlsError {
    let provider = Arc::clone(enmesh::tls::provider::crypto());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(another_key(&case.chain));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let any = ExpectedPeer::new(Expected::MemberOf(case.domain.clone()));
    let connector = connector(identities);
    let server = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (outcome, theirs) = tokio::join!(connector.connect(near, &any), server.accept(far));
    assert!(theirs.is_err(), "{}", case.id);
    outcome.err().unwrap()
}

/// Our server meets a client that presents the case.
async fn called_by(case: &Case, identities: &enmesh::tls::rotate::Identities) -> TlsError {
    let provider = Arc::clone(enmesh::tls::provider::crypto());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_cert_resolver(another_key(&case.chain));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = tokio_rustls::TlsConnector::from(Arc::new(config));
    let acceptor = acceptor(identities, Mode::Strict);
    let name = ServerName::try_from("any.example").unwrap();
    let (_, outcome) = tokio::join!(client.connect(name, far), acceptor.accept(near));
    outcome.err().unwrap()
}

/// A certificate with these names, `kind:value`, under a root of its own; `None` if it cannot be made.
fn named(sans: &Value) -> (Vec<CertificateDer<'static>>, CertificateDer<'static>) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let root = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let san = |san: &Value| {
        let (kind, value) = san.as_str().unwrap().split_once(':').unwrap();
        match kind {
            "dns" => rcgen::SanType::DnsName(value.try_into().unwrap()),
            "uri" => rcgen::SanType::URI(value.try_into().unwrap()),
            "email" => rcgen::SanType::Rfc822Name(value.try_into().unwrap()),
            "ip" => rcgen::SanType::IpAddress(value.parse().unwrap()),
            other => panic!("{other}"),
        }
    };
    params.subject_alt_names = sans.as_array().unwrap().iter().map(san).collect();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let leaf = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &root).unwrap();
    (vec![leaf.der().clone()], root.der().clone())
}

/// Who Linkerd's rules make of a certificate with these names, if `expected` is looked for.
fn linkerd_name(sans: &Value, expected: Option<&str>, side: Side) -> Option<String> {
    let (chain, root) = named(sans);
    let first = sans.as_array().unwrap().first().and_then(Value::as_str).unwrap_or_default();
    let first = first.split_once(':').map_or("", |(_, value)| value);
    let named = first.parse::<enmesh::tls::identity::Identity>().ok();
    let domain = named.as_ref().and_then(|id| id.trust_domain()).unwrap_or("cluster.local");
    let domain: TrustDomain = domain.parse().unwrap();
    let mut bundles = TrustBundles::new(domain.clone());
    bundles.add(root, &domain).unwrap();
    let verifier =
        Verifier::new(bundles, VerifySettings { names: Names::Linkerd, ..VerifySettings::default() });
    let expected = expected.map(|text| Expected::Is(text.parse().unwrap()));
    let peer = verifier.verify(&chain[0], &[], side, UnixTime::now(), expected.as_ref());
    peer.ok().map(|peer| peer.identity.to_string())
}

#[test]
fn linkerds_rules_of_names_and_renewal_hold() {
    let Some(cases) = vectors("linkerd-identity.json") else { return };
    for case in cases["server_id_check"].as_array().unwrap() {
        let mut expected = case["expected"].as_str().unwrap().to_owned();
        if expected.ends_with("...") {
            // Shortened in the corpus: the certificate has it whole.
            let whole = case["sans"][0].as_str().unwrap().split_once(':').unwrap().1;
            assert!(whole.starts_with(expected.trim_end_matches('.')));
            expected = whole.to_owned();
        }
        let found = linkerd_name(&case["sans"], Some(&expected), Side::Server);
        assert_eq!(found.is_some(), case["ok"].as_bool().unwrap(), "{case}");
    }
    for case in cases["client_id_extraction"].as_array().unwrap() {
        let id = match case["id"].as_str() {
            Some("first usable") => case["sans"][0].as_str().unwrap().split_once(':').map(|(_, value)| value),
            other => other,
        };
        assert_eq!(linkerd_name(&case["sans"], None, Side::Client).as_deref(), id, "{case}");
    }
    for case in cases["refresh_seconds"]["cases"].as_array().unwrap() {
        let remaining = u64::try_from(case["remaining"].as_i64().unwrap()).unwrap_or(0);
        let wait = enmesh::tls::renew::RenewalSettings::linkerd().wait(Duration::from_secs(remaining));
        assert_eq!(wait.as_secs(), case["sleep"].as_u64().unwrap(), "{case}");
    }
}
