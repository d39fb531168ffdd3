//! Floor 2: what arrives at one listener, counted by who sent it, on which route, and by which rule it was let in.

use crate::metrics::route::{RouteMetrics, RouteNames};
use crate::metrics::rules::Rules;
use crate::metrics::tally::Tally;
use crate::tls::identity::Identity;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The most callers that are counted apart: identities are workloads and not users, and a service with more kinds of callers
/// is rare. Those beyond are counted together, as the caller `other`.
pub const CLIENTS_MAX: usize = 1024;

/// The most sets of caller, route and rule that are counted apart: four for each caller; some 10 KiB each while in use, so
/// 40 MiB at worst. What is beyond is counted together.
pub const CELLS_MAX: usize = 4 * CLIENTS_MAX;

/// Who sent something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// Somebody who proved nothing.
    Unknown,
    /// Somebody who proved to be this.
    Known(Identity),
    /// One of those beyond [`CLIENTS_MAX`].
    Other,
}

/// What one caller sent on one route and one rule decided about.
#[derive(Debug)]
pub struct Heap {
    key: (u64, u32),
    /// The route.
    pub names: RouteNames,
    /// What was counted.
    pub tally: Arc<Tally>,
    /// Whether it is told as gRPC, once that is known.
    grpc: OnceLock<bool>,
    /// How many there were when that last changed, and when.
    rest: Mutex<Option<(u64, Instant)>>,
}

impl Heap {
    /// The number of the rule that decided.
    pub fn rule(&self) -> u32 {
        self.key.1
    }

    /// Whether it is told as gRPC: as its first responses were. `None` before them.
    pub fn is_grpc(&self, found: Option<bool>) -> Option<bool> {
        found.map(|found| *self.grpc.get_or_init(|| found))
    }

    /// Whether nothing came for `retain` and nothing is under way.
    fn is_idle(&self, now: Instant, retain: Duration) -> bool {
        let begun = self.tally.begun();
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        match *rest {
            Some((known, since)) if known == begun && Arc::strong_count(&self.tally) == 1 => {
                now.saturating_duration_since(since) >= retain
            }
            _ => {
                *rest = Some((begun, now));
                false
            }
        }
    }
}

/// The heaps of one caller.
#[derive(Debug, Default)]
pub struct Caller {
    heaps: ArcSwap<Vec<Arc<Heap>>>,
}

impl Caller {
    fn find(&self, key: (u64, u32)) -> Option<Arc<Tally>> {
        let heaps = self.heaps.load();
        let at = heaps.binary_search_by_key(&key, |heap| heap.key).ok()?;
        heaps.get(at).map(|heap| Arc::clone(&heap.tally))
    }

    fn replace(&self, change: impl FnOnce(&mut Vec<Arc<Heap>>)) {
        let mut heaps = Vec::clone(&self.heaps.load());
        change(&mut heaps);
        self.heaps.store(Arc::new(heaps));
    }
}

/// What is known of the listener.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Where it listens; `None` where that is not ours to know.
    pub target: Option<SocketAddr>,
}

/// Everything that arrives at one listener. A request costs one look into a table for a caller by mutual TLS, and a search in
/// a short list; both are replaced when something is new. No lock.
#[derive(Debug)]
pub struct Arrivals {
    place: Place,
    rules: Arc<Rules>,
    known: ArcSwap<HashMap<Identity, Arc<Caller>>>,
    unknown: Arc<Caller>,
    other: Arc<Caller>,
    /// What is beyond [`CELLS_MAX`].
    rest: Arc<Tally>,
    clients_max: usize,
    cells_max: usize,
    /// Held while something is made or forgotten.
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// Heaps that are counted apart.
    heaps: usize,
    /// Those that are forgotten after they were told once more.
    leaving: Vec<(Client, Arc<Heap>)>,
}

impl Arrivals {
    /// Nothing arrived yet.
    pub fn new(place: Place, rules: Arc<Rules>) -> Self {
        Self::with_max(place, rules, CLIENTS_MAX, CELLS_MAX)
    }

    /// The same, with other caps.
    pub fn with_max(place: Place, rules: Arc<Rules>, clients_max: usize, cells_max: usize) -> Self {
        Self {
            place,
            rules,
            known: ArcSwap::default(),
            unknown: Arc::default(),
            other: Arc::default(),
            rest: Arc::default(),
            clients_max,
            cells_max,
            turn: Mutex::default(),
        }
    }

    /// The listener.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The rules that decide.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// What was beyond the caps.
    pub fn rest(&self) -> &Tally {
        &self.rest
    }

