//! Floor 3: a route's policy: all that the layers read of it, compiled.

use crate::classify::classifier::Classifier;
use crate::error::Error;
use crate::metrics::route::RouteMetrics;
use crate::profile::route::Respond;
use crate::retry::decide::RetryPolicy;
use crate::route::filter::Filters;
use crate::route::redirect::Redirection;
use crate::split::pick::Schedule;
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
    /// What is changed on the way.
    pub filters: Arc<Filters>,
    /// What is answered without asking a backend.
    pub answer: Option<Answer>,
    /// How responses are judged.
    pub classifier: Arc<Classifier>,
    /// What is counted.
    pub metrics: Arc<RouteMetrics>,
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

/// A route and its backends. `T` is what a backend is in this stack.
#[derive(Debug)]
pub struct RouteEntry<T> {
    /// What the layers read.
    pub policy: RoutePolicy,
    backends: Vec<Target<T>>,
    weights: Box<[u32]>,
    schedule: Schedule,
}

impl<T> RouteEntry<T> {
    /// A route with these backends by weight.
    pub fn new(policy: RoutePolicy, backends: Vec<(u32, Target<T>)>) -> Self {
        let weights: Vec<u32> = backends.iter().map(|(weight, _)| *weight).collect();
        let backends = backends.into_iter().map(|(_, target)| target).collect();
        Self { policy, backends, schedule: Schedule::new(&weights), weights: weights.into() }
    }

    /// The backend whose turn it is, and what is changed for it alone, after the route's own changes.
    ///
    /// # Errors
    /// When it is one that cannot be, or when none has a weight.
    #[inline]
    pub fn backend(&self) -> Result<(&T, Option<&Arc<Filters>>), Error> {
        match self.schedule.next().and_then(|index| self.backends.get(index)) {
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
        &self.weights
    }
}
