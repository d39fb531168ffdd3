//! Floor 2: takes a condition apart into something to look up and the rest of it.

use crate::profile::matching::Multi;
use crate::route::condition::{Host, Test, Value, ValueTest, grpc_path};
use crate::route::pattern::Pattern;
use crate::route::text::{Text, TextKind};
use http::{HeaderName, Method};
use std::sync::Arc;

/// What is looked up in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dimension {
    Path,
    Method,
    /// In lower case and from its end, so that suffixes are prefixes.
    Host,
    Header(HeaderName),
    Query(Arc<str>),
}

/// What a looked-up text is compared with.
#[derive(Debug, Clone)]
pub(crate) enum Key {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Pattern(Arc<Pattern>),
}

/// One of the ways in which a condition can hold: `key` finds it, and `rest` holds.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) key: Key,
    /// What `key` stands for, where it has to be tested after all.
    pub(crate) leaf: Test,
    /// The condition, given that the key was found.
    pub(crate) rest: Test,
}

/// The most ways of one condition; one with more is tested by itself.
const WAYS_MAX: usize = 256;

/// The longest host that is looked up; longer ones cannot be in an authority (RFC 1035) and are not found.
pub(crate) const HOST_BYTES_MAX: usize = 255;

/// The ways in which `test` can hold, told apart by `dimension`: it holds if and only if, for one of them, the key
/// is found and the rest holds. `None`: it can hold whatever is found there.
pub(crate) fn ways(test: &Test, dimension: &Dimension) -> Option<Vec<Way>> {
    let found = match test {
        Test::Constant(false) => Some(Vec::new()),
        Test::All(tests) => ways_of_all(tests, dimension),
        Test::Any(tests) => {
            let each: Option<Vec<_>> = tests.iter().map(|test| ways(test, dimension)).collect();
            each.map(|ways| ways.into_iter().flatten().collect())
        }
        leaf => keys(leaf, dimension).map(|keys| {
            let way = |(key, rest)| Way { key, leaf: leaf.clone(), rest };
            keys.into_iter().map(way).collect()
        }),
    };
    found.filter(|ways| ways.len() <= WAYS_MAX)
}

fn ways_of_all(tests: &[Test], dimension: &Dimension) -> Option<Vec<Way>> {
    let each = tests.iter().enumerate().filter_map(|(index, test)| Some((index, ways(test, dimension)?)));
    let (chosen, ways) =
        each.min_by_key(|(_, ways)| (ways.len(), ways.iter().map(|way| way.key.vagueness()).max()))?;
    let others = || tests.iter().enumerate().filter(move |(index, _)| *index != chosen).map(|(_, test)| test);
    let with_others = |way: Way| {
        let rest = match (dimension, &way.key) {
            (Dimension::Path, Key::Exact(path)) => {
                all(others().map(|test| given_path(test, path)).chain([way.rest]))
            }
            _ => all(others().cloned().chain([way.rest])),
        };
        Way { rest, ..way }
    };
    Some(ways.into_iter().map(with_others).collect())
}

impl Key {
    fn vagueness(&self) -> u8 {
        match self {
            Self::Exact(_) => 0,
            Self::Pattern(_) => 1,
            Self::Prefix(_) => 2,
        }
    }
}

/// The keys of a single test, each with what is left to test.
fn keys(leaf: &Test, dimension: &Dimension) -> Option<Vec<(Key, Test)>> {
    let decided = |keys: Vec<Key>| keys.into_iter().map(|key| (key, Test::Constant(true))).collect();
    match (dimension, leaf) {
        (Dimension::Path, Test::Path(text)) => text_keys(text).map(decided),
        (Dimension::Path, Test::Grpc(service, method)) => grpc_keys(leaf, service.as_ref()?, method.as_ref()),
        (Dimension::Method, Test::Method(methods)) => Some(decided(
            methods.iter().map(|method| Key::Exact(method.as_str().as_bytes().into())).collect(),
        )),
        (Dimension::Host, Test::Host(hosts)) => hosts.iter().map(|host| host_key(leaf, host)).collect(),
        (Dimension::Header(name), Test::Header(own, value)) if name == own => value_keys(leaf, value),
        (Dimension::Query(name), Test::Query(own, value)) if name == own => value_keys(leaf, value),
        _ => None,
    }
}

