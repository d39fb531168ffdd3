//! Floor 1: walks a tree of nodes by type and collects every fault on the way.
//!
//! Every dialect is read with this: a [`Field`] is a place in the tree with its path, and each question about it
//! (`text`, `integer`, `word`, `fields`, …) answers `None` both when nothing is written there and when what is
//! written is wrong. In the second case a fault was added, so the document is refused and the answer is of no
//! account. Nothing stops at the first fault.
//!
//! ```
//! use enmesh::profile::{node, reader::{Faults, Field}};
//!
//! let document = &node::read("name: web\nport: 99999\ntimeuot: 1s\n")[0];
//! let faults = Faults::default();
//! Field::root(&document.root, &faults).fields(|f| {
//!     assert_eq!(f.get("name").required().text(), Some("web"));
//!     assert_eq!(f.get("port").integer(1..=65535_u16), None);
//!     assert_eq!(f.get("timeout").text(), None);
//! });
//! let faults: Vec<String> = faults.into_vec().iter().map(ToString::to_string).collect();
//! assert_eq!(faults, [
//!     "2:7: port: must be a whole number from 1 to 65535, not 99999; write one",
//!     "3:1: timeuot: is no field here; did you mean `timeout`?",
//! ]);
//! ```

use crate::profile::decimal;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Place;
use crate::profile::invalid::Severity;
use crate::profile::node;
use crate::profile::node::Entry;
use crate::profile::node::Kind;
use crate::profile::node::Node;
use crate::profile::node::Value;
use std::cell::Cell;
use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

/// The most faults that are kept of one document: 1,000. Nobody reads more, and each costs some hundred bytes.
pub const FAULTS_MAX: usize = 1_000;

/// The faults of a document, as they are found.
#[derive(Debug, Default)]
pub struct Faults {
    list: RefCell<Vec<Fault>>,
    rejected: Cell<bool>,
    left_out: Cell<usize>,
}

impl Faults {
    /// Adds a fault; beyond [`FAULTS_MAX`] it is only counted.
    pub fn add(&self, fault: Fault) {
        self.rejected.set(self.rejected.get() || fault.severity == Severity::Rejected);
        let mut list = self.list.borrow_mut();
        if list.len() < FAULTS_MAX {
            list.push(fault);
        } else {
            self.left_out.set(self.left_out.get() + 1);
        }
    }

    /// Whether a fault was added that refuses the document.
    pub fn any_rejected(&self) -> bool {
        self.rejected.get()
    }

    /// The faults in the order of the document, those without a place last.
    pub fn into_vec(self) -> Vec<Fault> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|fault| (fault.place.is_none(), fault.place));
        if self.left_out.get() > 0 {
            let problem = format!("{} more faults are not shown", self.left_out.get());
            let severity = if self.rejected.get() { Severity::Rejected } else { Severity::Ignored };
            list.push(Fault::new(severity, "", problem, "correct those that are"));
        }
        list
    }
}

/// A place in a tree of nodes: something, or nothing where something might stand.
#[derive(Clone)]
pub struct Field<'a> {
    node: Option<&'a Node>,
    path: String,
    /// Of the key, or of the node around it if nothing stands here.
    place: Place,
    faults: &'a Faults,
}

impl fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Field").field("path", &self.path).field("node", &self.node).finish_non_exhaustive()
    }
}

impl<'a> Field<'a> {
    /// The root of a document.
    pub fn root(node: &'a Node, faults: &'a Faults) -> Self {
        Self { node: Some(node), path: String::new(), place: node.place, faults }
    }

    /// The path from the root: `spec.routes[2].timeout`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where it stands, or where it would have to.
    pub fn place(&self) -> Place {
        self.node.map_or(self.place, |node| node.place)
    }

