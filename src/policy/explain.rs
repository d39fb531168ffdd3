//! Floor 3: says what a policy decides for a request, and why, by the very code that decides in a running stack.

use crate::policy::compile::Policy;
use crate::policy::route::{RouteEntry, Target};
use crate::profile::route::{Action, Backend, Filter, Forward, Route};
use crate::route::explain::{Miss, explain};
use crate::route::head::RequestHead;
use std::sync::Arc;

/// What a policy decides for a request.
#[derive(Debug)]
pub struct Decision<'a, T> {
    /// The route as it was written; `None`: none is for the request.
    pub route: Option<&'a Route>,
    /// What the layers would read: of the route, else of the default route; `None`: the request is not found.
    pub entry: Option<&'a Arc<RouteEntry<T>>>,
    /// Why the other routes were not taken, in order.
    pub others: Vec<Miss>,
}

/// A backend that may get the request.
#[derive(Debug)]
pub struct Candidate<'a, T> {
    /// What it is in this stack, or what is answered for it.
    pub target: &'a Target<T>,
    /// The named part of it that was written.
    pub subset: Option<&'a Arc<str>>,
    /// How much of all requests it gets; 0: none.
    pub weight: u32,
    /// What is changed for it alone, as it was written.
    pub filters: &'a [Filter],
}

impl<T> Policy<T> {
    /// Decides as [`find`](Self::find) does, and says why.
    pub fn explain(&self, head: &RequestHead<'_>) -> Decision<'_, T> {
        let explanation = explain(self.matcher(), head);
        let route = explanation.found.and_then(|index| self.profile().routes.get(index));
        Decision { route, entry: self.find(head), others: explanation.others }
    }
}

impl<'a, T> Decision<'a, T> {
    /// The backends in order, with their weights.
    pub fn candidates(&self, policy: &'a Policy<T>) -> Vec<Candidate<'a, T>> {
        let Some(entry) = self.entry else { return Vec::new() };
        let own = self.route.map(Route::own_backends).unwrap_or_default();
        let written = if own.is_empty() { &*policy.profile().backends } else { own };
        let subset = |index: usize| match &written.get(index)?.backend {
            Backend::Service { subset, .. } => subset.as_ref(),
            Backend::Invalid { .. } => None,
        };
        let mut candidates = Vec::new();
        for (index, (target, weight)) in entry.backends().iter().zip(entry.weights()).enumerate() {
            let filters = written.get(index).map_or(&[][..], |one| &one.filters);
            candidates.push(Candidate { target, subset: subset(index), weight: *weight, filters });
        }
        candidates
    }

    /// How the request is sent on, if a route says so.
    pub fn forward(&self) -> Option<&'a Forward> {
        match &self.route?.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }
}
