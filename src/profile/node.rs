//! Floor 1: a text in YAML or JSON as a tree of nodes, each with its place.
//!
//! Every dialect is read from this tree by a [`reader`](crate::profile::reader). The tree is untyped on
//! purpose: a scalar keeps its text, and the reader that knows the field decides what it must be. So a ratio
//! of `0.15` is never a float in between, and a fault can show what was written.
//!
//! Texts come from outside, so everything is bounded: see [`BYTES_MAX`], [`DEPTH_MAX`], [`NODES_MAX`] and
//! [`DOCUMENTS_MAX`].
//! Nothing here panics on any text.

use crate::profile::invalid::Fault;
use crate::profile::invalid::Place;
use crate::profile::json;
use crate::profile::yaml;
use std::borrow::Cow;

/// The longest text that is read: 16 MiB. An object of Kubernetes has 1.5 MiB at most; this is room for a file of
/// many, and keeps the worst tree below some hundred megabytes.
pub const BYTES_MAX: usize = 16 << 20;

/// The deepest nesting that is read: 64. The deepest field of any dialect lies below 20; the rest is for the
/// recursive `all`, `any` and `not`. It bounds the stack of everything that walks a tree.
pub const DEPTH_MAX: usize = 64;

/// The most nodes that are made of one text: a million, the copies that aliases make included, so that a text
/// of ten lines cannot become a billion nodes.
pub const NODES_MAX: usize = 1_000_000;

/// The most documents of one text: 10,000, ten times what a namespace of a large cluster holds.
pub const DOCUMENTS_MAX: usize = 10_000;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it begins.
    pub place: Place,
    /// A tag that is not YAML's own, such as CloudFormation's `!GetAtt`, without its handle. The document also
    /// carries an `ignored` fault for it, which an importer that understands the tag takes out.
    pub tag: Option<Box<str>>,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// One word, number or text.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text. No key stands twice.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub place: Place,
    /// The value.
    pub node: Node,
}

/// One word, number or text, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    /// The text, without quotes and with escapes resolved.
    pub text: String,
    /// Whether it stands without quotes, so that it may be a number, a boolean or null.
    pub plain: bool,
}

/// What a scalar is when nobody asks for a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `false`, and YAML 1.1's `yes`, `no`, `on`, `off`, as Kubernetes reads them.
    Bool(bool),
    /// A number of any size, in decimal, hexadecimal (`0x`) or octal (`0o`), or `.inf`, `.nan`.
    Number,
    /// Everything else, and all that is quoted.
    Text,
}

impl Scalar {
    /// What it is when nobody asks for a type: YAML 1.2's core schema, with YAML 1.1's booleans because
    /// Kubernetes reads those as booleans too.
    pub fn kind(&self) -> Kind {
        if !self.plain {
            return Kind::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
            "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Kind::Bool(true),
            "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Kind::Bool(false),
            text if is_number(text) => Kind::Number,
            _ => Kind::Text,
        }
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(rest) = digits.strip_prefix(prefix) {
            return !rest.is_empty() && rest.chars().all(|c| c.is_digit(radix));
        }
    }
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.strip_prefix(['-', '+']).unwrap_or(exponent)),
        None => (digits, "0"),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let starts_well = mantissa.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit());
    starts_well && all_digits(whole) && all_digits(part) && !exponent.is_empty() && all_digits(exponent)
}

impl Node {
    /// A node that says nothing, at `place`.
    pub fn null(place: Place) -> Self {
        Self { value: Value::Scalar(Scalar { text: String::new(), plain: true }), place, tag: None }
    }

