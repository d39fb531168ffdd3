//! Floor 1: what all Kubernetes objects have: `apiVersion`, `kind`, `metadata`; and lists of them.

use crate::profile::invalid::Fault;
use crate::profile::node;
use crate::profile::node::Document;
use crate::profile::node::Node;
use crate::profile::node::Value;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One object of a text: a document, or an item of a document that is a `List`.
#[derive(Debug, Clone)]
pub struct Object {
    /// `apiVersion`, or empty.
    pub api_version: String,
    /// `kind`, or empty.
    pub kind: String,
    /// Where it stands: `file#0`, or `file#0:items[3]`.
    pub origin: Arc<str>,
    /// The whole object.
    pub root: Node,
    /// What is wrong with its document as YAML or JSON.
    pub faults: Vec<Fault>,
}

impl Object {
    /// The group of `apiVersion`: `linkerd.io` of `linkerd.io/v1alpha2`, nothing of `v1`.
    pub fn group(&self) -> &str {
        self.api_version.rsplit_once('/').map_or("", |(group, _)| group)
    }
}

/// Reads all objects of a text; `origin` is the name of its file.
///
/// The items of `kind: List` (and `…List` with `items`) stand for themselves. Documents that are no objects have an
/// empty kind.
pub fn read(text: &str, origin: &str) -> Vec<Object> {
    let mut objects = Vec::new();
    for document in node::read(text) {
        let place = format!("{origin}#{}", document.index);
        unfold(document, &place, &mut objects);
    }
    objects
}

fn unfold(document: Document, origin: &str, objects: &mut Vec<Object>) {
    let Document { mut root, faults, .. } = document;
    let word = |root: &Node, key: &str| root.get(key).and_then(Node::text).unwrap_or_default().to_owned();
    let kind = word(&root, "kind");
    let items = match &mut root.value {
        Value::Map(entries) if kind.ends_with("List") => {
            entries.iter_mut().find(|entry| entry.key == "items").map(|entry| &mut entry.node.value)
        }
        Value::Map(_) | Value::List(_) | Value::Scalar(_) => None,
    };
    let Some(Value::List(items)) = items else {
        let api_version = word(&root, "apiVersion");
        objects.push(Object { api_version, kind, origin: origin.into(), root, faults });
        return;
    };
    for (index, root) in std::mem::take(items).into_iter().enumerate() {
        let faults = faults.clone();
        objects.push(Object {
            api_version: word(&root, "apiVersion"),
            kind: word(&root, "kind"),
            origin: format!("{origin}:items[{index}]").into(),
            root,
            faults,
        });
    }
}

/// `metadata`, as far as anything here uses it.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    /// `name`, or empty.
    pub name: String,
    /// `namespace`.
    pub namespace: Option<Arc<str>>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp`, by which Gateway API settles conflicts.
    pub created: Option<String>,
}

/// What Kubernetes writes into `metadata` and nothing here uses.
const BOOKKEEPING: &[&str] = &[
    "generateName",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// Reads `metadata` of an object and knows its `apiVersion`, `kind` and `status`.
pub fn metadata(object: &mut Fields<'_>) -> Metadata {
    object.skip(&["apiVersion", "kind", "status"]);
    let read = |fields: &mut Fields<'_>| {
        fields.skip(BOOKKEEPING);
        Metadata {
            name: fields.get("name").text().unwrap_or_default().to_owned(),
            namespace: fields.get("namespace").text().filter(|text| !text.is_empty()).map(Arc::from),
            labels: texts(&fields.get("labels")),
            annotations: texts(&fields.get("annotations")),
            created: fields.get("creationTimestamp").literal().map(str::to_owned),
        }
    };
    object.get("metadata").required().fields(read).unwrap_or_default()
}

fn texts(field: &Field<'_>) -> BTreeMap<String, String> {
    let pairs = field.pairs().into_iter();
    pairs.filter_map(|(key, value)| value.text().map(|text| (key.to_owned(), text.to_owned()))).collect()
}

/// Whether a text is an RFC 1123 subdomain, as names of Kubernetes objects are.
///
/// # Errors
///
/// What it must be, to stand behind "must be".
pub fn subdomain(text: &str) -> Result<(), String> {
    let ends_well = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let label = |part: &str| {
        let (first, last) = (part.get(..1).unwrap_or_default(), part.get(part.len().saturating_sub(1)..));
        let inside = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        !part.is_empty() && inside && ends_well(first) && last.is_some_and(ends_well)
    };
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(());
    }
    Err("an RFC 1123 subdomain (lower case letters, digits, `-` and `.`, 253 at most)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::reader::Faults;

    #[test]
    fn lists_are_unfolded_and_all_know_where_they_stand() {
        let text = "apiVersion: v1\nkind: Service\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: a.b/v1, kind: C}\n- {}\n---\n5\n";
        let seen: Vec<String> = read(text, "f")
            .iter()
            .map(|o| format!("{} {} {} {}", o.origin, o.group(), o.api_version, o.kind))
            .collect();
        assert_eq!(seen, ["f#0  v1 Service", "f#1:items[0] a.b a.b/v1 C", "f#1:items[1]   ", "f#2   "]);
    }

    #[test]
    fn metadata_is_strict_but_knows_the_bookkeeping() {
        let text = "apiVersion: v1\nkind: A\nmetadata: {name: n, namespace: '', uid: x, labels: {a: b, c: no}, nmae: x}\nstatus: {}\n";
        let objects = read(text, "f");
        let faults = Faults::default();
        let read = Field::root(&objects[0].root, &faults).fields(metadata);
        let metadata = read.expect("a mapping");
        assert_eq!((metadata.name.as_str(), metadata.namespace, metadata.labels.len()), ("n", None, 1));
        let faults: Vec<String> = faults.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            faults,
            [
                "3:62: metadata.labels.c: must be a text, and no is a boolean; write \"no\"",
                "3:67: metadata.nmae: is no field here; did you mean `name`?",
            ]
        );
    }

    #[test]
    fn subdomains_are_those_of_rfc_1123() {
        for good in ["a", "a.b", "a-b.c1", "0", &"a".repeat(253)] {
            assert!(subdomain(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", "-a", "a-", "A", "a..b", "^.^", "a_b", "é", &"a".repeat(254)] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
    }
}
