//! Floor 4: who observes live requests, and the bounded channel to each of them.
//!
//! While nobody observes, a request costs one relaxed load ([`TapHub::is_idle`]). An observer that reads too slowly
//! loses events, which are counted and told to it; it never makes a request wait.

use crate::classify::outcome::{Cause, Outcome};
use crate::metrics::names::Direction;
use crate::policy::observe::Subject;
use crate::stdx::clock::{Duration, Instant};
use crate::stdx::gcra::{Gcra, Rate};
use crate::stdx::rng::Rng;
use crate::tap::event::{self, Event, Header, Peer, RequestInit, ResponseEnd, ResponseInit, StreamId};
use crate::tap::filter::{Begun, Filter};
use crate::tap::redact::Redaction;
use arc_swap::{ArcSwap, ArcSwapOption};
use http::{HeaderName, Uri};
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::UNIX_EPOCH;
use tokio::sync::mpsc;

/// The most observers at once: some pages and some terminals. Each costs every request a look at its filter.
pub const OBSERVERS_MAX: usize = 16;

/// The events that wait for one observer: a second of 300 requests. Beyond that they are dropped.
pub const EVENTS_MAX: usize = 1024;

/// Headers as they may be shown.
pub(crate) type Shown = Option<Vec<(HeaderName, String)>>;

/// Where live requests are told.
#[derive(Debug, Default)]
pub struct TapHub {
    tappers: ArcSwap<Vec<Arc<Tapper>>>,
    count: AtomicUsize,
    changing: Mutex<()>,
    dropped: AtomicU64,
    process: Arc<str>,
    id: Box<str>,
    base: u32,
    pub(crate) redaction: Redaction,
}

impl TapHub {
    /// A hub of the process that is this service. `redaction` says which headers are hidden beside those that always
    /// are.
    pub fn new(process: impl Into<Arc<str>>, redaction: Redaction) -> Arc<Self> {
        // Tells the streams of several processes apart.
        let base = Rng::thread().below(u32::MAX);
        let id = format!("{:016x}", Rng::thread().next_u64()).into();
        Arc::new(Self { process: process.into(), id, base, redaction, ..Self::default() })
    }

    /// What tells this process from all others: 16 hexadecimal digits, by chance at each start.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether nobody observes.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    /// How many observe.
    pub fn observers(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// The events that slow observers lost, since the hub was made.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Begins to observe. `None` when [`OBSERVERS_MAX`] do already.
    pub fn observe(self: &Arc<Self>, filter: Filter) -> Option<Tap> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tappers = Vec::clone(&self.tappers.load());
        if tappers.len() >= OBSERVERS_MAX {
            return None;
        }
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let rate = filter.rate.map(|rate| Gcra::new(Rate::new(rate, Duration::from_secs(1), rate)));
        let tapper = Arc::new(Tapper {
            filter,
            rate,
            begun: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            sender: ArcSwapOption::from_pointee(sender),
        });
        tappers.push(Arc::clone(&tapper));
        self.publish(tappers);
        Some(Tap { events, tapper, hub: Arc::clone(self), told: 0 })
    }

    fn publish(&self, tappers: Vec<Arc<Tapper>>) {
        self.count.store(tappers.len(), Relaxed);
        self.tappers.store(Arc::new(tappers));
    }

    /// Those who may want to see a call.
    pub(crate) fn interested(&self, begun: &Begun<'_>, rng: &Rng) -> Vec<Arc<Tapper>> {
        let tappers = self.tappers.load();
        let wants = |tapper: &&Arc<Tapper>| {
            let filter = &tapper.filter;
            filter.begins(begun) && (filter.sample >= 1.0 || rng.unit() < filter.sample)
        };
        tappers.iter().filter(wants).map(Arc::clone).collect()
    }

    fn leave(&self, tapper: &Arc<Tapper>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let tappers = self.tappers.load();
        self.publish(tappers.iter().filter(|other| !Arc::ptr_eq(other, tapper)).map(Arc::clone).collect());
    }
}

