//! Floor 6: who may see a page of the admin server.
//!
//! A browser sends requests for whoever wrote the page it shows. Two checks keep such a page out: the `Host` must be one
//! of ours, since a foreign name that resolves to this server makes it of one origin with the attacker's page (DNS
//! rebinding), and what the browser says of the request's origin must be this very server.

use crate::admin::dial::OBSERVER;
use crate::tls::identity::{Identity, PeerIdentity};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use std::net::IpAddr;
use std::sync::Arc;

/// What a page shows, and so to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing of worth: to everybody, whatever they call this server. For probes.
    Open,
    /// Figures and configuration: to everybody who can connect, but to no other site's page.
    Read,
    /// Requests of others, or something that changes: as [`Read`](Self::Read), and only to loopback peers and to the
    /// identities that were [allowed](crate::admin::server::Admin::observer).
    Private,
}

/// What browsers say of where a request comes from (Fetch Metadata, W3C).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who is let in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    hosts: Arc<[Box<str>]>,
    observers: Arc<[Identity]>,
}

impl Guard {
    /// Allows one more host, without a port.
    pub(crate) fn host(self, host: &str) -> Self {
        let host = host.to_ascii_lowercase().into_boxed_str();
        Self { hosts: self.hosts.iter().cloned().chain([host]).collect(), ..self }
    }

    /// Allows one more identity.
    pub(crate) fn observer(self, identity: Identity) -> Self {
        Self { observers: self.observers.iter().cloned().chain([identity]).collect(), ..self }
    }

    /// Whether a page of this kind may be shown; else why not.
    pub(crate) fn admit<B>(
        &self,
        access: Access,
        request: &Request<B>,
        remote: Option<IpAddr>,
    ) -> Result<(), &'static str> {
        if access == Access::Open {
            return Ok(());
        }
        let authority = authority(request).map_err(|()| HOST)?;
        if !authority.is_none_or(|authority| self.knows(authority)) {
            return Err(HOST);
        }
        if is_of_another_site(request.headers(), authority) {
            return Err(SITE);
        }
        let peer = request.extensions().get::<PeerIdentity>();
        match access {
            Access::Private if !self.may_observe(remote, peer) => Err(PRIVATE),
            Access::Private if !self.may_be_told(request.headers()) => Err(OTHERS),
            Access::Private | Access::Read | Access::Open => Ok(()),
        }
    }

    fn knows(&self, authority: &str) -> bool {
        let host = host_of(authority);
        host.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || self.hosts.iter().any(|allowed| **allowed == *host)
    }

    fn may_observe(&self, remote: Option<IpAddr>, peer: Option<&PeerIdentity>) -> bool {
        remote.is_some_and(|remote| remote.to_canonical().is_loopback())
            || peer.is_some_and(|peer| self.observers.contains(&peer.identity))
    }

    /// Whether they for whom the peer asks may see it too: a process that passes on what others ask shows them nothing that
    /// they may not see themselves.
    fn may_be_told(&self, headers: &HeaderMap) -> bool {
        headers.get_all(OBSERVER).iter().all(|observer| {
            let observer = observer.to_str().ok().and_then(|observer| observer.parse().ok());
            observer.is_some_and(|observer: Identity| self.observers.contains(&observer))
        })
    }
}

const HOST: &str = "the Host is neither an IP address nor localhost nor one that was allowed\n";
const SITE: &str = "another site's page asks: open this address itself\n";
const OTHERS: &str = "it is asked for an identity that may not see this\n";
const PRIVATE: &str = "this is shown to loopback and to allowed identities alone\n";

/// What the request calls this server; none over HTTP/1.0, which no browser speaks.
fn authority<B>(request: &Request<B>) -> Result<Option<&str>, ()> {
    match (request.uri().authority(), request.headers().get(header::HOST).map(HeaderValue::to_str)) {
        (Some(authority), _) => Ok(Some(authority.as_str())),
        (None, Some(Ok(host))) => Ok(Some(host)),
        (None, Some(Err(_))) => Err(()),
        (None, None) => Ok(None),
    }
}

