//! Floor 4: sends each request to one of a service's endpoints.

use crate::balance::body::Served;
use crate::balance::count::{Count, Oddities, Oddity};
use crate::balance::future::{BalanceFuture, Pick};
use crate::balance::hash::hash_bytes;
use crate::balance::key::{Found, find};
use crate::balance::local;
use crate::balance::pick::{Ask, Picker, Rule};
use crate::balance::routes::{RoutePass, RouteWard};
use crate::balance::rules::{Breaker, Rules};
use crate::balance::set::{Set, Slot};
use crate::balance::ticket::{Due, Member, Ticket};
use crate::balance::update::{Edit, Item, Roll};
use crate::breaker::ward::Ward;
use crate::classify::outcome::Outcome;
use crate::discover::endpoint::{Endpoint, EndpointSet};
use crate::error::Error;
use crate::policy::call::{EndpointId, MeshRequest, Tried};
use crate::profile::settings::{BalancerSettings, BreakerSettings};
use crate::stdx::clock;
use crate::stdx::clock::{Duration, Instant};
use crate::stdx::moment::Moment;
use crate::stdx::rng::Rng;
use crate::stdx::sync::Swap;
use http::{HeaderValue, Response};
use http_body::Body;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tower_service::Service;

/// How long a request waits for the first endpoints, or for a picked one to become ready. 3 s, as Linkerd's
/// balancer queue has it (linkerd.md §5.4).
pub const FAIL_FAST: Duration = Duration::from_secs(3);

/// Sends each request to one of a service's endpoints.
///
/// Clones share everything: a clone is one reference count. It is always ready; what there is to wait for is
/// waited for inside the call, so a clone that was ready and is dropped holds nothing. Endpoints come by
/// [`Balance::update`], settings by [`Balance::settings`]; neither is on the path of requests, and both keep
/// what is known of endpoints that stay. A response's body is a [`Served`]: it is in flight until its end, and
/// says who sent it.
pub struct Balance<S> {
    pub(crate) core: Arc<Core<S>>,
}

pub(crate) struct Core<S> {
    pub(crate) service: Arc<str>,
    /// The name of requests that met no route.
    pub(crate) nameless: Arc<str>,
    pub(crate) fail_fast: Duration,
    pub(crate) epoch: Instant,
    pub(crate) now: Swap<Snapshot<S>>,
    pub(crate) roll: Mutex<Roll<S>>,
    pub(crate) changed: Arc<Notify>,
    pub(crate) oddities: Oddities,
}

pub(crate) struct Snapshot<S> {
    /// Whether discovery has answered.
    pub(crate) known: bool,
    pub(crate) rules: Arc<Rules>,
    pub(crate) picker: Picker,
    pub(crate) usable: u32,
    pub(crate) set: Set<Item<S>>,
}

impl<S> Clone for Balance<S> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<S> fmt::Debug for Balance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance").field("service", &self.core.service).finish_non_exhaustive()
    }
}

impl<S> Drop for Core<S> {
    /// Shut endpoints hold their ward, and the ward holds them.
    fn drop(&mut self) {
        self.now.load().rules.breaker.close();
    }
}

impl<S: Clone> Balance<S> {
    /// A balancer for `service` without endpoints yet: requests wait for the first update, at most
    /// [`FAIL_FAST`]. Without `breaker` no endpoint is ever left alone.
    pub fn new(
        service: impl Into<Arc<str>>,
        settings: &BalancerSettings,
        breaker: Option<&BreakerSettings>,
        rng: Rng,
    ) -> Self {
        let epoch = clock::now();
        let rules = Arc::new(Rules::new((local::number(), epoch, rng), settings, breaker));
        let roll = Roll::new(&rules);
        let core = Core {
            service: service.into(),
            nameless: "".into(),
            fail_fast: FAIL_FAST,
            epoch,
            now: Swap::from_pointee(Snapshot::new(false, rules, Set::default())),
            roll: Mutex::new(roll),
            changed: Arc::new(Notify::new()),
            oddities: Oddities::default(),
        };
        Self { core: Arc::new(core) }
    }

