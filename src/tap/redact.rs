//! Floor 2: which headers an observer may see, and how much of them.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// What stands for a value that is hidden.
pub const HIDDEN: &str = "<hidden>";

/// The most headers that are shown of one message: what most servers accept.
pub const HEADERS_MAX: usize = 100;

/// The longest value that is shown, in bytes; the rest is cut off.
pub const VALUE_BYTES_MAX: usize = 1024;

/// What a header's name holds whose value proves who somebody is.
const WORDS: [&str; 12] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "session",
    "api-key",
    "apikey",
    "jwt",
    "signature",
];

/// Headers that prove who somebody is, and whose names do not say so.
const ALWAYS: [&str; 2] = ["x-forwarded-client-cert", "x-auth"];

/// Headers that name a resource: they are shown as paths are, without the query.
const PLACES: [&str; 9] = [
    "referer",
    "location",
    "content-location",
    "link",
    "refresh",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-forwarded-uri",
];

/// What is hidden.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    names: Vec<HeaderName>,
}

impl Redaction {
    /// Hides these too.
    pub fn and(names: impl IntoIterator<Item = HeaderName>) -> Self {
        Self { names: names.into_iter().collect() }
    }

    /// Whether what stands in this header is hidden, whatever it is.
    pub fn hides(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        ALWAYS.contains(&&*name)
            || WORDS.iter().any(|word| name.contains(word))
            || self.names.iter().any(|hidden| hidden.as_str() == name)
    }

    /// The headers as they may be shown. Values that are no text are shown with `\x` escapes.
    pub fn shown(&self, headers: &HeaderMap) -> Vec<(HeaderName, String)> {
        let shown = |(name, value): (&HeaderName, &HeaderValue)| {
            let text = match value.is_sensitive() || self.hides(name.as_str()) {
                true => HIDDEN.to_owned(),
                false if PLACES.contains(&name.as_str()) => text(place(value.as_bytes())),
                false => text(value.as_bytes()),
            };
            (name.clone(), text)
        };
        headers.iter().take(HEADERS_MAX).map(shown).collect()
    }
}

/// A place without its query.
fn place(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == b'?').next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().take(VALUE_BYTES_MAX).fold(String::new(), |mut text, byte| {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_who_somebody_is_is_hidden() {
        let mut headers = HeaderMap::new();
        let mut secret = HeaderValue::from_static("s");
        secret.set_sensitive(true);
        headers.insert("x-mine", secret);
        for name in [
            "authorization",
            "x-forwarded-authorization",
            "set-cookie",
            "x-my-session-id",
            "x-own",
            "x-api-key",
        ] {
            headers.insert(name, HeaderValue::from_static("s"));
        }
        headers.insert("accept", HeaderValue::from_bytes(b"a\xffb\tc").unwrap());
        headers.insert("referer", HeaderValue::from_static("https://web/a?token=s"));
        headers.insert("long", HeaderValue::try_from("y".repeat(2_000)).unwrap());
        let shown = Redaction::and([HeaderName::from_static("x-own")]).shown(&headers);
        let open: Vec<_> = shown.iter().filter(|(_, value)| value != HIDDEN).collect();
        assert_eq!((shown.len(), open.len()), (10, 3));
        let of = |name: &str| open.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(of("referer"), Some("https://web/a"));
        assert_eq!(of("accept"), Some("a\\xffb\\x09c"));
        assert_eq!(of("long").map(str::len), Some(VALUE_BYTES_MAX));
    }
}
