//! Floor 5: makes a request's head fit for the version of HTTP it is sent by.

use crate::route::head::without_userinfo;
use http::Extensions;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Uri;
use http::Version;
use http::header;
use http::uri::Authority;
use http::uri::PathAndQuery;
use http::uri::Scheme;
use std::net::SocketAddr;

/// Whether the request asks for another protocol on its connection, which only HTTP/1.1 has.
pub(crate) fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.version() != Version::HTTP_2 && request.headers().contains_key(header::UPGRADE)
}

/// Origin-form, with a `Host` header: the caller's own, or the URI's authority, or the replica's address.
pub(crate) fn http1<B>(request: &mut Request<B>, addr: SocketAddr) {
    if request.version() != Version::HTTP_10 {
        *request.version_mut() = Version::HTTP_11;
    }
    if !request.headers().contains_key(header::HOST) {
        let host = match request.uri().authority() {
            Some(authority) => HeaderValue::from_str(without_userinfo(authority.as_str())).ok(),
            None => HeaderValue::from_str(&addr.to_string()).ok(),
        };
        request.headers_mut().extend(host.map(|host| (header::HOST, host)));
    }
    if request.method() != Method::CONNECT && request.uri().authority().is_some() {
        let parts = std::mem::take(request.uri_mut()).into_parts();
        *request.uri_mut() = parts.path_and_query.map_or_else(Uri::default, Uri::from);
    }
}

/// Absolute-form with scheme and authority: the `Host` header's if there is one, as with HTTP/1.1, or the URI's,
/// or the replica's address. hyper removes the hop-by-hop headers.
pub(crate) fn http2<B>(request: &mut Request<B>, addr: SocketAddr, secure: bool) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(header::HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if host.is_none() && request.uri().authority().is_some() && request.uri().scheme().is_some() {
        return;
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.authority = host.or(parts.authority).or_else(|| Authority::try_from(addr.to_string()).ok());
    if request.method() != Method::CONNECT {
        parts.scheme.get_or_insert(if secure { Scheme::HTTPS } else { Scheme::HTTP });
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// The extensions that hyper reads: the protocol of an extended `CONNECT`.
pub(crate) fn read_by_hyper<B>(request: &Request<B>) -> Extensions {
    let mut read = Extensions::new();
    if request.method() == Method::CONNECT
        && let Some(protocol) = request.extensions().get::<hyper::ext::Protocol>()
    {
        read.insert(protocol.clone());
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, uri: &str, host: Option<&str>) -> Request<()> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn http1_has_origin_form_and_a_host() {
        let check = |method: &str, uri: &str, host: Option<&str>, to: &str, said: &str| {
            let mut head = head(method, uri, host);
            http1(&mut head, ([127, 0, 0, 1], 80).into());
            assert_eq!(
                (head.uri().to_string().as_str(), head.headers()["host"].to_str().unwrap()),
                (to, said)
            );
        };
        check("GET", "http://web.ns:8080/a?b=c", None, "/a?b=c", "web.ns:8080");
        check("GET", "http://web.ns", None, "/", "web.ns");
        check("GET", "http://web.ns/a", Some("other"), "/a", "other");
        check("GET", "http://me:secret@web.ns/a", None, "/a", "web.ns");
        check("GET", "/a", None, "/a", "127.0.0.1:80");
        check("OPTIONS", "*", Some("web"), "*", "web");
        check("CONNECT", "web.ns:443", None, "web.ns:443", "web.ns:443");
    }

    #[test]
    fn http2_has_scheme_and_authority() {
        let check = |method: &str, uri: &str, host: Option<&str>, secure: bool, to: &str| {
            let mut head = head(method, uri, host);
            http2(&mut head, ([127, 0, 0, 1], 80).into(), secure);
            assert_eq!(head.uri().to_string(), to);
            assert!(!head.headers().contains_key("host"));
        };
        check("GET", "http://web.ns:8080/a?b=c", None, false, "http://web.ns:8080/a?b=c");
        check("GET", "https://web.ns/a", None, false, "https://web.ns/a");
        check("GET", "http://web.ns/a", Some("other"), false, "http://other/a");
        check("GET", "/a", Some("web"), true, "https://web/a");
        check("GET", "/a", None, false, "http://127.0.0.1:80/a");
        check("CONNECT", "web.ns:443", None, false, "web.ns:443");
    }

    #[test]
    fn a_head_made_for_one_version_can_be_made_for_the_other() {
        let mut head = head("GET", "http://web.ns:8080/a", None);
        http1(&mut head, ([127, 0, 0, 1], 80).into());
        http2(&mut head, ([127, 0, 0, 1], 80).into(), false);
        assert_eq!(head.uri(), "http://web.ns:8080/a");
        http1(&mut head, ([127, 0, 0, 1], 80).into());
        assert_eq!(
            (head.uri().to_string().as_str(), &head.headers()["host"]),
            ("/a", &"web.ns:8080".parse().unwrap())
        );
    }

    #[test]
    fn an_extended_connect_keeps_its_protocol() {
        let mut request = Request::connect("http://web/chat").body(()).unwrap();
        request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        request.extensions_mut().insert("not read");
        let read = read_by_hyper(&request);
        let protocol = read.get::<hyper::ext::Protocol>().map(|protocol| protocol.as_str());
        assert_eq!((protocol, read.len()), (Some("websocket"), 1));
        *request.method_mut() = Method::GET;
        assert!(read_by_hyper(&request).is_empty());
    }
}
