//! Floor 2: checks conditions and makes them ready to be tested.

use crate::profile::invalid::Fault;
use crate::profile::matching::{
    CallerMatch, Condition, GrpcMatch, HostMatch, KeyMatch, PathKind, PathMatch, TextMatch, ValueMatch,
};
use crate::profile::settings::Share;
use crate::route::condition::{CallerTest, Host, Test, Value, ValueTest};
use crate::route::head::bare_host;
use crate::route::pattern::{PATTERN_BYTES_MAX, Pattern};
use crate::route::text::{Text, TextKind};
use http::HeaderName;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How deep `all`, `any` and `not` may stand in each other; the tests are recursive.
const DEPTH_MAX: usize = 64;

/// The most tests of one matcher: 10,000 routes of 100 each.
const TESTS_MAX: usize = 1_000_000;

/// The most that all patterns of one matcher may need as programs, in bytes; bounds the time compiling takes
/// (about 1 s).
const PROGRAMS_BYTES_MAX: usize = 64 << 20;

/// Compiles the conditions of one matcher; equal patterns are compiled once.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    patterns: BTreeMap<(TextKind, Arc<str>, bool), Arc<Pattern>>,
    program_bytes: usize,
    tests: usize,
    fractions: u32,
    /// Where the condition at hand stands within its route.
    path: Vec<String>,
    faults: Vec<Fault>,
}

impl Compiler {
    /// The compiled `condition`.
    ///
    /// # Errors
    /// Every fault in it; their paths start at the condition: `all[1].path`.
    pub(crate) fn compile(&mut self, condition: &Condition) -> Result<Test, Vec<Fault>> {
        self.path.clear();
        let test = self.test(condition, true);
        if self.faults.is_empty() { Ok(test) } else { Err(std::mem::take(&mut self.faults)) }
    }

    fn fault(&mut self, problem: impl Into<String>, remedy: &str) {
        self.faults.push(Fault::rejected(self.path.join("."), problem, remedy));
    }

