//! Endpoints from DNS: a scripted name server on a paused clock, and a real one on loopback (reliability.md F-28,
//! F-29; security-cases `dns/*`, `cp/endpoint-ssrf`, `cp/weights`).
#![cfg(feature = "dns")]

use enmesh::control::answers::{RECORDS_MAX, Reply};
use enmesh::control::dns::{Dns, Family, Resolve, Srv};
use enmesh::control::hickory::Hickory;
use enmesh::control::screen::Screen;
use enmesh::control::source::{Snapshot, Source, Updates};
use enmesh::discover::endpoint::EndpointSet;
use enmesh::stdx::clock::{self, Duration, Instant};
use enmesh::stdx::rng::Rng;
use futures::StreamExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::net::UdpSocket;

/// A name server that says what it is told to, and remembers when it was asked what.
#[derive(Clone, Default)]
struct Server {
    addresses: Arc<Mutex<BTreeMap<String, Reply<IpAddr>>>>,
    services: Arc<Mutex<BTreeMap<String, Reply<Srv>>>>,
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Server {
    fn says(&self, question: &str, reply: Reply<IpAddr>) {
        self.addresses.lock().unwrap().insert(question.to_owned(), reply);
    }

    fn lists(&self, name: &str, records: &[(u16, &str, u16, u16)]) {
        let records = records.iter().map(|(priority, target, port, weight)| Srv {
            priority: *priority,
            target: (*target).into(),
            port: *port,
            weight: *weight,
        });
        let reply = Reply::Records { records: records.collect(), ttl: secs(30) };
        self.services.lock().unwrap().insert(name.to_owned(), reply);
    }

    fn ask(&self, question: String) -> String {
        self.asked.lock().unwrap().push((clock::now(), question.clone()));
        question
    }

    fn asked(&self) -> Vec<(Instant, String)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Resolve for Server {
    fn addresses(&self, host: Arc<str>, family: Family) -> BoxFuture<'static, Reply<IpAddr>> {
        let kind = if family == Family::V4 { "A" } else { "AAAA" };
        let question = self.ask(format!("{kind} {host}"));
        let reply = self.addresses.lock().unwrap().get(&question).cloned();
        Box::pin(async move {
            match reply {
                Some(Reply::Failed(why)) if why == "silence" => std::future::pending().await,
                Some(reply) => reply,
                None => Reply::Nothing { ttl: Some(secs(600)) },
            }
        })
    }

    fn services(&self, name: Arc<str>) -> BoxFuture<'static, Reply<Srv>> {
        let question = self.ask(format!("SRV {name}"));
        let reply = self.services.lock().unwrap().get(&*name).cloned();
        Box::pin(async move {
            let _ = question;
            reply.unwrap_or(Reply::Nothing { ttl: Some(secs(600)) })
        })
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn records(ips: &[&str], ttl: u64) -> Reply<IpAddr> {
    Reply::Records { records: ips.iter().map(|ip| ip.parse().unwrap()).collect(), ttl: secs(ttl) }
}

fn failed(why: &str) -> Reply<IpAddr> {
    Reply::Failed(why.to_owned())
}

fn dns(server: &Server) -> Dns {
    Dns::new(server.clone()).chanced(Rng::seeded(1))
}

/// `address/weight in thousandths/priority` of each.
fn shown(snapshot: &Snapshot<EndpointSet>) -> Option<Vec<String>> {
    let show = |set: &EndpointSet| {
        set.iter().map(|e| format!("{}/{}/{}", e.addr, e.weight_milli, e.priority)).collect()
    };
    snapshot.value.as_ref().map(show)
}

fn addresses(snapshot: &Snapshot<EndpointSet>) -> Option<Vec<String>> {
    snapshot.value.as_ref().map(|set| set.iter().map(|e| e.addr.to_string()).collect())
}

/// The next snapshot's addresses and number of faults, and how long it took to come.
async fn next(updates: &mut Updates<EndpointSet>) -> (Option<Vec<String>>, usize, Duration) {
    let since = clock::now();
    let snapshot = updates.next().await.unwrap();
    (addresses(&snapshot), snapshot.faults.len(), clock::now() - since)
}

fn some(addresses: &[&str]) -> Option<Vec<String>> {
    Some(addresses.iter().map(|&a| a.to_owned()).collect())
}

#[tokio::test(start_paused = true)]
async fn both_families_are_asked_again_when_their_time_is_over() {
    let server = Server::default();
    server.says("A web.test", records(&["10.0.0.2", "10.0.0.1"], 20));
    server.says("AAAA web.test", records(&["fd00::1"], 60));
    let mut updates = dns(&server).watch(&"web.test:8080".parse().unwrap());
    let all = some(&["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"]);
    assert_eq!(next(&mut updates).await, (all, 0, secs(0)));
    server.says("A web.test", records(&["10.0.0.1"], 20));
    assert_eq!(next(&mut updates).await, (some(&["10.0.0.1:8080", "[fd00::1]:8080"]), 0, secs(20)));
    server.says("AAAA web.test", records(&["fd00::2"], 60));
    assert_eq!(next(&mut updates).await, (some(&["10.0.0.1:8080", "[fd00::2]:8080"]), 0, secs(40)));
    assert_eq!(server.asked().len(), 2 + 3 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_flapping_name_server_costs_no_endpoint() {
    let server = Server::default();
    let good = some(&["10.0.0.1:80"]);
    server.says("A web", records(&["10.0.0.1"], 0));
    let dns = dns(&server);
    let mut updates = dns.watch(&"web".parse().unwrap());
    assert_eq!(next(&mut updates).await, (good.clone(), 0, secs(0)));
    server.says("A web", failed("server failure"));
    assert_eq!(next(&mut updates).await, (good.clone(), 1, secs(5)));
    server.says("A web", failed("silence"));
    assert_eq!(next(&mut updates).await, (good.clone(), 1, secs(15)), "another fault: no answer");
    server.says("A web", records(&["10.0.0.2"], 0));
    let (seen, faults, _) = next(&mut updates).await;
    assert_eq!((seen, faults), (some(&["10.0.0.2:80"]), 0));
    server.says("A web", Reply::Nothing { ttl: Some(secs(0)) });
    assert_eq!(next(&mut updates).await, (some(&["10.0.0.2:80"]), 1, secs(5)), "held");
    assert_eq!(next(&mut updates).await, (some(&[]), 0, secs(30)), "believed in the end");
    server.says("A web", records(&["10.0.0.3"], 0));
    assert_eq!(next(&mut updates).await, (some(&["10.0.0.3:80"]), 0, secs(5)));
    let asked = server.asked();
    let of_web: Vec<Instant> = asked.iter().filter(|(_, q)| q == "A web").map(|(at, _)| *at).collect();
    assert!(of_web.windows(2).all(|pair| pair[1] - pair[0] >= secs(5)), "at most one question in 5 s");
    assert_eq!(dns.rejected(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_is_down_at_first_is_no_empty_service() {
    let server = Server::default();
    server.says("A web", failed("refused"));
    let mut updates = dns(&server).watch(&"web".parse().unwrap());
    assert_eq!(next(&mut updates).await, (None, 1, secs(0)));
    server.says("A web", records(&["10.0.0.1"], 30));
    let (seen, faults, wait) = next(&mut updates).await;
    assert_eq!((seen, faults), (some(&["10.0.0.1:80"]), 0));
    assert!(wait <= secs(1), "{wait:?}");
    let mut updates = dns(&server).watch(&"nobody".parse().unwrap());
    assert_eq!(next(&mut updates).await, (some(&[]), 0, secs(0)), "it does not exist: nobody is there");
}

#[tokio::test(start_paused = true)]
async fn an_order_that_changes_is_no_news_and_a_thousand_records_are_cut() {
    let server = Server::default();
    let many: Vec<String> = (0..1000).map(|n| format!("10.0.{}.{}", n / 250, n % 250 + 1)).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    server.says("A web", records(&many, 10));
    let mut updates = dns(&server).watch(&"web".parse().unwrap());
    let (seen, faults, _) = next(&mut updates).await;
    assert_eq!((seen.unwrap().len(), faults), (RECORDS_MAX, 1));
    many.reverse();
    server.says("A web", records(&many, 10));
    tokio::select! {
        snapshot = updates.next() => panic!("news: {snapshot:?}"),
        () = tokio::time::sleep(secs(60)) => {}
    }
    assert!(server.asked().len() >= 6);
}

#[tokio::test(start_paused = true)]
async fn lies_about_time_and_place_are_bounded() {
    let server = Server::default();
    server.says("A web", records(&["127.0.0.1", "10.0.0.1", "0.0.0.0", "224.0.0.1"], u64::from(u32::MAX)));
    let dns = dns(&server).screened(Screen::only(|ip| !ip.is_loopback()));
    let mut updates = dns.watch(&"web".parse().unwrap());
    assert_eq!(next(&mut updates).await, (some(&["10.0.0.1:80"]), 3, secs(0)));
    assert_eq!(dns.rejected(), 3, "each is counted once");
    server.says("A web", records(&["10.0.0.2"], 0));
    assert_eq!(next(&mut updates).await, (some(&["10.0.0.2:80"]), 0, secs(3600)));
    server.asked();
    tokio::select! {
        _ = updates.next() => panic!("news"),
        () = tokio::time::sleep(secs(3600)) => {}
    }
    assert!(server.asked().len() <= 3600 / 5 + 10, "a TTL of 0 is no flood");
}

#[tokio::test(start_paused = true)]
async fn srv_records_give_ports_priorities_and_weights() {
    let server = Server::default();
    let name = "_grpc._tcp.web";
    server.lists(name, &[(20, "c.", 3, 0), (10, "a.", 1, 3), (10, "b.", 2, 0)]);
    server.says("A a.", records(&["10.0.0.1", "10.0.0.11"], 60));
    server.says("A b.", records(&["10.0.0.2"], 60));
    server.says("AAAA c.", records(&["fd00::3"], 60));
    let mut updates = dns(&server).watch(&name.parse().unwrap());
    let expected = ["10.0.0.1:1/1500/0", "10.0.0.2:2/1/0", "10.0.0.11:1/1500/0", "[fd00::3]:3/1000/1"];
    assert_eq!(shown(&updates.next().await.unwrap()), some(&expected));
    server.lists(name, &[(5, "c.", 3, u16::MAX), (5, "gone.", 4, 1)]);
    assert_eq!(shown(&updates.next().await.unwrap()), some(&["[fd00::3]:3/65535000/0"]));
    server.asked();
    server.lists(name, &[(0, ".", 0, 0)]);
    assert_eq!(shown(&updates.next().await.unwrap()), some(&[]), "it says that nobody serves");
    assert!(server.asked().iter().all(|(_, question)| !question.contains("A .")));
    server.lists(name, &[(0, "a.", 0, 0)]);
    let snapshot = updates.next().await.unwrap();
    assert_eq!((shown(&snapshot), snapshot.faults.len()), (some(&[]), 2), "port 0 is refused");
}

#[tokio::test(start_paused = true)]
async fn an_address_stands_for_itself() {
    let server = Server::default();
    let seen = |service: &str| {
        let updates = dns(&server).watch(&service.parse().unwrap());
        async move { updates.map(|snapshot| addresses(&snapshot)).collect::<Vec<_>>().await }
    };
    assert_eq!(seen("127.0.0.1:8080").await, [some(&["127.0.0.1:8080"])]);
    assert_eq!(seen("[::1]:8080").await, [some(&["[::1]:8080"])]);
    assert!(server.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_silent_hosts_hold_a_service_up_for_one_round_only() {
    let server = Server::default();
    let hosts: Vec<String> = (0..300).map(|n| format!("h{n}.")).collect();
    let list: Vec<(u16, &str, u16, u16)> = hosts.iter().map(|host| (0, host.as_str(), 80, 1)).collect();
    server.lists("_http._tcp.web", &list);
    for host in &hosts[1..] {
        server.says(&format!("A {host}"), failed("silence"));
    }
    server.says("A h0.", records(&["10.0.0.1"], 60));
    let mut updates = dns(&server).watch(&"_http._tcp.web".parse().unwrap());
    let (seen, _, wait) = next(&mut updates).await;
    assert_eq!((seen, wait), (some(&["10.0.0.1:80"]), secs(10)));
}

/// Answers A questions for `web.test` with `ips`, NXDOMAIN for `gone.test`, SERVFAIL for `bad.test`, SRV questions
/// for `_grpc._tcp.web.test` with web.test port 7, and everything else with no record.
async fn answer(socket: UdpSocket, ips: Arc<Mutex<Vec<Ipv4Addr>>>) {
    let mut buffer = [0; 512];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let question = &buffer[12..length];
        let mut at = 0;
        let mut name = Vec::new();
        while question[at] > 0 {
            let end = at + 1 + usize::from(question[at]);
            name.push(String::from_utf8_lossy(&question[at + 1..end]).to_ascii_lowercase());
            at = end;
        }
        let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
        let record = |data: &[u8]| {
            let mut record = vec![0xc0, 12];
            record.extend(kind.to_be_bytes());
            record.extend([0, 1, 0, 0, 0, 60]);
            record.extend((data.len() as u16).to_be_bytes());
            record.extend(data);
            record
        };
        let (code, records): (u8, Vec<Vec<u8>>) = match (name.join(".").as_str(), kind) {
            ("web.test", 1) => (0, ips.lock().unwrap().iter().map(|ip| record(&ip.octets())).collect()),
            ("_grpc._tcp.web.test", 33) => (0, vec![record(b"\0\x01\0\x02\0\x07\x03web\x04test\0")]),
            ("gone.test", _) => (3, Vec::new()),
            ("bad.test", _) => (2, Vec::new()),
            _ => (0, Vec::new()),
        };
        let mut reply = buffer[..2].to_vec();
        reply.extend([0x84, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        reply.extend(&question[..at + 5]);
        reply.extend(records.concat());
        let _ = socket.send_to(&reply, peer).await;
    }
}

#[tokio::test]
async fn a_real_name_server_is_asked_over_udp() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server: SocketAddr = socket.local_addr().unwrap();
    let ips = Arc::new(Mutex::new(vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(answer(socket, Arc::clone(&ips)));
    let dns = Dns::new(Hickory::servers([server]).unwrap());
    let first = |service: &str| {
        let mut updates = dns.watch(&service.parse().unwrap());
        async move { updates.next().await.unwrap() }
    };
    assert_eq!(addresses(&first("web.test:8080").await), some(&["10.0.0.1:8080", "10.0.0.2:8080"]));
    assert_eq!(addresses(&first("_grpc._tcp.web.test").await), some(&["10.0.0.1:7", "10.0.0.2:7"]));
    let gone = first("gone.test").await;
    assert_eq!((addresses(&gone), gone.faults.len()), (some(&[]), 0));
    let bad = first("bad.test").await;
    assert_eq!((addresses(&bad), bad.faults.len()), (None, 2), "{:?}", bad.faults);
    ips.lock().unwrap().pop();
    let again = first("web.test").await;
    assert_eq!(addresses(&again), some(&["10.0.0.1:80"]), "nothing is cached below");
}