    /// The node, if something other than null stands here.
    pub fn node(&self) -> Option<&'a Node> {
        self.node.filter(|node| !node.is_null())
    }

    /// Whether something other than null stands here. Null means "not said" in every dialect, as in Kubernetes.
    pub fn is_present(&self) -> bool {
        self.node().is_some()
    }

    /// Where faults go.
    pub fn faults(&self) -> &'a Faults {
        self.faults
    }

    /// The same field; a fault if nothing stands here.
    #[must_use]
    pub fn required(self) -> Self {
        if !self.is_present() {
            self.reject("is missing", "add it");
        }
        self
    }

    /// Adds a fault about this field that refuses the document.
    pub fn reject(&self, problem: impl Into<String>, remedy: impl Into<String>) {
        self.fault(Severity::Rejected, problem, remedy);
    }

    /// Adds a note that this field has no effect; nothing if it is absent.
    pub fn ignore(&self, problem: impl Into<String>, remedy: impl Into<String>) {
        if self.is_present() {
            self.fault(Severity::Ignored, problem, remedy);
        }
    }

    /// Adds a note that this field is honoured only nearly; nothing if it is absent.
    pub fn approximate(&self, problem: impl Into<String>, remedy: impl Into<String>) {
        if self.is_present() {
            self.fault(Severity::Approximated, problem, remedy);
        }
    }

    /// Adds a fault of any severity about this field.
    pub fn fault(&self, severity: Severity, problem: impl Into<String>, remedy: impl Into<String>) {
        self.faults.add(Fault::new(severity, self.path.clone(), problem, remedy).at(self.place()));
    }

    /// What is written here, for a fault: a scalar in short, or what kind of thing it is.
    pub fn shown(&self) -> String {
        match self.node.map(|node| &node.value) {
            None => "nothing".to_owned(),
            Some(Value::List(_)) => "a list".to_owned(),
            Some(Value::Map(_)) => "a mapping".to_owned(),
            Some(Value::Scalar(scalar)) => match scalar.kind() {
                Kind::Null => "null".to_owned(),
                Kind::Bool(_) | Kind::Number => node::cut(&scalar.text, 60),
                Kind::Text => format!("{:?}", node::cut(&scalar.text, 60)),
            },
        }
    }

    /// Says that something else must stand here, and answers `None` for the caller to return.
    pub fn must_be<T>(&self, what: &str) -> Option<T> {
        self.reject(format!("must be {what}, not {}", self.shown()), "write one");
        None
    }

    /// A text. A number without quotes is taken as it is written; a boolean is a fault, because `no` is a boolean to
    /// some readers and a text to others.
    pub fn text(&self) -> Option<&'a str> {
        let node = self.node()?;
        match &node.value {
            Value::Scalar(scalar) if matches!(scalar.kind(), Kind::Text | Kind::Number) => Some(&scalar.text),
            Value::Scalar(scalar) => {
                let quoted = format!("write \"{}\"", node::cut(&scalar.text, 60));
                self.reject(format!("must be a text, and {} is a boolean", self.shown()), quoted);
                None
            }
            Value::List(_) | Value::Map(_) => self.must_be("a text"),
        }
    }

    /// A text that is not empty.
    pub fn name(&self) -> Option<&'a str> {
        let text = self.text()?;
        if text.is_empty() {
            self.reject("is empty", "give it a value");
            return None;
        }
        Some(text)
    }

    /// A scalar of any kind by its text: for fields that are written as text or as number (quantities, ports, label
    /// values).
    pub fn literal(&self) -> Option<&'a str> {
        match &self.node()?.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            Value::List(_) | Value::Map(_) => self.must_be("a single value"),
        }
    }

    /// A text that `parse` understands; its error says what the text must be: `a duration`.
    pub fn parse<T>(&self, parse: impl FnOnce(&'a str) -> Result<T, String>) -> Option<T> {
        self.parse_as(self.text()?, parse)
    }

    /// Like [`parse`](Self::parse), for a text or a number.
    pub fn parse_literal<T>(&self, parse: impl FnOnce(&'a str) -> Result<T, String>) -> Option<T> {
        self.parse_as(self.literal()?, parse)
    }

    fn parse_as<T>(&self, text: &'a str, parse: impl FnOnce(&'a str) -> Result<T, String>) -> Option<T> {
        match parse(text) {
            Ok(value) => Some(value),
            Err(what) => self.must_be(&what),
        }
    }

    /// A boolean.
    pub fn bool(&self) -> Option<bool> {
        match &self.node()?.value {
            Value::Scalar(scalar) => match scalar.kind() {
                Kind::Bool(value) => Some(value),
                Kind::Null | Kind::Number | Kind::Text => self.must_be("true or false"),
            },
            Value::List(_) | Value::Map(_) => self.must_be("true or false"),
        }
    }

    /// The text of a number.
    fn number(&self, what: &str) -> Option<&'a str> {
        match &self.node()?.value {
            Value::Scalar(scalar) if scalar.kind() == Kind::Number => Some(&scalar.text),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => self.must_be(what),
        }
    }

    /// A whole number within `range`, in decimal, hexadecimal or octal.
    pub fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        let what = format!("a whole number from {} to {}", range.start(), range.end());
        let value = decimal::integer(self.number(&what)?).and_then(|n| T::try_from(n).ok());
        match value.filter(|n| range.contains(n)) {
            Some(value) => Some(value),
            None => self.must_be(&what),
        }
    }

    /// A number within `range`, as near as a float comes. For what is weighed and not counted (jitter, thresholds).
    pub fn float(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let what = format!("a number from {} to {}", range.start(), range.end());
        let value = self.number(&what)?.parse::<f64>().ok();
        value.filter(|value| range.contains(value)).or_else(|| self.must_be(&what))
    }

    /// A number within `range`, in units of `10^-digits`: with 6 digits `0.15` is 150,000. Both ends of `range` are
    /// in these units. What is finer is rounded, and noted.
    pub fn fixed(&self, digits: u32, range: RangeInclusive<u64>) -> Option<u64> {
        let end = |units: &u64| decimal::shown(*units, digits);
        let what = match *range.end() {
            u64::MAX => format!("a number of {} at least", end(range.start())),
            _ => format!("a number from {} to {}", end(range.start()), end(range.end())),
        };
        let (value, exact) = match decimal::scaled(self.number(&what)?, digits) {
            Some((value, exact)) => (u64::try_from(value).ok(), exact),
            None => (None, true),
        };
        let Some(value) = value.filter(|n| range.contains(n)) else { return self.must_be(&what) };
        if !exact {
            let problem = format!("{} is rounded to {}", self.shown(), decimal::shown(value, digits));
            self.approximate(problem, format!("write {digits} decimals at most"));
        }
        Some(value)
    }

    /// One of `words`.
    pub fn word<T: Clone>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.reject(format!("{} is no value here", self.shown()), meant(text, &known));
        None
    }

    /// The items of a list; nothing if absent. An item that is null is a fault and left out.
    pub fn items(&self) -> Vec<Field<'a>> {
        let Some(node) = self.node() else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.must_be::<()>("a list");
            return Vec::new();
        };
        let field = |(index, node): (usize, &'a Node)| Field {
            node: Some(node),
            path: format!("{}[{index}]", self.path),
            place: node.place,
            faults: self.faults,
        };
        let fields = items.iter().enumerate().map(field);
        fields
            .filter(|field| {
                if !field.is_present() {
                    field.reject("is null", "remove the item, or write it out");
                }
                field.is_present()
            })
            .collect()
    }

    /// What `read` makes of each item of a list; those it answers `None` for are left out.
    pub fn each<T>(&self, read: impl FnMut(Field<'a>) -> Option<T>) -> Vec<T> {
        self.items().into_iter().filter_map(read).collect()
    }

    /// The entries of a mapping whose keys are free (labels, headers, ports).
    pub fn pairs(&self) -> Vec<(&'a str, Field<'a>)> {
        let entries = self.entries().unwrap_or_default();
        entries.iter().map(|entry| (entry.key.as_str(), self.child(&entry.key, Some(entry)))).collect()
    }

    /// What `read` makes of a mapping whose keys are known. Every key that `read` does not ask for is a fault, with
    /// the key that was probably meant. `None` if nothing or no mapping stands here.
    pub fn fields<T>(&self, read: impl FnOnce(&mut Fields<'a>) -> T) -> Option<T> {
        let entries = self.entries()?;
        let mut fields = Fields { field: self.clone(), entries, asked: Vec::new() };
        let value = read(&mut fields);
        fields.report_unknown();
        Some(value)
    }

    /// The field `key` of a mapping, beside a [`fields`](Self::fields) that knows it.
    #[must_use]
    pub fn look(&self, key: &str) -> Field<'a> {
        let entries = self.node().map(Node::entries).unwrap_or_default();
        self.child(key, entries.iter().find(|entry| entry.key == key))
    }

    fn entries(&self) -> Option<&'a [Entry]> {
        match &self.node()?.value {
            Value::Map(entries) => Some(entries),
            Value::Scalar(_) | Value::List(_) => self.must_be("a mapping"),
        }
    }

    fn child(&self, key: &str, entry: Option<&'a Entry>) -> Field<'a> {
        let plain = !key.is_empty()
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'$'));
        let path = match (plain, self.path.is_empty()) {
            (true, true) => key.to_owned(),
            (true, false) => format!("{}.{key}", self.path),
            (false, _) => format!("{}[{:?}]", self.path, node::cut(key, 100)),
        };
        let place = entry.map_or(self.place(), |entry| entry.place);
        Field { node: entry.map(|entry| &entry.node), path, place, faults: self.faults }
    }
}

