//! Floor 4: stands before an application: refuses what the policy refuses, and says who calls.

use crate::authz::client::Client;
use crate::authz::header;
use crate::authz::path;
use crate::authz::rules::AuthzPolicy;
use crate::authz::settings::Action;
use crate::authz::settings::Origin;
use crate::error::Error;
use crate::limit::rate::Counted;
use crate::metrics::registry::Registry;
use crate::metrics::rules;
use crate::metrics::rules::Rule;
use crate::metrics::rules::Rules;
use crate::metrics::rules::Verdict;
use crate::policy::call::MeshRequest;
use crate::policy::observe::Note;
use crate::profile::invalid::Fault;
use crate::route::head::RequestHead;
use crate::stdx::clock;
use crate::tls::identity::PeerIdentity;
use arc_swap::ArcSwap;
use http::Extensions;
use http::HeaderValue;
use http::Method;
use http::Request;
use metrics::Counter;
use metrics::Label;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

/// The policy of a server, which may change while it serves. Clones are one gate.
///
/// Each request is judged by one whole policy, the one that stands when it comes: also on connections that were
/// opened under another.
#[derive(Clone)]
pub struct Gate(Arc<Shared>);

struct Shared {
    live: ArcSwap<Live>,
    registry: Registry,
    /// Where the rules have their numbers, if somebody above counts by them.
    rules: Option<Arc<Rules>>,
    newest: Mutex<Newest>,
    born: Instant,
    /// When the policy's source was last heard, in milliseconds after `born`.
    heard: AtomicU64,
    age_max: Option<Duration>,
}

/// The name, in refusals and metrics, of the rule that refuses when a policy is too old.
const TOO_OLD: &str = "policy too old";

/// What is known of the newest policy that was offered.
#[derive(Default)]
struct Newest {
    faults: Vec<Fault>,
    refused: u64,
}

/// How things stand at a gate, for pages.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GateState {
    /// The names and actions of the rules, in order, and of what is done without one.
    pub rules: Vec<(Arc<str>, Action)>,
    /// How many requests each of them kept out, or would have if it were not on trial (`audit`), since the policy is in use.
    pub refusals: Vec<u64>,
    /// What is wrong with the newest policy, if something is: the one before stands.
    pub faults: Vec<Fault>,
    /// How many policies were refused.
    pub refused: u64,
    /// How long ago the policy's source was heard.
    pub age: Duration,
}

/// What counts the requests that a rule decides about.
enum Count {
    Counter(Counter),
    /// Whoever counts above, by this number.
    Above(u32),
}

impl Count {
    fn count(&self) {
        match self {
            Self::Counter(counter) => counter.increment(1),
            Self::Above(number) => rules::decided(*number),
        }
    }
}

/// A policy with the counters of its rules.
struct Live {
    policy: AuthzPolicy,
    counts: Vec<Count>,
    /// What the rules refused, or would have.
    refusals: Vec<AtomicU64>,
    /// Refusals for a policy whose source was silent for too long.
    too_old: Count,
    /// Refusals by rate limits, by [`Counted`].
    limited: Option<[(Counted, Counter); 3]>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.0.live.load().policy).finish()
    }
}

impl Gate {
    /// A gate with this policy, which stands until another is published, however long its source is silent.
    pub fn new(policy: AuthzPolicy) -> Self {
        Self::build(policy, None, Registry::global(), None)
    }

    /// A gate that refuses everything once its source was not [`heard`](Self::heard) for `age_max`.
    pub fn with_age_max(policy: AuthzPolicy, age_max: Duration) -> Self {
        Self::build(policy, Some(age_max), Registry::global(), None)
    }

    /// A gate that counts in `registry`; otherwise as [`new`](Self::new).
    pub fn counted(policy: AuthzPolicy, registry: Registry) -> Self {
        Self::build(policy, None, registry, None)
    }

    /// A gate that does not count by itself which rule decided: it tells whoever stands above and counts, by the rules'
    /// numbers. Rates and refused policies it counts in `registry`.
    pub fn told(policy: AuthzPolicy, registry: Registry, rules: Arc<Rules>) -> Self {
        Self::build(policy, None, registry, Some(rules))
    }

    fn build(
        policy: AuthzPolicy,
        age_max: Option<Duration>,
        registry: Registry,
        rules: Option<Arc<Rules>>,
    ) -> Self {
        let live = ArcSwap::from_pointee(Live::new(policy, &registry, rules.as_deref()));
        let (born, heard, newest) = (clock::now(), AtomicU64::new(0), Mutex::default());
        Self(Arc::new(Shared { live, registry, rules, newest, born, heard, age_max }))
    }

    /// Judges by this policy from now on. Rate limits that are the same go on counting where they were.
    pub fn publish(&self, policy: AuthzPolicy) {
        let policy = policy.keep_counts(&self.0.live.load().policy);
        self.0.live.store(Arc::new(Live::new(policy, &self.0.registry, self.0.rules.as_deref())));
        self.newest().faults.clear();
        self.heard();
    }

