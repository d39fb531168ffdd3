//! Floor 2: decides when a name is asked for again, and what is believed of it meanwhile.

use crate::stdx::rng::Rng;
use std::time::{Duration, Instant};

/// The least time between two questions while something is known: 5 s, whatever the TTL. A TTL of 0 would be a
/// flood of questions.
pub const TTL_MIN: Duration = Duration::from_secs(5);
/// The most time between two questions: 1 h. A TTL of 68 years is a typing mistake that must pass.
pub const TTL_MAX: Duration = Duration::from_secs(3600);
/// How long an answer without records is believed when it does not say: 30 s (RFC 2308 leaves it to us).
pub const TTL_OF_NOTHING: Duration = Duration::from_secs(30);
/// How long the last records stay after the name server said that there are none: 30 s. Registries drop records
/// for a moment while they restart; requests would all fail at once.
pub const HOLD: Duration = Duration::from_secs(30);
/// The pause after the first failure when nothing is known yet: 1 s. It doubles to [`RETRY_MAX`].
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest pause after a failure: 60 s, so that a name server that comes back is noticed within a minute.
pub const RETRY_MAX: Duration = Duration::from_secs(60);
/// The most records of one answer that are used: 512. A service that needs more needs more than DNS.
pub const RECORDS_MAX: usize = 512;

/// What a name server said, or did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<R> {
    /// These records.
    Records {
        /// Them.
        records: Vec<R>,
        /// How long they hold.
        ttl: Duration,
    },
    /// There is no such name, or no record of this type.
    Nothing {
        /// How long that holds, if it says.
        ttl: Option<Duration>,
    },
    /// There was no answer, or one that is none: why.
    Failed(String),
}

/// What is known of one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers<R> {
    records: Vec<R>,
    known: bool,
    /// When it is asked again; `None`: at once.
    due: Option<Instant>,
    failures: u32,
    nothing_since: Option<Instant>,
    fault: Option<String>,
}

impl<R> Default for Answers<R> {
    /// Nothing is known, and it is to be asked at once.
    fn default() -> Self {
        Self { records: Vec::new(), known: false, due: None, failures: 0, nothing_since: None, fault: None }
    }
}

impl<R: Ord> Answers<R> {
    /// The records believed at present, sorted, each once.
    pub fn records(&self) -> &[R] {
        &self.records
    }

    /// Whether there has ever been an answer.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Why the records are older or fewer than they should be.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// When it is to be asked again.
    pub fn due(&self, now: Instant) -> Instant {
        self.due.unwrap_or(now)
    }

    /// Learns from a reply that came at `now`.
    pub fn record(&mut self, now: Instant, rng: &Rng, reply: Reply<R>) {
        let wait = match reply {
            Reply::Records { records, ttl } if !records.is_empty() => self.accept(records, ttl),
            Reply::Records { ttl, .. } => self.nothing(now, Some(ttl)),
            Reply::Nothing { ttl } => self.nothing(now, ttl),
            Reply::Failed(why) => self.fail(rng, why),
        };
        self.due = Some(now + wait);
    }

    fn accept(&mut self, mut records: Vec<R>, ttl: Duration) -> Duration {
        records.sort();
        records.dedup();
        let count = records.len();
        records.truncate(RECORDS_MAX);
        self.fault =
            (count > RECORDS_MAX).then(|| format!("{count} records; the first {RECORDS_MAX} are used"));
        (self.records, self.known, self.failures, self.nothing_since) = (records, true, 0, None);
        ttl.clamp(TTL_MIN, TTL_MAX)
    }

    /// The last records stay until there have been none for [`HOLD`].
    fn nothing(&mut self, now: Instant, ttl: Option<Duration>) -> Duration {
        (self.known, self.failures, self.fault) = (true, 0, None);
        let wait = ttl.unwrap_or(TTL_OF_NOTHING).clamp(TTL_MIN, TTL_MAX);
        if self.records.is_empty() {
            return wait;
        }
        let since = *self.nothing_since.get_or_insert(now);
        let held = now.saturating_duration_since(since);
        if held >= HOLD {
            self.records.clear();
            return wait;
        }
        self.fault = Some(format!("no records any more; the last ones are used for {HOLD:?}"));
        wait.min((HOLD - held).max(TTL_MIN))
    }

