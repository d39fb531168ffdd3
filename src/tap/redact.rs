//! Floor 2: which headers an observer may see, and how much of them.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// What stands for a value that is hidden.
pub const HIDDEN: &str = "<hidden>";

/// The most headers that are shown of one message: what most servers accept.
pub const HEADERS_MAX: usize = 100;

/// The longest value that is shown, in bytes; the rest is cut off.
pub const VALUE_BYTES_MAX: usize = 1024;

/// Headers that are always hidden: what proves who somebody is.
const ALWAYS: [&str; 12] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "x-auth-token",
    "x-access-token",
    "x-csrf-token",
    "x-xsrf-token",
    "x-amz-security-token",
    "x-goog-iap-jwt-assertion",
    "x-forwarded-client-cert",
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

    fn hides(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        let name = name.as_str();
        value.is_sensitive()
            || ALWAYS.contains(&name)
            || ["token", "secret", "password", "credential", "session"].iter().any(|word| name.contains(word))
            || self.names.iter().any(|hidden| hidden.as_str() == name)
    }

    /// The headers as they may be shown. Values that are no text are shown with `\x` escapes.
    pub fn shown(&self, headers: &HeaderMap) -> Vec<(HeaderName, String)> {
        let shown = |(name, value): (&HeaderName, &HeaderValue)| {
            let text = if self.hides(name, value) { HIDDEN.to_owned() } else { text(value.as_bytes()) };
            (name.clone(), text)
        };
        headers.iter().take(HEADERS_MAX).map(shown).collect()
    }
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
        for name in ["authorization", "cookie", "set-cookie", "x-my-session-id", "x-own"] {
            headers.insert(name, HeaderValue::from_static("s"));
        }
        headers.insert("accept", HeaderValue::from_bytes(b"a\xffb\tc").unwrap());
        headers.insert("long", HeaderValue::try_from("y".repeat(2_000)).unwrap());
        let shown = Redaction::and([HeaderName::from_static("x-own")]).shown(&headers);
        let open: Vec<_> = shown.iter().filter(|(_, value)| value != HIDDEN).collect();
        assert_eq!((shown.len(), open.len()), (8, 2));
        let of = |name: &str| open.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(of("accept"), Some("a\\xffb\\x09c"));
        assert_eq!(of("long").map(str::len), Some(VALUE_BYTES_MAX));
    }
}
