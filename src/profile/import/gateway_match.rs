//! Floor 1: reads Gateway API's matches, and how they rank.

use crate::profile::matching::Condition;
use crate::profile::matching::GrpcMatch;
use crate::profile::matching::HostMatch;
use crate::profile::matching::KeyMatch;
use crate::profile::matching::Multi;
use crate::profile::matching::PathKind;
use crate::profile::matching::PathMatch;
use crate::profile::matching::TextMatch;
use crate::profile::matching::ValueMatch;
use crate::profile::node::Value;
use crate::profile::object;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use http::HeaderName;
use http::Method;
use std::cmp::Reverse;
use std::sync::Arc;

/// The most items of the lists that Gateway API limits to 16 (hostnames, rules, headers, filters, backends).
pub(crate) const ITEMS_MAX: usize = 16;

/// The most matches of a rule.
const MATCHES_MAX: usize = 64;

/// One match of a rule.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    pub(crate) parts: Vec<Condition>,
    pub(crate) rank: MatchRank,
    /// Whether it matches a path prefix, which alone can be replaced.
    pub(crate) prefix: bool,
}

/// How a match ranks among others of the same host, the least first (Gateway API, `HTTPRouteRule.matches` and
/// `GRPCRouteRule.matches`): exact paths, then prefixes, then patterns, each the longest first; then those with a
/// method; then by the number of headers and of parameters. For gRPC, where the specification
/// counts letters alone: names before patterns, then the longest service, then method.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MatchRank {
    path_kind: u8,
    path_bytes: Reverse<usize>,
    grpc_method_bytes: Reverse<usize>,
    without_method: bool,
    headers: Reverse<usize>,
    parameters: Reverse<usize>,
}

/// The matches of a rule; the one that matches everything if there is none.
pub(crate) fn matches(field: &Field<'_>, grpc: bool) -> Vec<Match> {
    at_most(field, MATCHES_MAX);
    let read = if grpc { grpc_match } else { http_match };
    match length(field) {
        0 => vec![if grpc {
            grpc_call(None, None, Vec::new())
        } else {
            http_request(root(), None, Vec::new(), Vec::new())
        }],
        _ => field.each(|item| item.fields(read)),
    }
}

/// How many items the list at `field` has.
fn length(field: &Field<'_>) -> usize {
    match field.node().map(|node| &node.value) {
        Some(Value::List(items)) => items.len(),
        Some(_) => 1,
        None => 0,
    }
}

/// A fault if the list at `field` is longer than Gateway API allows.
pub(crate) fn at_most(field: &Field<'_>, items_max: usize) {
    let items = length(field);
    if items > items_max {
        field.reject(format!("has {items} items and {items_max} at most are allowed"), "split it");
    }
}

fn root() -> PathMatch {
    PathMatch::new(PathKind::PrefixElement, "/")
}

fn http_match(f: &mut Fields<'_>) -> Match {
    let path = f.get("path").fields(path).unwrap_or_else(root);
    let method = f.get("method").word(&METHODS.map(|method| (method, method)));
    let method = method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    http_request(path, method, keys(&f.get("headers"), true), keys(&f.get("queryParams"), false))
}

/// The methods that Gateway API knows.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

fn http_request(
    path: PathMatch,
    method: Option<Method>,
    headers: Vec<KeyMatch>,
    query: Vec<KeyMatch>,
) -> Match {
    let rank = MatchRank {
        path_kind: match path.kind {
            PathKind::Exact => 0,
            PathKind::PrefixElement => 1,
            _ => 2,
        },
        path_bytes: Reverse(path.value.len()),
        grpc_method_bytes: Reverse(0),
        without_method: method.is_none(),
        headers: Reverse(headers.len()),
        parameters: Reverse(query.len()),
    };
    let prefix = path.kind == PathKind::PrefixElement;
    let mut parts = vec![Condition::Path(path)];
    parts.extend(method.map(|method| Condition::Method(vec![method])));
    parts.extend(headers.into_iter().map(Condition::Header));
    parts.extend(query.into_iter().map(Condition::Query));
    Match { parts, rank, prefix }
}