    /// A caller; `None`: one that proved nothing.
    #[inline]
    pub fn caller(&self, identity: Option<&Identity>) -> Arc<Caller> {
        let Some(identity) = identity else { return Arc::clone(&self.unknown) };
        match self.known.load().get(identity) {
            Some(caller) => Arc::clone(caller),
            None => self.new_caller(identity),
        }
    }

    #[cold]
    fn new_caller(&self, identity: &Identity) -> Arc<Caller> {
        let _turn = self.turn();
        let mut known = HashMap::clone(&self.known.load());
        if !known.contains_key(identity) && known.len() >= self.clients_max {
            return Arc::clone(&self.other);
        }
        let caller = Arc::clone(known.entry(identity.clone()).or_default());
        self.known.store(Arc::new(known));
        caller
    }

    /// What counts a request of `caller` on `route` that the rule of this number decided about.
    #[inline]
    pub fn tally(&self, caller: &Arc<Caller>, route: &RouteMetrics, rule: u32) -> Arc<Tally> {
        let key = (route.number(), rule);
        caller.find(key).unwrap_or_else(|| self.new_heap(caller, key, route.names()))
    }

    #[cold]
    fn new_heap(&self, caller: &Arc<Caller>, key: (u64, u32), names: &RouteNames) -> Arc<Tally> {
        let mut turn = self.turn();
        if let Some(tally) = caller.find(key) {
            return tally;
        }
        let client = self.client(caller);
        let back = turn.leaving.iter().position(|(of, heap)| Some(of) == client.as_ref() && heap.key == key);
        let heap = match back.map(|at| turn.leaving.swap_remove(at).1) {
            Some(heap) => heap,
            // A caller that was forgotten meanwhile has no name any more.
            None if client.is_none() || turn.heaps >= self.cells_max => return Arc::clone(&self.rest),
            None => {
                turn.heaps += 1;
                let (tally, grpc, rest) = (Arc::default(), OnceLock::new(), Mutex::default());
                Arc::new(Heap { key, names: names.clone(), tally, grpc, rest })
            }
        };
        let tally = Arc::clone(&heap.tally);
        caller.replace(|heaps| {
            let at = heaps.partition_point(|heap| heap.key < key);
            heaps.insert(at, heap);
        });
        tally
    }

    /// Who a caller is; `None` when it was forgotten.
    fn client(&self, caller: &Arc<Caller>) -> Option<Client> {
        self.callers().into_iter().find(|(_, known)| Arc::ptr_eq(known, caller)).map(|(client, _)| client)
    }

