//! Floor 2: what tells the series of an ending apart, and counters by it without a lock.

use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::error::{Error, Scope};
use metrics::Label;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most endings that are counted apart for one route, backend or endpoint: all statuses in common use, with room;
/// more share one series whose status is `other`. A status comes from a peer, so there must be a limit.
pub const ENDINGS_MAX: usize = NEAR + FAR;

/// Endings beside the other counters: success, and a handful of failures.
const NEAR: usize = 6;
/// Further ones, made when the first of them is met.
const FAR: usize = 58;

const NO_GRPC: u8 = u8::MAX;

/// Stands for the statuses that are not told apart; no HTTP status is so large.
const OTHER: u16 = u16::MAX;

/// Why there was no response, or none to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Word {
    None,
    RequestTimeout,
    HeadersTimeout,
    StreamTimeout,
    IdleTimeout,
    FailFast,
    NoEndpoints,
    Shed,
    Connect,
    Refused,
    Reset,
    Local,
    Denied,
    Cancelled,
    BreakerOpen,
    RateLimited,
}

const WORDS: [Word; 16] = [
    Word::None,
    Word::RequestTimeout,
    Word::HeadersTimeout,
    Word::StreamTimeout,
    Word::IdleTimeout,
    Word::FailFast,
    Word::NoEndpoints,
    Word::Shed,
    Word::Connect,
    Word::Refused,
    Word::Reset,
    Word::Local,
    Word::Denied,
    Word::Cancelled,
    Word::BreakerOpen,
    Word::RateLimited,
];

impl Word {
    fn of_cause(cause: Cause) -> Self {
        match cause {
            Cause::Status(_) | Cause::Grpc(_) => Self::None,
            Cause::Timeout(Scope::Request) => Self::RequestTimeout,
            Cause::Timeout(Scope::Attempt) => Self::HeadersTimeout,
            Cause::Timeout(Scope::Response) => Self::StreamTimeout,
            Cause::Timeout(Scope::Idle) => Self::IdleTimeout,
            Cause::Timeout(Scope::Queue) => Self::FailFast,
            Cause::Timeout(Scope::Connect) | Cause::Connect => Self::Connect,
            Cause::Refused => Self::Refused,
            Cause::Reset => Self::Reset,
            Cause::Local => Self::Local,
            Cause::Dropped => Self::Cancelled,
        }
    }

    fn of_error(error: &Error) -> Option<Self> {
        Some(match error {
            Error::BreakerOpen { .. } => Self::BreakerOpen,
            Error::NoEndpoints { .. } => Self::NoEndpoints,
            Error::Overloaded { .. } => Self::Shed,
            Error::RateLimited { .. } => Self::RateLimited,
            Error::Denied { .. } => Self::Denied,
            _ => return None,
        })
    }

    /// The word of the ServiceProfile families; as Linkerd's where it has one (linkerd.md §8.2).
    fn legacy(self) -> &'static str {
        match self {
            Self::None => "",
            Self::RequestTimeout | Self::HeadersTimeout | Self::StreamTimeout => "timeout",
            Self::IdleTimeout => "idle timeout",
            Self::FailFast | Self::BreakerOpen | Self::NoEndpoints => "failfast",
            Self::Shed | Self::RateLimited => "loadshed",
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Local => "unsent",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
        }
    }

    /// The word of the policy families (linkerd.md §8.5).
    fn policy(self) -> &'static str {
        match self {
            Self::None => "",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
            Self::HeadersTimeout => "RESPONSE_HEADERS_TIMEOUT",
            Self::StreamTimeout => "RESPONSE_STREAM_TIMEOUT",
            Self::IdleTimeout => "IDLE_TIMEOUT",
            Self::FailFast | Self::BreakerOpen | Self::NoEndpoints => "FAIL_FAST",
            Self::Shed | Self::RateLimited => "LOAD_SHED",
            Self::Connect => "IO",
            Self::Refused => "REFUSED",
            Self::Reset => "RESET",
            Self::Local | Self::Denied => "UNKNOWN",
            Self::Cancelled => "CANCEL",
        }
    }

    /// In people's words; empty for what a peer answered.
    fn told(self) -> &'static str {
        match self {
            Self::None => "",
            Self::RequestTimeout => "request timeout",
            Self::HeadersTimeout => "attempt timeout",
            Self::StreamTimeout => "response timeout",
            Self::IdleTimeout => "idle timeout",
            Self::FailFast => "queue timeout",
            Self::NoEndpoints => "no endpoint",
            Self::Shed => "overloaded",
            Self::Connect => "no connection",
            Self::Refused => "refused by the connection",
            Self::Reset => "broken off",
            Self::Local => "not sent",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::BreakerOpen => "breaker open",
            Self::RateLimited => "rate limited",
        }
    }

    /// The word of `outbound_http_errors_total` (linkerd.md §8.4).
    fn error(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Denied | Self::Cancelled => None,
            Self::RequestTimeout | Self::HeadersTimeout | Self::StreamTimeout | Self::IdleTimeout => {
                Some("response timeout")
            }
            Self::FailFast | Self::BreakerOpen | Self::NoEndpoints => Some("failfast"),
            Self::Shed | Self::RateLimited => Some("loadshed"),
            Self::Connect | Self::Refused | Self::Reset => Some("i/o"),
            Self::Local => Some("unexpected"),
        }
    }
}

