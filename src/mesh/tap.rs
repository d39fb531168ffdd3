//! Floor 6: live requests over HTTP: `GET /api/v1/tap`, as JSON lines or server-sent events, of this process and its peers.

use crate::admin::asked::Asked;
use crate::admin::crowd::{Crowd, Heard, Listener};
use crate::admin::dial::{PROCESS, Prove};
use crate::admin::fleet::Fleet;
use crate::admin::guard::Access;
use crate::admin::server::{Admin, AdminBody, response, text};
use crate::tap::filter::Filter;
use crate::tap::hub::{Item, OBSERVERS_MAX, Tap, TapHub};
use bytes::Bytes;
use futures::stream::{self, Stream};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How often a stream says that it is there: before proxies give up on it, most of which wait 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The most bytes of one chunk: what is ready is sent together, so that a busy stream does not cost a write for each event.
const CHUNK_BYTES_MAX: usize = 32 << 10;

/// What live requests are shown of.
#[derive(Clone)]
pub(crate) struct Taps {
    hub: Arc<TapHub>,
    fleet: Fleet,
    /// How its processes are listened to.
    listener: Listener,
    /// For who watches other processes: as many as may watch this one.
    places: Arc<Semaphore>,
}

impl Taps {
    /// Of this process and those of `fleet`, to whom `prove` says who asks.
    pub(crate) fn new(hub: Arc<TapHub>, fleet: Fleet, prove: Option<Prove>) -> Self {
        let listener = Listener { prove, ..Listener::default() };
        Self { hub, fleet, listener, places: Arc::new(Semaphore::new(OBSERVERS_MAX)) }
    }
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    ServerSent,
}

impl Form {
    fn content_type(self) -> &'static str {
        match self {
            Self::Lines => "application/x-ndjson",
            Self::ServerSent => "text/event-stream",
        }
    }

    fn put(self, line: &[u8], into: &mut Vec<u8>) {
        let (before, after) = match self {
            Self::Lines => ("", "\n"),
            Self::ServerSent => ("data: ", "\n\n"),
        };
        into.extend(before.as_bytes());
        into.extend(line);
        into.extend(after.as_bytes());
    }

    /// What says that the stream is there, and nothing else.
    fn idle(self) -> &'static str {
        match self {
            Self::Lines => "\n",
            Self::ServerSent => ": still observing\n\n",
        }
    }
}

/// Adds the page to an admin server.
pub(crate) fn page(admin: Admin, taps: Taps) -> Admin {
    admin.route(Method::GET, "/api/v1/tap", Access::Private, move |asked| {
        Box::pin(ready(answer(&taps, &asked)))
    })
}

/// Streams live requests to whoever asks, until they go away.
fn answer(taps: &Taps, asked: &Asked) -> Response<AdminBody> {
    let filter = match Filter::parse(asked.pairs()) {
        Ok(filter) => filter,
        Err(bad) => return text(StatusCode::BAD_REQUEST, &format!("{bad}\n")),
    };
    let format = asked.value("format");
    let form = match format.as_deref() {
        Some("sse") => Form::ServerSent,
        None if asked.wants_events => Form::ServerSent,
        None | Some("json") => Form::Lines,
        Some(_) => return text(StatusCode::BAD_REQUEST, "format is json or sse\n"),
    };
    let process = asked.value("process").filter(|id| !id.is_empty());
    let is_own = |id: &String| id == taps.hub.id();
    let asks_own = process.as_ref().is_none_or(is_own);
    let asks_others = !asked.flag("local") && !process.as_ref().is_some_and(is_own) && !taps.fleet.is_empty();
    if !asks_own && !asks_others {
        return text(StatusCode::MISDIRECTED_REQUEST, "this is another process; leave `process` out\n");
    }
    let left = filter.requests_max;
    let events = match asked.method {
        Method::HEAD => None,
        _ => {
            let own = asks_own.then(|| taps.hub.observe(filter));
            let others = asks_others.then(|| taps.others(asked));
            if matches!(own, Some(None)) || matches!(others, Some(None)) {
                let why = format!("{OBSERVERS_MAX} observe already; come back when one has gone\n");
                return text(StatusCode::TOO_MANY_REQUESTS, &why);
            }
            let begun = (form == Form::ServerSent).then_some(": observing\n\n");
            Some(Watch { own: own.flatten(), others: others.flatten(), form, left, begun })
        }
    };
    let mut answer = response(StatusCode::OK, form.content_type(), Bytes::new());
    if let Ok(id) = HeaderValue::from_str(taps.hub.id()) {
        answer.headers_mut().insert(PROCESS, id);
    }
    if let Some(watch) = events {
        *answer.body_mut() = StreamBody::new(watch.events()).boxed_unsync();
    }
    answer
}

