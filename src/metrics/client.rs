//! Floor 2: what each caller did, by the identity that it proved.

use crate::metrics::tally::Tally;
use crate::tls::identity::Identity;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;

/// The most callers that are counted apart: identities are workloads and not users, and a service with more kinds of callers
/// is rare. Those beyond are counted together.
pub const CLIENTS_MAX: usize = 1024;

/// A caller and its calls.
pub type Caller = (Option<Identity>, Arc<Tally>);

/// The calls of every caller. A request by mutual TLS costs one look into a table, which is replaced when a caller is new; no lock.
#[derive(Debug)]
pub struct Clients {
    known: ArcSwap<HashMap<Identity, Arc<Tally>>>,
    unknown: Arc<Tally>,
    others: Arc<Tally>,
    max: usize,
}

impl Default for Clients {
    fn default() -> Self {
        Self::new(CLIENTS_MAX)
    }
}

impl Clients {
    /// None yet, and at most so many.
    pub fn new(max: usize) -> Self {
        Self { known: ArcSwap::default(), unknown: Arc::default(), others: Arc::default(), max }
    }

    /// What counts the calls of this caller; `None`: one that proved nothing.
    #[inline]
    pub fn of(&self, caller: Option<&Identity>) -> Arc<Tally> {
        let Some(caller) = caller else { return Arc::clone(&self.unknown) };
        match self.known.load().get(caller) {
            Some(tally) => Arc::clone(tally),
            None => self.new_caller(caller),
        }
    }

    #[cold]
    fn new_caller(&self, caller: &Identity) -> Arc<Tally> {
        let tally: Arc<Tally> = Arc::default();
        self.known.rcu(|known| {
            let mut known = HashMap::clone(known);
            if known.len() < self.max {
                known.entry(caller.clone()).or_insert_with(|| Arc::clone(&tally));
            }
            known
        });
        self.known.load().get(caller).map_or_else(|| Arc::clone(&self.others), Arc::clone)
    }

    /// All callers by identity; `None` are those that proved nothing, and the last one stands for all beyond the cap.
    pub fn all(&self) -> (Vec<Caller>, Arc<Tally>) {
        let known = HashMap::clone(&self.known.load());
        let mut all: Vec<_> = known.into_iter().map(|(caller, tally)| (Some(caller), tally)).collect();
        all.push((None, Arc::clone(&self.unknown)));
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        (all, Arc::clone(&self.others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_counted_apart_up_to_the_cap() {
        let clients = Clients::new(2);
        let name = |n: u32| format!("spiffe://mesh/{n}").parse::<Identity>().unwrap();
        for n in [0, 1, 1, 2, 3] {
            clients.of(Some(&name(n))).begin();
        }
        clients.of(None).begin();
        let (all, others) = clients.all();
        let told: Vec<_> = all.iter().map(|(caller, tally)| (caller.clone(), tally.read().begun)).collect();
        assert_eq!(told, [(None, 1), (Some(name(0)), 1), (Some(name(1)), 2)]);
        assert_eq!(others.read().begun, 2);
    }

    #[test]
    fn new_callers_of_many_threads_lose_no_call() {
        let clients = Clients::default();
        let name: Identity = "spiffe://mesh/a".parse().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| clients.of(Some(&name)).begin()));
            }
        });
        assert_eq!(clients.of(Some(&name)).read().begun, 4000);
    }
}
