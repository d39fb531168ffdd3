//! Floor 2: decides whether an ended attempt is tried again.

use crate::classify::outcome::{Cause, Outcome};
use crate::error::Scope;
use crate::profile::settings::{BackoffSettings, HedgeSettings, HopMarks, RetryOn, RetrySettings};
use crate::retry::budget::{Budget, Stake};
use crate::retry::hedge::Recent;
use crate::stdx::backoff::Backoff;
use crate::stdx::rng::Rng;
use http::Method;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Attempts in all when nothing is said: Google SRE's and gRPC's usual three.
pub const ATTEMPTS_DEFAULT: u32 = 3;
/// Attempts in all whatever is said: beyond it a retry is a loop.
pub const ATTEMPTS_MAX: u32 = 10;
/// Body bytes kept for a repetition when nothing is said (Linkerd).
pub const BODY_BYTES_DEFAULT: usize = 64 * 1024;
/// Body bytes kept for a repetition whatever is said: a thousand requests then hold 1 GiB at most.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// The longest wait that a peer's `Retry-After` can ask of us; for a longer one the caller gets the answer, and can
/// read the hint itself.
pub const PUSHBACK_MAX: Duration = Duration::from_secs(10);

/// A route's retries, compiled.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    attempts_max: u32,
    on: RetryOn,
    grpc: u32,
    backoff: Option<Backoff>,
    idempotent: bool,
    body_bytes_max: usize,
    hops: HopMarks,
    patience: Option<Duration>,
    hedge: Option<HedgeSettings>,
    recent: Arc<Recent>,
    budget: Arc<Budget>,
}

/// What is known of an ended attempt and its call.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// How it ended.
    pub outcome: Outcome,
    /// Its number, from 0.
    pub attempt: u32,
    /// How many of those before were [free](Verdict::Retry::free).
    pub free: u32,
    /// The caller's own limit of retries.
    pub retries_max: Option<u8>,
    /// When the whole call must have ended.
    pub deadline: Option<Instant>,
    /// What an attempt usually takes; zero if unknown.
    pub typical: Duration,
    /// Whether the request's body can be sent again.
    pub replayable: bool,
    /// Whether another hop, or the peer, said not to retry.
    pub forbidden: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Give the caller what there is.
    Return(Why),
    /// Send it again.
    Retry {
        /// After this wait.
        after: Duration,
        /// Whether it does not count as an attempt: the peer certainly did not process the one before. Once a call.
        free: bool,
    },
}

/// Why an attempt is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// It ended in no way that the route retries.
    Unlisted,
    /// It may have been processed, and the method is not safe.
    Method,
    /// There were enough attempts.
    Attempts,
    /// The body cannot be sent again.
    Body,
    /// The peer or another hop asked not to.
    Forbidden,
    /// The peer wants to be left alone for longer than we wait.
    Pushback,
    /// Another attempt could not end in time.
    Deadline,
    /// The budget is spent.
    Budget,
}

impl Why {
    /// A short word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unlisted => "unlisted",
            Self::Method => "method",
            Self::Attempts => "attempts",
            Self::Body => "body",
            Self::Forbidden => "forbidden",
            Self::Pushback => "pushback",
            Self::Deadline => "deadline",
            Self::Budget => "no_budget",
        }
    }

    /// Whether the retries that could be made were made, so that the hop before need not try again.
    pub fn is_in_vain(self) -> bool {
        matches!(self, Self::Attempts | Self::Budget | Self::Forbidden)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    Nothing,
    IfSafe,
    Always,
}

impl RetryPolicy {
    /// Fills the defaults of `settings`: 3 attempts; a body of 64 KiB; and, when `on` names nothing at all, failures,
    /// connections that cannot be opened, refused and reset streams, and timeouts of an attempt. A backoff of zero is
    /// none.
    pub fn compile(settings: &RetrySettings, budget: Arc<Budget>) -> Self {
        let said = settings.on != RetryOn::default();
        let on = if said { settings.on.clone() } else { usual() };
        let backoff = settings.backoff.and_then(|BackoffSettings { base, max, jitter }| {
            let jitter = if jitter.is_nan() { 1.0 } else { f64::from(jitter).clamp(0.0, 1.0) };
            Backoff::new(base, max.max(base), jitter).ok()
        });
        Self {
            attempts_max: settings.attempts_max.unwrap_or(ATTEMPTS_DEFAULT).clamp(1, ATTEMPTS_MAX),
            grpc: on.grpc.iter().fold(0, |bits, code| bits | 1u32.checked_shl(u32::from(*code)).unwrap_or(0)),
            on,
            backoff,
            idempotent: settings.idempotent,
            body_bytes_max: settings.body_bytes_max.unwrap_or(BODY_BYTES_DEFAULT).min(BODY_BYTES_MAX),
            hops: settings.hops,
            patience: settings.patience,
            hedge: settings.hedge.clone(),
            recent: Arc::default(),
            budget,
        }
    }

