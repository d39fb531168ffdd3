//! Linkerd's vectors for retries, budgets and timeouts, and the security cases of retries and deadlines, each
//! deliberate difference named and asserted (docs/linkerd-differences.md).

#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/upstream.rs"]
mod upstream;

#[path = "support/corpus.rs"]
mod support;

use bytes::Bytes;
use enmesh::error::{BoxError, Error};
use enmesh::fault::decide::FaultSwitch;
use enmesh::metrics::names::Direction;
use enmesh::metrics::set::MetricsSet;
use enmesh::policy::call::{Call, CallScope, CallState, Nobody};
use enmesh::policy::compile::{Compiler, Policy};
use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::load_text;
use enmesh::profile::parse::parse;
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::BudgetSettings;
use enmesh::retry::budget::{Budget, Stake};
use enmesh::retry::layer::RetryLayer;
use enmesh::retry::replay::{Keep, Replay, Replayable};
use enmesh::route::head::RequestHead;
use enmesh::stdx::clock::{self, Duration};
use enmesh::stdx::rng::Rng;
use enmesh::timeout::arrival::ArrivalLayer;
use enmesh::timeout::attempt::AttemptLayer;
use enmesh::timeout::deadline;
use enmesh::timeout::layer::TimeoutLayer;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use support::{cases, list, vectors};
use tower::{ServiceBuilder, ServiceExt};
use upstream::{Reply, Sent, Upstream};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

// ---- budgets

/// Deliberate: the ratio is exact. Linkerd truncates what a retry costs, `trunc(1/ratio)` or `trunc(1000/ratio)`, so
/// its real ratio is another one.
#[test]
fn budgets_grant_what_linkerds_grant_but_for_ratios_that_it_truncates() {
    let Some(file) = vectors("linkerd-retry-budget.json") else { return };
    let (mut seen, mut exact) = (0, 0);
    for case in cases(&file, "cases") {
        let name = text(case, "name");
        let ratio = case["retry_ratio"].as_f64().unwrap();
        let ppm = (ratio * 1e6).round() as u32;
        let ttl = MS(case["ttl_ms"].as_u64().unwrap());
        let min_per_second = case["min_retries_per_second"].as_u64().unwrap() as u32;
        let budget = Budget::new(&BudgetSettings::Windowed { ratio_ppm: ppm, min_per_second, ttl });
        let theirs =
            case["derived"]["deposit"].as_f64().unwrap() / case["derived"]["withdraw"].as_f64().unwrap();
        let truncated = ratio > 0.0 && (theirs - ratio).abs() > 1e-9;
        let (start, mut at, mut deposits, mut grants) = (clock::now(), 0, 0.0, Vec::new());
        for op in list(&case["ops"]) {
            let times = op[1].as_u64().unwrap_or(1);
            match op[0].as_str().unwrap() {
                "deposit" => (0..times).for_each(|_| {
                    budget.deposit(start + MS(at));
                    deposits += 1.0;
                }),
                "advance" => at += times,
                "withdraw" => {
                    let grant = || budget.withdraw(&mut Stake::default(), start + MS(at));
                    grants.push((at, times, (0..times).filter(|_| grant()).count() as u64));
                }
                other => panic!("{name}: {other}"),
            }
        }
        let results = list(&case["withdraw_results"]).iter();
        let results =
            results.map(|it| (it["at_ms"].as_u64(), it["attempts"].as_u64(), it["granted"].as_u64()));
        for (result, (at, times, granted)) in results.zip(&grants) {
            assert_eq!((result.0, result.1), (Some(*at), Some(*times)), "{name}");
            if truncated && deposits > 0.0 {
                let reserve = f64::from(min_per_second) * ttl.as_secs() as f64;
                let ours = (deposits * ratio + reserve).min(*times as f64).floor();
                assert_eq!(*granted as f64, ours, "{name}: exact");
                exact += 1;
            } else {
                assert_eq!(Some(*granted), result.2, "{name} at {at}");
            }
        }
        seen += 1;
    }
    assert!(seen >= 8 && exact >= 1, "{seen} {exact}");
}

