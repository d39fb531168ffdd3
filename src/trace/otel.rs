//! Floor 5: a call as OpenTelemetry spans, sent to a collector as OTLP by the OpenTelemetry crates.
//!
//! Spans are made here, with the numbers that the headers carry, and handed to the SDK's batch processor when they end.
//! Its queue is bounded and what does not fit is dropped, so a collector that is slow or gone costs no request anything.

use crate::classify::outcome::Verdict;
use crate::error::Error;
use crate::metrics::names::Direction;
use crate::policy::observe::{Attempt, Ending, Note, Observer, Subject};
use crate::stdx::clock::{Duration, Instant, SystemTime};
use crate::trace::id::SpanId;
use opentelemetry::trace::{Event, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanProcessor,
};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// The most events of one span: the retries of a call and what its endpoints' breakers did. More are counted.
const EVENTS_MAX: usize = 32;

/// The most attempts of one call that have a span of their own.
const ATTEMPTS_MAX: usize = 64;

/// How long one export may take: 10 s, OTLP's default.
const EXPORT_MAX: Duration = Duration::from_secs(10);

/// How spans are exported.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OtelSettings {
    /// The collector, as `http://host:4317` (OTLP over gRPC). Default: `OTEL_EXPORTER_OTLP_ENDPOINT`, else
    /// `http://localhost:4317`, where an agent of the node listens.
    pub endpoint: Option<String>,
    /// What is told of this process with every span. `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` win.
    pub attributes: Vec<(String, String)>,
}

impl OtelSettings {
    /// Exports to this collector.
    pub fn at(endpoint: impl Into<String>) -> Self {
        Self { endpoint: Some(endpoint.into()), ..Self::default() }
    }
}

/// What became of the spans.
#[derive(Debug, Default)]
pub struct Counts {
    ended: AtomicU64,
    exported: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    /// The spans that ended. Those that are neither exported nor failed wait, or did not fit into the queue.
    pub fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// The spans that the collector took.
    pub fn exported(&self) -> u64 {
        self.exported.load(Relaxed)
    }

    /// The spans that it did not take.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }
}

/// Exports spans. Clones are one exporter.
#[derive(Clone)]
pub struct Otel(Arc<Inner>);

struct Inner {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    counts: Arc<Counts>,
}

impl fmt::Debug for Otel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Otel").field("counts", &self.0.counts).finish_non_exhaustive()
    }
}

/// Counts what an exporter does.
#[derive(Debug)]
struct Counted<E> {
    inner: E,
    counts: Arc<Counts>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        let count = if result.is_ok() { &self.counts.exported } else { &self.counts.failed };
        count.fetch_add(spans, Relaxed);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl Otel {
    /// Exports OTLP over gRPC, for the process that is `service`. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Config`] when the endpoint cannot be read.
    pub fn otlp(service: &str, settings: &OtelSettings) -> Result<Self, Error> {
        let mut builder = Otlp::builder().with_tonic().with_timeout(EXPORT_MAX);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let exporter = builder.build().map_err(|error| Error::Config(Box::new(error)))?;
        Ok(Self::new(exporter, service, settings))
    }

    /// Exports by any exporter of the OpenTelemetry SDK. The size of batches and of the queue follow `OTEL_BSP_…`.
    pub fn new(exporter: impl SpanExporter + 'static, service: &str, settings: &OtelSettings) -> Self {
        let counts = Arc::new(Counts::default());
        let exporter = Counted { inner: exporter, counts: Arc::clone(&counts) };
        let mut processor = BatchSpanProcessor::new(exporter, BatchConfigBuilder::default().build());
        let attributes =
            settings.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let resource = Resource::builder_empty()
            .with_service_name(service.to_owned())
            .with_attributes(attributes)
            .with_detector(Box::new(EnvResourceDetector::new()))
            .build();
        processor.set_resource(&resource);
        let scope = InstrumentationScope::builder("enmesh").with_version(env!("CARGO_PKG_VERSION")).build();
        Self(Arc::new(Inner { processor, scope, counts }))
    }

    /// What became of the spans.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.0.counts
    }

    /// Sends what waits, and waits for it at most 5 s. It blocks: call it on a blocking thread.
    ///
    /// # Errors
    /// [`Error::Inner`] when the collector did not take it in time.
    pub fn flush(&self) -> Result<(), Error> {
        self.0.processor.force_flush().map_err(|error| Error::Inner(Box::new(error)))
    }

