//! Floor 2: changes a request on its way out and a response on its way back, as its route says.

use crate::profile::invalid::Fault;
use crate::profile::matching::{Condition, PathKind};
use crate::profile::route::{Filter, HeaderMods, PathRewrite, Rewrite};
use http::header::{HOST, HeaderName};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Request, Uri};
use regex::Regex;
use std::sync::Arc;

/// A route's changes, compiled.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    request: Vec<Mods>,
    response: Vec<Mods>,
    rewrites: Vec<Rewriting>,
}

#[derive(Debug, Clone, Default)]
struct Mods {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

#[derive(Debug, Clone)]
struct Rewriting {
    path: PathChange,
    host: Option<(Authority, HeaderValue)>,
}

/// A change of path, compiled.
#[derive(Debug, Clone)]
pub(crate) enum PathChange {
    Keep,
    Full(Arc<str>),
    /// The matched prefix without trailing slashes, and what stands for it.
    Elements(Arc<str>, Arc<str>),
    /// The length of the matched text, and what stands for it.
    Text(usize, Arc<str>),
    Regex(Regex, Arc<str>),
}

/// The path condition that a rewrite of a prefix refers to: the first in the condition, outside `not` and `any`.
fn matched_path(condition: &Condition) -> Option<(PathKind, &Arc<str>)> {
    match condition {
        Condition::Path(path) => Some((path.kind, &path.value)),
        Condition::All(parts) => parts.iter().find_map(matched_path),
        _ => None,
    }
}

impl PathChange {
    /// Compiles `rewrite` for requests that `condition` matched.
    pub(crate) fn compile(rewrite: &PathRewrite, condition: &Condition) -> Result<Self, Fault> {
        let matched =
            matched_path(condition).map_or((PathKind::PrefixElement, "/"), |(kind, value)| (kind, &**value));
        Ok(match rewrite {
            PathRewrite::Keep => Self::Keep,
            PathRewrite::Full(path) => Self::Full(Arc::clone(path)),
            PathRewrite::PrefixElement(with) => {
                if !matches!(matched.0, PathKind::PrefixElement | PathKind::Exact) {
                    let problem =
                        format!("a prefix cannot be replaced by `{with}` where no prefix is matched");
                    return Err(Fault::rejected(
                        "path",
                        problem,
                        "match a path prefix, or replace the full path",
                    ));
                }
                Self::Elements(matched.1.trim_end_matches('/').into(), with.trim_end_matches('/').into())
            }
            PathRewrite::PrefixString(with) => {
                let length = match matched.0 {
                    PathKind::Exact | PathKind::PrefixString | PathKind::PrefixElement => matched.1.len(),
                    PathKind::Regex | PathKind::RegexPrefix | PathKind::Suffix | PathKind::Contains => {
                        usize::MAX
                    }
                };
                Self::Text(length, Arc::clone(with))
            }
            PathRewrite::Regex { pattern, substitution } => {
                let regex =
                    regex::RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|error| {
                        let problem = format!("`{pattern}` is no pattern: {error}");
                        Fault::rejected("rewrite", problem, "write it in the syntax of the regex crate")
                    })?;
                Self::Regex(regex, substitution_of(substitution))
            }
        })
    }

    /// The new path; `None` if it stays as it is.
    pub(crate) fn apply(&self, path: &str) -> Option<String> {
        match self {
            Self::Keep => None,
            Self::Full(full) => Some(full.to_string()),
            Self::Elements(prefix, with) => {
                let rest = path.strip_prefix(&**prefix).unwrap_or_default();
                let joined = format!("{with}{rest}");
                Some(if joined.starts_with('/') { joined } else { format!("/{joined}") })
            }
            Self::Text(length, with) => Some(format!("{with}{}", path.get(*length..).unwrap_or_default())),
            Self::Regex(regex, with) => Some(regex.replace(path, &**with).into_owned()),
        }
    }
}