/// Deliberate: any number of retries a second is a number; Linkerd's proxy takes it for none beyond 2^31 - 1.
#[test]
fn budgets_that_are_of_no_use_retry_nothing() {
    let Some(file) = vectors("linkerd-retry-budget.json") else { return };
    for case in cases(&file, "acceptance_by_proxy") {
        let (ratio, min) = (&case["retry_ratio"], case["min"].as_u64().unwrap());
        let ratio = ratio.as_f64().map_or(".nan".to_owned(), |ratio| ratio.to_string());
        let budget = format!(
            "{{retryRatio: {ratio}, minRetriesPerSecond: {min}, ttl: {}ms}}",
            case["ttl_ms"].as_u64().unwrap()
        );
        let document = parse(&linkerd(&budget, "[]"), "case").documents.remove(0);
        let granted = document.profile.as_ref().and_then(|profile| profile.retry_budget).map(|settings| {
            let budget = Budget::new(&settings);
            (0..1000).for_each(|_| budget.deposit(clock::now()));
            budget.level(clock::now()) > 0
        });
        let expected = case["used"].as_bool().unwrap() || min > u64::from(i32::MAX as u32);
        assert_eq!(granted.unwrap_or(false), expected, "{case}: {:?}", document.faults);
        assert_eq!(document.faults.is_empty(), expected, "{case}: what is of no use is said");
    }
}

// ---- scenarios

/// The suite's own budget.
const BUDGET: &str = "{retryRatio: 0.1, minRetriesPerSecond: 1, ttl: 1s}";
const RETRYABLE: &str = "[{name: r, condition: {pathRegex: '/.*'}, isRetryable: true}]";

fn linkerd(budget: &str, routes: &str) -> String {
    format!(
        "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata:\n  name: svc.ns.svc.cluster.local\n  namespace: ns\nspec:\n  retryBudget: {budget}\n  routes: {routes}\n"
    )
}

/// A service with this profile.
struct World {
    policy: Policy<()>,
    upstream: Upstream,
}

/// How a call ended.
#[derive(Debug)]
struct Ended {
    /// The status, or what stands for the error.
    status: u16,
    /// The gRPC code in headers or trailers.
    grpc: Option<u8>,
    /// The body's frames, as text; the error's scope if it broke.
    frames: Vec<String>,
}

impl World {
    fn of(profile: ServiceProfile, script: impl IntoIterator<Item = Reply>) -> Self {
        let own = profile.names[0].clone().or_port(80);
        let metrics = MetricsSet::unseen();
        let service = "svc.ns.svc.cluster.local:80".into();
        let compiler = Compiler {
            service,
            own,
            direction: Direction::Outbound,
            metrics: &metrics,
            faults: FaultSwitch::default(),
        };
        Self {
            policy: compiler.compile(Arc::new(profile), None, |_| ()).unwrap(),
            upstream: Upstream::new(script),
        }
    }

    fn yaml(yaml: &str, script: impl IntoIterator<Item = Reply>) -> Self {
        let document = parse(yaml, "case").documents.remove(0);
        Self::of(document.profile.unwrap_or_else(|| panic!("{yaml}: {:?}", document.faults)), script)
    }

    /// By the annotations of a service.
    fn annotated(annotations: &Value, script: impl IntoIterator<Item = Reply>) -> Self {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "svc", "namespace": "ns", "annotations": annotations},
            "spec": {"ports": [{"port": 80}]},
        });
        let mut imported = load_text(&service.to_string(), "case", &ImportSettings::default());
        assert!(imported.notes[0].faults.is_empty(), "{:?}", imported.notes);
        // Nothing is said of a service without annotations.
        let nothing = || ServiceProfile::new("svc.ns.svc.cluster.local".parse().unwrap());
        Self::of(imported.profiles.pop().unwrap_or_else(nothing), script)
    }

    async fn send(&self, request: Request<Content>) -> Ended {
        let entry = self.policy.find(&RequestHead::of_request(&request)).expect("a route");
        let mut state = CallState::new(clock::now());
        state.deadline = entry.policy.timeouts.request.map(|request| state.started + request);
        let scope = CallScope::new(Arc::clone(entry), state);
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::request())
            .layer(RetryLayer::<Nobody>::by_route(Rng::seeded(1)))
            .layer(AttemptLayer::default())
            .service(self.upstream.clone());
        match service.oneshot(Call { http: request, scope }).await {
            Err(error) => {
                let (status, grpc) = (error.to_status().as_u16(), Some(error.to_grpc()));
                Ended { status, grpc, frames: Vec::new() }
            }
            Ok(response) => read(response).await,
        }
    }

    async fn get(&self, path: &str) -> Ended {
        self.send(request("GET", path, whole(""))).await
    }

    fn no_budget(&self) -> u64 {
        let route = &self.policy.routes()[0];
        route.policy.metrics.read().no_budget
    }
}

