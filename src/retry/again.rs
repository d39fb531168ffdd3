//! Floor 4: what is kept of a request to send it again, and what is decided about an ended attempt.

use crate::classify::classifier::{self, Head};
use crate::classify::outcome::{Cause, Outcome, Verdict as Judged};
use crate::error::{BoxError, Error};
use crate::metrics::route::Hedge;
use crate::policy::call::{MeshRequest, ServedBy, copy_head};
use crate::policy::failed;
use crate::policy::observe::Note;
use crate::policy::route::RoutePolicy;
use crate::profile::settings::{HedgeSettings, HopMarks};
use crate::retry::body::Attempted;
use crate::retry::budget::Stake;
use crate::retry::decide::{Ended, RetryPolicy, Verdict, Why};
use crate::retry::marks;
use crate::retry::replay::{Keep, Replay, Replayable};
use crate::stdx::clock::{self, Duration};
use crate::stdx::copy::Copy;
use crate::stdx::rng::Rng;
use crate::timeout::inherited;
use http::header::CONTENT_TYPE;
use http::{Request, Response, Version};
use http_body::Body;
use std::pin::Pin;
use std::sync::Arc;
use tokio::time::Sleep;

/// When a second copy of this request is sent, if it may be hedged at all.
#[cold]
fn hedge_after<R: MeshRequest>(
    settings: &HedgeSettings,
    policy: &RetryPolicy,
    request: &R,
) -> Option<Duration> {
    let http = request.http();
    let state = request.state();
    // Whoever repeats it already need not be helped.
    let repeated = policy.hops() == HopMarks::Trust
        && (inherited::current().repeated || marks::is_repeated(http.headers()));
    if repeated || !policy.is_idempotent(http.method()) || state.and_then(|state| state.hedge) == Some(false)
    {
        return None;
    }
    let now = state.map_or_else(clock::now, |state| state.started);
    let read = || request.route().map(|route| route.metrics.calls().read().latency).unwrap_or_default();
    policy.recent().hedge_after(settings, now, read)
}

/// What is known of a call's further attempts before its first one is sent.
pub(crate) struct Prepared {
    own: Option<Arc<RetryPolicy>>,
    stake: Stake,
    body_bytes_max: usize,
    /// When a second copy is sent beside the first.
    pub(crate) hedge: Option<Duration>,
}

/// Prepares a request for its first attempt, by its route's policy or by `own`; `None` if there can be no other.
#[inline]
pub(crate) fn prepare<R: MeshRequest>(own: Option<&Arc<RetryPolicy>>, request: &mut R) -> Option<Prepared> {
    let (policy, own) = match request.route() {
        Some(route) => (route.retry.as_ref(), None),
        None => (own.map(Arc::as_ref), own),
    };
    let retries_max = request.state().and_then(|state| state.retries_max);
    let policy = policy?;
    let (hops, patience) = (policy.hops(), policy.patience());
    if !policy.may_repeat(retries_max) {
        if hops == HopMarks::Strip {
            marks::strip(request.http_mut().headers_mut());
        }
        return None;
    }
    let hedge = policy.hedge().and_then(|settings| hedge_after(settings, policy, request));
    let (stake, own, body_bytes_max) = (policy.budget().enter(), own.cloned(), policy.body_bytes_max());
    if let Some(state) = request.state_mut() {
        state.patience = patience;
        state.is_hedged = hedge.is_some();
    }
    if hops == HopMarks::Strip {
        marks::strip(request.http_mut().headers_mut());
    }
    Some(Prepared { own, stake, body_bytes_max, hedge })
}

impl Prepared {
    /// The body of the first attempt; what another one needs of it is kept.
    #[inline]
    pub(crate) fn record<B>(&self, body: B, kept: &mut Option<Keep<B>>) -> Replay<B>
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        let (body, keep) = Replay::record(body, self.body_bytes_max);
        *kept = keep;
        body
    }
}

/// What is kept of a request to send it again.
pub(crate) struct Again<S, R: MeshRequest> {
    pub(crate) service: S,
    /// Without the HTTP head while that is packed.
    pub(crate) head: R::With<()>,
    /// In a box, since every call moves this.
    packed: Option<Box<Copy>>,
    pub(crate) keep: Option<Keep<R::Body>>,
    pub(crate) own: Option<Arc<RetryPolicy>>,
    pub(crate) stake: Stake,
    pub(crate) rng: Rng,
    pub(crate) free: u32,
}

