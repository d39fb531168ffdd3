//! Floor 1: reads Linkerd's annotations on services and routes: retries, timeouts, failure accrual.

use crate::profile::duration;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::Identity;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::BackoffSettings;
use crate::profile::settings::BreakerSettings;
use crate::profile::settings::Detector;
use crate::profile::settings::FailureClass;
use crate::profile::settings::Limit;
use crate::profile::settings::RetryOn;
use crate::profile::settings::RetrySettings;
use crate::profile::settings::Timeouts;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

/// `metadata.annotations`.
type Annotations = BTreeMap<String, String>;

/// Takes the key of a bad annotation, and what it must be.
type Report<'a> = &'a mut dyn FnMut(&str, &str);

const RETRY_HTTP: &str = "retry.linkerd.io/http";
const RETRY_GRPC: &str = "retry.linkerd.io/grpc";
const RETRY_LIMIT: &str = "retry.linkerd.io/limit";
const RETRY_TIMEOUT: &str = "retry.linkerd.io/timeout";

/// Gives a profile the retries, timeouts and breaker that annotations of its Service, or of its EgressNetwork, ask for. One
/// bad setting drops all of its kind (linkerd.md §3.3). `grpc` says whether gRPC codes apply.
pub(crate) fn annotate(
    profile: &mut ServiceProfile,
    identity: &Identity,
    grpc: bool,
    documents: &mut Documents,
) {
    let annotations = &identity.annotations;
    let path = |key: &str| format!("metadata.annotations[{key:?}]");
    let mut report = |key: &str, what: &str| {
        let problem = format!("must be {what}: all of its kind have no effect");
        documents.say(identity.document, Fault::new(Severity::Ignored, path(key), problem, "correct it"));
    };
    profile.retry = checked(&mut report, |report| retry(annotations, grpc, report));
    profile.timeouts = checked(&mut report, |report| timeouts(annotations, report)).unwrap_or_default();
    profile.breaker = checked(&mut report, |report| breaker(annotations, report));
    if penalizes_failures(annotations, &mut report) {
        let problem = "is always so here: failures raise what an endpoint costs, by a measure of our own";
        let remedy = "remove it to silence this";
        let fault = Fault::new(Severity::Approximated, path(PENALIZE), problem, remedy);
        documents.say(identity.document, fault);
    }
}

/// Whether annotations of Linkerd's are there.
pub(crate) fn is_annotated(identity: &Identity) -> bool {
    identity.annotations.keys().any(|key| key.contains(".linkerd.io/"))
}

fn checked<T>(report: Report<'_>, read: impl FnOnce(Report<'_>) -> Option<T>) -> Option<T> {
    let mut bad = false;
    let found = read(&mut |key, what| {
        bad = true;
        report(key, what);
    });
    found.filter(|_| !bad)
}

/// The value of `key`, if `parse` understands it; otherwise it is reported.
fn value<T>(
    annotations: &Annotations,
    key: &str,
    report: Report<'_>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    match parse(annotations.get(key)?) {
        Ok(value) => Some(value),
        Err(what) => {
            report(key, &what);
            None
        }
    }
}

/// The retries that annotations ask for: one unless `limit` says more, 25 ms to 250 ms apart. Without a condition
/// no status is retried. `grpc` says whether gRPC codes apply.
pub(crate) fn retry(annotations: &Annotations, grpc: bool, report: Report<'_>) -> Option<RetrySettings> {
    let statuses = value(annotations, RETRY_HTTP, report, statuses);
    let codes = value(annotations, RETRY_GRPC, report, codes).filter(|_| grpc);
    let limit = value(annotations, RETRY_LIMIT, report, |text| {
        text.trim().parse::<u16>().map_err(|_| "a whole number from 0 to 65535".to_owned())
    });
    let limit = limit.filter(|limit| *limit > 0);
    let timeout =
        value(annotations, RETRY_TIMEOUT, report, duration::annotation).filter(|time| !time.is_zero());
    if statuses.is_none() && codes.is_none() && limit.is_none() && timeout.is_none() {
        return None;
    }
    // To Linkerd's proxy a broken connection is a 502.
    let broken = statuses.as_ref().is_some_and(|list| list.iter().any(|range| range.contains(&502)));
    Some(RetrySettings {
        attempts_max: Some(u32::from(limit.unwrap_or(1)) + 1),
        on: RetryOn {
            statuses: statuses.unwrap_or_default(),
            grpc: codes.unwrap_or_default(),
            connect_failure: broken,
            reset: broken,
            refused: true,
            attempt_timeout: true,
            ..RetryOn::default()
        },
        backoff: Some(BackoffSettings {
            base: Duration::from_millis(25),
            max: Duration::from_millis(250),
            jitter: 1.0,
        }),
        idempotent: true,
        ..RetrySettings::default()
    })
}

