//! Floor 2: decides which of a service's routes a request takes.

use crate::profile::invalid::Fault;
use crate::profile::matching::Condition;
use crate::route::build::{IndexLimits, build};
use crate::route::compile::Compiler;
use crate::route::condition::Test;
use crate::route::head::RequestHead;
use crate::route::index::Index;

/// The conditions of a service's routes, in order, ready for requests.
#[derive(Debug, Default)]
pub struct Matcher {
    tests: Vec<Test>,
    index: Index,
}

impl Matcher {
    /// Compiles the conditions of routes, in their order.
    ///
    /// # Errors
    /// Every fault of every condition, with the index of its route; the fault's path starts at the condition
    /// (`all[1].path`). A pattern is limited to 1024 bytes and 1 MiB of program, all patterns together to 64 MiB,
    /// conditions to a depth of 64 and to a million in all.
    pub fn compile<'a>(routes: impl IntoIterator<Item = &'a Condition>) -> Result<Self, Vec<(usize, Fault)>> {
        let mut compiler = Compiler::default();
        let mut tests = Vec::new();
        let mut faults = Vec::new();
        for (route, condition) in routes.into_iter().enumerate() {
            match compiler.compile(condition) {
                Ok(test) => tests.push(test),
                Err(found) => faults.extend(found.into_iter().map(|fault| (route, fault))),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let index = build(&tests, IndexLimits::default());
        Ok(Self { tests, index })
    }

    /// The first route whose condition holds for `head`.
    pub fn find(&self, head: &RequestHead<'_>) -> Option<usize> {
        self.index.find(head)
    }

    /// What [`find`](Self::find) finds, by trying one route after the other: the slow truth, for tests and
    /// benches.
    #[doc(hidden)]
    pub fn find_in_order(&self, head: &RequestHead<'_>) -> Option<usize> {
        self.tests.iter().position(|test| test.holds(head))
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.tests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    /// Why route `route` does not match `head`, in words; `None` if its condition holds.
    pub(crate) fn why_not(&self, route: usize, head: &RequestHead<'_>) -> Option<String> {
        self.tests.get(route)?.why_not(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::matching::{PathKind, PathMatch};
    use http::{HeaderMap, Method, Uri};

    #[test]
    fn the_first_route_that_matches_is_found() {
        let path = |kind, text: &str| Condition::Path(PathMatch::new(kind, text));
        let routes =
            [path(PathKind::Regex, "/a/.*"), path(PathKind::Exact, "/a/b"), path(PathKind::Exact, "/c")];
        let matcher = Matcher::compile(&routes).unwrap();
        let find = |uri: &'static str| {
            matcher.find(&RequestHead::of(&Method::GET, &Uri::from_static(uri), &HeaderMap::new()))
        };
        assert_eq!([find("/a/b"), find("/c?x"), find("/d")], [Some(0), Some(2), None]);
    }

    #[test]
    fn every_fault_is_told_with_its_route_and_path() {
        let bad = || Condition::Path(PathMatch::new(PathKind::Regex, "("));
        let routes =
            [Condition::All(vec![Condition::Always, bad()]), Condition::Always, Condition::Not(bad().into())];
        let faults = Matcher::compile(&routes).unwrap_err();
        let told: Vec<_> = faults.iter().map(|(route, fault)| (*route, fault.path.as_str())).collect();
        assert_eq!(told, [(0, "all[1].path"), (2, "not.path")]);
        assert!(faults[0].1.problem.contains("unclosed group"), "{}", faults[0].1);
    }
}