    /// Counts attempts at each endpoint by what `count` gives for it.
    #[must_use]
    pub fn counted(self, count: Count) -> Self {
        let old = self.core.now.load_full();
        let rules = Arc::new(old.rules.counted(count));
        self.publish(Snapshot::new(old.known, rules, old.set.clone()));
        self
    }

    /// Takes exactly these endpoints from now on. Those that were there before (by address and identity) keep
    /// their number, load, breaker and service; `make` is asked for a service for the others, and for those that
    /// now speak another protocol or by another name. Running requests end where they are.
    ///
    /// Costs a comparison of both sets, and touches what differs; where one change is known, [`Balance::put`]
    /// and [`Balance::remove`] cost that change alone.
    pub fn update(&self, endpoints: &EndpointSet, make: impl FnMut(&Arc<Endpoint>) -> S) {
        self.edit(|roll, edit| roll.update(edit, endpoints, make));
    }

    /// Takes one more endpoint, or another description of one.
    pub fn put(&self, endpoint: &Endpoint, make: impl FnMut(&Arc<Endpoint>) -> S) {
        self.edit(|roll, edit| roll.put(edit, endpoint, make));
    }

    /// Does without one endpoint.
    pub fn remove(&self, addr: SocketAddr) {
        self.edit(|roll, edit| roll.leave(edit, addr));
    }

