//! Floor 1: YAML as a tree of nodes with places.
//!
//! The events come from `saphyr-parser`; here they become nodes, within the limits of [`node`]. Aliases are
//! copied, `<<` merges as Kubernetes has it, and a key that stands twice is a fault.

use crate::profile::invalid::Fault;
use crate::profile::invalid::Place;
use crate::profile::invalid::Severity;
use crate::profile::node;
use crate::profile::node::Document;
use crate::profile::node::Entry;
use crate::profile::node::Node;
use crate::profile::node::Scalar;
use crate::profile::node::Value;
use saphyr_parser::Event;
use saphyr_parser::Parser;
use saphyr_parser::ScalarStyle;
use saphyr_parser::Tag;
use std::collections::BTreeMap;

/// Reads all documents of a text. A document that is no YAML has one fault and its neighbours are read.
pub(crate) fn read(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut nodes = 0;
    for (lines, part) in parts(text) {
        let fault = match read_part(part, lines, &mut nodes, &mut documents) {
            Ok(()) => continue,
            Err(fault) => fault,
        };
        let root = Node::null(fault.place.unwrap_or(Place { line: 1, column: 1 }));
        documents.push(Document { root, index: documents.len(), faults: vec![fault] });
        if nodes > node::NODES_MAX || documents.len() > node::DOCUMENTS_MAX {
            break;
        }
    }
    documents
}

/// The parts of a text that begin with a `---` line, and how many lines stand before each.
///
/// Such a line begins a document wherever it stands, even within a quoted text or an open bracket. Cut there, a
/// document that is no YAML cannot take others with it, and nothing is read twice. What stands before the first
/// `---` is a part of its own if it holds more than comments and directives, which belong to the document after it.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut at, mut begin, mut begin_line) = (0, 0, 0);
    let mut only_prologue = true;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace)) {
            if !only_prologue {
                parts.push((begin_line, text.get(begin..at).unwrap_or_default()));
                (begin, begin_line) = (at, number);
            }
            only_prologue = false;
        } else if only_prologue {
            only_prologue =
                line.starts_with('%') || matches!(line.trim_start().chars().next(), None | Some('#'));
        }
        at += line.len();
    }
    parts.push((begin_line, text.get(begin..).unwrap_or_default()));
    parts
}

/// Reads the documents of a part, of which there is one unless `...` ends it early. `lines` stand before it.
fn read_part(
    text: &str,
    lines: usize,
    nodes: &mut usize,
    documents: &mut Vec<Document>,
) -> Result<(), Fault> {
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder::new(nodes);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            let place = node::place(lines + error.marker().line(), error.marker().col() + 1);
            Fault::rejected("", format!("is no YAML: {}", error.info()), "correct the syntax").at(place)
        })?;
        let place = node::place(lines + span.start.line(), span.start.col() + 1);
        if matches!(event, Event::DocumentStart(_)) && documents.len() >= node::DOCUMENTS_MAX {
            return Err(node::too_many_documents(place));
        }
        if let Some((root, faults)) = builder.take(event, place)? {
            documents.push(Document { root, index: documents.len(), faults });
        }
    }
    Ok(())
}

/// What is being built: a list, or a mapping with the key that waits for its value.
enum Container {
    List(Vec<Node>),
    Map(MapBuilder),
}

#[derive(Default)]
struct MapBuilder {
    entries: Vec<Entry>,
    seen: BTreeMap<String, Place>,
    merges: Vec<Node>,
    waiting: Option<Key>,
}

enum Key {
    Text(String, Place),
    Merge,
    /// A key that is no text; its value is left out.
    Wrong,
}

struct Frame {
    container: Container,
    tag: Option<Box<str>>,
    place: Place,
    anchor: usize,
    /// How many nodes there were before it.
    nodes_before: usize,
}

struct Builder<'n> {
    nodes: &'n mut usize,
    frames: Vec<Frame>,
    /// What anchors stand for, and how many nodes that is.
    anchors: BTreeMap<usize, (Node, usize)>,
    faults: Vec<Fault>,
    root: Option<Node>,
}

impl<'n> Builder<'n> {
    fn new(nodes: &'n mut usize) -> Self {
        Self { nodes, frames: Vec::new(), anchors: BTreeMap::new(), faults: Vec::new(), root: None }
    }

