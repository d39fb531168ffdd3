//! Floor 2: decides which headers of a request are the mesh's own, and none of a peer's business.

use http::HeaderMap;
use http::HeaderName;

/// Who calls, as Linkerd's applications read it.
pub const CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");

/// Prefixes of headers by which a mesh speaks to its own parts: Linkerd's and ours.
const RESERVED_PREFIXES: [&str; 2] = ["l5d-", "enmesh-"];

/// Envoy's headers that make a proxy do something. The others it sets for applications to read.
const RESERVED_NAMES: [&str; 10] = [
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-max-retries",
    "x-envoy-original-path",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
];

/// By which Envoy tells an application who calls: here nobody has checked what it says.
const FOREIGN_CLIENT: &str = "x-forwarded-client-cert";

/// Whether a header is the mesh's own: a peer may not set it, and the application never sees a peer's.
pub fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str();
    RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with("x-envoy-") && RESERVED_NAMES.contains(&name))
        || name == FOREIGN_CLIENT
}

/// Takes the mesh's own headers out. Costs one look at each name when there is none.
pub fn strip_reserved(headers: &mut HeaderMap) {
    // Names are taken one by one: a request with many of them is rare and bounded by the server's header limit.
    while let Some(name) = headers.keys().find(|name| is_reserved(name)).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meshs_own_headers_go_and_the_rest_stays() {
        let mut headers = HeaderMap::new();
        let all = [
            ("l5d-client-id", "admin"),
            ("l5d-client-id", "root"),
            ("x-forwarded-client-cert", "URI=spiffe://mesh/admin"),
            ("l5d-retry-limit", "18446744073709551615"),
            ("l5d-timeout", "9999d"),
            ("x-envoy-max-retries", "100"),
            ("x-envoy-external-address", "1.2.3.4"),
            ("authorization", "Bearer x"),
            ("connection", "authorization, x-mesh-id, host"),
            ("x-mesh-id", "1"),
            ("x-http-method-override", "DELETE"),
        ];
        for (name, value) in all {
            headers.append(name, value.parse().unwrap());
        }
        strip_reserved(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let kept = [
            "authorization",
            "connection",
            "x-envoy-external-address",
            "x-http-method-override",
            "x-mesh-id",
        ];
        assert_eq!(names, kept);
    }
}
