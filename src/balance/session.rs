//! Floor 2: pins a caller to one endpoint by what its own cookie or header says (Gateway API's session persistence).
//!
//! The token holds no address, only a hash of it, and no secret: whoever invents one gets an endpoint that balancing
//! could have given anyway, or none, and then a new session.

use crate::balance::hash::address_key;
use crate::balance::key;
use crate::profile::route::Session;
use http::header::SET_COOKIE;
use http::{HeaderName, HeaderValue, Request};
use std::net::SocketAddr;

/// A session: which endpoint, since when, and when it was used last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The endpoint's [`fingerprint`].
    pub endpoint: u64,
    /// When it began, in seconds since the Unix epoch.
    pub begun: u64,
    /// When it was used last.
    pub used: u64,
}

/// What names an endpoint in a token: the key of its cell.
pub fn fingerprint(addr: &SocketAddr) -> u64 {
    address_key(*addr)
}

impl Token {
    /// The token of a request, unless it has none, or one that has ended by `now` (seconds since the Unix epoch) or that
    /// nobody here wrote.
    pub fn of<B>(session: &Session, request: &Request<B>, now: u64) -> Option<Self> {
        let token = match session.header {
            true => Self::parse(request.headers().get(&*session.name)?.as_bytes()),
            false => Self::parse(key::cookie(request, &session.name)?),
        }?;
        let over = |limit: Option<std::time::Duration>, since: u64| {
            limit.is_some_and(|limit| now.saturating_sub(since) >= limit.as_secs().max(1))
        };
        let future = token.begun > now.saturating_add(60) || token.used < token.begun;
        (!over(session.absolute, token.begun) && !over(session.idle, token.used) && !future).then_some(token)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= 64)?;
        let mut parts = text.split('.').map(|part| u64::from_str_radix(part, 16).ok());
        let token = Self { endpoint: parts.next()??, begun: parts.next()??, used: parts.next()?? };
        parts.next().is_none().then_some(token)
    }

    /// The token of the response of `endpoint`, if the caller's own is not good enough: it has none, was sent elsewhere,
    /// or must learn that its session was used.
    pub fn next(before: Option<Self>, session: &Session, endpoint: u64, now: u64) -> Option<Self> {
        match before.filter(|token| token.endpoint == endpoint) {
            None => Some(Self { endpoint, begun: now, used: now }),
            Some(token) if session.idle.is_some() && token.used != now => Some(Self { used: now, ..token }),
            Some(_) => None,
        }
    }

    /// The header that tells it to the caller. A cookie is for the whole host, since one session may span routes, and
    /// scripts do not see it.
    pub fn header(&self, session: &Session, now: u64) -> Option<(HeaderName, HeaderValue)> {
        let text = format!("{:016x}.{:x}.{:x}", self.endpoint, self.begun, self.used);
        if session.header {
            let name = HeaderName::try_from(&*session.name).ok()?;
            return Some((name, HeaderValue::try_from(text).ok()?));
        }
        let age = session.absolute.filter(|_| session.permanent);
        let left = age.map(|age| age.as_secs().saturating_sub(now.saturating_sub(self.begun)));
        let age = left.map(|left| format!("; Max-Age={left}")).unwrap_or_default();
        let cookie = format!("{}={text}; Path=/{age}; HttpOnly", session.name);
        Some((SET_COOKIE, HeaderValue::try_from(cookie).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn session(header: bool) -> Session {
        Session { name: "s".into(), header, absolute: None, idle: None, permanent: false }
    }

    fn of(session: &Session, name: &str, value: &str, now: u64) -> Option<Token> {
        Token::of(session, &Request::get("/").header(name, value).body(()).unwrap(), now)
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = Token { endpoint: fingerprint(&([10, 0, 0, 1], 80).into()), begun: 1000, used: 1010 };
        for header in [false, true] {
            let session = session(header);
            let (name, value) = token.header(&session, 1010).unwrap();
            let text = value.to_str().unwrap();
            let (sent, pair) = match header {
                true => ("s", text),
                false => ("cookie", text.split(';').next().unwrap()),
            };
            assert_eq!(name == SET_COOKIE, !header);
            assert_eq!(of(&session, sent, pair, 1010), Some(token), "{text}");
        }
    }

    #[test]
    fn what_is_no_token_is_none() {
        let long = "1".repeat(65);
        for bad in
            ["", "x", "1.2", "1.2.3.4", "-1.2.3", "1.2.g", "1..3", "+1.2.3 ", &long, "1.3.2", "1.ffff.ffff"]
        {
            assert_eq!(of(&session(true), "s", bad, 10), None, "{bad}");
        }
        assert_eq!(of(&session(false), "cookie", "t=1.2.3", 10), None);
    }

    #[test]
    fn a_session_ends_by_age_and_by_rest() {
        let limited = Session {
            absolute: Some(Duration::from_secs(100)),
            idle: Some(Duration::from_secs(10)),
            permanent: true,
            ..session(true)
        };
        let at = |begun: u64, used: u64, now: u64| {
            of(&limited, "s", &format!("1.{begun:x}.{used:x}"), now).is_some()
        };
        assert!(at(1000, 1090, 1099));
        assert!(!at(1000, 1099, 1100), "too old");
        assert!(!at(1000, 1000, 1010), "unused for too long");
        let token = Token { endpoint: 1, begun: 1000, used: 1000 };
        assert_eq!(Token::next(Some(token), &limited, 1, 1005), Some(Token { used: 1005, ..token }));
        let cookie = Session { header: false, ..limited.clone() };
        let (_, value) = token.header(&cookie, 1040).unwrap();
        assert!(value.to_str().unwrap().ends_with("; Path=/; Max-Age=60; HttpOnly"), "{value:?}");
    }

    #[test]
    fn a_token_is_told_only_when_it_says_something_new() {
        let (session, token) = (session(true), Token { endpoint: 1, begun: 5, used: 5 });
        assert_eq!(Token::next(None, &session, 1, 9), Some(Token { endpoint: 1, begun: 9, used: 9 }));
        assert_eq!(Token::next(Some(token), &session, 1, 9), None);
        assert_eq!(Token::next(Some(token), &session, 2, 9), Some(Token { endpoint: 2, begun: 9, used: 9 }));
    }
}
