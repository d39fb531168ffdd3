//! Floor 4: the ticket of one attempt: taken when an endpoint is picked, settled exactly once.

use crate::balance::cost::went_well;
use crate::balance::endpoint::Cell;
use crate::balance::local;
use crate::balance::report;
use crate::balance::routes::RoutePass;
use crate::balance::rules::{Breaker, Rules};
use crate::breaker::detect::Chart;
use crate::breaker::ward::Patient;
use crate::classify::classifier::{Head, trailers};
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::discover::endpoint::Endpoint;
use crate::error::{Error, Scope};
use crate::metrics::route::{BackendMetrics, EndpointMetrics};
use crate::metrics::series::Ending;
use crate::metrics::tally::Tally;
use crate::policy::call::{CallState, EndpointId, MeshRequest};
use crate::policy::failed;
use crate::policy::observe::{Attempting, Observed};
use crate::stdx::clock;
use crate::stdx::clock::Instant;
use crate::stdx::moment::Moment;
use crate::stdx::sync::{AtomicU32, Ordering::Relaxed};
use http::HeaderMap;
use std::num::NonZeroU16;
use std::sync::Arc;

/// One endpoint as tickets hold it: what is known of it, and the rules of the settings that were when it was
/// picked.
#[derive(Debug)]
pub struct Member {
    pub(crate) cell: Arc<Cell>,
    pub(crate) chart: Arc<Chart>,
    pub(crate) shut: Arc<AtomicU32>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) metrics: Option<Arc<EndpointMetrics>>,
}

impl Member {
    /// The endpoint's number.
    pub fn id(&self) -> EndpointId {
        EndpointId(self.cell.id())
    }

    /// The endpoint, as it was described when it was picked.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Patient for Arc<Member> {
    fn number(&self) -> u32 {
        self.cell.id()
    }

    fn gate(&self) -> &AtomicU32 {
        self.cell.gate()
    }

    fn chart(&self) -> &Chart {
        &self.chart
    }

    fn shut(&self) -> &AtomicU32 {
        &self.shut
    }
}

/// When the whole call must have ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub(crate) at: Instant,
    /// Whether the caller said so, and not the route.
    pub(crate) told: bool,
}

impl Due {
    /// That of a call; `None`: it has no deadline.
    #[inline]
    pub(crate) fn of(state: &CallState) -> Option<Self> {
        state.deadline.map(|at| Self { at, told: state.is_deadline_told })
    }
}

/// A caller's own deadline is held against an endpoint only if it left so many times what the endpoint usually
/// takes; else whoever sends requests with hopeless deadlines would shut endpoints that are well.
const FAIR_FACTOR: f32 = 2.0;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// No response yet.
    Waiting,
    /// Headers came after `latency` seconds at `at`; `told` once the latency was learned; `judged` once the
    /// outcome counted.
    Body {
        head: Outcome,
        at: Moment,
        latency: f32,
        told: bool,
        judged: bool,
    },
    Settled,
}

/// The right to one attempt at one endpoint. It counts as in flight until it settles: at the end of the
/// response's body, at an error, or when it is dropped.
///
/// A drop before the response's headers is the caller going away: it says nothing about the endpoint but that it
/// took at least so long. At or after the call's deadline it is a failure: the caller went away because the
/// endpoint was too slow, whichever timer fired first (house.md §7). A drop of a response's body counts as its
/// head does, as in Linkerd.
#[derive(Debug)]
pub struct Ticket {
    member: Option<Arc<Member>>,
    /// The gate's word when the ticket was taken: an end counts for the breaker only while it is the same.
    pass: u32,
    /// Whether the deadline is the caller's own.
    told: bool,
    started: Moment,
    deadline: Option<Instant>,
    /// That of the response.
    status: Option<NonZeroU16>,
    /// What is counted of the attempt beside its endpoint.
    backend: Option<Arc<BackendMetrics>>,
    phase: Phase,
    /// Where breakers are for each route apart.
    route: Option<Box<RoutePass>>,
    /// Whoever observes the attempt; in a box, since nearly always nobody does.
    attempting: Option<Box<Attempting>>,
}

/// Tells whoever observes an attempt if its endpoint's breaker moved since it was let in by `pass`.
#[cold]
fn tell_breaker(member: &Member, pass: u32, attempting: &Attempting) {
    if member.cell.gate().load(Relaxed) != pass {
        attempting.event(if member.cell.is_open() { "breaker opened" } else { "breaker shut" });
    }
}

impl Ticket {
    /// Takes a ticket at `member` for an attempt that started at `started`.
    #[inline]
    pub(crate) fn take(member: &Arc<Member>, started: Moment, due: Option<Due>) -> Self {
        let pass = member.cell.gate().load(Relaxed);
        Self::with_pass(Arc::clone(member), pass, started, due)
    }

