//! Floor 1: reads timeouts, retries and budgets.

use crate::profile::duration;
use crate::profile::invalid::Severity;
use crate::profile::read::dialect::Dialect;
use crate::profile::read::words;
use crate::profile::reader;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::settings::BackoffSettings;
use crate::profile::settings::BudgetSettings;
use crate::profile::settings::HedgeSettings;
use crate::profile::settings::HopMarks;
use crate::profile::settings::Limit;
use crate::profile::settings::RetryOn;
use crate::profile::settings::RetrySettings;
use crate::profile::settings::Timeouts;
use std::time::Duration;

/// The most attempts of one call, the first one included: 10. Linkerd has no such cap, and one call may then eat a
/// whole budget.
pub(crate) const ATTEMPTS_MAX: u32 = 10;

/// The most body bytes that may be kept for a repetition: 1 MiB. Kept bodies are memory that grows with what callers
/// send.
pub(crate) const REPLAY_BYTES_MAX: usize = 1 << 20;

/// The range of a budget's window (Linkerd's proxy accepts no other).
pub(crate) const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// The largest ratio of a budget, in millionths: 1000 (Linkerd's proxy accepts no larger one).
pub(crate) const RATIO_PPM_MAX: u64 = 1_000_000_000;

/// `timeouts`.
pub(crate) fn timeouts(field: &Field<'_>) -> Timeouts {
    let read = field.fields(|f| {
        let (attempt, backend_request) = (f.get("attempt"), f.get("backendRequest"));
        if attempt.is_present() && backend_request.is_present() {
            backend_request.reject("is another name of `attempt`, which is set too", "remove one of them");
        }
        Timeouts {
            request: words::limit(&f.get("request")),
            response_headers: words::limit(&f.get("responseHeaders")),
            response: words::limit(&f.get("response")),
            idle: words::limit(&f.get("idle")),
            attempt: words::limit(&attempt).or(words::limit(&backend_request)),
            connect: words::limit(&f.get("connect")),
        }
    });
    let timeouts = read.unwrap_or_default();
    if let (Limit::After(attempt), Limit::After(request)) = (timeouts.attempt, timeouts.request)
        && attempt > request
    {
        let (attempt, request) = (duration::to_text(attempt), duration::to_text(request));
        let problem = format!("attempt ({attempt}) is longer than request ({request})");
        field.reject(problem, "write an attempt timeout that is not longer");
    }
    timeouts
}

/// A route's `timeout` in a ServiceProfile of Linkerd.
pub(crate) fn linkerd_timeout(field: &Field<'_>, dialect: Dialect) -> Limit {
    if field.node().is_none_or(|node| node.text() == Some("")) {
        return Limit::Unset;
    }
    match field.parse(duration::go_signed).map(u64::try_from) {
        None => Limit::Unset,
        Some(Ok(0)) => Limit::Disabled,
        Some(Ok(nanos)) => Limit::After(Duration::from_nanos(nanos)),
        Some(Err(_)) if dialect == Dialect::Linkerd => {
            let problem = format!("is negative ({}): the route has no timeout", field.shown());
            field.fault(Severity::Ignored, problem, "write a duration such as 300ms");
            Limit::Unset
        }
        Some(Err(_)) => {
            field.must_be::<()>("a duration that is not negative");
            Limit::Unset
        }
    }
}

/// What `isRetryable: true` means: whatever the route calls a failure is tried again at once, whatever the method,
/// as long as the budget allows it.
pub(crate) fn retryable() -> RetrySettings {
    RetrySettings {
        attempts_max: Some(ATTEMPTS_MAX),
        on: RetryOn { failures: true, ..RetryOn::default() },
        backoff: None,
        idempotent: true,
        ..RetrySettings::default()
    }
}

