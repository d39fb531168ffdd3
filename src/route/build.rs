//! Floor 2: builds the index of a matcher's conditions.

use crate::route::condition::{Test, ValueTest};
use crate::route::fold::{Dimension, Key, Way, all, ways};
use crate::route::index::{Branch, Entry, Index, Node, NodeKind};
use crate::route::pattern::{AUTOMATON_BYTES_MAX, Dense, Pattern};
use crate::route::text::Text;
use crate::route::texts::{Automaton, Texts};
use crate::route::trie::Trie;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an index may cost to build and to keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexLimits {
    /// So few conditions are tested one after the other: looking anything up costs as much.
    pub(crate) list_max: usize,
    /// The largest automaton of a node, in bytes. 10,000 patterns such as `/api/r7/[^/]*` take 3 MiB.
    pub(crate) automaton_bytes_max: usize,
    /// All automata together, in bytes.
    pub(crate) automata_bytes_max: usize,
    /// How many automata may turn out too large before the other patterns are tested one by one; a failed attempt
    /// takes up to half a second.
    pub(crate) failures_max: usize,
    /// How many conditions the leaves may hold for each one that was given.
    pub(crate) copies_max: usize,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self {
            list_max: 4,
            automaton_bytes_max: 8 << 20,
            automata_bytes_max: 16 << 20,
            failures_max: 4,
            copies_max: 8,
        }
    }
}

/// The most header and parameter names that are considered for one node, those that most routes name.
const NAMES_MAX: usize = 8;

/// After so many patterns without a complete automaton of their own no more are tried, as each attempt takes 0.5 ms.
const LAZY_MAX: usize = 256;

/// The most parts an `any` is filed under.
const PARTS_MAX: usize = 256;

/// The index of `tests`.
pub(crate) fn build(tests: &[Test], limits: IndexLimits) -> Index {
    let mut entries = Vec::new();
    for (route, test) in (0..).zip(tests) {
        let mut parts = Vec::new();
        alternatives(test, &mut parts);
        if parts.len() > PARTS_MAX {
            parts = vec![test.clone()];
        }
        entries.extend(parts.into_iter().map(|rest| Entry { route, rest }));
    }
    let copies_left = entries.len().saturating_mul(limits.copies_max);
    let mut builder =
        Builder { limits, copies_left, automata_bytes: 0, failures: 0, lazy: 0, nodes: Vec::new() };
    if !entries.is_empty() {
        builder.node(entries, &[]);
    }
    Index { nodes: builder.nodes }
}

/// The parts of which one must hold.
fn alternatives(test: &Test, parts: &mut Vec<Test>) {
    match test {
        Test::Any(tests) => tests.iter().for_each(|test| alternatives(test, parts)),
        Test::All(tests) => match all(tests.iter().cloned()) {
            Test::Constant(false) => {}
            any @ Test::Any(_) => alternatives(&any, parts),
            test => parts.push(test),
        },
        Test::Constant(false) => {}
        test => parts.push(test.clone()),
    }
}

struct Builder {
    limits: IndexLimits,
    copies_left: usize,
    automata_bytes: usize,
    failures: usize,
    /// How many patterns had no complete automaton of their own.
    lazy: usize,
    nodes: Vec<Node>,
}

/// Conditions that one key leads to.
type Group = Vec<Entry>;

/// Conditions told apart by a dimension.
#[derive(Default)]
struct Parting {
    exact: BTreeMap<Box<[u8]>, Group>,
    prefixes: BTreeMap<Box<[u8]>, Group>,
    /// By the pattern's address: the compiler makes each pattern once.
    patterns: BTreeMap<usize, PatternGroup>,
    others: Group,
}

struct PatternGroup {
    pattern: Arc<Pattern>,
    /// Each with what the pattern stands for, where that has to be tested after all.
    group: Vec<(Entry, Test)>,
}