    fn fail(&mut self, rng: &Rng, why: String) -> Duration {
        self.fault = Some(why);
        let doubled = RETRY_MIN.saturating_mul(1 << self.failures.min(6)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        // Between half and all of it, so that a herd of clients spreads.
        let wait = doubled.mul_f64(0.5 + 0.5 * rng.unit());
        if self.known { wait.max(TTL_MIN) } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn start() -> Instant {
        crate::stdx::clock::now()
    }

    fn records(records: &[u16], ttl: u64) -> Reply<u16> {
        Reply::Records { records: records.to_vec(), ttl: secs(ttl) }
    }

    fn failed() -> Reply<u16> {
        Reply::Failed("server failure".into())
    }

    /// Feeds replies, each as soon as it is due, and checks what is believed and how long the wait is then.
    fn check(replies: &[(Reply<u16>, &[u16], std::ops::RangeInclusive<u64>)]) -> Answers<u16> {
        let (rng, mut now) = (Rng::seeded(1), start());
        let mut answers = Answers::default();
        assert_eq!(answers.due(now), now, "it is asked at once");
        for (number, (reply, expected, wait)) in replies.iter().enumerate() {
            answers.record(now, &rng, reply.clone());
            assert_eq!(answers.records(), *expected, "reply {number}");
            let waits = answers.due(now) - now;
            assert!(wait.contains(&(waits.as_millis() as u64)), "reply {number}: waits {waits:?}");
            now = answers.due(now);
        }
        answers
    }

    const HOUR: u64 = 3_600_000;

    #[test]
    fn the_ttl_is_kept_between_five_seconds_and_an_hour() {
        check(&[
            (records(&[2, 1, 2], 0), &[1, 2], 5_000..=5_000),
            (records(&[1], 60), &[1], 60_000..=60_000),
            (records(&[1], u64::from(u32::MAX)), &[1], HOUR..=HOUR),
        ]);
    }

    #[test]
    fn a_failure_keeps_the_last_good_and_waits_longer_each_time() {
        let answers = check(&[
            (records(&[1], 5), &[1], 5_000..=5_000),
            (failed(), &[1], 5_000..=5_000),
            (failed(), &[1], 5_000..=5_000),
            (failed(), &[1], 5_000..=5_000),
            (failed(), &[1], 5_000..=8_000),
            (failed(), &[1], 8_000..=16_000),
            (failed(), &[1], 16_000..=32_000),
            (failed(), &[1], 30_000..=60_000),
            (failed(), &[1], 30_000..=60_000),
            (records(&[2], 5), &[2], 5_000..=5_000),
            (failed(), &[2], 5_000..=5_000),
        ]);
        assert_eq!(answers.fault(), Some("server failure"));
    }

    #[test]
    fn while_nothing_is_known_it_is_asked_sooner() {
        let answers = check(&[(failed(), &[], 500..=1_000), (failed(), &[], 1_000..=2_000)]);
        assert!(!answers.is_known());
        check(&[(failed(), &[], 500..=1_000), (Reply::Nothing { ttl: Some(secs(0)) }, &[], 5_000..=5_000)]);
    }

    #[test]
    fn that_there_are_no_records_is_believed_after_a_while() {
        let nothing = |ttl| Reply::Nothing { ttl };
        check(&[
            (records(&[1], 5), &[1], 5_000..=5_000),
            (nothing(Some(secs(20))), &[1], 20_000..=20_000),
            (nothing(Some(secs(20))), &[1], 10_000..=10_000),
            (nothing(Some(secs(20))), &[], 20_000..=20_000),
            (nothing(None), &[], 30_000..=30_000),
            (records(&[1], 5), &[1], 5_000..=5_000),
            (nothing(Some(secs(0))), &[1], 5_000..=5_000),
            (failed(), &[1], 5_000..=5_000),
            (records(&[1], 5), &[1], 5_000..=5_000),
            (nothing(Some(secs(9999))), &[1], 30_000..=30_000),
        ]);
        let answers = check(&[(nothing(None), &[], 30_000..=30_000)]);
        assert!(answers.is_known() && answers.fault().is_none());
        check(&[(records(&[], 7), &[], 7_000..=7_000)]);
    }

    #[test]
    fn a_thousand_records_are_cut_in_order() {
        let many: Vec<u16> = (0..1000).rev().collect();
        let first: Vec<u16> = (0..512).collect();
        let answers = check(&[(records(&many, 60), &first, 60_000..=60_000)]);
        assert_eq!(answers.fault(), Some("1000 records; the first 512 are used"));
    }
}
