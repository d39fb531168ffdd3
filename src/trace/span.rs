//! Floor 4: a call as `tracing` spans: one for the call, one for each attempt, and an event for what happens between.
//!
//! They cost a look at a static while no subscriber is interested ([`is_wanted`]). The names of the fields are those of
//! OpenTelemetry's HTTP conventions, so a subscriber that exports them needs no mapping.

use crate::classify::outcome::Verdict;
use crate::metrics::names::Direction;
use crate::policy::observe::{Attempt, Ending, Note, Observer, Subject};
use crate::stdx::clock::Instant;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::Empty;
use tracing::{Level, Span};

/// The target of all spans and events here, for filters: `enmesh::request=info`.
pub const TARGET: &str = "enmesh::request";

/// Whether a subscriber is interested.
#[inline]
pub fn is_wanted() -> bool {
    tracing::span_enabled!(target: TARGET, Level::INFO)
}

/// The spans of one call.
#[derive(Debug)]
pub struct Spans {
    call: Span,
    attempts: Mutex<Vec<(u64, Span)>>,
}

impl Spans {
    /// Begins the call's span, below the span that is current on this thread.
    pub fn begin(call: &Subject) -> Self {
        let kind = if call.direction == Direction::Inbound { "server" } else { "client" };
        let context = call.context.as_deref();
        let span = tracing::info_span!(
            target: TARGET,
            "request",
            otel.kind = kind,
            otel.name = %call.name(),
            service = &*call.service,
            route = &*call.route,
            http.request.method = call.method.as_str(),
            url.path = call.uri.path(),
            server.address = call.authority(),
            client.address = call.source.map(tracing::field::display),
            enmesh.client.id = call.identity.as_deref(),
            trace_id = context.map(|context| tracing::field::display(context.trace)),
            span_id = context.map(|context| tracing::field::display(context.span)),
            http.response.status_code = Empty,
            rpc.grpc.status_code = Empty,
            http.response.body.size = Empty,
            error.type = Empty,
            otel.status_code = Empty,
        );
        Self { call: span, attempts: Mutex::default() }
    }

    fn attempt(&self, id: u64) -> Option<Span> {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.iter().find(|(known, _)| *known == id).map(|(_, span)| span.clone())
    }

    fn sent(&self, attempt: &Attempt) {
        let addr = attempt.endpoint.as_ref().map(|endpoint| tracing::field::display(endpoint.addr));
        let span = tracing::info_span!(
            target: TARGET,
            parent: &self.call,
            "attempt",
            otel.kind = "client",
            number = attempt.number,
            network.peer.address = addr,
            span_id = attempt.span.map(tracing::field::display),
            http.response.status_code = Empty,
            rpc.grpc.status_code = Empty,
            http.response.body.size = Empty,
            error.type = Empty,
            otel.status_code = Empty,
        );
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).push((attempt.id, span));
    }
}

/// Records how it ended.
fn ended(span: &Span, ending: &Ending<'_>) {
    span.record("http.response.body.size", ending.bytes);
    if let Some(code) = ending.grpc() {
        span.record("rpc.grpc.status_code", code);
    }
    if let Some(kind) = ending.error_type() {
        span.record("error.type", &*kind);
    }
    if ending.outcome.verdict == Verdict::Failure {
        span.record("otel.status_code", "ERROR");
    }
}

impl Observer for Spans {
    fn note(&self, _: &Arc<Subject>, _: Instant, note: Note<'_>) {
        match note {
            Note::Sent(attempt, _) => self.sent(attempt),
            Note::Answered(attempt, status, _) => {
                if let Some(span) = self.attempt(attempt.id) {
                    span.record("http.response.status_code", status.as_u16());
                }
            }
            Note::Ended(attempt, ending) => {
                let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
                let place = attempts.iter().position(|(known, _)| *known == attempt.id);
                if let Some((_, span)) = place.map(|place| attempts.swap_remove(place)) {
                    ended(&span, ending);
                }
            }
            Note::Retried(number, outcome, after) => {
                let because = outcome.cause;
                tracing::info!(target: TARGET, parent: &self.call, attempt = number, %because, ?after, "sent again");
            }
            Note::GivenUp(number, why) => {
                tracing::info!(target: TARGET, parent: &self.call, attempt = number, why, "not sent again");
            }
            Note::Event(number, what) => {
                tracing::info!(target: TARGET, parent: &self.call, attempt = number, "{what}");
            }
            Note::Audited(rule) => {
                tracing::info!(target: TARGET, parent: &self.call, %rule, "would be refused");
            }
            Note::Head(status, _) => {
                self.call.record("http.response.status_code", status.as_u16());
            }
            Note::End(ending) => {
                // Attempts that are still under way end with their call.
                self.attempts.lock().unwrap_or_else(PoisonError::into_inner).clear();
                ended(&self.call, ending);
            }
        }
    }

    fn enter(&self) {
        self.call.with_subscriber(|(id, dispatch)| dispatch.enter(id));
    }

    fn exit(&self) {
        self.call.with_subscriber(|(id, dispatch)| dispatch.exit(id));
    }
}
