//! Floor 2: decides when a certificate is renewed, and when its age is alarming.

use crate::stdx::rng::Rng;
use std::time::Duration;
use std::time::SystemTime;

/// When a certificate is renewed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RenewalSettings {
    /// The share of the remaining time after which it is renewed. Default 0.7, as Linkerd does: three tenths are
    /// left for an issuer that is down.
    pub share: f64,
    /// The shortest wait before a renewal. Default 1 s, so that a misconfigured issuer is not flooded.
    pub wait_min: Duration,
    /// The longest wait before a renewal. Default 24 h, so that a year-long certificate is still looked after.
    pub wait_max: Duration,
    /// The share of the wait by which it is shortened at random, so that replicas started together do not renew
    /// together. Default 0.1.
    pub jitter: f64,
    /// The wait after a first failure; it doubles with each further one. Default 1 s.
    pub retry_min: Duration,
    /// The longest wait after a failure. Default 30 s.
    pub retry_max: Duration,
    /// How long an issuer may take to answer. Default 10 s.
    pub answer_max: Duration,
}

impl Default for RenewalSettings {
    fn default() -> Self {
        Self {
            share: 0.7,
            wait_min: Duration::from_secs(1),
            wait_max: Duration::from_secs(24 * 3600),
            jitter: 0.1,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            answer_max: Duration::from_secs(10),
        }
    }
}

impl RenewalSettings {
    /// Linkerd's rule (`linkerd.md` §7.1): no wait below 10 s.
    pub fn linkerd() -> Self {
        Self { wait_min: Duration::from_secs(10), ..Self::default() }
    }

    /// How long to wait before the renewal of a certificate that is valid for `remaining` more, without jitter.
    /// Zero: it has expired, or there is none.
    pub fn wait(&self, remaining: Duration) -> Duration {
        let share = self.share.clamp(0.0, 1.0);
        remaining.mul_f64(share).clamp(self.wait_min, self.wait_max.max(self.wait_min))
    }

    /// [`wait`](Self::wait), shortened at random.
    pub fn jittered_wait(&self, remaining: Duration, rng: &Rng) -> Duration {
        let wait = self.wait(remaining);
        wait.mul_f64(1.0 - self.jitter.clamp(0.0, 1.0) * rng.unit())
    }

    /// How long to wait after the `failures`th failure in a row: doubling, of which a random half is taken off.
    pub fn wait_after_failure(&self, failures: u32, rng: &Rng) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let whole = self.retry_min.saturating_mul(1 << doublings).min(self.retry_max);
        whole.mul_f64(1.0 - rng.unit() / 2.0)
    }
}

/// How alarming the age of our certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alarm {
    /// More than 30 % of its life is left.
    Calm,
    /// At most 30 % is left: a renewal is overdue.
    Low,
    /// At most 10 % is left.
    Critical,
    /// None is left, or there is no certificate.
    Expired,
}

impl Alarm {
    /// The alarm at `now` for a certificate valid from `not_before` to `not_after`.
    pub fn at(now: SystemTime, not_before: SystemTime, not_after: SystemTime) -> Self {
        let Ok(left) = not_after.duration_since(now) else { return Self::Expired };
        let life = not_after.duration_since(not_before).unwrap_or_default();
        match left {
            left if left.is_zero() => Self::Expired,
            left if left <= life / 10 => Self::Critical,
            left if left <= life.mul_f64(0.3) => Self::Low,
            _ => Self::Calm,
        }
    }

    /// A word for metrics and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Low => "low",
            Self::Critical => "critical",
            Self::Expired => "expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn linkerds_rule_waits_seven_tenths_between_10_seconds_and_a_day() {
        let check = |remaining: u32, wait: u32| {
            assert_eq!(RenewalSettings::linkerd().wait(S * remaining), S * wait, "{remaining}");
        };
        check(86_400, 60_480);
        check(300, 210);
        check(10, 10);
        check(0, 10);
        check(2_592_000, 86_400);
    }

    #[test]
    fn jitter_only_shortens_and_only_by_a_tenth() {
        let settings = RenewalSettings::default();
        let rng = Rng::seeded(3);
        for _ in 0..1000 {
            let wait = settings.jittered_wait(S * 1000, &rng);
            assert!(S * 630 < wait && wait <= S * 700, "{wait:?}");
        }
    }

    #[test]
    fn failures_back_off_to_half_a_minute_at_most() {
        let settings = RenewalSettings::default();
        let rng = Rng::seeded(3);
        for failures in 1..100 {
            let wait = settings.wait_after_failure(failures, &rng);
            let whole = S.saturating_mul(1 << (failures - 1).min(10)).min(S * 30);
            assert!(whole / 2 <= wait && wait <= whole, "{failures}: {wait:?}");
        }
    }

    #[test]
    fn alarms_ring_at_30_and_10_percent() {
        let start = SystemTime::UNIX_EPOCH;
        let check =
            |now: u32, alarm| assert_eq!(Alarm::at(start + S * now, start, start + S * 100), alarm, "{now}");
        check(0, Alarm::Calm);
        check(69, Alarm::Calm);
        check(70, Alarm::Low);
        check(89, Alarm::Low);
        check(90, Alarm::Critical);
        check(99, Alarm::Critical);
        check(100, Alarm::Expired);
        check(1000, Alarm::Expired);
    }
}
