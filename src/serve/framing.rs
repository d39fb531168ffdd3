//! Floor 2: follows the framing of HTTP/1.1 requests, to find a head with both `Content-Length` and
//! `Transfer-Encoding`.
//!
//! RFC 9112 §6.3 lets a server refuse such a request, and one that stands where proxies may stand must: the two
//! ends could see different requests. hyper drops the length in silence, so the raw bytes are looked at before.
//! Whatever else is malformed is left to hyper, which refuses it and closes; a disagreement with hyper after
//! that is without effect.

/// The longest line that is looked at; no honest length or coding is longer.
const LINE_MAX: usize = 1024;

/// Where in a connection's bytes we are.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    head: Head,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a request's first byte.
    Between,
    RequestLine,
    Fields,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// What follows is not ours to read: an upgrade, or bytes that hyper will refuse.
    Beyond,
}

#[derive(Debug, Default)]
struct Head {
    length: Option<u64>,
    has_length: bool,
    chunked: bool,
    has_coding: bool,
    upgrade: bool,
}

/// What a piece of a connection's bytes holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// Nothing wrong.
    Fine,
    /// The blank line that begins at this offset ends an ambiguous head; 0 also when it began before the piece.
    Ambiguous(usize),
}

impl Framing {
    pub(crate) fn new() -> Self {
        Self { state: State::Between, line: Vec::new(), head: Head::default() }
    }

    /// Whether a head has begun and not ended.
    pub(crate) fn in_head(&self) -> bool {
        matches!(self.state, State::RequestLine | State::Fields)
    }