fn path(f: &mut Fields<'_>) -> PathMatch {
    let kinds = [
        ("Exact", PathKind::Exact),
        ("PathPrefix", PathKind::PrefixElement),
        ("RegularExpression", PathKind::Regex),
    ];
    let kind = f.get("type").word(&kinds).unwrap_or(PathKind::PrefixElement);
    let value = f.get("value");
    let text: Arc<str> = value.text().unwrap_or("/").into();
    at_most_bytes(&value, &text, 1024);
    if kind == PathKind::Regex {
        words::regex(&value);
    } else if let Some(problem) = bad_path(&text) {
        value.reject(format!("{problem} ({text:?})"), "write an absolute path in its normal form");
    }
    PathMatch::new(kind, text)
}

/// What Gateway API does not allow in exact paths and prefixes.
fn bad_path(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some("does not begin with `/`".to_owned());
    }
    let inside = ["//", "/./", "/../", "%2f", "%2F", "#"];
    let contained = inside.into_iter().find(|part| path.contains(part));
    let ending = ["/..", "/."].into_iter().find(|part| path.ends_with(part));
    contained.map(|part| format!("contains `{part}`")).or(ending.map(|part| format!("ends with `{part}`")))
}

fn at_most_bytes(field: &Field<'_>, text: &str, bytes_max: usize) {
    if text.len() > bytes_max {
        field.reject(format!("has {} bytes and {bytes_max} at most are allowed", text.len()), "shorten it");
    }
}

/// Headers or parameters. Of several entries for one name the first counts.
fn keys(field: &Field<'_>, header: bool) -> Vec<KeyMatch> {
    at_most(field, ITEMS_MAX);
    let mut keys: Vec<KeyMatch> = Vec::new();
    for item in field.items() {
        let Some(Some(key)) = item.fields(|f| key(f, header)) else { continue };
        let same = |other: &KeyMatch| match header {
            true => other.name.eq_ignore_ascii_case(&key.name),
            false => other.name == key.name,
        };
        if keys.iter().any(same) {
            item.ignore(format!("is the second for `{}`: the first counts", key.name), "remove one");
        } else {
            keys.push(key);
        }
    }
    keys
}

fn key(f: &mut Fields<'_>, header: bool) -> Option<KeyMatch> {
    let regex = f.get("type").word(&[("Exact", false), ("RegularExpression", true)]).unwrap_or(false);
    let name = f.get("name").required();
    let name = match header {
        true => name.parse(|text| match HeaderName::from_bytes(text.as_bytes()) {
            Ok(_) => Ok(Arc::from(text)),
            Err(_) => Err("a header name".to_owned()),
        }),
        false => words::name(&name),
    };
    let value = f.get("value").required();
    let text = match regex {
        true => words::regex(&value).map(TextMatch::Regex),
        false => value.text().map(|text| TextMatch::Exact(text.into())),
    };
    // Of several values of a header any may match (Linkerd); of a parameter the first is compared, as the
    // specification recommends.
    let multi = if header { Multi::Any } else { Multi::First };
    Some(KeyMatch { multi, ..KeyMatch::new(name?, ValueMatch::Text(text?)) })
}

fn grpc_match(f: &mut Fields<'_>) -> Match {
    let headers = keys(&f.get("headers"), true);
    let call = f.get("method").fields(|f| {
        let regex = f.get("type").word(&[("Exact", false), ("RegularExpression", true)]).unwrap_or(false);
        if !f.has("service") && !f.has("method") {
            f.whole().reject("names neither service nor method", "write one of: service, method");
        }
        let mut text = |name| {
            let field = f.get(name);
            match regex {
                true => words::regex(&field).map(TextMatch::Regex),
                false => words::name(&field).map(TextMatch::Exact),
            }
        };
        (text("service"), text("method"))
    });
    let (service, method) = call.unwrap_or_default();
    grpc_call(service, method, headers)
}