    /// Takes a ticket with the pass that the breaker gave out.
    pub(crate) fn with_pass(member: Arc<Member>, pass: u32, started: Moment, due: Option<Due>) -> Self {
        member.cell.begin(started);
        if let Some(metrics) = &member.metrics {
            metrics.tally.begin();
        }
        let (told, deadline) = (due.is_some_and(|due| due.told), due.map(|due| due.at));
        Self {
            member: Some(member),
            pass,
            told,
            started,
            deadline,
            status: None,
            backend: None,
            phase: Phase::Waiting,
            route: None,
            attempting: None,
        }
    }

    /// The same, to be counted by its route's breaker.
    pub(crate) fn of_route(self, pass: RoutePass) -> Self {
        let mut ticket = self;
        ticket.route = Some(Box::new(pass));
        ticket
    }

    /// The request is about to be sent to this endpoint: its backend counts it, and whoever must know is told.
    #[inline]
    pub(crate) fn sent<R: MeshRequest>(&mut self, request: &mut R) {
        if let Some(backend) = request.backend() {
            backend.tally.begin();
            self.backend = Some(Arc::clone(backend));
        }
        if let Some(observed) = request.observed().map(Arc::clone) {
            self.observe_by(&observed, request);
        }
        if request.state().is_some_and(|state| state.is_hedged)
            && let Some(member) = &self.member
        {
            failed::note(member.id());
        }
    }

    #[cold]
    fn observe_by<R: MeshRequest>(&mut self, observed: &Arc<Observed>, request: &mut R) {
        let number = request.state().map_or(0, |state| state.attempt);
        let endpoint = self.member.as_ref().map(|member| Arc::clone(&member.endpoint));
        let attempting = observed.attempt(number, endpoint, request.http_mut().headers_mut());
        self.attempting = Some(Box::new(attempting));
    }

    /// Whoever observes the attempt.
    #[inline]
    pub(crate) fn attempting(&mut self) -> Option<&mut Attempting> {
        self.attempting.as_deref_mut()
    }

    /// The attempt has no response, because of this error. Returns the endpoint.
    pub(crate) fn fail(mut self, error: &Error) -> Option<Arc<Member>> {
        self.conclude(&Outcome::of_error(error), Some(error), None);
        self.member.take()
    }

    /// The endpoint that was picked; `None` after the ticket was settled.
    pub fn member(&self) -> Option<&Arc<Member>> {
        self.member.as_ref()
    }

    /// The response's head came at `now`, with this status.
    #[inline]
    pub(crate) fn head(&mut self, now: Instant, head: Head, status: u16) {
        let Some(member) = &self.member else { return };
        self.status = NonZeroU16::new(status);
        let at = Moment::since(member.rules.epoch, now);
        self.tallies(member, |tally| tally.latency(at.since_moment(self.started)));
        member.cell.headers(self.started);
        member.cell.stream_begins();
        let (outcome, judged) = match head {
            Head::Decided(outcome) if outcome.is_failure() => {
                let fair = if self.is_hopeless(member, &outcome, || at) { Outcome::DROPPED } else { outcome };
                judge(member, (self.pass, self.route.as_deref()), &fair, || at);
                if let Some(attempting) = &self.attempting {
                    tell_breaker(member, self.pass, attempting);
                }
                (outcome, true)
            }
            Head::Decided(outcome) | Head::Unless(outcome) => (outcome, false),
        };
        let latency = at.secs_since(self.started);
        let told = went_well(&outcome) != Some(true);
        self.phase = Phase::Body { head: outcome, at, latency, told, judged };
        if matches!(head, Head::Decided(_)) {
            self.data();
        }
    }

    /// What the endpoint tells of its load in headers or trailers, if it is asked for.
    #[inline]
    pub(crate) fn told(&self, headers: Option<&HeaderMap>) {
        let Some(member) = &self.member else { return };
        let Some(mean) = &member.rules.others else { return };
        if let Some(load) = headers.and_then(report::read)
            && let Some(requests) = load.requests(member.cell.latency().secs)
        {
            mean.learn(member.cell.reported(requests, member.rules.now()));
        }
    }

    /// The response proved to be one that the endpoint worked for: its latency counts, measured to its headers.
    #[inline]
    pub(crate) fn data(&mut self) {
        let (Some(member), Phase::Body { at, latency, told, .. }) = (&self.member, &mut self.phase) else {
            return;
        };
        if !*told {
            *told = true;
            member.cell.learn(&member.rules.formula, *at, *latency);
        }
    }

    /// The response came to its end, with these trailers.
    #[inline]
    pub(crate) fn complete(mut self, last: Option<&HeaderMap>) -> Option<Arc<Member>> {
        self.told(last);
        let outcome = match self.phase {
            Phase::Body { head, judged: false, .. } => trailers(head, last),
            Phase::Body { head, .. } => head,
            Phase::Waiting | Phase::Settled => Outcome::DROPPED,
        };
        self.conclude(&outcome, None, last);
        self.member.take()
    }

