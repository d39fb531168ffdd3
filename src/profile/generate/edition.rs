//! Floor 1: protobuf files that name an edition, for a parser that knows `proto2` and `proto3` only.

use std::borrow::Cow;
use std::ops::Range;

/// A file with an edition as one of `proto3` in which only its package and services are left, each in its place:
/// editions differ from `proto3` in what fields may be, and nothing but services is asked for here.
pub(crate) fn without_edition(text: &str) -> Cow<'_, str> {
    let tokens = tokens(text);
    let word = |token: &Range<usize>| text.get(token.clone()).unwrap_or_default();
    if tokens.first().map(word) != Some("edition") {
        return Cow::Borrowed(text);
    }
    let (mut kept, mut depth, mut from) = (String::from("syntax=\"proto3\";"), 0_usize, 0);
    let mut end = 0;
    for (at, token) in tokens.iter().enumerate() {
        match word(token) {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        let is_last = depth == 0 && matches!(word(token), ";" | "}");
        let Some(first) = tokens.get(from).filter(|_| is_last) else { continue };
        from = at + 1;
        let statement = text.get(end..token.end).unwrap_or_default();
        end = token.end;
        match word(first) {
            "package" | "service" => kept.push_str(statement),
            _ => kept.extend(statement.chars().map(|c| if c == '\n' { c } else { ' ' })),
        }
    }
    kept.push_str(text.get(end..).unwrap_or_default());
    Cow::Owned(kept)
}

/// Words, texts in quotes and single characters; neither white space nor comments.
fn tokens(text: &str) -> Vec<Range<usize>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some((rest, first)) = text.get(at..).and_then(|rest| Some((rest, rest.chars().next()?))) {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' | '\'' => quoted(rest, first),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let is_comment = rest.starts_with("//") || rest.starts_with("/*");
        if !is_comment && !first.is_whitespace() {
            tokens.push(at..at + length);
        }
        at += length;
    }
    tokens
}

/// How long the text in quotes is with which `rest` begins.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_package_and_services_of_an_edition_are_left_where_they_were() {
        let text = "// edition\nedition = \"2023\"; /* { */\npackage a.b;\nimport option \"x;\\\"}\";\n\
                    export message M { string s = 1 [default = \"}\"]; }\nservice S { rpc A (M) returns (M); }\n";
        let kept = without_edition(text);
        let lines: Vec<&str> = kept.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            ["syntax=\"proto3\";", "/* { */", "package a.b;", "", "", "service S { rpc A (M) returns (M); }"]
        );
        let old = "syntax = \"proto2\";\nmessage edition {}\n";
        assert!(matches!(without_edition(old), Cow::Borrowed(text) if text == old));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "edition[ ={};'\"/*\\\\né\n]{0,40}") {
            without_edition(&text);
        }
    }
}
