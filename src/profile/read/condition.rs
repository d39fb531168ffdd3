//! Floor 1: reads the conditions on requests and responses.

use crate::profile::invalid::Severity;
use crate::profile::matching::CallerMatch;
use crate::profile::matching::Condition;
use crate::profile::matching::GrpcMatch;
use crate::profile::matching::HostMatch;
use crate::profile::matching::KeyMatch;
use crate::profile::matching::Multi;
use crate::profile::matching::PathKind;
use crate::profile::matching::PathMatch;
use crate::profile::matching::ResponseCondition;
use crate::profile::matching::TextMatch;
use crate::profile::matching::ValueMatch;
use crate::profile::pattern;
use crate::profile::read::dialect::Dialect;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use http::HeaderName;
use http::Method;
use std::sync::Arc;

/// Whether a part must hold for the whole to hold, or must not (below an odd number of `not`).
///
/// A part that cannot be used counts against the whole: it never holds where it should, always holds where it
/// should not. So a rule can only lose requests by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sense {
    Wanted,
    Unwanted,
}

impl Sense {
    fn turned(self) -> Self {
        match self {
            Self::Wanted => Self::Unwanted,
            Self::Unwanted => Self::Wanted,
        }
    }
}

/// Reads a condition on requests.
pub(crate) fn request(field: &Field<'_>, dialect: Dialect) -> Option<Condition> {
    request_in(field, dialect, Sense::Wanted)
}

fn request_in(field: &Field<'_>, dialect: Dialect, sense: Sense) -> Option<Condition> {
    let mut parts = field.fields(|f| {
        let mut parts = Vec::new();
        let all = f.get("all");
        if all.is_present() {
            parts.push(Some(Condition::All(all.each(|item| request_in(&item, dialect, sense)))));
        }
        let any = f.get("any");
        if any.is_present() {
            parts.push(Some(Condition::Any(any.each(|item| request_in(&item, dialect, sense)))));
        }
        parts.extend(said(&f.get("method")).map(|field| method(&field, dialect, sense)));
        let not = f.get("not");
        if not.is_present() {
            let inner = request_in(&not, dialect, sense.turned());
            parts.push(inner.map(|condition| Condition::Not(Box::new(condition))));
        }
        parts.extend(said(&f.get("pathRegex")).map(|field| path_regex(&field, dialect, sense)));
        if dialect == Dialect::Enmesh {
            more(f, &mut parts);
        }
        if parts.is_empty() {
            let remedy = "write one of: all, any, not, method, pathRegex";
            f.whole().reject("has no field set", remedy);
        }
        parts
    })?;
    match parts.len() {
        1 => parts.pop()?,
        _ => Some(Condition::All(parts.into_iter().flatten().collect())),
    }
}

/// The field, unless it is absent or an empty text, which is the same to Linkerd.
fn said<'a>(field: &Field<'a>) -> Option<Field<'a>> {
    let empty = field.node().is_some_and(|node| node.text() == Some(""));
    (field.is_present() && !empty).then(|| field.clone())
}

/// What stands for a part that Linkerd's proxy would drop.
fn unusable(field: &Field<'_>, dialect: Dialect, sense: Sense, what: &str) -> Option<Condition> {
    if dialect == Dialect::Enmesh {
        return field.must_be(what);
    }
    let problem = format!("must be {what}, not {}: this part of the rule matches nothing", field.shown());
    field.fault(Severity::Ignored, problem, "correct it");
    Some(match sense {
        Sense::Wanted => Condition::Any(Vec::new()),
        Sense::Unwanted => Condition::Always,
    })
}

fn method(field: &Field<'_>, dialect: Dialect, sense: Sense) -> Option<Condition> {
    let text = field.text()?;
    match Method::from_bytes(text.to_ascii_uppercase().as_bytes()) {
        Ok(method) => Some(Condition::Method(vec![method])),
        Err(_) => unusable(field, dialect, sense, "a method such as GET"),
    }
}

fn path_regex(field: &Field<'_>, dialect: Dialect, sense: Sense) -> Option<Condition> {
    // Blanks around a pattern do not count for Linkerd, and no path has any.
    let text = field.text()?.trim();
    match pattern::check(text) {
        Ok(()) => Some(Condition::Path(PathMatch::new(PathKind::Regex, text))),
        Err(what) => unusable(field, dialect, sense, &what),
    }
}

