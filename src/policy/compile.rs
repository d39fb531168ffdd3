//! Floor 3: compiles a profile into what requests read; memory whose settings are equal is carried over.

use crate::classify::classifier::Classifier;
use crate::metrics::route::RouteMetrics;
use crate::profile::settings::Timeouts;
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

impl TimeoutPolicy {
    /// Fills what `route` does not say from `service`.
    pub fn new(route: &Timeouts, service: &Timeouts) -> Self {
        Self {
            request: route.request.or(service.request).duration(),
            response_headers: route.response_headers.or(service.response_headers).duration(),
            response: route.response.or(service.response).duration(),
            idle: route.idle.or(service.idle).duration(),
            attempt: route.attempt.or(service.attempt).duration(),
            connect: route.connect.or(service.connect).duration(),
        }
    }
}

/// A route's policy: all that the layers read, compiled.
#[derive(Debug)]
pub struct RoutePolicy {
    /// The service (metric label `dst`).
    pub service: Arc<str>,
    /// The route's name; empty for the default route.
    pub name: Arc<str>,
    /// How long.
    pub timeouts: TimeoutPolicy,
    /// How responses are judged.
    pub classifier: Arc<Classifier>,
    /// What is counted.
    pub metrics: Arc<RouteMetrics>,
}

/// A route and its backends. `T` is what a backend is in this stack.
#[derive(Debug)]
pub struct RouteEntry<T> {
    /// What the layers read.
    pub policy: RoutePolicy,
    /// The backends with their weights.
    pub backends: Vec<(u32, T)>,
}