/// What kept a call from a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A limit, a breaker or a queue refused it.
    Shed,
    /// Its caller may not do this.
    Denied,
    /// A time limit passed.
    Late,
    /// There was no endpoint, or none that took it.
    Unreached,
}

/// How a call or an attempt ended, as far as series differ by it. One word, so that it is found by one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ending(u64);

const GRPC: u32 = 16;
const WORD: u32 = 24;
const FAILURE: u64 = 1 << 32;
const CANCELLED: u64 = 1 << 33;
/// Set in every ending, so that 0 is none.
const SET: u64 = 1 << 63;

impl Ending {
    /// The caller went away before the end was known.
    pub const DROPPED: Self =
        Self(SET | CANCELLED | (NO_GRPC as u64) << GRPC | (Word::Cancelled as u64) << WORD);

    /// An outcome whose response had this HTTP status (`None`: there was none).
    #[inline]
    pub fn new(status: Option<u16>, outcome: &Outcome) -> Self {
        Self::with(status, outcome, Word::of_cause(outcome.cause))
    }

    /// The ending of what has no response.
    pub fn of_error(error: &Error) -> Self {
        let outcome = Outcome::of_error(error);
        let word = Word::of_error(error).unwrap_or_else(|| Word::of_cause(outcome.cause));
        Self::with(None, &outcome, word)
    }

    #[inline]
    fn with(status: Option<u16>, outcome: &Outcome, word: Word) -> Self {
        let grpc = if let Cause::Grpc(code) = outcome.cause { code } else { NO_GRPC };
        let verdict = match outcome.verdict {
            Verdict::Success => 0,
            Verdict::Failure => FAILURE,
            Verdict::Cancelled => CANCELLED,
        };
        let status = u64::from(status.unwrap_or(0));
        Self(SET | verdict | status | u64::from(grpc) << GRPC | (word as u64) << WORD)
    }

    /// Whether it counts against the peer.
    pub fn is_failure(self) -> bool {
        self.0 & FAILURE != 0
    }

    /// Whether the caller went away before the end was known.
    pub fn is_cancelled(self) -> bool {
        self.0 & CANCELLED != 0
    }

    /// Which of the mesh's own reasons ended it; `None` for what a peer answered or broke off.
    pub fn why(self) -> Option<Why> {
        match self.word() {
            Word::FailFast | Word::BreakerOpen | Word::Shed | Word::RateLimited => Some(Why::Shed),
            Word::Denied => Some(Why::Denied),
            Word::RequestTimeout | Word::HeadersTimeout | Word::StreamTimeout | Word::IdleTimeout => {
                Some(Why::Late)
            }
            Word::NoEndpoints | Word::Connect | Word::Refused => Some(Why::Unreached),
            Word::None | Word::Reset | Word::Local | Word::Cancelled => None,
        }
    }

    fn verdict(self) -> usize {
        usize::from(self.is_failure()) + 2 * usize::from(self.is_cancelled())
    }

    /// The gRPC code of its response, if it was gRPC's.
    pub fn grpc(self) -> Option<u8> {
        Some((self.0 >> GRPC) as u8).filter(|code| *code != NO_GRPC)
    }

    /// The HTTP status of its response, if there was one.
    pub fn status(self) -> Option<u16> {
        Some(self.0 as u16).filter(|status| *status != 0)
    }

