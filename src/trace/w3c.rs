//! Floor 2: reads and writes the headers of W3C Trace Context: `traceparent` and `tracestate`.

use crate::trace::id::{SpanId, TraceId};
use http::HeaderMap;
use http::HeaderValue;

/// The header with the trace and the span.
pub const TRACEPARENT: &str = "traceparent";

/// The header with what tracing systems add.
pub const TRACESTATE: &str = "tracestate";

/// The bit of the flags that says that the trace is recorded.
pub const SAMPLED: u8 = 1;

/// The bit of the flags that says that the number of the trace is random (level 2).
pub const RANDOM: u8 = 2;

/// The flags that are passed on; others must be zero.
const KNOWN: u8 = SAMPLED | RANDOM;

/// The members of a `tracestate` that are kept (W3C §3.3.1.1).
pub const MEMBERS_MAX: usize = 32;

/// The bytes of a `tracestate` that are passed on: what W3C asks for, and no more, since every hop pays for them.
pub const STATE_BYTES_MAX: usize = 512;

/// Members beyond this go first when all together are too long (W3C §3.3.1.5).
const MEMBER_BYTES_MAX: usize = 128;

/// The length of a `traceparent` of version `00`.
const LENGTH: usize = 55;

/// A `traceparent` of a later version that is longer is not read: it must be bounded, and no version yet has a field more.
const LENGTH_MAX: usize = 256;

/// Reads a `traceparent`. Version `00` to the letter: 55 bytes, lower-case digits, no zero numbers. Of a later version the
/// fields that `00` has, if a dash divides them from what follows (W3C §3.2.2.1, "versioning of traceparent"); it is written on as `00`, and
/// of its flags only the known ones. `ff` is no version. Linkerd reads `00` alone.
pub fn parse(text: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    let (version, rest) = text.split_at_checked(2)?;
    let is_long_enough = match version {
        b"00" => text.len() == LENGTH,
        b"ff" => false,
        // What follows begins with a dash; there may be nothing after that.
        later => later.iter().all(is_hex) && (text.len() == LENGTH || text.get(LENGTH) == Some(&b'-')),
    };
    let dashes = [0, 33, 50].iter().all(|at| rest.get(*at) == Some(&b'-'));
    if !is_long_enough || !dashes || text.len() > LENGTH_MAX {
        return None;
    }
    let trace = TraceId::from_hex(text.get(3..35)?)?;
    let span = SpanId::from_hex(text.get(36..52)?)?;
    let flags = text.get(53..LENGTH).filter(|flags| flags.iter().all(is_hex))?;
    let flags = u8::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok()?;
    Some((trace, span, flags & KNOWN))
}

/// Whether it is a digit as `traceparent` has them.
fn is_hex(byte: &u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(byte)
}

/// The `traceparent` of a span.
pub fn write(trace: TraceId, span: SpanId, flags: u8) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("00-{trace}-{span}-{:02x}", flags & KNOWN)).ok()
}

/// The one value of `name`; none when it stands there twice.
pub fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a HeaderValue> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

/// The `tracestate` to be passed on: all its headers as one list, without members that are malformed. `None` when
/// there is nothing, or more than [`MEMBERS_MAX`] members.
pub fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut members: Vec<&str> = Vec::new();
    for value in headers.get_all(TRACESTATE) {
        // What is longer than all headers of a sane request together is not even looked at.
        let text = value.to_str().ok().filter(|text| text.len() <= 8 * STATE_BYTES_MAX)?;
        for member in text.split(',').map(|member| member.trim_matches([' ', '\t'])) {
            if !member.is_empty() {
                members.push(member);
            }
            if members.len() > MEMBERS_MAX {
                return None;
            }
        }
    }
    members.retain(|member| is_member(member));
    let length = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>();
    while length(&members) > STATE_BYTES_MAX + 1 {
        // The long ones first, else the oldest, which stands last.
        let long = members.iter().rposition(|member| member.len() > MEMBER_BYTES_MAX);
        members.remove(long.unwrap_or(members.len() - 1));
    }
    if members.is_empty() { None } else { HeaderValue::try_from(members.join(",")).ok() }
}

