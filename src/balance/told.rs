//! Floor 4: what an operator may want to know of a balancer. It costs what the fleet costs, and no request waits for it.

use crate::balance::count::Oddity;
use crate::balance::inspect::{BalanceState, BreakerEvent, BreakerState, EndpointState};
use crate::balance::layer::{Balance, Snapshot};
use crate::balance::routes::RouteWard;
use crate::balance::rules::Breaker;
use crate::balance::set::Slot;
use crate::balance::update::Item;
use crate::breaker::event::Event;
use crate::breaker::ward::BedState;
use crate::policy::call::EndpointId;
use crate::profile::settings::Algorithm;
use crate::stdx::clock::Duration;
use crate::stdx::moment::Moment;
use std::sync::{Arc, PoisonError};

impl<S> Balance<S> {
    /// Everything an operator may want to see. Costs what the fleet costs; not for the request path.
    pub fn inspect(&self) -> BalanceState {
        let snapshot = self.core.now.load();
        let (shut, spared) = match &snapshot.rules.breaker {
            Breaker::None => (0, 0),
            Breaker::Whole(ward) => (ward.shut(), ward.spared()),
            Breaker::Routes(routes) => routes.counts(),
        };
        let mut endpoints: Vec<EndpointState> =
            snapshot.set.iter().map(|(_, slot)| snapshot.state(slot)).collect();
        endpoints.sort_by_key(|state| state.endpoint.addr);
        BalanceState {
            service: Arc::clone(&self.core.service),
            known: snapshot.known,
            algorithm: snapshot.rules.settings.algorithm.unwrap_or(Algorithm::RecentlyFreed),
            endpoints,
            shut,
            spared,
        }
    }

    /// Shows the service of every endpoint, in use or not. Costs what the fleet costs; not for the request path.
    pub fn each(&self, look: impl FnMut(&S)) {
        self.core.roll.lock().unwrap_or_else(PoisonError::into_inner).services().for_each(look);
    }

    /// How often something else happened than the choice of an open endpoint, by [`Oddity::WORDS`].
    pub fn oddities(&self) -> [u64; Oddity::WORDS.len()] {
        self.core.oddities.read()
    }

    /// How many endpoints came, and how many went.
    pub fn changes(&self) -> (u64, u64) {
        self.core.roll.lock().unwrap_or_else(PoisonError::into_inner).changes()
    }

    /// How often each event of the breakers happened, by [`What::words`](crate::breaker::event::What::words). New
    /// breaker settings begin at 0 again.
    pub fn told(&self) -> Vec<((&'static str, &'static str), u64)> {
        match &self.core.now.load().rules.breaker {
            Breaker::None => Vec::new(),
            Breaker::Whole(ward) => ward.told(),
            Breaker::Routes(routes) => {
                routes.all().into_iter().flat_map(|(_, route)| route.ward.told()).collect()
            }
        }
    }

    /// What the breakers did, from event number `from` on, the oldest first. The last
    /// [`EVENTS_MAX`](crate::breaker::ward::EVENTS_MAX) are kept; a gap in the numbers says that some were lost.
    /// Each route counts its own where breakers are for each route apart. New breaker settings begin at 0 again.
    pub fn events(&self, from: u64) -> Vec<BreakerEvent> {
        let snapshot = self.core.now.load();
        let addr = |id: u32| {
            let mut slots = snapshot.set.iter();
            slots.find(|(_, slot)| slot.cell.id() == id).map(|(_, slot)| slot.item.member.endpoint.addr)
        };
        let told = |route: Option<Arc<str>>, event: Event| BreakerEvent {
            number: event.number,
            at: self.core.epoch + event.at.since_moment(Moment::default()),
            endpoint: EndpointId(event.endpoint),
            addr: addr(event.endpoint),
            route,
            what: event.what,
        };
        match &snapshot.rules.breaker {
            Breaker::None => Vec::new(),
            Breaker::Whole(ward) => ward.events(from).into_iter().map(|event| told(None, event)).collect(),
            Breaker::Routes(routes) => {
                let of = |(name, route): (Arc<str>, Arc<RouteWard>)| {
                    let events = route.ward.events(from);
                    events.into_iter().map(|event| told(Some(Arc::clone(&name)), event)).collect::<Vec<_>>()
                };
                routes.all().into_iter().flat_map(of).collect()
            }
        }
    }
}

impl<S> Snapshot<S> {
    fn state(&self, slot: &Slot<Item<S>>) -> EndpointState {
        let (cell, rules, now) = (&slot.cell, &self.rules, self.rules.now());
        let latency = cell.latency();
        let seen = |bed: BedState| match bed.probing {
            true => BreakerState::Probing,
            false => BreakerState::Shut { reason: bed.reason, retry_in: bed.until.since_moment(now) },
        };
        let (breaker, routes) = match &rules.breaker {
            Breaker::None => (BreakerState::Open, Vec::new()),
            Breaker::Whole(ward) => (ward.state(cell.id()).map_or(BreakerState::Open, seen), Vec::new()),
            Breaker::Routes(routes) => {
                let routes = routes.shut_for(cell.id()).into_iter();
                (BreakerState::Open, routes.map(|(name, bed)| (name, seen(bed))).collect())
            }
        };
        EndpointState {
            id: EndpointId(cell.id()),
            endpoint: Arc::clone(&slot.item.member.endpoint),
            latency: (!latency.assumed).then(|| Duration::from_secs_f32(latency.secs)),
            health: cell.health(now),
            in_flight: cell.in_flight(),
            load: rules.formula.score(&cell.view(), now),
            breaker,
            routes,
            ready: slot.weight > 0,
        }
    }
}