/// A copy of a request's head: as it is, or packed where that is cheaper.
#[inline]
fn pack<B>(http: &Request<B>) -> (Request<()>, Option<Box<Copy>>) {
    if http.headers().is_empty() {
        return (copy_head(http), None);
    }
    (Request::new(()), Some(Box::new(Copy::of(http, http.extensions().clone()))))
}

/// The body of another attempt, and the wait before it.
pub(crate) type Waits<B> = (Replay<B>, Option<Pin<Box<Sleep>>>);

/// How an attempt ended.
pub(crate) type End<ResB> = Result<Response<Attempted<ResB>>, Error>;

/// How an ended attempt is judged.
pub(crate) enum Judgement {
    /// So.
    Done(Outcome),
    /// The trailers may say otherwise.
    Peek(Outcome),
}

impl<S, R: MeshRequest> Again<S, R> {
    /// What is kept of a request whose first attempt is about to be sent, and of what travels beside it; `service` sends the
    /// others.
    #[inline]
    pub(crate) fn of<B>(
        http: &Request<B>,
        rest: R::Rest,
        prepared: Prepared,
        keep: Option<Keep<R::Body>>,
        (service, rng): (S, Rng),
    ) -> Self {
        let Prepared { own, stake, .. } = prepared;
        let (head, packed) = pack(http);
        let (parts, ()) = head.into_parts();
        Self { service, head: R::join(rest, parts, ()), packed, keep, own, stake, rng, free: 0 }
    }

    /// Unpacks the head, which most calls never need.
    #[cold]
    fn unpack(&mut self) {
        let Some(packed) = self.packed.take() else { return };
        match packed.restore(()) {
            Some(http) => *self.head.http_mut() = http,
            // Never; but what has no head is not sent again.
            None => self.keep = None,
        }
    }

    /// What sends its attempts.
    pub(crate) fn service_mut(&mut self) -> &mut S {
        &mut self.service
    }

    /// The route of its request.
    pub(crate) fn route(&self) -> Option<&Arc<RoutePolicy>> {
        self.head.route()
    }

    /// Its body once more, if it was kept.
    pub(crate) fn body(&self) -> Option<Replay<R::Body>> {
        self.keep.as_ref().and_then(Keep::again)
    }

    pub(crate) fn policy(&self) -> Option<&RetryPolicy> {
        self.own.as_deref().or_else(|| self.head.route()?.retry.as_ref())
    }

    /// Judges how an attempt ended.
    #[inline]
    pub(crate) fn judge<ResB: Body, W: ServedBy<ResB>>(
        &self,
        result: Result<&Response<ResB>, &Error>,
    ) -> Judgement {
        let response = match result {
            Ok(response) => response,
            // What this crate answered itself would be answered so again.
            Err(Error::InvalidBackend { .. } | Error::Fault { .. }) => {
                return Judgement::Done(Outcome::new(Judged::Failure, Cause::Local));
            }
            Err(error) => return Judgement::Done(Outcome::of_error(error)),
        };
        let (status, headers) = (response.status(), response.headers());
        let judged = W::judged(response.body()).map(|judged| judged.head);
        let head = judged.unwrap_or_else(|| {
            let classifier = self.head.route().map(|route| &*route.classifier);
            classifier::head(classifier, status, headers, clock::wall_secs)
        });
        match head {
            Head::Unless(outcome) if self.may_peek(response) => Judgement::Peek(outcome),
            head => Judgement::Done(head.outcome()),
        }
    }

    /// Whether the trailers may tell more: gRPC over HTTP/2 (linkerd.md §3.1). Of another response, waiting for the
    /// first frame would hold back its headers for nothing.
    fn may_peek<ResB: Body>(&self, response: &Response<ResB>) -> bool {
        let headers = response.headers();
        response.version() == Version::HTTP_2
            && (marks::is_grpc(headers) || !headers.contains_key(CONTENT_TYPE))
            && !response.body().is_end_stream()
            && self.policy().is_some_and(RetryPolicy::wants_trailers)
    }

