//! Floor 2: says which route a request takes, and why it does not take the others.

use crate::route::head::RequestHead;
use crate::route::matcher::Matcher;
use std::fmt;

/// Which route a request takes, and why not the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The route, as [`Matcher::find`] answers.
    pub found: Option<usize>,
    /// All other routes, in order.
    pub others: Vec<Miss>,
}

/// A route that a request does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The route.
    pub route: usize,
    /// The part of its condition that does not hold: `path /api/vote does not match`. `None`: all of it holds,
    /// but an earlier route comes first.
    pub reason: Option<String>,
}

impl fmt::Display for Miss {
    /// `routes[0]: path /api/vote does not match`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.as_deref().unwrap_or("matches, but an earlier route does too");
        write!(f, "routes[{}]: {reason}", self.route)
    }
}

/// Explains what `matcher` decides for `head`, by the very conditions that it decides with.
pub fn explain(matcher: &Matcher, head: &RequestHead<'_>) -> Explanation {
    let found = matcher.find(head);
    let others = (0..matcher.len())
        .filter(|route| Some(*route) != found)
        .map(|route| Miss { route, reason: matcher.why_not(route, head) })
        .collect();
    Explanation { found, others }
}