/// Whether it is `key=value` (W3C §3.3.1.3).
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let sign = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    let begins = key.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    begins
        && key.len() <= 256
        && key.bytes().all(sign)
        && key.bytes().filter(|byte| *byte == b'@').count() <= 1
        && !value.is_empty()
        && value.len() <= 256
        && value.bytes().all(|byte| (0x20..=0x7e).contains(&byte) && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACESTATE, value.parse().unwrap());
        }
        state(&headers).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn states_are_joined_cleaned_and_bounded() {
        let check = |values: &[&str], expected: Option<&str>| {
            assert_eq!(joined(values).as_deref(), expected, "{values:?}");
        };
        check(&[], None);
        check(&["a=1, b=2", "c@d=3"], Some("a=1,b=2,c@d=3"));
        check(&["A=1,b=2,=3,c", "d=a=b,a@b@c=1"], Some("b=2"));
        check(&[" , ,"], None);
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        check(&[&many.join(",")], None);
        check(&[&many[..32].join(",")], Some(&many[..32].join(",")));
        let long = format!("long={}", "x".repeat(200));
        let short: Vec<String> = (0..4).map(|n| format!("k{n}={}", "y".repeat(100))).collect();
        check(&[&format!("{long},{}", short.join(","))], Some(&short.join(",")));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let check = |text: &str, flags: Option<u8>| {
            assert_eq!(parse(text.as_bytes()).map(|(.., flags)| flags), flags, "{text}");
        };
        let ids = "94d7f6ec6b95f3e916179cb6cfd01390-55ccfce77f972614";
        check(&format!("00-{ids}-01"), Some(SAMPLED));
        check(&format!("00-{ids}-01-"), None);
        check(&format!("00-{ids}-01-more"), None);
        check(&format!("01-{ids}-01"), Some(SAMPLED));
        check(&format!("cc-{ids}-09-what-the-future-brings"), Some(SAMPLED));
        check(&format!("cc-{ids}-ff-"), Some(SAMPLED | RANDOM));
        check(&format!("cc-{ids}-01.more"), None);
        check(&format!("cc-{ids}-1"), None);
        check(&format!("cc-{ids}-0g"), None);
        check(&format!("CC-{ids}-01"), None);
        check(&format!("c-{ids}-01"), None);
        check(&format!("ff-{ids}-01"), None);
        check(&format!("ff-{ids}-01-more"), None);
        check("cc-00000000000000000000000000000000-55ccfce77f972614-01", None);
        check(&format!("cc-{ids}-01-{}", "x".repeat(201)), None);
        check("01", None);
        check("", None);
    }

    #[test]
    fn a_header_that_stands_twice_is_none() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, "a".parse().unwrap());
        assert!(single(&headers, TRACEPARENT).is_some());
        headers.append(TRACEPARENT, "b".parse().unwrap());
        assert!(single(&headers, TRACEPARENT).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), flags in 0_u8..4) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let (trace, span) = (TraceId::new(trace).unwrap(), SpanId::new(span).unwrap());
            let written = write(trace, span, flags).unwrap();
            prop_assert_eq!(parse(written.as_bytes()), Some((trace, span, flags)));
        }

        #[test]
        fn whatever_is_read_is_bounded_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..700), near in "[0-9a-f]{2}-[0-9a-fA-F-]{0,60}") {
            let _ = parse(&bytes);
            if let Some((trace, span, flags)) = parse(near.as_bytes()) {
                // One text for one meaning, but for flags that are not passed on.
                let again = write(trace, span, flags).unwrap();
                prop_assert_eq!(&again.as_bytes()[2..53], &near.as_bytes()[2..53]);
            }
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.append(TRACESTATE, value);
                prop_assert!(state(&headers).is_none_or(|state| state.len() <= STATE_BYTES_MAX));
            }
        }
    }
}
