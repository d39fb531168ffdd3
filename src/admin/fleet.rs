//! Floor 6: asks the admin servers of other processes, so that one page or one command shows them all.

use crate::admin::dial;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use http::{StatusCode, Uri};
use serde_json::Value;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// How long a peer may take to answer, from looking up its name to the last byte: less than the 5 s after which a page of
/// our own gives up.
pub const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The most bytes of an answer: 16 MiB, some ten thousand rows with their histograms.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The most peers, after names were looked up; those beyond are not asked, and one of the answers says so.
pub const PEERS_MAX: usize = 256;

/// How many are asked at a time.
pub(crate) const AT_ONCE: usize = 16;

/// The address of an admin server: `http://host:port`, where a host may stand for many processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    host: String,
    port: u16,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "http://[{}]:{}", self.host, self.port),
            false => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Peer {
    type Err = String;

    /// Reads `http://host:port`, `host:port` or `http://host` (port 4191, Linkerd's).
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |what: &str| format!("`{text}` is no admin server: {what}; write http://host:port");
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(bad("admin servers speak http")),
            Some(_) => return Err(bad("its scheme is not http")),
            None => text,
        };
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| bad("it is no URL"))?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_port_said =
            uri.authority().is_some_and(|said| !said.as_str().ends_with(uri.host().unwrap_or_default()));
        if is_port_said && uri.port_u16().is_none() && !rest.contains('@') {
            return Err(bad("its port is no number from 0 to 65535"));
        }
        let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !rest.contains('@');
        match (host.is_empty(), is_bare) {
            (true, _) => Err(bad("it has no host")),
            (false, false) => Err(bad("nothing may follow the port")),
            (false, true) => Ok(Self { host: host.to_owned(), port: uri.port_u16().unwrap_or(4191) }),
        }
    }
}

/// Finds the addresses that a host stands for, when it is no address itself.
pub type Lookup =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Looks hosts up in DNS.
pub fn dns() -> Lookup {
    Arc::new(|host, port| {
        Box::pin(async move { tokio::net::lookup_host((host.as_str(), port)).await.map(Iterator::collect) })
    })
}

/// The admin servers that are asked together.
#[derive(Clone)]
pub struct Fleet {
    peers: Arc<[Peer]>,
    lookup: Lookup,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("peers", &self.peers).finish_non_exhaustive()
    }
}

/// What one admin server said, or why it said nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Where it was asked.
    pub addr: String,
    /// Its answer.
    pub answer: Result<Value, String>,
}

/// What a fleet's hosts stand for at one time.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) addrs: Vec<SocketAddr>,
    /// The hosts that stand for nothing, and why.
    pub(crate) missed: Vec<(String, String)>,
}

/// A question to an admin server.
#[derive(Debug, Clone)]
pub struct Question {
    /// `/api/v1/stat?window=1m`.
    pub path: String,
    /// The body of a `POST`; `None`: a `GET`.
    pub body: Option<Value>,
}

impl Question {
    /// A `GET` of a path with its query.
    pub fn get(path: impl Into<String>) -> Self {
        Self { path: path.into(), body: None }
    }
}

impl Fleet {
    /// These servers; a host that is a name is looked up at each question, and stands for all addresses that are found.
    pub fn new(peers: impl IntoIterator<Item = Peer>, lookup: Lookup) -> Self {
        Self { peers: peers.into_iter().collect(), lookup }
    }

    /// How many were named.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is nobody to ask.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Asks all of them. The answers come in the order of the peers; each takes at most [`ANSWER_MAX`].
    pub async fn ask(&self, question: &Question) -> Vec<Said> {
        let Found { addrs, mut missed } = self.find_all().await;
        let asked = stream::iter(addrs).map(|addr| async move {
            let answer = tokio::time::timeout(ANSWER_MAX, exchange(addr, question)).await;
            Said { addr: format!("http://{addr}"), answer: answer.unwrap_or_else(|_| Err(late())) }
        });
        let mut answers: Vec<Said> = asked.buffered(AT_ONCE).collect().await;
        answers.extend(missed.drain(..).map(|(addr, why)| Said { addr, answer: Err(why) }));
        answers
    }

