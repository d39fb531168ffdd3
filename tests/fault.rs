//! Faults on a paused clock, over a service that answers by a script.
#![expect(clippy::disallowed_methods, reason = "a test is no library: it reads its own paused clock")]

#[path = "support/call.rs"]
mod call;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/upstream.rs"]
mod upstream;

use bytes::Bytes;
use enmesh::fault::decide::{FaultPolicy, FaultSwitch};
use enmesh::fault::layer::{Fault, FaultLayer};
use enmesh::metrics::route::Injection;
use enmesh::profile::route::{Abort, FaultSettings, Route};
use enmesh::profile::settings::{Limit, Share, Timeouts};
use enmesh::stdx::rng::Rng;
use http::{Request, Response};
use http_body_util::Empty;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::time::Instant;
use tower::util::MapResponse;
use tower::{Layer, ServiceExt};
use upstream::{Bytestream, Reply, Upstream};

const MS: fn(u64) -> Duration = Duration::from_millis;
const ALL: Share = Share { numerator: 1, denominator: 1 };
const HALF: Share = Share { numerator: 1, denominator: 2 };

fn upstream() -> Upstream {
    Upstream::new(vec![Reply::status(200)])
}

/// A service whose bodies can be made of nothing, as those of answers must be.
type Inner = MapResponse<Upstream, fn(Response<Bytestream>) -> Response<String>>;

fn textual(inner: &Upstream) -> Inner {
    let map: fn(Response<Bytestream>) -> Response<String> = |response| response.map(|_| String::new());
    MapResponse::new(inner.clone(), map)
}

fn faulty(inner: &Upstream, settings: FaultSettings, switch: &FaultSwitch) -> Fault<Inner> {
    FaultLayer::new(FaultPolicy::new(settings, switch.clone()), Rng::seeded(3)).layer(textual(inner))
}

fn get(content_type: &str) -> Request<Empty<Bytes>> {
    Request::get("http://svc/x").header("content-type", content_type).body(Empty::new()).unwrap()
}

fn abort(abort: Abort, share: Share) -> FaultSettings {
    FaultSettings { delay: None, abort: Some((abort, share)) }
}

#[tokio::test(start_paused = true)]
async fn an_abort_is_answered_as_by_a_server_in_the_callers_protocol() {
    let (inner, switch) = (upstream(), FaultSwitch::default());
    for (fault, content_type, status, grpc) in [
        (Abort::Http(418), "text/plain", 418, None),
        (Abort::Http(503), "application/grpc", 200, Some("14")),
        (Abort::Grpc(8), "application/grpc+proto", 200, Some("8")),
        (Abort::Grpc(8), "text/plain", 429, None),
    ] {
        let service = faulty(&inner, abort(fault, ALL), &switch);
        let response = service.oneshot(get(content_type)).await.unwrap();
        let told = response.headers().get("grpc-status").map(|value| value.to_str().unwrap());
        assert_eq!((response.status().as_u16(), told), (status, grpc), "{fault:?} to {content_type}");
        assert_eq!(response.headers()["x-enmesh-error"], "fault");
    }
    assert!(inner.seen.lock().unwrap().is_empty(), "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn each_share_is_kept_and_the_switch_ends_all_faults() {
    let (inner, switch) = (upstream(), FaultSwitch::default());
    let settings = FaultSettings { delay: Some((MS(100), HALF)), abort: Some((Abort::Http(500), HALF)) };
    let service = faulty(&inner, settings, &switch);
    let (mut late, mut broken) = (0, 0);
    for _ in 0..1000 {
        let begun = Instant::now();
        let response = service.clone().oneshot(get("text/plain")).await.unwrap();
        late += u32::from(begun.elapsed() == MS(100));
        broken += u32::from(response.status() == 500);
    }
    assert!((440..560).contains(&late) && (440..560).contains(&broken), "{late} late, {broken} broken");
    switch.set(false);
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(service.clone().oneshot(get("text/plain")).await.unwrap().status(), 200);
    }
    assert_eq!(begun.elapsed(), MS(0));
}

