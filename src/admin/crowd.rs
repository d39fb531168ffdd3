//! Floor 6: listens to the live requests of many processes at once. It spawns nothing: who reads it drives it.

use crate::admin::dial::{self, Answer, PROCESS, Prove};
use crate::admin::fleet::{ANSWER_MAX, AT_ONCE, Fleet, Found, PEERS_MAX, Question, late};
use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest line: an event with a hundred headers of a kibibyte each, all of it escaped, is shorter.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// How long a process that is listened to may say nothing: three times as long as it ever does.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// How long a process that cannot be listened to is left alone, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How long one is left alone that is listened to already, by another of its addresses.
const PAUSE_ELSEWHERE: Duration = Duration::from_secs(30);

/// How often hosts are looked up anew, for processes that have come or gone.
const FIND_EVERY: Duration = Duration::from_secs(10);

/// How many processes may be listened to at once by all who listen here together: as many as a fleet has at most.
#[derive(Debug, Clone)]
pub(crate) struct Seats(Arc<Semaphore>);

impl Default for Seats {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PEERS_MAX)))
    }
}

/// What is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heard {
    /// From now on a process is listened to; its id, if it says one.
    Watching {
        /// Where.
        addr: String,
        /// The id that it has in its other answers.
        id: Option<String>,
    },
    /// One line of JSON from it, without its line feed.
    Line {
        /// Where it was said.
        addr: Arc<str>,
        /// The line.
        line: Bytes,
    },
    /// It is not, or not any more; it is tried again unless it has told all that was asked.
    Lost {
        /// Where.
        addr: String,
        /// Why.
        error: String,
        /// The status that it answered with, if it answered.
        status: Option<u16>,
    },
}

impl Heard {
    /// As one line of JSON: what a process said as it said it, and what became of it as `{"watching": …}` or `{"lost": …}`.
    pub fn to_json(&self) -> Bytes {
        let told: Value = match self {
            Self::Line { line, .. } => return line.clone(),
            Self::Watching { addr, id } => json!({"watching": {"addr": addr, "id": id}}),
            Self::Lost { addr, error, .. } => json!({"lost": {"addr": addr, "error": error}}),
        };
        told.to_string().into()
    }
}

/// For whom and how it is listened.
#[derive(Clone, Default)]
pub(crate) struct Listener {
    /// Whose id is not to be listened to: our own.
    pub(crate) own: Option<String>,
    /// The identity that they are asked for, if it is not for us.
    pub(crate) observer: Option<String>,
    /// How to prove who we are to those who show live requests to nobody else.
    pub(crate) prove: Option<Prove>,
    pub(crate) seats: Seats,
    /// Whether a process that is asked alone speaks for its peers too.
    pub(crate) peers_too: bool,
}

/// What all who follow one process each share.
struct Shared {
    query: String,
    listener: Listener,
    /// Those that are listened to.
    ids: Mutex<BTreeSet<String>>,
    /// Where there may be a process.
    wanted: Mutex<BTreeSet<SocketAddr>>,
    /// Places for being asked.
    asking: Semaphore,
}