fn host_of(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        Some(_) | None => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a browser says that another origin's page made the request. What says nothing is no browser of this decade.
fn is_of_another_site(headers: &HeaderMap, authority: Option<&str>) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    let origin = headers.get(header::ORIGIN).map(HeaderValue::to_str);
    let is_ours = |origin: &str| {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        rest.zip(authority).is_some_and(|(rest, authority)| rest.eq_ignore_ascii_case(authority))
    };
    !site.is_none_or(|site| site == b"same-origin" || site == b"none")
        || !origin.is_none_or(|origin| origin.is_ok_and(is_ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(access: Access, headers: &[(&str, &str)], remote: Option<&str>, expected: Result<(), &str>) {
        let request =
            headers.iter().fold(Request::get("/"), |request, (name, value)| request.header(*name, *value));
        let remote = remote.map(|remote| remote.parse().unwrap());
        let guard = Guard::default().host("Web.emojivoto");
        assert_eq!(
            guard.admit(access, &request.body(()).unwrap(), remote),
            expected,
            "{headers:?} {remote:?}"
        );
    }

    #[test]
    fn a_page_of_another_site_is_told_nothing() {
        let host = ("host", "localhost:4191");
        check(Access::Read, &[host], None, Ok(()));
        for site in ["cross-site", "same-site", "x"] {
            check(Access::Read, &[host, ("sec-fetch-site", site)], None, Err(SITE));
            check(Access::Open, &[host, ("sec-fetch-site", site)], None, Ok(()));
        }
        for site in ["same-origin", "none"] {
            check(Access::Read, &[host, ("sec-fetch-site", site)], None, Ok(()));
        }
        for origin in
            ["http://evil.test", "null", "", "http://localhost:3000", "http://localhost", "localhost:4191"]
        {
            check(Access::Read, &[host, ("origin", origin)], None, Err(SITE));
        }
        check(Access::Read, &[host, ("origin", "http://LOCALHOST:4191")], None, Ok(()));
        check(Access::Read, &[("host", "web.emojivoto"), ("origin", "https://web.emojivoto")], None, Ok(()));
    }

    #[test]
    fn requests_of_others_are_shown_on_this_machine_alone() {
        let host = ("host", "10.0.0.1:4191");
        for remote in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            check(Access::Private, &[host], Some(remote), Ok(()));
        }
        for remote in [Some("10.0.0.1"), Some("::ffff:10.0.0.1"), Some("0.0.0.0"), None] {
            check(Access::Private, &[host], remote, Err(PRIVATE));
            check(Access::Read, &[host], remote, Ok(()));
        }
        check(Access::Private, &[("host", "evil.test")], Some("127.0.0.1"), Err(HOST));
    }

    #[test]
    fn an_allowed_identity_sees_them_from_anywhere() {
        let observer: Identity = "spiffe://mesh/ns/ops/sa/tap".parse().unwrap();
        let guard = Guard::default().observer(observer.clone());
        let ask = |identity: Option<Identity>| {
            let mut request = Request::get("/").body(()).unwrap();
            if let Some(identity) = identity {
                let (trust_domain, not_after) = ("mesh".parse().unwrap(), std::time::SystemTime::UNIX_EPOCH);
                request.extensions_mut().insert(PeerIdentity { identity, trust_domain, not_after });
            }
            guard.admit(Access::Private, &request, Some([10, 0, 0, 1].into()))
        };
        assert_eq!(ask(Some(observer)), Ok(()));
        assert_eq!(ask(Some("spiffe://mesh/ns/ops/sa/other".parse().unwrap())), Err(PRIVATE));
        assert_eq!(ask(None), Err(PRIVATE));
    }

    #[test]
    fn who_asks_for_others_is_told_what_they_may_see() {
        let guard = Guard::default().observer("spiffe://mesh/ns/ops/sa/tap".parse().unwrap());
        let ask = |observers: &[&str]| {
            let request =
                observers.iter().fold(Request::get("/"), |it, observer| it.header(OBSERVER, *observer));
            guard.admit(Access::Private, &request.body(()).unwrap(), Some([127, 0, 0, 1].into()))
        };
        assert_eq!(ask(&["spiffe://mesh/ns/ops/sa/tap"]), Ok(()));
        for others in [&["spiffe://mesh/ns/ops/sa/web"][..], &["spiffe://mesh/ns/ops/sa/tap", "x y"], &[""]] {
            assert_eq!(ask(others), Err(OTHERS));
        }
    }
}
