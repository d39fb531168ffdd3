//! Floor 3: a call that somebody observes: what is known of it, and what its observers are told.
//!
//! A call that nobody observes has none of this: one test of an `Option` at each place that would tell. A call that is
//! observed shares one [`Observed`], which its layers tell what happens, and which hands it on.

use crate::classify::classifier::grpc_code;
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::discover::endpoint::Endpoint;
use crate::error::Error;
use crate::metrics::names::Direction;
use crate::route::head::without_userinfo;
use crate::stdx::clock::{Duration, Instant, SystemTime};
use crate::stdx::rng::Rng;
use crate::trace::context::{TraceContext, new_span};
use crate::trace::id::SpanId;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// What is known of an observed call from its beginning.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its number in this process.
    pub number: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// The service it is for.
    pub service: Arc<str>,
    /// Its route; empty for the default route.
    pub route: Arc<str>,
    /// Its method.
    pub method: Method,
    /// Its URI.
    pub uri: Uri,
    /// Its HTTP version.
    pub version: Version,
    /// Its `Host` header, where the URI has no authority.
    pub host: Option<HeaderValue>,
    /// Its `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// Its `Referer`.
    pub referer: Option<HeaderValue>,
    /// Where it comes from, if it arrives.
    pub source: Option<SocketAddr>,
    /// The address of ours that it arrives at.
    pub local: Option<SocketAddr>,
    /// Who its caller has proved to be.
    pub identity: Option<Arc<str>>,
    /// Its place in a trace: its own span, below which its attempts stand.
    pub context: Option<Arc<TraceContext>>,
    /// The span that it stands below.
    pub parent: Option<SpanId>,
    /// When it began.
    pub started: Instant,
    /// When it began, by the wall clock.
    pub wall: SystemTime,
}

impl Subject {
    /// The authority it names, without a user's name and password.
    pub fn authority(&self) -> &str {
        let host = || self.host.as_ref().and_then(|host| host.to_str().ok());
        let named = self.uri.authority().map(http::uri::Authority::as_str).or_else(host);
        without_userinfo(named.unwrap_or_default())
    }

    /// What a span of it is called: the method and the route's name if there is one. Never the path, of which there
    /// are too many.
    pub fn name(&self) -> String {
        let method = self.method.as_str();
        match &*self.route {
            "" => method.to_owned(),
            route if route.starts_with(method) => route.to_owned(),
            route => format!("{method} {route}"),
        }
    }

    /// `at` by the wall clock.
    pub fn wall_at(&self, at: Instant) -> SystemTime {
        self.wall + at.saturating_duration_since(self.started)
    }
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its number in the call, from 0.
    pub number: u32,
    /// Its number in this process.
    pub id: u64,
    /// Its span, if the call is traced.
    pub span: Option<SpanId>,
    /// Where it goes, if that is known.
    pub endpoint: Option<Arc<Endpoint>>,
    /// When it began.
    pub begun: Instant,
}

/// How a call or an attempt ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// How it is judged.
    pub outcome: Outcome,
    /// The error in place of a response.
    pub error: Option<&'a Error>,
    /// The response's trailers.
    pub trailers: Option<&'a HeaderMap>,
    /// The bytes of the response's body.
    pub bytes: u64,
}

impl Ending<'_> {
    /// What its caller got: the status that was `seen`, else that of the error, which is answered above of those who are
    /// told.
    pub fn status(&self, seen: Option<u16>) -> Option<u16> {
        seen.or_else(|| self.error.map(|error| error.to_status().as_u16()))
    }

    /// The rule that denied it.
    pub fn rule(&self) -> Option<&Arc<str>> {
        match self.error {
            Some(Error::Denied { rule }) => Some(rule),
            _ => None,
        }
    }

    /// The gRPC code, by how it was judged or by the trailers.
    pub fn grpc(&self) -> Option<u8> {
        match self.outcome.cause {
            Cause::Grpc(code) => Some(code),
            _ => self.trailers.and_then(grpc_code),
        }
    }

    /// What OpenTelemetry calls `error.type`: the kind of the error, else the status, of what failed; `cancelled` for what
    /// its caller gave up. Nothing for what went well.
    pub fn error_type(&self) -> Option<Cow<'static, str>> {
        if let Some(error) = self.error {
            return Some(error.kind().into());
        }
        match (self.outcome.verdict, self.outcome.cause) {
            (Verdict::Success, _) => None,
            (Verdict::Cancelled, _) => Some("cancelled".into()),
            (Verdict::Failure, Cause::Status(status)) => Some(status.to_string().into()),
            (Verdict::Failure, Cause::Grpc(code)) => Some(code.to_string().into()),
            (Verdict::Failure, cause) => Some(cause.as_str().into()),
        }
    }
}

