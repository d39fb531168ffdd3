//! Floor 2: says compiled conditions, and why one does not hold, in words.

use crate::profile::matching::Multi;
use crate::route::condition::{CallerTest, Host, Test, Value, ValueTest};
use crate::route::head::RequestHead;
use crate::route::text::{Text, TextKind};
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

/// How many alternatives of an `any` are named; more would hide the reason.
const ALTERNATIVES_MAX: usize = 4;

impl Test {
    /// Why it does not hold for `head`; `None` if it does. Of several parts that all must hold, the first that
    /// does not is named; of several of which one must, all.
    pub(crate) fn why_not(&self, head: &RequestHead<'_>) -> Option<String> {
        if self.holds(head) {
            return None;
        }
        match self {
            Self::All(tests) => tests.iter().find_map(|test| test.why_not(head)),
            Self::Any(tests) => {
                let mut reasons: Vec<_> =
                    tests.iter().take(ALTERNATIVES_MAX).filter_map(|test| test.why_not(head)).collect();
                if tests.is_empty() {
                    reasons.push("it matches nothing".into());
                }
                if tests.len() > ALTERNATIVES_MAX {
                    reasons.push(format!("nor do {} more alternatives", tests.len() - ALTERNATIVES_MAX));
                }
                Some(reasons.join(", and "))
            }
            Self::Not(test) => Some(format!("{test} matches, and must not")),
            Self::Constant(_) => Some("it matches nothing".into()),
            Self::Fraction(..) => Some(format!("{self} was not drawn")),
            single => Some(format!("{single} does not match")),
        }
    }
}

impl Display for Test {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(true) => f.write_str("everything"),
            Self::Constant(false) => f.write_str("nothing"),
            Self::All(tests) => list(f, "all of ", tests, ", "),
            Self::Any(tests) => list(f, "any of ", tests, ", "),
            Self::Not(test) => write!(f, "not {test}"),
            Self::Method(methods) => list(f, "method ", methods, " or "),
            Self::Path(text) => write!(f, "path {text}"),
            Self::Header(name, value) => write!(f, "header {name}{value}"),
            Self::Query(name, value) => write!(f, "query parameter {name}{value}"),
            Self::Host(hosts) => list(f, "host ", hosts, " or "),
            Self::Scheme(scheme) => write!(f, "scheme {scheme}"),
            Self::Port(port) => write!(f, "port {port}"),
            Self::Grpc(service, method) => {
                f.write_str("gRPC call ")?;
                for part in [service, method] {
                    match part {
                        Some(text) => write!(f, "/{text}")?,
                        None => f.write_str("/*")?,
                    }
                }
                Ok(())
            }
            Self::Caller(caller) => caller.fmt(f),
            Self::Fraction(_, of_2_32) => {
                write!(f, "fraction {:.4} %", *of_2_32 as f64 * 100.0 / 4_294_967_296.0)
            }
        }
    }
}

fn list<T: Display>(f: &mut Formatter<'_>, name: &str, items: &[T], between: &str) -> fmt::Result {
    f.write_str(name)?;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(between)?;
        }
        item.fmt(f)?;
    }
    if items.is_empty() { f.write_str("(none)") } else { Ok(()) }
}

impl Display for Text {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match self.kind {
            TextKind::Exact => f.write_str(text)?,
            TextKind::Prefix => write!(f, "{text}…")?,
            TextKind::Elements => write!(f, "{text}/…")?,
            TextKind::Suffix => write!(f, "…{text}")?,
            TextKind::Contains => write!(f, "…{text}…")?,
            TextKind::Regex => write!(f, "~{text}")?,
            TextKind::RegexPrefix => write!(f, "~{text}…")?,
        }
        if self.ignore_case { f.write_str(" (in any case)") } else { Ok(()) }
    }
}

impl Display for Value {
    /// Follows the key's name: `: value`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.invert {
            f.write_str(" not")?;
        }
        match &self.test {
            ValueTest::Present => f.write_str(" present")?,
            ValueTest::Text(text) => write!(f, ": {text}")?,
            ValueTest::Integer(range) => write!(f, " from {} to {}", range.start(), range.end())?,
        }
        f.write_str(match self.multi {
            Multi::Any => "",
            Multi::First => " (first value)",
            Multi::Joined => " (all values)",
        })
    }
}

impl Display for Host {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl Display for CallerTest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("caller")?;
        let names = |f: &mut Formatter<'_>, what: &str, names: &[Arc<str>]| match names {
            [] => Ok(()),
            names => list(f, what, names, " or "),
        };
        names(f, " in namespace ", &self.namespaces)?;
        for (key, value) in &self.labels {
            write!(f, " labelled {key}={value}")?;
        }
        if self.identities.is_empty() { Ok(()) } else { list(f, " identified as ", &self.identities, " or ") }
    }
}