/// Envoy's `\1` as the regex crate's `${1}`; a `$` of its own is kept.
fn substitution_of(text: &str) -> Arc<str> {
    let mut out = String::with_capacity(text.len() + 4);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                out.push_str(&format!("${{{digit}}}"));
                chars.next();
            }
            ('\\', Some('\\')) => {
                out.push('\\');
                chars.next();
            }
            ('$', Some(next)) if !next.is_ascii_digit() && *next != '{' => out.push_str("$$"),
            _ => out.push(c),
        }
    }
    out.into()
}

impl Mods {
    fn compile(mods: &HeaderMods) -> Result<Self, Fault> {
        let pairs = |list: &[(Arc<str>, Arc<str>)]| -> Result<Vec<_>, Fault> {
            list.iter().map(|(name, value)| Ok((header_name(name)?, header_value(name, value)?))).collect()
        };
        let remove = mods.remove.iter().map(|name| header_name(name)).collect::<Result<_, _>>()?;
        Ok(Self { set: pairs(&mods.set)?, add: pairs(&mods.add)?, remove })
    }

    /// `add` joins with a comma, as Gateway API has it, but for `set-cookie`, which cannot be joined.
    fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            let before: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            let joined = match before.is_empty() || *name == http::header::SET_COOKIE {
                true => None,
                false => {
                    HeaderValue::from_bytes(&[&before[..], &[value.as_bytes()]].concat().join(&b',')).ok()
                }
            };
            match joined {
                Some(joined) => headers.insert(name.clone(), joined).is_some(),
                None => headers.append(name.clone(), value.clone()),
            };
        }
    }
}

fn header_name(name: &str) -> Result<HeaderName, Fault> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        Fault::rejected("headers", format!("`{name}` is no header name"), "use letters, digits and `-`")
    })
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Fault> {
    HeaderValue::from_str(value).map_err(|_| {
        let problem = format!("the value of `{name}` cannot stand in a header ({value:?})");
        Fault::rejected("headers", problem, "use visible ASCII characters")
    })
}

impl Rewriting {
    fn compile(rewrite: &Rewrite, condition: &Condition) -> Result<Self, Fault> {
        let host = match &rewrite.host {
            None => None,
            Some(host) => {
                let bad = || Fault::rejected("hostname", format!("`{host}` is no host"), "write a DNS name");
                let authority = host.parse::<Authority>().map_err(|_| bad())?;
                Some((authority, HeaderValue::from_str(host).map_err(|_| bad())?))
            }
        };
        Ok(Self { path: PathChange::compile(&rewrite.path, condition)?, host })
    }

    fn apply(&self, uri: &mut Uri, headers: &mut HeaderMap) {
        let mut parts = uri.clone().into_parts();
        if let Some(path) = self.path.apply(uri.path()) {
            let text = uri.query().map_or(path.clone(), |query| format!("{path}?{query}"));
            if let Ok(whole) = PathAndQuery::try_from(text) {
                parts.path_and_query = Some(whole);
            }
        }
        if let Some((authority, value)) = &self.host {
            if parts.scheme.is_some() {
                parts.authority = Some(authority.clone());
            }
            headers.insert(HOST, value.clone());
        }
        if let Ok(changed) = Uri::from_parts(parts) {
            *uri = changed;
        }
    }
}

impl Filters {
    /// Compiles a route's changes for requests that `condition` matched.
    ///
    /// # Errors
    /// The first header, host or pattern that is none.
    pub fn compile(filters: &[Filter], condition: &Condition) -> Result<Self, Fault> {
        let mut out = Self::default();
        for filter in filters {
            match filter {
                Filter::RequestHeaders(mods) => out.request.push(Mods::compile(mods)?),
                Filter::ResponseHeaders(mods) => out.response.push(Mods::compile(mods)?),
                Filter::Rewrite(rewrite) => out.rewrites.push(Rewriting::compile(rewrite, condition)?),
                // Answered before anything is sent, and set in the response by the origin: see `route/cors.rs`.
                Filter::Cors(_) => {}
            }
        }
        Ok(out)
    }

