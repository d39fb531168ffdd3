//! Floor 3: a route's policy: all that the layers read of it, compiled.

use crate::balance::key::{self, Found};
use crate::classify::classifier::Classifier;
use crate::error::Error;
use crate::fault::decide::FaultPolicy;
use crate::metrics::route::{BackendMetrics, RouteMetrics};
use crate::policy::limits::{Guard, LimitPolicy};
use crate::profile::route::{Respond, Session};
use crate::profile::settings::HashKey;
use crate::retry::decide::RetryPolicy;
use crate::route::cors::CorsPolicy;
use crate::route::filter::Filters;
use crate::route::redirect::Redirection;
use crate::split::mirror::CopyBudget;
use crate::split::pick::Schedule;
use crate::split::sticky::Sticky;
use http::Request;
use std::sync::Arc;
use std::time::Duration;

/// How long the parts of a call may take, with every default filled in. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeoutPolicy {
    /// All attempts, to the end of the response.
    pub request: Option<Duration>,
    /// All attempts, to the response's headers.
    pub response_headers: Option<Duration>,
    /// From the end of the request's body to the end of the response.
    pub response: Option<Duration>,
    /// Between two frames.
    pub idle: Option<Duration>,
    /// One attempt, to its response's headers.
    pub attempt: Option<Duration>,
    /// Opening a connection.
    pub connect: Option<Duration>,
}

/// What the layers read of a route.
#[derive(Debug)]
pub struct RoutePolicy {
    /// The service (metric label `dst`).
    pub service: Arc<str>,
    /// The route's name; empty for the default route.
    pub name: Arc<str>,
    /// How long.
    pub timeouts: TimeoutPolicy,
    /// Once more? `None`: never.
    pub retry: Option<RetryPolicy>,
    /// Whether a document or its dialect asks for them; otherwise only what was certainly not processed is tried again.
    pub retry_is_asked: bool,
    /// What keeps requests back: limits, and faults on purpose. `None`: nothing.
    pub guard: Option<Box<Guard>>,
    /// What is changed on the way.
    pub filters: Arc<Filters>,
    /// What is answered without asking a backend.
    pub answer: Option<Answer>,
    /// How responses are judged.
    pub classifier: Arc<Classifier>,
    /// What is counted.
    pub metrics: Arc<RouteMetrics>,
    /// What is counted of its backends, in their order; none of what arrives.
    pub backends: Box<[Arc<BackendMetrics>]>,
    /// What hashing balancers hash, if not what their service says.
    pub hash: Box<[HashKey]>,
    /// What only few routes have; requests of the others pay for none of it.
    pub extras: Option<Box<Extras>>,
}

impl RoutePolicy {
    /// What pins a caller to one endpoint.
    #[inline]
    pub fn session(&self) -> Option<&Session> {
        self.extras.as_ref()?.session.as_ref()
    }

    /// How much.
    #[inline]
    pub fn limits(&self) -> Option<&LimitPolicy> {
        self.guard.as_deref().map(|guard| &guard.limits).filter(|limits| !limits.is_empty())
    }

    /// What is broken on purpose.
    #[inline]
    pub fn faults(&self) -> Option<&FaultPolicy> {
        self.guard.as_deref()?.faults.as_ref()
    }

    /// Whether a second copy of a slow request may be sent.
    #[inline]
    pub fn hedges(&self) -> bool {
        self.retry.as_ref().is_some_and(|retry| retry.hedge().is_some())
    }

    /// What is answered to browsers.
    #[inline]
    pub fn cors(&self) -> Option<&CorsPolicy> {
        self.extras.as_ref()?.cors.as_ref()
    }
}

/// What only few routes have.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// What is answered to browsers.
    pub cors: Option<CorsPolicy>,
    /// What pins a caller to one endpoint.
    pub session: Option<Session>,
    /// Whether copies are sent elsewhere.
    pub mirrored: bool,
}

/// An answer that needs no backend.
#[derive(Debug)]
pub enum Answer {
    /// Ask elsewhere.
    Redirect(Redirection),
    /// This.
    Fixed(Respond),
}

