//! Floor 2: knows which limit passes next, and when.

use crate::error::{Error, Scope};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When something must have ended, and how that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The moment.
    pub at: Instant,
    /// The limit that the moment comes from.
    pub after: Duration,
    /// Which limit it is.
    pub scope: Scope,
}

impl Bound {
    /// `after` from `from` on; `None` beyond the end of time.
    pub fn new(from: Instant, after: Duration, scope: Scope) -> Option<Self> {
        Some(Self { at: from.checked_add(after)?, after, scope })
    }

    /// The earlier one; of two at one moment, the first.
    #[must_use]
    pub fn earlier(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        [one, other].into_iter().flatten().min_by_key(|bound| bound.at)
    }

    /// That it has passed.
    pub fn error(&self) -> Error {
        Error::Timeout { scope: self.scope, after: self.after }
    }
}

/// The limits of an attempt that depend on what happens in it: when its last frame went in either direction, and when
/// its request's body was at its end. Shared by both bodies, which different tasks may poll.
#[derive(Debug)]
pub(crate) struct Pace {
    begun: Instant,
    /// Nanoseconds after `begun`.
    last: AtomicU64,
    /// Likewise, and one more; 0: not yet.
    sent: AtomicU64,
    limits: PaceLimits,
}

/// The limits that a [`Pace`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PaceLimits {
    /// Between two frames.
    pub(crate) idle: Option<Duration>,
    /// From the end of the request's body to the end of the response.
    pub(crate) response: Option<Duration>,
    /// From the end of the request's body to the response's headers.
    pub(crate) patience: Option<Duration>,
}

impl PaceLimits {
    /// Whether there is none.
    #[inline]
    fn is_empty(&self) -> bool {
        self.idle.is_none() && self.response.is_none() && self.patience.is_none()
    }
}

/// Which part of an attempt is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Before the response's headers.
    Head,
    /// After them.
    Body,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing, ever.
    Never,
    /// This passes.
    Passes(Bound),
    /// Look again: what a limit begins with has not happened yet, so it cannot pass before.
    Look(Instant),
}

impl Pace {
    /// `None` when there is no limit to know.
    pub(crate) fn new(limits: PaceLimits, now: impl FnOnce() -> Instant) -> Option<Self> {
        let (last, sent) = Default::default();
        (!limits.is_empty()).then(|| Self { begun: now(), last, sent, limits })
    }

    /// A frame went.
    pub(crate) fn frame(&self, now: Instant) {
        self.last.fetch_max(self.since(now), Ordering::Relaxed);
    }

    /// The request's body is at its end. Only the first time counts.
    pub(crate) fn sent(&self, now: Instant) {
        let _ = self.sent.compare_exchange(0, self.since(now) + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What is next, `bound` included.
    pub(crate) fn due(&self, part: Part, bound: Option<Bound>, now: impl FnOnce() -> Instant) -> Due {
        let last = self.begun + Duration::from_nanos(self.last.load(Ordering::Relaxed));
        let idle = self.limits.idle.and_then(|idle| Bound::new(last, idle, Scope::Idle));
        let first = Bound::earlier(bound, idle);
        let patience =
            self.limits.patience.filter(|_| part == Part::Head).map(|after| (after, Scope::Attempt));
        let response = self.limits.response.map(|after| (after, Scope::Response));
        let Some((after, scope)) = [patience, response].into_iter().flatten().min_by_key(|(after, _)| *after)
        else {
            return first.map_or(Due::Never, Due::Passes);
        };
        match self.sent.load(Ordering::Relaxed).checked_sub(1) {
            Some(sent) => {
                let sent = Bound::new(self.begun + Duration::from_nanos(sent), after, scope);
                Bound::earlier(first, sent).map_or(Due::Never, Due::Passes)
            }
            None => match (first, now().checked_add(after)) {
                (Some(first), Some(look)) if first.at <= look => Due::Passes(first),
                (_, Some(look)) => Due::Look(look),
                (first, None) => first.map_or(Due::Never, Due::Passes),
            },
        }
    }

    fn since(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_earliest_limit_is_due() {
        let start = clock::now();
        let limits = PaceLimits { response: Some(MS(50)), patience: Some(MS(40)), idle: Some(MS(70)) };
        let pace = Pace::new(limits, || start).unwrap();
        let whole = Bound::new(start, MS(100), Scope::Request);
        let due = |part, ms| pace.due(part, whole, || start + MS(ms));
        let passes =
            |from, after, scope| Due::Passes(Bound::new(start + MS(from), MS(after), scope).unwrap());
        assert_eq!(due(Part::Head, 0), Due::Look(start + MS(40)));
        assert_eq!(due(Part::Body, 0), Due::Look(start + MS(50)));
        assert_eq!(due(Part::Head, 40), passes(0, 70, Scope::Idle));
        pace.frame(start + MS(40));
        assert_eq!(due(Part::Head, 70), passes(0, 100, Scope::Request));
        pace.sent(start + MS(45));
        pace.sent(start + MS(60));
        assert_eq!(due(Part::Head, 70), passes(45, 40, Scope::Attempt));
        assert_eq!(due(Part::Body, 70), passes(45, 50, Scope::Response));
    }

    #[test]
    fn a_limit_beyond_the_end_of_time_is_none() {
        let max = Some(Duration::MAX);
        let limits = PaceLimits { idle: max, response: max, patience: None };
        let pace = Pace::new(limits, clock::now).unwrap();
        assert!(Pace::new(PaceLimits::default(), clock::now).is_none());
        assert_eq!(pace.due(Part::Body, None, clock::now), Due::Never);
        pace.sent(clock::now());
        assert_eq!(pace.due(Part::Body, None, clock::now), Due::Never);
        assert_eq!(Bound::new(clock::now(), Duration::MAX, Scope::Request), None);
    }
}