    fn callers(&self) -> Vec<(Client, Arc<Caller>)> {
        let known = HashMap::clone(&self.known.load());
        let known = known.into_iter().map(|(identity, caller)| (Client::Known(identity), caller));
        let others = [(Client::Unknown, &self.unknown), (Client::Other, &self.other)];
        let mut all: Vec<_> =
            known.chain(others.map(|(client, caller)| (client, Arc::clone(caller)))).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// All that was counted, in order of callers.
    pub fn all(&self) -> Vec<(Client, Arc<Heap>)> {
        let of = |(client, caller): (Client, Arc<Caller>)| {
            let heaps = Vec::clone(&caller.heaps.load());
            heaps.into_iter().map(move |heap| (client.clone(), heap))
        };
        self.callers().into_iter().flat_map(of).collect()
    }

    /// The same, with what leaves: it is told once more. What did not move for `retain` leaves, and makes room.
    pub fn sweep(&self, now: Instant, retain: Duration) -> Vec<(Client, Arc<Heap>)> {
        let mut turn = self.turn();
        let mut told = std::mem::take(&mut turn.leaving);
        turn.heaps -= told.len();
        told.extend(self.all());
        for (client, caller) in self.callers() {
            let heaps = caller.heaps.load();
            let idle: Vec<_> = heaps.iter().filter(|heap| heap.is_idle(now, retain)).cloned().collect();
            if !idle.is_empty() {
                caller.replace(|heaps| heaps.retain(|heap| !idle.iter().any(|gone| gone.key == heap.key)));
                turn.leaving.extend(idle.into_iter().map(|heap| (client.clone(), heap)));
            }
        }
        let mut known = HashMap::clone(&self.known.load());
        // One is ours, one the table's that is in use; this copy's is the third.
        known.retain(|_, caller| !caller.heaps.load().is_empty() || Arc::strong_count(caller) > 2);
        self.known.store(Arc::new(known));
        told
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::Direction;
    use crate::metrics::route::RouteKind;
    use crate::stdx::clock;
    use std::collections::BTreeMap;

    fn route(name: &str) -> RouteMetrics {
        let (direction, kind) = (Direction::Inbound, RouteKind::Profile);
        RouteMetrics::new(RouteNames { direction, dst: "web:80".into(), route: name.into(), kind })
    }

    fn name(n: u32) -> Identity {
        format!("spiffe://mesh/{n}").parse().unwrap()
    }

    fn arrivals(clients_max: usize, cells_max: usize) -> Arrivals {
        Arrivals::with_max(Place::default(), Arc::default(), clients_max, cells_max)
    }

    fn told(all: &[(Client, Arc<Heap>)]) -> Vec<(Client, &str, u32, u64)> {
        all.iter()
            .map(|(client, heap)| (client.clone(), &*heap.names.route, heap.rule(), heap.tally.begun()))
            .collect()
    }

    #[test]
    fn callers_routes_and_rules_are_counted_apart_up_to_the_caps() {
        let (arrivals, a, b) = (arrivals(2, 5), route("a"), route("b"));
        let count = |caller: Option<u32>, route: &RouteMetrics, rule| {
            let caller = arrivals.caller(caller.map(name).as_ref());
            arrivals.tally(&caller, route, rule).begin();
        };
        count(Some(0), &a, 1);
        count(Some(0), &b, 1);
        count(Some(0), &b, 2);
        count(Some(1), &a, 1);
        count(Some(1), &a, 1);
        count(Some(2), &a, 1);
        count(Some(3), &a, 1);
        count(None, &a, 0);
        let all = arrivals.all();
        let expected = [
            (Client::Known(name(0)), "a", 1, 1),
            (Client::Known(name(0)), "b", 1, 1),
            (Client::Known(name(0)), "b", 2, 1),
            (Client::Known(name(1)), "a", 1, 2),
            (Client::Other, "a", 1, 2),
        ];
        assert_eq!(told(&all), expected);
        assert_eq!(arrivals.rest().begun(), 1, "what is beyond is not lost");
    }

    #[test]
    fn what_rests_leaves_and_makes_room_and_may_come_back() {
        let (arrivals, route, start) = (arrivals(1, 1), route("a"), clock::now());
        let (at, retain) = (|secs| start + Duration::from_secs(secs), Duration::from_secs(600));
        let count = |n| {
            let caller = arrivals.caller(Some(&name(n)));
            arrivals.tally(&caller, &route, 0).begin();
        };
        count(0);
        let known = |n, count| (Client::Known(name(n)), "a", 0, count);
        assert_eq!(told(&arrivals.sweep(at(0), retain)), [known(0, 1)]);
        let held = arrivals.tally(&arrivals.caller(Some(&name(0))), &route, 0);
        assert_eq!(told(&arrivals.sweep(at(700), retain)), [known(0, 1)], "it is under way");
        drop(held);
        arrivals.sweep(at(701), retain);
        assert_eq!(told(&arrivals.sweep(at(1400), retain)), [known(0, 1)]);
        // It leaves; coming back at once it goes on where it was.
        count(0);
        assert_eq!(told(&arrivals.sweep(at(1401), retain)), [known(0, 2)]);
        arrivals.sweep(at(2100), retain);
        assert_eq!(told(&arrivals.sweep(at(2101), retain)), [known(0, 2)], "told once more");
        assert_eq!(told(&arrivals.sweep(at(2102), retain)), []);
        count(1);
        assert_eq!((told(&arrivals.all()), arrivals.rest().begun()), (vec![known(1, 1)], 0));
    }

    #[test]
    fn threads_that_meet_a_new_caller_lose_no_request_while_others_are_forgotten() {
        let (arrivals, route, start) = (arrivals(CLIENTS_MAX, CELLS_MAX), route("a"), clock::now());
        let told = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..2000 {
                        let caller = arrivals.caller(Some(&name(n / 100)));
                        arrivals.tally(&caller, &route, 0).begin();
                    }
                });
            }
            // Everything that no thread holds at the moment is forgotten at once, and its last count kept here.
            let mut told = BTreeMap::new();
            for tick in 0..200 {
                for (_, heap) in arrivals.sweep(start + Duration::from_secs(tick), Duration::ZERO) {
                    told.insert(Arc::as_ptr(&heap.tally) as usize, Arc::clone(&heap.tally));
                }
                std::thread::yield_now();
            }
            told
        });
        let mut all: BTreeMap<usize, Arc<Tally>> = told;
        all.extend(
            arrivals
                .all()
                .into_iter()
                .map(|(_, heap)| (Arc::as_ptr(&heap.tally) as usize, Arc::clone(&heap.tally))),
        );
        let sum: u64 = all.values().map(|tally| tally.begun()).sum();
        assert_eq!(sum + arrivals.rest().begun(), 8000);
    }
}
