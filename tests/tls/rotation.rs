//! Identities that change while connections are open, and issuers that fail.

use crate::NOW;
use crate::support::*;
use crate::turn;
use crate::workload;
use enmesh::stdx::rng::Rng;
use enmesh::tls::acceptor::Accepted;
use enmesh::tls::acceptor::Mode;
use enmesh::tls::authority::Authority;
use enmesh::tls::bundle::TrustBundles;
use enmesh::tls::connector::ExpectedPeer;
use enmesh::tls::identity::TrustDomain;
use enmesh::tls::issuer::Issuer;
use enmesh::tls::issuer::Renewing;
use enmesh::tls::material::BadMaterial;
use enmesh::tls::material::Fed;
use enmesh::tls::material::Fixed;
use enmesh::tls::material::Material;
use enmesh::tls::renew::Alarm;
use enmesh::tls::renew::RenewalSettings;
use enmesh::tls::rotate::Identities;
use enmesh::tls::rotate::Retirement;
use enmesh::tls::rotate::Status;
use enmesh::tls::session::Session;
use enmesh::tls::session::TlsError;
use enmesh::tls::verify::Expected;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::duplex;

const MINUTE: Duration = Duration::from_secs(60);

/// A connection from `from` to `to`, which must be who it says; both ends' sessions.
async fn connect(
    from: &Identities,
    to: &Identities,
    expected: &Expected,
) -> Result<(Session, Session), TlsError> {
    let (near, far) = duplex(64 * 1024);
    let (connector, acceptor) = (connector(from), acceptor(to, Mode::Strict));
    let expected = ExpectedPeer::new(expected.clone());
    let (client, server) = tokio::join!(connector.connect(near, &expected), acceptor.accept(far));
    let (_, client) = client?;
    match server? {
        Accepted::Tls(_, server) => Ok((client, server)),
        Accepted::Plain(_) => panic!("plain"),
    }
}

fn is(name: &str) -> Expected {
    Expected::Is(id(name))
}

#[tokio::test(start_paused = true)]
async fn certificates_renew_themselves_at_seven_tenths_of_their_life() {
    let wall = Wall::at(NOW);
    let web = workload(&authority(&wall), "web", &wall).await;
    tokio::time::sleep(37 * MINUTE).await;
    assert_eq!(web.status().epoch, 1);
    tokio::time::sleep(6 * MINUTE).await;
    assert_eq!((web.status().epoch, web.status().alarm), (2, Alarm::Calm));
}