async fn read<B>(response: Response<B>) -> Ended
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let (head, mut body) = response.into_parts();
    let code = |headers: &HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    let mut ended = Ended { status: head.status.as_u16(), grpc: code(&head.headers), frames: Vec::new() };
    while let Some(frame) = body.frame().await {
        match frame.map_err(Into::into) {
            Err(error) => {
                let scope = match error.downcast_ref::<Error>() {
                    Some(Error::Timeout { scope, .. }) => scope.as_str(),
                    _ => "error",
                };
                ended.frames.push(scope.to_owned());
                break;
            }
            Ok(frame) => match frame.into_data() {
                Ok(data) => ended.frames.push(String::from_utf8(data.to_vec()).unwrap()),
                Err(frame) => ended.grpc = code(frame.trailers_ref().unwrap()),
            },
        }
    }
    ended
}

type Content = UnsyncBoxBody<Bytes, BoxError>;

fn request(method: &str, path: &str, body: Content) -> Request<Content> {
    let uri = format!("http://svc.ns.svc.cluster.local{path}");
    Request::builder().method(method).uri(uri).body(body).unwrap()
}

fn whole(text: impl Into<Bytes>) -> Content {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn chunks(chunks: impl IntoIterator<Item = Vec<u8>>) -> Content {
    let frames: Vec<_> = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk)))).collect();
    StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
}

/// `/0.5` of the suite's server: every other request fails.
fn alternating() -> Vec<Reply> {
    (0..10).flat_map(|_| [Reply::status(533), Reply::status(200)]).collect()
}

/// The cases of one request: the budget, the routes, and the request.
fn one_request(name: &str) -> Option<(&'static str, &'static str, Request<Content>)> {
    const ELSEWHERE: &str = "[{name: r, condition: {pathRegex: /wont/match/anything}, isRetryable: true}]";
    const CLASSES: &str = "[{name: r, condition: {pathRegex: '/.*'}, isRetryable: true, responseClasses: [{condition: {status: {min: 533, max: 533}}, isFailure: false}, {condition: {status: {min: 500, max: 599}}, isFailure: true}]}]";
    let get = || request("GET", "/0.5", whole(""));
    let (post, put) = (|body| request("POST", "/0.5", body), |body| request("PUT", "/0.5", body));
    Some(match name {
        "retry_if_profile_allows" => (BUDGET, RETRYABLE, get()),
        // Linkerd repeats whatever its route says; so does a Linkerd profile here.
        "retry_with_small_post_body" => (BUDGET, RETRYABLE, post(whole("a small body!!"))),
        "retry_with_small_put_body" => (BUDGET, RETRYABLE, put(whole("a small body!!"))),
        "does_not_retry_if_request_does_not_match" => (BUDGET, ELSEWHERE, get()),
        "does_not_retry_if_earlier_response_class_is_success" => (BUDGET, CLASSES, get()),
        "does_not_retry_if_body_is_too_long" => (BUDGET, RETRYABLE, post(whole(vec![b'x'; 65537]))),
        "does_not_retry_if_streaming_body_exceeds_max_length" => {
            (BUDGET, RETRYABLE, post(chunks((0..3).map(|_| vec![b'x'; 32 << 10]))))
        }
        // On the wire, where every budget is written. A profile that says none gets Linkerd's usual one from
        // Linkerd's controller, and so it does here.
        "does_not_retry_if_missing_retry_budget" => {
            ("{retryRatio: 0, minRetriesPerSecond: 0, ttl: 1s}", RETRYABLE, get())
        }
        "ignores_invalid_retry_budget_ttl" => {
            ("{retryRatio: 0.1, minRetriesPerSecond: 1, ttl: 1000s}", RETRYABLE, get())
        }
        "ignores_invalid_retry_budget_ratio" => {
            ("{retryRatio: 10000, minRetriesPerSecond: 1, ttl: 1s}", RETRYABLE, get())
        }
        _ => return None,
    })
}

