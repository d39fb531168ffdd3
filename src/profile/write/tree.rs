//! Floor 1: builds the tree of a document, leaving out what is not said.

use crate::profile::decimal;
use crate::profile::duration;
use serde_json::Map;
use serde_json::Value;
use std::time::Duration;

/// A mapping in the making.
#[derive(Debug, Default)]
pub(crate) struct Tree(Map<String, Value>);

impl Tree {
    /// With `key` set.
    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// With `key` set if there is a value.
    pub(crate) fn maybe(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// With `key: true` if so.
    pub(crate) fn flag(self, key: &str, set: bool) -> Self {
        self.maybe(key, set.then_some(true))
    }

    /// With a list if it holds anything.
    pub(crate) fn list(self, key: &str, items: Vec<Value>) -> Self {
        self.maybe(key, (!items.is_empty()).then_some(items))
    }

    /// With a mapping if it says anything.
    pub(crate) fn below(self, key: &str, tree: Tree) -> Self {
        self.maybe(key, (!tree.0.is_empty()).then_some(Value::Object(tree.0)))
    }

    /// All of `more` besides.
    pub(crate) fn and(mut self, more: Tree) -> Self {
        self.0.extend(more.0);
        self
    }
}

impl From<Tree> for Value {
    fn from(tree: Tree) -> Self {
        Self::Object(tree.0)
    }
}

/// A duration as text.
pub(crate) fn time(time: Duration) -> Value {
    duration::to_text(time).into()
}

/// `units` of `10^-digits` as a number.
pub(crate) fn fixed(units: u32, digits: u32) -> Value {
    let text = decimal::shown(u64::from(units), digits);
    match text.parse::<u64>() {
        Ok(whole) => whole.into(),
        Err(_) => text.parse::<f64>().unwrap_or_default().into(),
    }
}

/// A float of 32 bits as the shortest number that reads back as it.
pub(crate) fn short(value: f32) -> Value {
    value.to_string().parse::<f64>().unwrap_or_default().into()
}

/// Texts as a list.
pub(crate) fn texts<T: AsRef<str>>(items: &[T]) -> Vec<Value> {
    items.iter().map(|item| item.as_ref().into()).collect()
}

/// The name of a value in a table of names.
pub(crate) fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> Value {
    words.iter().find(|(_, known)| known == value).map_or("", |(word, _)| *word).into()
}