    /// Attempts in all, the first one included.
    pub fn attempts(&self) -> u32 {
        self.attempts_max
    }

    /// Which ends are tried again.
    pub fn on(&self) -> &RetryOn {
        &self.on
    }

    /// The budget it draws from.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The most body bytes kept for a repetition.
    pub fn body_bytes_max(&self) -> usize {
        self.body_bytes_max
    }

    /// How attempts are marked for the next hops.
    pub fn hops(&self) -> HopMarks {
        self.hops
    }

    /// How long an attempt may take while another may follow.
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// When to hedge.
    pub fn hedge(&self) -> Option<&HedgeSettings> {
        self.hedge.as_ref()
    }

    /// What the route's calls took lately.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Whether there can be a second attempt at all.
    pub fn may_repeat(&self, retries_max: Option<u8>) -> bool {
        self.attempts_max(retries_max) > 1
    }

    /// Whether attempt `counted`, from 0, is the last one.
    pub fn is_last(&self, counted: u32, retries_max: Option<u8>) -> bool {
        counted.saturating_add(1) >= self.attempts_max(retries_max)
    }

    /// Whether the trailers of a response can make it worth another attempt.
    pub fn wants_trailers(&self) -> bool {
        self.on.failures || self.grpc != 0
    }

    /// Whether a request may be repeated though it may have been processed: the operator says so, or its method is
    /// safe (GET, HEAD, OPTIONS, TRACE). PUT and DELETE are idempotent by RFC 9110 §9.2.2, but repeating one may undo
    /// what another caller did in between, so they too need the operator's word.
    pub fn is_idempotent(&self, method: &Method) -> bool {
        self.idempotent || method.is_safe()
    }

    /// Whether this end is worth another attempt, whatever else holds.
    pub fn is_worth(&self, outcome: &Outcome) -> bool {
        self.worth(outcome) != Worth::Nothing
    }

    /// Decides, and settles the attempt with the budget: exactly one of deposit, failure and withdrawal.
    ///
    /// The order of reasons is fixed, and the budget is asked last, so that nothing is taken in vain.
    pub fn decide(&self, ended: &Ended<'_>, stake: &mut Stake, now: Instant, rng: &Rng) -> Verdict {
        if !self.is_worth(&ended.outcome) {
            self.budget.deposit(now);
            return Verdict::Return(Why::Unlisted);
        }
        match self.plan(ended, now, rng) {
            Err(why) => {
                self.budget.failure();
                Verdict::Return(why)
            }
            Ok((after, free)) => match self.budget.withdraw(stake, now) {
                true => Verdict::Retry { after, free },
                false => Verdict::Return(Why::Budget),
            },
        }
    }

    fn plan(&self, ended: &Ended<'_>, now: Instant, rng: &Rng) -> Result<(Duration, bool), Why> {
        if self.worth(&ended.outcome) == Worth::IfSafe && !self.is_idempotent(ended.method) {
            return Err(Why::Method);
        }
        if ended.forbidden {
            return Err(Why::Forbidden);
        }
        let counted = ended.attempt.saturating_sub(ended.free);
        let attempts_max = self.attempts_max(ended.retries_max);
        let free = ended.outcome.cause == Cause::Refused && ended.free == 0 && counted < attempts_max;
        let free = free && ended.retries_max != Some(0);
        if self.is_last(counted, ended.retries_max) && !free {
            return Err(Why::Attempts);
        }
        if !ended.replayable {
            return Err(Why::Body);
        }
        let backoff = match self.backoff {
            Some(backoff) if !free => backoff.below(counted, rng),
            _ => Duration::ZERO,
        };
        let after = match ended.outcome.retry_after {
            Some(asked) if asked > PUSHBACK_MAX => return Err(Why::Pushback),
            Some(asked) => asked.max(backoff),
            None => backoff,
        };
        match ended.deadline {
            Some(deadline)
                if deadline.saturating_duration_since(now) <= after.saturating_add(ended.typical) =>
            {
                Err(Why::Deadline)
            }
            _ => Ok((after, free)),
        }
    }

