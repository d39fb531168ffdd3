//! Floor 4: breakers for each route apart, so that one bad route does not take an endpoint from the others.

use crate::balance::ticket::Member;
use crate::breaker::detect::Chart;
use crate::breaker::ward::{BedState, Patient, Ward};
use crate::classify::outcome::Outcome;
use crate::profile::settings::BreakerSettings;
use crate::stdx::moment::Moment;
use crate::stdx::rng::Rng;
use crate::stdx::sync::{AtomicU32, Ordering::Relaxed};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The most routes with breakers of their own; those that come later share one. A profile has fewer: Linkerd's
/// largest known has some hundreds.
pub(crate) const ROUTES_MAX: usize = 1024;

/// The wards of a service's routes, made when a route is first met. Asking for one costs a search by name and two
/// shared locks: this is the price of `per_route`, and nobody else pays it.
#[derive(Debug)]
pub(crate) struct RouteWards {
    settings: BreakerSettings,
    min_ready: u32,
    total: AtomicU32,
    wards: RwLock<BTreeMap<Arc<str>, Arc<RouteWard>>>,
}

/// The breakers of one route.
#[derive(Debug)]
pub(crate) struct RouteWard {
    pub(crate) ward: Ward<Arc<Seat>>,
    seats: RwLock<BTreeMap<u32, Arc<Seat>>>,
}

/// One endpoint as one route sees it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) member: Arc<Member>,
    gate: AtomicU32,
    chart: Chart,
    shut: AtomicU32,
}

impl Patient for Arc<Seat> {
    fn number(&self) -> u32 {
        self.member.cell.id()
    }

    fn gate(&self) -> &AtomicU32 {
        &self.gate
    }

    fn chart(&self) -> &Chart {
        &self.chart
    }

    fn shut(&self) -> &AtomicU32 {
        &self.shut
    }
}

/// What a ticket holds of its route's breaker.
#[derive(Debug)]
pub(crate) struct RoutePass {
    pub(crate) route: Arc<RouteWard>,
    pub(crate) seat: Arc<Seat>,
    pub(crate) pass: u32,
}

impl RoutePass {
    pub(crate) fn record(&self, rng: &Rng, outcome: &Outcome, now: impl FnOnce() -> Moment) {
        if !self.seat.member.cell.serves() {
            return;
        }
        self.route.ward.record(&self.seat, self.pass, rng, outcome, now);
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl RouteWards {
    pub(crate) fn new(settings: BreakerSettings, min_ready: u32) -> Self {
        Self { settings, min_ready, total: AtomicU32::new(0), wards: RwLock::default() }
    }

    pub(crate) fn settings(&self) -> &BreakerSettings {
        &self.settings
    }

    /// The ward of a route.
    pub(crate) fn of(&self, name: &Arc<str>, now: Moment) -> Arc<RouteWard> {
        if let Some(ward) = read(&self.wards).get(name) {
            return Arc::clone(ward);
        }
        let mut wards = write(&self.wards);
        let name = if wards.len() < ROUTES_MAX { Arc::clone(name) } else { Arc::from("") };
        let made = || {
            let ward = Ward::new(self.settings.clone(), self.min_ready, now);
            ward.resize(self.total.load(Relaxed));
            Arc::new(RouteWard { ward, seats: RwLock::default() })
        };
        Arc::clone(wards.entry(name).or_insert_with(made))
    }

    /// The service has so many endpoints now.
    pub(crate) fn resize(&self, total: u32) {
        self.total.store(total, Relaxed);
        read(&self.wards).values().for_each(|route| route.ward.resize(total));
    }

    /// An endpoint left.
    pub(crate) fn discharge(&self, id: u32) {
        read(&self.wards).values().for_each(|route| route.discharge(id));
    }

    /// Opens all for good.
    pub(crate) fn close(&self) {
        for route in read(&self.wards).values() {
            route.ward.close();
            write(&route.seats).clear();
        }
    }

    /// The routes that an endpoint is shut for.
    pub(crate) fn shut_for(&self, id: u32) -> Vec<(Arc<str>, BedState)> {
        let wards = read(&self.wards);
        let state =
            |(name, route): (&Arc<str>, &Arc<RouteWard>)| Some((Arc::clone(name), route.ward.state(id)?));
        wards.iter().filter_map(state).collect()
    }

    /// How many endpoints are shut for a route, summed over routes; and how many were spared.
    pub(crate) fn counts(&self) -> (u32, u64) {
        let wards = read(&self.wards);
        let count = |route: &Arc<RouteWard>| (route.ward.shut(), route.ward.spared());
        wards.values().map(count).fold((0, 0), |(shut, spared), (s, p)| (shut + s, spared + p))
    }

    /// The wards with their routes.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, Arc<RouteWard>)> {
        read(&self.wards).iter().map(|(name, route)| (Arc::clone(name), Arc::clone(route))).collect()
    }
}

impl RouteWard {
    /// Whether the route leaves an endpoint alone.
    pub(crate) fn is_shut(&self, id: u32) -> bool {
        self.ward.shut() > 0
            && read(&self.seats).get(&id).is_some_and(|seat| seat.gate.load(Relaxed) & 3 != 0)
    }

    /// The seat of an endpoint.
    pub(crate) fn seat(&self, member: &Arc<Member>) -> Arc<Seat> {
        let id = member.cell.id();
        if let Some(seat) = read(&self.seats).get(&id) {
            return Arc::clone(seat);
        }
        let made = || {
            let (gate, shut) = (AtomicU32::new(0), AtomicU32::new(0));
            Arc::new(Seat { member: Arc::clone(member), gate, chart: self.ward.chart(), shut })
        };
        Arc::clone(write(&self.seats).entry(id).or_insert_with(made))
    }

    /// An endpoint whose time has come, and the pass of the one request that tries it.
    pub(crate) fn attend(&self, now: Moment, rng: &Rng) -> Option<(Arc<Seat>, u32)> {
        self.ward.attend(now, rng, || read(&self.seats).values().cloned().collect())
    }

    pub(crate) fn discharge(&self, id: u32) {
        self.ward.discharge(id);
        write(&self.seats).remove(&id);
    }

    /// A pass for one request.
    pub(crate) fn pass(self: &Arc<Self>, seat: Arc<Seat>) -> RoutePass {
        let pass = seat.gate.load(Relaxed);
        RoutePass { route: Arc::clone(self), seat, pass }
    }
}