/// The conditions that `enmesh.dev/v1` has besides.
fn more(f: &mut Fields<'_>, parts: &mut Vec<Option<Condition>>) {
    let always = f.get("always");
    if let Some(value) = always.bool() {
        parts.push(if value { Some(Condition::Always) } else { always.must_be("true") });
    }
    let methods = f.get("methods");
    if methods.is_present() {
        let read =
            |text: &str| Method::from_bytes(text.as_bytes()).map_err(|_| "a method such as GET".to_owned());
        parts.push(Some(Condition::Method(methods.each(|item| item.parse(read)))));
    }
    parts.extend(said(&f.get("path")).map(|field| path(&field).map(Condition::Path)));
    for item in f.get("headers").items() {
        parts.push(header(&item).map(Condition::Header));
    }
    for item in f.get("queryParams").items() {
        parts.push(key(&item).map(Condition::Query));
    }
    let hosts = f.get("hosts");
    if hosts.is_present() {
        parts.push(Some(Condition::Host(hosts.each(|item| host(&item)))));
    }
    parts.extend(said(&f.get("scheme")).map(|field| words::name(&field).map(Condition::Scheme)));
    parts.extend(said(&f.get("port")).map(|field| field.integer(1..=u16::MAX).map(Condition::Port)));
    parts.extend(said(&f.get("grpc")).map(|field| {
        field.fields(|f| {
            let text = |field: Field<'_>| words::text_match(&field);
            Condition::Grpc(GrpcMatch { service: text(f.get("service")), method: text(f.get("method")) })
        })
    }));
    parts.extend(said(&f.get("caller")).map(|field| field.fields(|f| Condition::Caller(caller(f)))));
    parts.extend(said(&f.get("fraction")).map(|field| words::fraction(&field).map(Condition::Fraction)));
}

/// The kinds of path comparison by their names: Gateway API's, and others beside them.
pub(crate) const PATH_KINDS: &[(&str, PathKind)] = &[
    ("Exact", PathKind::Exact),
    ("PathPrefix", PathKind::PrefixElement),
    ("StringPrefix", PathKind::PrefixString),
    ("RegularExpression", PathKind::Regex),
    ("RegularExpressionPrefix", PathKind::RegexPrefix),
    ("Suffix", PathKind::Suffix),
    ("Contains", PathKind::Contains),
];

fn path(field: &Field<'_>) -> Option<PathMatch> {
    field.fields(|f| {
        let kind = f.get("type").required().word(PATH_KINDS);
        let value = f.get("value").required();
        let ignore_case = f.get("ignoreCase").bool().unwrap_or(false);
        let is_pattern = matches!(kind, Some(PathKind::Regex | PathKind::RegexPrefix));
        let value = if is_pattern { words::regex(&value) } else { value.text().map(Arc::from) };
        Some(PathMatch { kind: kind?, value: value?, ignore_case })
    })?
}

fn header(field: &Field<'_>) -> Option<KeyMatch> {
    let matched = key(field)?;
    if HeaderName::from_bytes(matched.name.as_bytes()).is_err() {
        field.reject(format!("{:?} is no header name", &*matched.name), "write letters, digits and `-`");
    }
    Some(matched)
}

/// What to do with several values, by name.
pub(crate) const MULTI: &[(&str, Multi)] =
    &[("Any", Multi::Any), ("First", Multi::First), ("Joined", Multi::Joined)];

fn key(field: &Field<'_>) -> Option<KeyMatch> {
    field.fields(|f| {
        let name = words::name(&f.get("name").required());
        let value = key_value(f);
        let multi = f.get("multi");
        Some(KeyMatch {
            invert: f.get("invert").bool().unwrap_or(false),
            ignore_case: f.get("ignoreCase").bool().unwrap_or(false),
            multi: multi.word(MULTI).unwrap_or(Multi::Any),
            name: name?,
            value: value?,
        })
    })?
}