/// The live requests of many processes.
pub struct Crowd {
    fleet: Fleet,
    shared: Arc<Shared>,
    followed: SelectAll<BoxStream<'static, Heard>>,
    finding: BoxFuture<'static, Found>,
    has_found: bool,
    missed: BTreeMap<String, String>,
    told: VecDeque<Heard>,
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl Crowd {
    /// Listens to all processes of `fleet` for what `query` asks for ([`Filter::parse`](crate::tap::filter::Filter::parse)); one
    /// that is asked alone speaks for its peers too. Nothing is asked before [`next`](Self::next).
    pub fn new(fleet: Fleet, query: &str) -> Self {
        Self::of(fleet, query, Listener { peers_too: true, ..Listener::default() })
    }

    pub(crate) fn of(fleet: Fleet, query: &str, listener: Listener) -> Self {
        let ids = Mutex::new(listener.own.iter().cloned().collect());
        let (wanted, asking) = (Mutex::default(), Semaphore::new(AT_ONCE));
        let shared = Arc::new(Shared { query: query.to_owned(), listener, ids, wanted, asking });
        let finding = find(fleet.clone(), Duration::ZERO);
        let (followed, missed, told) = (SelectAll::new(), BTreeMap::new(), VecDeque::new());
        Self { fleet, shared, followed, finding, has_found: false, missed, told }
    }

    /// What is heard next; `None` when all have told what was asked. Cancel safe.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Some(told);
            }
            if self.has_found && self.followed.is_empty() && self.missed.is_empty() {
                return None;
            }
            tokio::select! {
                found = &mut self.finding => self.found(found),
                Some(heard) = self.followed.next(), if !self.followed.is_empty() => return Some(heard),
            }
        }
    }

    /// What was heard already.
    pub fn ready(&mut self) -> Option<Heard> {
        tokio::task::unconstrained(self.next()).now_or_never().flatten()
    }

    /// How many processes there may be: those that have not told all that was asked, and the hosts that stand for none now.
    pub fn sources(&self) -> usize {
        self.followed.len() + self.missed.len()
    }

    fn found(&mut self, found: Found) {
        self.finding = find(self.fleet.clone(), FIND_EVERY);
        self.has_found = true;
        let addrs: BTreeSet<SocketAddr> = found.addrs.into_iter().collect();
        let is_alone = addrs.len() == 1;
        let known = std::mem::replace(&mut *self.shared.wanted(), addrs.clone());
        let local = !(self.shared.listener.peers_too && is_alone);
        for addr in addrs.difference(&known) {
            self.followed.push(Follower::new(*addr, local, Arc::clone(&self.shared)).heard());
        }
        let missed: BTreeMap<String, String> = found.missed.into_iter().collect();
        let new = missed.iter().filter(|(addr, why)| self.missed.get(*addr) != Some(*why));
        self.told.extend(new.map(|(addr, why)| Heard::Lost {
            addr: addr.clone(),
            error: why.clone(),
            status: None,
        }));
        self.missed = missed;
    }
}

fn find(fleet: Fleet, after: Duration) -> BoxFuture<'static, Found> {
    Box::pin(async move {
        tokio::time::sleep(after).await;
        fleet.find_all().await
    })
}

impl Shared {
    fn wanted(&self) -> std::sync::MutexGuard<'_, BTreeSet<SocketAddr>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to listen; `None` when it is another process than was asked for, or one that is listened to already.
    async fn open(self: &Arc<Self>, addr: SocketAddr, local: bool) -> Result<Option<Lines>, Refused> {
        let seat = Arc::clone(&self.listener.seats.0).try_acquire_owned().map_err(|_| Refused {
            status: None,
            error: format!("{PEERS_MAX} processes are listened to already; close another page"),
        })?;
        // The semaphore is never closed.
        let _turn = self.asking.acquire().await;
        let answer = tokio::time::timeout(ANSWER_MAX, self.ask(addr, local)).await;
        let answer = answer.unwrap_or_else(|_| Err(Refused { status: None, error: late() }))?;
        if answer.head.status() == StatusCode::MISDIRECTED_REQUEST {
            return Ok(None);
        }
        let id = answer.head.headers().get(PROCESS).and_then(|id| id.to_str().ok()).map(str::to_owned);
        if let Some(id) = &id
            && !self.ids().insert(id.clone())
        {
            return Ok(None);
        }
        let held = Held { shared: Arc::clone(self), id };
        Ok(Some(Lines { answer, text: BytesMut::new(), scanned: 0, held, _seat: seat }))
    }

    async fn ask(&self, addr: SocketAddr, local: bool) -> Result<Answer, Refused> {
        let listener = &self.listener;
        let local = if local { "local=1&" } else { "" };
        let question = Question::get(format!("/api/v1/tap?{local}{}", self.query));
        let ask = |prove| dial::ask(addr, &question, listener.observer.as_deref(), prove);
        let unsaid = |error| Refused { status: None, error };
        let mut answer = ask(None).await.map_err(unsaid)?;
        // Some show live requests to who proves who they are, and to nobody else from another machine.
        if answer.head.status() == StatusCode::FORBIDDEN
            && let Some(prove) = &listener.prove
        {
            answer = ask(Some(prove)).await.map_err(unsaid)?;
        }
        match answer.head.status() {
            StatusCode::OK | StatusCode::MISDIRECTED_REQUEST => Ok(answer),
            status => {
                let why = answer.whole(REFUSAL_BYTES_MAX).await.unwrap_or_default();
                let why = String::from_utf8_lossy(&why).lines().next().unwrap_or_default().to_owned();
                let error = match status {
                    StatusCode::NOT_FOUND => "shows no live requests; it is an older enmesh".to_owned(),
                    StatusCode::BAD_REQUEST => why,
                    status => format!("answered {}: {why}", status.as_u16()),
                };
                Err(Refused { status: Some(status.as_u16()), error })
            }
        }
    }
}