/// One thing that happens to an observed call.
#[derive(Debug, Clone, Copy)]
pub enum Note<'a> {
    /// An attempt is sent, with these headers.
    Sent(&'a Attempt, &'a HeaderMap),
    /// An attempt's response begins.
    Answered(&'a Attempt, StatusCode, &'a HeaderMap),
    /// An attempt ended.
    Ended(&'a Attempt, &'a Ending<'a>),
    /// An attempt that ended so is followed by another, after a wait.
    Retried(u32, &'a Outcome, Duration),
    /// Attempt so and so stands, though it failed, for this reason.
    GivenUp(u32, &'static str),
    /// Something else happened to an attempt: its endpoint's breaker shut, say.
    Event(u32, &'static str),
    /// Authorization lets it in, though this rule would refuse it if it were not only on trial (`audit`).
    Audited(&'a Arc<str>),
    /// The response begins.
    Head(StatusCode, &'a HeaderMap),
    /// The call ended.
    End(&'a Ending<'a>),
}

/// Somebody who is told of a call. Must be quick and never wait: it is told on the request's own thread.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Something happened.
    fn note(&self, call: &Arc<Subject>, at: Instant, note: Note<'_>);
    /// The call's own code is about to run on this thread.
    fn enter(&self) {}
    /// It ran.
    fn exit(&self) {}
}

/// The present time, which deciding code does not ask for itself.
pub type Clock = fn() -> Instant;

/// A call that is observed. When the last of its layers lets go of it and no end was told, it was dropped.
#[derive(Debug)]
pub struct Observed {
    subject: Arc<Subject>,
    observers: Vec<Box<dyn Observer>>,
    clock: Clock,
    rng: Rng,
    attempts: AtomicU32,
    bytes: AtomicU64,
    ended: AtomicBool,
}

/// Numbers calls and attempts; 64 bits do not come round.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A number that no other call or attempt of this process has.
pub fn number() -> u64 {
    NUMBERS.fetch_add(1, Relaxed)
}

impl Observed {
    /// A call that these observe.
    pub fn new(subject: Arc<Subject>, observers: Vec<Box<dyn Observer>>, clock: Clock, rng: Rng) -> Self {
        let (attempts, bytes, ended) = (AtomicU32::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Self { subject, observers, clock, rng, attempts, bytes, ended }
    }

    /// What is known of it.
    pub fn subject(&self) -> &Arc<Subject> {
        &self.subject
    }

    /// The attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }

    /// Tells everybody.
    pub fn note(&self, note: Note<'_>) {
        if !self.observers.is_empty() {
            self.note_at((self.clock)(), note);
        }
    }

    fn note_at(&self, at: Instant, note: Note<'_>) {
        for observer in &self.observers {
            observer.note(&self.subject, at, note);
        }
    }

    /// Begins an attempt: its place in the trace is written into its headers, and it is told.
    pub fn attempt(
        self: &Arc<Self>,
        number: u32,
        endpoint: Option<Arc<Endpoint>>,
        headers: &mut HeaderMap,
    ) -> Attempting {
        self.attempts.fetch_max(number.saturating_add(1), Relaxed);
        let begun = (self.clock)();
        let span = self.subject.context.as_ref().map(|context| {
            let span = new_span(&self.rng);
            context.below(span).write(headers);
            span
        });
        let attempt = Attempt { number, id: self::number(), span, endpoint, begun };
        self.note_at(begun, Note::Sent(&attempt, headers));
        Attempting { observed: Arc::clone(self), attempt, bytes: 0, ended: false }
    }

    /// The response begins.
    pub fn head(&self, status: StatusCode, headers: &HeaderMap) {
        self.note(Note::Head(status, headers));
    }

    /// So many bytes of the response's body came.
    pub fn data(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// The call ended. Only the first end counts.
    pub fn end(&self, outcome: &Outcome, error: Option<&Error>, trailers: Option<&HeaderMap>) {
        if !self.ended.swap(true, Relaxed) {
            let bytes = self.bytes.load(Relaxed);
            self.note(Note::End(&Ending { outcome: *outcome, error, trailers, bytes }));
        }
    }

    /// Does work that belongs to the call: its observers may note what happens meanwhile as part of it.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Exit<'a>(&'a [Box<dyn Observer>]);
        impl Drop for Exit<'_> {
            fn drop(&mut self) {
                self.0.iter().rev().for_each(|observer| observer.exit());
            }
        }
        self.observers.iter().for_each(|observer| observer.enter());
        let _exit = Exit(&self.observers);
        work()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.end(&Outcome::DROPPED, None, None);
    }
}

/// An attempt under way. Dropped without an end, it was dropped.
#[derive(Debug)]
pub struct Attempting {
    observed: Arc<Observed>,
    attempt: Attempt,
    bytes: u64,
    ended: bool,
}

impl Attempting {
    /// Its response begins.
    pub fn head(&self, status: StatusCode, headers: &HeaderMap) {
        self.observed.note(Note::Answered(&self.attempt, status, headers));
    }

    /// So many bytes of its response's body came.
    pub fn data(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Something happened to it.
    pub fn event(&self, what: &'static str) {
        self.observed.note(Note::Event(self.attempt.number, what));
    }

    /// It ended. Only the first end counts.
    pub fn end(&mut self, outcome: &Outcome, error: Option<&Error>, trailers: Option<&HeaderMap>) {
        if !std::mem::replace(&mut self.ended, true) {
            let ending = Ending { outcome: *outcome, error, trailers, bytes: self.bytes };
            self.observed.note(Note::Ended(&self.attempt, &ending));
        }
    }
}

impl Drop for Attempting {
    fn drop(&mut self) {
        self.end(&Outcome::DROPPED, None, None);
    }
}