    /// The attempt ended so. Returns the endpoint.
    #[inline]
    pub fn settle(mut self, outcome: &Outcome) -> Option<Arc<Member>> {
        self.conclude(outcome, None, None);
        self.member.take()
    }

    /// Ends the attempt, and tells whoever observes it.
    #[inline]
    fn conclude(&mut self, outcome: &Outcome, error: Option<&Error>, last: Option<&HeaderMap>) {
        // What was judged by its head was told then: the breaker may have moved since for another reason.
        let was_judged = matches!(self.phase, Phase::Body { judged: true, .. });
        self.end(outcome);
        if let Some(mut attempting) = self.attempting.take() {
            if let Some(member) = self.member.as_ref().filter(|_| !was_judged) {
                tell_breaker(member, self.pass, &attempting);
            }
            attempting.end(outcome, error, last);
        }
    }

    /// Whether the time was over before the endpoint had a chance: that says nothing of it.
    fn is_hopeless(&self, member: &Member, outcome: &Outcome, now: impl Fn() -> Moment) -> bool {
        // As this side sees it; as a gRPC or an HTTP server says it.
        let late =
            matches!(outcome.cause, Cause::Timeout(Scope::Request) | Cause::Grpc(4) | Cause::Status(504));
        late && self.told && now().secs_since(self.started) < FAIR_FACTOR * member.cell.latency().secs
    }

    fn end(&mut self, outcome: &Outcome) {
        let Some(member) = &self.member else { return };
        if self.phase != Phase::Settled {
            self.count(member, outcome);
        }
        let hopeless = self.is_hopeless(member, outcome, || member.rules.now());
        let outcome = if hopeless { &Outcome::DROPPED } else { outcome };
        let well = went_well(outcome) == Some(true);
        let rules = &member.rules;
        match std::mem::replace(&mut self.phase, Phase::Settled) {
            Phase::Settled => return,
            Phase::Waiting => {
                member.cell.headers(self.started);
                if outcome.verdict == Verdict::Cancelled && outcome.cause == Cause::Dropped {
                    let now = rules.now();
                    member.cell.learn_at_least(&rules.formula, now, now.secs_since(self.started));
                }
            }
            Phase::Body { at, latency, told, judged, .. } => {
                member.cell.stream_ends();
                if well {
                    if !told {
                        member.cell.learn(&rules.formula, at, latency);
                    }
                    local::push(rules.number, &member.cell);
                }
                if judged {
                    return;
                }
            }
        }
        judge(member, (self.pass, self.route.as_deref()), outcome, || rules.now());
    }

    /// Counts the end. Without a response, what it took until now is its latency, unless the caller went away.
    #[inline]
    fn count(&self, member: &Member, outcome: &Outcome) {
        if self.phase == Phase::Waiting && outcome.verdict != Verdict::Cancelled {
            let latency = member.rules.now().since_moment(self.started);
            self.tallies(member, |tally| tally.latency(latency));
        }
        let ending = Ending::new(self.status.map(NonZeroU16::get), outcome);
        self.tallies(member, |tally| tally.end(ending));
    }

    /// All that count the attempt.
    #[inline(always)]
    fn tallies(&self, member: &Member, count: impl Fn(&Tally)) {
        if let Some(endpoint) = &member.metrics {
            count(&endpoint.tally);
        }
        if let Some(backend) = &self.backend {
            count(&backend.tally);
        }
    }

    /// How it ended when nobody says: by the deadline, or by the caller.
    fn dropped(&self) -> Outcome {
        if self.deadline.is_some_and(|deadline| clock::now() >= deadline) {
            return Outcome::new(Verdict::Failure, Cause::Timeout(Scope::Request));
        }
        match self.phase {
            Phase::Body { head, .. } => head,
            Phase::Waiting | Phase::Settled => Outcome::DROPPED,
        }
    }
}

/// Counts an end for or against the endpoint, for the balancer and for its breaker.
#[inline]
fn judge(
    member: &Arc<Member>,
    (pass, route): (u32, Option<&RoutePass>),
    outcome: &Outcome,
    now: impl Fn() -> Moment,
) {
    if let Some(well) = went_well(outcome) {
        member.cell.judge(well, &now);
    }
    let rng = &member.rules.rng;
    match (&member.rules.breaker, route) {
        (Breaker::Whole(ward), _) => ward.record(member, pass, rng, outcome, now),
        (_, Some(route)) => route.record(rng, outcome, now),
        (Breaker::None | Breaker::Routes(_), None) => {}
    }
}

impl Drop for Ticket {
    #[inline]
    fn drop(&mut self) {
        if self.member.is_some() && self.phase != Phase::Settled {
            let outcome = self.dropped();
            self.conclude(&outcome, None, None);
        }
    }
}