#[tokio::test(start_paused = true)]
async fn profiles_retry_as_linkerds_do() {
    let Some(file) = vectors("linkerd-retry-timeout-scenarios.json") else { return };
    let mut seen = 0;
    for case in cases(&file["profile_retries"], "cases") {
        let name = text(case, "name");
        seen += 1;
        if name.starts_with("grpc ") {
            grpc_case(name, case).await;
            continue;
        }
        let status = match one_request(name) {
            Some((budget, routes, request)) => {
                World::yaml(&linkerd(budget, routes), alternating()).send(request).await.status
            }
            None => other_case(name).await,
        };
        assert_eq!(u64::from(status), case["expect"].as_u64().unwrap_or(200), "{name}");
    }
    assert!(seen >= 10, "{seen}");
    assert_eq!(
        World::yaml(&linkerd("~", RETRYABLE), alternating()).get("/").await.status,
        200,
        "no budget said"
    );
}

/// The cases that look at more than one answer.
async fn other_case(name: &str) -> u16 {
    match name {
        "retry_uses_budget" => {
            let world = World::yaml(&linkerd(BUDGET, RETRYABLE), alternating());
            let answers = [world.get("/0.5").await, world.get("/0.5").await, world.get("/0.5").await];
            assert_eq!(answers.map(|answer| answer.status), [200, 533, 200], "{name}");
            assert_eq!(world.no_budget(), 1, "{name}");
            200
        }
        "retry_without_content_length" => {
            let body = chunks([b"hello".to_vec(), b"world".to_vec()]);
            let world = World::yaml(&linkerd(BUDGET, RETRYABLE), alternating());
            let ended = world.send(request("POST", "/0.5", body)).await;
            assert_eq!(world.upstream.bodies(), [b"helloworld", b"helloworld"], "{name}");
            ended.status
        }
        // Linkerd's webhook refuses it, and so do we; the proxy's own check cannot be reached.
        "ignores_invalid_retry_budget_negative_ratio" => {
            let budget = "{retryRatio: -1, minRetriesPerSecond: 1, ttl: 1s}";
            assert!(parse(&linkerd(budget, RETRYABLE), "case").documents[0].profile.is_none(), "{name}");
            533
        }
        "timeout" => {
            let routes = "[{name: r, condition: {pathRegex: '/.*'}, timeout: 100ms}]";
            let world = World::yaml(&linkerd(BUDGET, routes), [Reply::status(200).after(MS(1000))]);
            world.get("/1.0/sleep").await.status
        }
        "http2_failures_dont_leak_connection_window" => {
            // What failed is dropped with its body before the next attempt ends: nothing of it is alive.
            let big = Box::leak("x".repeat(100 << 10).into_boxed_str());
            let script = [Reply::status(533).body(vec![Sent::Data(big)]), Reply::status(200)];
            let world = World::yaml(&linkerd(BUDGET, RETRYABLE), script);
            let ended = world.get("/").await;
            assert_eq!(world.upstream.alive(), 0, "{name}");
            ended.status
        }
        other => panic!("a case that nobody here knows: {other}"),
    }
}

async fn grpc_case(name: &str, case: &Value) {
    let trailers = |code: &'static str| Sent::Trailers(vec![("grpc-status", code)]);
    let script = match name {
        "grpc retries_failure_in_headers" => {
            vec![
                Reply::grpc(vec![]).header("grpc-status", "14"),
                Reply::grpc(vec![]).header("grpc-status", "0"),
            ]
        }
        "grpc retries_failure_in_trailers" => {
            vec![Reply::grpc(vec![trailers("14")]), Reply::grpc(vec![trailers("0")])]
        }
        "grpc does_not_retry_success_in_trailers" => {
            vec![Reply::grpc(vec![Sent::Data("one"), trailers("0")])]
        }
        "grpc does_not_eat_multiple_data_frame_body" => {
            vec![Reply::grpc(vec![Sent::Data("one"), Sent::Wait(MS(1)), Sent::Data("two"), trailers("0")])]
        }
        other => panic!("a case that nobody here knows: {other}"),
    };
    let data = script.iter().find_map(|reply| match &reply.end {
        upstream::End::Response { frames, .. } => {
            Some(frames.iter().filter(|frame| matches!(frame, Sent::Data(_))).count())
        }
        _ => None,
    });
    let world = World::yaml(&linkerd(BUDGET, RETRYABLE), script);
    let ended = world.send(request("POST", "/svc/Method", whole("m"))).await;
    let expected = case["expect"].as_u64().unwrap_or(0);
    assert_eq!((ended.grpc.map(u64::from), ended.status), (Some(expected), 200), "{name}");
    assert_eq!(world.upstream.count() as u64, case["sent"].as_u64().unwrap(), "{name}");
    if case["body_intact"].as_bool() == Some(true) {
        assert_eq!(Some(ended.frames.len()), data, "{name}: no frame is eaten");
    }
}