    fn edit(&self, change: impl FnOnce(&mut Roll<S>, &mut Edit<'_, S>)) {
        let mut roll = self.roll();
        let old = self.core.now.load();
        let mut set = old.set.clone();
        change(&mut roll, &mut Edit { set: &mut set, rules: &old.rules, now: old.rules.now() });
        set.seal();
        self.publish(Snapshot::new(true, Arc::clone(&old.rules), set));
        drop(roll);
        self.core.changed.notify_waiters();
    }

    /// Balances by these settings from now on. What is known of endpoints stays; their breakers stay if the
    /// breaker's settings and `min_ready` are the same, else all endpoints are open again.
    pub fn settings(&self, settings: &BalancerSettings, breaker: Option<&BreakerSettings>) {
        let mut roll = self.roll();
        let old = self.core.now.load();
        let rules = Arc::new(old.rules.renew(settings, breaker));
        let mut set = Set::default();
        roll.renew(&mut Edit { set: &mut set, rules: &rules, now: rules.now() }, &old.rules);
        set.seal();
        self.publish(Snapshot::new(old.known, rules, set));
        drop(roll);
    }

    fn publish(&self, snapshot: Snapshot<S>) {
        snapshot.rules.breaker.resize(snapshot.usable);
        self.core.now.store(Arc::new(snapshot));
    }

    fn roll(&self) -> MutexGuard<'_, Roll<S>> {
        self.core.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An endpoint for `request`, whose attempt begins now, and the cookie that binds its caller to it.
    #[inline]
    pub(crate) fn begin<R: MeshRequest>(&self, request: &R) -> (Pick<S>, Option<Box<HeaderValue>>) {
        let started = match request.state() {
            Some(state) if state.attempt == 0 => state.started,
            _ => clock::now(),
        };
        let now = Moment::since(self.core.epoch, started);
        let snapshot = self.core.now.load();
        if let Some(pick) = snapshot.pinned(request, now) {
            return (pick, None);
        }
        let (hash, cookie) = snapshot.hash(request);
        (self.pick_from(&snapshot, request, now, hash), cookie)
    }

    /// An endpoint for `request`, whose attempt begins at `started`.
    pub(crate) fn pick<R: MeshRequest>(&self, request: &R, started: Instant) -> Pick<S> {
        let snapshot = self.core.now.load();
        let (hash, _) = snapshot.hash(request);
        self.pick_from(&snapshot, request, Moment::since(self.core.epoch, started), hash)
    }

    #[inline]
    fn pick_from<R: MeshRequest>(
        &self,
        snapshot: &Snapshot<S>,
        request: &R,
        now: Moment,
        hash: Option<u64>,
    ) -> Pick<S> {
        let state = request.state();
        let tried = state.map_or_else(Tried::default, |state| state.tried);
        let due = state.and_then(Due::of);
        let rules = &*snapshot.rules;
        let mut panic = false;
        match &rules.breaker {
            Breaker::None => {}
            Breaker::Whole(ward) => {
                if ward.is_awake(now)
                    && let Some((service, member, pass)) = snapshot.probe(ward, now, &tried)
                {
                    self.core.oddities.count(Oddity::Probe);
                    return Pick::Sent(service, Ticket::with_pass(member, pass, now, due));
                }
                panic = rules.panics(snapshot.usable, ward.shut());
                if panic {
                    self.core.oddities.count(Oddity::Panic);
                }
            }
            Breaker::Routes(routes) => {
                let route = routes.of(request.route().map_or(&self.core.nameless, |route| &route.name), now);
                return self.pick_for(snapshot, &route, (now, hash, due), &tried);
            }
        }
        let picked = snapshot.choose(now, hash, panic, |id| tried.contains(EndpointId(id)));
        match picked {
            Some(slot) => Pick::Sent(slot.item.service.clone(), Ticket::take(&slot.item.member, now, due)),
            None => self.refuse(snapshot, now),
        }
    }

    /// An endpoint that `route` does not leave alone.
    fn pick_for(
        &self,
        snapshot: &Snapshot<S>,
        route: &Arc<RouteWard>,
        (now, hash, due): (Moment, Option<u64>, Option<Due>),
        tried: &Tried,
    ) -> Pick<S> {
        let rng = &snapshot.rules.rng;
        if route.ward.is_awake(now)
            && let Some((seat, pass)) = route.attend(now, rng)
        {
            let found = snapshot.set.get(seat.member.cell.place());
            let slot = found.filter(|slot| slot.cell.id() == seat.member.cell.id() && slot.weight > 0);
            match slot.filter(|_| !tried.contains(seat.member.id())) {
                Some(slot) => {
                    let ticket = Ticket::take(&slot.item.member, now, due);
                    let pass = RoutePass { route: Arc::clone(route), seat, pass };
                    return Pick::Sent(slot.item.service.clone(), ticket.of_route(pass));
                }
                // It is not for this request: another may try it.
                None if slot.is_some() => route.ward.record(&seat, pass, rng, &Outcome::DROPPED, || now),
                // It left just before it tripped.
                None => route.discharge(seat.member.cell.id()),
            }
        }
        let all = snapshot.rules.panics(snapshot.usable, route.ward.shut());
        let shut = |id: u32| !all && route.is_shut(id);
        let fresh = snapshot.choose(now, hash, false, |id| tried.contains(EndpointId(id)) || shut(id));
        let open = |slot: &&Slot<Item<S>>| !shut(slot.cell.id());
        let slot = fresh.filter(open).or_else(|| snapshot.choose(now, hash, false, shut).filter(open));
        match slot {
            Some(slot) => {
                let ticket = Ticket::take(&slot.item.member, now, due);
                let pass = route.pass(route.seat(&slot.item.member));
                Pick::Sent(slot.item.service.clone(), ticket.of_route(pass))
            }
            None if snapshot.usable > 0 => {
                self.core.oddities.count(Oddity::BreakerOpen);
                Pick::Refused(Error::BreakerOpen { retry_in: route.ward.soonest(now) })
            }
            None => self.refuse(snapshot, now),
        }
    }

    #[cold]
    fn refuse(&self, snapshot: &Snapshot<S>, now: Moment) -> Pick<S> {
        if !snapshot.known {
            return Pick::Unknown;
        }
        Pick::Refused(match &snapshot.rules.breaker {
            Breaker::Whole(ward) if snapshot.usable > 0 => {
                self.core.oddities.count(Oddity::BreakerOpen);
                Error::BreakerOpen { retry_in: ward.soonest(now) }
            }
            _ => {
                self.core.oddities.count(Oddity::NoEndpoints);
                Error::NoEndpoints { service: Arc::clone(&self.core.service) }
            }
        })
    }
}

impl<S> Balance<S> {
    /// The service's name.
    pub fn service(&self) -> &Arc<str> {
        &self.core.service
    }

