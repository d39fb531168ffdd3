//! Floor 4: remembers traced calls as exemplars of their routes' latencies.

use crate::metrics::exemplars::Exemplar;
use crate::metrics::route::RouteMetrics;
use crate::policy::observe::{Note, Observer, Subject};
use crate::stdx::clock::Instant;
use std::sync::Arc;

/// Watches one call whose trace is recorded.
#[derive(Debug)]
pub struct Traced(Arc<RouteMetrics>);

impl Traced {
    /// The watch of a call on `route`, if its trace is recorded.
    pub fn begin(call: &Subject, route: &Arc<RouteMetrics>) -> Option<Box<dyn Observer>> {
        let is_recorded = call.context.as_ref().is_some_and(|context| context.sampled == Some(true));
        is_recorded.then(|| Box::new(Self(Arc::clone(route))) as Box<dyn Observer>)
    }
}

impl Observer for Traced {
    fn note(&self, call: &Arc<Subject>, at: Instant, note: Note<'_>) {
        let is_answered = match note {
            Note::Head(..) => true,
            // It has no head.
            Note::End(ending) => ending.error.is_some(),
            _ => false,
        };
        if let Some(context) = call.context.as_ref().filter(|_| is_answered) {
            let latency = at.saturating_duration_since(call.started);
            let (trace, span) = (context.trace, context.span);
            self.0.exemplars().remember(Exemplar { trace, span, latency, at: call.wall_at(at) });
        }
    }
}