/// What an attempt does, as the vectors write it: a status, `204 at once`, `headers after 1000 ms`, `200 ms`, a code.
fn reply(value: &Value, grpc: bool) -> Reply {
    if let Some(number) = value.as_u64() {
        return match grpc {
            true => {
                Reply::grpc(vec![Sent::Trailers(vec![("grpc-status", if number == 0 { "0" } else { "14" })])])
            }
            false => Reply::status(number as u16),
        };
    }
    let text = value.as_str().unwrap();
    let number = || text.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()).unwrap();
    match text.strip_suffix(" ms") {
        Some(_) => Reply::status(200).after(MS(number().parse().unwrap())),
        None => Reply::status(number().parse().unwrap()),
    }
}

#[tokio::test(start_paused = true)]
async fn policies_retry_as_linkerds_do() {
    let Some(file) = vectors("linkerd-retry-timeout-scenarios.json") else { return };
    let mut seen = 0;
    for case in cases(&file, "policy_retries") {
        let name = text(case, "name");
        if name == "request headers need opt-in" {
            // Nobody can opt in here: a caller's own limit is `CallOptions`, in the program.
            let world = World::annotated(
                &json!({}),
                case["attempts"].as_array().unwrap().iter().map(|it| reply(it, false)),
            );
            let mut request = request("GET", "/", whole(""));
            for (key, value) in case["headers"].as_object().unwrap() {
                let key = http::HeaderName::from_bytes(key.as_bytes()).unwrap();
                request.headers_mut().insert(key, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
            }
            assert_eq!(
                u64::from(world.send(request).await.status),
                case["expect"].as_u64().unwrap(),
                "{name}"
            );
            assert_eq!(world.upstream.count(), 1, "{name}");
            seen += 1;
            continue;
        }
        let grpc = case.get("codes").is_some();
        let limit = case["limit"].as_u64().unwrap();
        let mut annotations =
            json!({"retry.linkerd.io/http": "5xx", "retry.linkerd.io/limit": limit.to_string()});
        if grpc {
            // Without codes only what takes too long is repeated.
            annotations = json!({"retry.linkerd.io/limit": limit.to_string()});
            let names =
                [(1, "cancelled"), (4, "deadline-exceeded"), (8, "resource-exhausted"), (13, "internal")];
            let name = |code: &Value| {
                let found = names.iter().find(|(number, _)| code.as_u64() == Some(*number));
                found.map_or("unavailable", |(_, name)| *name)
            };
            let codes: Vec<&str> = list(&case["codes"]).iter().map(name).collect();
            if !codes.is_empty() {
                annotations["retry.linkerd.io/grpc"] = json!(codes.join(","));
            }
        }
        for (key, annotation) in [
            ("request_timeout_ms", "timeout.linkerd.io/request"),
            ("retry_timeout_ms", "retry.linkerd.io/timeout"),
        ] {
            if let Some(ms) = case[key].as_u64() {
                annotations[annotation] = json!(format!("{ms}ms"));
            }
        }
        let one = [json!({"attempts": case["attempts"], "expect": case["expect"]})];
        let runs = if case.get("runs").is_some() { list(&case["runs"]) } else { &one[..] };
        for run in runs {
            let world =
                World::annotated(&annotations, list(&run["attempts"]).iter().map(|it| reply(it, grpc)));
            let ended = world.get("/").await;
            match run["expect"].as_u64() {
                Some(code) if grpc => assert_eq!(ended.grpc.map(u64::from), Some(code), "{name}"),
                Some(status) => assert_eq!(u64::from(ended.status), status, "{name}"),
                None => assert_eq!((ended.status, ended.grpc), (504, Some(4)), "{name}: {run}"),
            }
            assert_eq!(world.upstream.count(), list(&run["attempts"]).len(), "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 4, "{seen}");
}

#[tokio::test(start_paused = true)]
async fn timeouts_end_where_linkerds_end() {
    let Some(file) = vectors("linkerd-retry-timeout-scenarios.json") else { return };
    for case in cases(&file, "timeouts") {
        let limit = |key: &str| case[key].as_u64();
        let mut annotations = json!({});
        for (key, name) in [("request_ms", "request"), ("response_ms", "response"), ("idle_ms", "idle")] {
            if let Some(ms) = limit(key) {
                annotations[format!("timeout.linkerd.io/{name}")] = json!(format!("{ms}ms"));
            }
        }
        let silent = vec![Sent::Data("x"), Sent::Wait(MS(60_000)), Sent::Data("y")];
        let script = match text(case, "server") {
            "headers after 4 s" => Reply::status(200).after(MS(4000)),
            "200 then silent body" => Reply::status(200).body(silent),
            other => panic!("{other}"),
        };
        let ended = World::annotated(&annotations, [script]).get("/").await;
        match text(case, "expect") {
            expected if expected.starts_with("504") => assert_eq!(ended.status, 504, "{case}"),
            expected => {
                // Linkerd calls the request's own limit the stream's lifetime.
                let scope = expected.trim_start_matches("stream error ").replace("lifetime", "request");
                assert_eq!((ended.status, ended.frames.last()), (200, Some(&scope)), "{case}");
            }
        }
    }
}

#[test]
fn bodies_are_replayed_as_linkerds_are() {
    let Some(file) = vectors("linkerd-retry-timeout-scenarios.json") else { return };
    let read = |body: &mut Replay<Content>| {
        let mut read = Vec::new();
        while let Poll::Ready(Some(frame)) =
            std::pin::Pin::new(&mut *body).frame_once(&mut Context::from_waker(Waker::noop()))
        {
            let frame = frame.unwrap();
            read.push(match frame.into_data() {
                Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                Err(_) => "trailers".to_owned(),
            });
        }
        read
    };
    let mut seen = 0;
    for case in cases(&file, "replay_body") {
        let name = text(case, "name");
        let cap = case["cap"].as_u64().unwrap_or(8) as usize;
        match name {
            "cap" => {
                let pieces =
                    list(&case["chunks"]).iter().map(|chunk| chunk.as_str().unwrap().as_bytes().to_vec());
                let (mut body, keep) = Replay::record(chunks(pieces.collect::<Vec<_>>()), cap);
                read(&mut body);
                let gone = keep.as_ref().map(Keep::state) == Some(Replayable::Gone);
                assert_eq!(gone, case["capped"].as_bool().unwrap(), "{name}");
            }
            "cap across replays" => {
                // The first reader gave up after eight bytes; the ninth comes to the second reader.
                let (mut body, keep) = Replay::record(chunks([b"abcdefgh".to_vec(), b"i".to_vec()]), cap);
                let first = std::pin::Pin::new(&mut body).frame_once(&mut Context::from_waker(Waker::noop()));
                assert!(matches!(first, Poll::Ready(Some(Ok(_)))));
                let keep = keep.unwrap();
                assert_eq!(read(&mut keep.again().unwrap()), ["abcdefgh", "i"], "{name}: nobody is harmed");
                assert_eq!(keep.state(), Replayable::Gone, "{name}");
            }
            "content-length == cap" => {
                let (_, keep) = Replay::record(whole("abcdefgh"), 8);
                assert_eq!(keep.is_some(), case["wrap"].as_bool().unwrap(), "{name}");
                assert!(Replay::record(whole("abcdefghi"), 8).1.is_none());
            }
            "trailers replayed" => {
                let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))]);
                let frames = [Ok(Frame::data(Bytes::from("a"))), Ok(Frame::trailers(trailers))];
                let body = StreamBody::new(futures::stream::iter(frames).boxed()).boxed_unsync();
                let (mut body, keep) = Replay::record(body, 8);
                assert_eq!(read(&mut body), ["a", "trailers"]);
                for _ in 1..case["times"].as_u64().unwrap() {
                    assert_eq!(
                        read(&mut keep.as_ref().unwrap().again().unwrap()),
                        ["a", "trailers"],
                        "{name}"
                    );
                }
            }
            "state busy (first reader alive)" => {
                // Ours knows what it has: an error may be repeated, a response that came before may not.
                let (_body, keep) = Replay::record(chunks([b"a".to_vec(), b"b".to_vec()]), 8);
                assert_eq!(keep.unwrap().state(), Replayable::Open, "{name}");
            }
            other => panic!("a case that nobody here knows: {other}"),
        }
        seen += 1;
    }
    assert!(seen >= 4, "{seen}");
}