/// A backend in a running stack, or what stands for one that cannot be.
#[derive(Debug, Clone)]
pub enum Target<T> {
    /// A service that sends, and what is changed for it alone.
    Service(T, Option<Arc<Filters>>),
    /// Its share of requests gets this answer.
    Invalid {
        /// The HTTP status.
        status: u16,
        /// The gRPC code.
        grpc: u8,
        /// Why.
        reason: Arc<str>,
    },
}

/// What a backend tells those who choose among several.
pub trait Standing {
    /// Whether it has an endpoint that would take a request now. Those that cannot know say yes.
    fn is_usable(&self) -> bool {
        true
    }

    /// Whether it has the endpoint of this session.
    fn has_session(&self, _session: u64) -> bool {
        false
    }
}

impl Standing for () {}

/// How one of several backends is chosen, with what must be remembered for it.
#[derive(Debug)]
pub enum Turn {
    /// Each attempt by weight.
    Weighted,
    /// The first that is usable.
    First,
    /// By weight, and one key always the same.
    Sticky(Sticky),
    /// The one that has the session's endpoint; callers without a session by weight.
    Session,
}

/// Copies of a route's requests.
#[derive(Debug)]
pub struct MirrorEntry<T> {
    /// Whose turn it is: 0 is copied.
    share: Schedule,
    /// Where copies go: a route that is never retried and has this one backend.
    pub entry: Arc<RouteEntry<T>>,
    /// How many may be under way.
    pub budget: Arc<CopyBudget>,
}

impl<T> MirrorEntry<T> {
    /// Copies of `share` (weights of yes and no) of all requests.
    pub fn new(share: [u32; 2], entry: Arc<RouteEntry<T>>, budget: Arc<CopyBudget>) -> Self {
        Self { share: Schedule::new(&share), entry, budget }
    }

    /// Whether this request is copied.
    pub fn is_due(&self) -> bool {
        self.share.next() == Some(0)
    }
}

/// A route and its backends. `T` is what a backend is in this stack.
#[derive(Debug)]
pub struct RouteEntry<T> {
    /// What the layers read.
    pub policy: Arc<RoutePolicy>,
    backends: Vec<Target<T>>,
    schedule: Arc<Schedule>,
    turn: Turn,
    mirrors: Box<[MirrorEntry<T>]>,
}

impl<T> RouteEntry<T> {
    /// A route with these backends, of which each attempt takes the one whose turn it is.
    pub fn new(policy: RoutePolicy, backends: Vec<Target<T>>, schedule: Arc<Schedule>) -> Self {
        Self { policy: Arc::new(policy), backends, schedule, turn: Turn::Weighted, mirrors: Box::default() }
    }

    /// The same route, whose backend is chosen in another way.
    #[must_use]
    pub fn by(self, turn: Turn) -> Self {
        Self { turn, ..self }
    }

    /// The same route, of whose requests copies are sent elsewhere.
    #[must_use]
    pub fn mirrored(self, mirrors: Vec<MirrorEntry<T>>) -> Self {
        Self { mirrors: mirrors.into(), ..self }
    }

    /// The backend whose turn it is, and what is changed for it alone, after the route's own changes.
    ///
    /// # Errors
    /// When it is one that cannot be, or when none has a weight.
    #[inline]
    pub fn backend(&self) -> Result<(&T, Option<&Arc<Filters>>), Error> {
        self.at(self.schedule.next())
    }

    /// The backend at this place, as [`choose`](Self::choose) gives it.
    ///
    /// # Errors
    /// As [`backend`](Self::backend).
    #[inline]
    pub fn at(&self, index: Option<usize>) -> Result<(&T, Option<&Arc<Filters>>), Error> {
        match index.and_then(|index| self.backends.get(index)) {
            Some(Target::Service(service, filters)) => Ok((service, filters.as_ref())),
            Some(Target::Invalid { status, grpc, reason }) => {
                Err(Error::InvalidBackend { status: *status, grpc: *grpc, reason: Arc::clone(reason) })
            }
            None => {
                Err(Error::InvalidBackend { status: 500, grpc: 14, reason: "no backend has a weight".into() })
            }
        }
    }