    /// The ending that stands for all of its verdict that are not told apart.
    fn other(self) -> Self {
        Self(SET | self.0 & (FAILURE | CANCELLED) | u64::from(OTHER) | (NO_GRPC as u64) << GRPC)
    }

    fn word(self) -> Word {
        WORDS.get(usize::from((self.0 >> WORD) as u8)).copied().unwrap_or(Word::None)
    }

    /// What ended it, in people's words: `status 503`, `gRPC UNAVAILABLE`, `attempt timeout`.
    pub fn told(self) -> String {
        match (self.word(), self.grpc(), self.status_text()) {
            (Word::None, Some(code), _) => format!("gRPC {}", grpc_word(code)),
            (Word::None, None, Some(status)) => format!("status {status}"),
            (Word::None, None, None) => "no response".to_owned(),
            (word, ..) => word.told().to_owned(),
        }
    }

    /// Its word in `outbound_http_errors_total`, if it belongs there.
    pub fn error(self) -> Option<&'static str> {
        self.word().error()
    }

    /// The labels of the ServiceProfile families: no `status_code` without a response (linkerd.md §8.2).
    pub fn legacy_labels(self, labels: &mut Vec<Label>) {
        if let Some(status) = self.status_text() {
            labels.push(Label::new("status_code", status));
        }
        let class = if self.is_failure() { "failure" } else { "success" };
        labels.push(Label::from_static_parts("classification", class));
        labels.push(Label::new("grpc_status", self.grpc().map(|code| code.to_string()).unwrap_or_default()));
        labels.push(Label::from_static_parts("error", self.word().legacy()));
    }

    /// The labels of the policy families.
    pub fn policy_labels(self, grpc: bool, labels: &mut Vec<Label>) {
        labels.push(self.status_label(grpc, ["http_status", "grpc_status"]));
        labels.push(Label::from_static_parts("error", self.word().policy()));
    }

    /// The label of the HTTP or gRPC status, by one name or the other.
    pub fn status_label(self, grpc: bool, [http_name, grpc_name]: [&'static str; 2]) -> Label {
        if grpc {
            let code = match (self.grpc(), self.word()) {
                (Some(code), _) => grpc_word(code),
                (None, Word::None) => "UNKNOWN",
                (None, _) => "",
            };
            return Label::from_static_parts(grpc_name, code);
        }
        Label::new(http_name, self.status_text().unwrap_or_default())
    }

    fn status_text(self) -> Option<String> {
        self.status().map(|status| if status == OTHER { "other".to_owned() } else { status.to_string() })
    }
}

/// A gRPC code as Linkerd's policy families write it.
fn grpc_word(code: u8) -> &'static str {
    const CODES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    CODES.get(usize::from(code)).copied().unwrap_or("UNKNOWN")
}

#[derive(Debug, Default)]
struct Slot {
    ending: AtomicU64,
    count: AtomicU64,
}

impl Slot {
    /// Counts `ending` if the slot is its own or free.
    #[inline(always)]
    fn count(&self, ending: Ending) -> bool {
        let mut held = self.ending.load(Ordering::Relaxed);
        if held == 0 {
            let taken = self.ending.compare_exchange(0, ending.0, Ordering::Relaxed, Ordering::Relaxed);
            held = taken.err().unwrap_or(ending.0);
        }
        let own = held == ending.0;
        if own {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        own
    }

    fn read(&self) -> Option<(Ending, u64)> {
        let (ending, count) = (self.ending.load(Ordering::Relaxed), self.count.load(Ordering::Relaxed));
        (ending != 0 && count != 0).then_some((Ending(ending), count))
    }
}

/// Counts by ending.
#[derive(Debug, Default)]
pub struct Endings {
    near: [Slot; NEAR],
    far: OnceLock<Box<[Slot; FAR]>>,
    /// By verdict: well, failed, cancelled.
    others: [AtomicU64; 3],
}

impl Endings {
    /// Counts one: one comparison and one addition for the ending that was met first, which is the usual one.
    #[inline]
    pub fn count(&self, ending: Ending) {
        if !self.near.iter().any(|slot| slot.count(ending)) {
            self.count_far(ending);
        }
    }