/// One look at a body.
trait FrameOnce {
    fn frame_once(self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>;
}

impl FrameOnce for std::pin::Pin<&mut Replay<Content>> {
    fn frame_once(self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        http_body::Body::poll_frame(self, cx)
    }
}

/// Deliberate: trailers that come later than at once are waited for too where the route retries gRPC codes, because
/// there a response's first data does not tell whether it went well; no frame is lost by it.
#[tokio::test(start_paused = true)]
async fn trailers_are_found_where_linkerd_finds_them() {
    let Some(file) = vectors("linkerd-retry-timeout-scenarios.json") else { return };
    let failed = || Sent::Trailers(vec![("grpc-status", "14")]);
    for case in cases(&file, "peek_trailers") {
        let (script, attempts) = match &case["body"] {
            // No trailers, no code: it is what its head says, and that went well.
            Value::Array(frames) if frames.is_empty() => (Reply::grpc(vec![]), 1),
            Value::Array(frames) => {
                let sent = frames.iter().flat_map(|frame| match frame.as_str().unwrap() {
                    "D" => vec![Sent::Data("d")],
                    "D later" => vec![Sent::Wait(MS(10)), Sent::Data("d")],
                    "T now" | "T now after it" => vec![failed()],
                    other => panic!("{other}"),
                });
                (Reply::grpc(sent.collect()), 2)
            }
            Value::String(text) if text.contains("HTTP/1.1") => {
                let reply = Reply::status(200).header("content-type", "application/grpc");
                (reply.body(vec![Sent::Data("d"), failed()]), 1)
            }
            other => panic!("{other}"),
        };
        let good = Reply::grpc(vec![Sent::Trailers(vec![("grpc-status", "0")])]);
        let world = World::yaml(&linkerd(BUDGET, RETRYABLE), [script, good]);
        let _ = world.send(request("POST", "/svc/Method", whole("m"))).await;
        assert_eq!(world.upstream.count(), attempts, "{case}");
    }
}

// ---- security cases

/// Where else the cases without a vector are tested.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "deadline/propagation-shrinks",
        "timeout.rs",
        "deadlines_shrink_from_hop_to_hop_and_nobody_works_in_vain",
    ),
    (
        "retry/amplification-chain",
        "retry.rs",
        "three_retrying_hops_at_full_failure_send_at_most_a_quarter_more",
    ),
    ("retry/budget-race", "models/tests/budget.rs", "three_threads_that_ask_twice_get_what_a_bucket_has"),
    ("retry/non-idempotent", "retry.rs", "what_may_have_been_processed_is_repeated_only_when_safe"),
    ("breaker/attacker-trips", "balance.rs", "what_callers_do_shuts_no_endpoint"),
    ("breaker/time-window-burst", "balance.rs", "a_burst_of_failures_trips_as_a_slow_run_of_them_does"),
];