/// A mapping whose keys are known, while it is read.
#[derive(Debug)]
pub struct Fields<'a> {
    field: Field<'a>,
    entries: &'a [Entry],
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The field `name`, which is known from now on.
    pub fn get(&mut self, name: &'static str) -> Field<'a> {
        self.asked.push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name);
        self.field.child(name, entry)
    }

    /// Whether something other than null stands under `name`, which is known from now on.
    pub fn has(&mut self, name: &'static str) -> bool {
        self.get(name).is_present()
    }

    /// Knows these fields and passes over them, because they rightly have no effect (`status`, `managedFields`).
    pub fn skip(&mut self, names: &[&'static str]) {
        self.asked.extend_from_slice(names);
    }

    /// The mapping itself, for faults about it as a whole.
    pub fn whole(&self) -> &Field<'a> {
        &self.field
    }

    fn report_unknown(&self) {
        for entry in self.entries.iter().filter(|entry| !self.asked.contains(&entry.key.as_str())) {
            let field = self.field.child(&entry.key, Some(entry));
            let fault = Fault::rejected(field.path, "is no field here", meant(&entry.key, &self.asked));
            self.field.faults.add(fault.at(entry.place));
        }
    }
}

/// What to do about a word that is none of `known`: the one it resembles, or all there are.
pub fn meant(word: &str, known: &[&str]) -> String {
    let word_lower = node::cut(word, 60).to_lowercase();
    let near = known.iter().map(|known| (distance(&word_lower, &known.to_lowercase()), known)).min();
    match near {
        Some((steps, known)) if steps <= 1 + known.len() / 4 => format!("did you mean `{known}`?"),
        _ if known.is_empty() => "remove it".to_owned(),
        _ => {
            let mut sorted: Vec<&str> = known.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            format!("remove it, or write one of: {}", sorted.join(", "))
        }
    }
}

