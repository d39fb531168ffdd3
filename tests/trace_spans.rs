//! Calls as `tracing` spans, told to a real subscriber: one for the call, one for each attempt, ended with the response's body.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns its own servers")]

use bytes::Bytes;
use enmesh::{Error, Mesh};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// A span as it was told.
#[derive(Debug, Clone, Default)]
struct Told {
    name: String,
    parent: Option<String>,
    fields: BTreeMap<String, String>,
    events: Vec<BTreeMap<String, String>>,
    closed: bool,
}

impl Told {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

/// All spans of the mesh, in the order in which they began.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(u64, Told)>>>);

impl Seen {
    fn all(&self) -> Vec<Told> {
        self.0.lock().unwrap().iter().map(|(_, told)| told.clone()).collect()
    }

    /// The one call, and its attempts.
    fn call(&self) -> (Told, Vec<Told>) {
        let (mut calls, attempts): (Vec<_>, Vec<_>) =
            self.all().into_iter().partition(|span| span.name == "request");
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert!(
            attempts.iter().all(|span| span.name == "attempt" && span.parent.as_deref() == Some("request"))
        );
        (calls.remove(0), attempts)
    }

    fn with(&self, id: &Id, tell: impl FnOnce(&mut Told)) {
        let mut all = self.0.lock().unwrap();
        // A number is used again once its span is closed: the newest is meant.
        if let Some((_, told)) = all.iter_mut().rev().find(|(known, _)| *known == id.into_u64()) {
            tell(told);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Seen {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().target() != "enmesh::request" {
            return;
        }
        let parent = context.span(id).and_then(|span| span.parent()).map(|span| span.name().to_owned());
        let mut told = Told { name: attributes.metadata().name().to_owned(), parent, ..Told::default() };
        attributes.record(&mut Fields(&mut told.fields));
        self.0.lock().unwrap().push((id.into_u64(), told));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.with(id, |told| values.record(&mut Fields(&mut told.fields)));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() == "enmesh::request"
            && let Some(span) = context.event_span(event)
        {
            let mut fields = BTreeMap::new();
            event.record(&mut Fields(&mut fields));
            self.with(&span.id(), |told| told.events.push(fields));
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.with(&id, |told| told.closed = true);
    }
}

/// Everything on this thread is told to what is returned, until the guard is dropped.
fn watched() -> (Seen, tracing::subscriber::DefaultGuard) {
    let seen = Seen::default();
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    (seen, guard)
}

/// A server outside of the mesh that answers with these statuses in turn, and then with 200.
async fn upstream(statuses: &[u16]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let left = Arc::new(Mutex::new(statuses.to_vec()));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let left = Arc::clone(&left);
            let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                let mut left = left.lock().unwrap();
                let status = if left.is_empty() { 200 } else { left.remove(0) };
                let response = Response::builder().status(status).body(Full::<Bytes>::from("hello"));
                async move { Ok::<_, Infallible>(response.unwrap()) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(io, service).await.map_err(drop) });
        }
    });
    addr
}

/// A profile of `up.ns` that says `more`, and one route for everything.
fn profile(more: &str) -> String {
    format!(
        "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {{name: up.ns.svc.cluster.local}}\nspec:\n  routes:\n  - {{name: all, condition: {{pathRegex: '/.*'}}, isRetryable: true}}\n{more}"
    )
}

fn mesh(profile: &str, addr: SocketAddr) -> Mesh {
    let mesh = Mesh::builder().name("me.ns:1").dns(false).profile_yaml(profile);
    mesh.endpoints("up.ns:80", [addr.to_string()]).build().unwrap()
}

#[tokio::test]
async fn a_retried_call_is_a_span_of_the_call_and_two_of_its_attempts_to_the_end_of_its_body() {
    let (seen, _guard) = watched();
    let addr = upstream(&[503]).await;
    let response = mesh(&profile(""), addr).client().get("http://up.ns/list?secret=1").await.unwrap();
    let (call, attempts) = seen.call();
    assert_eq!(
        (call.closed, attempts.iter().map(|span| span.closed).collect::<Vec<_>>()),
        (false, vec![true, false])
    );
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    let (call, attempts) = seen.call();
    assert!(call.closed && attempts.iter().all(|span| span.closed), "the body has ended");

    assert_eq!(call.field("service"), Some("up.ns.svc.cluster.local:80"));
    assert_eq!((call.field("route"), call.field("url.path")), (Some("all"), Some("/list")));
    assert_eq!((call.field("otel.kind"), call.field("otel.name")), (Some("client"), Some("GET all")));
    assert_eq!((call.field("http.response.status_code"), call.field("error.type")), (Some("200"), None));
    assert_eq!(call.field("http.response.body.size"), Some("5"));
    assert!(!format!("{call:?}{attempts:?}").contains("secret"), "queries are not told");
    let [retried] = &call.events[..] else { panic!("{:?}", call.events) };
    assert_eq!((retried["message"].as_str(), retried["because"].as_str()), ("sent again", "status 503"));
    for (number, (span, (status, error))) in
        attempts.iter().zip([("503", Some("503")), ("200", None)]).enumerate()
    {
        assert_eq!(span.field("number"), Some(number.to_string().as_str()));
        assert_eq!(span.field("network.peer.address"), Some(addr.to_string().as_str()));
        assert_eq!(
            (span.field("http.response.status_code"), span.field("error.type")),
            (Some(status), error)
        );
        assert_eq!(span.field("otel.status_code"), error.map(|_| "ERROR"));
    }
}