#[tokio::test(start_paused = true)]
async fn security_cases_of_retries_and_deadlines_are_refused_or_bounded() {
    let Some(file) = vectors("security-cases.json") else { return };
    let (mut seen, mut unknown) = (0, Vec::new());
    for case in cases(&file, "cases") {
        let id = text(case, "id");
        if !["deadline/", "retry/", "hedge/", "breaker/"].iter().any(|group| id.starts_with(group)) {
            continue;
        }
        seen += 1;
        match id {
            _ if case.get("vector").is_some() && id.starts_with("deadline/") => {
                deadline_case(id, &case["vector"]).await
            }
            "deadline/client-shortens-server-work" => {
                let (called, counts) = arrive("0n", 1000).await;
                assert_eq!((called, counts.1), (0, 1000), "{id}");
            }
            "retry/replay-buffer-lying-length" => {
                // It says that it has ten bytes and sends 10 MiB.
                let body = Lying(chunks((0..160).map(|_| vec![0; 64 << 10])));
                let (mut replay, keep) = Replay::record(body, 64 << 10);
                let mut sent = 0;
                while let Some(frame) = replay.frame().await {
                    sent += frame.unwrap().into_data().unwrap().len();
                }
                assert_eq!((sent, keep.unwrap().state()), (10 << 20, Replayable::Gone), "{id}");
            }
            "retry/retry-after-huge" => {
                let world = World::yaml(
                    &linkerd(BUDGET, RETRYABLE),
                    [Reply::status(503).header("retry-after", "1000000000"), Reply::status(200)],
                );
                let begun = clock::now();
                assert_eq!((world.get("/").await.status, world.upstream.count()), (503, 1), "{id}");
                assert_eq!(clock::now(), begun, "{id}: nobody sleeps");
            }
            _ => match ELSEWHERE.iter().find(|(case, ..)| *case == id) {
                Some((_, file, test)) => {
                    let path = format!("{}/tests/{file}", env!("CARGO_MANIFEST_DIR"));
                    let source = std::fs::read_to_string(path).unwrap();
                    assert!(source.contains(&format!("fn {test}(")), "{id}: {file} has no {test}");
                }
                None => unknown.push(id.to_owned()),
            },
        }
    }
    // A corpus may grow: what it has more is told aloud, and `.ci/run` says it once more at its end.
    if !unknown.is_empty() {
        eprintln!("!! security cases without a test in tests/corpus_retry.rs: {unknown:?}");
    }
    assert!(seen >= 15, "{seen}");
}

