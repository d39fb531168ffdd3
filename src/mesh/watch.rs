//! Floor 6: who observes the calls of a mesh: taps, spans, exporters, logs; and the places of calls in traces.

use crate::classify::outcome::Outcome;
use crate::error::Error;
use crate::mesh::caller::Callers;
use crate::mesh::client::enter_from;
use crate::metrics::names::Direction;
use crate::metrics::route::RouteMetrics;
use crate::metrics::traced::Traced;
use crate::policy::call::CallScope;
use crate::policy::compile::Policy;
use crate::policy::observe::{self, Observed, Observer, Subject};
use crate::serve::http::Remote;
use crate::stdx::clock::{self, Instant};
use crate::stdx::rng::Rng;
use crate::tap::hub::TapHub;
#[cfg(any(feature = "tls", feature = "ring"))]
use crate::tls::identity::PeerIdentity;
use crate::trace::access::AccessLog;
use crate::trace::context::{TraceContext, new_span};
use crate::trace::current;
use crate::trace::id::SpanId;
#[cfg(feature = "otel")]
use crate::trace::otel::Otel;
use crate::trace::settings::{TraceMode, TraceSettings};
use crate::trace::span::{self, Spans};
use http::{Request, header};
use std::sync::Arc;

/// Who observes the calls of a mesh.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) tap: Arc<TapHub>,
    pub(crate) trace: TraceSettings,
    pub(crate) log: Option<AccessLog>,
    #[cfg(feature = "otel")]
    pub(crate) otel: Option<Otel>,
    pub(crate) rng: Rng,
    /// Who calls, for routes that ask.
    pub(crate) callers: Callers,
    /// Whether every call is looked at, whoever taps.
    always: bool,
}

impl Watch {
    pub(crate) fn new(tap: Arc<TapHub>, trace: TraceSettings, log: Option<AccessLog>, rng: Rng) -> Self {
        let always = trace.mode != TraceMode::Off || log.is_some();
        Self {
            tap,
            trace,
            log,
            #[cfg(feature = "otel")]
            otel: None,
            rng,
            callers: Callers::default(),
            always,
        }
    }

    /// Exports spans too.
    #[cfg(feature = "otel")]
    pub(crate) fn exporting(mut self, otel: Otel) -> Self {
        self.trace.mode = TraceMode::Record;
        self.always = true;
        self.otel = Some(otel);
        self
    }

    /// Whether nobody is interested in any call: a relaxed load, a flag, and a look at a static of `tracing`.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.tap.is_idle() && !self.always && !span::is_wanted()
    }

    /// Finds a request's route and begins its call ([`enter_from`]), and tells whoever observes it.
    ///
    /// # Errors
    /// As [`enter_from`].
    #[inline]
    pub(crate) fn enter<B, T>(
        &self,
        direction: Direction,
        policy: &Policy<T>,
        request: &mut Request<B>,
    ) -> Result<CallScope<T>, Error> {
        let caller = policy.asks_caller().then(|| self.callers.of(direction, request));
        let mut entered = enter_from(policy, request, caller.as_ref());
        if !self.is_idle() {
            self.observe(direction, policy, request, &mut entered);
        }
        entered
    }

    #[cold]
    fn observe<B, T>(
        &self,
        direction: Direction,
        policy: &Policy<T>,
        request: &mut Request<B>,
        entered: &mut Result<CallScope<T>, Error>,
    ) {
        match entered {
            Ok(scope) => {
                let (route, started) = (Arc::clone(&scope.entry.policy), scope.state.started);
                let names = (&route.service, &route.name, Some(&route.metrics));
                scope.observed = self.look(direction, request, names, started);
            }
            // It met no route, so no layer below tells of it.
            Err(error) => {
                let observed =
                    self.look(direction, request, (policy.service(), &"".into(), None), clock::now());
                if let Some(observed) = observed {
                    observed.end(&Outcome::of_error(error), Some(error), None);
                }
            }
        }
    }

    #[cold]
    fn look<B>(
        &self,
        direction: Direction,
        request: &mut Request<B>,
        (service, route, metrics): (&Arc<str>, &Arc<str>, Option<&Arc<RouteMetrics>>),
        started: Instant,
    ) -> Option<Arc<Observed>> {
        let (context, parent) = self.place(direction, request);
        let headers = request.headers();
        let arrived = direction == Direction::Inbound;
        let remote = arrived.then(|| request.extensions().get::<Remote>().copied()).flatten();
        let subject = Arc::new(Subject {
            number: observe::number(),
            direction,
            service: Arc::clone(service),
            route: Arc::clone(route),
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: request.uri().authority().is_none().then(|| headers.get(header::HOST).cloned()).flatten(),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            referer: headers.get(header::REFERER).filter(|_| self.log.is_some()).cloned(),
            source: remote.map(|remote| remote.addr),
            local: remote.and_then(|remote| remote.local),
            identity: if arrived { identity(request) } else { None },
            context,
            parent,
            started,
            wall: clock::wall(),
        });
        let mut observers: Vec<Box<dyn Observer>> = Vec::new();
        observers.extend(metrics.and_then(|metrics| Traced::begin(&subject, metrics)));
        observers.extend(self.tap.begin(&subject, headers, &self.rng));
        if span::is_wanted() {
            observers.push(Box::new(Spans::begin(&subject)));
        }
        #[cfg(feature = "otel")]
        observers.extend(self.otel.as_ref().and_then(|otel| otel.begin(&subject)));
        observers.extend(self.log.as_ref().and_then(|log| log.begin(&subject)));
        let is_needed = !observers.is_empty() || subject.context.is_some();
        is_needed.then(|| Arc::new(Observed::new(subject, observers, clock::now, self.rng.clone())))
    }

    /// The place of a call in a trace, and the span that it stands below.
    fn place<B>(
        &self,
        direction: Direction,
        request: &mut Request<B>,
    ) -> (Option<Arc<TraceContext>>, Option<SpanId>) {
        if self.trace.mode == TraceMode::Off {
            return (None, None);
        }
        let found = TraceContext::read(request.headers());
        if self.trace.mode == TraceMode::Pass {
            if direction == Direction::Inbound {
                return (found.map(Arc::new), None);
            }
            // A call that says nothing of a trace is one of the request's that is being served.
            if let (None, Some(inherited)) = (found, current::current()) {
                inherited.write(request.headers_mut());
            }
            return (None, None);
        }
        let parent = found.or_else(|| {
            let inherits = direction == Direction::Outbound;
            inherits.then(current::current).flatten().map(|inherited| TraceContext::clone(&inherited))
        });
        let (mut context, parent) = match parent {
            Some(parent) => (parent.below(new_span(&self.rng)), Some(parent.span)),
            None => (TraceContext::root(&self.rng, self.trace.formats), None),
        };
        context.sampled = Some(context.is_sampled(self.trace.roots));
        (Some(Arc::new(context)), parent)
    }
}

#[cfg(any(feature = "tls", feature = "ring"))]
fn identity<B>(request: &Request<B>) -> Option<Arc<str>> {
    request.extensions().get::<PeerIdentity>().map(|peer| peer.identity.as_str().into())
}

#[cfg(not(any(feature = "tls", feature = "ring")))]
fn identity<B>(_: &Request<B>) -> Option<Arc<str>> {
    None
}
