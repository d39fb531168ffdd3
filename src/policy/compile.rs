//! Floor 3: compiles a profile into what requests read; memory whose settings are equal is carried over.

use crate::classify::classifier::Classifier;
use crate::fault::decide::{FaultPolicy, FaultSwitch};
use crate::limit::rate::RateLimits;
use crate::metrics::ledger::Collect;
use crate::metrics::limit::LimitCounts;
use crate::metrics::names::Direction;
use crate::metrics::route::{BackendMetrics, RouteKind, RouteMetrics, RouteNames};
use crate::metrics::set::MetricsSet;
use crate::policy::defaults;
use crate::policy::limits::{Counted, Guard, SharedLimits, holds_outbound, keep_rates};
use crate::policy::route::{
    Answer, Extras, MirrorEntry, RouteEntry, RoutePolicy, Target, TimeoutPolicy, Turn,
};
use crate::policy::turns::Turns;
use crate::profile::invalid::{Fault, Invalid};
use crate::profile::matching::Condition;
use crate::profile::name::ServiceName;
use crate::profile::route::{Action, Backend, Choice, Filter, Forward, Mirror, Route, WeightedBackend};
use crate::profile::service::{DefaultsProfile, NoMatch, ServiceProfile};
use crate::profile::settings::{BudgetSettings, HashKey, RateLimit, RetrySettings};
use crate::retry::budget::Budget;
use crate::retry::decide::RetryPolicy;
use crate::route::cors::CorsPolicy;
use crate::route::filter::Filters;
use crate::route::head::RequestHead;
use crate::route::matcher::Matcher;
use crate::route::redirect::Redirection;
use crate::split::mirror::COPY_MAX;
use crate::split::pick::BACKENDS_MAX;
use crate::split::pick::Schedule;
use crate::split::sticky::Sticky;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A service's policy: its routes, ready to be read. Immutable; an update makes a new one.
#[derive(Debug)]
pub struct Policy<T> {
    service: Arc<str>,
    matcher: Matcher,
    routes: Vec<Arc<RouteEntry<T>>>,
    default: Option<Arc<RouteEntry<T>>>,
    budget: Arc<Budget>,
    limits: SharedLimits,
    asks_caller: bool,
    profile: Arc<ServiceProfile>,
}

/// What compiling needs besides the profile.
#[derive(Debug)]
pub struct Compiler<'a> {
    /// The service's label `dst`.
    pub service: Arc<str>,
    /// Where the service's traffic goes when its profile does not say.
    pub own: ServiceName,
    /// Which way the traffic goes.
    pub direction: Direction,
    /// Where handles come from.
    pub metrics: &'a MetricsSet,
    /// What turns the faults of routes off.
    pub faults: FaultSwitch,
}

impl<T> Policy<T> {
    /// The route of a request: the first whose condition holds, else the default route; `None` when the profile
    /// says that unmatched requests are not found.
    #[inline]
    pub fn find(&self, head: &RequestHead<'_>) -> Option<&Arc<RouteEntry<T>>> {
        match self.matcher.find(head) {
            Some(index) => self.routes.get(index),
            None => self.default.as_ref(),
        }
    }

    /// Whether a route speaks of who calls.
    #[inline]
    pub fn asks_caller(&self) -> bool {
        self.asks_caller
    }

    /// The label `dst`.
    pub fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// The profile this was compiled from.
    pub fn profile(&self) -> &Arc<ServiceProfile> {
        &self.profile
    }

    /// What bounds the service's retries.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// What limits all routes together.
    pub fn limits(&self) -> &SharedLimits {
        &self.limits
    }

    /// The routes in order, without the default one.
    pub fn routes(&self) -> &[Arc<RouteEntry<T>>] {
        &self.routes
    }

    /// The route of requests that no other is for.
    pub fn default_route(&self) -> Option<&Arc<RouteEntry<T>>> {
        self.default.as_ref()
    }

    /// All routes with what is compiled of them, the default one last.
    fn entries(&self) -> impl Iterator<Item = (Option<&Route>, &RouteEntry<T>)> {
        let written = self.profile.routes.iter().map(Some).chain([None]);
        written.zip(self.routes.iter().chain(&self.default).map(|entry| &**entry))
    }