/// Requests with this `grpc-timeout`; how many the application saw, and what was counted: malformed, expired.
async fn arrive(value: &str, times: u32) -> (u32, (u64, u64)) {
    let called = Arc::new(AtomicU32::new(0));
    let layer = ArrivalLayer::new();
    let app = {
        let called = Arc::clone(&called);
        tower::service_fn(move |_: Request<()>| {
            called.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, Error>(Response::new(Empty::<Bytes>::new())) }
        })
    };
    let service = ServiceBuilder::new().layer(layer.clone()).service(app);
    for _ in 0..times {
        let request = Request::builder().header("grpc-timeout", value).body(()).unwrap();
        let answer = service.clone().oneshot(request).await;
        assert!(
            answer.is_ok() || answer.is_err_and(|error| error.to_status() == StatusCode::GATEWAY_TIMEOUT)
        );
    }
    (called.load(Ordering::Relaxed), (layer.counts().malformed(), layer.counts().expired()))
}

async fn deadline_case(id: &str, vector: &Value) {
    let value = vector["value"].as_str().unwrap();
    let Ok(header) = HeaderValue::from_str(value) else {
        // No header can hold it.
        assert_eq!(vector["decision"], "malformed", "{id}");
        return;
    };
    let headers = HeaderMap::from_iter([(deadline::GRPC_HEADER.clone(), header)]);
    let reading = deadline::read(&headers);
    let counted = arrive(value, 1).await;
    match vector["decision"].as_f64() {
        None => {
            assert_eq!((reading.left, reading.malformed), (None, true), "{id} {value:?}");
            assert_eq!(counted, (1, (1, 0)), "{id}: as if absent");
        }
        Some(secs) => {
            let left = reading.left.unwrap_or_else(|| panic!("{id} {value:?}"));
            assert!((left.as_secs_f64() - secs).abs() <= secs * 1e-9, "{id}: {left:?}");
            let called = u32::from(!left.is_zero());
            assert_eq!(counted, (called, (0, u64::from(left.is_zero()))), "{id}");
            assert!(
                deadline::effective(clock::now(), Some(left), None, None).is_some(),
                "{id}: never infinite"
            );
        }
    }
}

/// A body that lies about its length.
struct Lying(Content);

impl http_body::Body for Lying {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(10)
    }
}
