//! Floor 2: reads and writes `grpc-trace-bin`, the binary context of OpenCensus that gRPC carries in base64.

use crate::stdx::base64::{SIGNS, encode_onto};
use crate::trace::id::{SpanId, TraceId};
use http::HeaderValue;

/// The header.
pub const GRPC_TRACE_BIN: &str = "grpc-trace-bin";

/// A version byte and three fields of 17, 9 and 2 bytes.
const BYTES: usize = 29;

/// The longest text that is read: twice the usual, for fields that are not known yet and come last.
const TEXT_MAX: usize = 80;

/// Reads standard base64, padded or not, of at most [`TEXT_MAX`] bytes.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let padded = text.strip_suffix(b"=").map(|text| text.strip_suffix(b"=").unwrap_or(text));
    let text = padded.unwrap_or(text);
    if text.len() > TEXT_MAX || text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.chunks(4) {
        let mut word = 0_u32;
        for sign in group {
            let value = SIGNS.iter().position(|known| known == sign)?;
            word = word << 6 | u32::try_from(value).ok()?;
        }
        word <<= 6 * (4 - group.len());
        bytes.extend(word.to_be_bytes().iter().skip(1).take(group.len() * 3 / 4));
    }
    Some(bytes)
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    encode_onto(&mut text, bytes);
    text
}

/// Reads the header: version 0, then the fields 0 (trace), 1 (span) and 2 (options, of which bit 0 is sampled), in this
/// order; what follows is for later versions. Without options it is not recorded.
pub fn parse(text: &[u8]) -> Option<(TraceId, SpanId, bool)> {
    let bytes = decode(text)?;
    let (version, fields) = bytes.split_first()?;
    let (trace, fields) = fields.strip_prefix(&[0])?.split_at_checked(16)?;
    let (span, fields) = fields.strip_prefix(&[1])?.split_at_checked(8)?;
    let sampled = match fields {
        [2, options, ..] => options & 1 == 1,
        _ => false,
    };
    let trace = TraceId::new(trace.try_into().ok()?)?;
    let span = SpanId::new(span.try_into().ok()?)?;
    (*version == 0).then_some((trace, span, sampled))
}

/// The header of a span.
pub fn write(trace: TraceId, span: SpanId, sampled: bool) -> Option<HeaderValue> {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.extend([0, 0]);
    bytes.extend(trace.bytes());
    bytes.push(1);
    bytes.extend(span.bytes());
    bytes.extend([2, u8::from(sampled)]);
    HeaderValue::try_from(encode(&bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8], expected: Option<bool>) {
        let text = encode(bytes);
        assert_eq!(parse(text.as_bytes()).map(|(_, _, sampled)| sampled), expected, "{bytes:?}");
        assert_eq!(
            parse(text.trim_end_matches('=').as_bytes()),
            parse(text.as_bytes()),
            "padding is optional"
        );
    }

    #[test]
    fn fields_stand_in_order_and_later_ones_are_left() {
        let all: Vec<u8> = [&[0, 0][..], &[7; 16], &[1], &[8; 8], &[2, 1]].concat();
        check(&all, Some(true));
        check(&[&all[..28], &[0]].concat(), Some(false));
        check(&all[..27], Some(false));
        check(&[&all[..], &[3, 9, 9]].concat(), Some(true));
        check(&all[..26], None);
        check(&[], None);
        check(&[&[1], &all[1..]].concat(), None);
        check(&[&[0, 0][..], &[0; 16], &[1], &[8; 8], &[2, 1]].concat(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), sampled in any::<bool>()) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let (trace, span) = (TraceId::new(trace).unwrap(), SpanId::new(span).unwrap());
            let written = write(trace, span, sampled).unwrap();
            prop_assert_eq!(parse(written.as_bytes()), Some((trace, span, sampled)));
        }

        #[test]
        fn base64_is_its_own_inverse_and_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), text in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(encode(&bytes).as_bytes()), Some(bytes));
            let _ = parse(&text);
        }
    }
}