    /// The conditions of the routes, for explanations.
    pub fn matcher(&self) -> &Matcher {
        &self.matcher
    }
}

impl Compiler<'_> {
    /// Compiles `profile`; the budget of `before` is kept if its settings are the same.
    ///
    /// `target` makes a backend of a service's name: in a running stack its balancer.
    ///
    /// # Errors
    /// Every fault of the profile: patterns that do not compile, names that are none.
    pub fn compile<T>(
        &self,
        profile: Arc<ServiceProfile>,
        before: Option<&Policy<T>>,
        mut target: impl FnMut(&ServiceName) -> T,
    ) -> Result<Policy<T>, Invalid> {
        let matcher = Matcher::compile(profile.routes.iter().map(|route| &route.condition));
        let matcher = matcher.map_err(|faults| invalid(&profile.routes, faults))?;
        let settings = profile.retry_budget.unwrap_or_else(|| defaults::budget(profile.defaults));
        let budget = keep(before.map(|before| &before.budget), settings);
        let kept = Kept {
            budget: Arc::clone(&budget),
            budgets: before.map(own_budgets).unwrap_or_default(),
            limits: self.shared_limits(&profile, before),
            rates: before.map(own_rates).unwrap_or_default(),
        };
        let mut faults = Vec::new();
        let mut turns = Turns::of(before.map(Policy::entries).into_iter().flatten());
        let mut compile = |index: usize, route: &Route| {
            let entry = self.entry(&profile, route, &kept, &mut turns, &mut target);
            entry.map(Arc::new).map_err(|fault| faults.push((index, fault))).ok()
        };
        let routes =
            profile.routes.iter().enumerate().filter_map(|(index, route)| compile(index, route)).collect();
        let default = match profile.no_match {
            NoMatch::Forward => {
                compile(usize::MAX, &Route { condition: Condition::Always, ..Route::default() })
            }
            NoMatch::NotFound => None,
        };
        if !faults.is_empty() {
            return Err(invalid(&profile.routes, faults));
        }
        let (service, limits) = (Arc::clone(&self.service), kept.limits);
        let asks_caller = profile.routes.iter().any(|route| route.condition.asks_caller(&|_| true));
        Ok(Policy { service, matcher, routes, default, budget, limits, asks_caller, profile })
    }

    fn entry<T>(
        &self,
        profile: &ServiceProfile,
        route: &Route,
        kept: &Kept,
        turns: &mut Turns,
        target: &mut impl FnMut(&ServiceName) -> T,
    ) -> Result<RouteEntry<T>, Fault> {
        let mut policy = self.route(profile, route, kept)?;
        let own = route.own_backends();
        let said = if own.is_empty() { &*profile.backends } else { own };
        if said.len() > BACKENDS_MAX {
            let problem = format!("are {} and {BACKENDS_MAX} at most share a route's requests", said.len());
            return Err(Fault::rejected("backends", problem, "name fewer"));
        }
        let mut backends = Vec::with_capacity(said.len().max(1));
        let mut weights = Vec::with_capacity(said.len().max(1));
        for backend in said {
            backends.push(self.target(route, backend, target)?);
            weights.push(backend.weight);
        }
        if weights.iter().all(|weight| *weight == 0) && own.is_empty() {
            (backends, weights) = (vec![Target::Service(target(&self.own), None)], vec![1]);
        }
        policy.backends = self.count_backends(&policy.metrics, said, backends.len());
        let schedule = turns.take(route, &weights);
        let (mirrored, turn) = match &route.action {
            Action::Forward(forward) => (&*forward.mirrors, turn(forward, route, &self.own, said)),
            Action::Redirect(_) | Action::Respond(_) => (&[][..], Turn::Weighted),
        };
        let mirrors = self.mirrors(route, &policy, mirrored, turns, target);
        Ok(RouteEntry::new(policy, backends, schedule).by(turn).mirrored(mirrors))
    }

    fn route(&self, profile: &ServiceProfile, route: &Route, kept: &Kept) -> Result<RoutePolicy, Fault> {
        let fallback = defaults::retry(profile.defaults);
        let said = route.retry.as_ref().or(profile.retry.as_ref());
        let retry = said.or(fallback.as_ref());
        let own_budget = |settings: &RetrySettings| match settings.budget {
            Some(own) => keep(kept.budgets.get(&route.name), own),
            None => Arc::clone(&kept.budget),
        };
        let (filters, answer) = actions(route)?;
        Ok(RoutePolicy {
            service: Arc::clone(&self.service),
            name: Arc::clone(&route.name),
            timeouts: defaults::timeouts(profile.defaults, &route.timeouts, &profile.timeouts),
            retry: retry.map(|settings| RetryPolicy::compile(settings, own_budget(settings))),
            retry_is_asked: said.is_some() || defaults::retries_unasked(profile.defaults),
            guard: self.guard(route, kept).map(Box::new),
            filters: Arc::new(filters),
            answer,
            classifier: Arc::new(Classifier::new(route.response_classes.clone())),
            metrics: self.counted(profile.defaults, &self.service, &route.name),
            backends: Box::default(),
            hash: hash(route, profile).into(),
            extras: extras(route)?.map(Box::new),
        })
    }

    /// What is counted of a route that is called so.
    fn counted(&self, defaults: DefaultsProfile, dst: &Arc<str>, route: &Arc<str>) -> Arc<RouteMetrics> {
        let kind = match defaults {
            _ if route.is_empty() => RouteKind::Default,
            DefaultsProfile::GatewayApi => RouteKind::Gateway,
            _ => RouteKind::Profile,
        };
        let (direction, dst, route) = (self.direction, Arc::clone(dst), Arc::clone(route));
        self.metrics.named(&RouteNames { direction, dst, route, kind })
    }

    /// What is counted of a route's backends: of those that are `said`, or of the service itself.
    fn count_backends(
        &self,
        metrics: &RouteMetrics,
        said: &[WeightedBackend],
        count: usize,
    ) -> Box<[Arc<BackendMetrics>]> {
        if self.direction == Direction::Inbound {
            return Box::default();
        }
        let named = |backend: &WeightedBackend| match &backend.backend {
            Backend::Service { name, .. } => name.or_some_port(self.own.port()).to_string().into(),
            Backend::Invalid { .. } => "invalid".into(),
        };
        let names: Vec<Arc<str>> = match said.len() == count {
            true => said.iter().map(named).collect(),
            false => vec![Arc::clone(&self.service)],
        };
        names.iter().map(|name| metrics.backend(name)).collect()
    }

    fn shared_limits<T>(&self, profile: &ServiceProfile, before: Option<&Policy<T>>) -> SharedLimits {
        let holds = |rate: &RateLimit| self.holds(rate);
        let before = before.map(Policy::limits);
        let limits = SharedLimits::compile(&profile.limits, before, &self.service, self.side(), holds);
        self.tell(limits.rates.as_ref().map(|rates| &rates.counts));
        self.tell(limits.places.as_ref().map(|places| &places.counts));
        limits
    }

    /// What keeps the requests of a route back. Faults are for what is sent: whoever takes a request would break it twice.
    fn guard(&self, route: &Route, kept: &Kept) -> Option<Guard> {
        let own = route.rates.iter().filter(|rate| self.holds(rate)).cloned().collect();
        let name = || format!("{}rate {}", self.side(), route.name);
        let own = keep_rates(kept.rates.get(&route.name), own, &self.service, name);
        self.tell(own.as_ref().map(|own| &own.counts));
        let limits = kept.limits.of_route(own);
        let faults = route.fault.clone().filter(|_| self.direction == Direction::Outbound);
        let faults = faults.map(|settings| FaultPolicy::new(settings, self.faults.clone()));
        (!limits.is_empty() || faults.is_some()).then_some(Guard { limits, faults })
    }

    fn holds(&self, rate: &RateLimit) -> bool {
        self.direction == Direction::Inbound || holds_outbound(rate)
    }

    /// What stands before the names of limits, so that both sides of one service are told apart.
    fn side(&self) -> &'static str {
        match self.direction {
            Direction::Outbound => "",
            Direction::Inbound => "inbound ",
        }
    }

    /// Shows what is counted of a limit, from its making on.
    fn tell(&self, counts: Option<&Arc<LimitCounts>>) {
        if let Some(counts) = counts.filter(|counts| counts.is_new()) {
            let counts: Arc<dyn Collect> = Arc::<LimitCounts>::clone(counts);
            self.metrics.add(&counts);
        }
    }

    /// Where copies of a route's requests go. Nothing that arrives is copied, and no copy goes to what cannot be.
    fn mirrors<T>(
        &self,
        route: &Route,
        policy: &RoutePolicy,
        mirrors: &[Mirror],
        turns: &mut Turns,
        target: &mut impl FnMut(&ServiceName) -> T,
    ) -> Vec<MirrorEntry<T>> {
        let mut made = Vec::new();
        for mirror in mirrors.iter().filter(|_| self.direction == Direction::Outbound) {
            let Backend::Service { name, .. } = &mirror.backend else { continue };
            let name = name.or_some_port(self.own.port());
            let (service, copies): (Arc<str>, Arc<str>) =
                (name.to_string().into(), format!("mirror of {}", policy.name).into());
            let budget = turns.budget(&copies, &service, route);
            let copy = RoutePolicy {
                metrics: self.counted(DefaultsProfile::Enmesh, &service, &copies),
                backends: Box::default(),
                service,
                name: copies,
                timeouts: copy_timeouts(&policy.timeouts),
                retry: None,
                retry_is_asked: false,
                guard: None,
                filters: Arc::default(),
                answer: None,
                classifier: Arc::clone(&policy.classifier),
                hash: policy.hash.clone(),
                extras: None,
            };
            let schedule = Arc::new(Schedule::new(&[1]));
            let entry = RouteEntry::new(copy, vec![Target::Service(target(&name), None)], schedule);
            let yes = mirror.share.numerator;
            let no = mirror.share.denominator.saturating_sub(yes);
            made.push(MirrorEntry::new([yes, no], Arc::new(entry), budget));
        }
        made
    }

    fn target<T>(
        &self,
        route: &Route,
        backend: &WeightedBackend,
        target: &mut impl FnMut(&ServiceName) -> T,
    ) -> Result<Target<T>, Fault> {
        Ok(match &backend.backend {
            Backend::Service { name, .. } => {
                let name = name.or_some_port(self.own.port());
                let filters = Filters::compile(&backend.filters, &route.condition)?;
                Target::Service(target(&name), (!filters.is_empty()).then(|| Arc::new(filters)))
            }
            Backend::Invalid { status, grpc, reason } => {
                Target::Invalid { status: *status, grpc: *grpc, reason: Arc::clone(reason) }
            }
        })
    }
}