    /// What makes the spans of a call that is recorded; nothing for others.
    pub fn begin(&self, call: &Subject) -> Option<Box<dyn Observer>> {
        let context = call.context.as_ref()?;
        let recorded = context.sampled == Some(true);
        recorded.then(|| {
            let state = context.state.as_ref().and_then(|state| state.to_str().ok());
            let state = state.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
            Box::new(OtelCall { otel: self.clone(), state, live: Mutex::default() }) as Box<dyn Observer>
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Ends the thread; what waits is sent if the collector takes it at once. There is nobody to tell of a failure.
        let _ = self.processor.shutdown_with_timeout(Duration::from_millis(500));
    }
}

/// The spans of one call.
#[derive(Debug)]
struct OtelCall {
    otel: Otel,
    state: TraceState,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    call: Building,
    attempts: Vec<(u64, Building)>,
}

/// A span before its end.
#[derive(Debug, Default)]
struct Building {
    attributes: Vec<KeyValue>,
    events: Vec<Event>,
    more_events: u32,
}

impl Building {
    fn event(&mut self, name: &'static str, at: SystemTime, attributes: Vec<KeyValue>) {
        if self.events.len() < EVENTS_MAX {
            self.events.push(Event::new(name, at, attributes, 0));
        } else {
            self.more_events += 1;
        }
    }

    fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    fn end(&mut self, ending: &Ending<'_>) -> Status {
        self.set("http.response.body.size", i64::try_from(ending.bytes).unwrap_or(i64::MAX));
        if let Some(code) = ending.grpc() {
            self.set("rpc.grpc.status_code", i64::from(code));
        }
        let error = ending.error_type();
        if let Some(error) = &error {
            self.set("error.type", error.to_string());
        }
        match ending.outcome.verdict {
            Verdict::Failure => {
                let told = ending.error.map(ToString::to_string).or_else(|| error.map(Into::into));
                Status::error(told.unwrap_or_default())
            }
            // OpenTelemetry leaves it to the application to say that something was well.
            Verdict::Success | Verdict::Cancelled => Status::Unset,
        }
    }
}

/// What a finished span is made of, beside what was built of it.
struct Frame {
    span: SpanId,
    parent: Option<SpanId>,
    is_remote: bool,
    kind: SpanKind,
    name: String,
    begun: SystemTime,
    ended: SystemTime,
    status: Status,
}

impl OtelCall {
    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, call: &Subject, building: Building, frame: Frame) {
        let Some(context) = &call.context else { return };
        let trace = opentelemetry::trace::TraceId::from_bytes(context.trace.bytes());
        let id = |span: SpanId| opentelemetry::trace::SpanId::from_bytes(span.bytes());
        let state = self.state.clone();
        let span_context = SpanContext::new(trace, id(frame.span), TraceFlags::SAMPLED, false, state);
        let mut events = SpanEvents::default();
        events.events = building.events;
        events.dropped_count = building.more_events;
        self.otel.0.counts.ended.fetch_add(1, Relaxed);
        self.otel.0.processor.on_end(SpanData {
            span_context,
            parent_span_id: frame.parent.map_or(opentelemetry::trace::SpanId::INVALID, id),
            parent_span_is_remote: frame.is_remote,
            span_kind: frame.kind,
            name: frame.name.into(),
            start_time: frame.begun,
            end_time: frame.ended,
            attributes: building.attributes,
            dropped_attributes_count: 0,
            events,
            links: opentelemetry_sdk::trace::SpanLinks::default(),
            status: frame.status,
            instrumentation_scope: self.otel.0.scope.clone(),
        });
    }

    fn attempt_ended(&self, call: &Subject, at: Instant, attempt: &Attempt, ending: &Ending<'_>) {
        let mut live = self.live();
        let place = live.attempts.iter().position(|(id, _)| *id == attempt.id);
        let (Some(place), Some(span)) = (place, attempt.span) else { return };
        let (_, mut building) = live.attempts.swap_remove(place);
        drop(live);
        let status = building.end(ending);
        self.finish(
            call,
            building,
            Frame {
                span,
                parent: call.context.as_ref().map(|context| context.span),
                is_remote: false,
                kind: SpanKind::Client,
                name: call.method.to_string(),
                begun: call.wall_at(attempt.begun),
                ended: call.wall_at(at),
                status,
            },
        );
    }

    fn ended(&self, call: &Subject, at: Instant, ending: &Ending<'_>) {
        let Some(context) = &call.context else { return };
        let mut building = std::mem::take(&mut self.live().call);
        building.attributes.extend(attributes(call));
        let status = building.end(ending);
        let kind = match call.direction {
            Direction::Inbound => SpanKind::Server,
            // Its attempts are the clients of servers.
            Direction::Outbound => SpanKind::Internal,
        };
        self.finish(
            call,
            building,
            Frame {
                span: context.span,
                parent: call.parent,
                is_remote: call.direction == Direction::Inbound,
                kind,
                name: call.name(),
                begun: call.wall,
                ended: call.wall_at(at),
                status,
            },
        );
    }
}

/// What is known of a call, in the words of OpenTelemetry's HTTP conventions. Neither a query nor a user's name of the
/// URI is told.
fn attributes(call: &Subject) -> Vec<KeyValue> {
    let host = call.authority();
    let scheme = call.uri.scheme_str().unwrap_or("http");
    let path = call.uri.path();
    let mut attributes = vec![
        KeyValue::new("direction", call.direction.as_str()),
        KeyValue::new("http.request.method", call.method.to_string()),
        KeyValue::new("url.scheme", scheme.to_owned()),
        KeyValue::new("url.path", path.to_owned()),
        KeyValue::new("url.full", format!("{scheme}://{host}{path}")),
        KeyValue::new("server.address", host.to_owned()),
        KeyValue::new("network.transport", "tcp"),
        KeyValue::new("enmesh.service", call.service.to_string()),
        KeyValue::new("enmesh.route", call.route.to_string()),
    ];
    if let Some(agent) = call.user_agent.as_ref().and_then(|agent| agent.to_str().ok()) {
        attributes.push(KeyValue::new("user_agent.original", agent.to_owned()));
    }
    if let Some(source) = call.source {
        attributes.push(KeyValue::new("client.address", source.ip().to_string()));
        attributes.push(KeyValue::new("client.port", i64::from(source.port())));
    }
    if let Some(identity) = &call.identity {
        attributes.push(KeyValue::new("enmesh.client.id", identity.to_string()));
    }
    attributes
}

impl Observer for OtelCall {
    fn note(&self, call: &Arc<Subject>, at: Instant, note: Note<'_>) {
        let wall = || call.wall_at(at);
        match note {
            Note::Sent(attempt, _) => {
                let mut building = Building::default();
                building.set("http.request.method", call.method.to_string());
                building.set("http.request.resend_count", i64::from(attempt.number));
                building.set("enmesh.service", call.service.to_string());
                if let Some(endpoint) = &attempt.endpoint {
                    building.set("network.peer.address", endpoint.addr.ip().to_string());
                    building.set("network.peer.port", i64::from(endpoint.addr.port()));
                    if let Some(identity) = &endpoint.identity {
                        building.set("enmesh.server.id", identity.to_string());
                    }
                }
                let mut live = self.live();
                if live.attempts.len() < ATTEMPTS_MAX {
                    live.attempts.push((attempt.id, building));
                }
            }
            Note::Answered(attempt, status, _) => {
                let mut live = self.live();
                if let Some((_, building)) = live.attempts.iter_mut().find(|(id, _)| *id == attempt.id) {
                    building.set("http.response.status_code", i64::from(status.as_u16()));
                    building.event("response", wall(), Vec::new());
                }
            }
            Note::Ended(attempt, ending) => self.attempt_ended(call, at, attempt, ending),
            Note::Retried(number, outcome, after) => {
                let told = vec![
                    KeyValue::new("attempt", i64::from(number)),
                    KeyValue::new("because", outcome.cause.to_string()),
                    KeyValue::new("after_ms", i64::try_from(after.as_millis()).unwrap_or(i64::MAX)),
                ];
                self.live().call.event("retry", wall(), told);
            }
            Note::GivenUp(number, why) => {
                let told = vec![KeyValue::new("attempt", i64::from(number)), KeyValue::new("because", why)];
                self.live().call.event("no retry", wall(), told);
            }
            Note::Event(number, what) => {
                self.live().call.event(what, wall(), vec![KeyValue::new("attempt", i64::from(number))]);
            }
            Note::Audited(rule) => {
                let told = vec![KeyValue::new("rule", rule.to_string())];
                self.live().call.event("would be refused", wall(), told);
            }
            Note::Head(status, _) => {
                let mut live = self.live();
                live.call.set("http.response.status_code", i64::from(status.as_u16()));
                live.call.event("response", wall(), Vec::new());
            }
            Note::End(ending) => self.ended(call, at, ending),
        }
    }
}