    fn attempts_max(&self, retries_max: Option<u8>) -> u32 {
        match retries_max {
            Some(retries) => self.attempts_max.min(u32::from(retries) + 1),
            None => self.attempts_max,
        }
    }

    fn worth(&self, outcome: &Outcome) -> Worth {
        let (hit, always) = match outcome.cause {
            Cause::Status(status) => {
                let listed =
                    self.on.statuses.iter().any(|range: &RangeInclusive<u16>| range.contains(&status));
                (listed || self.on.failures && outcome.is_failure(), false)
            }
            Cause::Grpc(code) => {
                let listed = self.grpc & 1u32.checked_shl(u32::from(code)).unwrap_or(0) != 0;
                (listed || self.on.failures && outcome.is_failure(), false)
            }
            Cause::Connect => (self.on.connect_failure, true),
            Cause::Refused => (self.on.refused, true),
            Cause::Reset => (self.on.reset && outcome.is_failure(), false),
            Cause::Timeout(Scope::Attempt) => (self.on.attempt_timeout, false),
            // The whole call's time is over, or nothing was sent and would not be the next time.
            Cause::Timeout(_) | Cause::Local | Cause::Dropped => (false, false),
        };
        match (hit, always) {
            (false, _) => Worth::Nothing,
            (true, false) => Worth::IfSafe,
            (true, true) => Worth::Always,
        }
    }
}