    /// The addresses that the hosts stand for now, each once, at most [`PEERS_MAX`].
    pub(crate) async fn find_all(&self) -> Found {
        let found = self.peers.iter().map(|peer| self.find(peer));
        let (mut addrs, mut missed) = (Vec::new(), Vec::new());
        for (peer, found) in self.peers.iter().zip(futures::future::join_all(found).await) {
            match found {
                Ok(found) => {
                    let new = found.into_iter().filter(|addr| !addrs.contains(addr)).collect::<Vec<_>>();
                    addrs.extend(new);
                }
                Err(why) => missed.push((peer.to_string(), why)),
            }
        }
        if addrs.len() > PEERS_MAX {
            let why = format!("{} more are not asked: at most {PEERS_MAX} are", addrs.len() - PEERS_MAX);
            missed.push(("others".into(), why));
            addrs.truncate(PEERS_MAX);
        }
        Found { addrs, missed }
    }

    async fn find(&self, peer: &Peer) -> Result<Vec<SocketAddr>, String> {
        if let Ok(ip) = peer.host.parse() {
            return Ok(vec![SocketAddr::new(ip, peer.port)]);
        }
        let found = (self.lookup)(peer.host.clone(), peer.port);
        match tokio::time::timeout(ANSWER_MAX, found).await {
            Ok(Ok(addrs)) if addrs.is_empty() => Err(format!("`{}` has no address", peer.host)),
            // `localhost` is one process, whatever families it has.
            Ok(Ok(mut addrs)) if peer.host == "localhost" => {
                addrs.sort_by_key(SocketAddr::is_ipv6);
                addrs.truncate(1);
                Ok(addrs)
            }
            Ok(Ok(addrs)) => Ok(addrs),
            Ok(Err(error)) => Err(format!("`{}` cannot be looked up: {error}", peer.host)),
            Err(_) => Err(format!("`{}` was not looked up in time", peer.host)),
        }
    }
}

/// One question on one connection.
async fn exchange(addr: SocketAddr, question: &Question) -> Result<Value, String> {
    let mut answer = dial::ask(addr, question, None, None).await?;
    let body = answer.whole(ANSWER_BYTES_MAX).await?;
    read(answer.head.status(), &body)
}

/// What is said of a peer that says nothing.
pub(crate) fn late() -> String {
    format!("did not answer within {} s", ANSWER_MAX.as_secs())
}

fn read(status: StatusCode, body: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(body);
    if status == StatusCode::NOT_FOUND {
        return Err("has no such page: it is no enmesh, or an older one".to_owned());
    }
    if !status.is_success() {
        let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
        return Err(format!("answered {}: {line}", status.as_u16()));
    }
    serde_json::from_slice(body).map_err(|error| format!("answered with no JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_faults_told() {
        let check = |text: &str, expected: Result<&str, &str>| match (text.parse::<Peer>(), expected) {
            (Ok(peer), Ok(expected)) => assert_eq!(peer.to_string(), expected),
            (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
            (read, _) => panic!("{text}: {read:?}"),
        };
        check("http://127.0.0.1:4191", Ok("http://127.0.0.1:4191"));
        check("http://web.ns/", Ok("http://web.ns:4191"));
        check("localhost:1", Ok("http://localhost:1"));
        check("http://[::1]:9", Ok("http://[::1]:9"));
        check("https://web:1", Err("speak http"));
        check("ftp://web", Err("scheme"));
        check("http://web:1/api", Err("follow the port"));
        check("http://user@web:1", Err("follow the port"));
        check("http://web:99999", Err("no number"));
        check("http://web:", Err("no number"));
        check("", Err("is no admin server"));
    }
}
