//! Floor 2: the part of a request that conditions look at.

use crate::stdx::rng::Rng;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri, header};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who sends a request, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// The namespace of its workload.
    pub namespace: Option<Arc<str>>,
    /// The labels of its workload.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Its proven identity: a SPIFFE ID or a DNS name.
    pub identity: Option<Arc<str>>,
}

/// The part of a request that conditions look at, borrowed. Making one costs a few instructions: what most
/// conditions do not ask for (authority, chance) is looked up when one does.
#[derive(Debug, Clone)]
pub struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    path: &'a str,
    headers: &'a HeaderMap,
    scheme: Option<&'a str>,
    caller: Option<&'a Caller>,
    rng: Option<&'a Rng>,
    draw: Cell<Option<u64>>,
}

impl<'a> RequestHead<'a> {
    /// The head of a request of `method` for `uri` with `headers`, from an unknown caller.
    #[inline]
    pub fn of(method: &'a Method, uri: &'a Uri, headers: &'a HeaderMap) -> Self {
        let path = uri.path();
        Self { method, uri, path, headers, scheme: None, caller: None, rng: None, draw: Cell::new(None) }
    }

    /// The head of `request`.
    #[inline]
    pub fn of_request<B>(request: &'a Request<B>) -> Self {
        Self::of(request.method(), request.uri(), request.headers())
    }

    /// The head of a request that was taken apart.
    #[inline]
    pub fn of_parts(parts: &'a Parts) -> Self {
        Self::of(&parts.method, &parts.uri, &parts.headers)
    }

    /// The same head, sent by `caller`. Without one, conditions on the caller do not hold.
    #[must_use]
    pub fn from_caller(mut self, caller: &'a Caller) -> Self {
        self.caller = Some(caller);
        self
    }

    /// The same head, over `scheme` where the URI names none. Without one it is `http`.
    #[must_use]
    pub fn over(mut self, scheme: &'a str) -> Self {
        self.scheme = Some(scheme);
        self
    }

    /// The same head, whose chance comes from `rng` and not from the thread's own sequence.
    #[must_use]
    pub fn with_rng(mut self, rng: &'a Rng) -> Self {
        self.rng = Some(rng);
        self
    }

    /// The method.
    #[inline]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The path, without the query and not percent-decoded.
    #[inline]
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The query without its `?`, not percent-decoded.
    #[inline]
    pub fn query(&self) -> Option<&'a str> {
        self.uri.query()
    }

    /// The headers.
    #[inline]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// Who sends it.
    pub fn caller(&self) -> Option<&'a Caller> {
        self.caller
    }

    /// The scheme: of the URI, else as told by [`over`](Self::over), else `http`.
    pub fn scheme(&self) -> &'a str {
        self.uri.scheme_str().or(self.scheme).unwrap_or("http")
    }

    /// `host[:port]` as the request names it: the URI's authority (HTTP/2 `:authority`), else the `Host` header.
    fn authority(&self) -> Option<&'a str> {
        match self.uri.authority() {
            Some(authority) => Some(without_userinfo(authority.as_str())),
            None => self.headers.get(header::HOST)?.to_str().ok(),
        }
    }

    /// The host without port, IPv6 brackets and trailing dot, in the request's own spelling.
    pub fn host(&self) -> Option<&'a str> {
        let (host, _) = split_port(self.authority()?);
        Some(bare_host(host))
    }

    /// The port that the authority names, else the scheme's own.
    pub fn port(&self) -> Option<u16> {
        let named = self.authority().and_then(|authority| split_port(authority).1);
        match named {
            Some(port) => port.parse().ok(),
            None if self.scheme().eq_ignore_ascii_case("https") => Some(443),
            None if self.scheme().eq_ignore_ascii_case("http") => Some(80),
            None => None,
        }
    }

    /// 64 random bits that stay the same for this head, so that asking twice gives one answer.
    pub(crate) fn draw(&self) -> u64 {
        let drawn = self.draw.get().unwrap_or_else(|| match self.rng {
            Some(rng) => rng.next_u64(),
            None => Rng::thread().next_u64(),
        });
        self.draw.set(Some(drawn));
        drawn
    }
}

/// An authority without what stands before an `@`.
pub(crate) fn without_userinfo(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// Splits `host:port`; the port is a colon's right side unless the colon stands within an IPv6 address.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && (host.ends_with(']') || !host.contains(':')) => {
            (host, (!port.is_empty()).then_some(port))
        }
        Some(_) | None => (authority, None),
    }
}

/// A host without IPv6 brackets and without a trailing dot.
pub(crate) fn bare_host(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address,
        None => host.strip_suffix('.').unwrap_or(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &str, host: Option<&str>, expected: (Option<&str>, Option<u16>)) {
        let uri: Uri = uri.parse().unwrap();
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        let head = RequestHead::of(&Method::GET, &uri, &headers);
        assert_eq!((head.host(), head.port()), expected, "{uri} {host:?}");
    }

    #[test]
    fn the_authority_comes_before_the_host_header() {
        check("http://a.b/", Some("c:1"), (Some("a.b"), Some(80)));
        check("https://a.b/", None, (Some("a.b"), Some(443)));
        check("/", Some("c:81"), (Some("c"), Some(81)));
        check("/", Some("c.:81"), (Some("c"), Some(81)));
        check("/", Some("[::1]:81"), (Some("::1"), Some(81)));
        check("/", Some("[::1]"), (Some("::1"), Some(80)));
        check("http://u:p@a:82/", None, (Some("a"), Some(82)));
        check("/", Some("c:"), (Some("c"), Some(80)));
        check("/", None, (None, Some(80)));
    }

    #[test]
    fn one_head_draws_once() {
        let (uri, headers) = (Uri::from_static("/"), HeaderMap::new());
        let rng = Rng::seeded(1);
        let head = RequestHead::of(&Method::GET, &uri, &headers).with_rng(&rng);
        assert_eq!(head.draw(), head.draw());
        assert_eq!(Rng::seeded(1).next_u64(), head.draw());
    }
}
