//! Floor 1: the numbers of traces and spans.

use std::fmt;

/// The number of a trace: 16 bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId([u8; 16]);

/// The number of a span in its trace: 8 bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId([u8; 8]);

macro_rules! id {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// From its bytes; zero is none.
            pub fn new(bytes: [u8; $bytes]) -> Option<Self> {
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }

            /// From lower-case hexadecimal digits, exactly as many as it has.
            pub fn from_hex(text: &[u8]) -> Option<Self> {
                let lower = text.iter().all(|digit| !digit.is_ascii_uppercase());
                if text.len() != 2 * $bytes || !lower { None } else { Self::from_short_hex(text) }
            }

            /// From one hexadecimal digit to as many as it has; what is missing on the left is zero (B3).
            pub fn from_short_hex(text: &[u8]) -> Option<Self> {
                if text.is_empty() || text.len() > 2 * $bytes {
                    return None;
                }
                let mut bytes = [0; $bytes];
                for (place, digit) in text.iter().rev().enumerate() {
                    let value = match digit {
                        b'0'..=b'9' => digit - b'0',
                        b'a'..=b'f' => digit - b'a' + 10,
                        b'A'..=b'F' => digit - b'A' + 10,
                        _ => return None,
                    };
                    let byte: &mut u8 = bytes.iter_mut().rev().nth(place / 2)?;
                    *byte |= if place % 2 == 0 { value } else { value << 4 };
                }
                Self::new(bytes)
            }

            /// Its bytes.
            pub fn bytes(self) -> [u8; $bytes] {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(TraceId, 16);
id!(SpanId, 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_and_written() {
        let text = "94d7f6ec6b95f3e916179cb6cfd01390";
        assert_eq!(TraceId::from_hex(text.as_bytes()).map(|id| id.to_string()).as_deref(), Some(text));
        assert_eq!(TraceId::from_hex(text.to_uppercase().as_bytes()), None);
        assert_eq!(
            SpanId::from_short_hex(b"a1").map(|id| id.to_string()).as_deref(),
            Some("00000000000000a1")
        );
        assert_eq!(SpanId::from_short_hex(b"B").map(|id| id.bytes()[7]), Some(11));
        for bad in ["", "0", "0000000000000000", "00000000000000001", "x"] {
            assert_eq!(SpanId::from_short_hex(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(SpanId::from_hex(b"1"), None);
    }
}
