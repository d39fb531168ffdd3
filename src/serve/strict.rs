//! Floor 5: refuses requests whose target can be read in two ways (RFC 9112 §3.2, RFC 9113 §8.3.1).

use http::HeaderMap;
use http::Method;
use http::Request;
use http::Uri;
use http::Version;
use http::header;
use http::uri::Authority;

/// Whether a request names its target in one way only; otherwise what is wrong, for a 400.
///
/// hyper lets pass: two `Host` fields, an HTTP/1.1 request without one, and an authority in the request line
/// that is not the one in `Host`. `Content-Length` with `Transfer-Encoding` it does not show, so that is refused
/// before hyper reads it.
///
/// # Errors
///
/// A sentence for the peer.
pub fn check<B>(request: &Request<B>) -> Result<(), &'static str> {
    target(request.version(), request.method(), request.uri(), request.headers())
}

fn target(version: Version, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("more than one host header");
    }
    let Some(host) = host else {
        return match version {
            Version::HTTP_11 => Err("no host header"),
            Version::HTTP_2 if uri.authority().is_none() => Err("no authority"),
            _ => Ok(()),
        };
    };
    if host.is_empty() {
        // Allowed when the target has no authority either (RFC 9112 §3.2).
        return if uri.authority().is_none() {
            Ok(())
        } else {
            Err("host header differs from the authority")
        };
    }
    // An exact copy is by far the usual case.
    if uri.authority().is_some_and(|authority| authority.as_str().as_bytes() == host.as_bytes()) {
        return Ok(());
    }
    let host = Authority::try_from(host.as_bytes()).map_err(|_| "unusable host header")?;
    // The grammar has an empty port and no largest one; user information does not belong here.
    let port = host.as_str().strip_prefix(host.host()).unwrap_or("@");
    if !matches!(port, "" | ":") && host.port_u16().is_none() {
        return Err("unusable host header");
    }
    match uri.authority() {
        Some(authority) if !same(authority, &host, uri, method) => {
            Err("host header differs from the authority")
        }
        _ => Ok(()),
    }
}

/// Whether two authorities are the same, a default port being as good as none.
fn same(a: &Authority, b: &Authority, uri: &Uri, method: &Method) -> bool {
    let usual = match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        // The request line of CONNECT has no scheme, and its port is never left out.
        _ if *method == Method::CONNECT => None,
        _ => Some(80),
    };
    let port = |authority: &Authority| authority.port_u16().or(usual);
    a.host().eq_ignore_ascii_case(b.host()) && port(a) == port(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_case(version: Version, method: &str, uri: &str, hosts: &[&str], fine: bool) {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(()).unwrap();
        assert_eq!(check(&request).is_ok(), fine, "{version:?} {method} {uri} {hosts:?}");
    }

    #[test]
    fn a_target_is_named_once() {
        let (v10, v11, v2) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        check_case(v11, "GET", "/", &["a"], true);
        check_case(v11, "GET", "/", &[], false);
        check_case(v10, "GET", "/", &[], true);
        check_case(v11, "GET", "/", &["a", "a"], false);
        check_case(v11, "GET", "/", &["a", "b"], false);
        check_case(v11, "GET", "/", &[""], true);
        check_case(v11, "GET", "/", &["a b"], false);
        check_case(v11, "GET", "/", &["a/b"], false);
        check_case(v11, "GET", "/", &["u@a"], false);
        check_case(v11, "GET", "/", &["a:99999"], false);
        check_case(v11, "GET", "/", &["[::1]:80"], true);
        check_case(v11, "GET", "http://a/", &["a"], true);
        check_case(v11, "GET", "http://a/", &["A"], true);
        check_case(v11, "GET", "http://a/", &["a:80"], true);
        check_case(v11, "GET", "http://a/", &["a:81"], false);
        check_case(v11, "GET", "http://a/", &["b"], false);
        check_case(v11, "GET", "http://a/", &[""], false);
        check_case(v11, "CONNECT", "a:443", &["a:443"], true);
        check_case(v11, "CONNECT", "a:443", &["a"], false);
        check_case(v2, "GET", "http://a/", &[], true);
        check_case(v2, "GET", "http://a/", &["a"], true);
        check_case(v2, "GET", "http://a/", &["b"], false);
        check_case(v2, "GET", "https://a/", &["a:443"], true);
        check_case(v2, "GET", "http://a/", &["a", "a"], false);
        check_case(v2, "GET", "/", &[], false);
    }
}
