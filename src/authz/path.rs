//! Floor 2: decides whether a path can be read in one way only.
//!
//! Rules compare paths as they stand; applications decode, join and normalise them, each in its own way. A path that
//! some application reads as another one is refused before any rule is asked: then the policy and the application
//! cannot disagree, and nothing is rewritten.

use std::fmt;

/// Why a path can be read in more than one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ambiguity {
    /// It does not begin with `/` (nor is it `*`).
    NoSlash,
    /// It has a byte that may not stand in a path: a control, a space, one beyond ASCII.
    Byte,
    /// A backslash, which some read as a slash.
    Backslash,
    /// A `;`, which some read as the start of a parameter, and cut off.
    Parameter,
    /// A segment is empty: `//`.
    EmptySegment,
    /// A segment is `.` or `..`.
    DotSegment,
    /// A `%` that two hexadecimal digits do not follow.
    BadEncoding,
    /// What is encoded could stand for itself, or means something that the encoding hides.
    NeedlessEncoding,
    /// What is encoded is no UTF-8.
    NotUtf8,
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSlash => "the path does not begin with a slash",
            Self::Byte => "the path has a control, a space or a byte beyond ascii; encode it",
            Self::Backslash => "the path has a backslash; write a slash",
            Self::Parameter => "the path has a parameter after `;`; leave it out",
            Self::EmptySegment => "the path has an empty segment; write one slash",
            Self::DotSegment => "the path has a segment `.` or `..`; resolve it",
            Self::BadEncoding => {
                "the path has a `%` without two hexadecimal digits; write `%25` in the query only"
            }
            Self::NeedlessEncoding => {
                "the path encodes a character that may not be encoded; write it plainly"
            }
            Self::NotUtf8 => "the path encodes bytes that are no utf-8",
        })
    }
}

/// Whether `path` (without the query) can be read in one way only. `*`, the target of `OPTIONS *`, can.
///
/// # Errors
/// The first ambiguity.
pub fn check(path: &str) -> Result<(), Ambiguity> {
    if path == "*" {
        return Ok(());
    }
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(Ambiguity::NoSlash);
    }
    let mut encoded = false;
    let mut segment_at = 1;
    for (at, byte) in bytes.iter().enumerate().skip(1) {
        match byte {
            b'/' => {
                segment(bytes.get(segment_at..at).unwrap_or_default())?;
                segment_at = at + 1;
            }
            b'%' => encoded = true,
            b'\\' => return Err(Ambiguity::Backslash),
            b';' => return Err(Ambiguity::Parameter),
            0x21..=0x7e => {}
            0..=0x20 | 0x7f.. => return Err(Ambiguity::Byte),
        }
    }
    let last = bytes.get(segment_at..).unwrap_or_default();
    // A trailing slash leaves an empty last segment, which is a path of its own and not an alias.
    if !last.is_empty() {
        segment(last)?;
    }
    if encoded { check_encoding(bytes) } else { Ok(()) }
}

fn segment(segment: &[u8]) -> Result<(), Ambiguity> {
    match segment {
        b"" => Err(Ambiguity::EmptySegment),
        b"." | b".." => Err(Ambiguity::DotSegment),
        _ => Ok(()),
    }
}

fn check_encoding(bytes: &[u8]) -> Result<(), Ambiguity> {
    let mut beyond_ascii = Vec::new();
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            utf8(&mut beyond_ascii)?;
            continue;
        }
        let (Some(high), Some(low)) = (rest.first().and_then(hex), rest.get(1).and_then(hex)) else {
            return Err(Ambiguity::BadEncoding);
        };
        rest = rest.get(2..).unwrap_or_default();
        match high * 16 + low {
            byte @ 0x80.. => {
                beyond_ascii.push(byte);
                continue;
            }
            // Unreserved characters (RFC 3986 §2.3) mean the same encoded; the others change what a path is.
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                return Err(Ambiguity::NeedlessEncoding);
            }
            b'/' | b'\\' | b'%' | b';' | 0..=0x1f | 0x7f => return Err(Ambiguity::NeedlessEncoding),
            0x20..=0x7e => {}
        }
        utf8(&mut beyond_ascii)?;
    }
    utf8(&mut beyond_ascii)
}

/// Whether the run of encoded bytes that ends here is UTF-8 (which overlong forms are not).
fn utf8(run: &mut Vec<u8>) -> Result<(), Ambiguity> {
    if !run.is_empty() {
        std::str::from_utf8(run).map_err(|_| Ambiguity::NotUtf8)?;
        run.clear();
    }
    Ok(())
}

