//! Floor 2: answers that need nobody: redirects and fixed responses.

use crate::profile::invalid::Fault;
use crate::profile::matching::Condition;
use crate::profile::route::{Redirect, RedirectPort};
use crate::route::filter::PathChange;
use crate::route::head::RequestHead;
use http::{HeaderValue, StatusCode};
use std::borrow::Cow;
use std::sync::Arc;

/// A redirect, compiled.
#[derive(Debug, Clone)]
pub struct Redirection {
    scheme: Option<Arc<str>>,
    host: Option<Arc<str>>,
    port: RedirectPort,
    path: PathChange,
    status: StatusCode,
}

impl Redirection {
    /// Compiles `redirect` for requests that `condition` matched.
    ///
    /// # Errors
    /// When its status is no redirect, or its path cannot be made.
    pub fn compile(redirect: &Redirect, condition: &Condition) -> Result<Self, Fault> {
        let status = StatusCode::from_u16(redirect.status).ok().filter(|status| status.is_redirection());
        let Some(status) = status else {
            let problem = format!("{} is no redirect", redirect.status);
            return Err(Fault::rejected("statusCode", problem, "use 301, 302, 303, 307 or 308"));
        };
        Ok(Self {
            scheme: redirect.scheme.clone(),
            host: redirect.host.clone(),
            port: redirect.port,
            path: PathChange::compile(&redirect.path, condition)?,
            status,
        })
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Where the request is sent. The query is kept; the scheme's own port is left out (meshes.md §4.9).
    pub fn location(&self, head: &RequestHead<'_>) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(head.scheme());
        let host = self.host.as_deref().or(head.host()).unwrap_or_default();
        // An address of IPv6 stands in brackets in a URI.
        let bracketed = host.contains(':') && !host.starts_with('[');
        let host = if bracketed { Cow::Owned(format!("[{host}]")) } else { Cow::Borrowed(host) };
        let own = if scheme == "https" { 443 } else { 80 };
        let port = match self.port {
            RedirectPort::Port(port) => port,
            RedirectPort::Default if self.scheme.is_some() => own,
            RedirectPort::Default | RedirectPort::FromRequest => head.port().unwrap_or(own),
        };
        let path = self.path.apply(head.path());
        let path = path.as_deref().unwrap_or(head.path());
        let mut out = if port == own {
            format!("{scheme}://{host}{path}")
        } else {
            format!("{scheme}://{host}:{port}{path}")
        };
        if let Some(query) = head.query().filter(|_| !path.contains('?')) {
            out.push('?');
            out.push_str(query);
        }
        out
    }

    /// The location as a header; `None` when it cannot stand in one.
    pub fn header(&self, head: &RequestHead<'_>) -> Option<HeaderValue> {
        HeaderValue::try_from(self.location(head)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::route::PathRewrite;

    fn check(redirect: Redirect, uri: &str, expected: &str) {
        let compiled = Redirection::compile(&redirect, &Condition::Always).unwrap();
        let request = http::Request::get(uri).body(()).unwrap();
        assert_eq!(compiled.location(&RequestHead::of_request(&request)), expected);
    }

    fn redirect() -> Redirect {
        Redirect {
            scheme: None,
            host: None,
            port: RedirectPort::Default,
            path: PathRewrite::Keep,
            status: 302,
        }
    }

    #[test]
    fn ports_follow_the_scheme_unless_they_are_said() {
        let https = Redirect { scheme: Some("https".into()), ..redirect() };
        check(https.clone(), "http://a:8080/p?q=1", "https://a/p?q=1");
        check(Redirect { port: RedirectPort::FromRequest, ..https }, "http://a:8080/p", "https://a:8080/p");
        check(Redirect { host: Some("b".into()), ..redirect() }, "http://a:8080/p", "http://b:8080/p");
        check(Redirect { port: RedirectPort::Port(80), ..redirect() }, "http://a:8080/", "http://a/");
        check(
            Redirect { path: PathRewrite::Full("/new".into()), ..redirect() },
            "http://a/old?x",
            "http://a/new?x",
        );
    }
}