    /// All backends, in order.
    pub fn backends(&self) -> &[Target<T>] {
        &self.backends
    }

    /// The weights of [`backends`](Self::backends), in the same order.
    pub fn weights(&self) -> &[u32] {
        self.schedule.weights()
    }

    /// Whose turn it is.
    pub fn schedule(&self) -> &Arc<Schedule> {
        &self.schedule
    }

    /// How one of several backends is chosen.
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Where copies go.
    #[inline]
    pub fn mirrors(&self) -> &[MirrorEntry<T>] {
        &self.mirrors
    }
}

impl<T: Standing> RouteEntry<T> {
    /// The backend for `request`, whose attempt has this number (from 0). `key` is what the caller says is hashed, or
    /// the session that the request belongs to.
    ///
    /// # Errors
    /// As [`backend`](Self::backend).
    #[inline]
    pub fn backend_for<B>(
        &self,
        request: &Request<B>,
        attempt: u32,
        key: Option<u64>,
    ) -> Result<(&T, Option<&Arc<Filters>>), Error> {
        self.at(self.choose(request, attempt, key))
    }

    /// The same, as its place in [`backends`](Self::backends); `None` when none has a weight.
    #[inline]
    pub fn choose<B>(&self, request: &Request<B>, attempt: u32, key: Option<u64>) -> Option<usize> {
        match &self.turn {
            Turn::Weighted => self.schedule.next(),
            Turn::First => self.first(attempt),
            Turn::Sticky(sticky) => {
                let found = || match key::find(&self.policy.hash, request) {
                    Found::Hash(hash) => Some(hash),
                    Found::Make { .. } | Found::Nothing => None,
                };
                let chosen = key.or_else(found).and_then(|key| sticky.pick(key));
                chosen.or_else(|| self.schedule.next())
            }
            Turn::Session => {
                let has = |key: u64| self.services().find(|(_, service)| service.has_session(key));
                let chosen = key.and_then(has).map(|(index, _)| index);
                chosen.or_else(|| self.schedule.next())
            }
        }
    }

    /// The services that may be asked: a weight of 0 is never.
    fn services(&self) -> impl Iterator<Item = (usize, &T)> {
        let all = self.backends.iter().zip(self.weights()).enumerate();
        all.filter_map(|(index, (target, weight))| match target {
            Target::Service(service, _) if *weight > 0 => Some((index, service)),
            Target::Service(..) | Target::Invalid { .. } => None,
        })
    }