    #[cold]
    fn count_far(&self, ending: Ending) {
        let far = self.far.get_or_init(|| Box::new(std::array::from_fn(|_| Slot::default())));
        if !far.iter().any(|slot| slot.count(ending)) {
            self.others[ending.verdict()].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All counts; those beyond [`ENDINGS_MAX`] with the status `other`.
    pub fn read(&self) -> Vec<(Ending, u64)> {
        let far = self.far.get().into_iter().flat_map(|far| far.iter());
        let apart = self.near.iter().chain(far).filter_map(Slot::read);
        let others = [Ending(SET), Ending(SET | FAILURE), Ending(SET | CANCELLED)].map(Ending::other);
        let counts = self.others.iter().map(|count| count.load(Ordering::Relaxed));
        apart.chain(others.into_iter().zip(counts).filter(|(_, count)| *count != 0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(labels: &[Label]) -> String {
        labels.iter().map(|label| format!("{}={}", label.key(), label.value())).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn endings_have_linkerds_labels_in_both_families() {
        let check = |ending: Ending, grpc: bool, legacy: &str, policy: &str| {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            ending.legacy_labels(&mut a);
            ending.policy_labels(grpc, &mut b);
            assert_eq!((text(&a).as_str(), text(&b).as_str()), (legacy, policy));
        };
        let of = |status, verdict, cause| Ending::new(status, &Outcome::new(verdict, cause));
        check(
            of(Some(200), Verdict::Success, Cause::Status(200)),
            false,
            "status_code=200,classification=success,grpc_status=,error=",
            "http_status=200,error=",
        );
        check(
            of(Some(200), Verdict::Failure, Cause::Grpc(14)),
            true,
            "status_code=200,classification=failure,grpc_status=14,error=",
            "grpc_status=UNAVAILABLE,error=",
        );
        check(
            of(None, Verdict::Failure, Cause::Timeout(Scope::Request)),
            false,
            "classification=failure,grpc_status=,error=timeout",
            "http_status=,error=REQUEST_TIMEOUT",
        );
        check(
            Ending::of_error(&Error::NoEndpoints { service: "web".into() }),
            true,
            "classification=failure,grpc_status=,error=failfast",
            "grpc_status=,error=FAIL_FAST",
        );
        check(
            Ending::DROPPED,
            false,
            "classification=success,grpc_status=,error=cancelled",
            "http_status=,error=CANCEL",
        );
        assert_eq!(Ending::new(None, &Outcome::DROPPED), Ending::DROPPED);
        let told = |ending: Ending| ending.told();
        assert_eq!(told(of(Some(503), Verdict::Failure, Cause::Status(503))), "status 503");
        assert_eq!(told(of(Some(200), Verdict::Failure, Cause::Grpc(14))), "gRPC UNAVAILABLE");
        assert_eq!(told(of(None, Verdict::Failure, Cause::Timeout(Scope::Attempt))), "attempt timeout");
        assert_eq!(
            told(Ending::of_error(&Error::RateLimited { retry_after: Default::default() })),
            "rate limited"
        );
        assert_eq!(
            told(Ending::of_error(&Error::BreakerOpen { retry_in: Default::default() })),
            "breaker open"
        );
    }

    #[test]
    fn words_are_found_by_their_number() {
        WORDS.iter().enumerate().for_each(|(at, word)| assert_eq!(*word as usize, at));
    }

    #[test]
    fn a_peer_that_makes_up_statuses_fills_one_table_and_no_more() {
        let endings = Endings::default();
        for status in 0..10_000u16 {
            let outcome = Outcome::new(Verdict::Success, Cause::Status(status));
            endings.count(Ending::new(Some(status + 1), &outcome));
        }
        let mut labels = Vec::new();
        let (last, count) = *endings.read().last().unwrap();
        last.legacy_labels(&mut labels);
        assert_eq!(text(&labels), "status_code=other,classification=success,grpc_status=,error=");
        assert_eq!((endings.read().len(), count), (ENDINGS_MAX + 1, 10_000 - ENDINGS_MAX as u64));
    }

    #[test]
    fn threads_that_meet_an_ending_at_once_share_its_slot() {
        for _ in 0..50 {
            let endings = Endings::default();
            std::thread::scope(|scope| {
                for thread in 0..4u16 {
                    let endings = &endings;
                    scope.spawn(move || {
                        for n in 0..40u16 {
                            let status = 200 + (n + thread) % 8;
                            endings.count(Ending::new(
                                Some(status),
                                &Outcome::new(Verdict::Success, Cause::Status(status)),
                            ));
                        }
                    });
                }
            });
            let apart = endings.read();
            assert_eq!(apart.len(), 8);
            assert!(apart.iter().all(|(_, count)| *count == 20));
        }
    }
}