/// What a compilation shares among routes, and what routes had of their own before, by name.
struct Kept {
    budget: Arc<Budget>,
    budgets: BTreeMap<Arc<str>, Arc<Budget>>,
    limits: SharedLimits,
    rates: BTreeMap<Arc<str>, Counted<RateLimits>>,
}

/// The rates of routes by name, but for the service's, which they share.
fn own_rates<T>(before: &Policy<T>) -> BTreeMap<Arc<str>, Counted<RateLimits>> {
    let own = |entry: &Arc<RouteEntry<T>>| {
        let own = entry.policy.guard.as_ref()?.limits.own_rates.clone()?;
        Some((Arc::clone(&entry.policy.name), own))
    };
    before.routes.iter().filter_map(own).collect()
}

/// The budgets of routes by name, but for the service's, which they share.
fn own_budgets<T>(before: &Policy<T>) -> BTreeMap<Arc<str>, Arc<Budget>> {
    let retries =
        before.routes.iter().filter_map(|entry| Some((&entry.policy.name, entry.policy.retry.as_ref()?)));
    let own = retries.filter(|(_, retry)| !Arc::ptr_eq(retry.budget(), &before.budget));
    own.map(|(name, retry)| (Arc::clone(name), Arc::clone(retry.budget()))).collect()
}