    /// Takes one event; answers with a document when one is complete.
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<Option<(Node, Vec<Fault>)>, Fault> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::DocumentStart(_) => {
                self.anchors.clear();
                self.root = None;
            }
            Event::DocumentEnd => {
                let root = self.root.take().unwrap_or_else(|| Node::null(place));
                return Ok(Some((root, std::mem::take(&mut self.faults))));
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, place)?;
                let (plain, tag) = self.tag(style == ScalarStyle::Plain, tag.as_deref(), place);
                let scalar = Scalar { text: text.into_owned(), plain };
                let node = Node { value: Value::Scalar(scalar), place, tag };
                self.remember(anchor, &node, 1, place)?;
                self.attach(node);
            }
            Event::SequenceStart(anchor, tag) => {
                let (_, tag) = self.tag(true, tag.as_deref(), place);
                self.open(Container::List(Vec::new()), tag, anchor, place)?;
            }
            Event::MappingStart(anchor, tag) => {
                let (_, tag) = self.tag(true, tag.as_deref(), place);
                self.open(Container::Map(MapBuilder::default()), tag, anchor, place)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Alias(anchor) => self.alias(anchor, place)?,
        }
        Ok(None)
    }

    fn count(&mut self, more: usize, place: Place) -> Result<(), Fault> {
        *self.nodes += more;
        if *self.nodes > node::NODES_MAX { Err(node::too_many(place)) } else { Ok(()) }
    }

    /// Whether a scalar may be other than text, with its tag heard; and the tag, if it means nothing to YAML.
    fn tag(&mut self, plain: bool, tag: Option<&Tag>, place: Place) -> (bool, Option<Box<str>>) {
        let Some(tag) = tag else { return (plain, None) };
        match (tag.is_yaml_core_schema(), tag.suffix.as_str()) {
            (true, "str") => (false, None),
            (true, "int" | "float" | "bool" | "null" | "seq" | "map") => (true, None),
            (false, "") => (false, None),
            _ => {
                let problem = format!("the tag `{}` means nothing here", node::cut(&tag.to_string(), 100));
                let fault = Fault::new(Severity::Ignored, "", problem, "remove the tag");
                self.faults.push(fault.at(place));
                (plain, Some(tag.suffix.as_str().into()))
            }
        }
    }

    fn remember(&mut self, anchor: usize, node: &Node, size: usize, place: Place) -> Result<(), Fault> {
        if anchor > 0 {
            self.count(size, place)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Fault> {
        let Some(size) = self.anchors.get(&anchor).map(|(_, size)| *size) else {
            let problem = "an alias stands inside of what it names, or names another document's anchor";
            return Err(Fault::rejected("", problem, "write the value out").at(place));
        };
        self.count(size, place)?;
        // Kept deep enough by this check, since a copy can be hung below another.
        let copy = self.anchors.get(&anchor).map(|(node, _)| node.clone());
        let node = copy.unwrap_or_else(|| Node::null(place));
        if self.frames.len() + depth(&node) > node::DEPTH_MAX {
            return Err(node::too_deep(place));
        }
        self.attach(node);
        Ok(())
    }

    fn open(
        &mut self,
        container: Container,
        tag: Option<Box<str>>,
        anchor: usize,
        place: Place,
    ) -> Result<(), Fault> {
        if self.frames.len() >= node::DEPTH_MAX {
            return Err(node::too_deep(place));
        }
        let nodes_before = *self.nodes;
        self.count(1, place)?;
        self.frames.push(Frame { container, tag, place, anchor, nodes_before });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fault> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let value = match frame.container {
            Container::List(items) => Value::List(items),
            Container::Map(map) => Value::Map(self.merged(map, frame.place)?),
        };
        let node = Node { value, place: frame.place, tag: frame.tag };
        let size = *self.nodes - frame.nodes_before;
        self.remember(frame.anchor, &node, size, frame.place)?;
        self.attach(node);
        Ok(())
    }

    /// The entries of a mapping with those that `<<` names, which stand behind the mapping's own.
    fn merged(&mut self, map: MapBuilder, place: Place) -> Result<Vec<Entry>, Fault> {
        let MapBuilder { mut entries, mut seen, merges, .. } = map;
        for source in merges {
            let sources = match source.value {
                Value::List(items) => items,
                Value::Map(_) | Value::Scalar(_) => vec![source],
            };
            for source in sources {
                let Value::Map(more) = source.value else {
                    let fault = Fault::rejected("<<", "is no mapping", "name an anchor of a mapping");
                    self.faults.push(fault.at(source.place));
                    continue;
                };
                for entry in more {
                    if seen.insert(entry.key.clone(), entry.place).is_none() {
                        self.count(1, place)?;
                        entries.push(entry);
                    }
                }
            }
        }
        Ok(entries)
    }

    /// Puts a complete node where it belongs: into the container that is open, as its key or value.
    fn attach(&mut self, node: Node) {
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut frame.container {
            Container::List(items) => items.push(node),
            Container::Map(map) => match map.waiting.take() {
                None => map.waiting = Some(key(node, &mut self.faults)),
                Some(Key::Text(key, place)) => match map.seen.get(&key) {
                    Some(first) => self.faults.push(node::duplicate(&key, *first, place)),
                    None => {
                        map.seen.insert(key.clone(), place);
                        map.entries.push(Entry { key, place, node });
                    }
                },
                Some(Key::Merge) => map.merges.push(node),
                Some(Key::Wrong) => {}
            },
        }
    }
}

/// What a node is as a key. Numbers and booleans are their text, as every dialect wants its keys.
fn key(node: Node, faults: &mut Vec<Fault>) -> Key {
    match node.value {
        Value::Scalar(scalar) if scalar.plain && scalar.text == "<<" => Key::Merge,
        Value::Scalar(scalar) if !scalar.plain || !scalar.text.is_empty() => {
            Key::Text(scalar.text, node.place)
        }
        Value::Scalar(_) | Value::List(_) | Value::Map(_) => {
            faults.push(
                Fault::rejected("", "a key is no text", "write a plain word as the key").at(node.place),
            );
            Key::Wrong
        }
    }
}

/// How many levels a node has.
fn depth(node: &Node) -> usize {
    match &node.value {
        Value::Scalar(_) => 0,
        Value::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|entry| depth(&entry.node)).max().unwrap_or(0),
    }
}