fn hex(byte: &u8) -> Option<u8> {
    char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether the path has encodings in lower-case digits, which mean the same as in upper case and are other bytes.
pub(crate) fn has_lower_case_encoding(path: &str) -> bool {
    let lower = |digit: &u8| digit.is_ascii_lowercase();
    path.as_bytes().windows(3).any(|window| matches!(window, [b'%', high, low] if lower(high) || lower(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_one_reading_pass() {
        for path in [
            "/",
            "*",
            "/a",
            "/a/",
            "/a/b",
            "/a.b/..c/.d",
            "/a%20b",
            "/%C3%A9",
            "/%c3%a9",
            "/a:b@c!$&'()*+,=~-_",
            "/%3F%23",
            "/...",
            "/a%2Bb",
            "/emojivoto.v1.VotingService/VoteDoughnut",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        use Ambiguity as A;
        for (path, why) in [
            ("", A::NoSlash),
            ("a", A::NoSlash),
            ("**", A::NoSlash),
            ("//", A::EmptySegment),
            ("/a//b", A::EmptySegment),
            ("/.", A::DotSegment),
            ("/..", A::DotSegment),
            ("/a/./b", A::DotSegment),
            ("/a/../b", A::DotSegment),
            ("/a/..;/b", A::Parameter),
            ("/a;x=1", A::Parameter),
            ("/a\\b", A::Backslash),
            ("/a b", A::Byte),
            ("/a\tb", A::Byte),
            ("/a\0b", A::Byte),
            ("/é", A::Byte),
            ("/%2e%2e/a", A::NeedlessEncoding),
            ("/a%2fb", A::NeedlessEncoding),
            ("/a%5Cb", A::NeedlessEncoding),
            ("/%2561", A::NeedlessEncoding),
            ("/%41", A::NeedlessEncoding),
            ("/%3b", A::NeedlessEncoding),
            ("/%00", A::NeedlessEncoding),
            ("/%0d%0a", A::NeedlessEncoding),
            ("/%", A::BadEncoding),
            ("/%4", A::BadEncoding),
            ("/%4g", A::BadEncoding),
            ("/%+1", A::BadEncoding),
            ("/%u0041", A::BadEncoding),
            ("/%ff", A::NotUtf8),
            ("/%c0%af", A::NotUtf8),
            ("/%e2%82", A::NotUtf8),
            ("/%c3x%a9", A::NotUtf8),
            ("/%ed%a0%80", A::NotUtf8),
        ] {
            assert_eq!(check(path), Err(why), "{path}");
        }
    }

    /// Against a slow reading: what passes is its own normal form under decoding, merging and dot removal.
    #[test]
    fn what_passes_has_itself_as_only_reading() {
        let alphabet = [b'/', b'.', b'%', b'2', b'f', b'5', b'a', b';', b'\\'];
        let mut path = vec![b'/'];
        let mut count = 0u32;
        for seed in 0..alphabet.len().pow(5) {
            path.truncate(1);
            let mut left = seed;
            for _ in 0..5 {
                path.push(alphabet[left % alphabet.len()]);
                left /= alphabet.len();
            }
            let text = std::str::from_utf8(&path).unwrap();
            if check(text).is_ok() {
                count += 1;
                assert_eq!(normal_form(text), decoded(text), "{text}");
            }
        }
        assert!(count > 1000, "{count}");
    }

    /// Decodes until nothing changes.
    fn decoded(path: &str) -> String {
        let mut text = path.to_owned();
        while let Some(at) = text.find('%') {
            let Some(byte) = text.get(at + 1..at + 3).and_then(|two| u8::from_str_radix(two, 16).ok()) else {
                break;
            };
            text.replace_range(at..at + 3, &char::from(byte).to_string());
        }
        text
    }

    /// Decodes, turns backslashes, cuts parameters, merges slashes, resolves dots.
    fn normal_form(path: &str) -> String {
        let text = decoded(path);
        let mut kept: Vec<&str> = Vec::new();
        let text = text.replace('\\', "/");
        for segment in text.split('/') {
            match segment.split(';').next().unwrap() {
                "" | "." => {}
                ".." => drop(kept.pop()),
                other => kept.push(other),
            }
        }
        let slash = if text.ends_with('/') && !kept.is_empty() { "/" } else { "" };
        format!("/{}{slash}", kept.join("/"))
    }

    #[test]
    fn lower_case_encodings_are_seen() {
        assert!(
            has_lower_case_encoding("/%c3%A9")
                && has_lower_case_encoding("/%3f")
                && !has_lower_case_encoding("/%C3f")
        );
    }
}
