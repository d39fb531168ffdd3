//! Floor 2: a compiled condition and whether it holds for a request: the linear truth.

use crate::profile::matching::Multi;
use crate::route::head::RequestHead;
use crate::route::query;
use crate::route::text::Text;
use crate::stdx::rng::{GAMMA, mix};
use http::{HeaderName, Method};
use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A compiled condition. [`Not`](Self::Not) stands only before a single test.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    /// Always, or never.
    Constant(bool),
    All(Vec<Test>),
    Any(Vec<Test>),
    Not(Box<Test>),
    Method(Vec<Method>),
    Path(Text),
    Header(HeaderName, Value),
    Query(Arc<str>, Value),
    Host(Vec<Host>),
    Scheme(Arc<str>),
    Port(u16),
    Grpc(Option<Text>, Option<Text>),
    Caller(Box<CallerTest>),
    /// Which fraction of the matcher it is, and how many of 2^32 draws it takes.
    Fraction(u32, u64),
}

/// A test on the values of a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Value {
    pub(crate) test: ValueTest,
    pub(crate) invert: bool,
    pub(crate) multi: Multi,
}

/// A test on one value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ValueTest {
    Present,
    Text(Text),
    Integer(RangeInclusive<i64>),
}

/// A host in lower case without trailing dot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Host {
    Exact(Arc<str>),
    /// The suffix with its leading dot.
    Suffix(Arc<str>),
}

/// A test on the caller.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CallerTest {
    pub(crate) namespaces: Vec<Arc<str>>,
    pub(crate) labels: Vec<(Arc<str>, Arc<str>)>,
    pub(crate) identities: Vec<Text>,
}

impl Test {
    /// Whether it holds for `head`.
    pub(crate) fn holds(&self, head: &RequestHead<'_>) -> bool {
        match self {
            Self::Constant(answer) => *answer,
            Self::All(tests) => tests.iter().all(|test| test.holds(head)),
            Self::Any(tests) => tests.iter().any(|test| test.holds(head)),
            Self::Not(test) => !test.holds(head),
            Self::Method(methods) => methods.contains(head.method()),
            Self::Path(text) => text.matches(head.path().as_bytes()),
            Self::Header(name, value) => {
                value.holds(head.headers().get_all(name).iter().map(|value| Cow::Borrowed(value.as_bytes())))
            }
            Self::Query(name, value) => value.holds(query::values(head.query(), name)),
            Self::Host(hosts) => {
                head.host().is_some_and(|host| hosts.iter().any(|test| test.holds(host.as_bytes())))
            }
            Self::Scheme(scheme) => scheme.eq_ignore_ascii_case(head.scheme()),
            Self::Port(port) => head.port() == Some(*port),
            Self::Grpc(service, method) => grpc_call(head).is_some_and(|(s, m)| {
                let holds = |test: &Option<Text>, name: &str| {
                    test.as_ref().is_none_or(|test| test.matches(name.as_bytes()))
                };
                holds(service, s) && holds(method, m)
            }),
            Self::Caller(test) => test.holds(head),
            Self::Fraction(index, of_2_32) => chance(head.draw(), *index) < *of_2_32,
        }
    }
}

/// A number below 2^32 for the `index`-th fraction of a matcher, from the one draw of a request.
fn chance(draw: u64, index: u32) -> u64 {
    mix(draw.wrapping_add(u64::from(index).wrapping_mul(GAMMA))) >> 32
}

/// Service and method of a gRPC call: a POST to `/service/method`.
pub(crate) fn grpc_call<'a>(head: &RequestHead<'a>) -> Option<(&'a str, &'a str)> {
    if head.method() != Method::POST {
        return None;
    }
    grpc_path(head.path())
}

/// The two names of `/service/method`, neither of them empty.
pub(crate) fn grpc_path(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

impl Value {
    fn holds<'a>(&self, mut values: impl Iterator<Item = Cow<'a, [u8]>>) -> bool {
        let found = match self.multi {
            Multi::Any => values.any(|value| self.test.holds(&value)),
            Multi::First => values.next().is_some_and(|value| self.test.holds(&value)),
            Multi::Joined => joined(values).is_some_and(|value| self.test.holds(&value)),
        };
        found != self.invert
    }
}

/// The values with commas between them; only several values are copied.
fn joined<'a>(mut values: impl Iterator<Item = Cow<'a, [u8]>>) -> Option<Cow<'a, [u8]>> {
    let mut all = values.next()?;
    for value in values {
        let text = all.to_mut();
        text.push(b',');
        text.extend_from_slice(&value);
    }
    Some(all)
}

impl ValueTest {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Text(text) => text.matches(value),
            Self::Integer(range) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                number.is_some_and(|number| range.contains(&number))
            }
        }
    }
}

impl Host {
    fn holds(&self, host: &[u8]) -> bool {
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
            Self::Suffix(suffix) => host
                .len()
                .checked_sub(suffix.len())
                .is_some_and(|start| start > 0 && host[start..].eq_ignore_ascii_case(suffix.as_bytes())),
        }
    }
}

impl CallerTest {
    fn holds(&self, head: &RequestHead<'_>) -> bool {
        let Some(caller) = head.caller() else { return false };
        let namespace = self.namespaces.is_empty()
            || caller.namespace.as_ref().is_some_and(|namespace| self.namespaces.contains(namespace));
        let identity = self.identities.is_empty()
            || caller
                .identity
                .as_ref()
                .is_some_and(|identity| self.identities.iter().any(|test| test.matches(identity.as_bytes())));
        namespace && identity && self.labels.iter().all(|(key, value)| caller.labels.get(key) == Some(value))
    }
}