/// `retry`.
pub(crate) fn retry(field: &Field<'_>) -> Option<RetrySettings> {
    field.fields(|f| {
        let on = f.get("on");
        let backoff = f.get("backoff");
        RetrySettings {
            attempts_max: f.get("attempts").integer(1..=ATTEMPTS_MAX),
            on: if on.is_present() { retry_on(&on) } else { default_retry_on() },
            backoff: if backoff.is_present() {
                self::backoff(&backoff)
            } else {
                Some(BackoffSettings::default())
            },
            idempotent: f.get("idempotent").bool().unwrap_or(false),
            budget: budget(&f.get("budget"), Dialect::Enmesh),
            hedge: hedge(&f.get("hedge")),
            body_bytes_max: f.get("maxBodyBytes").integer(0..=REPLAY_BYTES_MAX),
            hops: f.get("hopMarks").word(HOP_MARKS).unwrap_or_default(),
            patience: words::some_time(&f.get("patience")),
        }
    })
}

/// What becomes of the marks of other hops, by name.
pub(crate) const HOP_MARKS: &[(&str, HopMarks)] =
    &[("Off", HopMarks::Off), ("Trust", HopMarks::Trust), ("Strip", HopMarks::Strip)];

/// What is tried again if `retry` does not say: failures, and what the peer certainly or probably did not process.
pub(crate) fn default_retry_on() -> RetryOn {
    RetryOn { failures: true, connect_failure: true, refused: true, ..RetryOn::default() }
}

/// The names of gRPC codes, by code.
pub(crate) const GRPC_CODES: &[&str] = &[
    "ok",
    "cancelled",
    "unknown",
    "invalid-argument",
    "deadline-exceeded",
    "not-found",
    "already-exists",
    "permission-denied",
    "resource-exhausted",
    "failed-precondition",
    "aborted",
    "out-of-range",
    "unimplemented",
    "internal",
    "unavailable",
    "data-loss",
    "unauthenticated",
];

/// The words of `retry.on` that are no status and no code.
pub(crate) const RETRY_WORDS: &[&str] =
    &["failures", "5xx", "gateway-error", "connect-failure", "refused", "reset", "attempt-timeout"];

fn retry_on(field: &Field<'_>) -> RetryOn {
    let mut on = RetryOn::default();
    for item in field.items() {
        let Some(text) = item.literal() else { continue };
        match text {
            "failures" => on.failures = true,
            "5xx" => on.statuses.push(500..=599),
            "gateway-error" => on.statuses.push(502..=504),
            "connect-failure" => on.connect_failure = true,
            "refused" => on.refused = true,
            "reset" => on.reset = true,
            "attempt-timeout" => on.attempt_timeout = true,
            _ => match (statuses(text), GRPC_CODES.iter().position(|name| *name == text)) {
                (Some(range), _) => on.statuses.push(range),
                (None, Some(code)) => on.grpc.push(u8::try_from(code).unwrap_or(u8::MAX)),
                (None, None) => {
                    let known: Vec<&str> = RETRY_WORDS.iter().chain(GRPC_CODES).copied().collect();
                    item.reject(
                        format!("{} is no status, no range of them and no condition", item.shown()),
                        reader::meant(text, &known),
                    );
                }
            },
        }
    }
    on
}

/// `503` or `500-599`.
fn statuses(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    let code = |text: &str| text.parse::<u16>().ok().filter(|code| (100..=599).contains(code));
    let range = code(min)?..=code(max)?;
    (!range.is_empty()).then_some(range)
}

fn backoff(field: &Field<'_>) -> Option<BackoffSettings> {
    let usual = BackoffSettings::default();
    if field.node().is_some_and(|node| node.text().is_some()) {
        let base = words::time(field, Duration::ZERO..=words::TIME_MAX)?;
        return (base > Duration::ZERO).then(|| BackoffSettings {
            base,
            max: base.saturating_mul(10),
            ..usual
        });
    }
    field.fields(|f| {
        let base = words::some_time(&f.get("base")).unwrap_or(usual.base);
        let max_field = f.get("max");
        let max = words::some_time(&max_field).unwrap_or(base.saturating_mul(10));
        if max < base {
            let (base, max) = (duration::to_text(base), duration::to_text(max));
            max_field
                .reject(format!("max ({max}) is below base ({base})"), "write a max that is not smaller");
        }
        let jitter = f.get("jitter").float(0.0..=1.0).map_or(usual.jitter, |jitter| jitter as f32);
        BackoffSettings { base, max, jitter }
    })
}