fn key_value(f: &mut Fields<'_>) -> Option<ValueMatch> {
    type Make = fn(Arc<str>) -> TextMatch;
    let kinds: [(&'static str, Make); 5] = [
        ("Exact", TextMatch::Exact),
        ("Prefix", TextMatch::Prefix),
        ("Suffix", TextMatch::Suffix),
        ("Contains", TextMatch::Contains),
        ("RegularExpression", TextMatch::Regex),
    ];
    let mut words: Vec<(&'static str, &str)> = kinds.iter().map(|(word, _)| (*word, *word)).collect();
    words.extend([("Present", "Present"), ("Integer", "Integer")]);
    let kind = f.get("type");
    match if kind.is_present() { kind.word(&words)? } else { "Exact" } {
        "Present" => Some(ValueMatch::Present),
        "Integer" => {
            let min = f.get("min").required().integer(i64::MIN..=i64::MAX)?;
            let max = f.get("max").required();
            let top = max.integer(i64::MIN..=i64::MAX)?;
            if top < min {
                return max.must_be(&format!("at least min ({min})"));
            }
            Some(ValueMatch::Integer(min..=top))
        }
        word => {
            let (_, make) = kinds.into_iter().find(|(name, _)| *name == word)?;
            let value = f.get("value").required();
            let text =
                if word == "RegularExpression" { words::regex(&value) } else { value.text().map(Arc::from) };
            text.map(|text| ValueMatch::Text(make(text)))
        }
    }
}

fn host(field: &Field<'_>) -> Option<HostMatch> {
    field.parse(|text| {
        let (name, found): (&str, fn(Arc<str>) -> HostMatch) = match text.strip_prefix("*.") {
            Some(suffix) => (suffix, HostMatch::Suffix),
            None => (text, HostMatch::Exact),
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
        let good = !name.is_empty() && name.len() <= 253 && name.bytes().all(fits);
        if good {
            Ok(found(name.into()))
        } else {
            Err("a host such as a.example.com or *.example.com".to_owned())
        }
    })
}

fn caller(f: &mut Fields<'_>) -> CallerMatch {
    let label = |(key, value): (&str, Field<'_>)| value.text().map(|text| (Arc::from(key), Arc::from(text)));
    CallerMatch {
        namespaces: words::names(&f.get("namespaces")),
        labels: f.get("labels").pairs().into_iter().filter_map(label).collect(),
        identities: f.get("identities").each(|item| words::text_match(&item)),
    }
}

/// Reads a condition on responses.
pub(crate) fn response(field: &Field<'_>, dialect: Dialect) -> Option<ResponseCondition> {
    response_in(field, dialect, Sense::Wanted)
}

fn response_in(field: &Field<'_>, dialect: Dialect, sense: Sense) -> Option<ResponseCondition> {
    let mut parts = field.fields(|f| {
        let mut parts = Vec::new();
        for (name, make) in [("all", ResponseCondition::All as fn(_) -> _), ("any", ResponseCondition::Any)] {
            let list = f.get(name);
            if list.is_present() {
                let items = list.items();
                let read: Vec<_> =
                    items.iter().filter_map(|item| response_in(item, dialect, sense)).collect();
                // Linkerd drops a list that is empty; to match everything by it would be the opposite.
                let dropped = items.is_empty() && dialect == Dialect::Linkerd;
                parts.push(if dropped {
                    unusable_class(&list, dialect, sense, "a list with items")
                } else {
                    Some(make(read))
                });
            }
        }
        let status_field = f.get("status");
        if status_field.is_present() {
            parts.push(status(&status_field, dialect, sense));
        }
        let not = f.get("not");
        if not.is_present() {
            let inner = response_in(&not, dialect, sense.turned());
            parts.push(inner.map(|condition| ResponseCondition::Not(Box::new(condition))));
        }
        if parts.is_empty() {
            f.whole().reject("has no field set", "write one of: all, any, not, status");
        }
        parts
    })?;
    match parts.len() {
        1 => parts.pop()?,
        _ => Some(ResponseCondition::All(parts.into_iter().flatten().collect())),
    }
}

fn unusable_class(
    field: &Field<'_>,
    dialect: Dialect,
    sense: Sense,
    what: &str,
) -> Option<ResponseCondition> {
    if dialect == Dialect::Enmesh {
        return field.must_be(what);
    }
    let problem = format!("must be {what}, not {}: this part of the class matches nothing", field.shown());
    field.fault(Severity::Ignored, problem, "correct it");
    Some(match sense {
        Sense::Wanted => ResponseCondition::Any(Vec::new()),
        Sense::Unwanted => ResponseCondition::All(Vec::new()),
    })
}

/// `{min, max}`; one bound alone, or 0 for the other, means that single status, as Linkerd's documentation says.
fn status(field: &Field<'_>, dialect: Dialect, sense: Sense) -> Option<ResponseCondition> {
    let bound = |field: Field<'_>| -> Option<u16> {
        match field.integer(0..=u32::MAX)? {
            0 => Some(0),
            code @ 100..=599 => u16::try_from(code).ok(),
            _ => field.must_be("a status from 100 to 599"),
        }
    };
    let (min, max) = field.fields(|f| {
        let bounds = (f.get("min"), f.get("max"));
        let or_zero = |field: Field<'_>| if field.is_present() { bound(field) } else { Some(0) };
        (or_zero(bounds.0), or_zero(bounds.1))
    })?;
    match (min?, max?) {
        (0, 0) => unusable_class(field, dialect, sense, "a range with min, max or both"),
        (min, 0) => Some(ResponseCondition::Status(min..=min)),
        (0, max) => Some(ResponseCondition::Status(max..=max)),
        (min, max) if max < min => {
            field.reject(
                format!("max ({max}) is below min ({min})"),
                "write a max that is not smaller than min",
            );
            None
        }
        (min, max) => Some(ResponseCondition::Status(min..=max)),
    }
}