    /// Whether it is null: said to be nothing, which everywhere means the same as not said.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.kind() == Kind::Null)
    }

    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The entries, if this is a mapping; otherwise none.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Scalar(_) | Value::List(_) => &[],
        }
    }

    /// Where the field at `path` (`spec.routes[2].timeout`) stands, or the last part of the path that is there.
    pub fn place_of(&self, path: &str) -> Place {
        let (mut node, mut place, mut rest) = (self, self.place, path);
        loop {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let index = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            if let Some((key, after)) = index
                && let Some(entry) = node.entries().iter().find(|entry| format!("{:?}", entry.key) == key)
            {
                (node, place, rest) = (&entry.node, entry.place, after);
                continue;
            }
            // Keys may hold dots themselves: the longest that fits is meant.
            let fits = |key: &str| {
                let after = rest.strip_prefix(key);
                !key.is_empty()
                    && after.is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
            };
            let keys = node.entries().iter().filter(|entry| fits(&entry.key));
            match (&node.value, index) {
                (Value::List(items), Some((index, after))) => {
                    let Some(item) = index.parse().ok().and_then(|index: usize| items.get(index)) else {
                        break;
                    };
                    (node, place, rest) = (item, item.place, after);
                }
                _ => {
                    let Some(entry) = keys.max_by_key(|entry| entry.key.len()) else { break };
                    (node, place) = (&entry.node, entry.place);
                    rest = rest.get(entry.key.len()..).unwrap_or_default();
                }
            }
        }
        place
    }

    /// The text, if this is a scalar that is neither a boolean nor null.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) if matches!(scalar.kind(), Kind::Text | Kind::Number) => Some(&scalar.text),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// One document of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its tree; null if the document is empty or could not be read.
    pub root: Node,
    /// Which document of the text it is, from 0.
    pub index: usize,
    /// What is wrong with it as YAML or JSON. A document with a [`Rejected`](crate::profile::invalid::Severity)
    /// fault must not be used, though its tree holds what could be read.
    pub faults: Vec<Fault>,
}

/// Reads all documents of a text: YAML, one JSON value, or several JSON values after one another.
///
/// A document that is no YAML spoils itself and not its neighbours: reading goes on at the next `---`. Documents
/// that hold nothing but comments are left out.
pub fn read(text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > BYTES_MAX {
        let fault = Fault::rejected(
            "",
            format!("the text has {} bytes and {BYTES_MAX} at most are read", text.len()),
            "split it into several files",
        );
        return vec![Document {
            root: Node::null(Place { line: 1, column: 1 }),
            index: 0,
            faults: vec![fault],
        }];
    }
    let documents = if text.trim_start().starts_with(['{', '[']) {
        match json::read(text) {
            Ok(documents) => documents,
            Err(as_json) => as_flow_yaml(text, as_json),
        }
    } else {
        yaml::read(text)
    };
    documents.into_iter().filter(|document| !document.root.is_null() || !document.faults.is_empty()).collect()
}

/// A text that begins as JSON and is none may still be YAML in flow style. If it is neither, the reading that got
/// further says what is wrong.
fn as_flow_yaml(text: &str, as_json: Fault) -> Vec<Document> {
    let documents = yaml::read(text);
    let fault = documents.first().and_then(|document| document.faults.first());
    match fault {
        Some(fault) if documents.len() == 1 && fault.place <= as_json.place => {
            let root = Node::null(as_json.place.unwrap_or(Place { line: 1, column: 1 }));
            vec![Document { root, index: 0, faults: vec![as_json] }]
        }
        Some(_) | None => documents,
    }
}

/// The text that `bytes` are, which must be UTF-8; a byte order mark is left out.
///
/// # Errors
///
/// A fault that names the place of the first byte that is none, or says that it looks like UTF-16.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, Fault> {
    let remedy = "save the file as UTF-8";
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Fault::rejected("", "the text is UTF-16", remedy));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column =
            String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() + 1;
        Fault::rejected("", "the text is not UTF-8", remedy).at(place(line, column))
    })
}

/// A place from counts that may be larger than it can say.
pub(crate) fn place(line: usize, column: usize) -> Place {
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: clamp(line), column: clamp(column) }
}

/// The fault of a text that nests too deep.
pub(crate) fn too_deep(at: Place) -> Fault {
    Fault::rejected("", format!("nests deeper than {DEPTH_MAX} levels"), "flatten the document").at(at)
}