/// The most bytes of a refusal: a sentence.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// Why a process is not listened to.
struct Refused {
    status: Option<u16>,
    error: String,
}

/// Gives its id back when it is listened to no more.
struct Held {
    shared: Arc<Shared>,
    id: Option<String>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            self.shared.ids().remove(id);
        }
    }
}

/// The lines of one process.
struct Lines {
    answer: Answer,
    text: BytesMut,
    /// How much of the text has no line feed.
    scanned: usize,
    held: Held,
    _seat: OwnedSemaphorePermit,
}

impl Lines {
    /// The next line; `None` when it has told all that was asked.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(end) = self.text[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(self.scanned + end + 1).freeze();
                self.scanned = 0;
                let line = line.slice(..line.trim_ascii_end().len());
                match line.first() {
                    None => continue,
                    // JSON escapes it; as it is it would end a line of a server-sent event.
                    Some(b'{') if !line.contains(&b'\r') => return Ok(Some(line)),
                    Some(_) => return Err("sends no JSON".to_owned()),
                }
            }
            self.scanned = self.text.len();
            if self.scanned > LINE_BYTES_MAX {
                return Err("sends a line that is too long".to_owned());
            }
            match tokio::time::timeout(SILENCE_MAX, self.answer.more()).await {
                Err(_) => return Err(format!("said nothing for {} s", SILENCE_MAX.as_secs())),
                Ok(Ok(Some(more))) => self.text.extend_from_slice(&more),
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(why)) => return Err(why),
            }
        }
    }
}

/// Listens to one process, again and again while it may be there.
struct Follower {
    addr: SocketAddr,
    name: Arc<str>,
    local: bool,
    shared: Arc<Shared>,
    open: Option<Lines>,
    pause: Duration,
    /// Why it was lost last.
    why: Option<String>,
}

impl Follower {
    fn new(addr: SocketAddr, local: bool, shared: Arc<Shared>) -> Self {
        let name = format!("http://{addr}").into();
        Self { addr, name, local, shared, open: None, pause: Duration::ZERO, why: None }
    }

    fn heard(self) -> BoxStream<'static, Heard> {
        stream::unfold(self, |mut this| async move { Some((this.next().await?, this)) }).boxed()
    }

    async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(lines) = &mut self.open {
                match lines.next().await {
                    Ok(Some(line)) => return Some(Heard::Line { addr: Arc::clone(&self.name), line }),
                    Ok(None) => return None,
                    Err(error) => {
                        self.open = None;
                        self.pause = PAUSE.0;
                        return Some(self.lost(Refused { status: None, error }));
                    }
                }
            }
            tokio::time::sleep(self.pause).await;
            if !self.shared.wanted().contains(&self.addr) {
                return None;
            }
            match self.shared.open(self.addr, self.local).await {
                Ok(Some(lines)) => {
                    let id = lines.held.id.clone();
                    (self.open, self.why) = (Some(lines), None);
                    return Some(Heard::Watching { addr: self.name.to_string(), id });
                }
                Ok(None) => self.pause = PAUSE_ELSEWHERE,
                Err(refused) => {
                    self.pause = (self.pause * 2).clamp(PAUSE.0, PAUSE.1);
                    // It is told once.
                    if self.why.as_ref() != Some(&refused.error) {
                        return Some(self.lost(refused));
                    }
                }
            }
        }
    }

    fn lost(&mut self, refused: Refused) -> Heard {
        self.why = Some(refused.error.clone());
        Heard::Lost { addr: self.name.to_string(), error: refused.error, status: refused.status }
    }
}