impl Taps {
    /// The other processes, as who asks may see them; `None` when too many watch them.
    fn others(&self, asked: &Asked) -> Option<(Crowd, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        // Whoever is on this machine may see what this process may.
        let is_here = asked.remote.is_some_and(|remote| remote.to_canonical().is_loopback());
        let observer = asked.identity.as_ref().filter(|_| !is_here).map(ToString::to_string);
        let own = Some(self.hub.id().to_owned());
        let listener = Listener { own, observer, ..self.listener.clone() };
        let query: Vec<&str> =
            asked.query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("format=")).collect();
        Some((Crowd::of(self.fleet.clone(), &query.join("&"), listener), place))
    }
}

/// What one observer is sent.
struct Watch {
    own: Option<Tap>,
    others: Option<(Crowd, OwnedSemaphorePermit)>,
    form: Form,
    /// How many more requests are wanted, if not all are.
    left: Option<u64>,
    /// Tells a browser that it is connected, before anything happens.
    begun: Option<&'static str>,
}

/// One thing to send.
enum Next {
    Own(Item),
    Other(Heard),
}

impl Watch {
    fn events(self) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
        stream::unfold(self, |mut watch| async move {
            let frame = Ok(Frame::data(Bytes::from(watch.chunk().await?)));
            Some((frame, watch))
        })
    }

    /// What there is to send next; `None` at the end.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        if let Some(begun) = self.begun.take() {
            return Some(begun.into());
        }
        if self.left == Some(0) {
            return None;
        }
        let mut bytes = Vec::new();
        match tokio::time::timeout(KEEP_ALIVE, self.next()).await {
            Ok(next) => self.put(&next?, &mut bytes),
            Err(_) => return Some(self.form.idle().into()),
        }
        while bytes.len() < CHUNK_BYTES_MAX && self.left != Some(0) {
            let Some(next) = self.ready() else { break };
            self.put(&next, &mut bytes);
        }
        Some(bytes)
    }

    async fn next(&mut self) -> Option<Next> {
        loop {
            let heard = match (&mut self.own, &mut self.others) {
                (own, None) => return own.as_mut()?.next().await.map(Next::Own),
                (None, Some((others, _))) => others.next().await,
                (Some(own), Some((others, _))) => tokio::select! {
                    item = own.next() => return item.map(Next::Own),
                    heard = others.next() => heard,
                },
            };
            match heard {
                Some(heard) => return Some(Next::Other(heard)),
                None => self.others = None,
            }
        }
    }

    fn ready(&mut self) -> Option<Next> {
        let own = self.own.as_mut().and_then(Tap::ready).map(Next::Own);
        own.or_else(|| self.others.as_mut()?.0.ready().map(Next::Other))
    }

    fn put(&mut self, next: &Next, into: &mut Vec<u8>) {
        let (line, is_end) = match next {
            Next::Own(item) => {
                let is_end = matches!(item, Item::Event(event) if event.response_end_event.is_some());
                (Bytes::from(item.to_json()), is_end)
            }
            Next::Other(heard) => {
                let is_end = matches!(heard, Heard::Line { line, .. } if is_end(line));
                (heard.to_json(), is_end)
            }
        };
        self.form.put(&line, into);
        if let Some(left) = self.left.as_mut().filter(|_| is_end) {
            *left = left.saturating_sub(1);
        }
    }
}

/// Whether a line tells of an end. No text within it can say so: there a quote is escaped.
fn is_end(line: &[u8]) -> bool {
    const KEY: &[u8] = b"\"responseEndEvent\":{";
    line.windows(KEY.len()).any(|part| part == KEY)
}