impl Builder {
    /// Adds the node of `entries`, which are in order, below nodes that looked up `used`; answers its number.
    fn node(&mut self, entries: Vec<Entry>, used: &[Dimension]) -> u32 {
        let first = entries.first().map_or(u32::MAX, |entry| entry.route);
        let kind = match self.choose(&entries, used) {
            Some((dimension, parting)) => {
                let used = [used, std::slice::from_ref(&dimension)].concat();
                NodeKind::Branch(Box::new(self.branch(dimension, parting, &used)))
            }
            None => {
                entries.iter().for_each(|entry| self.prepare(&entry.rest));
                NodeKind::List(entries.into())
            }
        };
        self.nodes.push(Node { first, kind });
        (self.nodes.len() - 1) as u32
    }

    /// The dimension that leaves the fewest conditions to test, if it leaves noticeably fewer.
    fn choose(&mut self, entries: &[Entry], used: &[Dimension]) -> Option<(Dimension, Parting)> {
        if entries.len() <= self.limits.list_max {
            return None;
        }
        let partings = dimensions(entries).into_iter().filter(|dimension| !used.contains(dimension));
        let best = partings
            .map(|dimension| {
                let parting = Parting::new(entries, &dimension);
                (parting.left(), dimension, parting)
            })
            .min_by_key(|(left, ..)| *left)?;
        let (left, dimension, parting) = best;
        let more = parting.len().saturating_sub(entries.len());
        if left * 4 > entries.len() * 3 || more > self.copies_left {
            return None;
        }
        self.copies_left -= more;
        Some((dimension, parting))
    }

    fn branch(&mut self, dimension: Dimension, mut parting: Parting, used: &[Dimension]) -> Branch {
        let mut texts = Texts::default();
        let mut patterns: Vec<_> = std::mem::take(&mut parting.patterns).into_values().collect();
        patterns.sort_by_key(|pattern| pattern.group.first().map(|(entry, _)| entry.route));
        self.automata(patterns, &mut parting, &mut texts, used);
        for (text, group) in parting.exact {
            let node = self.node(group, used);
            texts.exact.insert(text, node);
        }
        let prefixes: Vec<_> =
            parting.prefixes.into_iter().map(|(prefix, group)| (prefix, self.node(group, used))).collect();
        texts.prefixes =
            Trie::new(&prefixes.iter().map(|(prefix, node)| (&**prefix, *node)).collect::<Vec<_>>());
        let others = (!parting.others.is_empty()).then(|| self.node(parting.others, used));
        Branch { dimension, texts, others }
    }

    /// Puts `patterns` into automata: one if it fits, else those with a literal beginning are looked up by that, and
    /// the others are halved until they fit. What fits nowhere is tested one by one.
    fn automata(
        &mut self,
        patterns: Vec<PatternGroup>,
        parting: &mut Parting,
        texts: &mut Texts,
        used: &[Dimension],
    ) {
        let Err(patterns) = self.automaton(patterns, texts, used) else { return };
        let (by_prefix, patterns): (Vec<_>, Vec<_>) =
            patterns.into_iter().partition(|pattern| pattern.pattern.prefix().len() > 1);
        for PatternGroup { pattern, group } in by_prefix {
            let group = group.into_iter().map(Entry::with);
            parting.prefixes.entry(pattern.prefix().into()).or_default().extend(group);
        }
        let mut todo = vec![patterns];
        while let Some(patterns) = todo.pop() {
            let Err(mut patterns) = self.automaton(patterns, texts, used) else { continue };
            if patterns.len() > 1 && self.failures < self.limits.failures_max {
                let half = patterns.split_off(patterns.len() / 2);
                todo.extend([half, patterns]);
            } else {
                let entries = patterns.into_iter().flat_map(|pattern| pattern.group).map(Entry::with);
                parting.others.extend(entries);
            }
        }
        parting.prefixes.values_mut().chain([&mut parting.others]).for_each(|group| {
            group.sort_by_key(|entry| entry.route);
        });
    }

    /// Puts `patterns` into one automaton, or gives them back.
    fn automaton(
        &mut self,
        patterns: Vec<PatternGroup>,
        texts: &mut Texts,
        used: &[Dimension],
    ) -> Result<(), Vec<PatternGroup>> {
        if patterns.is_empty() {
            return Ok(());
        }
        let left = self.limits.automata_bytes_max.saturating_sub(self.automata_bytes);
        if self.failures >= self.limits.failures_max {
            return Err(patterns);
        }
        let bytes_max = left.min(self.limits.automaton_bytes_max);
        let Some(dense) = Dense::of(patterns.iter().map(|pattern| &*pattern.pattern), bytes_max) else {
            self.failures += 1;
            return Err(patterns);
        };
        self.automata_bytes += dense.bytes();
        let group = |pattern: PatternGroup| pattern.group.into_iter().map(|(entry, _)| entry).collect();
        let numbers = patterns.into_iter().map(|pattern| self.node(group(pattern), used)).collect();
        texts.automata.push(Automaton { dense, numbers });
        Ok(())
    }
}

