//! Floor 2: judges a response by its head and its trailers.

use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::profile::matching::ResponseCondition;
use crate::profile::route::ResponseClass;
use http::{HeaderMap, HeaderName, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// The longest that a peer's hint when to come back is believed: 5 minutes, as Linkerd's load biaser has it.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Judges responses: by the route's classes, else by gRPC code, else by status.
///
/// The first class whose condition holds decides at the head. Without one, a gRPC code in headers or trailers
/// decides (2, 4, 7, 13, 14 and 15 are failures), else an HTTP status of 500 and above is a failure
/// (linkerd2-proxy `app/core/src/classify.rs`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classifier {
    /// `None` for none, so that a clone of the usual classifier is free.
    classes: Option<Arc<[ResponseClass]>>,
}

/// What a response's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// It is decided.
    Decided(Outcome),
    /// Its trailers may decide; without any, it is this.
    Unless(Outcome),
}

impl Head {
    /// What is known so far.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Decided(outcome) | Self::Unless(outcome) => outcome,
        }
    }
}

impl Classifier {
    /// A classifier by these classes, the first that holds.
    pub fn new(classes: Vec<ResponseClass>) -> Self {
        Self { classes: (!classes.is_empty()).then(|| classes.into()) }
    }

    /// Whether no class was given, so that it judges as [`Classifier::default`] does.
    pub fn is_default(&self) -> bool {
        self.classes.is_none()
    }

    /// Judges a response's head. `wall_secs` is the time since the Unix epoch in seconds, for `Retry-After` dates.
    pub fn head(&self, status: StatusCode, headers: &HeaderMap, wall_secs: impl FnOnce() -> u64) -> Head {
        let code = status.as_u16();
        let class = self
            .classes
            .iter()
            .flat_map(|classes| classes.iter())
            .find(|class| holds(&class.condition, code));
        if let Some(class) = class {
            let verdict = if class.is_failure { Verdict::Failure } else { Verdict::Success };
            let outcome = Outcome::new(verdict, Cause::Status(code));
            return Head::Decided(with_hint(outcome, headers, wall_secs));
        }
        if let Some(grpc) = grpc_code(headers) {
            return Head::Decided(with_hint(grpc_outcome(grpc), headers, wall_secs));
        }
        let verdict = if code >= 500 { Verdict::Failure } else { Verdict::Success };
        let outcome = Outcome::new(verdict, Cause::Status(code));
        if verdict == Verdict::Failure || code == 429 {
            Head::Decided(with_hint(outcome, headers, wall_secs))
        } else {
            Head::Unless(outcome)
        }
    }
}

/// Judges a response's head by its route's classifier, or by the default one where there is none.
#[inline]
pub(crate) fn head(
    classifier: Option<&Classifier>,
    status: StatusCode,
    headers: &HeaderMap,
    wall_secs: impl FnOnce() -> u64,
) -> Head {
    match classifier {
        Some(classifier) => classifier.head(status, headers, wall_secs),
        None => Classifier::default().head(status, headers, wall_secs),
    }
}

/// Judges trailers after a head that did not decide. gRPC servers push back in trailers (gRFC A6).
pub fn trailers(head: Outcome, trailers: Option<&HeaderMap>) -> Outcome {
    let Some((trailers, code)) = trailers.and_then(|trailers| Some((trailers, grpc_code(trailers)?))) else {
        return head;
    };
    match code {
        0 => grpc_outcome(code),
        _ => Outcome { retry_after: pushback(trailers).flatten(), ..grpc_outcome(code) },
    }
}

/// Made once: a lookup by text would parse the name each time.
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The gRPC code in headers or trailers. What is no number from 0 to 16 is UNKNOWN (2).
pub fn grpc_code(headers: &HeaderMap) -> Option<u8> {
    let value = headers.get(&GRPC_STATUS)?;
    let code = value.to_str().ok().and_then(|text| text.trim().parse::<u8>().ok());
    Some(code.filter(|code| *code <= 16).unwrap_or(2))
}

/// Whether a gRPC code is a failure of the server: UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED, INTERNAL,
/// UNAVAILABLE, DATA_LOSS.
pub fn grpc_is_failure(code: u8) -> bool {
    matches!(code, 2 | 4 | 7 | 13 | 14 | 15)
}

