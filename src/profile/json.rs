//! Floor 1: JSON as a tree of nodes with places.
//!
//! YAML readers do not read all JSON: they refuse surrogate pairs and long keys. This one reads RFC 8259 and
//! nothing more, keeps numbers as text, and reports a key that stands twice.

use crate::profile::invalid::Fault;
use crate::profile::invalid::Place;
use crate::profile::node;
use crate::profile::node::Document;
use crate::profile::node::Entry;
use crate::profile::node::Node;
use crate::profile::node::Scalar;
use crate::profile::node::Value;
use std::collections::BTreeMap;

/// Reads the JSON values of a text, one after the other.
///
/// # Errors
///
/// The first fault of syntax. A key that stands twice is no fault of syntax: it stands in the document.
pub(crate) fn read(text: &str) -> Result<Vec<Document>, Fault> {
    let mut parser = Parser { rest: text, line: 1, column: 1, counted: text, nodes: 0, faults: Vec::new() };
    let mut documents = Vec::new();
    loop {
        parser.space();
        if parser.rest.is_empty() {
            return Ok(documents);
        }
        let root = parser.value(0)?;
        let faults = std::mem::take(&mut parser.faults);
        let end = root.place;
        documents.push(Document { root, index: documents.len(), faults });
        if documents.len() >= node::DOCUMENTS_MAX {
            parser.space();
            if !parser.rest.is_empty() {
                let faults = vec![node::too_many_documents(end)];
                documents.push(Document { root: Node::null(end), index: documents.len(), faults });
            }
            return Ok(documents);
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    /// The column of the first character of `counted`, which lies in the present line and not behind `rest`.
    column: usize,
    counted: &'a str,
    nodes: usize,
    faults: Vec<Fault>,
}

impl<'a> Parser<'a> {
    /// The present place. Counts on from the last one that was asked, or a long line would cost its square.
    fn place(&mut self) -> Place {
        let passed = self.counted.len() - self.rest.len();
        self.column += self.counted.get(..passed).unwrap_or_default().chars().count();
        self.counted = self.rest;
        node::place(self.line, self.column)
    }

    fn fault(&mut self, expected: &str) -> Fault {
        let found = self.rest.chars().next().map_or("the end".to_owned(), |c| format!("{c:?}"));
        Fault::rejected(
            "",
            format!("is no JSON: {expected} must stand here, not {found}"),
            "correct the syntax",
        )
        .at(self.place())
    }

    fn space(&mut self) {
        loop {
            let trimmed = self.rest.trim_start_matches([' ', '\t', '\r']);
            match trimmed.strip_prefix('\n') {
                Some(next) => {
                    self.rest = next;
                    self.line += 1;
                    self.column = 1;
                    self.counted = next;
                }
                None => {
                    self.rest = trimmed;
                    return;
                }
            }
        }
    }

    /// Takes `wanted` after space, if it stands there.
    fn take(&mut self, wanted: char) -> bool {
        self.space();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, Fault> {
        self.space();
        let place = self.place();
        self.nodes += 1;
        if depth > node::DEPTH_MAX {
            return Err(node::too_deep(place));
        }
        if self.nodes > node::NODES_MAX {
            return Err(node::too_many(place));
        }
        let value = match self.rest.as_bytes().first() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Scalar(Scalar { text: self.string()?, plain: false }),
            _ => self.word()?,
        };
        Ok(Node { value, place, tag: None })
    }

    fn map(&mut self, depth: usize) -> Result<Value, Fault> {
        self.take('{');
        let mut entries = Vec::new();
        let mut seen: BTreeMap<String, Place> = BTreeMap::new();
        if self.take('}') {
            return Ok(Value::Map(entries));
        }
        loop {
            self.space();
            let place = self.place();
            if !self.rest.starts_with('"') {
                return Err(self.fault("a key in double quotes"));
            }
            let key = self.string()?;
            if !self.take(':') {
                return Err(self.fault("`:`"));
            }
            let node = self.value(depth + 1)?;
            match seen.get(&key) {
                Some(first) => self.faults.push(node::duplicate(&key, *first, place)),
                None => {
                    seen.insert(key.clone(), place);
                    entries.push(Entry { key, place, node });
                }
            }
            if self.take('}') {
                return Ok(Value::Map(entries));
            }
            if !self.take(',') {
                return Err(self.fault("`,` or `}`"));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        self.take('[');
        let mut items = Vec::new();
        if self.take(']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take(']') {
                return Ok(Value::List(items));
            }
            if !self.take(',') {
                return Err(self.fault("`,` or `]`"));
            }
        }
    }

    fn word(&mut self) -> Result<Value, Fault> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if !matches!(word, "true" | "false" | "null") && !is_number(word) {
            return Err(self.fault("a value"));
        }
        self.rest = rest;
        Ok(Value::Scalar(Scalar { text: word.to_owned(), plain: true }))
    }

    fn string(&mut self) -> Result<String, Fault> {
        let mut text = String::new();
        self.rest = self.rest.strip_prefix('"').unwrap_or(self.rest);
        loop {
            let end = self.rest.find(|c: char| c == '"' || c == '\\' || c < ' ').unwrap_or(self.rest.len());
            let (clean, rest) = self.rest.split_at(end);
            text.push_str(clean);
            self.rest = rest;
            let mut chars = self.rest.chars();
            match chars.next() {
                Some('"') => {
                    self.rest = chars.as_str();
                    return Ok(text);
                }
                Some('\\') => text.push(self.escape()?),
                _ => return Err(self.fault("the closing `\"` or an escape for a control character")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let mut chars = self.rest.chars();
        chars.next();
        let simple = match chars.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('u') => return self.unicode(),
            _ => return Err(self.fault("an escape of JSON")),
        };
        self.rest = chars.as_str();
        Ok(simple)
    }

    fn unicode(&mut self) -> Result<char, Fault> {
        let unit = |text: &str| {
            let hex = text.strip_prefix("\\u")?.get(..4)?;
            hex.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(hex, 16).ok())?
        };
        let Some(high) = unit(self.rest) else {
            return Err(self.fault("`\\u` and four hexadecimal digits"));
        };
        let after = self.rest.get(6..).unwrap_or_default();
        let (code, rest) = match (high, unit(after)) {
            (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                (0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00), after.get(6..).unwrap_or_default())
            }
            _ => (high, after),
        };
        match char::from_u32(code) {
            Some(found) => {
                self.rest = rest;
                Ok(found)
            }
            None => Err(self.fault("a whole pair of surrogates")),
        }
    }
}

/// The number grammar of RFC 8259, which is stricter than YAML's: no `+1`, no `01`, no `.5`.
fn is_number(word: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    digits(whole) && (whole == "0" || !whole.starts_with('0')) && digits(part) && digits(exponent)
}