impl Builder {
    /// Builds what `test` runs, so that no request has to.
    fn prepare(&mut self, test: &Test) {
        patterns(test, &mut |pattern| {
            let bytes_max = if self.lazy < LAZY_MAX { AUTOMATON_BYTES_MAX } else { 0 };
            self.lazy += usize::from(!pattern.prepare(bytes_max));
        });
    }
}

impl Entry {
    /// The entry, with `leaf` left to test.
    fn with((entry, leaf): (Self, Test)) -> Self {
        Self { route: entry.route, rest: all([leaf, entry.rest]) }
    }
}

impl Parting {
    fn new(entries: &[Entry], dimension: &Dimension) -> Self {
        let mut parting = Self::default();
        for entry in entries {
            let Some(ways) = ways(&entry.rest, dimension) else {
                parting.others.push(entry.clone());
                continue;
            };
            for Way { key, leaf, rest } in ways {
                if rest == Test::Constant(false) {
                    continue;
                }
                let entry = Entry { route: entry.route, rest };
                match key {
                    Key::Exact(text) => parting.exact.entry(text).or_default().push(entry),
                    Key::Prefix(prefix) => parting.prefixes.entry(prefix).or_default().push(entry),
                    Key::Pattern(pattern) => {
                        let address = Arc::as_ptr(&pattern) as usize;
                        let empty = || PatternGroup { pattern, group: Vec::new() };
                        parting.patterns.entry(address).or_insert_with(empty).group.push((entry, leaf));
                    }
                }
            }
        }
        parting
    }

    fn groups(&self) -> impl Iterator<Item = usize> {
        let keyed = self.exact.values().chain(self.prefixes.values()).map(Vec::len);
        keyed.chain(self.patterns.values().map(|pattern| pattern.group.len()))
    }

    fn len(&self) -> usize {
        self.groups().sum::<usize>() + self.others.len()
    }

    /// How many conditions may be left to test below one key, and beside it.
    fn left(&self) -> usize {
        self.groups().max().unwrap_or_default() + self.others.len()
    }
}

/// What the conditions of `entries` could be told apart by.
fn dimensions(entries: &[Entry]) -> Vec<Dimension> {
    let mut named = BTreeMap::new();
    entries.iter().for_each(|entry| count_names(&entry.rest, &mut named));
    let mut named: Vec<_> = named.into_values().collect();
    named.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let named = named.into_iter().take(NAMES_MAX).map(|(_, dimension)| dimension);
    [Dimension::Path, Dimension::Method, Dimension::Host].into_iter().chain(named).collect()
}

/// Counts how often each header and each parameter is named.
fn count_names<'t>(test: &'t Test, named: &mut BTreeMap<(bool, &'t str), (usize, Dimension)>) {
    let (key, dimension) = match test {
        Test::All(tests) | Test::Any(tests) => return tests.iter().for_each(|test| count_names(test, named)),
        Test::Header(name, _) => ((false, name.as_str()), Dimension::Header(name.clone())),
        Test::Query(name, _) => ((true, &**name), Dimension::Query(Arc::clone(name))),
        _ => return,
    };
    named.entry(key).or_insert((0, dimension)).0 += 1;
}

