//! Floor 2: finds all of many comparisons that hold for a text, at a cost that does not grow with their number.

use crate::route::hash::TextMap;
use crate::route::pattern::Dense;
use crate::route::trie::Trie;
use std::fmt;

/// Comparisons of a text, each with a number: equal texts by hash, prefixes by tree, patterns by automaton.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) exact: TextMap,
    pub(crate) prefixes: Trie,
    pub(crate) automata: Vec<Automaton>,
}

/// Patterns in one automaton.
#[derive(Debug)]
pub(crate) struct Automaton {
    pub(crate) dense: Dense,
    /// The number of each pattern.
    pub(crate) numbers: Vec<u32>,
}

impl Texts {
    /// Visits the number of each comparison that holds for `text`.
    #[inline]
    pub(crate) fn visit(&self, text: &[u8], mut visit: impl FnMut(u32)) {
        if !self.exact.is_empty()
            && let Some(&number) = self.exact.get(text)
        {
            visit(number);
        }
        self.prefixes.visit(text, &mut visit);
        for automaton in &self.automata {
            if let Some(end) = automaton.dense.end(text) {
                automaton.dense.matching(end).for_each(|index| visit(automaton.numbers[index]));
            }
        }
    }
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Texts")
            .field("exact", &self.exact.len())
            .field("prefixes", &self.prefixes)
            .field("automata", &self.automata)
            .finish()
    }
}