fn grpc_call(service: Option<TextMatch>, method: Option<TextMatch>, headers: Vec<KeyMatch>) -> Match {
    let bytes = |text: &Option<TextMatch>| {
        Reverse(match text {
            Some(TextMatch::Exact(text) | TextMatch::Regex(text)) => text.len(),
            _ => 0,
        })
    };
    let patterns = [&service, &method].into_iter().any(|text| matches!(text, Some(TextMatch::Regex(_))));
    let rank = MatchRank {
        path_kind: if patterns { 2 } else { 0 },
        path_bytes: bytes(&service),
        grpc_method_bytes: bytes(&method),
        without_method: false,
        headers: Reverse(headers.len()),
        parameters: Reverse(0),
    };
    let mut parts = vec![Condition::Grpc(GrpcMatch { service, method })];
    parts.extend(headers.into_iter().map(Condition::Header));
    Match { parts, rank, prefix: false }
}

/// `hostnames`: names, or wildcards that stand for one label or more; no addresses, no ports.
pub(crate) fn hostnames(field: &Field<'_>) -> Vec<HostMatch> {
    at_most(field, ITEMS_MAX);
    field.each(|item| hostname(&item))
}

/// One host name, or a wildcard.
pub(crate) fn hostname(field: &Field<'_>) -> Option<HostMatch> {
    field.parse(|text| {
        let (name, wild) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Err("a host name, and no address".to_owned());
        }
        object::subdomain(name).map_err(|what| format!("a host name, `*.` before it if wanted: {what}"))?;
        Ok(if wild { HostMatch::Suffix(name.into()) } else { HostMatch::Exact(name.into()) })
    })
}

/// The hosts that both name; `None` if there is none.
pub(crate) fn intersection(a: &HostMatch, b: &HostMatch) -> Option<HostMatch> {
    let below = |name: &str, suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    match (a, b) {
        (HostMatch::Exact(x), HostMatch::Exact(y)) => (x == y).then(|| a.clone()),
        (HostMatch::Exact(name), HostMatch::Suffix(suffix)) => below(name, suffix).then(|| a.clone()),
        (HostMatch::Suffix(suffix), HostMatch::Exact(name)) => below(name, suffix).then(|| b.clone()),
        (HostMatch::Suffix(x), HostMatch::Suffix(y)) if x == y || below(x, y) => Some(a.clone()),
        (HostMatch::Suffix(x), HostMatch::Suffix(y)) => below(y, x).then(|| b.clone()),
    }
}

/// How a host ranks, the least first: names before wildcards, the longest first, and none last.
pub(crate) fn host_rank(host: Option<&HostMatch>) -> (bool, Reverse<usize>) {
    match host {
        Some(HostMatch::Exact(name)) => (false, Reverse(name.len())),
        Some(HostMatch::Suffix(name)) => (true, Reverse(name.len())),
        None => (true, Reverse(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostMatch {
        match text.strip_prefix("*.") {
            Some(suffix) => HostMatch::Suffix(suffix.into()),
            None => HostMatch::Exact(text.into()),
        }
    }

    #[test]
    fn hosts_meet_as_gateway_api_says() {
        for (a, b, both) in [
            ("a.com", "a.com", Some("a.com")),
            ("a.com", "b.com", None),
            ("x.a.com", "*.a.com", Some("x.a.com")),
            ("a.com", "*.a.com", None),
            ("xa.com", "*.a.com", None),
            ("*.a.com", "*.a.com", Some("*.a.com")),
            ("*.b.a.com", "*.a.com", Some("*.b.a.com")),
            ("*.a.com", "*.b.com", None),
        ] {
            assert_eq!(intersection(&host(a), &host(b)), both.map(host), "{a} {b}");
            assert_eq!(intersection(&host(b), &host(a)), both.map(host), "{b} {a}");
        }
    }

    #[test]
    fn paths_that_are_not_in_their_normal_form_are_refused() {
        for bad in ["", "a", "/a//b", "/./a", "/a/..", "/a/.", "/%2f", "/a#b"] {
            assert!(bad_path(bad).is_some(), "{bad}");
        }
        for good in ["/", "/a", "/a/", "/.a", "/a..", "/a%20b"] {
            assert_eq!(bad_path(good), None, "{good}");
        }
    }
}