    /// The same changes, and then these headers set in responses. `Vary` is added to, since each of several reasons to
    /// vary counts.
    #[must_use]
    pub fn and_response(&self, headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        let (add, set) = headers.into_iter().partition(|(name, _)| *name == http::header::VARY);
        let mut all = self.clone();
        all.response.push(Mods { set, add, remove: Vec::new() });
        all
    }

    /// Whether requests and responses stay as they are.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty() && self.rewrites.is_empty()
    }

    /// Changes a request in place.
    pub fn apply<B>(&self, request: &mut Request<B>) {
        let mut uri = std::mem::take(request.uri_mut());
        self.request(&mut uri, request.headers_mut());
        *request.uri_mut() = uri;
    }

    /// Changes a request.
    pub fn request(&self, uri: &mut Uri, headers: &mut HeaderMap) {
        self.request.iter().for_each(|mods| mods.apply(headers));
        self.rewrites.iter().for_each(|rewrite| rewrite.apply(uri, headers));
    }

    /// Changes a response.
    pub fn response(&self, headers: &mut HeaderMap) {
        self.response.iter().for_each(|mods| mods.apply(headers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::matching::PathMatch;

    fn rewritten(kind: PathKind, matched: &str, rewrite: PathRewrite, path: &str) -> String {
        let condition = Condition::All(vec![Condition::Path(PathMatch::new(kind, matched))]);
        let filter = Filter::Rewrite(Rewrite { path: rewrite, host: None });
        let filters = Filters::compile(&[filter], &condition).unwrap();
        let mut uri: Uri = path.parse().unwrap();
        filters.request(&mut uri, &mut HeaderMap::new());
        uri.to_string()
    }

    #[test]
    fn a_prefix_of_elements_is_replaced_by_gateway_apis_table() {
        for (path, prefix, with, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/a?x=1", "/", "/b", "/b/a?x=1"),
        ] {
            let rewrite = PathRewrite::PrefixElement(with.into());
            assert_eq!(
                rewritten(PathKind::PrefixElement, prefix, rewrite, path),
                expected,
                "{path} {prefix} {with}"
            );
        }
    }

    #[test]
    fn other_rewrites_are_naive_as_their_meshes_have_them() {
        let text = PathRewrite::PrefixString("/".into());
        assert_eq!(rewritten(PathKind::PrefixString, "/foo", text, "/foo/bar"), "//bar");
        assert_eq!(rewritten(PathKind::Exact, "/a", PathRewrite::Full("/b".into()), "/a?q=1"), "/b?q=1");
        let regex = PathRewrite::Regex { pattern: "^/v(\\d)/".into(), substitution: "/\\1/x/".into() };
        assert_eq!(rewritten(PathKind::PrefixString, "/", regex, "/v2/y"), "/2/x/y");
    }

    #[test]
    fn headers_are_removed_set_and_added() {
        let pair = |name: &str, value: &str| (Arc::<str>::from(name), Arc::<str>::from(value));
        let mods = HeaderMods {
            set: vec![pair("x-set", "new")],
            add: vec![pair("x-add", "b"), pair("set-cookie", "c=2")],
            remove: vec!["x-gone".into()],
        };
        let both = [Filter::RequestHeaders(mods.clone()), Filter::ResponseHeaders(mods)];
        let filters = Filters::compile(&both, &Condition::Always).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-set", "old"), ("x-add", "a"), ("x-add", "a2"), ("x-gone", "1"), ("set-cookie", "c=1")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        filters.response(&mut headers);
        assert_eq!((headers["x-set"].as_bytes(), headers["x-add"].as_bytes()), (&b"new"[..], &b"a,a2,b"[..]));
        assert!(!headers.contains_key("x-gone"));
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn what_is_no_header_or_pattern_is_a_fault() {
        let bad = Filter::RequestHeaders(HeaderMods { remove: vec!["a b".into()], ..HeaderMods::default() });
        assert!(Filters::compile(&[bad], &Condition::Always).is_err());
        let pattern = PathRewrite::Regex { pattern: "(".into(), substitution: "".into() };
        assert!(PathChange::compile(&pattern, &Condition::Always).is_err());
    }
}
