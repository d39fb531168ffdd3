//! Floor 2: answers browsers' cross-origin questions (the Fetch standard's CORS protocol; Gateway API GEP-1767).

use crate::profile::invalid::Fault;
use crate::profile::matching::TextMatch;
use crate::profile::route::Cors;
use crate::route::compile::Compiler;
use crate::route::text::Text;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::sync::Arc;

/// Headers to be set.
pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// A route's cross-origin settings, compiled.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    /// Who may ask; `None`: everybody.
    origins: Option<Vec<Text>>,
    methods: Allowed,
    headers: Allowed,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<HeaderValue>,
}

/// What may be used.
#[derive(Debug, Clone, PartialEq)]
enum Allowed {
    /// Nothing beyond what is always allowed.
    Nothing,
    /// This list.
    List(HeaderValue),
    /// Everything.
    Any,
}

impl Allowed {
    fn new(words: &[Arc<str>]) -> Result<Self, Fault> {
        Ok(match list(words)? {
            None => Self::Nothing,
            Some(_) if words.iter().any(|word| **word == *"*") => Self::Any,
            Some(list) => Self::List(list),
        })
    }

    /// The header's value. To a request with credentials `*` is a word like others, so what was asked is repeated.
    fn answer(&self, credentials: bool, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Nothing => None,
            Self::List(list) => Some(list.clone()),
            Self::Any if credentials => asked.cloned(),
            Self::Any => Some(HeaderValue::from_static("*")),
        }
    }
}

fn list(words: &[Arc<str>]) -> Result<Option<HeaderValue>, Fault> {
    if words.is_empty() {
        return Ok(None);
    }
    let text = words.join(", ");
    let bad = |_| Fault::rejected("cors", format!("{text:?} cannot stand in a header"), "use visible ASCII");
    HeaderValue::try_from(&text).map(Some).map_err(bad)
}

fn is_any(origin: &TextMatch) -> bool {
    match origin {
        TextMatch::Exact(text) => **text == *"*",
        TextMatch::Prefix(text) => text.is_empty(),
        TextMatch::Suffix(_) | TextMatch::Contains(_) | TextMatch::Regex(_) => false,
    }
}

impl CorsPolicy {
    /// Compiles `cors`.
    ///
    /// # Errors
    /// An origin's pattern that is none, or a word that cannot stand in a header.
    pub fn compile(cors: &Cors) -> Result<Self, Fault> {
        let any = cors.allow_origins.iter().any(is_any);
        // Schemes and hosts have no case.
        let texts = || Compiler::default().texts(&cors.allow_origins, true);
        let origins = if any { None } else { Some(texts()?) };
        Ok(Self {
            origins,
            methods: Allowed::new(&cors.allow_methods)?,
            headers: Allowed::new(&cors.allow_headers)?,
            expose: list(&cors.expose_headers)?,
            credentials: cors.allow_credentials,
            max_age: cors.max_age.map(|age| HeaderValue::from(age.as_secs())),
        })
    }

