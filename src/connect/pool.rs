//! Floor 5: the connections of one replica: which request gets which, who waits, and when another is opened.
//!
//! One short lock guards it all; nothing is awaited, opened or closed under it.

use crate::connect::backoff::Backoff;
use crate::connect::conn::Free;
use crate::connect::conn::Http2;
use crate::connect::conn::Lease;
use crate::connect::handshake::Handshake;
use crate::connect::handshake::Protocol;
use crate::connect::limits::FAILURES_WAITED_MAX;
use crate::connect::limits::PoolLimits;
use crate::connect::limits::UNANSWERED_MAX;
use crate::connect::line::Line;
use crate::connect::line::Opening;
use crate::connect::line::Place;
use crate::connect::line::Sleeper;
use crate::connect::line::Want;
use crate::connect::open::Failure;
use crate::connect::open::Opened;
use crate::connect::settings::ConnectSettings;
use crate::connect::stats::ConnectStats;
use crate::discover::endpoint::Endpoint;
use crate::error::Error;
use crate::stdx::clock;
use crate::stdx::rng::Rng;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

/// The connections of one replica.
pub(crate) struct Pool<B, H: Handshake> {
    pub(crate) endpoint: Endpoint,
    pub(crate) addrs: Arc<[SocketAddr]>,
    /// As they were given; what a profile says of them is in the state.
    pub(crate) settings: ConnectSettings,
    pub(crate) handshake: H,
    pub(crate) stats: Arc<ConnectStats>,
    pub(crate) rng: Rng,
    pub(crate) next_id: AtomicU64,
    pub(crate) me: Weak<Self>,
    state: Mutex<State<B, H>>,
}

struct State<B, H: Handshake> {
    limits: PoolLimits,
    /// Connections beyond the limit that were shut and are open still.
    closing: u32,
    /// Unused HTTP/1.1 connections and since when; the last one in is the first one out.
    free: Vec<(Free<B, H>, Instant)>,
    /// HTTP/2 connections that take new streams.
    multiplexed: Vec<Arc<Http2<B, H>>>,
    lines: [Line; 2],
    granted: Vec<(u64, Grant<B, H>)>,
    next_ticket: u64,
    backoff: Backoff,
    /// The last failure since the last response.
    failure: Option<Failure>,
    /// Connections in a row that broke without a response.
    unanswered: u32,
    /// The streams a connection had last, for the number of connections to open.
    streams_hint: u32,
    /// Whether the peer chose HTTP/2 when it had the choice.
    prefers_http2: bool,
}

enum Grant<B, H: Handshake> {
    Http1(Free<B, H>),
    Http2(Arc<Http2<B, H>>),
    Failed(Failure),
}

/// The answer to a request for a connection.
pub(crate) enum Taken<B, H: Handshake> {
    Lease(Lease<B, H>),
    Refused(Error),
    Wait { ticket: u64, open: Vec<Opening> },
}