    /// Reads the next piece.
    pub(crate) fn scan(&mut self, piece: &[u8]) -> Scan {
        let mut rest = piece;
        while !rest.is_empty() {
            match self.state {
                State::Beyond => return Scan::Fine,
                State::Body(left) | State::ChunkData(left) => {
                    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    rest = &rest[skipped..];
                    self.skip(left - skipped as u64);
                }
                State::Between
                | State::RequestLine
                | State::Fields
                | State::ChunkSize
                | State::ChunkEnd
                | State::Trailers => {
                    let begin = piece.len() - rest.len();
                    if self.state == State::Between {
                        self.state = State::RequestLine;
                    }
                    let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
                        self.remember(rest);
                        return Scan::Fine;
                    };
                    let (line, after) = rest.split_at(end + 1);
                    rest = after;
                    if self.line(line) {
                        self.state = State::Beyond;
                        return Scan::Ambiguous(begin);
                    }
                }
            }
        }
        Scan::Fine
    }

    fn skip(&mut self, left: u64) {
        self.state = match self.state {
            State::Body(_) if left == 0 => State::Between,
            State::Body(_) => State::Body(left),
            State::ChunkData(_) if left == 0 => State::ChunkEnd,
            _ => State::ChunkData(left),
        };
    }

    fn remember(&mut self, part: &[u8]) {
        let room = LINE_MAX.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    /// Takes a line in; true if it ends an ambiguous head.
    fn line(&mut self, end: &[u8]) -> bool {
        if self.line.is_empty() {
            return self.whole_line(end);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(end);
        let ambiguous = self.whole_line(&line);
        line.clear();
        self.line = line;
        ambiguous
    }

    fn whole_line(&mut self, line: &[u8]) -> bool {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.state {
            // Empty lines before a request are skipped.
            State::RequestLine if line.is_empty() => self.state = State::Between,
            State::RequestLine => {
                self.head = Head { upgrade: line.starts_with(b"CONNECT "), ..Head::default() };
                self.state = State::Fields;
            }
            State::Fields if line.is_empty() => return self.end_head(),
            State::Fields => self.head.field(line),
            State::ChunkSize => {
                self.state = match chunk_size(line) {
                    Some(0) => State::Trailers,
                    Some(size) => State::ChunkData(size),
                    None => State::Beyond,
                }
            }
            State::ChunkEnd => self.state = if line.is_empty() { State::ChunkSize } else { State::Beyond },
            State::Trailers if line.is_empty() => self.state = State::Between,
            State::Trailers | State::Between | State::Body(_) | State::ChunkData(_) | State::Beyond => {}
        }
        false
    }

    fn end_head(&mut self) -> bool {
        let head = &self.head;
        self.state = match (head.upgrade, head.has_coding, head.has_length) {
            (_, true, true) => return true,
            // If the upgrade is declined the connection ends with the response (`serve/http.rs`).
            (true, ..) => State::Beyond,
            (false, true, false) if head.chunked => State::ChunkSize,
            (false, true, false) => State::Beyond,
            (false, false, _) => match head.length {
                Some(0) => State::Between,
                Some(length) => State::Body(length),
                None if head.has_length => State::Beyond,
                None => State::Between,
            },
        };
        false
    }
}

impl Head {
    fn field(&mut self, line: &[u8]) {
        // All names looked at begin with one of three letters; most fields do not.
        if !matches!(line.first().map(u8::to_ascii_lowercase), Some(b'c' | b't' | b'u')) {
            return;
        }
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { return };
        let (name, value) = line.split_at(colon);
        let value = value[1..].trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            self.has_length = true;
            self.length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.has_coding = true;
            let last = value.rsplit(|&byte| byte == b',').next().unwrap_or_default();
            self.chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        }
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let digits = std::str::from_utf8(&line[..digits]).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans in pieces of every size and gives the offset of the ambiguous blank line, if any.
    fn check(bytes: &str, expected: Option<usize>) {
        for size in 1..=bytes.len() {
            let mut framing = Framing::new();
            let mut found = None;
            for (at, piece) in bytes.as_bytes().chunks(size).enumerate() {
                if let Scan::Ambiguous(offset) = framing.scan(piece) {
                    found = Some(at * size + offset);
                    break;
                }
            }
            match (expected, found) {
                (Some(expected), Some(found)) => {
                    // A blank line split between two pieces is found at the second.
                    assert!(found == expected || found == expected + 1, "{bytes:?} by {size}: {found}");
                }
                (expected, found) => assert_eq!(found, expected, "{bytes:?} in pieces of {size}"),
            }
        }
    }

    #[test]
    fn both_framings_in_one_head_are_found_in_any_order_and_pieces() {
        let bad = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n";
        check(&format!("{bad}\r\n0\r\n\r\n"), Some(bad.len()));
        let bad = "POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\nCONTENT-LENGTH:4\r\nHost: a\r\n";
        check(&format!("{bad}\r\n0\r\n\r\n"), Some(bad.len()));
        let bad = "POST / HTTP/1.1\nContent-Length: 4\nTransfer-Encoding: chunked\n";
        check(&format!("{bad}\n0\n\n"), Some(bad.len()));
    }

    #[test]
    fn a_later_request_is_found_behind_any_body() {
        let bad = "POST /b HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n";
        for before in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n\r\n\r\nx",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nab\r\nc\r\n0\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        ] {
            check(&format!("{before}{bad}\r\n"), Some(before.len() + bad.len()));
        }
    }

    #[test]
    fn honest_bytes_bodies_and_tunnels_are_left_alone() {
        check(
            "POST / HTTP/1.1\r\nContent-Length: 60\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
            None,
        );
        let inner = "POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(&format!("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n{inner}"), None);
        check(&format!("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n{inner}"), None);
        check("POST / HTTP/1.1\r\nX-Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None);
    }

    #[test]
    fn memory_is_bounded_and_a_head_is_known_to_be_under_way() {
        let mut framing = Framing::new();
        assert!(!framing.in_head());
        for _ in 0..100 {
            assert_eq!(framing.scan(&[b'x'; 1000]), Scan::Fine);
        }
        assert!(framing.in_head() && framing.line.capacity() <= 2 * LINE_MAX);
        let mut framing = Framing::new();
        assert_eq!(framing.scan(b"GET / HTTP/1.1\r\n\r\n"), Scan::Fine);
        assert!(!framing.in_head());
        assert_eq!(framing.scan(b"G"), Scan::Fine);
        assert!(framing.in_head());
    }
}
