//! Floor 0: writes base64 (RFC 4648: the standard alphabet, padded).

/// The signs, in order of their values.
pub(crate) const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Adds `bytes` to `text`, which stays where it is if it has room for four signs for each three bytes.
pub(crate) fn encode_onto(text: &mut String, bytes: &[u8]) {
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let signs = (0..4).map(|place| SIGNS.get((word >> (18 - 6 * place)) as usize & 63).copied());
        text.extend(signs.take(group.len() + 1).flatten().map(char::from));
    }
    text.extend(std::iter::repeat_n('=', (3 - bytes.len() % 3) % 3));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_standard_are_written_as_it_says() {
        let check = |bytes: &str, expected: &str| {
            let mut text = String::from(">");
            encode_onto(&mut text, bytes.as_bytes());
            assert_eq!(text, format!(">{expected}"));
        };
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foob", "Zm9vYg==");
        check("fooba", "Zm9vYmE=");
        check("foobar", "Zm9vYmFy");
    }
}
