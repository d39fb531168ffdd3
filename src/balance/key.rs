//! Floor 2: what of a request is hashed, so that equal requests meet the same endpoint.

use crate::balance::hash::hash_bytes;
use crate::profile::settings::HashKey;
use http::header::COOKIE;
use http::request::Request;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What a request's keys say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'k> {
    /// The first key that the request has.
    Hash(u64),
    /// None, and the first cookie that is made when it is missing, with its life.
    Make {
        /// Its name.
        name: &'k str,
        /// Its path attribute.
        path: Option<&'k str>,
        /// How long it lives; zero is as long as the browser.
        ttl: Duration,
    },
    /// None.
    Nothing,
}

/// Hashes the first of `keys` that `request` has. [`HashKey::Source`] reads a [`SocketAddr`] among the request's
/// extensions, where a server puts the address of its own caller.
pub fn find<'k, B>(keys: &'k [HashKey], request: &Request<B>) -> Found<'k> {
    if let Some(hash) = keys.iter().find_map(|key| hash(key, request)) {
        return Found::Hash(hash);
    }
    let made = keys.iter().find_map(|key| match key {
        HashKey::Cookie { name, path, ttl: Some(ttl) } => {
            Some(Found::Make { name, path: path.as_deref(), ttl: *ttl })
        }
        HashKey::Cookie { .. } | HashKey::Header(_) | HashKey::Query(_) | HashKey::Path | HashKey::Source => {
            None
        }
    });
    made.unwrap_or(Found::Nothing)
}

fn hash<B>(key: &HashKey, request: &Request<B>) -> Option<u64> {
    match key {
        HashKey::Header(name) => {
            // Several values of one header are hashed as one list, in order (gRPC A42).
            let mut values = request.headers().get_all(&**name).iter();
            let first = values.next()?;
            Some(match values.next() {
                None => hash_bytes(first.as_bytes()),
                Some(second) => {
                    let rest = std::iter::once(second).chain(values);
                    let joined = rest.fold(first.as_bytes().to_vec(), |mut all, value| {
                        all.push(b',');
                        all.extend_from_slice(value.as_bytes());
                        all
                    });
                    hash_bytes(&joined)
                }
            })
        }
        HashKey::Cookie { name, .. } => cookie(request, name).map(hash_bytes),
        HashKey::Query(name) => {
            let pairs = request.uri().query()?.split('&');
            let mut values = pairs.filter_map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (key == &**name).then_some(value)
            });
            values.next().map(|value| hash_bytes(value.as_bytes()))
        }
        HashKey::Path => Some(hash_bytes(request.uri().path().as_bytes())),
        HashKey::Source => {
            // The port is another one with each connection.
            request.extensions().get::<SocketAddr>().map(|addr| hash_address(addr.ip()))
        }
    }
}

/// Hashes an address as [`HashKey::Source`] is hashed.
pub fn hash_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(ip) => hash_bytes(&ip.octets()),
        IpAddr::V6(ip) => hash_bytes(&ip.octets()),
    }
}

/// The value of a cookie, without the quotes it may have (RFC 6265 §4.1.1).
pub(crate) fn cookie<'r, B>(request: &'r Request<B>, name: &str) -> Option<&'r [u8]> {
    let lines = request.headers().get_all(COOKIE).iter();
    let mut pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let (key, value) = pair.trim_ascii().split_at_checked(name.len())?;
        let value = value.strip_prefix(b"=").filter(|_| key == name.as_bytes())?;
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn check(keys: &[HashKey], request: http::request::Builder, expected: Option<&str>) {
        let request = request.extension(SocketAddr::from(([10, 0, 0, 7], 999))).body(()).unwrap();
        let expected = expected.map_or(Found::Nothing, |text| Found::Hash(hash_bytes(text.as_bytes())));
        assert_eq!(find(keys, &request), expected, "{keys:?}");
    }

    #[test]
    fn the_first_key_that_the_request_has_decides() {
        let header = HashKey::Header("x-user".into());
        let cookie = HashKey::Cookie { name: "id".into(), path: None, ttl: None };
        let query = HashKey::Query("q".into());
        let get = || Request::get("/a/b?p=0&q=2&q=3");
        check(&[], get(), None);
        check(std::slice::from_ref(&header), get(), None);
        check(std::slice::from_ref(&header), get().header("x-user", "ada"), Some("ada"));
        check(
            std::slice::from_ref(&header),
            get().header("x-user", "ada").header("x-user", "bob"),
            Some("ada,bob"),
        );
        check(&[header.clone(), query.clone()], get(), Some("2"));
        check(&[HashKey::Path, query], get(), Some("/a/b"));
        check(std::slice::from_ref(&cookie), get().header("cookie", "ids=1; id=\"7\""), Some("7"));
        check(
            std::slice::from_ref(&cookie),
            get().header("cookie", "a=1").header("cookie", "id=8"),
            Some("8"),
        );
        check(&[cookie], get(), None);
        check(&[HashKey::Source], get(), Some("\u{a}\0\0\u{7}"));
    }

    #[test]
    fn a_missing_cookie_with_a_life_is_made_only_if_no_key_is_there() {
        let name: Arc<str> = "id".into();
        let cookie = HashKey::Cookie { name, path: Some("/".into()), ttl: Some(Duration::ZERO) };
        let request = Request::get("/").body(()).unwrap();
        let made = Found::Make { name: "id", path: Some("/"), ttl: Duration::ZERO };
        assert_eq!(find(std::slice::from_ref(&cookie), &request), made);
        assert!(matches!(find(&[cookie, HashKey::Path], &request), Found::Hash(_)));
    }
}
