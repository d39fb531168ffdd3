//! Floor 3: decides whether what a rule looks at can be read in one way only.
//!
//! Where it cannot, the rule holds if it refuses and does not if it allows: doubt never helps the caller.

use crate::authz::path::has_lower_case_encoding;
use crate::profile::matching::Condition;
use crate::route::head::RequestHead;
use http::HeaderName;
use std::borrow::Cow;
use std::sync::Arc;

/// What a condition looks at, as far as it can be unclear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Looks {
    headers: Vec<HeaderName>,
    queries: Vec<Arc<str>>,
    host: bool,
    /// Whether a path with encodings is compared.
    encoded: bool,
}

impl Looks {
    /// What `condition` looks at. Its depth must be bounded.
    pub(crate) fn of(condition: &Condition) -> Self {
        let mut looks = Self::default();
        looks.add(condition);
        looks
    }

    fn add(&mut self, condition: &Condition) {
        match condition {
            Condition::All(all) | Condition::Any(all) => all.iter().for_each(|condition| self.add(condition)),
            Condition::Not(not) => self.add(not),
            // A name that is none is a fault, which the matcher tells.
            Condition::Header(header) => self.headers.extend(HeaderName::try_from(&*header.name)),
            Condition::Query(query) => self.queries.push(Arc::clone(&query.name)),
            Condition::Host(_) | Condition::Port(_) => self.host = true,
            Condition::Path(path) => self.encoded |= path.value.contains('%'),
            Condition::Always
            | Condition::Method(_)
            | Condition::Scheme(_)
            | Condition::Grpc(_)
            | Condition::Caller(_)
            | Condition::Fraction(_) => {}
        }
    }

    /// Whether something of it is missing where it may not be, stands twice, or cannot be read.
    pub(crate) fn are_unclear(&self, head: &RequestHead<'_>) -> bool {
        let header = |name: &HeaderName| {
            let mut values = head.headers().get_all(name).iter();
            let first = values.next();
            values.next().is_some() || first.is_some_and(|value| value.to_str().is_err())
        };
        self.headers.iter().any(header)
            || self.queries.iter().any(|name| is_query_unclear(head.query().unwrap_or_default(), name))
            || (self.host && head.host().is_none())
            || (self.encoded && has_lower_case_encoding(head.path()))
    }
}

/// Whether a parameter stands twice, or a key or its value cannot be decoded.
fn is_query_unclear(query: &str, name: &str) -> bool {
    let mut seen = 0;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match decoded(key) {
            None => return true,
            Some(key) if key == name => {
                seen += 1;
                if seen > 1 || decoded(value).is_none() {
                    return true;
                }
            }
            Some(_) => {}
        }
    }
    false
}

/// A key or value without its encoding; `None` if it is not decodable text.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digits = rest.get(..2)?;
                rest = rest.get(2..)?;
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let value = digits.iter().try_fold(0, |value, byte| Some(value * 16 + digit(byte)?))?;
                u8::try_from(value).ok()?
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_stand_twice_or_cannot_be_decoded_are_unclear() {
        for (query, unclear) in [
            ("", false),
            ("role=a", false),
            ("role=a&x=b&x=c", false),
            ("role=%C3%A9", false),
            ("role=a+b", false),
            ("role=a&role=b", true),
            ("role=a&%72ole=b", true),
            ("role=%ff", true),
            ("role=%4", true),
            ("%zz=1&role=a", true),
            ("x=%ff&role=a", false),
        ] {
            assert_eq!(is_query_unclear(query, "role"), unclear, "{query}");
        }
    }
}
