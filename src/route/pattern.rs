//! Floor 2: a regular expression over a whole text, run by an automaton that takes no lock.

use crate::route::text::TextKind;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::{primitives::StateID, start, syntax};
use regex_automata::{Anchored, Input, MatchKind, meta};
use regex_syntax::hir::{self, Class, ClassBytes, ClassBytesRange, Hir, HirKind, Look, Repetition};
use std::fmt;
use std::sync::OnceLock;

/// The longest pattern, in bytes. Longer ones in the wild are lists of paths, which belong into `any`.
pub(crate) const PATTERN_BYTES_MAX: usize = 1024;

/// The largest program of one pattern, in bytes: `\d{1,1000}` has 60 KiB, `\p{L}{1000}` would have 25 MiB.
const PROGRAM_BYTES_MAX: usize = 1 << 20;

/// The most nested groups of a pattern; the compiler is recursive.
const NESTING_MAX: u32 = 64;

/// The largest automaton of one pattern, in bytes; larger ones are built while they run, within
/// `LAZY_BYTES_MAX`.
pub(crate) const AUTOMATON_BYTES_MAX: usize = 64 << 10;
const LAZY_BYTES_MAX: usize = 256 << 10;

/// A pattern that must match a whole text, as if written `^(?:…)$`.
///
/// Bytes, not characters: `.` is any byte but a line feed, `\d`, `\w`, `\s` and `\b` are ASCII, as in RE2, so
/// that a text that is not UTF-8 can match. A pattern that names characters (`\p{L}`, `[ä-ö]`) is read with Unicode
/// on; without, `(?i)` is for ASCII.
#[derive(Debug)]
pub(crate) struct Pattern {
    hir: Hir,
    program: OnceLock<Program>,
}

enum Program {
    Dense(Box<Dense>),
    /// For the few whose automaton is too large; its caches are pooled by `regex`.
    Lazy(meta::Regex),
    /// Not even that could be built, which the size check of [`Pattern::parse`] rules out.
    Never,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dense(_) => "Dense",
            Self::Lazy(_) => "Lazy",
            Self::Never => "Never",
        })
    }
}

impl Pattern {
    /// Reads `text`, which must match a whole subject, or with [`TextKind::RegexPrefix`] the beginning of one; says
    /// how large its program is.
    ///
    /// # Errors
    /// The text is no pattern, is longer than [`PATTERN_BYTES_MAX`], or its program is larger than 1 MiB.
    pub(crate) fn parse(kind: TextKind, text: &str, ignore_case: bool) -> Result<(Self, usize), String> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(format!("is a pattern of {} bytes, more than {PATTERN_BYTES_MAX}", text.len()));
        }
        let config = syntax::Config::new()
            .utf8(false)
            .unicode(false)
            .case_insensitive(ignore_case)
            .nest_limit(NESTING_MAX);
        let parse = |config| match syntax::parse_with(text, config) {
            Ok(hir) => Ok(hir),
            Err(error) => Err((needs_unicode(&error), reason(&error))),
        };
        let hir = match parse(&config) {
            Err((true, _)) => parse(&config.unicode(true)),
            parsed => parsed,
        };
        let hir = hir.map_err(|(_, reason)| format!("is not a pattern ({text:?}: {reason})"))?;
        let pattern = match kind {
            TextKind::RegexPrefix => Self::whole(vec![hir, anything()]),
            _ => Self::whole(vec![hir]),
        };
        let nfa = program(&[&pattern.hir], PROGRAM_BYTES_MAX).ok_or_else(|| {
            format!("is a pattern whose program is larger than {} KiB ({text:?})", PROGRAM_BYTES_MAX >> 10)
        })?;
        Ok((pattern, nfa.memory_usage()))
    }

    /// The pattern that compares with `text` as `kind` does, for a kind that is no pattern in itself.
    pub(crate) fn comparing(kind: TextKind, text: &str, ignore_case: bool) -> Self {
        let text = literal(text, ignore_case);
        Self::whole(match kind {
            TextKind::Exact | TextKind::Regex | TextKind::RegexPrefix => vec![text],
            TextKind::Prefix => vec![text, anything()],
            TextKind::Suffix => vec![anything(), text],
            TextKind::Contains => vec![anything(), text, anything()],
            TextKind::Elements => {
                let more = Hir::concat(vec![Hir::literal(*b"/"), anything()]);
                vec![text, Hir::alternation(vec![Hir::empty(), more])]
            }
        })
    }

    fn whole(parts: Vec<Hir>) -> Self {
        let hir = Hir::concat(vec![Hir::look(Look::Start), Hir::concat(parts), Hir::look(Look::End)]);
        Self { hir, program: OnceLock::new() }
    }

    /// The only text that matches, if there is but one.
    pub(crate) fn only(&self) -> Option<&[u8]> {
        let (text, after) = self.beginning();
        let ended = |kind: &HirKind| matches!(kind, HirKind::Look(Look::End));
        (!text.is_empty() && after.iter().all(|part| ended(part.kind()))).then_some(text)
    }

    /// What every text that matches begins with; often nothing.
    pub(crate) fn prefix(&self) -> &[u8] {
        self.beginning().0
    }

    /// The literal that the pattern begins with, and what follows.
    fn beginning(&self) -> (&[u8], &[Hir]) {
        let HirKind::Concat(parts) = self.hir.kind() else { return (&[], &[]) };
        let start = parts.iter().take_while(|part| matches!(part.kind(), HirKind::Look(Look::Start))).count();
        match parts[start..].split_first() {
            Some((first, after)) => match first.kind() {
                HirKind::Literal(literal) => (&literal.0, after),
                _ => (&[], &parts[start..]),
            },
            None => (&[], &[]),
        }
    }

    /// Builds what [`matches`](Self::matches) runs, so that no request has to: a complete automaton if it fits into
    /// `bytes_max`, which may be 0 to save the time of trying. Says whether it is complete.
    pub(crate) fn prepare(&self, bytes_max: usize) -> bool {
        matches!(self.program(bytes_max), Program::Dense(_))
    }

    fn program(&self, bytes_max: usize) -> &Program {
        self.program.get_or_init(|| {
            if let Some(dense) = Dense::build(&[&self.hir], bytes_max) {
                return Program::Dense(Box::new(dense));
            }
            let config = meta::Config::new()
                .utf8_empty(false)
                .nfa_size_limit(None)
                .hybrid_cache_capacity(LAZY_BYTES_MAX)
                .dfa(false)
                .onepass(false)
                .backtrack(false)
                .which_captures(WhichCaptures::None);
            meta::Builder::new()
                .configure(config)
                .build_from_hir(&self.hir)
                .map_or(Program::Never, Program::Lazy)
        })
    }

    /// Whether it matches the whole of `text`.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        match self.program(AUTOMATON_BYTES_MAX) {
            Program::Dense(dense) => dense.end(text).is_some(),
            Program::Lazy(regex) => regex.is_match(Input::new(text).anchored(Anchored::Yes)),
            Program::Never => false,
        }
    }
}

