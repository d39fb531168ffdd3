//! Floor 2: finds the first of many conditions that holds without testing them all.
//!
//! A tree. An inner node looks up one thing of the request (its path, say) and goes on below every key that it
//! finds, and below those conditions that do not mind that thing; a leaf tests its few conditions in order. Every
//! step keeps "holds" exactly (see [`ways`]), so the least route found is the one a linear scan finds.

use crate::route::condition::Test;
use crate::route::fold::{Dimension, HOST_BYTES_MAX};
use crate::route::head::RequestHead;
use crate::route::query;
use crate::route::texts::Texts;
use http::HeaderName;
use std::sync::Arc;

/// The tree; its root is the last node.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) nodes: Vec<Node>,
}

/// A node, and the least route below it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) first: u32,
    pub(crate) kind: NodeKind,
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    List(Box<[Entry]>),
    Branch(Box<Branch>),
}

/// What is left to test of one route's condition.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) route: u32,
    pub(crate) rest: Test,
}

/// A node that looks something up.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) dimension: Dimension,
    /// What leads to which node.
    pub(crate) texts: Texts,
    /// The node of those that do not mind.
    pub(crate) others: Option<u32>,
}

/// No route.
const NONE: u32 = u32::MAX;

impl Index {
    /// The least route whose condition holds for `head`.
    pub(crate) fn find(&self, head: &RequestHead<'_>) -> Option<usize> {
        let root = self.nodes.len().checked_sub(1)?;
        match self.below(root as u32, head, NONE) {
            NONE => None,
            route => Some(route as usize),
        }
    }

    /// The least route below `node` that is less than `best`, or `best`.
    fn below(&self, node: u32, head: &RequestHead<'_>, best: u32) -> u32 {
        let node = &self.nodes[node as usize];
        if node.first >= best {
            return best;
        }
        match &node.kind {
            NodeKind::List(entries) => entries
                .iter()
                .take_while(|entry| entry.route < best)
                .find(|entry| entry.rest.holds(head))
                .map_or(best, |entry| entry.route),
            NodeKind::Branch(branch) => {
                let mut best = best;
                let texts = &branch.texts;
                let mut go = |node| best = self.below(node, head, best);
                match &branch.dimension {
                    Dimension::Path => texts.visit(head.path().as_bytes(), go),
                    Dimension::Method => texts.visit(head.method().as_str().as_bytes(), go),
                    Dimension::Host => visit_host(texts, head, go),
                    Dimension::Header(name) => visit_header(texts, head, name, go),
                    Dimension::Query(name) => visit_query(texts, head, name, &mut go),
                }
                branch.others.map_or(best, |others| self.below(others, head, best))
            }
        }
    }
}

fn visit_header(texts: &Texts, head: &RequestHead<'_>, name: &HeaderName, mut go: impl FnMut(u32)) {
    for value in head.headers().get_all(name) {
        texts.visit(value.as_bytes(), &mut go);
    }
}

fn visit_query(texts: &Texts, head: &RequestHead<'_>, name: &Arc<str>, go: &mut impl FnMut(u32)) {
    for value in query::values(head.query(), name) {
        texts.visit(&value, &mut *go);
    }
}

fn visit_host(texts: &Texts, head: &RequestHead<'_>, go: impl FnMut(u32)) {
    let Some(host) = head.host() else { return };
    let mut reversed = [0; HOST_BYTES_MAX];
    if let Some(reversed) = reversed.get_mut(..host.len()) {
        for (to, from) in reversed.iter_mut().zip(host.bytes().rev()) {
            *to = from.to_ascii_lowercase();
        }
        texts.visit(reversed, go);
    }
}