/// How a route's backends are chosen.
fn turn(forward: &Forward, route: &Route, own: &ServiceName, said: &[WeightedBackend]) -> Turn {
    let name = |backend: &WeightedBackend| match &backend.backend {
        Backend::Service { name, subset } => {
            let name = name.or_some_port(own.port());
            format!("{name}/{}", subset.as_deref().unwrap_or_default())
        }
        Backend::Invalid { reason, .. } => format!("invalid {reason}"),
    };
    match forward.choice {
        _ if said.len() < 2 => Turn::Weighted,
        Choice::FirstAvailable => Turn::First,
        Choice::Sticky => {
            let named: Vec<(String, u32)> =
                said.iter().map(|backend| (name(backend), backend.weight)).collect();
            Turn::Sticky(Sticky::new(named.iter().map(|(name, weight)| (&**name, *weight))))
        }
        Choice::Weighted if route.session.is_some() => Turn::Session,
        Choice::Weighted => Turn::Weighted,
    }
}

/// What a route's requests are hashed by; for sticky backends what the service says, where the route says nothing.
fn hash(route: &Route, profile: &ServiceProfile) -> Vec<HashKey> {
    let sticky = matches!(&route.action, Action::Forward(Forward { choice: Choice::Sticky, .. }))
        && route.hash.is_empty();
    if sticky { profile.balancer.hash.clone() } else { route.hash.clone() }
}