/// `5xx`, `gateway-error`, a status or a range of them, with commas between and without blanks.
fn statuses(text: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
    let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    let range = |text: &str| match (text.to_ascii_lowercase().as_str(), text.split_once('-')) {
        ("5xx", _) => Some(500..=599),
        ("gateway-error", _) => Some(502..=504),
        (_, Some((low, high))) => Some(status(low)?..=status(high)?).filter(|range| !range.is_empty()),
        (one, None) => status(one).map(|status| status..=status),
    };
    let ranges = text.split(',').map(range).collect::<Option<_>>();
    ranges.ok_or_else(|| format!("a list of 5xx, gateway-error, 503 or 500-503 without blanks, not {text:?}"))
}

fn codes(text: &str) -> Result<Vec<u8>, String> {
    let code = |text: &str| match text.to_ascii_lowercase().as_str() {
        "cancelled" => Some(1),
        "deadline-exceeded" => Some(4),
        "resource-exhausted" => Some(8),
        "internal" => Some(13),
        "unavailable" => Some(14),
        _ => None,
    };
    let codes = text.split(',').map(code).collect::<Option<_>>();
    let known = "cancelled, deadline-exceeded, internal, resource-exhausted, unavailable";
    codes.ok_or_else(|| format!("a list of {known} without blanks, not {text:?}"))
}

/// The timeouts that annotations set; a value of 0 is "not said". `None` if nothing is.
pub(crate) fn timeouts(annotations: &Annotations, report: Report<'_>) -> Option<Timeouts> {
    let mut limit = |key: &str| {
        let time = value(annotations, key, report, duration::annotation);
        time.filter(|time| !time.is_zero()).map_or(Limit::Unset, Limit::After)
    };
    let timeouts = Timeouts {
        request: limit("timeout.linkerd.io/request"),
        response: limit("timeout.linkerd.io/response"),
        idle: limit("timeout.linkerd.io/idle"),
        attempt: limit(RETRY_TIMEOUT),
        ..Timeouts::default()
    };
    (timeouts != Timeouts::default()).then_some(timeouts)
}

const ACCRUAL: &str = "balancer.linkerd.io/failure-accrual";
const HONOUR: &str = "balancer.alpha.linkerd.io/failure-accrual-honor-retry-after";

/// The breaker that annotations of a service ask for.
fn breaker(annotations: &Annotations, report: Report<'_>) -> Option<BreakerSettings> {
    let unified = value(annotations, ACCRUAL, report, |text| match text.trim() {
        "consecutive" => Ok(false),
        "unified" => Ok(true),
        other => Err(format!("consecutive or unified, not {other:?}")),
    })?;
    let own = |name: &str| format!("{ACCRUAL}-consecutive-{name}");
    let rate = |name: &str| format!("balancer.alpha.linkerd.io/failure-accrual-success-rate-{name}");
    let mut time =
        |key: &str, default| value(annotations, key, report, duration::annotation).unwrap_or(default);
    let (least, most) = (
        time(&own("min-penalty"), Duration::from_secs(1)),
        time(&own("max-penalty"), Duration::from_secs(60)),
    );
    let window =
        if unified { time(&rate("window"), Duration::from_secs(10)) } else { Duration::from_secs(10) };
    if most.is_zero() || least > most {
        report(&own("min-penalty"), "a time that is not longer than max-penalty, which must not be 0");
    }
    let count = |text: &str| text.trim().parse::<u32>().map_err(|_| "a whole number".to_owned());
    let threshold = value(annotations, &own("max-failures"), report, count).unwrap_or(7);
    let jitter = value(annotations, &own("jitter-ratio"), report, |text| number(text, 100.0)).unwrap_or(0.5);
    let mut detectors = Vec::new();
    if threshold > 0 {
        detectors.push(Detector::Consecutive { class: FailureClass::Any, threshold });
    }
    if unified {
        let rate_min =
            value(annotations, &rate("threshold"), report, |text| number(text, 1.0)).unwrap_or(0.8);
        let min_requests = value(annotations, &rate("min-requests"), report, count).unwrap_or(5);
        if rate_min > 0.0 {
            if window < Duration::from_millis(10) {
                report(&rate("window"), "10ms or more");
            }
            if min_requests > 1_000_000 {
                report(&rate("min-requests"), "1000000 or less");
            }
            detectors.push(Detector::SuccessRate { threshold: rate_min, window, min_requests });
        }
    } else if threshold == 0 {
        report(&own("max-failures"), "1 or more where failure-accrual is consecutive");
    }
    let honour_retry_after = value(annotations, HONOUR, report, go_bool).unwrap_or(false);
    let (ejection_base, ejection_max) = (least, most);
    let breaker = BreakerSettings {
        detectors,
        ejection_base,
        ejection_max,
        jitter: jitter as f32,
        ..BreakerSettings::default()
    };
    Some(BreakerSettings { honour_retry_after: honour_retry_after && unified, ..breaker })
}