/// A complete automaton for one or many patterns.
pub(crate) struct Dense {
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
}

impl fmt::Debug for Dense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dense").field("bytes", &self.dfa.memory_usage()).finish_non_exhaustive()
    }
}

impl Dense {
    /// The automaton of `patterns`, if it fits into `bytes_max`.
    pub(crate) fn of<'a>(patterns: impl Iterator<Item = &'a Pattern>, bytes_max: usize) -> Option<Self> {
        Self::build(&patterns.map(|pattern| &pattern.hir).collect::<Vec<_>>(), bytes_max)
    }

    fn build(hirs: &[&Hir], bytes_max: usize) -> Option<Self> {
        let nfa = program(hirs, bytes_max)?;
        let config = dense::Config::new()
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .accelerate(false)
            .specialize_start_states(false)
            .dfa_size_limit(Some(bytes_max))
            .determinize_size_limit(Some(bytes_max / 2));
        let dfa = dense::Builder::new().configure(config).build_from_nfa(&nfa).ok()?;
        let start = dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        Some(Self { dfa, start })
    }

    /// The state after the whole of `text`, if any pattern matches it.
    #[inline]
    pub(crate) fn end(&self, text: &[u8]) -> Option<StateID> {
        let mut state = self.start;
        for &byte in text {
            state = self.dfa.next_state(state, byte);
            if self.dfa.is_special_state(state)
                && (self.dfa.is_dead_state(state) || self.dfa.is_quit_state(state))
            {
                return None;
            }
        }
        let state = self.dfa.next_eoi_state(state);
        self.dfa.is_match_state(state).then_some(state)
    }
}

impl Dense {
    /// The patterns that match in the state `end`, in ascending order.
    #[inline]
    pub(crate) fn matching(&self, end: StateID) -> impl Iterator<Item = usize> {
        (0..self.dfa.match_len(end)).map(move |index| self.dfa.match_pattern(end, index).as_usize())
    }

    /// How large it is.
    pub(crate) fn bytes(&self) -> usize {
        self.dfa.memory_usage()
    }
}

fn program(hirs: &[&Hir], bytes_max: usize) -> Option<NFA> {
    let config = thompson::Config::new()
        .utf8(false)
        .nfa_size_limit(Some(bytes_max))
        .which_captures(WhichCaptures::None);
    thompson::Compiler::new().configure(config).build_many_from_hir(hirs).ok()
}

/// Any bytes at all.
fn anything() -> Hir {
    let any = ClassBytes::new([ClassBytesRange::new(0, 255)]);
    Hir::repetition(Repetition {
        min: 0,
        max: None,
        greedy: true,
        sub: Box::new(Hir::class(Class::Bytes(any))),
    })
}

/// This text, with or without its ASCII case.
fn literal(text: &str, ignore_case: bool) -> Hir {
    if !ignore_case {
        return Hir::literal(text.as_bytes());
    }
    let folded = text.bytes().map(|byte| {
        let mut class = ClassBytes::new([ClassBytesRange::new(byte, byte)]);
        class.case_fold_simple();
        Hir::class(Class::Bytes(class))
    });
    Hir::concat(folded.collect())
}

