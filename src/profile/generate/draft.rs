//! Floor 1: routes in the making, and the document they become.

use crate::profile::generate::target::Target;
use crate::profile::invalid::Fault;
use crate::profile::parse;
use crate::profile::write::emit;
use crate::profile::write::linkerd;
use crate::profile::write::tree::Tree;
use serde_json::Value;
use std::time::Duration;

/// A route in the making.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) method: String,
    /// The path with its parameters: `/books/{id}`.
    pub(crate) path: String,
    /// Whether it may be repeated, if the input says.
    pub(crate) retryable: Option<bool>,
    /// As written: the reference does not look at it either.
    pub(crate) timeout: Option<String>,
    /// Statuses that a class is made for, ascending.
    pub(crate) statuses: Vec<u32>,
    /// How long the requests took that were seen.
    pub(crate) latencies: Vec<Duration>,
    /// What sets it apart from others of its name: the service of an `rpc`.
    pub(crate) qualifier: Option<String>,
}

impl Draft {
    /// A route for `METHOD path`, named so.
    pub(crate) fn of_path(method: &str, path: &str) -> Self {
        Self {
            name: format!("{method} {path}"),
            method: method.to_owned(),
            path: path.to_owned(),
            ..Self::default()
        }
    }

    fn route(self) -> Value {
        let class = |status: u32| -> Value {
            let range = Tree::default().with("max", status).with("min", status);
            Tree::default()
                .with("condition", Tree::default().with("status", range))
                .flag("isFailure", status >= 500)
                .into()
        };
        let condition = Tree::default().with("method", self.method).with("pathRegex", path_regex(&self.path));
        Tree::default()
            .with("condition", condition)
            .flag("isRetryable", self.retryable == Some(true))
            .with("name", self.name)
            .list("responseClasses", self.statuses.into_iter().map(class).collect())
            .maybe("timeout", self.timeout.filter(|timeout| !timeout.is_empty()))
            .into()
    }
}

/// The pattern of a path: its text, with `[^/]*` for each parameter. A parameter begins with `{` and ends with the
/// next `}`; a `{` that nothing closes is text.
pub(crate) fn path_regex(path: &str) -> String {
    let mut pattern = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((_, next)) = after.split_once('}') else { break };
        pattern.push_str(&linkerd::quote(before));
        pattern.push_str("[^/]*");
        rest = next;
    }
    pattern + &linkerd::quote(rest)
}

/// A generated document.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The ServiceProfile, keys in alphabetical order.
    pub document: Value,
    /// What is wrong with it when it is read as a ServiceProfile: what the input says is not judged before.
    pub faults: Vec<Fault>,
}

impl Generated {
    pub(crate) fn new(target: &Target, drafts: Vec<Draft>) -> Self {
        let routes: Vec<Value> = drafts.into_iter().map(Draft::route).collect();
        let metadata = Tree::default().with("name", target.name()).with("namespace", &*target.namespace);
        let document = Tree::default()
            .with("apiVersion", "linkerd.io/v1alpha2")
            .with("kind", "ServiceProfile")
            .with("metadata", metadata)
            .with("spec", Tree::default().list("routes", routes));
        let document = Value::from(document);
        let read = parse::parse(&document.to_string(), "generated").documents;
        let mut faults: Vec<Fault> = read.into_iter().flat_map(|document| document.faults).collect();
        // Places in a line that nobody sees.
        faults.iter_mut().for_each(|fault| fault.place = None);
        Self { document, faults }
    }

    /// The document in YAML.
    pub fn to_yaml(&self) -> String {
        emit::yaml(&self.document)
    }

    /// The document in JSON, in one line without a line feed.
    pub fn to_json(&self) -> String {
        self.document.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_the_shortest_runs_that_close() {
        for (path, pattern) in [
            ("/books/{id}", "/books/[^/]*"),
            ("/{a}.{b}/x+y", r"/[^/]*\.[^/]*/x\+y"),
            ("/{a{b}", "/[^/]*"),
            ("/un{closed", r"/un\{closed"),
            ("/a}b{c", r"/a\}b\{c"),
            ("/{}", "/[^/]*"),
            ("", ""),
        ] {
            assert_eq!(path_regex(path), pattern, "{path}");
        }
    }
}