/// What only few routes have.
fn extras(route: &Route) -> Result<Option<Extras>, Fault> {
    let mut extras = Extras { session: route.session.clone(), ..Extras::default() };
    if let Action::Forward(forward) = &route.action {
        extras.mirrored = !forward.mirrors.is_empty();
        for filter in &forward.filters {
            if let Filter::Cors(cors) = filter {
                extras.cors = Some(CorsPolicy::compile(cors)?);
            }
        }
    }
    Ok((extras.mirrored || extras.cors.is_some() || extras.session.is_some()).then_some(extras))
}

/// A copy takes no longer than what it is a copy of may, and never for ever.
fn copy_timeouts(of: &TimeoutPolicy) -> TimeoutPolicy {
    let request = of.request.map_or(COPY_MAX, |request| request.min(COPY_MAX));
    TimeoutPolicy { request: Some(request), ..*of }
}

/// What a route changes, and what it answers by itself.
fn actions(route: &Route) -> Result<(Filters, Option<Answer>), Fault> {
    match &route.action {
        Action::Forward(forward) => Ok((Filters::compile(&forward.filters, &route.condition)?, None)),
        Action::Redirect(redirect) => {
            let redirection = Redirection::compile(redirect, &route.condition)?;
            Ok((Filters::default(), Some(Answer::Redirect(redirection))))
        }
        Action::Respond(respond) => Ok((Filters::default(), Some(Answer::Fixed(respond.clone())))),
    }
}

fn keep(before: Option<&Arc<Budget>>, settings: BudgetSettings) -> Arc<Budget> {
    match before {
        Some(budget) if *budget.settings() == settings => Arc::clone(budget),
        _ => Arc::new(Budget::new(&settings)),
    }
}

fn invalid(routes: &[Route], faults: Vec<(usize, Fault)>) -> Invalid {
    let told = |(index, fault): (usize, Fault)| {
        let route = routes.get(index);
        let place = route.map(written).unwrap_or_default();
        let parts = [place, fault.path].into_iter().filter(|part| !part.is_empty());
        let name = route.map(|route| &*route.name).unwrap_or_default();
        Fault {
            path: parts.collect::<Vec<_>>().join("."),
            problem: format!("{} (route `{name}`)", fault.problem),
            ..fault
        }
    };
    Invalid { faults: faults.into_iter().map(told).collect() }
}