    #[inline]
    pub(crate) fn fail_fast(&self) -> Duration {
        self.core.fail_fast
    }

    pub(crate) fn changed(&self) -> OwnedNotified {
        Arc::clone(&self.core.changed).notified_owned()
    }
}

impl<S> Snapshot<S> {
    fn new(known: bool, rules: Arc<Rules>, set: Set<Item<S>>) -> Self {
        Self { known, picker: rules.picker(&set), usable: set.usable(), rules, set }
    }

    /// An endpoint by the rule.
    #[inline]
    fn choose(
        &self,
        now: Moment,
        hash: Option<u64>,
        panic: bool,
        avoid: impl Fn(u32) -> bool,
    ) -> Option<&Slot<Item<S>>> {
        let rng = &self.rules.rng;
        local::with_ring(self.rules.number, |ring| {
            let avoid = &avoid;
            self.picker.pick(&self.set, &Ask { now, rng, hash, ring, panic, avoid })
        })
    }

    /// What the request is hashed by, where the rule hashes; for session affinity also the cookie that binds a
    /// caller who has none yet.
    #[inline]
    fn hash<R: MeshRequest>(&self, request: &R) -> (Option<u64>, Option<Box<HeaderValue>>) {
        if !matches!(self.picker.rule, Rule::Hash(_)) {
            return (None, None);
        }
        if let Some(hash) = request.state().and_then(|state| state.hash) {
            return (Some(hash), None);
        }
        let own = request.route().map(|route| &*route.hash).filter(|keys| !keys.is_empty());
        match find(own.unwrap_or(&self.rules.settings.hash), request.http()) {
            Found::Hash(hash) => (Some(hash), None),
            Found::Nothing => (None, None),
            Found::Make { name, path, ttl } => {
                let value = format!("{:016x}", self.rules.rng.next_u64());
                let path = path.map(|path| format!("; Path={path}")).unwrap_or_default();
                let age = (!ttl.is_zero()).then(|| format!("; Max-Age={}", ttl.as_secs().max(1)));
                let text = format!("{name}=\"{value}\"{path}{}; HttpOnly", age.unwrap_or_default());
                (Some(hash_bytes(value.as_bytes())), HeaderValue::try_from(text).ok().map(Box::new))
            }
        }
    }
}

impl<S: Clone> Snapshot<S> {
    /// The endpoint that this request tries out for all, if one's time has come.
    #[cold]
    fn probe(&self, ward: &Ward<Arc<Member>>, now: Moment, tried: &Tried) -> Option<(S, Arc<Member>, u32)> {
        let everyone = || self.set.iter().map(|(_, slot)| Arc::clone(&slot.item.member)).collect();
        let (member, pass) = ward.attend(now, &self.rules.rng, everyone)?;
        let found = self.set.get(member.cell.place()).filter(|slot| slot.cell.id() == member.cell.id());
        match found {
            Some(slot) if slot.weight > 0 && !tried.contains(member.id()) => {
                Some((slot.item.service.clone(), member, pass))
            }
            Some(slot) if slot.weight > 0 => {
                // It failed this very request before: another request may try it.
                ward.record(&member, pass, &self.rules.rng, &Outcome::DROPPED, || now);
                None
            }
            _ => {
                ward.discharge(member.cell.id());
                None
            }
        }
    }
}

impl<S, R, ResB> Service<R> for Balance<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    ResB: Body,
{
    type Response = Response<Served<ResB>>;
    type Error = Error;
    type Future = BalanceFuture<S, R>;

    /// Always ready.
    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let (pick, cookie) = self.begin(&request);
        BalanceFuture::new(pick, self, request, cookie)
    }
}