    /// The first that is usable; for another attempt the next of them, lest it fail in the same place. If none is, the
    /// first, which says why; if there is no service at all, what stands for the first.
    fn first(&self, attempt: u32) -> Option<usize> {
        let usable = || self.services().filter(|(_, service)| service.is_usable());
        let chosen = usable().nth(attempt as usize).or_else(|| usable().last());
        let otherwise = || self.weights().iter().position(|weight| *weight > 0);
        chosen.or_else(|| self.services().next()).map(|(index, _)| index).or_else(otherwise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::Direction;
    use crate::metrics::set::MetricsSet;

    #[derive(Debug, Clone, Copy)]
    struct Backend {
        name: char,
        usable: bool,
        session: u64,
    }

    impl Standing for Backend {
        fn is_usable(&self) -> bool {
            self.usable
        }

        fn has_session(&self, session: u64) -> bool {
            self.session == session
        }
    }

    fn policy() -> RoutePolicy {
        RoutePolicy {
            service: "s".into(),
            name: "r".into(),
            timeouts: TimeoutPolicy::default(),
            retry: None,
            retry_is_asked: false,
            guard: None,
            filters: Arc::default(),
            answer: None,
            classifier: Arc::default(),
            backends: Box::default(),
            metrics: MetricsSet::unseen().route(Direction::Outbound, &"s".into(), &"r".into()),
            hash: Box::new([HashKey::Header("x-user".into())]),
            extras: None,
        }
    }

    /// Backends by name: in upper case usable; the session of each is its place; `!` is one that cannot be.
    fn entry(names: &str, weights: &[u32], turn: Turn) -> RouteEntry<Backend> {
        let target = |(place, name): (usize, char)| match name {
            '!' => Target::Invalid { status: 500, grpc: 14, reason: "gone".into() },
            name => {
                let usable = name.is_ascii_uppercase();
                Target::Service(Backend { name, usable, session: place as u64 }, None)
            }
        };
        let backends = names.chars().enumerate().map(target).collect();
        RouteEntry::new(policy(), backends, Arc::new(Schedule::new(weights))).by(turn)
    }

    fn ask(entry: &RouteEntry<Backend>, user: Option<&str>, attempt: u32, key: Option<u64>) -> char {
        let request = user.iter().fold(Request::get("/"), |request, user| request.header("x-user", *user));
        match entry.backend_for(&request.body(()).unwrap(), attempt, key) {
            Ok((backend, _)) => backend.name,
            Err(_) => '!',
        }
    }

    fn check_first(names: &str, weights: &[u32], by_attempt: &str) {
        let entry = entry(names, weights, Turn::First);
        let asked: String = (0..4).map(|attempt| ask(&entry, None, attempt, None)).collect();
        assert_eq!(asked, by_attempt, "{names} {weights:?}");
    }

    #[test]
    fn the_first_usable_backend_is_asked_and_another_attempt_goes_to_the_next() {
        check_first("ABC", &[1, 1, 1], "ABCC");
        check_first("aBC", &[1, 1, 1], "BCCC");
        check_first("abC", &[1, 1, 1], "CCCC");
        check_first("AbC", &[1, 1, 1], "ACCC");
        check_first("abc", &[1, 1, 1], "aaaa");
        check_first("ABC", &[0, 1, 1], "BCCC");
        check_first("!BC", &[1, 1, 1], "BCCC");
        check_first("!", &[1], "!!!!");
        check_first("AB", &[0, 0], "!!!!");
        check_first("", &[], "!!!!");
    }

    #[test]
    fn one_key_stays_with_one_backend_and_no_key_goes_by_weight() {
        let named = [("a", 1), ("b", 1)];
        let entry = entry("AB", &[1, 1], Turn::Sticky(Sticky::new(named)));
        let users: Vec<String> = (0..100).map(|user| user.to_string()).collect();
        let once: Vec<char> = users.iter().map(|user| ask(&entry, Some(user), 0, None)).collect();
        let again: Vec<char> = users.iter().map(|user| ask(&entry, Some(user), 1, None)).collect();
        assert_eq!(once, again);
        let a = once.iter().filter(|name| **name == 'A').count();
        assert!((30..70).contains(&a), "{a}");
        let nameless: String = (0..6).map(|_| ask(&entry, None, 0, None)).collect();
        assert!(nameless == "ABABAB" || nameless == "BABABA", "{nameless}");
        let own: Vec<char> = (0..9).map(|_| ask(&entry, Some("0"), 0, Some(7))).collect();
        assert!(own.iter().all(|name| *name == own[0]), "the caller's own key comes before the route's");
    }

    #[test]
    fn a_session_goes_where_its_endpoint_is_and_others_by_weight() {
        let entry = entry("ABC", &[1, 1, 0], Turn::Session);
        assert_eq!((0..4).map(|_| ask(&entry, None, 0, Some(1))).collect::<String>(), "BBBB");
        let others: String = (0..4).map(|_| ask(&entry, None, 0, None)).collect();
        assert!(others == "ABAB" || others == "BABA", "{others}");
        let gone: String = (0..4).map(|_| ask(&entry, None, 0, Some(2))).collect();
        assert!(gone == "ABAB" || gone == "BABA", "a weight of 0 is never: {gone}");
    }
}