/// Visits the patterns that `test` runs.
fn patterns(test: &Test, visit: &mut impl FnMut(&Pattern)) {
    let mut text = |text: &Text| {
        if let Some(pattern) = text.pattern.as_ref().filter(|_| text.kind.runs_a_pattern()) {
            visit(pattern);
        }
    };
    match test {
        Test::All(tests) | Test::Any(tests) => tests.iter().for_each(|test| patterns(test, visit)),
        Test::Not(test) => patterns(test, visit),
        Test::Path(path) => text(path),
        Test::Header(_, value) | Test::Query(_, value) => {
            if let ValueTest::Text(value) = &value.test {
                text(value);
            }
        }
        Test::Grpc(service, method) => [service, method].into_iter().flatten().for_each(text),
        Test::Caller(caller) => caller.identities.iter().for_each(text),
        Test::Constant(_)
        | Test::Method(_)
        | Test::Host(_)
        | Test::Scheme(_)
        | Test::Port(_)
        | Test::Fraction(..) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::matching::{
        CallerMatch, Condition, GrpcMatch, HostMatch, KeyMatch, Multi, PathKind, PathMatch, TextMatch,
        ValueMatch,
    };
    use crate::profile::settings::Share;
    use crate::route::compile::Compiler;
    use crate::route::head::{Caller, RequestHead};
    use crate::stdx::rng::Rng;
    use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
    use proptest::prelude::*;
    use proptest::sample::select;

    fn regex() -> impl Strategy<Value = &'static str> {
        select(vec![
            "/a",
            "/a.*",
            "/[ab]+",
            ".*b",
            "/a/?b?",
            "(?:/a)*",
            "/a{1,3}",
            "/(?:a|b)/.*",
            "/a|/b",
            "",
            ".*",
            "a.*",
            "b",
            "[^/]*/[^/]*",
            "/a/.*/b",
            "/ab.*",
            "(?i)/A",
        ])
    }

    fn word() -> impl Strategy<Value = &'static str> {
        select(vec!["", "a", "b", "ab", "A", "a,b", "1", "7", "b a"])
    }

    fn text() -> impl Strategy<Value = TextMatch> {
        prop_oneof![
            6 => word().prop_map(|text| TextMatch::Exact(text.into())),
            1 => word().prop_map(|text| TextMatch::Prefix(text.into())),
            1 => word().prop_map(|text| TextMatch::Suffix(text.into())),
            1 => word().prop_map(|text| TextMatch::Contains(text.into())),
            1 => regex().prop_map(|text| TextMatch::Regex(text.into())),
        ]
    }

    fn path() -> impl Strategy<Value = Condition> {
        let kinds = [
            PathKind::Exact,
            PathKind::PrefixString,
            PathKind::PrefixElement,
            PathKind::Suffix,
            PathKind::Contains,
        ];
        let literal = (select(kinds.to_vec()), "/?[ab/]{0,4}", prop::bool::weighted(0.1));
        let pattern = (
            select(vec![PathKind::Regex, PathKind::RegexPrefix]),
            regex().prop_map(String::from),
            Just(false),
        );
        prop_oneof![2 => literal, 1 => pattern].prop_map(|(kind, value, ignore_case)| {
            Condition::Path(PathMatch { kind, value: value.into(), ignore_case })
        })
    }

    fn key() -> impl Strategy<Value = KeyMatch> {
        let value = prop_oneof![
            1 => Just(ValueMatch::Present),
            8 => text().prop_map(ValueMatch::Text),
            1 => Just(ValueMatch::Integer(1..=5)),
        ];
        let rare = || prop::bool::weighted(0.1);
        let multi = select(vec![Multi::Any, Multi::First, Multi::Joined]);
        (select(vec!["x", "y"]), value, rare(), rare(), multi).prop_map(
            |(name, value, invert, ignore_case, multi)| KeyMatch {
                name: name.into(),
                value,
                invert,
                ignore_case,
                multi,
            },
        )
    }

    fn leaf() -> impl Strategy<Value = Condition> {
        let host = prop_oneof![
            select(vec!["a.b", "b", "A.b."]).prop_map(|host| HostMatch::Exact(host.into())),
            select(vec!["b", "a.b"]).prop_map(|host| HostMatch::Suffix(host.into())),
        ];
        let methods = prop::collection::vec(select(vec![Method::GET, Method::POST]), 1..3);
        let grpc = (prop::option::of(text()), prop::option::of(text()));
        prop_oneof![
            1 => Just(Condition::Always),
            10 => path(),
            4 => methods.prop_map(Condition::Method),
            4 => key().prop_map(Condition::Header),
            2 => key().prop_map(Condition::Query),
            2 => prop::collection::vec(host, 0..3).prop_map(Condition::Host),
            2 => grpc.prop_map(|(service, method)| Condition::Grpc(GrpcMatch { service, method })),
            1 => Just(Condition::Port(80)),
            1 => Just(Condition::Scheme("https".into())),
            1 => Just(Condition::Caller(CallerMatch { namespaces: vec!["n".into()], ..CallerMatch::default() })),
            1 => Just(Condition::Fraction(Share { numerator: 1, denominator: 2 })),
        ]
    }

    fn condition() -> impl Strategy<Value = Condition> {
        leaf().prop_recursive(3, 12, 4, |inner| {
            let several = prop::collection::vec(inner.clone(), 0..4);
            prop_oneof![
                3 => several.clone().prop_map(Condition::All),
                1 => several.prop_map(Condition::Any),
                1 => inner.prop_map(|part| Condition::Not(Box::new(part))),
            ]
        })
    }

    #[derive(Debug, Clone)]
    struct Sample {
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        caller: Caller,
        seed: u64,
    }

    fn sample() -> impl Strategy<Value = Sample> {
        let method = select(vec![Method::GET, Method::POST, Method::PUT]);
        let host = select(vec!["", "http://a.b", "https://B", "http://x.a.B.:81", "http://.b", "http://xb"]);
        let query = select(vec!["", "?x=a", "?x=b&x=a&y=1", "?y=%61b", "?x=a&x=b", "?x"]);
        let headers = prop::collection::vec((select(vec!["x", "y"]), word()), 0..4);
        let caller = select(vec![None, Some("n".into())]);
        (method, host, "/[ab/]{0,5}", query, headers, caller, any::<u64>()).prop_map(
            |(method, host, path, query, headers, namespace, seed)| Sample {
                method,
                uri: format!("{host}{path}{query}").parse().unwrap(),
                headers: headers
                    .into_iter()
                    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                    .collect(),
                caller: Caller { namespace, ..Caller::default() },
                seed,
            },
        )
    }

    fn small() -> IndexLimits {
        IndexLimits { automaton_bytes_max: 40_000, ..IndexLimits::default() }
    }

    fn check(conditions: &[Condition], samples: &[Sample], limits: IndexLimits) {
        let mut compiler = Compiler::default();
        let tests: Vec<_> = conditions.iter().map(|condition| compiler.compile(condition).unwrap()).collect();
        let index = build(&tests, limits);
        for sample in samples {
            let rng = Rng::seeded(sample.seed);
            let head = RequestHead::of(&sample.method, &sample.uri, &sample.headers)
                .from_caller(&sample.caller)
                .with_rng(&rng);
            let expected = tests.iter().position(|test| test.holds(&head));
            assert_eq!(index.find(&head), expected, "{sample:?}\n{conditions:#?}\n{index:#?}");
        }
    }

    fn few() -> ProptestConfig {
        ProptestConfig { cases: 100, ..ProptestConfig::default() }
    }

    proptest! {
        #![proptest_config(few())]

        #[test]
        fn the_index_finds_what_a_scan_finds(
            conditions in prop::collection::vec(condition(), 0..40),
            samples in prop::collection::vec(sample(), 1..60),
        ) {
            check(&conditions, &samples, IndexLimits { list_max: 0, ..small() });
            check(&conditions, &samples, small());
        }

        #[test]
        fn the_index_finds_it_whatever_is_too_large_for_it(
            conditions in prop::collection::vec(condition(), 0..40),
            samples in prop::collection::vec(sample(), 1..60),
            automaton_bytes_max in select(vec![0, 1_500, 3_000, 6_000]),
            failures_max in 0..6_usize,
            copies_max in 0..3_usize,
        ) {
            let automata_bytes_max = 20_000;
            check(&conditions, &samples, IndexLimits {
                list_max: 1, automaton_bytes_max, automata_bytes_max, failures_max, copies_max,
            });
        }

        #[test]
        fn conditions_on_the_path_alone_overlap_and_the_first_wins(
            conditions in prop::collection::vec(path(), 0..30),
            samples in prop::collection::vec(sample(), 1..60),
        ) {
            check(&conditions, &samples, small());
        }
    }
}