/// The fault of a text that makes too many nodes.
pub(crate) fn too_many(at: Place) -> Fault {
    let problem = format!("makes more than {NODES_MAX} nodes, aliases included");
    Fault::rejected("", problem, "split the text, or write out fewer aliases").at(at)
}

/// The fault of a text with too many documents.
pub(crate) fn too_many_documents(at: Place) -> Fault {
    let problem = format!("holds more than {DOCUMENTS_MAX} documents; those after them are not read");
    Fault::rejected("", problem, "split the text").at(at)
}

/// The fault of a key that stands twice in one mapping.
pub(crate) fn duplicate(key: &str, first: Place, at: Place) -> Fault {
    let problem = format!("the key stands twice, first in line {}", first.line);
    Fault::rejected(cut(key, 100), problem, "remove one of them").at(at)
}

/// `text`, or its beginning and `…` if it has more than `chars_max` characters.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::invalid::Severity;
    use proptest::prelude::*;

    /// The tree in short: `{a:1,b:[x,"2"]}`; quoted scalars in quotes, so that types show.
    fn short(node: &Node) -> String {
        match &node.value {
            Value::Scalar(s) if s.plain => s.text.clone(),
            Value::Scalar(s) => format!("{:?}", s.text),
            Value::List(items) => format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(",")),
            Value::Map(entries) => {
                let entries: Vec<_> =
                    entries.iter().map(|e| format!("{}:{}", e.key, short(&e.node))).collect();
                format!("{{{}}}", entries.join(","))
            }
        }
    }

    /// Checks the documents of `text`, each in short with its faults behind it.
    fn check(text: &str, expected: &[&str]) {
        let seen: Vec<String> = read(text)
            .iter()
            .map(|document| {
                let faults = document.faults.iter().map(|fault| format!(" !{fault}"));
                format!("{}{}", short(&document.root), faults.collect::<String>())
            })
            .collect();
        assert_eq!(seen, expected, "{text}");
    }

    #[test]
    fn yaml_is_read_with_all_its_styles() {
        check("a: 1\nb:\n- x\n- \"2\"\nc: {d: [~, 'e']}\n", &["{a:1,b:[x,\"2\"],c:{d:[~,\"e\"]}}"]);
        check("a: |\n  two\n  lines\n", &["{a:\"two\\nlines\\n\"}"]);
        check("a: !!str 5\nb: !!int \"5\"\n", &["{a:\"5\",b:5}"]);
        check("\u{feff}a: 1\r\nb: 2\r\n", &["{a:1,b:2}"]);
        check("a: &x {k: v}\nb: *x\n", &["{a:{k:v},b:{k:v}}"]);
        check("a: &x {k: v, l: w}\nb: {<<: *x, k: own}\n", &["{a:{k:v,l:w},b:{k:own,l:w}}"]);
        check("1: a\ntrue: b\n", &["{1:a,true:b}"]);
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        check("# only a comment\n---\na: 1\n---\n---\n# nothing\n---\nb: 2\n...\n", &["{a:1}", "{b:2}"]);
        let documents = read("---\n---\na: 1\n");
        assert_eq!((documents[0].index, documents[0].root.place.line), (1, 3));
    }

    #[test]
    fn a_broken_document_spoils_no_other() {
        let seen = read("a: 1\n---\nb: [1\n---\nc: 3\n---\nd: \"open\n---\ne: 5\n");
        let good: Vec<String> = seen.iter().filter(|d| d.faults.is_empty()).map(|d| short(&d.root)).collect();
        assert_eq!(good, ["{a:1}", "{c:3}", "{e:5}"]);
        check("%YAML 1.2\n# x\n---\na: |\n  x\n--- {b: 1}\n", &["{a:\"x\\n\"}", "{b:1}"]);
        assert_eq!(seen.iter().map(|d| d.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn places_are_those_of_the_text() {
        let documents = read("é: 1\nb:\n  - ü: x\n");
        let b = &documents[0].root.entries()[1];
        assert_eq!(b.place, Place { line: 2, column: 1 });
        let Value::List(items) = &b.node.value else { panic!("{b:?}") };
        assert_eq!(items[0].place, Place { line: 3, column: 5 });
        assert_eq!(items[0].entries()[0].node.place, Place { line: 3, column: 8 });
        let json = read("{\"é\": {\"b\":\n [1, 2]}}");
        assert_eq!(json[0].root.entries()[0].node.place, Place { line: 1, column: 7 });
        let Value::List(items) = &json[0].root.get("é").unwrap().get("b").unwrap().value else { panic!() };
        assert_eq!(items[1].place, Place { line: 2, column: 6 });
    }

    #[test]
    fn a_field_s_place_is_found_by_its_path() {
        let text = "a:\n  x.y/z: [1, {k: 2}]\n  x: {y: 3}\n";
        let root = &read(text)[0].root;
        for (path, line, column) in [
            ("", 1, 1),
            ("a", 1, 1),
            ("a.x.y/z", 2, 3),
            ("a.x.y/z[1].k", 2, 15),
            ("a[\"x.y/z\"][0]", 2, 11),
            ("a.x.y", 3, 7),
            ("a.x.gone[3]", 3, 3),
            ("a.x.y/z[7]", 2, 3),
            ("b", 1, 1),
        ] {
            assert_eq!(root.place_of(path), Place { line, column }, "{path}");
        }
    }

    #[test]
    fn json_is_read_exactly() {
        check(
            r#"{"a":"\ud83d\ude00\/\t\u00e9","b":1e400,"c":[true,null]}"#,
            &["{a:\"😀/\\té\",b:1e400,c:[true,null]}"],
        );
        check("{\t\"a\":\t12345678901234567890123}", &["{a:12345678901234567890123}"]);
        check("{\"a\":1}\n{\"a\":2}\n", &["{a:1}", "{a:2}"]);
        check("{}", &["{}"]);
        check("{a: b}", &["{a:b}"]);
        check("[a, {b: c}]\n---\nd: 1\n", &["[a,{b:c}]", "{d:1}"]);
        for bad in
            ["{\"a\":01}", "{\"a\":\"\\ud83d\"}", "{\"a\":1,}x", "{\"a\" 1}", "{\"a\":\"\n\"}", "{\"a\":tru}"]
        {
            let first = &read(bad)[0];
            assert!(
                first.faults.first().is_some_and(|f| f.place.is_some()) || !first.root.is_null(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_a_fault() {
        check(
            "a: 1\nb: 2\na: 3\n",
            &["{a:1,b:2} !3:1: a: the key stands twice, first in line 1; remove one of them"],
        );
        check(
            "{\"a\":1,\"a\":2}",
            &["{a:1} !1:8: a: the key stands twice, first in line 1; remove one of them"],
        );
    }

    #[test]
    fn what_means_nothing_here_is_said() {
        check("a: !Ref b\n", &["{a:b} !1:4: ignored: the tag `!Ref` means nothing here; remove the tag"]);
        check("? [a]\n: b\n", &["{} !1:3: a key is no text; write a plain word as the key"]);
        check("a: {<<: 5}\n", &["{a:{}} !1:9: <<: is no mapping; name an anchor of a mapping"]);
        let recursive = read("a: &x [*x]\n");
        assert!(recursive[0].faults[0].problem.contains("inside of what it names"), "{recursive:?}");
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut laughs = "l0: &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for n in 1..12 {
            let name = format!("*l{}", n - 1);
            laughs.push_str(&format!("l{n}: &l{n} [{}]\n", vec![name; 10].join(", ")));
        }
        let deep_list = "[".repeat(100_000);
        let deep_json = format!("{}1{}", "[".repeat(65), "]".repeat(65));
        let deep_map = "{a: ".repeat(100_000);
        let deep_block: String = (0..100).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        let mut deep_alias = "l0: &l0 [x]\n".to_owned();
        for n in 1..100 {
            deep_alias.push_str(&format!("l{n}: &l{n} [*l{}]\n", n - 1));
        }
        for text in [laughs, deep_list, deep_json, deep_map, deep_block, deep_alias] {
            let documents = read(&text);
            let fault = documents[0].faults.last().expect("refused");
            assert_eq!(fault.severity, Severity::Rejected);
            assert!(
                ["more than", "deeper", "recursion limit"].iter().any(|why| fault.problem.contains(why)),
                "{fault}"
            );
        }
        for text in ["a: 1\n---\n", "[\n---\n", "--- {\n", "{\"a\":1}\n"] {
            let documents = read(&text.repeat(DOCUMENTS_MAX + 5));
            let last = documents.last().and_then(|document| document.faults.last()).expect("refused");
            assert!(
                documents.len() <= DOCUMENTS_MAX + 2 && last.problem.contains("documents"),
                "{text} {last}"
            );
        }
        assert!(read(&" ".repeat(BYTES_MAX + 1))[0].faults[0].problem.contains("bytes"));
    }

    #[test]
    fn kinds_are_those_of_kubernetes() {
        let kind = |text: &str| Scalar { text: text.to_owned(), plain: true }.kind();
        for text in [
            "1", "-1", "+1", "1.5", ".5", "1.", "1e3", "1E-3", "0x1f", "0o7", ".inf", "-.inf", ".nan",
            "1_000",
        ] {
            assert_eq!(kind(text), Kind::Number, "{text}");
        }
        for text in ["1s", "1.2.3", "e3", "0x", ".", "-", "1e", "v1", "1-2", "_1", "nully", "10:30", "1ee3"] {
            assert_eq!(kind(text), Kind::Text, "{text}");
        }
        assert_eq!((kind("yes"), kind("off"), kind("~")), (Kind::Bool(true), Kind::Bool(false), Kind::Null));
        assert_eq!(Scalar { text: "1".to_owned(), plain: false }.kind(), Kind::Text);
    }

    #[test]
    fn bytes_that_are_no_text_are_named_by_their_place() {
        assert_eq!(decode(b"\xef\xbb\xbfa").unwrap(), "a");
        assert_eq!(decode(b"ab\nc\xffd").unwrap_err().place, Some(Place { line: 2, column: 2 }));
        assert!(decode(b"\xff\xfea\0").unwrap_err().problem.contains("UTF-16"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,200}") {
            read(&text);
        }

        #[test]
        fn nothing_that_looks_like_yaml_makes_it_panic(
            parts in prop::collection::vec(prop::sample::select(vec![
                "a", "b", ":", ": ", "- ", "? ", "\n", "\n  ", "\n    ", "[", "]", "{", "}", ",", "&x ", "*x", "!!str ", "!t ",
                "|", ">", "|2-\n", "\"", "'", "#", " #", "---", "\n---\n", "\n...\n", "%YAML 1.2\n", "%TAG ! x\n", "<<: ",
                "\\", "\\u00e9", "\\ud800", "\t", "\r", "\u{85}", "\u{2028}", "1", "~", "@", "`", "\0", "é",
            ]), 0..40),
        ) {
            read(&parts.concat());
        }

        #[test]
        fn json_of_serde_reads_back(text in "(?s).{0,50}", number: f64, key in "(?s).{1,20}") {
            let number = if number.is_finite() { number } else { 0.5 };
            let json = serde_json::json!({ &key: [text, number] }).to_string();
            let documents = read(&json);
            prop_assert!(documents[0].faults.is_empty(), "{:?}", documents);
            let Value::List(items) = &documents[0].root.get(&key).unwrap().value else { panic!() };
            prop_assert_eq!(&items[0].value, &Value::Scalar(Scalar { text, plain: false }));
            let Value::Scalar(read_back) = &items[1].value else { panic!() };
            prop_assert_eq!(read_back.text.parse::<f64>().unwrap(), number);
        }
    }
}