/// How many letters must be changed, added, left out or swapped with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let change = at(&last, j) + usize::from(x != y);
            let mut best = change.min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    at(&last, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `text` with `read` and checks what it answers and the faults it makes.
    fn check<T: PartialEq + fmt::Debug>(
        text: &str,
        read: impl Fn(&mut Fields<'_>) -> T,
        expected: T,
        expected_faults: &[&str],
    ) {
        let documents = node::read(text);
        let faults = Faults::default();
        let seen = Field::root(&documents[0].root, &faults).fields(|f| read(f));
        let seen_faults: Vec<String> = faults.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(seen, Some(expected), "{text}");
        assert_eq!(seen_faults, expected_faults, "{text}");
    }

    #[test]
    fn null_is_not_said() {
        check(
            "a: null\nb:\nc: ~\n",
            |f| (f.get("a").bool(), f.get("b").text().is_none(), f.has("c")),
            (None, true, false),
            &[],
        );
        check(
            "a: ~\n",
            |f| f.get("a").required().text().map(str::to_owned),
            None,
            &["1:4: a: is missing; add it"],
        );
    }

    #[test]
    fn types_are_strict_and_the_value_is_shown() {
        check(
            "a: on\nb: 'yes'\nc: -1\nd: 1.5\ne: [x]\nf: \"7\"\n",
            |f| {
                let text = f.get("a").text().is_none();
                let bool = f.get("b").bool().is_none();
                let wrong = [f.get("c").integer(0..=9), f.get("d").integer(0..=9), f.get("f").integer(0..=9)];
                text && bool && f.get("e").text().is_none() && wrong == [None::<u8>; 3]
            },
            true,
            &[
                "1:4: a: must be a text, and on is a boolean; write \"on\"",
                "2:4: b: must be true or false, not \"yes\"; write one",
                "3:4: c: must be a whole number from 0 to 9, not -1; write one",
                "4:4: d: must be a whole number from 0 to 9, not 1.5; write one",
                "5:4: e: must be a text, not a list; write one",
                "6:4: f: must be a whole number from 0 to 9, not \"7\"; write one",
            ],
        );
    }

    #[test]
    fn ratios_are_exact_within_their_range() {
        let ratio = |f: &mut Fields<'_>| f.get("r").fixed(6, 0..=1_000_000_000);
        check("r: 0.15\n", ratio, Some(150_000), &[]);
        check("r: 1000\n", ratio, Some(1_000_000_000), &[]);
        check("r: 1001\n", ratio, None, &["1:4: r: must be a number from 0 to 1000, not 1001; write one"]);
        let rounded = "1:4: approximated: r: 1.0000004 is rounded to 1; write 6 decimals at most";
        check("r: 1.0000004\n", ratio, Some(1_000_000), &[rounded]);
    }

    #[test]
    fn every_unknown_field_is_found_at_any_depth() {
        check(
            "spec:\n  routes:\n  - name: a\n    timeuot: 1s\n    zzz: 1\n  - null\n  'x.y': 1\n",
            |f| {
                f.get("spec").fields(|f| {
                    f.get("routes").each(|route| {
                        route.fields(|f| {
                            f.get("timeout");
                            f.get("name").text().map(str::to_owned)
                        })?
                    })
                })
            },
            Some(vec!["a".to_owned()]),
            &[
                "4:5: spec.routes[0].timeuot: is no field here; did you mean `timeout`?",
                "5:5: spec.routes[0].zzz: is no field here; remove it, or write one of: name, timeout",
                "6:5: spec.routes[1]: is null; remove the item, or write it out",
                "7:3: spec[\"x.y\"]: is no field here; remove it, or write one of: routes",
            ],
        );
    }

    #[test]
    fn words_are_those_known() {
        let word = |f: &mut Fields<'_>| f.get("w").word(&[("Random", 1), ("RoundRobin", 2)]);
        check("w: RoundRobin\n", word, Some(2), &[]);
        check(
            "w: roundrobin\n",
            word,
            None,
            &["1:4: w: \"roundrobin\" is no value here; did you mean `RoundRobin`?"],
        );
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        for (a, b, steps) in [
            ("", "", 0),
            ("a", "", 1),
            ("ab", "ba", 1),
            ("timeuot", "timeout", 1),
            ("kitten", "sitting", 3),
            ("abc", "abc", 0),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (steps, steps), "{a} {b}");
        }
    }

    #[test]
    fn faults_are_bounded_and_the_rest_is_counted() {
        let faults = Faults::default();
        for _ in 0..FAULTS_MAX + 5 {
            faults.add(Fault::rejected("a", "b", "c"));
        }
        let list = faults.into_vec();
        assert_eq!(list.len(), FAULTS_MAX + 1);
        assert!(list.last().is_some_and(|fault| fault.problem.starts_with("5 more")));
    }
}