    /// The answer to a request that asks whether another one would be allowed; `None`: it is no such question, and goes
    /// on. Who may not ask gets 403 and no headers.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<(StatusCode, Headers)> {
        let asks = method == Method::OPTIONS;
        let wanted = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| asks)?;
        let origin = headers.get(ORIGIN)?;
        let Some(mut answer) = self.admitted(origin) else {
            return Some((StatusCode::FORBIDDEN, Vec::new()));
        };
        let methods = self.methods.answer(self.credentials, Some(wanted));
        let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
        let allowed = self.headers.answer(self.credentials, asked);
        let more = [
            (ACCESS_CONTROL_ALLOW_METHODS, methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, allowed),
            (ACCESS_CONTROL_MAX_AGE, self.max_age.clone()),
        ];
        answer.extend(more.into_iter().filter_map(|(name, value)| Some((name, value?))));
        Some((StatusCode::NO_CONTENT, answer))
    }

    /// What is set in the response to a request with these headers; nothing where it has no origin, or one that may not
    /// ask: then the browser keeps the response from the page.
    pub fn response(&self, headers: &HeaderMap) -> Headers {
        headers.get(ORIGIN).and_then(|origin| self.admitted(origin)).unwrap_or_default()
    }

    /// The headers that every answer to an origin that may ask has.
    fn admitted(&self, origin: &HeaderValue) -> Option<Headers> {
        let named = match &self.origins {
            None => self.credentials,
            Some(origins) if origins.iter().any(|text| text.matches(origin.as_bytes())) => true,
            Some(_) => return None,
        };
        let mut answer = Vec::with_capacity(7);
        if named {
            answer.push((ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()));
            // A cache must not give one origin's answer to another.
            answer.push((VARY, HeaderValue::from_static("Origin")));
        } else {
            answer.push((ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")));
        }
        if self.credentials {
            answer.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        answer.extend(self.expose.clone().map(|expose| (ACCESS_CONTROL_EXPOSE_HEADERS, expose)));
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn cors(origins: &[&str], methods: &[&str], credentials: bool) -> CorsPolicy {
        let words = |words: &[&str]| words.iter().map(|word| Arc::from(*word)).collect::<Vec<Arc<str>>>();
        let origin = |text: &&str| match text.strip_prefix('~') {
            Some(pattern) => TextMatch::Regex(pattern.into()),
            None => TextMatch::Exact((*text).into()),
        };
        let compiled = CorsPolicy::compile(&Cors {
            allow_origins: origins.iter().map(origin).collect(),
            allow_methods: words(methods),
            allow_headers: words(methods),
            expose_headers: words(&["x-seen"]),
            allow_credentials: credentials,
            max_age: Some(Duration::from_secs(5)),
        });
        compiled.unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn told(headers: &Headers) -> Vec<String> {
        let short = |name: &HeaderName| name.as_str().replace("access-control-", "");
        headers.iter().map(|(n, v)| format!("{}: {}", short(n), v.to_str().unwrap())).collect()
    }

    fn check(policy: &CorsPolicy, origin: &'static str, expected: Option<&[&str]>) {
        let asking = headers(&[
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a"),
        ]);
        let (status, answer) = policy.preflight(&Method::OPTIONS, &asking).unwrap();
        match expected {
            Some(expected) => assert_eq!((status.as_u16(), told(&answer)), (204, texts(expected))),
            None => assert_eq!((status.as_u16(), answer.len()), (403, 0)),
        }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn an_origin_that_may_ask_is_told_what_it_may() {
        let policy = cors(&["https://a.com", "~https://[^:/]+[.]b[.]com"], &["GET", "PUT"], true);
        let expected = |origin: &str| {
            texts(&[
                &format!("allow-origin: {origin}"),
                "vary: Origin",
                "allow-credentials: true",
                "expose-headers: x-seen",
                "allow-methods: GET, PUT",
                "allow-headers: GET, PUT",
                "max-age: 5",
            ])
        };
        for origin in ["https://a.com", "HTTPS://A.com", "https://x.y.b.com"] {
            let expected = expected(origin);
            check(&policy, origin, Some(&expected.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        for origin in ["https://a.com:444", "http://a.com", "https://b.com", "https://a.com.evil", "null"] {
            check(&policy, origin, None);
        }
    }

    #[test]
    fn a_star_is_told_as_such_but_to_requests_with_credentials() {
        let open = cors(&["*"], &["*"], false);
        check(
            &open,
            "https://x",
            Some(&[
                "allow-origin: *",
                "expose-headers: x-seen",
                "allow-methods: *",
                "allow-headers: *",
                "max-age: 5",
            ]),
        );
        let told = [
            "allow-origin: https://x",
            "vary: Origin",
            "allow-credentials: true",
            "expose-headers: x-seen",
            "allow-methods: PUT",
            "allow-headers: x-a",
            "max-age: 5",
        ];
        check(&cors(&["*"], &["*"], true), "https://x", Some(&told));
        let silent = ["allow-origin: *", "expose-headers: x-seen", "max-age: 5"];
        check(&cors(&["*"], &[], false), "https://x", Some(&silent));
    }

    #[test]
    fn only_a_question_is_answered_and_other_responses_get_their_headers() {
        let policy = cors(&["https://a.com"], &["GET"], false);
        let asking = headers(&[("origin", "https://a.com"), ("access-control-request-method", "GET")]);
        assert!(policy.preflight(&Method::GET, &asking).is_none());
        assert!(policy.preflight(&Method::OPTIONS, &headers(&[("origin", "https://a.com")])).is_none());
        let without_origin = headers(&[("access-control-request-method", "GET")]);
        assert!(policy.preflight(&Method::OPTIONS, &without_origin).is_none());
        let set = told(&policy.response(&asking));
        assert_eq!(set, texts(&["allow-origin: https://a.com", "vary: Origin", "expose-headers: x-seen"]));
        assert!(policy.response(&headers(&[("origin", "https://b.com")])).is_empty());
        assert!(policy.response(&HeaderMap::new()).is_empty());
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_refused() {
        let bad = Cors { allow_methods: vec!["G\nT".into()], ..Cors::default() };
        assert!(CorsPolicy::compile(&bad).unwrap_err().problem.contains("cannot stand"));
        let bad = Cors { allow_origins: vec![TextMatch::Regex("(".into())], ..Cors::default() };
        assert!(CorsPolicy::compile(&bad).is_err());
    }
}