#[tokio::test(start_paused = true)]
async fn a_route_breaks_its_own_requests_counts_them_and_keeps_to_the_deadline() {
    let fault = FaultSettings { delay: Some((MS(5000), ALL)), abort: None };
    let timeouts = Timeouts { request: Limit::After(MS(300)), ..Timeouts::default() };
    let broken = call::entry(Route { fault: Some(fault), timeouts, ..Route::default() });
    let whole = call::entry(Route::default());
    let service = FaultLayer::by_route(Rng::seeded(1)).layer(textual(&upstream()));
    let begun = Instant::now();
    assert!(service.clone().oneshot(call::call(&whole, get("a/b"))).await.is_ok());
    assert_eq!(begun.elapsed(), MS(0));
    assert!(service.clone().oneshot(call::call(&broken, get("a/b"))).await.is_ok());
    assert_eq!(begun.elapsed(), MS(300), "it is sent at its deadline, for the timer below to end");
    assert_eq!(broken.policy.metrics.injections(Injection::Delay), 1);
    assert_eq!(whole.policy.metrics.injections(Injection::Delay), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_held_request_at_any_time_sends_nothing_more() {
    for polls in 0..30 {
        let (inner, switch) = (upstream(), FaultSwitch::default());
        let settings = FaultSettings { delay: Some((MS(20), ALL)), abort: None };
        let service = faulty(&inner, settings, &switch);
        {
            let mut call = pin!(service.oneshot(get("text/plain")));
            for _ in 0..polls {
                if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    break;
                }
                tokio::time::advance(MS(3)).await;
            }
        }
        assert_eq!(inner.alive.load(std::sync::atomic::Ordering::SeqCst), 0, "after {polls} polls");
    }
}

#[cfg(feature = "http")]
const PROFILE: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.shop}
spec:
  routes:
  - name: slow
    condition: {pathRegex: /slow}
    fault: {delay: {fixedDelay: 200ms}}
  - name: broken
    condition: {pathRegex: /broken}
    fault: {abort: {httpStatus: 503}}
";

#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn a_mesh_breaks_what_its_profiles_say_and_one_switch_ends_it() {
    let build = |on| {
        let mesh = enmesh::Mesh::builder().profile_yaml(PROFILE).inject_faults(on);
        mesh.endpoints("web.shop:80", ["127.0.0.1:1"]).dns(false).build().unwrap()
    };
    let mesh = build(true);
    let client = mesh.layer().layer(upstream());
    let ask = async |path: &str| {
        let begun = Instant::now();
        let request = Request::get(format!("http://web.shop{path}")).body(Empty::<Bytes>::new()).unwrap();
        let response = client.clone().oneshot(request).await.unwrap();
        (response.status().as_u16(), begun.elapsed())
    };
    assert_eq!(ask("/whole").await, (200, MS(0)));
    assert_eq!(ask("/slow").await, (200, MS(200)));
    assert_eq!(ask("/broken").await, (503, MS(0)));
    let told: Vec<_> = mesh.inspect().services.into_iter().flat_map(|service| service.routes).collect();
    let shown = told.iter().filter(|route| !route.fault.is_null()).count();
    assert_eq!(shown, 2, "{told:?}");
    mesh.faults().set(false);
    assert_eq!((ask("/slow").await, ask("/broken").await), ((200, MS(0)), (200, MS(0))));
    assert!(!build(false).faults().is_on());
}

#[cfg(feature = "http")]
const BY_CALLER: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.shop}
spec:
  routes:
  - name: tried
    condition: {caller: {namespaces: [test]}}
    fault: {abort: {httpStatus: 503}}
  - name: header
    condition: {headers: [{name: x-try, value: '1'}]}
    fault: {abort: {httpStatus: 504}}
";

#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn faults_are_by_caller_and_by_header_for_a_running_mesh_too() {
    let ask = async |name: &str, tried: &str| {
        let mesh = enmesh::Mesh::builder().name(name).profile_yaml(BY_CALLER);
        let mesh = mesh.endpoints("web.shop:80", ["127.0.0.1:1"]).dns(false).build().unwrap();
        let client = mesh.layer().layer(upstream());
        let request = Request::get("http://web.shop/").header("x-try", tried).body(Empty::<Bytes>::new());
        client.oneshot(request.unwrap()).await.unwrap().status().as_u16()
    };
    assert_eq!(ask("bot.test:80", "0").await, 503, "this process lives in the namespace");
    assert_eq!(ask("bot.shop:80", "0").await, 200, "that one does not");
    assert_eq!(ask("bot.shop:80", "1").await, 504);
}