fn needs_unicode(error: &regex_syntax::Error) -> bool {
    matches!(error, regex_syntax::Error::Translate(error)
        if matches!(error.kind(), hir::ErrorKind::UnicodeNotAllowed))
}

fn reason(error: &regex_syntax::Error) -> String {
    match error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::text::Text;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(TextKind::Regex, text, false).unwrap().0
    }

    fn check(text: &str, yes: &[&str], no: &[&str]) {
        let pattern = pattern(text);
        for subject in yes {
            assert!(pattern.matches(subject.as_bytes()), "{text} should match {subject}");
        }
        for subject in no {
            assert!(!pattern.matches(subject.as_bytes()), "{text} should not match {subject}");
        }
    }

    #[test]
    fn a_pattern_covers_the_whole_text_whatever_is_in_it() {
        check("/a|/b", &["/a", "/b"], &["/a/x", "/x/b", "", "/A"]);
        check("^/a$", &["/a"], &["/a/b", "x/a"]);
        check("(?x) /a # said", &["/a"], &["/ab"]);
        check("", &[""], &["x"]);
        check(".*", &["", "abc", "ä"], &["a\nb"]);
        check("[^/]*", &["abc", "ä"], &["a/b"]);
        check("a\\$", &["a$"], &["a"]);
        check("(?i)/A", &["/a", "/A"], &["/b"]);
        check("\\bx\\b", &["x"], &["xx"]);
    }

    #[test]
    fn bytes_match_and_named_characters_switch_unicode_on() {
        assert!(pattern("..").matches(b"\xff\xfe"));
        check("\\d", &["1"], &["\u{0661}"]);
        check("ä", &["ä"], &["a"]);
        check("[ä-ö]", &["ö"], &["o"]);
        check("\\p{Greek}+", &["αβ"], &["ab"]);
        check("(?i)äA", &["äa", "äA"], &["ÄA"]);
    }

    #[test]
    fn a_beginning_is_enough_where_asked() {
        let pattern = Pattern::parse(TextKind::RegexPrefix, "/api", false).unwrap().0;
        assert!(pattern.matches(b"/api/x") && pattern.matches(b"/api") && pattern.matches(b"/api\n\xff"));
        assert!(!pattern.matches(b"/ap") && !pattern.matches(b"x/api"));
    }

    #[test]
    fn what_is_no_pattern_or_too_large_is_refused_in_words() {
        let refuse = |text: &str| Pattern::parse(TextKind::Regex, text, false).unwrap_err();
        assert_eq!(refuse("("), "is not a pattern (\"(\": unclosed group)");
        assert!(refuse("a)|(b").contains("unopened group"));
        assert!(refuse("(?=x)").contains("look-around"));
        assert!(refuse(&"a".repeat(1025)).contains("1025 bytes"));
        assert!(refuse("(\\p{L}{100}){100}").contains("larger than 1024 KiB"));
        assert!(refuse(&format!("{}{}", "(".repeat(100), ")".repeat(100))).contains("is not a pattern"));
    }

    #[test]
    fn a_pattern_whose_automaton_explodes_still_matches() {
        let pattern = pattern("(?:a|b)*a(?:a|b){24}");
        assert!(matches!(pattern.program(AUTOMATON_BYTES_MAX), Program::Lazy(_)));
        let mut text = vec![b'b'; 200];
        assert!(!pattern.matches(&text));
        text[200 - 25] = b'a';
        assert!(pattern.matches(&text));
    }

    #[test]
    fn a_pattern_without_choice_is_known_as_a_text() {
        assert_eq!(
            pattern("/emojivoto\\.v1\\.EmojiService/ListAll").only(),
            Some(&b"/emojivoto.v1.EmojiService/ListAll"[..])
        );
        assert_eq!(pattern("^/a$").only(), Some(&b"/a"[..]));
        assert_eq!(pattern("/a.c").only(), None);
        assert_eq!(pattern("(?i)/a").only(), None);
    }

    #[test]
    fn comparisons_as_patterns_compare_alike() {
        let check = |kind, text: &str, ignore_case, subject: &str| {
            let pattern = Pattern::comparing(kind, text, ignore_case);
            let text = Text { kind, text: text.into(), ignore_case, pattern: None };
            assert_eq!(
                pattern.matches(subject.as_bytes()),
                text.matches(subject.as_bytes()),
                "{text:?} {subject}"
            );
        };
        for kind in [TextKind::Exact, TextKind::Prefix, TextKind::Suffix, TextKind::Elements] {
            for ignore_case in [false, true] {
                for subject in ["", "/a", "/A", "/a/", "/a/b", "/ab", "x/a", "/b"] {
                    check(kind, "/a", ignore_case, subject);
                    check(kind, "", ignore_case, subject);
                }
            }
        }
        assert!(Pattern::comparing(TextKind::Contains, "bC", true).matches(b"aBcd\n"));
        assert!(!Pattern::comparing(TextKind::Contains, "bC", false).matches(b"aBcd"));
    }
}
