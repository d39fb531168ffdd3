//! Floor 1: says whether a pattern can be used, before anything matches with it.

use regex::bytes::RegexBuilder;

/// The longest pattern, in bytes: 1,024, as Gateway API has it for paths and headers.
pub const BYTES_MAX: usize = 1_024;

/// The largest compiled pattern: 1 MiB. Ten times what the longest sensible path pattern needs; a repetition of
/// repetitions (`(a{100}){100}`) goes beyond it.
pub const PROGRAM_BYTES_MAX: usize = 1 << 20;

/// How deep a pattern may nest, since reading it is recursive.
pub const NEST_MAX: u32 = 64;

/// Checks a pattern by itself, in the syntax that routes compile: bytes, with `\d`, `\w` and `.` in ASCII unless the
/// pattern names characters beyond it.
///
/// # Errors
///
/// What the pattern must be, to stand behind "must be".
pub fn check(pattern: &str) -> Result<(), String> {
    if pattern.len() > BYTES_MAX {
        return Err(format!("a pattern of {BYTES_MAX} bytes at most"));
    }
    let build = |unicode| {
        let mut builder = RegexBuilder::new(pattern);
        builder.unicode(unicode).size_limit(PROGRAM_BYTES_MAX).nest_limit(NEST_MAX).build()
    };
    build(false).or_else(|_| build(true)).map(|_| ()).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "a pattern that compiles to 1 MiB at most".to_owned(),
        other => format!("a pattern in regex syntax ({})", reason(&other.to_string())),
    })
}

/// The last line of the parser's report is the reason; the others draw the place.
fn reason(report: &str) -> String {
    let line = report.lines().last().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
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
