//! Floor 2: compares one text: a path, a header's or parameter's value, a name.

use crate::route::pattern::Pattern;
use std::sync::Arc;

/// A compiled comparison of a text.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) kind: TextKind,
    /// What to compare with; for [`TextKind::Elements`] without trailing `/`.
    pub(crate) text: Arc<str>,
    /// Whether ASCII case is ignored.
    pub(crate) ignore_case: bool,
    /// The same comparison as a pattern, for those that are more than "equal" or "begins with".
    pub(crate) pattern: Option<Arc<Pattern>>,
}

/// The comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TextKind {
    Exact,
    Prefix,
    /// Equal, or a prefix followed by `/`.
    Elements,
    Suffix,
    Contains,
    /// A pattern of the whole text.
    Regex,
    /// A pattern of the beginning.
    RegexPrefix,
}

impl TextKind {
    /// Whether only a pattern can tell; the others compare bytes.
    pub(crate) fn runs_a_pattern(self) -> bool {
        matches!(self, Self::Contains | Self::Regex | Self::RegexPrefix)
    }
}

impl Text {
    /// Whether `subject` compares so.
    #[inline]
    pub(crate) fn matches(&self, subject: &[u8]) -> bool {
        match self.kind {
            TextKind::Exact => self.same(subject),
            TextKind::Prefix => self.begins(subject),
            TextKind::Elements => {
                self.begins(subject) && matches!(subject.get(self.text.len()), None | Some(b'/'))
            }
            TextKind::Suffix => {
                let start = subject.len().checked_sub(self.text.len());
                start.is_some_and(|start| self.same(&subject[start..]))
            }
            TextKind::Contains | TextKind::Regex | TextKind::RegexPrefix => {
                self.pattern.as_ref().is_some_and(|pattern| pattern.matches(subject))
            }
        }
    }

    fn begins(&self, subject: &[u8]) -> bool {
        subject.get(..self.text.len()).is_some_and(|begin| self.same(begin))
    }

    fn same(&self, subject: &[u8]) -> bool {
        let text = self.text.as_bytes();
        if self.ignore_case { subject.eq_ignore_ascii_case(text) } else { subject == text }
    }
}

impl PartialEq for Text {
    /// The pattern follows from the rest.
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.ignore_case == other.ignore_case && self.text == other.text
    }
}