/// What is retried when nothing is named.
fn usual() -> RetryOn {
    RetryOn {
        failures: true,
        connect_failure: true,
        refused: true,
        reset: true,
        attempt_timeout: true,
        ..RetryOn::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::outcome::Verdict as Judged;
    use crate::profile::settings::BudgetSettings;
    use crate::stdx::clock;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn policy(settings: RetrySettings) -> RetryPolicy {
        let budget = BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 1000, ttl: MS(10_000) };
        RetryPolicy::compile(&settings, Arc::new(Budget::new(&budget)))
    }

    fn ended(cause: Cause) -> Ended<'static> {
        Ended {
            method: &Method::GET,
            outcome: Outcome::new(Judged::Failure, cause),
            attempt: 0,
            free: 0,
            retries_max: None,
            deadline: None,
            typical: Duration::ZERO,
            replayable: true,
            forbidden: false,
        }
    }

    fn decide(policy: &RetryPolicy, ended: Ended<'_>) -> Verdict {
        policy.decide(&ended, &mut Stake::default(), clock::now(), &crate::stdx::rng::Rng::seeded(1))
    }

    fn check(change: impl FnOnce(&mut Ended<'static>), expected: Result<u64, Why>) {
        let mut ended = ended(Cause::Status(503));
        change(&mut ended);
        let verdict = decide(&policy(RetrySettings::default()), ended);
        match expected {
            Ok(ms) => {
                assert!(matches!(verdict, Verdict::Retry { after, .. } if after == MS(ms)), "{verdict:?}")
            }
            Err(why) => assert_eq!(verdict, Verdict::Return(why)),
        }
    }

    #[test]
    fn every_reason_not_to_retry() {
        check(|_| {}, Ok(0));
        check(|e| e.outcome = Outcome::new(Judged::Success, Cause::Status(404)), Err(Why::Unlisted));
        check(|e| e.outcome.cause = Cause::Timeout(Scope::Request), Err(Why::Unlisted));
        check(|e| e.outcome.cause = Cause::Timeout(Scope::Idle), Err(Why::Unlisted));
        check(|e| e.outcome.cause = Cause::Local, Err(Why::Unlisted));
        check(|e| e.outcome = Outcome::DROPPED, Err(Why::Unlisted));
        check(|e| e.outcome.cause = Cause::Timeout(Scope::Attempt), Ok(0));
        check(|e| e.method = &Method::POST, Err(Why::Method));
        check(|e| e.method = &Method::PUT, Err(Why::Method));
        check(|e| e.method = &Method::DELETE, Err(Why::Method));
        check(|e| e.method = &Method::OPTIONS, Ok(0));
        check(|e| (e.method, e.outcome.cause) = (&Method::POST, Cause::Reset), Err(Why::Method));
        check(
            |e| (e.method, e.outcome.cause) = (&Method::POST, Cause::Timeout(Scope::Attempt)),
            Err(Why::Method),
        );
        check(|e| (e.method, e.outcome.cause) = (&Method::POST, Cause::Connect), Ok(0));
        check(|e| (e.method, e.outcome.cause) = (&Method::POST, Cause::Refused), Ok(0));
        check(|e| e.forbidden = true, Err(Why::Forbidden));
        check(|e| e.attempt = 1, Ok(0));
        check(|e| e.attempt = 2, Err(Why::Attempts));
        check(|e| e.attempt = u32::MAX, Err(Why::Attempts));
        check(|e| e.retries_max = Some(0), Err(Why::Attempts));
        check(|e| (e.attempt, e.retries_max) = (1, Some(1)), Err(Why::Attempts));
        check(|e| e.retries_max = Some(200), Ok(0));
        check(|e| (e.attempt, e.retries_max) = (2, Some(200)), Err(Why::Attempts));
        check(|e| e.replayable = false, Err(Why::Body));
        check(|e| e.deadline = Some(clock::now()), Err(Why::Deadline));
        check(|e| e.deadline = Some(clock::now() + MS(5000)), Ok(0));
        check(|e| (e.deadline, e.typical) = (Some(clock::now() + MS(5000)), MS(6000)), Err(Why::Deadline));
        check(|e| e.outcome.retry_after = Some(MS(700)), Ok(700));
        check(|e| e.outcome.retry_after = Some(MS(10_001)), Err(Why::Pushback));
        let late = |e: &mut Ended<'_>| {
            (e.outcome.retry_after, e.deadline) = (Some(MS(700)), Some(clock::now() + MS(600)));
        };
        check(late, Err(Why::Deadline));
    }

    #[test]
    fn what_the_peer_certainly_did_not_process_is_sent_once_more_for_free() {
        let mut refused = ended(Cause::Refused);
        refused.attempt = 2;
        let policy =
            policy(RetrySettings { backoff: Some(BackoffSettings::default()), ..RetrySettings::default() });
        assert_eq!(decide(&policy, refused), Verdict::Retry { after: Duration::ZERO, free: true });
        (refused.attempt, refused.free) = (3, 1);
        assert_eq!(decide(&policy, refused), Verdict::Return(Why::Attempts));
        refused.attempt = 2;
        assert!(matches!(decide(&policy, refused), Verdict::Retry { free: false, .. }));
    }

    #[test]
    fn without_budget_there_is_no_retry() {
        let none = BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 0, ttl: MS(1000) };
        let policy = RetryPolicy::compile(&RetrySettings::default(), Arc::new(Budget::new(&none)));
        for cause in [Cause::Status(503), Cause::Refused, Cause::Connect] {
            assert_eq!(decide(&policy, ended(cause)), Verdict::Return(Why::Budget));
        }
    }

    #[test]
    fn only_what_is_named_is_retried() {
        let on = RetryOn { statuses: vec![502..=503, 409..=409], grpc: vec![14], ..RetryOn::default() };
        let policy = policy(RetrySettings { on, idempotent: true, ..RetrySettings::default() });
        let worth = |cause| policy.is_worth(&Outcome::new(Judged::Success, cause));
        let causes =
            [Cause::Status(502), Cause::Status(409), Cause::Grpc(14), Cause::Status(500), Cause::Grpc(13)];
        assert_eq!(causes.map(worth), [true, true, true, false, false]);
        assert!(!worth(Cause::Grpc(255)) && !worth(Cause::Connect) && !worth(Cause::Refused));
        assert!(policy.is_idempotent(&Method::POST));
    }

    proptest! {
        #[test]
        fn no_setting_breaks_a_cap(
            attempts: Option<u32>, attempt: u32, free in 0u32..2, retries: Option<u8>, left in 0u64..500,
            base in 0u64..1000, max in 0u64..1000, jitter: f32, hint: Option<u32>, seed: u64,
        ) {
            let backoff = BackoffSettings { base: MS(base), max: MS(max), jitter };
            let settings = RetrySettings { attempts_max: attempts, backoff: Some(backoff), ..RetrySettings::default() };
            let (policy, now) = (policy(settings), clock::now());
            for cause in [Cause::Status(503), Cause::Refused] {
                let mut ended = ended(cause);
                (ended.attempt, ended.free, ended.retries_max) = (attempt, free, retries);
                ended.deadline = Some(now + MS(left));
                ended.outcome.retry_after = hint.map(|secs| Duration::from_secs(secs.into()));
                let rng = crate::stdx::rng::Rng::seeded(seed);
                if let Verdict::Retry { after, .. } = policy.decide(&ended, &mut Stake::default(), now, &rng) {
                    prop_assert!(attempt <= ATTEMPTS_MAX);
                    prop_assert!(after < MS(left) && after <= PUSHBACK_MAX.max(MS(base.max(max))));
                    prop_assert!(retries != Some(0));
                }
            }
        }
    }
}
