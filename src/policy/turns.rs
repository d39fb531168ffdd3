//! Floor 3: whose turn it is among backends, carried over updates, so that shares stay exact while others change.

use crate::policy::route::RouteEntry;
use crate::profile::route::Route;
use crate::split::mirror::CopyBudget;
use crate::split::pick::Schedule;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who takes turns together: a route's name and the rule it was written in. Gateway API's rules become a route for each
/// of their matches, and the share is the rule's. `None`: all routes without backends of their own, which take the
/// service's.
type Key = Option<(Arc<str>, String)>;

/// A mirror: its own name, its service's, and the rule.
type MirrorKey = (Arc<str>, Arc<str>, String);

/// The turns of a policy, and those of the one before.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    before: BTreeMap<Key, Arc<Schedule>>,
    now: BTreeMap<Key, Arc<Schedule>>,
    budgets: BTreeMap<MirrorKey, Arc<CopyBudget>>,
}

impl Turns {
    /// Those of a policy's routes; `None` is its default one.
    pub(crate) fn of<'a, T: 'a>(
        entries: impl Iterator<Item = (Option<&'a Route>, &'a RouteEntry<T>)>,
    ) -> Self {
        let mut turns = Self::default();
        for (route, entry) in entries {
            let key = route.and_then(key);
            turns.before.insert(key, Arc::clone(entry.schedule()));
            let Some(route) = route else { continue };
            for mirror in entry.mirrors() {
                let policy = &mirror.entry.policy;
                let key = (Arc::clone(&policy.name), Arc::clone(&policy.service), rule(route));
                turns.budgets.insert(key, Arc::clone(&mirror.budget));
            }
        }
        turns
    }

    /// The turns of a route's backends: those it had if the weights are the same.
    pub(crate) fn take(&mut self, route: &Route, weights: &[u32]) -> Arc<Schedule> {
        if weights.len() < 2 {
            return Arc::new(Schedule::new(weights));
        }
        let key = key(route);
        // Routes that nobody wrote down anywhere share nothing but a name.
        let known = self.now.get(&key).filter(|_| key.is_none() || !route.origin.is_empty());
        let same = |schedule: &&Arc<Schedule>| schedule.weights() == weights;
        let kept = known.filter(same).or_else(|| self.before.get(&key).filter(same)).cloned();
        let schedule = kept.unwrap_or_else(|| Arc::new(Schedule::new(weights)));
        self.now.insert(key, Arc::clone(&schedule));
        schedule
    }

    /// The budget of a mirror: the one it had.
    pub(crate) fn budget(&mut self, name: &Arc<str>, service: &Arc<str>, route: &Route) -> Arc<CopyBudget> {
        let key = (Arc::clone(name), Arc::clone(service), rule(route));
        Arc::clone(self.budgets.entry(key).or_default())
    }
}

fn key(route: &Route) -> Key {
    (!route.own_backends().is_empty()).then(|| (Arc::clone(&route.name), rule(route)))
}

/// Where a route's rule was written: `file#0:spec.rules[1]`.
fn rule(route: &Route) -> String {
    route.origin.split(".matches[").next().unwrap_or_default().to_owned()
}