/// Where its document has a route: `spec.routes[1]` of `web.yaml#0:routes[1]`; empty for one that is of no document.
fn written(route: &Route) -> String {
    let (_, path) = route.origin.rsplit_once(':').unwrap_or_default();
    if path.starts_with("routes[") { format!("spec.{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::matching::{PathKind, PathMatch};
    use crate::profile::route::Forward;
    use crate::profile::service::DefaultsProfile;

    fn compile(profile: ServiceProfile, before: Option<&Policy<String>>) -> Result<Policy<String>, Invalid> {
        let metrics = MetricsSet::unseen();
        let own: ServiceName = "web.ns:80".parse().unwrap();
        let compiler = Compiler {
            service: "web".into(),
            own,
            direction: Direction::Outbound,
            metrics: &metrics,
            faults: FaultSwitch::default(),
        };
        compiler.compile(Arc::new(profile), before, ToString::to_string)
    }

    fn profile() -> ServiceProfile {
        ServiceProfile::new("web.ns".parse().unwrap())
    }

    fn path(kind: PathKind, value: &str) -> Route {
        Route {
            name: value.into(),
            condition: Condition::Path(PathMatch::new(kind, value)),
            ..Route::default()
        }
    }

    fn find(policy: &Policy<String>, path: &str) -> Option<String> {
        let request = http::Request::get(path).body(()).unwrap();
        policy.find(&RequestHead::of_request(&request)).map(|entry| entry.policy.name.to_string())
    }

    #[test]
    fn what_no_route_is_for_meets_the_default_route_or_none() {
        let routes = vec![path(PathKind::Exact, "/a"), path(PathKind::PrefixElement, "/b")];
        let policy = compile(ServiceProfile { routes: routes.clone(), ..profile() }, None).unwrap();
        assert_eq!(find(&policy, "/b/c").as_deref(), Some("/b"));
        assert_eq!(find(&policy, "/c").as_deref(), Some(""));
        let strict = ServiceProfile { routes, no_match: NoMatch::NotFound, ..profile() };
        assert_eq!(find(&compile(strict, None).unwrap(), "/c"), None);
    }

    #[test]
    fn an_update_keeps_the_budget_unless_its_settings_changed() {
        let first = compile(profile(), None).unwrap();
        let routes = vec![path(PathKind::Exact, "/new")];
        let second = compile(ServiceProfile { routes, ..profile() }, Some(&first)).unwrap();
        assert!(Arc::ptr_eq(first.budget(), second.budget()));
        let linkerd = ServiceProfile { defaults: DefaultsProfile::Linkerd, ..profile() };
        assert!(!Arc::ptr_eq(first.budget(), compile(linkerd, Some(&second)).unwrap().budget()));
    }

    #[test]
    fn a_routes_own_budget_is_kept_too() {
        let own = |ratio_ppm| ServiceProfile {
            routes: vec![Route {
                retry: Some(RetrySettings {
                    budget: Some(BudgetSettings::ActiveShare { ratio_ppm, min_concurrent: 1 }),
                    ..RetrySettings::default()
                }),
                ..path(PathKind::Exact, "/a")
            }],
            ..profile()
        };
        let budget =
            |policy: &Policy<String>| Arc::clone(policy.routes()[0].policy.retry.as_ref().unwrap().budget());
        let first = compile(own(1), None).unwrap();
        let second = compile(own(1), Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&budget(&first), &budget(&second)));
        assert!(!Arc::ptr_eq(&budget(&second), &budget(&compile(own(2), Some(&second)).unwrap())));
    }

    #[test]
    fn backends_come_from_the_route_then_the_service_and_all_zero_is_the_service_itself() {
        let to = |name: &str, weight| WeightedBackend {
            backend: Backend::Service { name: name.parse().unwrap(), subset: None },
            weight,
            filters: Vec::new(),
        };
        let targets = |profile| {
            let policy: Policy<String> = compile(profile, None).unwrap();
            let entry = Arc::clone(policy.routes().first().or(policy.default_route()).unwrap());
            (0..4)
                .map(|_| entry.backend().map_or_else(|error| error.to_string(), |(name, _)| name.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(targets(profile()), ["web.ns:80"; 4]);
        let split = ServiceProfile { backends: vec![to("a", 1), to("b:1", 1)], ..profile() };
        assert_eq!(targets(split), ["a:80", "b:1", "a:80", "b:1"]);
        let zero = ServiceProfile { backends: vec![to("a", 0), to("b", 0)], ..profile() };
        assert_eq!(targets(zero), ["web.ns:80"; 4]);
        let forward = Action::Forward(Forward { backends: vec![to("c", 0)], ..Forward::default() });
        let route =
            ServiceProfile { routes: vec![Route { action: forward, ..Route::default() }], ..profile() };
        assert_eq!(targets(route), ["the route's backend cannot be used: no backend has a weight"; 4]);
    }

    #[test]
    fn more_backends_than_there_are_turns_for_are_refused() {
        let to = |count: usize| {
            let service = |_| {
                let name = "a.ns".parse().unwrap();
                let backend = Backend::Service { name, subset: None };
                WeightedBackend { backend, weight: 1, filters: Vec::new() }
            };
            let backends = (0..count).map(service).collect();
            compile(ServiceProfile { backends, ..ServiceProfile::new("web.ns".parse().unwrap()) }, None)
        };
        assert!(to(BACKENDS_MAX).is_ok());
        let refused = to(BACKENDS_MAX + 1).err().map(|invalid| invalid.to_string()).unwrap_or_default();
        assert!(refused.contains("backends: are 257 and 256 at most"), "{refused}");
    }

    #[test]
    fn an_update_keeps_whose_turn_it_is_unless_the_weights_changed() {
        let to = |name: &str, weight| WeightedBackend {
            backend: Backend::Service { name: name.parse().unwrap(), subset: None },
            weight,
            filters: Vec::new(),
        };
        let with = |weight, routes| ServiceProfile {
            backends: vec![to("a", 3), to("b", weight)],
            routes,
            ..profile()
        };
        let asked = |policy: &Policy<String>, times: usize| {
            let entry = policy.default_route().unwrap();
            (0..times).map(|_| entry.backend().unwrap().0.clone()).collect::<String>()
        };
        let all = asked(&compile(with(1, vec![]), None).unwrap(), 4);
        let first = compile(with(1, vec![]), None).unwrap();
        let begun = asked(&first, 2);
        let second = compile(with(1, vec![path(PathKind::Exact, "/new")]), Some(&first)).unwrap();
        assert_eq!(begun + &asked(&second, 2), all);
        let turns = second.default_route().unwrap().schedule();
        assert!(Arc::ptr_eq(turns, second.routes()[0].schedule()), "the service's share is all its routes'");
        let third = compile(with(2, vec![]), Some(&second)).unwrap();
        assert!(!Arc::ptr_eq(turns, third.default_route().unwrap().schedule()));
    }

    #[test]
    fn the_matches_of_one_rule_take_turns_together_and_rules_do_not() {
        let route = |origin: &str| {
            let to = |name: &str| WeightedBackend {
                backend: Backend::Service { name: name.parse().unwrap(), subset: None },
                weight: 1,
                filters: Vec::new(),
            };
            let forward = Forward { backends: vec![to("a"), to("b")], ..Forward::default() };
            Route { action: Action::Forward(forward), origin: origin.into(), ..path(PathKind::Exact, "/a") }
        };
        let origins =
            ["f#0:spec.rules[0].matches[0]", "f#0:spec.rules[0].matches[1]", "f#0:spec.rules[1]", "", ""];
        let routes = origins.into_iter().map(route).collect();
        let policy = compile(ServiceProfile { routes, ..profile() }, None).unwrap();
        let same =
            |a: usize, b: usize| Arc::ptr_eq(policy.routes()[a].schedule(), policy.routes()[b].schedule());
        assert_eq!([same(0, 1), same(0, 2), same(3, 4)], [true, false, false]);
    }

    #[test]
    fn a_pattern_that_does_not_compile_refuses_the_profile_and_names_its_route() {
        let bad = compile(ServiceProfile { routes: vec![path(PathKind::Regex, "/(")], ..profile() }, None)
            .unwrap_err();
        assert!(bad.to_string().contains("(route `/(`)"), "{bad}");
    }
}