const PENALIZE: &str = "balancer.alpha.linkerd.io/penalize-failures";

/// Whether failures are asked to make an endpoint dearer (Linkerd's load biaser). That is what balancers here always
/// do, so there is nothing to set; bad values are reported.
fn penalizes_failures(annotations: &Annotations, report: Report<'_>) -> bool {
    let own = |name: &str| format!("balancer.alpha.linkerd.io/load-biaser-{name}");
    let wanted = value(annotations, PENALIZE, report, go_bool).unwrap_or(false);
    for key in [own("penalty"), own("max-retry-after")] {
        value(annotations, &key, report, |text| {
            let time = duration::annotation(text)?;
            // Linkerd keeps it as milliseconds of 32 bits.
            let fits = u32::try_from(time.as_millis()).is_ok();
            if fits { Ok(time) } else { Err(format!("at most {}ms, not {text:?}", u32::MAX)) }
        });
    }
    wanted
}

fn number(text: &str, most: f64) -> Result<f64, String> {
    let number = text.trim().parse::<f64>().ok().filter(|number| (0.0..=most).contains(number));
    number.ok_or_else(|| format!("a number from 0 to {most}, not {text:?}"))
}

/// A boolean as Go's `ParseBool` reads it, blanks around it aside.
fn go_bool(text: &str) -> Result<bool, String> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("true or false, not {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn retries_are_one_unless_more_are_said() {
        let read = |pairs: &[(&str, &str)]| {
            let mut bad = Vec::new();
            let retry = retry(&annotations(pairs), true, &mut |key, _| bad.push(key.to_owned()));
            (retry.map(|retry| (retry.attempts_max, retry.on.statuses, retry.on.grpc)), bad)
        };
        assert_eq!(read(&[]), (None, vec![]));
        assert_eq!(read(&[(RETRY_HTTP, "5xx,429")]).0, Some((Some(2), vec![500..=599, 429..=429], vec![])));
        assert_eq!(
            read(&[(RETRY_GRPC, "UNAVAILABLE"), (RETRY_LIMIT, "3")]).0,
            Some((Some(4), vec![], vec![14]))
        );
        assert_eq!(read(&[(RETRY_TIMEOUT, "0"), (RETRY_LIMIT, "0")]), (None, vec![]));
        assert_eq!(read(&[(RETRY_LIMIT, "-1")]), (None, vec![RETRY_LIMIT.to_owned()]));
        assert_eq!(read(&[(RETRY_HTTP, "5xx, 429")]).1, [RETRY_HTTP]);
    }

    #[test]
    fn a_breaker_has_linkerds_defaults_and_bounds() {
        let read = |pairs: &[(&str, &str)]| {
            let mut bad = Vec::new();
            let breaker = breaker(&annotations(pairs), &mut |key, _| bad.push(key.to_owned()));
            (breaker.map(|breaker| breaker.detectors), bad)
        };
        let consecutive = |threshold| Detector::Consecutive { class: FailureClass::Any, threshold };
        assert_eq!(read(&[]), (None, vec![]));
        assert_eq!(read(&[(ACCRUAL, "consecutive")]).0, Some(vec![consecutive(7)]));
        let rate = Detector::SuccessRate { threshold: 0.8, window: Duration::from_secs(10), min_requests: 5 };
        assert_eq!(read(&[(ACCRUAL, "unified")]).0, Some(vec![consecutive(7), rate]));
        assert_eq!(read(&[(ACCRUAL, "false")]), (None, vec![ACCRUAL.to_owned()]));
        let window = "balancer.alpha.linkerd.io/failure-accrual-success-rate-window";
        assert_eq!(read(&[(ACCRUAL, "unified"), (window, "9ms")]).1, [window]);
        assert_eq!(read(&[(ACCRUAL, "consecutive"), (window, "9ms")]).1, [""; 0]);
    }
}