/// One observer, as requests see it.
pub(crate) struct Tapper {
    pub(crate) filter: Filter,
    rate: Option<Gcra>,
    begun: AtomicU64,
    finished: AtomicU64,
    lost: AtomicU64,
    /// `None` when it has seen as many requests as it wanted.
    sender: ArcSwapOption<mpsc::Sender<Message>>,
}

impl fmt::Debug for Tapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tapper").field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Tapper {
    /// Whether one more attempt may be told.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        if self.rate.as_ref().is_some_and(|rate| rate.admit(now).is_err()) {
            return false;
        }
        self.filter.requests_max.is_none_or(|max| self.begun.fetch_add(1, Relaxed) < max)
    }

    /// Tells it, unless its channel is full.
    pub(crate) fn tell(&self, hub: &TapHub, message: Message) {
        let ends = matches!(message.kind, Kind::End(_));
        if let Some(sender) = &*self.sender.load()
            && sender.try_send(message).is_err()
        {
            self.lost.fetch_add(1, Relaxed);
            hub.dropped.fetch_add(1, Relaxed);
        }
        if ends && self.filter.requests_max == Some(self.finished.fetch_add(1, Relaxed) + 1) {
            self.sender.store(None);
        }
    }
}

/// What an observer gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// Something happened to a request.
    Event(Box<Event>),
    /// So many events were lost since the last item.
    Dropped(u64),
}

impl Item {
    /// As one line of JSON, without a line feed.
    pub fn to_json(&self) -> String {
        match self {
            Self::Event(event) => serde_json::to_string(event).unwrap_or_default(),
            Self::Dropped(lost) => format!("{{\"dropped\":{lost}}}"),
        }
    }
}

/// One observer's end of its channel. Dropped, it observes no more.
#[derive(Debug)]
pub struct Tap {
    events: mpsc::Receiver<Message>,
    tapper: Arc<Tapper>,
    hub: Arc<TapHub>,
    told: u64,
}

impl Tap {
    /// The next thing to tell; `None` when it has seen as many requests as it wanted. Cancel safe.
    pub async fn next(&mut self) -> Option<Item> {
        let lost = self.tapper.lost.load(Relaxed);
        if lost > self.told {
            let more = lost - self.told;
            self.told = lost;
            return Some(Item::Dropped(more));
        }
        let message = self.events.recv().await?;
        Some(Item::Event(Box::new(message.event(&self.hub))))
    }

    /// The next thing to tell, if it is there already.
    pub fn ready(&mut self) -> Option<Item> {
        let message = self.events.try_recv().ok()?;
        Some(Item::Event(Box::new(message.event(&self.hub))))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.hub.leave(&self.tapper);
    }
}

/// What happened, as requests tell it: cheap to make, and written out by its reader.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) call: Arc<Subject>,
    pub(crate) attempt: Attempted,
    pub(crate) at: Instant,
    pub(crate) kind: Kind,
}

/// Which attempt it happened to.
#[derive(Debug, Clone)]
pub(crate) struct Attempted {
    pub(crate) number: u32,
    pub(crate) id: u64,
    pub(crate) endpoint: Option<Arc<crate::discover::endpoint::Endpoint>>,
    pub(crate) begun: Instant,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Request { headers: Shown, reason: Option<Box<str>> },
    Response { status: u16, headers: Shown },
    End(Box<Ended>),
}

#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) answered: Option<Instant>,
    pub(crate) bytes: u64,
    pub(crate) trailers: Shown,
    pub(crate) grpc: Option<u32>,
    pub(crate) outcome: Outcome,
    pub(crate) error: Option<&'static str>,
    pub(crate) rule: Option<Arc<str>>,
    pub(crate) audit: Option<Arc<str>>,
}