#[tokio::test(start_paused = true)]
async fn rotations_of_leaves_issuers_and_roots_fail_no_connection() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let mut workloads = Vec::new();
    for index in 0..6 {
        workloads.push((format!("w{index}"), workload(&ca, &format!("w{index}"), &wall).await));
    }
    let rng = Rng::seeded(9);
    let (mut connections, mut steps) = (0, 0);
    for round in 0..140 {
        for _ in 0..5 {
            let (from, to) = (rng.below(6) as usize, rng.below(6) as usize);
            let (client, server) =
                connect(&workloads[from].1, &workloads[to].1, &is(&workloads[to].0)).await.unwrap();
            assert_eq!(server.peer().unwrap().identity, id(&workloads[from].0));
            assert_eq!(client.peer().unwrap().identity, id(&workloads[to].0));
            connections += 1;
        }
        // Roots: add at 40 and 90, sign with it two rounds later, drop the old one when all leaves are new.
        match round {
            40 | 90 => ca.add_root().unwrap(),
            20 | 42 | 70 | 92 | 120 => ca.rotate_intermediate().unwrap(),
            44 | 94 => ca.drop_old_roots(),
            _ => {}
        }
        if round % 7 == 0 {
            steps += 1;
            tokio::time::sleep(43 * MINUTE).await;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    assert_eq!((connections, steps), (700, 20));
    assert!(workloads.iter().all(|(_, identities)| identities.status().epoch > 25));
    assert!(workloads.iter().all(|(_, identities)| identities.status().refused == 0));
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_root_ends_open_connections_of_its_leaves_and_only_them() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let api = workload(&ca, "api", &wall).await;
    let web = workload(&ca, "web", &wall).await;
    let frozen = keep(Fixed::new(ca.issue(&id("frozen")).unwrap()), settings(&wall));
    frozen.ready().await;
    let (_, of_frozen) = connect(&frozen, &api, &is("api")).await.unwrap();
    ca.add_root().unwrap();
    ca.rotate_intermediate().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, of_web) = connect(&web, &api, &is("api")).await.unwrap();
    let rng = Rng::seeded(1);
    let retired = {
        let (api, rng) = (api.clone(), rng.clone());
        #[expect(clippy::disallowed_methods, reason = "the test's runtime ends it")]
        tokio::spawn(async move { api.retired(&of_frozen, &rng).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    ca.drop_old_roots();
    let retired = tokio::time::timeout(Duration::from_secs(1), retired).await.unwrap().unwrap();
    assert!(matches!(retired, Retirement::PeerRefused(_)), "{retired:?}");
    assert!(connect(&frozen, &api, &is("api")).await.is_err(), "nor may it come again");
    let still = tokio::time::timeout(Duration::from_millis(10), api.retired(&of_web, &rng)).await;
    assert!(still.is_err(), "{still:?}");
}

#[tokio::test(start_paused = true)]
async fn connections_of_an_old_certificate_end_within_the_bound_at_scattered_times() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let (web, api) = (workload(&ca, "web", &wall).await, workload(&ca, "api", &wall).await);
    let mut ends = Vec::new();
    let (client, _) = connect(&web, &api, &is("api")).await.unwrap();
    ca.rotate_intermediate().unwrap();
    web.changed(1).await;
    for seed in 0..50 {
        let start = enmesh::stdx::clock::now();
        assert_eq!(web.retired(&client, &Rng::seeded(seed)).await, Retirement::OldEpoch);
        ends.push((enmesh::stdx::clock::now() - start).as_secs());
        // The clock of the test has moved on: leave the certificates as they are.
        turn(&wall, -((enmesh::stdx::clock::now() - start).as_secs() as i64));
    }
    assert!(ends.iter().all(|end| *end <= 300), "{ends:?}");
    assert!(ends.iter().min().unwrap() < &60 && ends.iter().max().unwrap() > &240, "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_its_peers_certificate() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let api = workload(&ca, "api", &wall).await;
    let frozen = keep(Fixed::new(ca.issue(&id("frozen")).unwrap()), settings(&wall));
    frozen.ready().await;
    let mut long = settings(&wall);
    long.old_epoch_max = 1000 * MINUTE;
    let patient = keep(Fixed::new(ca.issue(&id("api")).unwrap()), long);
    patient.ready().await;
    let (_, server) = connect(&frozen, &api, &is("api")).await.unwrap();
    let start = enmesh::stdx::clock::now();
    assert_eq!(patient.retired(&server, &Rng::seeded(1)).await, Retirement::PeerExpired);
    assert!(
        (3600..=3602).contains(&(enmesh::stdx::clock::now() - start).as_secs()),
        "{:?}",
        (enmesh::stdx::clock::now() - start)
    );

    // And at once when the wall clock jumps past it, within the half minute at which it is looked at.
    let frozen = keep(Fixed::new(ca.issue(&id("frozen")).unwrap()), settings(&wall));
    frozen.ready().await;
    let (_, server) = connect(&frozen, &api, &is("api")).await.unwrap();
    let start = enmesh::stdx::clock::now();
    turn(&wall, 3601);
    assert_eq!(patient.retired(&server, &Rng::seeded(1)).await, Retirement::PeerExpired);
    assert!((enmesh::stdx::clock::now() - start) <= Duration::from_secs(30));
}

type Answer = Box<dyn FnMut(&Authority) -> Option<Result<Material, BadMaterial>> + Send>;

/// An issuer that does as the test says; `None` is no answer at all.
#[derive(Clone)]
struct Scripted {
    authority: Authority,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<std::time::Instant>>>,
}

impl Scripted {
    fn new(authority: &Authority, answer: Answer) -> Self {
        Self { authority: authority.clone(), answer: Arc::new(Mutex::new(answer)), asked: Arc::default() }
    }

    fn answer_by(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn keep(&self, wall: &Arc<Wall>) -> Identities {
        let source = Renewing::new(self.clone(), RenewalSettings::default(), Rng::seeded(4));
        keep(source.with_wall(Arc::clone(wall) as _), settings(wall))
    }
}

impl Issuer for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn issue(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        self.asked.lock().unwrap().push(enmesh::stdx::clock::now());
        let answer = self.answer.lock().unwrap()(&self.authority);
        Box::pin(async {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}

fn down() -> Answer {
    Box::new(|_| Some(Err(BadMaterial::Source("connection refused".to_owned()))))
}

fn good() -> Answer {
    Box::new(|ca| Some(ca.issue(&id("web"))))
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_down_at_the_start_leaves_us_unready_with_a_reason() {
    for (answer, why) in
        [(down(), "connection refused"), (Box::new(|_: &Authority| None) as Answer, "did not answer")]
    {
        let wall = Wall::at(NOW);
        let ca = authority(&wall);
        let issuer = Scripted::new(&ca, answer);
        let web = issuer.keep(&wall);
        tokio::time::sleep(MINUTE).await;
        let status = web.status();
        assert_eq!((status.epoch, status.alarm), (0, Alarm::Expired));
        assert!(status.fault.unwrap().contains(why), "{why}");
        let asked = issuer.asked.lock().unwrap().len();
        assert!((3..12).contains(&asked), "{asked} times in a minute");
        issuer.answer_by(good());
        tokio::time::timeout(Duration::from_secs(40), web.ready()).await.unwrap();
        assert_eq!(web.status().fault, None);
    }
}

#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "a test is no library: its tasks end with it")]
async fn an_issuer_that_is_down_at_renewal_leaves_the_old_one_until_it_ends() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let issuer = Scripted::new(&ca, good());
    let web = issuer.keep(&wall);
    web.ready().await;
    issuer.answer_by(down());
    let told = Arc::new(Mutex::new(Vec::new()));
    let (following, followed) = (web.clone(), Arc::clone(&told));
    let clock = Arc::clone(&wall);
    tokio::spawn(async move {
        let tell = |status: Status| {
            let mut told = followed.lock().unwrap();
            if told.last().is_none_or(|(_, last)| *last != status.alarm) {
                told.push((wall_seconds(&clock), status.alarm));
            }
        };
        following.follow(tell).await;
    });
    // Of its hour (and the minute that it is backdated) 30 %, 10 % and nothing are left.
    for (minute, alarm) in [
        (41, Alarm::Calm),
        (43, Alarm::Low),
        (54, Alarm::Critical),
        (61, Alarm::Expired),
        (90, Alarm::Expired),
    ] {
        while wall_minutes(&wall) < minute {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        assert_eq!((web.status().epoch, web.status().alarm), (1, alarm), "minute {minute}");
    }
    issuer.answer_by(good());
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!((web.status().epoch, web.status().alarm), (2, Alarm::Calm));
    let told = told.lock().unwrap().clone();
    let words: Vec<Alarm> = told.iter().map(|(_, alarm)| *alarm).collect();
    assert_eq!(words, [Alarm::Calm, Alarm::Low, Alarm::Critical, Alarm::Expired, Alarm::Calm]);
    // Whoever follows is told of the end at once, not at a next look.
    assert!((3600..=3602).contains(&told[3].0), "{told:?}");
}

fn wall_seconds(wall: &Wall) -> i64 {
    use rustls::time_provider::TimeProvider;
    wall.current_time().unwrap().as_secs() as i64 - NOW
}

fn wall_minutes(wall: &Wall) -> i64 {
    wall_seconds(wall) / 60
}

#[tokio::test(start_paused = true)]
async fn a_wrong_certificate_from_the_issuer_is_refused_and_the_old_one_stays() {
    let wall = Wall::at(NOW);
    let (ca, stranger) = (authority(&wall), authority(&wall));
    let slow = Wall::at(NOW - 7200);
    let late = authority(&slow);
    let mixed = move |ca: &Authority, stranger: &Authority| {
        let mut material = ca.issue(&id("web")).unwrap();
        material.key = stranger.issue(&id("web")).unwrap().key;
        material
    };
    let foreign_chain = stranger.clone();
    let wrong: [(&str, Answer); 5] = [
        ("wrong_identity", Box::new(|ca| Some(ca.issue(&id("admin"))))),
        ("key_mismatch", Box::new(move |ca| Some(Ok(mixed(ca, &stranger))))),
        ("expired", Box::new(move |_| Some(late.issue(&id("web"))))),
        (
            "unreadable",
            Box::new(|ca| {
                let material = ca.issue(&id("web")).unwrap();
                Some(Ok(Material { chain: Vec::new(), ..material }))
            }),
        ),
        (
            "unknown_issuer",
            Box::new(move |ca| {
                let material = ca.issue(&id("web")).unwrap();
                let foreign = foreign_chain.issue(&id("web")).unwrap();
                Some(Ok(Material { bundles: material.bundles, ..foreign }))
            }),
        ),
    ];
    for (label, answer) in wrong {
        let issuer = Scripted::new(&ca, good());
        let web = issuer.keep(&wall);
        let first = web.ready().await;
        issuer.answer_by(answer);
        tokio::time::sleep(44 * MINUTE).await;
        let status = web.status();
        assert_eq!((status.epoch, web.current().unwrap().chain()), (1, first.chain()), "{label}");
        assert!(status.refused > 0 && status.fault.is_some(), "{label}: {status:?}");
        let asked = issuer.asked.lock().unwrap().len();
        assert!(asked < 40, "{label}: asked {asked} times");
        issuer.answer_by(good());
        tokio::time::sleep(MINUTE).await;
        assert_eq!(web.status().epoch, 2, "{label}");
    }
}

#[tokio::test(start_paused = true)]
async fn clocks_that_step_an_hour_renew_early_and_leave_nobody_without_identity() {
    for step in [3600, -3600] {
        let wall = Wall::at(NOW);
        let ca = authority(&wall);
        let (web, api) = (workload(&ca, "web", &wall).await, workload(&ca, "api", &wall).await);
        tokio::time::sleep(10 * MINUTE).await;
        turn(&wall, step);
        // Forwards the old certificates have ended, and the next ones come within the half minute at which the wall
        // is looked at. Backwards they are not valid yet, until renewal: that is known by the alarm of the peers.
        tokio::time::sleep(if step > 0 { MINUTE } else { 36 * MINUTE }).await;
        assert_eq!((web.status().epoch, web.status().alarm), (2, Alarm::Calm), "{step}");
        assert!(connect(&web, &api, &is("api")).await.is_ok(), "{step}");
    }
}

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// Our material with another domain's anchors beside ours.
fn federated(material: Material, domain: &TrustDomain, partner: Option<&Authority>) -> Material {
    let local = material.bundles.local().clone();
    let mut bundles = TrustBundles::new(local.clone());
    for anchor in material.bundles.of(&local).unwrap().certificates() {
        bundles.add_to(anchor.clone(), &local).unwrap();
    }
    bundles.know(domain).unwrap();
    if let Some(partner) = partner {
        let theirs = partner.issue(&format!("spiffe://{domain}/any").parse().unwrap()).unwrap().bundles;
        bundles.add_to(theirs.of(domain).unwrap().certificates()[0].clone(), domain).unwrap();
    }
    Material { bundles, ..material }
}

#[tokio::test(start_paused = true)]
async fn an_emptied_bundle_revokes_its_domain_and_no_other() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let partner_settings =
        enmesh::tls::authority::AuthoritySettings { wall: Arc::clone(&wall) as _, ..Default::default() };
    let there = domain("partner.example");
    let partner = Authority::new(there.clone(), partner_settings).unwrap();
    let guest_id: enmesh::tls::identity::Identity = "spiffe://partner.example/guest".parse().unwrap();
    let guest = keep(
        Fixed::new(federated(partner.issue(&guest_id).unwrap(), ca.trust_domain(), Some(&ca))),
        settings(&wall),
    );
    let (feed, source) = Fed::new();
    let api = keep(source, settings(&wall));
    let ours = || ca.issue(&id("api")).unwrap();
    feed.send(federated(ours(), &there, Some(&partner))).await.unwrap();
    api.ready().await;
    guest.ready().await;
    let web = workload(&ca, "web", &wall).await;
    let (_, server) = connect(&guest, &api, &is("api")).await.unwrap();
    assert_eq!(server.peer().unwrap().identity, guest_id);
    assert_eq!(server.peer().unwrap().trust_domain, there);
    feed.send(federated(ours(), &there, None)).await.unwrap();
    api.changed(1).await;
    assert!(connect(&guest, &api, &is("api")).await.is_err());
    assert!(connect(&web, &api, &is("api")).await.is_ok());
    let rng = Rng::seeded(1);
    assert!(matches!(api.retired(&server, &rng).await, Retirement::PeerRefused(_)));
}

#[tokio::test(start_paused = true)]
async fn roots_can_be_withdrawn_while_our_own_leaf_is_still_under_them() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let (feed, source) = Fed::new();
    let api = keep(source, settings(&wall));
    let pem = ca.issue_pem(&id("api")).unwrap();
    let material = |roots: &str| {
        Material::from_pem(pem.chain.as_bytes(), pem.key.as_bytes(), roots.as_bytes(), None).unwrap()
    };
    feed.send(material(&pem.roots)).await.unwrap();
    api.ready().await;
    let web = workload(&ca, "web", &wall).await;
    ca.add_root().unwrap();
    ca.drop_old_roots();
    feed.send(material(&ca.roots_pem())).await.unwrap();
    api.changed(1).await;
    let frozen = keep(Fixed::new(material(&pem.roots)), settings(&wall));
    frozen.ready().await;
    assert!(connect(&frozen, &api, &is("api")).await.is_err(), "the old root is no longer believed");
    drop(web);
}
