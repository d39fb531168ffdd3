//! Floor 1: writes conditions as `enmesh.dev/v1` has them.

use crate::profile::matching::CallerMatch;
use crate::profile::matching::Condition;
use crate::profile::matching::HostMatch;
use crate::profile::matching::KeyMatch;
use crate::profile::matching::Multi;
use crate::profile::matching::PathKind;
use crate::profile::matching::PathMatch;
use crate::profile::matching::ResponseCondition;
use crate::profile::matching::TextMatch;
use crate::profile::matching::ValueMatch;
use crate::profile::read::condition::MULTI;
use crate::profile::read::condition::PATH_KINDS;
use crate::profile::settings::Share;
use crate::profile::write::tree;
use crate::profile::write::tree::Tree;
use serde_json::Value;

/// A condition on requests.
pub(crate) fn request(condition: &Condition) -> Value {
    let list = |items: &[Condition]| items.iter().map(request).collect::<Vec<_>>();
    let tree = Tree::default();
    let tree = match condition {
        Condition::Always => tree.with("always", true),
        Condition::All(items) => tree.with("all", list(items)),
        Condition::Any(items) => tree.with("any", list(items)),
        Condition::Not(inner) => tree.with("not", request(inner)),
        Condition::Method(methods) => match methods.as_slice() {
            [one] if one.as_str() == one.as_str().to_ascii_uppercase() => tree.with("method", one.as_str()),
            several => tree.with("methods", tree::texts(several)),
        },
        Condition::Path(matcher) => path(matcher),
        Condition::Header(matcher) => tree.with("headers", vec![key(matcher)]),
        Condition::Query(matcher) => tree.with("queryParams", vec![key(matcher)]),
        Condition::Host(hosts) => tree.with("hosts", hosts.iter().map(host).collect::<Vec<_>>()),
        Condition::Scheme(scheme) => tree.with("scheme", &**scheme),
        Condition::Port(port) => tree.with("port", *port),
        Condition::Grpc(matcher) => {
            let below = Tree::default()
                .maybe("service", matcher.service.as_ref().map(text_match))
                .maybe("method", matcher.method.as_ref().map(text_match));
            tree.with("grpc", below)
        }
        Condition::Caller(matcher) => tree.with("caller", caller(matcher)),
        Condition::Fraction(share) => tree.with("fraction", fraction(*share)),
    };
    tree.into()
}

fn path(matcher: &PathMatch) -> Tree {
    let is_plain = matcher.kind == PathKind::Regex && !matcher.ignore_case;
    if is_plain && !matcher.value.is_empty() && matcher.value.trim() == &*matcher.value {
        return Tree::default().with("pathRegex", &*matcher.value);
    }
    let below = Tree::default()
        .with("type", tree::word(PATH_KINDS, &matcher.kind))
        .with("value", &*matcher.value)
        .flag("ignoreCase", matcher.ignore_case);
    Tree::default().with("path", below)
}

fn key(matcher: &KeyMatch) -> Value {
    let tree = Tree::default().with("name", &*matcher.name);
    let typed = |tree: Tree, kind: &str, value: &str| tree.with("type", kind).with("value", value);
    let tree = match &matcher.value {
        ValueMatch::Present => tree.with("type", "Present"),
        ValueMatch::Integer(range) => {
            tree.with("type", "Integer").with("min", *range.start()).with("max", *range.end())
        }
        ValueMatch::Text(TextMatch::Exact(text)) => tree.with("value", &**text),
        ValueMatch::Text(TextMatch::Prefix(text)) => typed(tree, "Prefix", text),
        ValueMatch::Text(TextMatch::Suffix(text)) => typed(tree, "Suffix", text),
        ValueMatch::Text(TextMatch::Contains(text)) => typed(tree, "Contains", text),
        ValueMatch::Text(TextMatch::Regex(text)) => typed(tree, "RegularExpression", text),
    };
    tree.flag("invert", matcher.invert)
        .flag("ignoreCase", matcher.ignore_case)
        .maybe("multi", (matcher.multi != Multi::Any).then(|| tree::word(MULTI, &matcher.multi)))
        .into()
}

fn host(host: &HostMatch) -> Value {
    match host {
        HostMatch::Exact(name) => (&**name).into(),
        HostMatch::Suffix(name) => format!("*.{name}").into(),
    }
}

fn caller(matcher: &CallerMatch) -> Value {
    let labels = matcher.labels.iter().fold(Tree::default(), |tree, (key, value)| tree.with(key, &**value));
    Tree::default()
        .list("namespaces", tree::texts(&matcher.namespaces))
        .below("labels", labels)
        .list("identities", matcher.identities.iter().map(text_match).collect())
        .into()
}

/// How a text is compared.
pub(crate) fn text_match(matcher: &TextMatch) -> Value {
    let (key, text) = match matcher {
        TextMatch::Exact(text) => return (&**text).into(),
        TextMatch::Prefix(text) => ("prefix", text),
        TextMatch::Suffix(text) => ("suffix", text),
        TextMatch::Contains(text) => ("contains", text),
        TextMatch::Regex(text) => ("regex", text),
    };
    Tree::default().with(key, &**text).into()
}

/// A share as a fraction, which is exact.
pub(crate) fn fraction(share: Share) -> Value {
    Tree::default().with("numerator", share.numerator).with("denominator", share.denominator).into()
}

/// A condition on responses, in the form that Linkerd reads too.
pub(crate) fn response(condition: &ResponseCondition) -> Value {
    let list = |items: &[ResponseCondition]| items.iter().map(response).collect::<Vec<_>>();
    let tree = Tree::default();
    let tree = match condition {
        ResponseCondition::All(items) => tree.with("all", list(items)),
        ResponseCondition::Any(items) => tree.with("any", list(items)),
        ResponseCondition::Not(inner) => tree.with("not", response(inner)),
        ResponseCondition::Status(range) => {
            tree.with("status", Tree::default().with("min", *range.start()).with("max", *range.end()))
        }
    };
    tree.into()
}
