//! Floor 4: changes a balancer's endpoints and settings, off the path of requests; what is known stays.

use crate::balance::endpoint::Cell;
use crate::balance::hash::address_key;
use crate::balance::rules::{Breaker, Rules};
use crate::balance::set::{Place, Set, Slot};
use crate::balance::subset::{Shift, Subset};
use crate::balance::ticket::Member;
use crate::breaker::detect::Chart;
use crate::discover::endpoint::{Endpoint, EndpointSet};
use crate::stdx::moment::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The number of the last endpoint that was met in this process.
static LAST_ID: AtomicU32 = AtomicU32::new(0);

/// What a set keeps beside an endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Item<S> {
    pub(crate) member: Arc<Member>,
    pub(crate) service: S,
}

/// All endpoints that discovery knows, in use or not; held by whoever updates.
#[derive(Debug)]
pub(crate) struct Roll<S> {
    known: BTreeMap<SocketAddr, Known<S>>,
    subset: Option<Subset>,
    come: u64,
    gone: u64,
}

#[derive(Debug)]
struct Known<S> {
    endpoint: Arc<Endpoint>,
    cell: Arc<Cell>,
    chart: Arc<Chart>,
    service: S,
    /// Where it is in the set; nowhere if it is outside the subset.
    place: Option<Place>,
}

impl<S> Roll<S> {
    /// The services of all endpoints.
    pub(crate) fn services(&self) -> impl Iterator<Item = &S> {
        self.known.values().map(|known| &known.service)
    }

    /// How many endpoints came, and how many went.
    pub(crate) fn changes(&self) -> (u64, u64) {
        (self.come, self.gone)
    }
}

impl<S: Clone> Roll<S> {
    pub(crate) fn new(rules: &Rules) -> Self {
        Self { known: BTreeMap::new(), subset: subset(rules), come: 0, gone: 0 }
    }

    /// Brings the set to `endpoints`, touching only what differs.
    pub(crate) fn update(
        &mut self,
        edit: &mut Edit<'_, S>,
        endpoints: &EndpointSet,
        mut make: impl FnMut(&Arc<Endpoint>) -> S,
    ) {
        let mut gone = Vec::new();
        let mut come = Vec::new();
        // Both are in order of address.
        let mut new = endpoints.iter().peekable();
        for (addr, known) in &self.known {
            while let Some(endpoint) = new.next_if(|endpoint| endpoint.addr < *addr) {
                come.push(endpoint);
            }
            match new.next_if(|endpoint| endpoint.addr == *addr) {
                Some(endpoint) if *known.endpoint == *endpoint => {}
                Some(endpoint) => come.push(endpoint),
                None => gone.push(*addr),
            }
        }
        come.extend(new);
        gone.into_iter().for_each(|addr| self.leave(edit, addr));
        come.into_iter().for_each(|endpoint| self.put(edit, endpoint, &mut make));
    }

    /// One endpoint came or changed.
    pub(crate) fn put(
        &mut self,
        edit: &mut Edit<'_, S>,
        endpoint: &Endpoint,
        mut make: impl FnMut(&Arc<Endpoint>) -> S,
    ) {
        let addr = endpoint.addr;
        if self.known.get(&addr).is_some_and(|known| known.endpoint.identity != endpoint.identity) {
            // Another workload took over the address: nothing that is known holds of it.
            self.leave(edit, addr);
        }
        let endpoint = Arc::new(endpoint.clone());
        if let Some(known) = self.known.get_mut(&addr) {
            let was = std::mem::replace(&mut known.endpoint, endpoint);
            known.change(edit, &was, make);
            return;
        }
        let id = LAST_ID.fetch_add(1, Relaxed).wrapping_add(1);
        let key = address_key(addr);
        let known = Known {
            service: make(&endpoint),
            cell: Arc::new(Cell::new(id, key, edit.now, edit.rules.assumed())),
            chart: edit.rules.breaker.chart(),
            endpoint,
            place: None,
        };
        self.known.insert(addr, known);
        self.come += 1;
        let shift = self.join(addr, key);
        self.shift(edit, shift);
    }

    fn join(&mut self, addr: SocketAddr, key: u64) -> Shift {
        match &mut self.subset {
            Some(subset) => subset.join(addr, key),
            None => Shift { come: Some(addr), gone: None },
        }
    }

    /// One endpoint left.
    pub(crate) fn leave(&mut self, edit: &mut Edit<'_, S>, addr: SocketAddr) {
        let shift = match &mut self.subset {
            Some(subset) => subset.leave(addr, address_key(addr)),
            None => Shift { come: None, gone: Some(addr) },
        };
        self.shift(edit, shift);
        self.gone += u64::from(self.known.remove(&addr).is_some());
    }

