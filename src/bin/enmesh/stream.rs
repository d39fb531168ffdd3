//! Floor 7: reads the live requests of running processes from their admin servers.

use crate::output::Failure;
use enmesh::admin::crowd::{Crowd, Heard};
use enmesh::admin::fleet::{self, Fleet, Peer};
use enmesh::tap::event::Event;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Where an admin server listens unless it is said: Linkerd's port.
pub(crate) const ADMIN: &str = "http://127.0.0.1:4191";

/// The live requests of processes.
pub(crate) struct Streams {
    crowd: Crowd,
    open: BTreeSet<String>,
    /// Who is not watched, and why.
    lost: BTreeMap<String, String>,
}

impl Streams {
    /// Asks all of `admins` for what matches `query`, until one of them answers.
    ///
    /// # Errors
    /// When the query is refused, or when nobody is reached.
    pub(crate) async fn open(admins: &[Peer], query: &Query) -> Result<Self, Failure> {
        let fleet = Fleet::new(admins.iter().cloned(), fleet::dns());
        let crowd = Crowd::new(fleet, query.as_str());
        let mut this = Self { crowd, open: BTreeSet::new(), lost: BTreeMap::new() };
        while this.open.is_empty() {
            match this.crowd.next().await {
                Some(heard) => drop(this.take(heard)?),
                None => break,
            }
        }
        this.lost.iter().for_each(|(addr, why)| eprintln!("{addr}: {why}"));
        Ok(this)
    }

    /// The next event; how many were lost before it, and who is not watched, is told. `None` when all was seen that was asked.
    pub(crate) async fn next(&mut self) -> Option<Result<Box<Event>, Failure>> {
        loop {
            let heard = self.crowd.next().await?;
            if let Some(taken) = self.take(heard).transpose() {
                return Some(taken);
            }
        }
    }

    fn take(&mut self, heard: Heard) -> Result<Option<Box<Event>>, Failure> {
        match heard {
            Heard::Line { addr, line } => return read(&addr, &line),
            Heard::Watching { addr, .. } => {
                if self.lost.remove(&addr).is_some() {
                    eprintln!("{addr}: is watched again");
                }
                self.open.insert(addr);
            }
            Heard::Lost { error, status: Some(400), .. } => return Err(Failure::Usage(error)),
            Heard::Lost { addr, error, .. } => {
                self.open.remove(&addr);
                self.lost.insert(addr.clone(), error.clone());
                if self.open.is_empty() && self.lost.len() >= self.crowd.sources() {
                    let lines: Vec<String> =
                        self.lost.iter().map(|(addr, why)| format!("{addr}: {why}")).collect();
                    let remedy = "start the process with an admin server, and name it by --admin";
                    return Err(Failure::Unreadable(format!("{}; {remedy}", lines.join("\n"))));
                }
                if !self.open.is_empty() {
                    eprintln!("{addr}: {error}");
                }
            }
            _ => {}
        }
        Ok(None)
    }
}

/// What a process says.
fn read(addr: &str, line: &[u8]) -> Result<Option<Box<Event>>, Failure> {
    let told = |what: String| Failure::Unreadable(format!("{addr}: {what}"));
    let value: Value =
        serde_json::from_slice(line).map_err(|error| told(format!("sends no JSON: {error}")))?;
    if let Some(lost) = value.get("dropped").and_then(Value::as_u64) {
        eprintln!("{lost} events were lost: they came faster than they were read");
        return Ok(None);
    }
    // Of those for whom it speaks.
    if let Some(lost) = value.get("lost") {
        let word = |key: &str| lost.get(key).and_then(Value::as_str).unwrap_or_default();
        eprintln!("{}: {}", word("addr"), word("error"));
        return Ok(None);
    }
    if value.get("watching").is_some() {
        return Ok(None);
    }
    let event = serde_json::from_value(value);
    event.map(|event| Some(Box::new(event))).map_err(|error| told(format!("sends no event: {error}")))
}

/// `key=value` pairs as a query.
#[derive(Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    /// One more pair.
    pub(crate) fn add(&mut self, key: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(key);
        self.0.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'*' => {
                    self.0.push(char::from(byte));
                }
                _ => self.0.push_str(&format!("%{byte:02X}")),
            }
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A runtime for one command.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::Unreadable(format!("no runtime: {error}")))
}