fn hedge(field: &Field<'_>) -> Option<HedgeSettings> {
    field.fields(|f| {
        words::one_of(f, &["after", "quantile"]);
        let quantile = f.get("quantile").fixed(3, 1..=999).and_then(|n| u16::try_from(n).ok());
        words::some_time(&f.get("after")).map(HedgeSettings::After).or(quantile.map(HedgeSettings::Quantile))
    })?
}

/// `retryBudget` of a service, `budget` of a route. The kind shows in the ratio's name.
pub(crate) fn budget(field: &Field<'_>, dialect: Dialect) -> Option<BudgetSettings> {
    field.fields(|f| {
        if dialect == Dialect::Linkerd {
            return windowed(f, dialect);
        }
        const KINDS: [&str; 4] = ["retryRatio", "recentRatio", "activeRatio", "maxTokens"];
        words::one_of(f, &KINDS);
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let ratio = |field: Field<'_>| field.fixed(6, 0..=RATIO_PPM_MAX).map(small);
        match KINDS.into_iter().find(|kind| f.has(kind))? {
            "recentRatio" => Some(BudgetSettings::Recent {
                ratio_ppm: ratio(f.get("recentRatio"))?,
                min_per_second: f.get("minRetriesPerSecond").integer(0..=u32::MAX).unwrap_or(1),
                burst: f.get("burst").integer(0..=u32::MAX).unwrap_or(10),
            }),
            "activeRatio" => Some(BudgetSettings::ActiveShare {
                ratio_ppm: ratio(f.get("activeRatio"))?,
                min_concurrent: f.get("minConcurrent").integer(0..=u32::MAX).unwrap_or(3),
            }),
            "maxTokens" => {
                // The ranges of gRPC A6.
                let max = f.get("maxTokens").fixed(3, 1..=1_000_000);
                let ratio = f.get("tokenRatio").required().fixed(3, 1..=1_000_000);
                Some(BudgetSettings::TokenBucket { max_milli: small(max?), ratio_milli: small(ratio?) })
            }
            _ => windowed(f, dialect),
        }
    })?
}

fn windowed(f: &mut Fields<'_>, dialect: Dialect) -> Option<BudgetSettings> {
    let (ratio, min, ttl) = (f.get("retryRatio"), f.get("minRetriesPerSecond"), f.get("ttl"));
    for field in [&ratio, &min] {
        if !field.is_present() {
            field.fault(Severity::Approximated, "is missing and counts as 0", "write it");
        }
    }
    let min_per_second = min.integer(0..=u32::MAX);
    if dialect == Dialect::Enmesh {
        let ratio_ppm = if ratio.is_present() { ratio.fixed(6, 0..=RATIO_PPM_MAX)? } else { 0 };
        let ttl = words::time(&ttl.required(), TTL)?;
        let ratio_ppm = u32::try_from(ratio_ppm).ok()?;
        return Some(BudgetSettings::Windowed {
            ratio_ppm,
            min_per_second: min_per_second.unwrap_or(0),
            ttl,
        });
    }
    let ratio_ppm = if ratio.is_present() { ratio.fixed(6, 0..=u64::MAX)? } else { 0 };
    if ttl.node().is_some_and(|node| node.text() == Some("")) {
        ttl.reject("is missing", "add it");
        return None;
    }
    let nanos = ttl.clone().required().parse(duration::go_signed)?;
    let time = u64::try_from(nanos).ok().map(Duration::from_nanos).filter(|time| TTL.contains(time));
    match (u32::try_from(ratio_ppm).ok().filter(|_| ratio_ppm <= RATIO_PPM_MAX), time) {
        (Some(ratio_ppm), Some(ttl)) => {
            Some(BudgetSettings::Windowed { ratio_ppm, min_per_second: min_per_second.unwrap_or(0), ttl })
        }
        (ratio_fits, _) => {
            let (field, what) =
                if ratio_fits.is_none() { (ratio, "from 0 to 1000") } else { (ttl, "from 1s to 60s") };
            let problem = format!("must be {what}, not {}: nothing is retried", field.shown());
            field.fault(Severity::Ignored, problem, "correct it");
            Some(NO_RETRIES)
        }
    }
}

/// A budget that never allows anything, which is what a budget that Linkerd's proxy cannot use comes to.
pub(crate) const NO_RETRIES: BudgetSettings =
    BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 0, ttl: Duration::from_secs(10) };