impl Message {
    fn event(&self, hub: &TapHub) -> Event {
        let call = &*self.call;
        let inbound = call.direction == Direction::Inbound;
        let id = StreamId { base: hub.base, stream: self.attempt.id };
        let since = self.at.saturating_duration_since(self.attempt.begun).into();
        let mut event = Event {
            source: source(call),
            destination: self.destination(),
            route_meta: (!call.route.is_empty())
                .then(|| [("route".to_owned(), call.route.to_string())].into()),
            proxy_direction: if inbound { "INBOUND" } else { "OUTBOUND" }.to_owned(),
            service: call.service.to_string(),
            process: hub.process.to_string(),
            process_id: hub.id.to_string(),
            at_ms: call
                .wall_at(self.at)
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            attempt: self.attempt.number,
            call: call.number.to_string(),
            trace_id: call.context.as_ref().map(|context| context.trace.to_string()),
            request_init_event: None,
            response_init_event: None,
            response_end_event: None,
        };
        match &self.kind {
            Kind::Request { headers, reason } => {
                event.request_init_event = Some(RequestInit {
                    id,
                    method: call.method.to_string(),
                    scheme: call.uri.scheme_str().unwrap_or("http").to_owned(),
                    authority: event::cut(call.authority()).to_owned(),
                    path: event::cut(path(&call.uri)).to_owned(),
                    headers: listed(headers),
                    reason: reason.as_deref().map(str::to_owned),
                });
            }
            Kind::Response { status, headers } => {
                let headers = listed(headers);
                event.response_init_event =
                    Some(ResponseInit { id, since_request_init: since, http_status: *status, headers });
            }
            Kind::End(end) => {
                event.response_end_event = Some(ResponseEnd {
                    id,
                    since_request_init: since,
                    since_response_init: end.answered.map(|at| self.at.saturating_duration_since(at).into()),
                    response_bytes: end.bytes,
                    trailers: listed(&end.trailers),
                    grpc_status_code: end.grpc,
                    reset_error_code: reset(&end.outcome),
                    outcome: end.outcome.verdict.as_str().to_owned(),
                    cause: end.outcome.cause.as_str().to_owned(),
                    error: end.error.map(str::to_owned),
                    rule: end.rule.as_deref().map(str::to_owned),
                    audit: end.audit.as_deref().map(str::to_owned),
                });
            }
        }
        event
    }

    fn destination(&self) -> Peer {
        let Some(endpoint) = &self.attempt.endpoint else { return Peer::at(self.call.local) };
        let mut peer = Peer::at(Some(endpoint.addr));
        let labels = endpoint.labels.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        peer.metadata.extend(labels);
        let mut set = |name: &str, value: &str| drop(peer.metadata.insert(name.to_owned(), value.to_owned()));
        if let Some(zone) = &endpoint.zone {
            set("zone", zone);
        }
        match &endpoint.identity {
            Some(identity) => {
                set("tls", "true");
                set("server_id", identity);
            }
            None => set("tls", "not_provided_by_service_discovery"),
        }
        peer
    }
}

fn source(call: &Subject) -> Peer {
    let mut peer = Peer::at(call.source);
    let mut set = |name: &str, value: &str| drop(peer.metadata.insert(name.to_owned(), value.to_owned()));
    match (&call.identity, call.direction) {
        (Some(identity), _) => {
            set("tls", "true");
            set("client_id", identity);
        }
        (None, Direction::Inbound) => set("tls", "no_tls_from_remote"),
        (None, Direction::Outbound) => {}
    }
    peer
}

/// The path, or the authority of a `CONNECT`.
pub(crate) fn path(uri: &Uri) -> &str {
    if uri.path().is_empty() { uri.authority().map_or("", http::uri::Authority::as_str) } else { uri.path() }
}

fn listed(shown: &Shown) -> Option<Vec<Header>> {
    let header =
        |(name, value): &(HeaderName, String)| Header { name: name.to_string(), value_str: value.clone() };
    shown.as_ref().map(|headers| headers.iter().map(header).collect())
}

/// HTTP/2's code for how a stream broke (RFC 9113 §7); for HTTP/1.1 what it would be.
fn reset(outcome: &Outcome) -> Option<u32> {
    match outcome.cause {
        Cause::Reset => Some(2),
        Cause::Refused => Some(7),
        Cause::Dropped | Cause::Timeout(_) => Some(8),
        Cause::Status(_) | Cause::Grpc(_) | Cause::Connect | Cause::Local => None,
    }
}
