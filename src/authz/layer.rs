//! Floor 4: stands before an application: refuses what the policy refuses, and says who calls.

use crate::authz::client::Client;
use crate::authz::header;
use crate::authz::path;
use crate::authz::rules::AuthzPolicy;
use crate::authz::settings::Action;
use crate::error::Error;
use crate::route::head::RequestHead;
use crate::stdx::clock;
use crate::tls::identity::PeerIdentity;
use arc_swap::ArcSwap;
use http::Extensions;
use http::HeaderValue;
use http::Method;
use http::Request;
use metrics::Counter;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
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
    born: Instant,
    /// When the policy's source was last heard, in milliseconds after `born`.
    heard: AtomicU64,
    age_max: Option<Duration>,
}

/// A policy with the counters of its rules.
struct Live {
    policy: AuthzPolicy,
    counters: Vec<Counter>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.0.live.load().policy).finish()
    }
}

impl Gate {
    /// A gate with this policy, which stands until another is published, however long its source is silent.
    pub fn new(policy: AuthzPolicy) -> Self {
        Self::build(policy, None)
    }

    /// A gate that refuses everything once its source was not [`heard`](Self::heard) for `age_max`.
    pub fn with_age_max(policy: AuthzPolicy, age_max: Duration) -> Self {
        Self::build(policy, Some(age_max))
    }

    fn build(policy: AuthzPolicy, age_max: Option<Duration>) -> Self {
        let live = ArcSwap::from_pointee(Live::new(policy));
        Self(Arc::new(Shared { live, born: clock::now(), heard: AtomicU64::new(0), age_max }))
    }

    /// Judges by this policy from now on.
    pub fn publish(&self, policy: AuthzPolicy) {
        self.0.live.store(Arc::new(Live::new(policy)));
        self.heard();
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

    /// Whether the request may go on; otherwise its answer.
    fn judge<B>(&self, request: &Request<B>, address: Option<IpAddr>) -> Result<(), Error> {
        if *request.method() != Method::CONNECT {
            path::check(request.uri().path())
                .map_err(|ambiguity| Error::BadRequest { reason: ambiguity.to_string().into() })?;
        }
        if self.0.age_max.is_some_and(|age_max| self.age() > age_max) {
            return Err(Error::Denied { rule: "policy too old".into() });
        }
        let live = self.0.live.load();
        let client = Client { peer: request.extensions().get::<PeerIdentity>(), address };
        let decision = live.policy.decide(&RequestHead::of_request(request), &client);
        if let Some(counter) = live.counters.get(decision.index) {
            counter.increment(1);
        }
        match decision.action {
            Action::Allow => Ok(()),
            Action::Audit => {
                tracing::debug!(rule = %decision.rule, "audit: this request would have been refused");
                Ok(())
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
    fn new(policy: AuthzPolicy) -> Self {
        let counter = |(name, action): (&Arc<str>, Action)| {
            let name = name.to_string();
            match action {
                Action::Allow => metrics::counter!("inbound_http_authz_allow_total", "authz_name" => name),
                Action::Deny => metrics::counter!("inbound_http_authz_deny_total", "authz_name" => name),
                Action::NotFound => {
                    metrics::counter!("inbound_http_route_not_found_total", "authz_name" => name)
                }
                Action::Audit => {
                    metrics::counter!("inbound_http_authz_allow_total", "authz_name" => name, "authz_kind" => "audit")
                }
            }
        };
        let counters = policy.names().map(counter).collect();
        Self { policy, counters }
    }
}

/// Where a request's caller has its address.
type AddressOf = fn(&Extensions) -> Option<IpAddr>;

/// Puts a [`Gate`] before an application.
///
/// A request with an ambiguous path ends with [`Error::BadRequest`], one that the policy refuses with
/// [`Error::Denied`]; the application is not asked. Of the others it takes the mesh's own headers that a peer has set,
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

impl<S, B> Service<Request<B>> for Authz<S>
where
    S: Service<Request<B>>,
    S::Error: Into<Error>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = AuthzFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(gate) = &self.gate {
            let address = (self.address_of)(request.extensions());
            if let Err(error) = gate.judge(&request, address) {
                return AuthzFuture::Refused(Some(error));
            }
        }
        header::strip_reserved(request.headers_mut());
        let caller = request.extensions().get::<PeerIdentity>();
        if let Some(value) = caller.and_then(|peer| HeaderValue::from_str(peer.identity.as_str()).ok()) {
            request.headers_mut().insert(header::CLIENT_ID, value);
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