fn text_keys(text: &Text) -> Option<Vec<Key>> {
    let bytes = || text.text.as_bytes().into();
    if let Some(pattern) = &text.pattern {
        return Some(vec![match pattern.only() {
            Some(only) => Key::Exact(only.into()),
            None => Key::Pattern(Arc::clone(pattern)),
        }]);
    }
    match text.kind {
        _ if text.ignore_case => None,
        TextKind::Exact => Some(vec![Key::Exact(bytes())]),
        TextKind::Prefix => Some(vec![Key::Prefix(bytes())]),
        TextKind::Elements => {
            let below = [text.text.as_bytes(), b"/"].concat();
            Some(vec![Key::Exact(bytes()), Key::Prefix(below.into())])
        }
        TextKind::Suffix | TextKind::Contains | TextKind::Regex | TextKind::RegexPrefix => None,
    }
}

/// A gRPC call of a known service is known by its path; only its method, POST, is left to test.
fn grpc_keys(leaf: &Test, service: &Text, method: Option<&Text>) -> Option<Vec<(Key, Test)>> {
    let exact =
        |text: &Text| (text.kind == TextKind::Exact && !text.ignore_case).then(|| Arc::clone(&text.text));
    let service = exact(service)?;
    match method.and_then(exact) {
        Some(method) => {
            let path = format!("/{service}/{method}");
            let possible = grpc_path(&path) == Some((&*service, &*method));
            let key = Key::Exact(path.into_bytes().into());
            Some(if possible { vec![(key, Test::Method(vec![Method::POST]))] } else { Vec::new() })
        }
        None => Some(vec![(Key::Prefix(format!("/{service}/").into_bytes().into()), leaf.clone())]),
    }
}

fn host_key(leaf: &Test, host: &Host) -> Option<(Key, Test)> {
    let reversed = |name: &str| (name.len() <= HOST_BYTES_MAX).then(|| name.bytes().rev().collect());
    Some(match host {
        Host::Exact(name) => (Key::Exact(reversed(name)?), Test::Constant(true)),
        // That a label stands before the suffix is left to test.
        Host::Suffix(suffix) => (Key::Prefix(reversed(suffix)?), leaf.clone()),
    })
}

fn value_keys(leaf: &Test, value: &Value) -> Option<Vec<(Key, Test)>> {
    let ValueTest::Text(text) = &value.test else { return None };
    if value.invert {
        return None;
    }
    // Each of a request's values is looked up. That finds all that can hold, and exactly that for "any".
    let rest = match value.multi {
        Multi::Any => Test::Constant(true),
        Multi::First => leaf.clone(),
        // Several values joined have a comma; a text without one can only be a single value.
        Multi::Joined if text.kind == TextKind::Exact && !text.ignore_case && !text.text.contains(',') => {
            leaf.clone()
        }
        Multi::Joined => return None,
    };
    text_keys(text).map(|keys| keys.into_iter().map(|key| (key, rest.clone())).collect())
}

/// The test that all of `tests` hold, without what is certain.
pub(crate) fn all(tests: impl IntoIterator<Item = Test>) -> Test {
    let mut parts = Vec::new();
    for test in tests {
        match test {
            Test::Constant(true) => {}
            Test::Constant(false) => return Test::Constant(false),
            Test::All(inner) => match all(inner) {
                Test::All(inner) => parts.extend(inner),
                Test::Constant(true) => {}
                Test::Constant(false) => return Test::Constant(false),
                single => parts.push(single),
            },
            other => parts.push(other),
        }
    }
    match parts.len() {
        0 => Test::Constant(true),
        1 => parts.swap_remove(0),
        _ => Test::All(parts),
    }
}

/// What is left of `test` when the path is known.
fn given_path(test: &Test, path: &[u8]) -> Test {
    match test {
        Test::All(tests) => all(tests.iter().map(|test| given_path(test, path))),
        Test::Any(tests) => {
            let mut left: Vec<_> = tests.iter().map(|test| given_path(test, path)).collect();
            left.retain(|test| *test != Test::Constant(false));
            match left.len() {
                0 => Test::Constant(false),
                _ if left.contains(&Test::Constant(true)) => Test::Constant(true),
                1 => left.swap_remove(0),
                _ => Test::Any(left),
            }
        }
        Test::Not(inner) => match given_path(inner, path) {
            Test::Constant(answer) => Test::Constant(!answer),
            left => Test::Not(Box::new(left)),
        },
        Test::Path(text) => Test::Constant(text.matches(path)),
        other => other.clone(),
    }
}
