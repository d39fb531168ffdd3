//! Floor 2: the marks by which hops tell each other of their retries.
//!
//! A repeated attempt carries its number, and a failure that was repeated in vain says so. Who reads either does not
//! repeat again, so of a chain of hops only the one nearest to the failure does, and a chain of three at full failure
//! sends little more than one hop alone (reliability.md §4.2).

use http::{HeaderMap, HeaderName, HeaderValue};

pub use crate::classify::grpc::is_grpc;

/// On a repeated attempt: its number from 1, and `;last` when its sender will not send another.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-enmesh-attempt");
/// On a failure that was repeated in vain, or could not be within the budget: the attempts made.
pub const IN_VAIN: HeaderName = HeaderName::from_static("x-enmesh-retried");
/// gRPC's own name for the number of an attempt (gRFC A6).
const GRPC_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Marks a request as attempt `number`.
pub fn repeated(headers: &mut HeaderMap, number: u32, last: bool) {
    let text = if last { format!("{number};last") } else { number.to_string() };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(ATTEMPT, value);
    }
    if is_grpc(headers) {
        headers.insert(GRPC_ATTEMPTS, HeaderValue::from(number));
    }
}

/// Whether a request is itself another hop's repeated attempt. A mark that cannot be read is none.
pub fn is_repeated(headers: &HeaderMap) -> bool {
    let number = |value: &HeaderValue| {
        let text = value.to_str().ok()?;
        text.split(';').next()?.trim().parse::<u32>().ok()
    };
    headers.get_all(ATTEMPT).iter().filter_map(number).any(|number| number > 0)
}

/// Marks a response as a failure that was repeated in vain.
pub fn in_vain(headers: &mut HeaderMap, attempts: u32) {
    headers.insert(IN_VAIN, HeaderValue::from(attempts));
}

/// Whether a response is a failure that another hop repeated in vain.
pub fn is_in_vain(headers: &HeaderMap) -> bool {
    headers.contains_key(IN_VAIN)
}

/// Whether a gRPC server asks not to retry: its pushback is negative or cannot be read (gRFC A6).
pub fn forbids(headers: &HeaderMap) -> bool {
    let wait = |value: &HeaderValue| value.to_str().ok()?.trim().parse::<i32>().ok().filter(|ms| *ms >= 0);
    headers.get(GRPC_PUSHBACK).is_some_and(|value| wait(value).is_none())
}

/// Takes all marks away.
pub fn strip(headers: &mut HeaderMap) {
    headers.remove(ATTEMPT);
    headers.remove(IN_VAIN);
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_TYPE;

    fn check(name: HeaderName, value: &'static str, reads: fn(&HeaderMap) -> bool, expected: bool) {
        let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
        assert_eq!(reads(&headers), expected, "{value}");
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        let mut headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"))]);
        repeated(&mut headers, 2, true);
        assert_eq!(
            (&headers[ATTEMPT], &headers[GRPC_ATTEMPTS]),
            (&"2;last".parse().unwrap(), &"2".parse().unwrap())
        );
        assert!(is_repeated(&headers));
        in_vain(&mut headers, 3);
        assert!(is_in_vain(&headers));
        strip(&mut headers);
        assert!(!is_repeated(&headers) && !is_in_vain(&headers));
    }

    #[test]
    fn what_cannot_be_read_is_no_mark_but_an_unreadable_pushback_forbids() {
        for (value, expected) in
            [("0", false), ("1", true), ("7;last", true), ("x", false), ("-1", false), ("", false)]
        {
            check(ATTEMPT, value, is_repeated, expected);
        }
        for (value, expected) in
            [("0", false), ("20", false), ("-1", true), ("soon", true), ("99999999999", true)]
        {
            check(GRPC_PUSHBACK, value, forbids, expected);
        }
        assert!(!forbids(&HeaderMap::new()) && !is_in_vain(&HeaderMap::new()));
    }
}