#[tokio::test]
async fn what_a_budget_refuses_and_what_a_breaker_does_are_events_of_the_call() {
    let (seen, _guard) = watched();
    let poor = profile(
        "  retryBudget: {retryRatio: 0, minRetriesPerSecond: 0, ttl: 10s}\n  balancer: {minReady: 0}\n  failureAccrual: {detectors: [{consecutive: {maxFailures: 1}}], maxEjectionPercent: 100}\n",
    );
    let up = mesh(&poor, upstream(&[503]).await);
    let response = up.client().get("http://up.ns/").await.unwrap();
    assert_eq!(response.status(), 503);
    // What becomes of the breaker later is no event of this call.
    drop(up);
    drop(response);
    let (call, attempts) = seen.call();
    let told = |field: &str| -> Vec<Option<&str>> {
        call.events.iter().map(|event| event.get(field).map(String::as_str)).collect()
    };
    assert_eq!(told("message"), [Some("breaker shut"), Some("not sent again")]);
    assert_eq!(told("why"), [None, Some("no_budget")]);
    assert!(call.closed && attempts.len() == 1 && attempts[0].closed);
    assert_eq!((call.field("error.type"), call.field("otel.status_code")), (Some("503"), Some("ERROR")));
}

#[tokio::test]
async fn failures_and_what_was_given_up_have_spans_too() {
    // Nobody listens.
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (seen, guard) = watched();
    let error = mesh(&profile("  retryBudget: {retryRatio: 0, minRetriesPerSecond: 0, ttl: 10s}\n"), refused)
        .client()
        .get("http://up.ns/")
        .await
        .unwrap_err();
    let (call, attempts) = seen.call();
    assert!(call.closed && attempts.len() == 1 && attempts[0].closed);
    for span in [&call, &attempts[0]] {
        assert_eq!(
            (span.field("error.type"), span.field("otel.status_code")),
            (Some(error.kind()), Some("ERROR"))
        );
    }
    drop(guard);

    let (seen, guard) = watched();
    let nobody = Mesh::builder().dns(false).endpoints("none.ns:80", [""; 0]).build().unwrap();
    assert!(nobody.client().get("http://none.ns/").await.is_err());
    let (call, attempts) = seen.call();
    assert_eq!((call.closed, call.field("error.type"), attempts.len()), (true, Some("no_endpoints"), 0));
    drop(guard);

    let (seen, _guard) = watched();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let up = mesh(&profile(""), silent.local_addr().unwrap());
    let client = up.client();
    let call = client.get("http://up.ns/");
    assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err(), "it hangs");
    let (call, attempts) = seen.call();
    assert!(call.closed && attempts.iter().all(|span| span.closed));
    assert_eq!((call.field("error.type"), call.field("otel.status_code")), (Some("cancelled"), None));
}

#[tokio::test]
async fn attempts_by_a_service_of_the_callers_own_have_spans_too() {
    let (seen, _guard) = watched();
    let parents = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&parents);
    let inner = tower::service_fn(move |request: Request<_>| {
        let mut told = told.lock().unwrap();
        told.push(request.headers()["traceparent"].to_str().unwrap().to_owned());
        drop(request);
        let status = if told.len() == 1 { 503 } else { 200 };
        let response = Response::builder().status(status).body(Full::<Bytes>::from("hello"));
        async move { Ok::<_, Error>(response.unwrap()) }
    });
    let record = enmesh::trace::settings::TraceSettings::record();
    let mesh =
        Mesh::builder().name("me.ns:1").dns(false).profile_yaml(&profile("")).trace(record).build().unwrap();
    let request = Request::get("http://up.ns/").body(Full::<Bytes>::default()).unwrap();
    let response = mesh.layer().layer(inner).oneshot(request).await.unwrap();
    let closed = |attempts: &[Told]| attempts.iter().map(|span| span.closed).collect::<Vec<_>>();
    assert_eq!(closed(&seen.call().1), [true, false]);
    response.into_body().collect().await.unwrap();
    let (call, attempts) = seen.call();
    assert_eq!((call.closed, closed(&attempts)), (true, vec![true, true]));
    let field =
        |name: &str| attempts.iter().map(|span| span.field(name).map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(field("http.response.status_code"), [Some("503".to_owned()), Some("200".to_owned())]);
    assert_eq!(field("error.type"), [Some("503".to_owned()), None]);
    // Each attempt's own number is what its headers carry.
    for (parent, span) in parents.lock().unwrap().iter().zip(field("span_id")) {
        assert_eq!(parent.split('-').nth(2).map(str::to_owned), span);
    }
}
