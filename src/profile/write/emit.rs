//! Floor 1: writes a tree as YAML that every reader of YAML reads alike.

use crate::profile::node::Kind;
use crate::profile::node::Scalar;
use serde_json::Map;
use serde_json::Value;
use std::fmt::Write;

/// Writes a tree as YAML in block style, its keys in the order they have; it ends with a line feed.
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => object(map, 0, false, &mut text),
        Value::Array(items) if !items.is_empty() => list(items, 0, &mut text),
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            scalar(value, &mut text);
            text.push('\n');
        }
    }
    text
}

/// The same tree with all keys in alphabetical order, as Go's tools write them.
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> =
                map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// The entries of a mapping; the first one continues a line if `begun`.
fn object(map: &Map<String, Value>, indent: usize, begun: bool, text: &mut String) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || !begun {
            blanks(indent, text);
        }
        string(key, text);
        text.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push('\n');
                object(inner, indent + 2, false, text);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                list(items, indent, text);
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                text.push(' ');
                scalar(value, text);
                text.push('\n');
            }
        }
    }
}

fn list(items: &[Value], indent: usize, text: &mut String) {
    for item in items {
        blanks(indent, text);
        text.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => object(map, indent + 2, true, text),
            // A list in a list stands in JSON, which is YAML too: no dialect has any.
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                scalar(item, text);
                text.push('\n');
            }
        }
    }
}

fn blanks(count: usize, text: &mut String) {
    text.extend(std::iter::repeat_n(' ', count));
}

fn scalar(value: &Value, text: &mut String) {
    match value {
        Value::String(value) => string(value, text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            text.push_str(&value.to_string());
        }
    }
}

/// A text: plain where all readers take it for the same text, in double quotes where one might not.
fn string(value: &str, text: &mut String) {
    if is_plain(value) {
        text.push_str(value);
        return;
    }
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                // Writing to a String does not fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

fn is_plain(value: &str) -> bool {
    let starts_well = value
        .starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '\\' | '^' | '('));
    let inside = |c: char| c.is_ascii_graphic() || c == ' ' || (c.is_alphanumeric() && !c.is_control());
    let ends_well = !value.ends_with([' ', ':']);
    // A number, a boolean or a date to some reader.
    let other_to_some = matches!(value, "y" | "Y" | "n" | "N")
        || Scalar { text: value.to_owned(), plain: true }.kind() != Kind::Text
        || value.starts_with(|c: char| c.is_ascii_digit())
            && !value.contains(|c: char| c.is_ascii_alphabetic());
    starts_well
        && ends_well
        && value.chars().all(inside)
        && !value.contains(": ")
        && !value.contains(" #")
        && !value.starts_with("...")
        && !other_to_some
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::node;
    use crate::profile::node::Node;
    use proptest::prelude::*;
    use serde_json::json;

    fn as_json(node: &Node) -> Value {
        match &node.value {
            node::Value::Map(entries) => {
                Value::Object(entries.iter().map(|entry| (entry.key.clone(), as_json(&entry.node))).collect())
            }
            node::Value::List(items) => Value::Array(items.iter().map(as_json).collect()),
            node::Value::Scalar(scalar) => match scalar.kind() {
                Kind::Null => Value::Null,
                Kind::Bool(value) => Value::Bool(value),
                Kind::Number => serde_json::from_str(&scalar.text).unwrap(),
                Kind::Text => Value::String(scalar.text.clone()),
            },
        }
    }

    #[test]
    fn it_looks_as_people_write_it() {
        let value = json!({
            "a": {"b": [{"c": "/books/[^/]*", "d": "500ms"}, "x y", {}]},
            "e": [], "f": "yes", "g": "1", "h": "a: b", "i": "", "j": 0.5, "k": true, "l": "two\nlines", "m": "2001-01-01",
        });
        let expected = "a:\n  b:\n  - c: /books/[^/]*\n    d: 500ms\n  - x y\n  - {}\ne: []\nf: \"yes\"\ng: \"1\"\nh: \"a: b\"\n\
             i: \"\"\nj: 0.5\nk: true\nl: \"two\\nlines\"\nm: \"2001-01-01\"\n";
        assert_eq!(yaml(&value), expected);
    }

    #[test]
    fn sorting_reaches_every_level() {
        let sorted = sorted(json!({"b": [{"d": 1, "c": 2}], "a": 3}));
        assert_eq!(sorted.to_string(), r#"{"a":3,"b":[{"c":2,"d":1}]}"#);
    }

    fn tree() -> impl Strategy<Value = Value> {
        let word = prop_oneof!["[ -~]{0,12}", "(?s).{0,6}", "[-0-9:.eE+yYnN#]{0,5}", Just("null".to_owned())];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|n| json!(n)),
            word.clone().prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 30, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                prop::collection::vec((word.clone(), inner), 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_tree_reads_back(value in tree()) {
            let text = yaml(&value);
            let documents = node::read(&text);
            let read = documents.first().map(|document| as_json(&document.root)).unwrap_or_default();
            prop_assert!(documents.iter().all(|document| document.faults.is_empty()), "{}\n{:?}", text, documents);
            prop_assert_eq!(&read, &value, "{}", text);
        }
    }
}