    fn shift(&mut self, edit: &mut Edit<'_, S>, shift: Shift) {
        if let Some(known) = shift.gone.and_then(|addr| self.known.get_mut(&addr)) {
            known.disuse(edit);
        }
        if let Some(known) = shift.come.and_then(|addr| self.known.get_mut(&addr)) {
            known.use_in(edit);
        }
    }

    /// Lays everything out anew, by other rules.
    pub(crate) fn renew(&mut self, edit: &mut Edit<'_, S>, before: &Rules) {
        let rules = edit.rules;
        let same = rules.breaker.is(&before.breaker);
        if !same {
            before.breaker.close();
        }
        self.subset = subset(rules);
        let mut inside = BTreeSet::new();
        let all: Vec<SocketAddr> = self.known.keys().copied().collect();
        for addr in all {
            let shift = self.join(addr, address_key(addr));
            shift.gone.map(|gone| inside.remove(&gone));
            shift.come.map(|come| inside.insert(come));
        }
        for (addr, known) in &mut self.known {
            if !same {
                known.chart = rules.breaker.chart();
            }
            match (inside.contains(addr), known.place.take()) {
                (true, _) => known.use_in(edit),
                (false, Some(_)) => {
                    known.cell.retire();
                    edit.discharge(known.cell.id());
                }
                (false, None) => {}
            }
        }
    }
}

/// A set that is being changed.
pub(crate) struct Edit<'a, S> {
    pub(crate) set: &'a mut Set<Item<S>>,
    pub(crate) rules: &'a Arc<Rules>,
    pub(crate) now: Moment,
}

impl<S: Clone> Known<S> {
    /// The description changed.
    fn change(&mut self, edit: &mut Edit<'_, S>, was: &Endpoint, mut make: impl FnMut(&Arc<Endpoint>) -> S) {
        if was.http2 != self.endpoint.http2 || was.server_name != self.endpoint.server_name {
            self.service = make(&self.endpoint);
        }
        let Some(place) = self.place else { return };
        if edit.rules.rank(was) == edit.rules.rank(&self.endpoint) {
            edit.put(place, self.slot(edit, place));
        } else {
            edit.set.remove(place);
            self.use_in(edit);
        }
    }

    fn use_in(&mut self, edit: &mut Edit<'_, S>) {
        let place = edit.set.vacancy(edit.rules.rank(&self.endpoint));
        edit.put(place, self.slot(edit, place));
        self.place = Some(place);
    }

    fn disuse(&mut self, edit: &mut Edit<'_, S>) {
        if let Some(place) = self.place.take() {
            edit.set.remove(place);
            edit.discharge(self.cell.id());
        }
    }

    fn slot(&self, edit: &Edit<'_, S>, place: Place) -> Slot<Item<S>> {
        let member = Member {
            cell: Arc::clone(&self.cell),
            chart: Arc::clone(&self.chart),
            shut: edit.set.tier(place).map(|tier| Arc::clone(tier.shut())).unwrap_or_default(),
            endpoint: Arc::clone(&self.endpoint),
            metrics: edit.rules.metrics(&self.endpoint),
            rules: Arc::clone(edit.rules),
        };
        let weight = if self.endpoint.draining { 0 } else { self.endpoint.weight_milli };
        let item = Item { member: Arc::new(member), service: self.service.clone() };
        Slot { cell: Arc::clone(&self.cell), weight, item }
    }
}

impl<S: Clone> Edit<'_, S> {
    /// Puts a slot in its place, and tells the breaker that a shut endpoint is now known so, or that it gets
    /// nothing new anyway.
    fn put(&mut self, place: Place, slot: Slot<Item<S>>) {
        let (member, weight) = (Arc::clone(&slot.item.member), slot.weight);
        if let (Breaker::Whole(ward), 1.., false) = (&self.rules.breaker, weight, slot.cell.is_open()) {
            ward.rename(&member);
        }
        self.set.put(place, slot);
        if weight == 0 {
            // After it was retired: what trips until then is known by now.
            self.discharge(member.cell.id());
        }
    }

    fn discharge(&self, id: u32) {
        self.rules.breaker.discharge(id);
    }
}

fn subset(rules: &Rules) -> Option<Subset> {
    let size = rules.settings.subset?;
    Some(Subset::new(size.max(1) as usize, rules.subset_seed))
}