fn grpc_outcome(code: u8) -> Outcome {
    let verdict = if grpc_is_failure(code) { Verdict::Failure } else { Verdict::Success };
    Outcome::new(verdict, Cause::Grpc(code))
}

fn with_hint(outcome: Outcome, headers: &HeaderMap, wall_secs: impl FnOnce() -> u64) -> Outcome {
    let retry_after = match outcome.cause {
        _ if outcome.is_overload() => hint(headers, wall_secs),
        // Whatever code it comes with (gRFC A6).
        Cause::Grpc(1..) => pushback(headers).flatten(),
        _ => None,
    };
    Outcome { retry_after, ..outcome }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// `grpc-retry-pushback-ms`, if it can be read: `Some(None)` if it is negative and forbids.
fn pushback(headers: &HeaderMap) -> Option<Option<Duration>> {
    let ms = text(headers, "grpc-retry-pushback-ms")?.parse::<i32>().ok()?;
    Some(u64::try_from(ms).ok().map(|ms| Duration::from_millis(ms).min(RETRY_AFTER_MAX)))
}

/// `grpc-retry-pushback-ms` or `Retry-After` (seconds or an HTTP date; a past date is zero), at most
/// [`RETRY_AFTER_MAX`].
pub fn hint(headers: &HeaderMap, wall_secs: impl FnOnce() -> u64) -> Option<Duration> {
    if let Some(wait) = pushback(headers) {
        return wait;
    }
    let value = text(headers, "retry-after")?;
    let is_number = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
    let wait = if is_number {
        // A number that no word holds is long as well.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        let at = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
        Duration::from_secs(at.saturating_sub(wall_secs()))
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

fn holds(condition: &ResponseCondition, status: u16) -> bool {
    match condition {
        ResponseCondition::All(parts) => parts.iter().all(|part| holds(part, status)),
        ResponseCondition::Any(parts) => parts.iter().any(|part| holds(part, status)),
        ResponseCondition::Not(part) => !holds(part, status),
        ResponseCondition::Status(range) => range.contains(&status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(status: u16, headers: &[(&'static str, &'static str)], expected: (Verdict, Cause, bool)) {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let head = Classifier::default().head(StatusCode::from_u16(status).unwrap(), &map, || 0);
        let outcome = head.outcome();
        assert_eq!((outcome.verdict, outcome.cause, matches!(head, Head::Decided(_))), expected);
    }

    #[test]
    fn without_classes_grpc_decides_and_then_the_status() {
        check(200, &[], (Verdict::Success, Cause::Status(200), false));
        check(404, &[], (Verdict::Success, Cause::Status(404), false));
        check(503, &[], (Verdict::Failure, Cause::Status(503), true));
        check(200, &[("grpc-status", "0")], (Verdict::Success, Cause::Grpc(0), true));
        check(200, &[("grpc-status", "14")], (Verdict::Failure, Cause::Grpc(14), true));
        check(200, &[("grpc-status", "5")], (Verdict::Success, Cause::Grpc(5), true));
        check(200, &[("grpc-status", "x")], (Verdict::Failure, Cause::Grpc(2), true));
    }

    #[test]
    fn the_first_class_that_holds_decides() {
        let class =
            |range, is_failure| ResponseClass { condition: ResponseCondition::Status(range), is_failure };
        let classifier = Classifier::new(vec![class(500..=500, false), class(400..=599, true)]);
        let verdict = |status| {
            classifier.head(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), || 0).outcome().verdict
        };
        assert_eq!(
            [200, 404, 500, 503].map(verdict).map(|v| v == Verdict::Failure),
            [false, true, false, true]
        );
    }

    #[test]
    fn hints_are_read_in_every_form_and_capped() {
        let read = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            hint(&headers, || 784_111_770)
        };
        assert_eq!(read("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(read("retry-after", "99999"), Some(RETRY_AFTER_MAX));
        assert_eq!(read("retry-after", "99999999999999999999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(read("retry-after", "-1"), None);
        assert_eq!(read("retry-after", ""), None);
        assert_eq!(read("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(read("retry-after", "soon"), None);
        assert_eq!(read("grpc-retry-pushback-ms", "20"), Some(Duration::from_millis(20)));
        assert_eq!(read("grpc-retry-pushback-ms", "-1"), None);
    }
}
