//! Floor 2: the rules of authorization by number, and which of them decided about the request at hand.
//!
//! Whoever decides stands below whoever counts, and tells upwards by a cell of the thread: both are called by one call, so
//! nothing is passed through the request or its response.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The most rules that ever had a number: four times those of one policy. Requests that a later one decides about are counted
/// without a rule.
pub const RULES_MAX: usize = 4096;

/// What a rule does, as far as families differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It lets in.
    Allowed,
    /// It refuses.
    Denied,
    /// It says that there is no such route.
    NotFound,
}

/// A rule, as labels name it. All of it comes from configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Linkerd's `Server` that it is of (label `srv_name`); `None` where there is no such object.
    pub server: Option<Arc<str>>,
    /// The label `authz_group`.
    pub group: &'static str,
    /// The label `authz_kind`.
    pub kind: &'static str,
    /// The label `authz_name`.
    pub name: Arc<str>,
    /// What it does.
    pub verdict: Verdict,
}

/// The number of requests that no rule decided about.
pub const NONE: u32 = 0;

/// Rules by number, from 1. A rule that comes back with a later policy has the number that it had.
#[derive(Debug, Default)]
pub struct Rules {
    known: Mutex<BTreeMap<Rule, u32>>,
}

impl Rules {
    /// The number of a rule; [`NONE`] when there are too many.
    pub fn number(&self, rule: &Rule) -> u32 {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(known.len() + 1).unwrap_or(NONE);
        match known.get(rule) {
            Some(number) => *number,
            None if known.len() >= RULES_MAX => NONE,
            None => *known.entry(rule.clone()).or_insert(next),
        }
    }

    /// All rules by number.
    pub fn all(&self) -> BTreeMap<u32, Rule> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(rule, number)| (*number, rule.clone())).collect()
    }
}

thread_local! {
    static DECIDED: Cell<u32> = const { Cell::new(NONE) };
}

/// The rule of this number decided about the request at hand.
#[inline]
pub fn decided(number: u32) {
    DECIDED.set(number);
}

/// Which rule decided since this was asked last.
#[inline]
pub fn take() -> u32 {
    DECIDED.replace(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_keeps_its_number_and_there_is_an_end_to_them() {
        let rules = Rules::default();
        let rule = |n: usize| Rule {
            server: None,
            group: "",
            kind: "default",
            name: n.to_string().into(),
            verdict: Verdict::Allowed,
        };
        let numbers: Vec<u32> = (0..RULES_MAX + 2).map(|n| rules.number(&rule(n))).collect();
        assert_eq!((numbers[0], numbers[RULES_MAX - 1], numbers[RULES_MAX]), (1, 4096, NONE));
        assert_eq!(rules.number(&rule(7)), 8);
        assert_eq!((rules.all().len(), rules.all()[&8].clone()), (RULES_MAX, rule(7)));
        decided(8);
        assert_eq!((take(), take()), (8, NONE));
    }
}
