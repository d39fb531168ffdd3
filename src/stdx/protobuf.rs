//! Floor 0: reads and writes protobuf's wire format (protobuf.dev/programming-guides/encoding).
//!
//! The few small messages of identity services and of load reports do not justify a code generator and its runtime.

/// A field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
    /// An integer.
    Number(u64),
    /// Eight bytes: an integer, or the bits of a double.
    Fixed64(u64),
    /// Four bytes: an integer, or the bits of a float.
    Fixed32(u32),
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMessage;

/// The fields of a message in their order. After an error there is nothing more.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u32, Value<'_>), NoMessage>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or(NoMessage))
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    let tag = varint(rest)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => Value::Fixed64(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(take(rest, length)?)
        }
        5 => Value::Fixed32(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((number, value))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

/// The next integer.
pub(crate) fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(rest, 1)?.first()?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Adds a field of bytes to a message.
pub fn put(message: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(message, u64::from(number) << 3 | 2);
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

/// Adds an integer alone.
pub(crate) fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        message.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as protobuf's own runtime writes it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Theirs {
        #[prost(string, tag = "1")]
        text: String,
        #[prost(bytes = "vec", repeated, tag = "2")]
        many: Vec<Vec<u8>>,
        #[prost(int64, tag = "3")]
        number: i64,
        #[prost(fixed64, tag = "4")]
        eight: u64,
        #[prost(fixed32, tag = "5000")]
        four: u32,
    }

    fn read(bytes: &[u8]) -> Result<Theirs, NoMessage> {
        let mut message = Theirs::default();
        for field in fields(bytes) {
            match field? {
                (1, Value::Bytes(bytes)) => {
                    message.text = String::from_utf8(bytes.to_vec()).map_err(|_| NoMessage)?
                }
                (2, Value::Bytes(bytes)) => message.many.push(bytes.to_vec()),
                (3, Value::Number(number)) => message.number = number as i64,
                (4, Value::Fixed64(number)) => message.eight = number,
                (5000, Value::Fixed32(number)) => message.four = number,
                _ => {}
            }
        }
        Ok(message)
    }

    #[test]
    fn messages_of_protobufs_own_runtime_are_read() {
        use prost::Message;
        for number in [0, 1, 127, 128, 300, i64::MAX, -1] {
            let theirs = Theirs {
                text: "x".repeat(number.unsigned_abs() as usize % 500),
                many: vec![vec![], vec![1, 2, 3], vec![0; 200]],
                number,
                eight: u64::MAX,
                four: 7,
            };
            let bytes = theirs.encode_to_vec();
            assert_eq!(read(&bytes), Ok(theirs));
        }
    }

    #[test]
    fn ours_are_read_by_protobufs_own_runtime() {
        use prost::Message;
        let mut bytes = Vec::new();
        put(&mut bytes, 1, b"name");
        put(&mut bytes, 2, &[9; 300]);
        put(&mut bytes, 2, &[]);
        let theirs = Theirs::decode(bytes.as_slice()).unwrap();
        assert_eq!((theirs.text.as_str(), theirs.many), ("name", vec![vec![9; 300], vec![]]));
    }

    #[test]
    fn what_is_cut_or_mangled_is_an_error_and_never_a_panic() {
        use prost::Message;
        let theirs = Theirs { text: "text".into(), many: vec![vec![1; 40]], number: -5, eight: 1, four: 1 };
        let whole = theirs.encode_to_vec();
        for cut in 1..whole.len() {
            let ours = read(&whole[..cut]).ok();
            assert_eq!(ours, Theirs::decode(&whole[..cut]).ok(), "{cut}");
        }
        for at in 0..whole.len() {
            for flip in 1..=255 {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                let _ = read(&bytes);
            }
        }
        for bad in [
            &[0x00][..],
            &[0x0b],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x80; 12],
        ] {
            assert!(read(bad).is_err(), "{bad:x?}");
        }
    }
}
