//! Floor 2: the parameters of a query, percent-decoded.

use std::borrow::Cow;

/// The decoded values of the parameter `name`, in order. `?a` is a parameter with an empty value; `+` is a space
/// (WHATWG URL, `application/x-www-form-urlencoded`). What needs no decoding is borrowed.
pub(crate) fn values<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = Cow<'a, [u8]>> {
    pairs(query).filter(move |(key, _)| same(key, name)).map(|(_, value)| decoded(value))
}

/// The parameters in order, still encoded.
pub(crate) fn pairs(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn same(encoded: &str, name: &str) -> bool {
    encoded == name || (is_encoded(encoded) && *decoded(encoded) == *name.as_bytes())
}

fn is_encoded(text: &str) -> bool {
    text.bytes().any(|byte| byte == b'%' || byte == b'+')
}

/// A name or a value, decoded. What is no escape stands for itself.
pub(crate) fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !is_encoded(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%').then(|| hex(bytes.get(at + 1..at + 3)?)).flatten();
        out.push(escaped.unwrap_or(if byte == b'+' { b' ' } else { byte }));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    Cow::Owned(out)
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low] = digits else { return None };
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, name: &str, expected: &[&str]) {
        let seen: Vec<_> = values(Some(query), name).collect();
        let expected: Vec<_> = expected.iter().map(|value| value.as_bytes()).collect();
        assert_eq!(seen, expected, "{query} {name}");
    }

    #[test]
    fn parameters_are_decoded_and_keep_their_order() {
        check("a=1&b=2&a=3", "a", &["1", "3"]);
        check("a", "a", &[""]);
        check("a=&&a==", "a", &["", "="]);
        check("%61=x%20y+z", "a", &["x y z"]);
        check("a=%zz%4", "a", &["%zz%4"]);
        check("A=1", "a", &[]);
        check("a=%26b=1", "b", &[]);
        check("", "", &[]);
        assert_eq!(values(None, "a").count(), 0);
        assert_eq!(values(Some("a=%ff"), "a").next().unwrap(), &b"\xff"[..]);
    }
}