    /// Notes that a new policy is unusable: the one before stands. Counted as `config_rejected_total`.
    pub fn refuse(&self, faults: Vec<Fault>) {
        let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
        tracing::warn!(faults = ?all, "authorization not taken over");
        let mut newest = self.newest();
        newest.faults = faults;
        newest.refused += 1;
        drop(newest);
        let source = Label::new("source", "authorization");
        self.0.registry.counter("config_rejected_total", vec![source]).increment(1);
    }

    /// How things stand.
    pub fn state(&self) -> GateState {
        let live = self.0.live.load();
        let rules = live.policy.names().map(|(name, action)| (Arc::clone(name), action)).collect();
        let refusals = live.refusals.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let newest = self.newest();
        let (faults, refused) = (newest.faults.clone(), newest.refused);
        GateState { rules, refusals, faults, refused, age: self.age() }
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the policy's source is there and has nothing new.
    pub fn heard(&self) {
        let since = clock::now().saturating_duration_since(self.0.born);
        self.0.heard.store(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago the policy's source was heard.
    pub fn age(&self) -> Duration {
        let heard = Duration::from_millis(self.0.heard.load(Ordering::Relaxed));
        clock::now().saturating_duration_since(self.0.born).saturating_sub(heard)
    }

    /// What is decided for such a request, and by which rule or why. Nothing is counted: it is for explanations.
    pub fn explain(&self, head: &RequestHead<'_>, client: &Client<'_>) -> (Action, Arc<str>) {
        if let Err(ambiguity) = path::check(head.path()) {
            return (Action::Deny, ambiguity.to_string().into());
        }
        if self.is_too_old() {
            return (Action::Deny, TOO_OLD.into());
        }
        let live = self.0.live.load();
        let decision = live.policy.decide(head, client);
        (decision.action, Arc::clone(decision.rule))
    }

    fn is_too_old(&self) -> bool {
        self.0.age_max.is_some_and(|age_max| self.age() > age_max)
    }

    /// Whether the request may go on, and the rule on trial that would refuse it; otherwise its answer.
    fn judge<B>(&self, request: &Request<B>, address: Option<IpAddr>) -> Result<Option<Arc<str>>, Error> {
        // The target of CONNECT is an authority, and has no path.
        let path = request.uri().path();
        if *request.method() != Method::CONNECT || !path.is_empty() {
            path::check(path)
                .map_err(|ambiguity| Error::BadRequest { reason: ambiguity.to_string().into() })?;
        }
        let live = self.0.live.load();
        if self.is_too_old() {
            live.too_old.count();
            return Err(Error::Denied { rule: TOO_OLD.into() });
        }
        let client = Client { peer: request.extensions().get::<PeerIdentity>(), address };
        let decision = live.policy.decide(&RequestHead::of_request(request), &client);
        if let Some(count) = live.counts.get(decision.index) {
            count.count();
        }
        if decision.action != Action::Allow
            && let Some(count) = live.refusals.get(decision.index)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        match decision.action {
            Action::Allow => live.limit(&client).map(|()| None),
            Action::Audit => {
                tracing::debug!(rule = %decision.rule, "audit: this request would have been refused");
                live.limit(&client).map(|()| Some(Arc::clone(decision.rule)))
            }
            Action::Deny => {
                tracing::debug!(rule = %decision.rule, "refused");
                Err(Error::Denied { rule: Arc::clone(decision.rule) })
            }
            Action::NotFound => Err(Error::NoRoute { service: Arc::clone(decision.rule) }),
        }
    }
}

impl Live {
    fn new(policy: AuthzPolicy, registry: &Registry, rules: Option<&Rules>) -> Self {
        let server = policy.server().cloned();
        let count = |(name, origin, action): (&Arc<str>, Origin, Action)| {
            let rule = named(server.clone(), name, origin, action);
            let Some(rules) = rules else { return Count::Counter(counter(registry, rule)) };
            Count::Above(rules.number(&rule))
        };
        let counts: Vec<Count> = policy.named().map(count).collect();
        let refusals = counts.iter().map(|_| AtomicU64::new(0)).collect();
        let too_old = count((&TOO_OLD.into(), Origin::Default, Action::Deny));
        let limited = policy.rates().map(|rates| {
            [Counted::Total, Counted::Identity, Counted::Override].map(|counted| {
                let labels = vec![
                    Label::new("ratelimit_group", "policy.linkerd.io"),
                    Label::new("ratelimit_kind", "httplocalratelimitpolicy"),
                    Label::new("ratelimit_name", Arc::clone(rates.name())),
                    Label::new("ratelimit_scope", counted.as_str()),
                ];
                (counted, registry.counter("inbound_http_local_ratelimit_total", labels))
            })
        });
        Self { policy, counts, refusals, too_old, limited }
    }

    /// Whether the rate limits take a request that the rules let in.
    fn limit(&self, client: &Client<'_>) -> Result<(), Error> {
        let Some(rates) = self.policy.rates() else { return Ok(()) };
        rates.admit(client, clock::now()).map_err(|refused| {
            let counters = self.limited.iter().flatten();
            for (_, counter) in counters.filter(|(counted, _)| *counted == refused.counted) {
                counter.increment(1);
            }
            Error::RateLimited { retry_after: refused.retry_after }
        })
    }
}

/// A rule as labels name it.
fn named(server: Option<Arc<str>>, name: &Arc<str>, origin: Origin, action: Action) -> Rule {
    let (group, kind) = match (origin, action) {
        // Linkerd's own default policy that lets in and warns.
        (_, Action::Audit) => ("", "audit"),
        (Origin::Own, _) => ("enmesh.dev", "authorization"),
        (Origin::Default, _) => ("", "default"),
        (Origin::ServerAuthorization, _) => ("policy.linkerd.io", "serverauthorization"),
        (Origin::AuthorizationPolicy, _) => ("policy.linkerd.io", "authorizationpolicy"),
        (Origin::TrafficTarget, _) => ("access.smi-spec.io", "traffictarget"),
    };
    let verdict = match action {
        Action::Allow | Action::Audit => Verdict::Allowed,
        Action::Deny => Verdict::Denied,
        Action::NotFound => Verdict::NotFound,
    };
    let name = name.strip_prefix("default:").map_or_else(|| Arc::clone(name), Arc::from);
    Rule { server, group, kind, name, verdict }
}

/// The counter of a rule.
fn counter(registry: &Registry, rule: Rule) -> Counter {
    let family = match rule.verdict {
        Verdict::Allowed => "inbound_http_authz_allow_total",
        Verdict::Denied => "inbound_http_authz_deny_total",
        Verdict::NotFound => "inbound_http_route_not_found_total",
    };
    let labels = vec![
        Label::new("authz_group", rule.group),
        Label::new("authz_kind", rule.kind),
        Label::new("authz_name", rule.name),
    ];
    registry.counter(family, labels)
}

/// Where a request's caller has its address.
type AddressOf = fn(&Extensions) -> Option<IpAddr>;

/// Puts a [`Gate`] before an application.
///
/// A request with an ambiguous path ends with [`Error::BadRequest`], one that the policy refuses with
/// [`Error::Denied`], one beyond the policy's rate limits with [`Error::RateLimited`]; the application is not asked. Of the others it takes the mesh's own headers that a peer has set,
/// and sets `l5d-client-id` to who the peer has proved to be. Who that is, it reads as the [`PeerIdentity`] in the
/// request's extensions, where the server puts it and the application finds it.
#[derive(Debug, Clone)]
pub struct AuthzLayer {
    gate: Option<Gate>,
    address_of: AddressOf,
}

impl AuthzLayer {
    /// Judges by `gate`; `address_of` finds the caller's address in a request's extensions, where the server puts it.
    pub fn new(gate: Gate, address_of: fn(&Extensions) -> Option<IpAddr>) -> Self {
        Self { gate: Some(gate), address_of }
    }

    /// Judges nothing: it only keeps peers from setting the mesh's own headers, and says who calls.
    pub fn open() -> Self {
        Self { gate: None, address_of: |_| None }
    }
}

impl<S> Layer<S> for AuthzLayer {
    type Service = Authz<S>;

    fn layer(&self, inner: S) -> Authz<S> {
        Authz { inner, gate: self.gate.clone(), address_of: self.address_of }
    }
}

/// The service of [`AuthzLayer`].
#[derive(Debug, Clone)]
pub struct Authz<S> {
    inner: S,
    gate: Option<Gate>,
    address_of: AddressOf,
}

impl<S, R> Service<R> for Authz<S>
where
    R: MeshRequest,
    S: Service<R>,
    S::Error: Into<Error>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = AuthzFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: R) -> Self::Future {
        if let Some(gate) = &self.gate {
            let address = (self.address_of)(request.http().extensions());
            match gate.judge(request.http(), address) {
                Ok(None) => {}
                Ok(Some(rule)) => {
                    if let Some(observed) = request.observed() {
                        observed.note(Note::Audited(&rule));
                    }
                }
                Err(error) => return AuthzFuture::Refused(Some(error)),
            }
        }
        let http = request.http_mut();
        header::strip_reserved(http.headers_mut());
        let caller = http.extensions().get::<PeerIdentity>();
        if let Some(value) = caller.and_then(|peer| HeaderValue::from_str(peer.identity.as_str()).ok()) {
            http.headers_mut().insert(header::CLIENT_ID, value);
        }
        AuthzFuture::Allowed(self.inner.call(request))
    }
}

/// The future of [`Authz`].
#[pin_project(project = Step)]
#[derive(Debug)]
pub enum AuthzFuture<F> {
    /// The request went on.
    Allowed(#[pin] F),
    /// It did not.
    Refused(Option<Error>),
}

impl<F, R, E> Future for AuthzFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<Error>,
{
    type Output = Result<R, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Step::Allowed(inner) => Poll::Ready(ready!(inner.poll(cx)).map_err(Into::into)),
            Step::Refused(error) => Poll::Ready(Err(error.take().unwrap_or(Error::Closed))),
        }
    }
}
