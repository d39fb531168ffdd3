//! Floor 1: says whether a pattern can be used, before anything matches with it.

use regex_automata::nfa::thompson;
use regex_automata::util::syntax;

/// The longest pattern, in bytes: 1,024, as Gateway API has it for paths and headers.
pub const BYTES_MAX: usize = 1_024;

/// The largest compiled pattern: 1 MiB. Ten times what the longest sensible path pattern needs; a repetition of
/// repetitions (`(a{100}){100}`) goes beyond it.
pub const PROGRAM_BYTES_MAX: usize = 1 << 20;

/// How deep a pattern may nest, since reading it is recursive.
pub const NEST_MAX: u32 = 64;

/// Checks a pattern by itself, in the syntax that routes compile: bytes, with `\d`, `\w` and `.` in ASCII unless the
/// pattern names characters beyond it. Only its program is built, which is all that can be too large.
///
/// # Errors
///
/// What the pattern must be, to stand behind "must be".
pub fn check(pattern: &str) -> Result<(), String> {
    if pattern.len() > BYTES_MAX {
        return Err(format!("a pattern of {BYTES_MAX} bytes at most"));
    }
    let parse = |unicode| {
        let config = syntax::Config::new().utf8(false).unicode(unicode).nest_limit(NEST_MAX);
        syntax::parse_with(pattern, &config).map_err(|error| reason(&error))
    };
    let hir = parse(false).or_else(|_| parse(true));
    let hir = hir.map_err(|error: String| format!("a pattern in regex syntax ({error})"))?;
    let config = thompson::Config::new()
        .utf8(false)
        .nfa_size_limit(Some(PROGRAM_BYTES_MAX))
        .which_captures(thompson::WhichCaptures::None);
    match thompson::Compiler::new().configure(config).build_from_hir(&hir) {
        Ok(_) => Ok(()),
        Err(_) => Err("a pattern that compiles to 1 MiB at most".to_owned()),
    }
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

    #[test]
    fn patterns_are_bounded_and_whole() {
        for good in
            ["/a", "/a|/b", "^/a$", "", r"/\d+", "(?i)/a", "[^/]*", "é", r"\p{L}", &"a".repeat(BYTES_MAX)]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = "a".repeat(BYTES_MAX + 1);
        for bad in
            ["(", "a)|(b", r"(a)\1", "(?=a)", "a{100000}", "((a{100}){100}){100}", &long, &"(".repeat(70)]
        {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(check("("), Err("a pattern in regex syntax (unclosed group)".to_owned()));
    }
}