    /// Ends a call whose first attempt needs no other, if that is so: the budget has its deposit.
    #[inline]
    pub(crate) fn pass<ResB>(&mut self, outcome: &Outcome, response: &mut Response<ResB>) -> Option<Stake> {
        let policy = self.policy()?;
        if policy.is_worth(outcome) {
            return None;
        }
        policy.budget().deposit(self.head.state().map_or_else(clock::now, |state| state.started));
        if policy.hops() == HopMarks::Strip {
            marks::strip(response.headers_mut());
        }
        Some(std::mem::take(&mut self.stake))
    }

    /// Decides about attempt `number` and tells the budget; counts what could be retried.
    fn decide<ResB: Body>(&mut self, number: u32, outcome: Outcome, end: &End<ResB>) -> Verdict {
        self.unpack();
        let mut stake = std::mem::take(&mut self.stake);
        let verdict = self.verdict(&mut stake, number, outcome, end);
        self.stake = stake;
        if let Some(route) = self.head.route() {
            match verdict {
                Verdict::Retry { .. } => route.metrics.retry(),
                Verdict::Return(Why::Unlisted) if number > 0 && end.is_ok() => {
                    route.metrics.retry_succeeded();
                }
                Verdict::Return(Why::Unlisted) => {}
                Verdict::Return(why) => route.metrics.skipped(why.as_str()),
            }
        }
        if let Verdict::Retry { free: true, .. } = verdict {
            self.free += 1;
        }
        verdict
    }

    fn verdict<ResB: Body>(
        &self,
        stake: &mut Stake,
        number: u32,
        outcome: Outcome,
        end: &End<ResB>,
    ) -> Verdict {
        let Some(policy) = self.policy() else { return Verdict::Return(Why::Unlisted) };
        let state = self.head.state();
        if !policy.is_worth(&outcome) {
            policy.budget().deposit(state.map_or_else(clock::now, |state| state.started));
            return Verdict::Return(Why::Unlisted);
        }
        let request = self.head.http();
        let trusted = policy.hops() == HopMarks::Trust;
        let said = end.as_ref().ok().into_iter().flat_map(|response| {
            [Some(response.headers()), response.body().trailers()].into_iter().flatten()
        });
        // Later attempts carry our own mark.
        let mut forbidden = trusted
            && number == 0
            && (inherited::current().repeated || marks::is_repeated(request.headers()));
        for headers in said {
            forbidden |= marks::forbids(headers) || trusted && marks::is_in_vain(headers);
        }
        let kept = self.keep.as_ref().map_or(Replayable::Gone, Keep::state);
        let now = clock::now();
        let read =
            |route: &Arc<RoutePolicy>| policy.recent().typical(now, || route.metrics.calls().read().latency);
        let typical = self.head.route().and_then(read).unwrap_or_default();
        let ended = Ended {
            method: request.method(),
            outcome,
            attempt: number,
            free: self.free,
            retries_max: state.and_then(|state| state.retries_max),
            deadline: state.and_then(|state| state.deadline),
            typical,
            // A response that came before all of the body was sent stands: it may answer a part of it.
            replayable: kept == Replayable::Complete || kept == Replayable::Open && end.is_err(),
            forbidden,
        };
        policy.decide(&ended, stake, now, &self.rng)
    }

    /// Decides what follows attempt `number`: the wait for another one; or nothing, and `end` is what the caller gets.
    pub(crate) fn settle<ResB, W>(
        &mut self,
        number: u32,
        outcome: Outcome,
        end: &mut End<ResB>,
    ) -> Option<Waits<R::Body>>
    where
        ResB: Body,
        W: ServedBy<ResB>,
    {
        let after = match self.decide(number, outcome, end) {
            Verdict::Retry { after, .. } => after,
            Verdict::Return(why) => {
                self.give_up(number, why, end);
                return None;
            }
        };
        let Some(body) = self.keep.as_ref().and_then(Keep::again) else {
            self.give_up(number, Why::Body, end);
            return None;
        };
        if let Some(route) = self.head.route() {
            let status = end.as_ref().ok().map(|response| response.status().as_u16());
            route.metrics.retried(status, &outcome);
        }
        self.tried::<ResB, W>(end);
        if let Some(observed) = self.head.observed() {
            observed.note(Note::Retried(number, &outcome, after));
        }
        let sleep = (!after.is_zero()).then(|| Box::pin(tokio::time::sleep(after)));
        Some((body, sleep))
    }

