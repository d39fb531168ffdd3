//! Floor 2: compares one text: a path, a header's or parameter's value, a name.

use crate::route::pattern::Pattern;
use std::sync::Arc;

/// A compiled comparison of a text.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) test: TextTest,
    /// Whether ASCII case is ignored. Patterns have it built in.
    pub(crate) ignore_case: bool,
}

/// The comparisons.
#[derive(Debug, Clone)]
pub(crate) enum TextTest {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    /// Equal, or a prefix followed by `/`; the text here has no trailing `/`.
    Elements(Arc<str>),
    Suffix(Arc<str>),
    Contains(Arc<Pattern>),
    Regex(Arc<Pattern>),
    RegexPrefix(Arc<Pattern>),
}

impl Text {
    /// Whether `subject` compares so.
    #[inline]
    pub(crate) fn matches(&self, subject: &[u8]) -> bool {
        match &self.test {
            TextTest::Exact(text) => self.same(subject, text),
            TextTest::Prefix(text) => self.begins(subject, text),
            TextTest::Elements(text) => {
                self.begins(subject, text) && matches!(subject.get(text.len()), None | Some(b'/'))
            }
            TextTest::Suffix(text) => {
                let start = subject.len().checked_sub(text.len());
                start.is_some_and(|start| self.same(&subject[start..], text))
            }
            TextTest::Contains(pattern) | TextTest::Regex(pattern) | TextTest::RegexPrefix(pattern) => {
                pattern.matches(subject)
            }
        }
    }

    fn begins(&self, subject: &[u8], text: &str) -> bool {
        subject.get(..text.len()).is_some_and(|begin| self.same(begin, text))
    }

    fn same(&self, subject: &[u8], text: &str) -> bool {
        if self.ignore_case {
            subject.eq_ignore_ascii_case(text.as_bytes())
        } else {
            subject == text.as_bytes()
        }
    }
}

impl PartialEq for Text {
    /// Patterns are equal when they are one: the compiler makes each only once.
    fn eq(&self, other: &Self) -> bool {
        use TextTest::{Contains, Elements, Exact, Prefix, Regex, RegexPrefix, Suffix};
        self.ignore_case == other.ignore_case
            && match (&self.test, &other.test) {
                (Exact(a), Exact(b))
                | (Prefix(a), Prefix(b))
                | (Elements(a), Elements(b))
                | (Suffix(a), Suffix(b)) => a == b,
                (Contains(a), Contains(b)) | (Regex(a), Regex(b)) | (RegexPrefix(a), RegexPrefix(b)) => {
                    Arc::ptr_eq(a, b)
                }
                _ => false,
            }
    }
}
