//! Floor 2: reads and writes the headers of B3 (openzipkin/b3-propagation), single and multiple.

use crate::trace::id::{SpanId, TraceId};
use crate::trace::w3c::single;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The single header.
pub const B3: HeaderName = HeaderName::from_static("b3");
/// The trace's number.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
/// The span's number.
pub const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
/// The span's parent; it is not passed on, since it would be wrong one hop later.
pub const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
/// Whether it is recorded.
pub const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
/// `1` for a trace that is recorded whatever the samplers say.
pub const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// The longest single header: two numbers of full length, a letter and the parent.
const BYTES_MAX: usize = 32 + 1 + 16 + 1 + 1 + 1 + 16;

/// What B3 says of sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Recorded.
    Accept,
    /// Not recorded.
    Deny,
    /// Recorded whatever samplers say.
    Debug,
    /// Not decided yet: whoever receives it decides.
    Defer,
}

/// Reads the single header: `{trace}-{span}[-{sampled}[-{parent}]]`. One without numbers (`b3: 0`) names no trace.
pub fn parse(text: &[u8]) -> Option<(TraceId, SpanId, Decision)> {
    if text.len() > BYTES_MAX {
        return None;
    }
    let mut parts = text.split(|byte| *byte == b'-');
    let trace =
        parts.next().filter(|trace| matches!(trace.len(), 16 | 32)).and_then(TraceId::from_short_hex)?;
    let span = parts.next().filter(|span| span.len() == 16).and_then(SpanId::from_short_hex)?;
    let decision = match parts.next() {
        None => Decision::Defer,
        Some(b"1") => Decision::Accept,
        Some(b"0") => Decision::Deny,
        Some(b"d") => Decision::Debug,
        Some(_) => return None,
    };
    if let Some(parent) = parts.next()
        && (parent.len() != 16 || SpanId::from_short_hex(parent).is_none())
    {
        return None;
    }
    parts.next().is_none().then_some((trace, span, decision))
}

/// Reads the multiple headers. Short numbers are filled up on the left, as Linkerd does; recorded is what says exactly
/// `1`.
pub fn read(headers: &HeaderMap) -> Option<(TraceId, SpanId, Decision)> {
    let value = |name: &HeaderName| single(headers, name.as_str()).map(HeaderValue::as_bytes);
    let trace = value(&TRACE_ID).and_then(TraceId::from_short_hex)?;
    let span = value(&SPAN_ID).and_then(SpanId::from_short_hex)?;
    let decision = match (value(&FLAGS), value(&SAMPLED)) {
        (Some(b"1"), _) => Decision::Debug,
        (_, Some(b"1")) => Decision::Accept,
        (_, Some(_)) => Decision::Deny,
        (_, None) => Decision::Defer,
    };
    Some((trace, span, decision))
}

/// Writes the single header.
pub fn write_single(headers: &mut HeaderMap, trace: TraceId, span: SpanId, decision: Decision) {
    let letter = match decision {
        Decision::Accept => "-1",
        Decision::Deny => "-0",
        Decision::Debug => "-d",
        Decision::Defer => "",
    };
    if let Ok(value) = HeaderValue::try_from(format!("{trace}-{span}{letter}")) {
        headers.insert(B3, value);
    }
}

/// Writes the multiple headers.
pub fn write(headers: &mut HeaderMap, trace: TraceId, span: SpanId, decision: Decision) {
    for (name, text) in [(TRACE_ID, trace.to_string()), (SPAN_ID, span.to_string())] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    headers.remove(PARENT);
    let (set, text, unset) = match decision {
        Decision::Accept => (SAMPLED, "1", FLAGS),
        Decision::Deny => (SAMPLED, "0", FLAGS),
        Decision::Debug => (FLAGS, "1", SAMPLED),
        Decision::Defer => return,
    };
    headers.remove(unset);
    headers.insert(set, HeaderValue::from_static(text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const S: &str = "e457b5a2e4d86bd1";

    fn check(text: &str, expected: Option<Decision>) {
        assert_eq!(parse(text.as_bytes()).map(|(_, _, decision)| decision), expected, "{text}");
    }

    #[test]
    fn single_headers_are_read_to_the_letter() {
        check(&format!("{T}-{S}-1-05e3ac9a4f6e3b90"), Some(Decision::Accept));
        check(&format!("{T}-{S}-d"), Some(Decision::Debug));
        check(&format!("{}-{S}-0", &T[16..]), Some(Decision::Deny));
        check(&format!("{T}-{S}"), Some(Decision::Defer));
        for bad in
            ["", "0", "1", "d", "-", &format!("{T}-{S}-"), &format!("{T}-{S}-2"), &format!("{T}-{S}-1-1")]
        {
            check(bad, None);
        }
        check(&format!("{T}-{S}-1-05e3ac9a4f6e3b90-x"), None);
    }

    fn headers(values: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        values.iter().map(parse).collect()
    }

    #[test]
    fn multiple_headers_are_recorded_only_by_exactly_1() {
        for (sampled, expected) in [("1", Decision::Accept), ("0", Decision::Deny), ("true", Decision::Deny)]
        {
            let headers = headers(&[("x-b3-traceid", T), ("x-b3-spanid", "1"), ("x-b3-sampled", sampled)]);
            assert_eq!(read(&headers).map(|(_, _, decision)| decision), Some(expected), "{sampled}");
        }
        let debug = headers(&[("x-b3-traceid", "1"), ("x-b3-spanid", "1"), ("x-b3-flags", "1")]);
        assert_eq!(read(&debug).map(|(_, _, decision)| decision), Some(Decision::Debug));
        let defer = headers(&[("x-b3-traceid", "1"), ("x-b3-spanid", "1")]);
        assert_eq!(read(&defer).map(|(_, _, decision)| decision), Some(Decision::Defer));
        assert_eq!(read(&headers(&[("x-b3-traceid", "1")])), None);
        assert_eq!(read(&headers(&[("x-b3-traceid", "1"), ("x-b3-spanid", &"1".repeat(17))])), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), which in 0..4) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let (trace, span) = (TraceId::new(trace).unwrap(), SpanId::new(span).unwrap());
            let decision =
                [Decision::Accept, Decision::Deny, Decision::Debug, Decision::Defer][which as usize];
            let mut headers = HeaderMap::new();
            write_single(&mut headers, trace, span, decision);
            prop_assert_eq!(parse(headers[B3].as_bytes()), Some((trace, span, decision)));
            write(&mut headers, trace, span, decision);
            prop_assert_eq!(read(&headers), Some((trace, span, decision)));
        }

        #[test]
        fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), near in "[0-9a-fd-]{0,80}") {
            let _ = (parse(&bytes), parse(near.as_bytes()));
        }
    }
}