impl<B, H: Handshake> Pool<B, H> {
    pub(crate) fn new(
        endpoint: Endpoint,
        addrs: Arc<[SocketAddr]>,
        settings: ConnectSettings,
        handshake: H,
        rng: Rng,
    ) -> Arc<Self> {
        let state = Mutex::new(State {
            limits: PoolLimits::of(&settings),
            closing: 0,
            free: Vec::new(),
            multiplexed: Vec::new(),
            lines: [Line::default(), Line::default()],
            granted: Vec::new(),
            next_ticket: 0,
            backoff: Backoff::new(settings.backoff_base, settings.backoff_max),
            failure: None,
            unanswered: 0,
            streams_hint: 100,
            prefers_http2: false,
        });
        Arc::new_cyclic(|me| Self {
            endpoint,
            addrs,
            settings,
            handshake,
            stats: Arc::default(),
            rng,
            next_id: AtomicU64::new(0),
            me: me.clone(),
            state,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<B, H>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limits that hold now.
    pub(crate) fn limits(&self) -> PoolLimits {
        self.lock().limits
    }

    /// Holds to these limits from now on. Unused connections beyond them are closed, and those in use when they are given
    /// back.
    pub(crate) fn limit(&self, limits: PoolLimits) -> Vec<Opening> {
        let mut state = self.lock();
        state.limits = limits;
        let mut shut = Vec::new();
        while !state.free.is_empty() && state.sheds() {
            shut.push(state.free.remove(0));
        }
        let woken = state.grant_streams();
        let open = state.openings(clock::now());
        drop(state);
        drop(shut);
        woken.into_iter().for_each(Waker::wake);
        open
    }

    /// A connection that is there already, or a place in the line.
    pub(crate) fn take(&self, mut want: Want, waker: &Waker) -> Taken<B, H> {
        let mut shut = Vec::new();
        let mut state = self.lock();
        if want.protocol == Protocol::Http1 && !want.strict && state.prefers_http2 {
            want.protocol = Protocol::Http2;
        }
        let found = match want.protocol {
            Protocol::Http1 => state.free_one(&mut shut),
            Protocol::Http2 => state.stream().map(Grant::Http2),
        };
        if let Some(found) = found {
            drop(state);
            self.stats.reused();
            return self.settle(found).map_or_else(Taken::Refused, Taken::Lease);
        }
        let waiting: usize = state.lines.iter().map(|line| line.asleep.len()).sum();
        let PoolLimits { pending_max, timeout, .. } = state.limits;
        if waiting >= pending_max as usize {
            self.stats.refused();
            // By then a connection is open, or it is known that none can be.
            return Taken::Refused(Error::Overloaded { retry_after: Some(timeout) });
        }
        let now = clock::now();
        let line = &state.lines[want.protocol as usize];
        let nothing_coming = line.open == 0 && line.opening == 0;
        if let Some(left) = state.backoff.remaining(now)
            && nothing_coming
        {
            let failures = state.backoff.failures();
            let failure = state.failure.clone();
            return Taken::Refused(
                Failure::left_alone(failure, failures, left).into_error(self.endpoint.addr),
            );
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let sleeper = Sleeper { waker: waker.clone(), strict: want.strict };
        state.lines[want.protocol as usize].asleep.insert(ticket, sleeper);
        let open = state.openings(now);
        if open.is_empty() && state.room() == 0 {
            self.stats.held();
        }
        Taken::Wait { ticket, open }
    }

    /// What came for a place in the line; otherwise the waker is kept.
    pub(crate) fn claim(&self, ticket: u64, waker: &Waker) -> Option<Result<Lease<B, H>, Error>> {
        let mut state = self.lock();
        if let Some(at) = state.granted.iter().position(|(id, _)| *id == ticket) {
            let (_, grant) = state.granted.swap_remove(at);
            drop(state);
            return Some(self.settle(grant));
        }
        match state.lines.iter_mut().find_map(|line| line.asleep.get_mut(&ticket)) {
            Some(sleeper) => {
                sleeper.waker.clone_from(waker);
                None
            }
            None => Some(Err(Error::Closed)),
        }
    }

    /// Gives up a place in the line; what was granted meanwhile goes to the next.
    pub(crate) fn leave(&self, ticket: u64) {
        let mut state = self.lock();
        let slept = state.lines.iter_mut().find_map(|line| line.asleep.remove(&ticket));
        let at = state.granted.iter().position(|(id, _)| *id == ticket);
        let grant = at.map(|at| state.granted.swap_remove(at).1);
        drop(state);
        drop(slept);
        if let Some(Ok(lease)) = grant.map(|grant| self.settle(grant)) {
            lease.unused();
        }
    }

    fn settle(&self, grant: Grant<B, H>) -> Result<Lease<B, H>, Error> {
        match grant {
            Grant::Http1(free) => free.lease().ok_or(Error::Closed),
            Grant::Http2(conn) => Ok(Lease::http2(conn)),
            Grant::Failed(failure) => Err(failure.into_error(self.endpoint.addr)),
        }
    }

    /// An HTTP/1.1 connection is ready for the next request.
    pub(crate) fn rest(&self, free: Free<B, H>, now: Instant) {
        let mut state = self.lock();
        if state.sheds() {
            drop(state);
        } else if let Some((ticket, sleeper)) = state.lines[Protocol::Http1 as usize].asleep.pop_first() {
            state.granted.push((ticket, Grant::Http1(free)));
            drop(state);
            sleeper.waker.wake();
        } else if state.free.len() < self.settings.idle_max as usize {
            state.free.push((free, now));
        }
    }

    /// A stream of an HTTP/2 connection ended. Only the last one reads the clock.
    pub(crate) fn ended(&self, conn: &Arc<Http2<B, H>>) {
        let mut state = self.lock();
        let unused = conn.streams.fetch_sub(1, Ordering::Relaxed) == 1;
        let spent = conn.life.is_worn() || unused && (conn.rest(clock::now()) || state.sheds());
        let removed = spent.then(|| state.remove(conn.life.id));
        let woken = state.grant_streams();
        drop(state);
        drop(removed);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Closes an HTTP/1.1 connection that was unused for long; otherwise tells when to look again.
    pub(crate) fn expire_http1(&self, id: u64, now: Instant) -> Instant {
        let mut state = self.lock();
        let idle = state.limits.http1_idle;
        let Some(at) = state.free.iter().position(|(free, _)| free.id() == Some(id)) else {
            return now + idle;
        };
        let (free, since) = &state.free[at];
        if *since + idle > now && !free.is_spent(now) {
            return *since + idle;
        }
        let expired = state.free.remove(at);
        drop(state);
        drop(expired);
        now + idle
    }

    /// The same for an HTTP/2 connection.
    pub(crate) fn expire_http2(&self, conn: &Arc<Http2<B, H>>, now: Instant) -> Instant {
        let mut state = self.lock();
        let idle = state.limits.http2_idle;
        let unused = conn.streams.load(Ordering::Relaxed) == 0;
        let until = if unused { conn.idle_since() + idle } else { now + idle };
        if conn.life.is_spent(now) || unused && until <= now {
            // One in use goes when a stream ends.
            conn.life.retired.store(true, Ordering::Relaxed);
            let removed = if unused { state.remove(conn.life.id) } else { None };
            drop(state);
            drop(removed);
            return now + idle;
        }
        conn.life.retire_at.map_or(until, |at| at.min(until))
    }

    /// A connection takes no more requests: its peer is gone or going.
    pub(crate) fn gone(&self, id: u64) {
        let mut state = self.lock();
        let at = state.free.iter().position(|(free, _)| free.id() == Some(id));
        let free = at.map(|at| state.free.remove(at));
        let multiplexed = state.remove(id);
        drop(state);
        drop((free, multiplexed));
    }

    /// A connection failed without ever giving a response. A few times that may be one request's own fault, as of one
    /// that makes the peer panic and is tried again; then the replica is left alone.
    pub(crate) fn failed_unanswered(&self, failure: Failure) {
        let mut state = self.lock();
        state.unanswered = state.unanswered.saturating_add(1);
        state.failure = Some(failure);
        if state.unanswered > UNANSWERED_MAX {
            state.backoff.failed(clock::now(), &self.rng);
        }
    }

    /// The replica answered.
    pub(crate) fn answered(&self) {
        let mut state = self.lock();
        state.backoff.succeeded();
        (state.failure, state.unanswered) = (None, 0);
    }

    /// A socket was closed: there may be room for another.
    pub(crate) fn closed(&self, place: &Place) -> Vec<Opening> {
        self.stats.closed();
        let mut state = self.lock();
        state.closing = state.closing.saturating_sub(1);
        if let Some(line) = state.lines.get_mut(place.close()) {
            line.open -= 1;
        }
        state.openings(clock::now())
    }

    /// Whether anyone still waits for what an opener would open; if not, the opener ends.
    pub(crate) fn still_wanted(&self, want: Want) -> bool {
        let mut state = self.lock();
        let line = &mut state.lines[want.protocol as usize];
        let wanted = !line.asleep.is_empty();
        if !wanted {
            line.opening -= 1;
        }
        wanted
    }

    /// Takes in what an opener opened, and orders what is then still needed.
    pub(crate) fn opened(&self, want: Want, opened: Opened<B, H>, place: &Place) -> Vec<Opening> {
        let now = clock::now();
        let mut state = self.lock();
        state.lines[want.protocol as usize].opening -= 1;
        let line = match &opened {
            Opened::Http1(_) => Protocol::Http1,
            Opened::Http2(_) => Protocol::Http2,
        };
        if place.open(line) {
            state.lines[line as usize].open += 1;
        }
        let mut woken = Vec::new();
        match opened {
            Opened::Http1(free) => {
                drop(state);
                self.rest(free, now);
                state = self.lock();
            }
            Opened::Http2(conn) => {
                state.streams_hint = conn.streams_max.load(Ordering::Relaxed).max(1);
                state.multiplexed.push(conn);
                if want.protocol == Protocol::Http1 {
                    state.prefer_http2();
                }
                woken = state.grant_streams();
            }
        }
        let open = state.openings(now);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        open
    }

    /// Takes back orders that nobody can carry out.
    pub(crate) fn abandon(&self, orders: &[Opening]) {
        let mut state = self.lock();
        for order in orders {
            state.lines[order.want.protocol as usize].opening -= 1;
        }
    }

    /// Takes in that an opening failed: `Some` asks the opener to try again after that time, because there are
    /// connections in use and requests that wait for one.
    pub(crate) fn open_failed(&self, want: Want, failure: Failure) -> Option<Duration> {
        let now = clock::now();
        let mut state = self.lock();
        state.backoff.failed(now, &self.rng);
        state.failure = Some(failure.clone());
        // If it chose HTTP/2 once and does not speak it any more, it may choose again.
        state.prefers_http2 &= failure.is_of_tcp();
        let line = &state.lines[want.protocol as usize];
        let hope = line.open > 0 && state.backoff.failures() < FAILURES_WAITED_MAX;
        if hope && !line.asleep.is_empty() {
            return Some(state.backoff.remaining(now).unwrap_or_default());
        }
        self.give_up(state, want, failure);
        None
    }

    /// An opener ended before its time: its runtime was shut down.
    pub(crate) fn opener_lost(&self, want: Want, failure: Failure) {
        self.give_up(self.lock(), want, failure);
    }

    /// One opener less; without any, all who wait in the line fail.
    fn give_up(&self, mut state: MutexGuard<'_, State<B, H>>, want: Want, failure: Failure) {
        let line = &mut state.lines[want.protocol as usize];
        line.opening -= 1;
        if line.opening > 0 {
            return;
        }
        let asleep = std::mem::take(&mut line.asleep);
        let failed = asleep.keys().map(|ticket| (*ticket, Grant::Failed(failure.clone())));
        state.granted.extend(failed);
        drop(state);
        asleep.into_values().for_each(|sleeper| sleeper.waker.wake());
    }
}

impl<B, H: Handshake> State<B, H> {
    fn free_one(&mut self, shut: &mut Vec<Free<B, H>>) -> Option<Grant<B, H>> {
        while let Some((free, _)) = self.free.pop() {
            if free.is_ready() {
                return Some(Grant::Http1(free));
            }
            shut.push(free);
        }
        None
    }

    fn stream(&mut self) -> Option<Arc<Http2<B, H>>> {
        let PoolLimits { connections_max, streams_max, .. } = self.limits;
        let mut conns = self.multiplexed.iter().take(connections_max as usize);
        let conn = conns.find(|conn| conn.has_room(streams_max))?;
        conn.streams.fetch_add(1, Ordering::Relaxed);
        Some(conn.clone())
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Http2<B, H>>> {
        let at = self.multiplexed.iter().position(|conn| conn.life.id == id)?;
        Some(self.multiplexed.remove(at))
    }

    /// Gives free streams to those who wait.
    fn grant_streams(&mut self) -> Vec<Waker> {
        let mut woken = Vec::new();
        while !self.lines[Protocol::Http2 as usize].asleep.is_empty() {
            let Some(conn) = self.stream() else { break };
            if let Some((ticket, sleeper)) = self.lines[Protocol::Http2 as usize].asleep.pop_first() {
                self.granted.push((ticket, Grant::Http2(conn)));
                woken.push(sleeper.waker);
            }
        }
        woken
    }

    /// The peer chose HTTP/2: who does not insist on HTTP/1.1 waits in that line.
    fn prefer_http2(&mut self) {
        self.prefers_http2 = true;
        let [http1, http2] = &mut self.lines;
        let (strict, moved) = std::mem::take(&mut http1.asleep).into_iter().partition(|(_, s)| s.strict);
        http1.asleep = strict;
        http2.asleep.extend::<BTreeMap<_, _>>(moved);
    }

    /// How many more connections may be opened.
    fn room(&self) -> u32 {
        let there: u32 = self.lines.iter().map(|line| line.opening + line.open).sum();
        self.limits.connections_max.saturating_sub(there)
    }

    /// Whether one is to be shut because more are open than may be; it is then counted as shut.
    fn sheds(&mut self) -> bool {
        let open: u32 = self.lines.iter().map(|line| line.open).sum();
        let sheds = open.saturating_sub(self.closing) > self.limits.connections_max;
        self.closing += u32::from(sheds);
        sheds
    }

    /// How many connections to open so that each who waits gets one, within the limits.
    fn openings(&mut self, now: Instant) -> Vec<Opening> {
        let mut orders = Vec::new();
        let after = self.backoff.remaining(now);
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let room = self.room();
            let prefers_http2 = self.prefers_http2;
            let streams = self.streams_hint.min(self.limits.streams_max) as usize;
            let each = if protocol == Protocol::Http1 { 1 } else { streams };
            let line = &mut self.lines[protocol as usize];
            let needed = u32::try_from(line.asleep.len().div_ceil(each)).unwrap_or(u32::MAX);
            // While the replica is left alone one opener waits for the end of that time for all.
            let needed = if after.is_some() { needed.min(1) } else { needed };
            let strict = prefers_http2 || line.asleep.first_key_value().is_some_and(|(_, s)| s.strict);
            let more = needed.saturating_sub(line.opening).min(room);
            line.opening += more;
            let order = Opening { want: Want { protocol, strict }, after: after.unwrap_or_default() };
            orders.extend((0..more).map(|_| order));
        }
        orders
    }
}