    fn within<T>(&mut self, step: impl Into<String>, work: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step.into());
        let done = work(self);
        self.path.pop();
        done
    }

    /// The condition, or with `wanted == false` its opposite, so that "not" ends up before single tests.
    fn test(&mut self, condition: &Condition, wanted: bool) -> Test {
        self.tests += 1;
        if self.path.len() >= DEPTH_MAX {
            self.fault(format!("stands deeper than {DEPTH_MAX} conditions"), "flatten it");
            return Test::Constant(false);
        }
        if self.tests > TESTS_MAX {
            if self.tests == TESTS_MAX + 1 {
                self.fault(
                    format!("is beyond the {TESTS_MAX} conditions a service may have"),
                    "use fewer routes",
                );
            }
            return Test::Constant(false);
        }
        match condition {
            Condition::Always => Test::Constant(wanted),
            Condition::All(parts) => {
                let tests = self.tests("all", parts, wanted);
                if wanted { Test::All(tests) } else { Test::Any(tests) }
            }
            Condition::Any(parts) => {
                let tests = self.tests("any", parts, wanted);
                if wanted { Test::Any(tests) } else { Test::All(tests) }
            }
            Condition::Not(part) => self.within("not", |this| this.test(part, !wanted)),
            single => match (self.single(single), wanted) {
                (Test::Constant(answer), _) => Test::Constant(answer == wanted),
                (test, true) => test,
                (test, false) => Test::Not(Box::new(test)),
            },
        }
    }

    fn tests(&mut self, name: &str, parts: &[Condition], wanted: bool) -> Vec<Test> {
        let each = parts.iter().enumerate();
        each.map(|(i, part)| self.within(format!("{name}[{i}]"), |this| this.test(part, wanted))).collect()
    }

    fn single(&mut self, condition: &Condition) -> Test {
        match condition {
            Condition::Method(methods) => Test::Method(methods.clone()),
            Condition::Path(path) => self.within("path", |this| Test::Path(this.path_text(path))),
            Condition::Header(header) => self.within("header", |this| this.header(header)),
            Condition::Query(query) => {
                self.within("query", |this| Test::Query(Arc::clone(&query.name), this.value(query)))
            }
            Condition::Host(hosts) => Test::Host(hosts.iter().map(host).collect()),
            Condition::Scheme(scheme) => Test::Scheme(Arc::clone(scheme)),
            Condition::Port(port) => Test::Port(*port),
            Condition::Grpc(grpc) => self.within("grpc", |this| this.grpc(grpc)),
            Condition::Caller(caller) => self.within("caller", |this| this.caller(caller)),
            Condition::Fraction(share) => self.within("fraction", |this| this.fraction(*share)),
            Condition::Always | Condition::All(_) | Condition::Any(_) | Condition::Not(_) => {
                Test::Constant(true)
            }
        }
    }

    fn path_text(&mut self, path: &PathMatch) -> Text {
        let kind = match path.kind {
            PathKind::Exact => TextKind::Exact,
            PathKind::PrefixString => TextKind::Prefix,
            PathKind::PrefixElement => {
                return self.compare(
                    TextKind::Elements,
                    path.value.trim_end_matches('/').into(),
                    path.ignore_case,
                );
            }
            PathKind::Suffix => TextKind::Suffix,
            PathKind::Contains => TextKind::Contains,
            PathKind::Regex => TextKind::Regex,
            PathKind::RegexPrefix => TextKind::RegexPrefix,
        };
        self.compare(kind, Arc::clone(&path.value), path.ignore_case)
    }

    /// Compiles texts that stand outside a condition.
    ///
    /// # Errors
    /// The first that is no pattern.
    pub(crate) fn texts(&mut self, texts: &[TextMatch], ignore_case: bool) -> Result<Vec<Text>, Fault> {
        let compiled = texts.iter().map(|text| self.text(text, ignore_case)).collect();
        match std::mem::take(&mut self.faults).into_iter().next() {
            None => Ok(compiled),
            Some(fault) => Err(fault),
        }
    }

    fn text(&mut self, text: &TextMatch, ignore_case: bool) -> Text {
        let (kind, text) = match text {
            TextMatch::Exact(text) => (TextKind::Exact, text),
            TextMatch::Prefix(text) => (TextKind::Prefix, text),
            TextMatch::Suffix(text) => (TextKind::Suffix, text),
            TextMatch::Contains(text) => (TextKind::Contains, text),
            TextMatch::Regex(text) => (TextKind::Regex, text),
        };
        self.compare(kind, Arc::clone(text), ignore_case)
    }

    fn compare(&mut self, kind: TextKind, text: Arc<str>, ignore_case: bool) -> Text {
        let literal = matches!(kind, TextKind::Exact | TextKind::Prefix | TextKind::Elements) && !ignore_case;
        let pattern = if literal { None } else { self.pattern(kind, &text, ignore_case) };
        Text { kind, text, ignore_case, pattern }
    }

    fn pattern(&mut self, kind: TextKind, text: &Arc<str>, ignore_case: bool) -> Option<Arc<Pattern>> {
        let key = (kind, Arc::clone(text), ignore_case);
        if let Some(pattern) = self.patterns.get(&key) {
            return Some(Arc::clone(pattern));
        }
        let pattern = match kind {
            TextKind::Regex | TextKind::RegexPrefix => self.parse(kind, text, ignore_case)?,
            TextKind::Contains if text.len() > PATTERN_BYTES_MAX => {
                let problem = format!("is a text of {} bytes, more than {PATTERN_BYTES_MAX}", text.len());
                self.fault(problem, "look for a shorter part of it");
                return None;
            }
            _ if text.len() > PATTERN_BYTES_MAX => return None,
            _ => Pattern::comparing(kind, text, ignore_case),
        };
        let pattern = Arc::new(pattern);
        self.patterns.insert(key, Arc::clone(&pattern));
        Some(pattern)
    }

    fn parse(&mut self, kind: TextKind, text: &str, ignore_case: bool) -> Option<Pattern> {
        match Pattern::parse(kind, text, ignore_case) {
            Ok((pattern, bytes)) => {
                self.program_bytes = self.program_bytes.saturating_add(bytes);
                if self.program_bytes <= PROGRAMS_BYTES_MAX {
                    return Some(pattern);
                }
                let problem = format!(
                    "is a pattern with which those of this service need more than {} MiB ({text:?})",
                    PROGRAMS_BYTES_MAX >> 20
                );
                self.fault(problem, "use fewer patterns, or smaller counts in them");
            }
            Err(problem) => {
                self.fault(problem, "write it in the syntax of the regex crate, which is that of RE2")
            }
        }
        None
    }

    fn header(&mut self, header: &KeyMatch) -> Test {
        match HeaderName::from_bytes(header.name.as_bytes()) {
            Ok(name) => Test::Header(name, self.value(header)),
            Err(_) => {
                let problem = format!("names a header that cannot exist ({:?})", header.name);
                self.fault(problem, "write letters, digits and dashes");
                Test::Constant(false)
            }
        }
    }

    fn value(&mut self, key: &KeyMatch) -> Value {
        let test = match &key.value {
            ValueMatch::Present => ValueTest::Present,
            ValueMatch::Text(text) => ValueTest::Text(self.text(text, key.ignore_case)),
            ValueMatch::Integer(range) => ValueTest::Integer(range.clone()),
        };
        Value { test, invert: key.invert, multi: key.multi }
    }

    fn grpc(&mut self, grpc: &GrpcMatch) -> Test {
        let service = grpc.service.as_ref().map(|text| self.text(text, false));
        let method = grpc.method.as_ref().map(|text| self.text(text, false));
        Test::Grpc(service, method)
    }

    fn caller(&mut self, caller: &CallerMatch) -> Test {
        if *caller == CallerMatch::default() {
            return Test::Constant(true);
        }
        Test::Caller(Box::new(CallerTest {
            namespaces: caller.namespaces.clone(),
            labels: caller.labels.clone(),
            identities: caller.identities.iter().map(|identity| self.text(identity, false)).collect(),
        }))
    }

    fn fraction(&mut self, share: Share) -> Test {
        if share.denominator == 0 {
            self.fault(
                format!("is {}/0 of the requests", share.numerator),
                "write a denominator of 1 or more",
            );
            return Test::Constant(false);
        }
        if share.numerator >= share.denominator {
            return Test::Constant(true);
        }
        self.fractions += 1;
        Test::Fraction(self.fractions, (u64::from(share.numerator) << 32) / u64::from(share.denominator))
    }
}

fn host(host: &HostMatch) -> Host {
    match host {
        HostMatch::Exact(name) => Host::Exact(bare_host(name).to_ascii_lowercase().into()),
        HostMatch::Suffix(suffix) => {
            let suffix = bare_host(suffix).to_ascii_lowercase();
            Host::Suffix(format!(".{}", suffix.trim_start_matches('.')).into())
        }
    }
}
