//! Floor 4: a call as one line of an access log.

use crate::policy::observe::{Ending, Subject};
use crate::stdx::clock::{Duration, SystemTime};
use http::{HeaderValue, Version};
use serde_json::{Value, json};
use std::fmt::Write;

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// Apache's combined log format: host, user, time, request, status, bytes, referer, agent.
    Apache,
}

/// The longest part of a request that is written, in bytes: what a line of a log can bear.
const PART_BYTES_MAX: usize = 2048;

/// The line of a call, with a line feed. `status` is what the caller got, if it got an answer; `took` goes to the end of
/// the body. No request can write a second line, nor move a terminal's cursor.
pub fn line(
    format: LogFormat,
    call: &Subject,
    status: Option<u16>,
    took: Duration,
    ending: &Ending<'_>,
) -> String {
    match format {
        LogFormat::Json => json_line(call, status, took, ending),
        LogFormat::Apache => apache_line(call, status, ending),
    }
}

fn json_line(call: &Subject, status: Option<u16>, took: Duration, ending: &Ending<'_>) -> String {
    let header = |value: &Option<HeaderValue>| value.as_ref().map(|value| text(value.as_bytes()));
    let line = json!({
        "timestamp": utc(call.wall, true),
        "direction": call.direction.as_str(),
        "client.addr": call.source.map(|source| source.to_string()),
        "client.id": call.identity.as_deref(),
        "method": call.method.as_str(),
        "host": text(call.authority().as_bytes()),
        "path": text(call.uri.path().as_bytes()),
        "version": version(call.version),
        "user_agent": header(&call.user_agent),
        "service": &*call.service,
        "route": &*call.route,
        "status": status,
        "grpc_status": ending.grpc(),
        "bytes": ending.bytes,
        "duration_ms": took.as_secs_f64() * 1e3,
        "outcome": ending.outcome.verdict.as_str(),
        "error": ending.error.map(crate::error::Error::kind),
        "rule": ending.rule().map(|rule| &**rule),
        "trace_id": call.context.as_ref().map(|context| context.trace.to_string()),
    });
    let Value::Object(mut line) = line else { return String::new() };
    line.retain(|_, value| !value.is_null());
    // The JSON of this map cannot fail, and holds no control character but as an escape.
    format!("{}\n", Value::Object(line))
}

fn apache_line(call: &Subject, status: Option<u16>, ending: &Ending<'_>) -> String {
    let header =
        |value: &Option<HeaderValue>| value.as_ref().map_or("-".to_owned(), |value| text(value.as_bytes()));
    let host = call.source.map_or("-".to_owned(), |source| source.ip().to_string());
    let user = call.identity.as_deref().unwrap_or("-");
    // 499 is what other servers write when the caller went away.
    let status = status.unwrap_or(499);
    let bytes = if ending.bytes == 0 { "-".to_owned() } else { ending.bytes.to_string() };
    let path = text(call.uri.path().as_bytes());
    format!(
        "{host} - {user} [{}] \"{} {path} {}\" {status} {bytes} \"{}\" \"{}\"\n",
        utc(call.wall, false),
        call.method,
        version(call.version),
        header(&call.referer),
        header(&call.user_agent),
    )
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// What stands between quotes: printable ASCII but `"` and `\`; all else as `\x..`, as Apache has it.
fn text(bytes: &[u8]) -> String {
    bytes.iter().take(PART_BYTES_MAX).fold(String::with_capacity(bytes.len()), |mut out, byte| {
        match byte {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(*byte));
            }
            b' '..=b'~' => out.push(char::from(*byte)),
            // Writing into a string does not fail.
            _ => drop(write!(out, "\\x{byte:02x}")),
        }
        out
    })
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A time in UTC: RFC 3339 with milliseconds, or as Apache writes it. The calendar is Howard Hinnant's
/// `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>).
fn utc(time: SystemTime, is_rfc3339: bool) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, secs) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (secs / 3_600, secs / 60 % 60, secs % 60);
    if is_rfc3339 {
        let millis = since.subsec_millis();
        return format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z");
    }
    let month = MONTHS.get(month.saturating_sub(1) as usize).unwrap_or(&"Jan");
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::outcome::{Cause, Outcome, Verdict};
    use crate::metrics::names::Direction;
    use crate::stdx::clock;
    use http::Method;
    use proptest::prelude::*;

    fn call(path: &str, agent: &[u8]) -> Subject {
        Subject {
            number: 1,
            direction: Direction::Inbound,
            service: "web.ns:80".into(),
            route: "r".into(),
            method: Method::GET,
            uri: path.parse().unwrap(),
            version: Version::HTTP_11,
            host: Some("web".parse().unwrap()),
            user_agent: HeaderValue::from_bytes(agent).ok(),
            referer: None,
            source: "10.0.0.1:9".parse().ok(),
            local: None,
            identity: None,
            context: None,
            parent: None,
            started: clock::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_000_000_123),
        }
    }

    fn ending() -> Ending<'static> {
        let outcome = Outcome::new(Verdict::Success, Cause::Status(200));
        Ending { outcome, error: None, trailers: None, bytes: 12 }
    }

    #[test]
    fn apaches_line_is_apaches() {
        let call = call("/a%20b?secret=1", b"curl \"x\"\xff");
        assert_eq!(
            line(LogFormat::Apache, &call, Some(200), Duration::ZERO, &ending()),
            "10.0.0.1 - - [24/Nov/2025:16:00:00 +0000] \"GET /a%20b HTTP/1.1\" 200 12 \"-\" \"curl \\\"x\\\"\\xff\"\n"
        );
    }

    #[test]
    fn jsons_line_is_an_object_without_what_is_unknown() {
        let told = line(LogFormat::Json, &call("/a", b"c"), None, Duration::from_micros(1500), &ending());
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told["timestamp"], &told["duration_ms"]),
            (&json!("2025-11-24T16:00:00.123Z"), &json!(1.5))
        );
        assert_eq!((&told["outcome"], told.get("status")), (&json!("success"), None));
    }

    #[test]
    fn days_are_counted_over_leap_years() {
        let at = |secs| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(secs), false);
        assert_eq!(at(0), "01/Jan/1970:00:00:00 +0000");
        assert_eq!(at(951_782_399), "28/Feb/2000:23:59:59 +0000");
        assert_eq!(at(951_782_400), "29/Feb/2000:00:00:00 +0000");
        assert_eq!(at(4_107_542_400), "01/Mar/2100:00:00:00 +0000");
    }

    proptest! {
        #[test]
        fn a_request_is_one_line(agent in prop::collection::vec(any::<u8>(), 0..80)) {
            for format in [LogFormat::Json, LogFormat::Apache] {
                let told = line(format, &call("/", &agent), Some(200), Duration::ZERO, &ending());
                prop_assert!(told.ends_with('\n') && told.is_ascii());
                prop_assert_eq!(told.bytes().filter(u8::is_ascii_control).count(), 1);
            }
        }
    }
}
