//! Floor 2: finds all of many prefixes that a text begins with, in time that depends on the text alone.

use std::collections::VecDeque;

/// A radix tree from prefixes to numbers.
#[derive(Debug, Default)]
pub(crate) struct Trie {
    nodes: Vec<Node>,
    /// The first byte of each node's label but the root's, so that siblings are searched in one cache line.
    firsts: Vec<u8>,
    labels: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// The bytes after the first one that lead here: a range of `labels`.
    label: (u32, u32),
    /// The children: a range of `nodes`, in ascending order of their first byte.
    children: (u32, u32),
    value: Option<u32>,
}

impl Trie {
    /// A tree of `prefixes`, which must be sorted and different from each other.
    pub(crate) fn new(prefixes: &[(&[u8], u32)]) -> Self {
        let mut trie = Self::default();
        if prefixes.is_empty() {
            return trie;
        }
        trie.push(&[], prefixes, 0);
        let mut todo = VecDeque::from([(0, prefixes, 0)]);
        while let Some((node, group, depth)) = todo.pop_front() {
            let group = match group.split_first() {
                Some((first, rest)) if first.0.len() == depth => rest,
                _ => group,
            };
            let begin = trie.nodes.len();
            for group in group.chunk_by(|a, b| a.0[depth] == b.0[depth]) {
                let (Some((low, _)), Some((high, _))) = (group.first(), group.last()) else { continue };
                let same = low[depth..].iter().zip(&high[depth..]).take_while(|(a, b)| a == b).count();
                todo.push_back((trie.nodes.len(), group, depth + same));
                trie.push(&low[depth..depth + same], group, depth + same);
            }
            trie.nodes[node].children = (begin as u32, trie.nodes.len() as u32);
        }
        trie
    }

    fn push(&mut self, label: &[u8], group: &[(&[u8], u32)], depth: usize) {
        let begin = self.labels.len() as u32;
        self.labels.extend(label.iter().skip(1));
        self.firsts.push(label.first().copied().unwrap_or_default());
        let value = group.first().filter(|(prefix, _)| prefix.len() == depth).map(|(_, value)| *value);
        self.nodes.push(Node { label: (begin, self.labels.len() as u32), children: (0, 0), value });
    }

    /// Visits the number of each prefix of `text`, the shortest first.
    #[inline]
    pub(crate) fn visit(&self, text: &[u8], mut visit: impl FnMut(u32)) {
        let Some(mut node) = self.nodes.first() else { return };
        let mut rest = text;
        loop {
            if let Some(value) = node.value {
                visit(value);
            }
            let Some((&byte, after)) = rest.split_first() else { return };
            let (begin, end) = (node.children.0 as usize, node.children.1 as usize);
            let Some(child) = self.firsts[begin..end].iter().position(|&first| first == byte) else { return };
            node = &self.nodes[begin + child];
            let label = &self.labels[node.label.0 as usize..node.label.1 as usize];
            // Most branches in a set of numbered names have no label, and comparing calls out.
            rest = after;
            if !label.is_empty() {
                let Some(after) = after.strip_prefix(label) else { return };
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn check(prefixes: &BTreeSet<String>, text: &str) {
        let list: Vec<_> = prefixes.iter().zip(0..).map(|(prefix, n)| (prefix.as_bytes(), n)).collect();
        let mut seen = Vec::new();
        Trie::new(&list).visit(text.as_bytes(), |n| seen.push(n));
        let expected: Vec<_> =
            list.iter().filter(|(prefix, _)| text.as_bytes().starts_with(prefix)).map(|(_, n)| *n).collect();
        assert_eq!(seen, expected, "{prefixes:?} {text}");
    }

    #[test]
    fn nested_prefixes_are_all_found_and_others_not() {
        let prefixes = ["", "/", "/a", "/ab", "/abc/d", "/b"].map(String::from).into();
        for text in ["", "/", "/a", "/abc", "/abc/d", "/abc/de", "/c", "x"] {
            check(&prefixes, text);
        }
        check(&BTreeSet::new(), "/a");
    }

    proptest! {
        #[test]
        fn it_finds_what_a_scan_finds(
            prefixes in prop::collection::btree_set("[ab/]{0,5}", 0..30),
            texts in prop::collection::vec("[ab/]{0,8}", 1..20),
        ) {
            texts.iter().for_each(|text| check(&prefixes, text));
        }
    }
}
