//! Floor 4: the ticket of one attempt: taken when an endpoint is picked, settled exactly once.

use crate::balance::cost::{Formula, Moment};
use crate::balance::endpoint::Cell;
use crate::classify::classifier::{Head, trailers};
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::discover::endpoint::Endpoint;
use crate::error::Scope;
use crate::policy::call::EndpointId;
use crate::stdx::clock;
use crate::stdx::clock::Instant;
use http::HeaderMap;
use std::sync::Arc;

/// One endpoint as tickets hold it.
#[derive(Debug)]
pub struct Member {
    pub(crate) cell: Arc<Cell>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) rules: Arc<Rules>,
}

/// What holds for all endpoints of a service, of one version of its settings.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) epoch: Instant,
    pub(crate) formula: Formula,
}

impl Rules {
    fn now(&self) -> Moment {
        Moment::since(self.epoch, clock::now())
    }
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
/// endpoint was too slow, whichever timer fired first (house.md §7).
#[derive(Debug)]
pub struct Ticket {
    member: Option<Arc<Member>>,
    started: Instant,
    deadline: Option<Instant>,
    phase: Phase,
}

impl Ticket {
    /// Takes a ticket at `member` for an attempt that started at `started`.
    pub(crate) fn take(member: Arc<Member>, started: Instant, deadline: Option<Instant>) -> Self {
        member.cell.begin(Moment::since(member.rules.epoch, started));
        Self { member: Some(member), started, deadline, phase: Phase::Waiting }
    }

    /// The endpoint that was picked; `None` after the ticket was settled.
    pub fn member(&self) -> Option<&Arc<Member>> {
        self.member.as_ref()
    }

    /// The response's head came at `now`.
    pub(crate) fn head(&mut self, now: Instant, head: Head) {
        let Some(member) = &self.member else { return };
        let epoch = member.rules.epoch;
        let start = Moment::since(epoch, self.started);
        let at = Moment::since(epoch, now);
        member.cell.headers(start);
        member.cell.stream_begins();
        let (outcome, judged) = match head {
            Head::Decided(outcome) if outcome.is_failure() => {
                judge(member, &outcome, || at);
                (outcome, true)
            }
            Head::Decided(outcome) | Head::Unless(outcome) => (outcome, false),
        };
        self.phase = Phase::Body { head: outcome, at, latency: at.secs_since(start), told: judged, judged };
        if matches!(head, Head::Decided(_)) {
            self.data();
        }
    }

    /// The response proved to be one that the endpoint worked for: its latency counts.
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
    pub(crate) fn complete(self, last: Option<&HeaderMap>) -> Option<Arc<Member>> {
        let outcome = match self.phase {
            Phase::Body { head, judged: false, .. } => trailers(head, last),
            Phase::Body { head, .. } => head,
            Phase::Waiting | Phase::Settled => Outcome::DROPPED,
        };
        self.settle(&outcome)
    }

    /// The attempt ended so.
    pub fn settle(mut self, outcome: &Outcome) -> Option<Arc<Member>> {
        self.end(outcome);
        self.member.take()
    }

    fn end(&mut self, outcome: &Outcome) {
        let Some(member) = &self.member else { return };
        match std::mem::replace(&mut self.phase, Phase::Settled) {
            Phase::Settled => return,
            Phase::Waiting => {
                let start = Moment::since(member.rules.epoch, self.started);
                member.cell.headers(start);
                if outcome.verdict == Verdict::Cancelled && outcome.cause == Cause::Dropped {
                    let now = member.rules.now();
                    member.cell.learn_at_least(&member.rules.formula, now, now.secs_since(start));
                }
            }
            Phase::Body { at, latency, told, judged, .. } => {
                member.cell.stream_ends();
                if judged {
                    return;
                }
                if !told && outcome.verdict == Verdict::Success {
                    member.cell.learn(&member.rules.formula, at, latency);
                }
            }
        }
        judge(member, outcome, || member.rules.now());
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

/// Counts an end for or against the endpoint. What we refused ourselves is neither.
fn judge(member: &Member, outcome: &Outcome, now: impl FnOnce() -> Moment) {
    match (outcome.verdict, outcome.cause) {
        (Verdict::Cancelled, _) | (_, Cause::Local) => {}
        (verdict, _) => member.cell.judge(verdict == Verdict::Success, now),
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.member.is_some() && self.phase != Phase::Settled {
            let outcome = self.dropped();
            self.end(&outcome);
        }
    }
}
