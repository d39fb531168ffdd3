//! Floor 7: reads the live requests of running processes from their admin servers.

use crate::output::Failure;
use bytes::Bytes;
use enmesh::admin::fleet::Peer;
use enmesh::tap::event::Event;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Where an admin server listens unless it is said: Linkerd's port.
pub(crate) const ADMIN: &str = "http://127.0.0.1:4191";

/// How long an admin server may take to begin its answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The longest line that is read: an event with all its headers is far below.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Lines that wait to be shown.
const LINES_MAX: usize = 64;

/// One line of a stream.
#[derive(Debug)]
pub(crate) enum Line {
    /// Something happened to a request.
    Event(Box<Event>),
    /// So many events were lost, because they were not read fast enough.
    Dropped(u64),
}

/// The live requests of one process.
pub(crate) struct Stream {
    from: String,
    body: Incoming,
    text: Vec<u8>,
    _held: Held,
}

/// What keeps a connection open.
struct Held {
    _sender: http1::SendRequest<Empty<Bytes>>,
    _tasks: JoinSet<()>,
}

impl Stream {
    /// Asks the admin server `admin` for what matches `query`.
    pub(crate) async fn open(admin: &str, query: &str) -> Result<Self, Failure> {
        let peer: Peer = admin.parse().map_err(Failure::Usage)?;
        let from = peer.to_string();
        let told = |what: String| Failure::Unreadable(format!("{from}: {what}"));
        let opened = tokio::time::timeout(ANSWER_MAX, Self::ask(&from, query)).await;
        let (response, held) = match opened {
            Ok(opened) => opened.map_err(told)?,
            Err(_) => return Err(told(format!("did not answer within {ANSWER_MAX:?}"))),
        };
        let (head, body) = response.into_parts();
        if head.status == StatusCode::OK {
            return Ok(Self { from, body, text: Vec::new(), _held: held });
        }
        let why = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let why = String::from_utf8_lossy(&why).trim().to_owned();
        match head.status {
            StatusCode::BAD_REQUEST => Err(Failure::Usage(why)),
            StatusCode::NOT_FOUND => Err(told("shows no live requests; it is an older enmesh".to_owned())),
            status => Err(told(format!("{status}: {why}"))),
        }
    }

    async fn ask(from: &str, query: &str) -> Result<(http::Response<Incoming>, Held), String> {
        let authority = from.trim_start_matches("http://");
        let stream = TcpStream::connect(authority);
        let stream =
            stream.await.map_err(|error| format!("cannot be reached: {error}; name it by --admin"))?;
        let broken = |error: hyper::Error| format!("does not speak HTTP: {error}");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let request = Request::get(format!("/api/v1/tap?{query}"))
            .header(header::HOST, authority)
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, Held { _sender: sender, _tasks: tasks }))
    }

    /// The next line; `None` when the process ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                if let Some(line) = self.read(&line)? {
                    return Ok(Some(line));
                }
                continue;
            }
            if self.text.len() > LINE_BYTES_MAX {
                return Err(self.told("sends a line that is too long"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.told(&format!("broke off: {error}"))),
                Some(Ok(frame)) => self.text.extend(frame.into_data().unwrap_or_default()),
            }
        }
    }

    fn read(&self, line: &[u8]) -> Result<Option<Line>, Failure> {
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let value: Value =
            serde_json::from_slice(line).map_err(|error| self.told(&format!("sends no JSON: {error}")))?;
        if let Some(lost) = value.get("dropped").and_then(Value::as_u64) {
            return Ok(Some(Line::Dropped(lost)));
        }
        let event = serde_json::from_value(value);
        event
            .map(|event| Some(Line::Event(Box::new(event))))
            .map_err(|error| self.told(&format!("sends no event: {error}")))
    }

    fn told(&self, what: &str) -> Failure {
        Failure::Unreadable(format!("{}: {what}", self.from))
    }
}

/// The live requests of several processes.
pub(crate) struct Streams {
    lines: mpsc::Receiver<Result<Line, Failure>>,
    _reading: JoinSet<()>,
}

impl Streams {
    /// Asks all of `admins` for what matches `query`; who of several is not reached is told, and left out.
    ///
    /// # Errors
    /// When the query is refused, or when nobody is reached.
    pub(crate) async fn open(admins: &[String], query: &Query) -> Result<Self, Failure> {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        let (mut reading, mut failed) = (JoinSet::new(), None);
        for admin in admins {
            match Stream::open(admin, query.as_str()).await {
                Ok(stream) => drop(reading.spawn(pass_on(stream, sender.clone()))),
                Err(Failure::Unreadable(what)) if admins.len() > 1 => {
                    eprintln!("{what}");
                    failed = Some(Failure::Unreadable(what));
                }
                Err(failure) => return Err(failure),
            }
        }
        match failed.filter(|_| reading.is_empty()) {
            Some(failure) => Err(failure),
            None => Ok(Self { lines, _reading: reading }),
        }
    }

    /// The next event; how many were lost before it is told. `None` when all processes ended their streams.
    pub(crate) async fn next(&mut self) -> Option<Result<Box<Event>, Failure>> {
        loop {
            match self.lines.recv().await? {
                Ok(Line::Event(event)) => return Some(Ok(event)),
                Ok(Line::Dropped(lost)) => {
                    eprintln!("{lost} events were lost: they came faster than they were read");
                }
                Err(failure) => return Some(Err(failure)),
            }
        }
    }
}

/// Passes a process's lines on until it or the command ends.
async fn pass_on(mut stream: Stream, sender: mpsc::Sender<Result<Line, Failure>>) {
    while let Some(line) = stream.next().await.transpose() {
        let ends = line.is_err();
        if sender.send(line).await.is_err() || ends {
            return;
        }
    }
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