    /// One of two copies failed, and the other one goes on.
    pub(crate) fn lost<ResB: Body, W: ServedBy<ResB>>(&mut self, outcome: &Outcome, end: &End<ResB>) {
        if let Some(policy) = self.policy() {
            policy.budget().failure();
        }
        if let Some(route) = self.head.route() {
            let status = end.as_ref().ok().map(|response| response.status().as_u16());
            route.metrics.end_attempt(status, outcome);
        }
        self.tried::<ResB, W>(end);
    }

    /// Remembers the endpoint of an attempt that ended, so that the next one goes elsewhere.
    fn tried<ResB: Body, W: ServedBy<ResB>>(&mut self, end: &End<ResB>) {
        let tried = match end {
            Ok(response) => W::served_by(response.body().inner()),
            Err(_) => failed::take(),
        };
        if let (Some(state), Some(id)) = (self.head.state_mut(), tried) {
            state.tried.push(id);
        }
    }

    /// Remembers where an attempt went that is under way, so that a second copy goes elsewhere.
    pub(crate) fn note_sent(&mut self) {
        if let (Some(state), Some(id)) = (self.head.state_mut(), failed::take()) {
            state.tried.push(id);
        }
    }

    /// Whether an end needs no other attempt.
    pub(crate) fn is_good(&self, judgement: &Judgement) -> bool {
        match judgement {
            Judgement::Done(outcome) => self.policy().is_none_or(|policy| !policy.is_worth(outcome)),
            // The trailers come when the other copy is gone.
            Judgement::Peek(_) => true,
        }
    }

    /// Whether a second copy may be sent now; it is taken from the budget.
    pub(crate) fn may_hedge(&mut self) -> bool {
        self.unpack();
        if self.keep.as_ref().map(Keep::state) != Some(Replayable::Complete) {
            return false;
        }
        let (now, mut stake) = (clock::now(), std::mem::take(&mut self.stake));
        let in_time =
            self.head.state().and_then(|state| state.deadline).is_none_or(|deadline| now < deadline);
        let policy = self.policy().filter(|_| in_time);
        let granted = policy.map(|policy| policy.budget().withdraw(&mut stake, now));
        self.stake = stake;
        if let (Some(false), Some(route)) = (granted, self.head.route()) {
            route.metrics.hedged(Hedge::NoBudget);
        }
        granted == Some(true)
    }

    /// Marks the last attempt's end for the hop before, and for the caller.
    fn give_up<ResB: Body>(&mut self, number: u32, why: Why, end: &mut End<ResB>) {
        let hops = self.policy().map_or(HopMarks::Off, RetryPolicy::hops);
        if hops != HopMarks::Off && why.is_in_vain() {
            inherited::note_in_vain();
        }
        if let Some(observed) = self.head.observed().filter(|_| why != Why::Unlisted) {
            observed.note(Note::GivenUp(number, why.as_str()));
        }
        let Ok(response) = end else { return };
        match hops {
            HopMarks::Off => {}
            HopMarks::Strip if !why.is_in_vain() => marks::strip(response.headers_mut()),
            HopMarks::Trust | HopMarks::Strip if why.is_in_vain() => {
                marks::in_vain(response.headers_mut(), number + 1);
            }
            HopMarks::Trust | HopMarks::Strip => {}
        }
        response.body_mut().finish(number + 1, std::mem::take(&mut self.stake));
    }

    /// The request for attempt `number`, and what is kept to send it yet again.
    pub(crate) fn next(mut self, number: u32, body: Replay<R::Body>) -> (Self, R::With<Replay<R::Body>>) {
        self.unpack();
        let policy = self.policy();
        let last = policy.is_none_or(|policy| {
            let retries_max = self.head.state().and_then(|state| state.retries_max);
            policy.is_last(number - self.free, retries_max) || policy.budget().level(clock::now()) == 0
        });
        let marked = policy.is_some_and(|policy| policy.hops() != HopMarks::Off);
        let Self { service, mut head, packed, keep, own, stake, rng, free } = self;
        if let Some(state) = head.state_mut() {
            state.attempt = number;
            state.patience = state.patience.filter(|_| !last);
        }
        if marked {
            marks::repeated(head.http_mut().headers_mut(), number, last);
        }
        let (rest, parts, ()) = head.split();
        let head = R::join(rest.clone(), parts.clone(), ());
        (Self { service, head, packed, keep, own, stake, rng, free }, R::join(rest, parts, body))
    }
}
