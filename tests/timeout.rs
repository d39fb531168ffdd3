//! Timeouts on a paused clock.
#![expect(
    clippy::disallowed_methods,
    reason = "a test is no library: it spawns and reads its own paused clock"
)]

#[path = "support/call.rs"]
mod call;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/upstream.rs"]
mod upstream;

use bytes::Bytes;
use enmesh::error::{BoxError, Error, Scope};
use enmesh::profile::route::Route;
use enmesh::profile::settings::{Limit, RetrySettings, Timeouts};
use enmesh::retry::layer::RetryLayer;
use enmesh::stdx::rng::Rng;
use enmesh::timeout::arrival::ArrivalLayer;
use enmesh::timeout::attempt::AttemptLayer;
use enmesh::timeout::body::{Limits, TimedBody};
use enmesh::timeout::inherited;
use enmesh::timeout::layer::TimeoutLayer;
use futures::StreamExt;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use upstream::{Bytestream, Reply, Sent, Upstream};

const SEC: Duration = Duration::from_secs(1);

fn scope(error: &(dyn std::error::Error + 'static)) -> Scope {
    match error.downcast_ref::<Error>() {
        Some(Error::Timeout { scope, .. }) => *scope,
        other => panic!("no timeout: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_ends_on_time_and_its_inner_future_is_dropped() {
    struct Alive(std::sync::Arc<()>);
    let (alive, begun) = (std::sync::Arc::new(()), Instant::now());
    let held = Alive(alive.clone());
    let inner = tower::service_fn(move |_: Request<()>| {
        let held = held.0.clone();
        async move {
            tokio::time::sleep(9 * SEC).await;
            drop(held);
            Ok::<_, Error>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let service = TimeoutLayer::request().with_own(SEC).layer(inner);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!((scope(&error), begun.elapsed()), (Scope::Request, SEC));
    assert_eq!(std::sync::Arc::strong_count(&alive), 1, "the inner future is gone");
}

fn frames(
    every: Duration,
    count: usize,
) -> StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, Error>>> {
    StreamBody::new(futures::stream::iter(0..count).then(move |_| async move {
        tokio::time::sleep(every).await;
        Ok(Frame::data(Bytes::from("x")))
    }))
}

#[tokio::test(start_paused = true)]
async fn a_body_is_limited_as_a_whole_and_in_its_silences() {
    let begun = Instant::now();
    let whole = Limits { deadline: Some((begun.into_std() + 5 * SEC, 5 * SEC)), idle: None };
    let error = Box::pin(TimedBody::new(frames(2 * SEC, 9), whole)).collect().await.unwrap_err();
    assert_eq!((scope(error.as_ref()), begun.elapsed()), (Scope::Request, 5 * SEC));
    let begun = Instant::now();
    let idle = Limits { deadline: None, idle: Some(3 * SEC) };
    assert!(Box::pin(TimedBody::new(frames(2 * SEC, 9), idle)).collect().await.is_ok());
    assert_eq!(begun.elapsed(), 18 * SEC);
    let begun = Instant::now();
    let error = Box::pin(TimedBody::new(frames(4 * SEC, 9), idle)).collect().await.unwrap_err();
    assert_eq!((scope(error.as_ref()), begun.elapsed()), (Scope::Idle, 3 * SEC));
}

const MS: fn(u64) -> Duration = Duration::from_millis;

fn route(timeouts: Timeouts) -> Route {
    Route { timeouts, ..Route::default() }
}

fn after(ms: u64) -> Limit {
    Limit::After(MS(ms))
}

/// How a call of this route ends, and when: `200`, or the limit that passed before or within the body.
async fn run<B>(route: Route, script: Vec<Reply>, body: B) -> (String, Duration)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let upstream = Upstream::new(script);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::request())
        .layer(RetryLayer::<enmesh::policy::call::Nobody>::by_route(Rng::seeded(1)))
        .layer(AttemptLayer::default())
        .service(upstream.clone());
    let begun = Instant::now();
    let end = match service.oneshot(call::call(&call::entry(route), Request::new(body))).await {
        Err(error) => scope(&error).as_str().to_owned(),
        Ok(response) => {
            let status = response.status();
            match response.into_body().collect().await {
                Ok(_) => status.as_u16().to_string(),
                Err(error) => format!("{} in body", scope(error.as_ref()).as_str()),
            }
        }
    };
    let end = (end, begun.elapsed());
    tokio::task::yield_now().await;
    assert_eq!(upstream.alive(), 0, "what is late is dropped at once");
    end
}

fn quick() -> Vec<Reply> {
    vec![Reply::status(200)]
}

/// Headers at once, then silence of so many milliseconds between two frames.
fn slow_body(waits: &[u64]) -> Vec<Reply> {
    let frames = waits.iter().flat_map(|ms| [Sent::Wait(MS(*ms)), Sent::Data("x")]).collect();
    vec![Reply::status(200).body(frames)]
}

#[tokio::test(start_paused = true)]
async fn each_limit_has_its_beginning_and_its_end() {
    let late = |ms| vec![Reply::status(200).after(MS(ms))];
    let empty = Empty::<Bytes>::new;
    let request = || route(Timeouts { request: after(2000), ..Timeouts::default() });
    let headers = || route(Timeouts { response_headers: after(2000), ..Timeouts::default() });
    let response = || route(Timeouts { response: after(2000), ..Timeouts::default() });
    let idle = || route(Timeouts { idle: after(2000), ..Timeouts::default() });
    let attempt = || route(Timeouts { attempt: after(2000), ..Timeouts::default() });
    // Before the headers: every limit.
    for (route, name) in [
        (request(), "request"),
        (headers(), "request"),
        (response(), "response"),
        (idle(), "idle"),
        (attempt(), "attempt"),
    ] {
        assert_eq!(run(route.clone(), late(4000), empty()).await, (name.into(), MS(2000)));
        assert_eq!(run(route.clone(), late(1999), empty()).await, ("200".into(), MS(1999)));
        assert_eq!(run(route, quick(), empty()).await, ("200".into(), MS(0)));
    }
    // After them: not those of headers.
    let silent = || slow_body(&[9000]);
    assert_eq!(run(request(), silent(), empty()).await, ("request in body".into(), MS(2000)));
    assert_eq!(run(response(), silent(), empty()).await, ("response in body".into(), MS(2000)));
    assert_eq!(run(idle(), silent(), empty()).await, ("idle in body".into(), MS(2000)));
    assert_eq!(run(headers(), silent(), empty()).await, ("200".into(), MS(9000)));
    assert_eq!(run(attempt(), silent(), empty()).await, ("200".into(), MS(9000)));
    // Frames that keep coming are not idle, but they do not lengthen the other limits.
    let steady = || slow_body(&[1500, 1500, 1500]);
    assert_eq!(run(idle(), steady(), empty()).await, ("200".into(), MS(4500)));
    assert_eq!(run(idle(), slow_body(&[1500, 2500]), empty()).await, ("idle in body".into(), MS(3500)));
    assert_eq!(run(request(), steady(), empty()).await, ("request in body".into(), MS(2000)));
    assert_eq!(run(response(), steady(), empty()).await, ("response in body".into(), MS(2000)));
}

#[tokio::test(start_paused = true)]
async fn an_upload_is_activity_and_the_response_is_counted_from_its_end() {
    let upload = || frames(MS(1500), 3).boxed_unsync();
    let idle = route(Timeouts { idle: after(2000), ..Timeouts::default() });
    assert_eq!(run(idle.clone(), quick(), upload()).await, ("200".into(), MS(4500)));
    let silent = vec![Reply::status(200).after(MS(2500))];
    assert_eq!(run(idle, silent, upload()).await, ("idle".into(), MS(6500)));
    let response = route(Timeouts { response: after(2000), ..Timeouts::default() });
    let late = |ms| vec![Reply::status(200).after(MS(ms))];
    assert_eq!(run(response.clone(), late(1900), upload()).await, ("200".into(), MS(6400)));
    assert_eq!(run(response, late(2100), upload()).await, ("response".into(), MS(6500)));
    let request = route(Timeouts { request: after(2000), ..Timeouts::default() });
    assert_eq!(run(request, quick(), upload()).await, ("request".into(), MS(2000)));
}

#[tokio::test(start_paused = true)]
async fn the_earliest_limit_ends_a_call() {
    let timeouts =
        Timeouts { request: after(300), attempt: after(200), idle: after(100), ..Timeouts::default() };
    let never = vec![Reply::status(200).after(MS(9000))];
    assert_eq!(run(route(timeouts), never.clone(), Empty::new()).await, ("idle".into(), MS(100)));
    let disabled = Timeouts { request: Limit::Disabled, ..Timeouts::default() };
    assert_eq!(run(route(disabled), never, Empty::new()).await, ("200".into(), MS(9000)));
}

fn retried(timeouts: Timeouts, patience: Option<u64>) -> Route {
    let retry =
        RetrySettings { patience: patience.map(MS), attempts_max: Some(3), ..RetrySettings::default() };
    Route { retry: Some(retry), ..route(timeouts) }
}

#[tokio::test(start_paused = true)]
async fn a_late_attempt_is_tried_again_within_the_whole() {
    let late = |ms| Reply::status(200).after(MS(ms));
    let timeouts = Timeouts { request: after(500), attempt: after(100), ..Timeouts::default() };
    let script = vec![late(200), late(200), late(0)];
    assert_eq!(run(retried(timeouts, None), script, Empty::new()).await, ("200".into(), MS(200)));
    assert_eq!(
        run(retried(timeouts, None), vec![late(200)], Empty::new()).await,
        ("attempt".into(), MS(300))
    );
    // Linkerd's limit holds only while another attempt may follow.
    let timeouts = Timeouts { request: after(500), ..Timeouts::default() };
    let script = vec![late(200), late(200), late(150)];
    assert_eq!(run(retried(timeouts, Some(100)), script, Empty::new()).await, ("200".into(), MS(350)));
    let script = vec![late(200), late(200), late(500)];
    assert_eq!(run(retried(timeouts, Some(100)), script, Empty::new()).await, ("request".into(), MS(500)));
}

#[tokio::test(start_paused = true)]
async fn no_attempt_is_begun_after_the_deadline_and_none_waits_beyond_it() {
    let timeouts = Timeouts { request: after(1000), ..Timeouts::default() };
    let route = retried(timeouts, None);
    let upstream = Upstream::new([Reply::status(503).header("retry-after", "2")]);
    let service = ServiceBuilder::new()
        .layer(RetryLayer::<enmesh::policy::call::Nobody>::by_route(Rng::seeded(1)))
        .layer(AttemptLayer::default())
        .service(upstream.clone());
    let entry = call::entry(route);
    let begun = Instant::now();
    let answer =
        service.clone().oneshot(call::call(&entry, Request::new(Empty::<Bytes>::new()))).await.unwrap();
    assert_eq!((answer.status().as_u16(), upstream.count(), begun.elapsed()), (503, 1, MS(0)));
    let late = call::call(&entry, Request::new(Empty::<Bytes>::new()));
    tokio::time::advance(MS(1000)).await;
    let error = service.oneshot(late).await.unwrap_err();
    assert_eq!((scope(&error), upstream.count()), (Scope::Request, 1));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_tells_the_peer_what_is_left() {
    let timeouts = Timeouts { request: after(1000), attempt: after(100), ..Timeouts::default() };
    let entry = call::entry(retried(timeouts, None));
    for (kind, header, expected) in [
        ("application/grpc", "grpc-timeout", ["1000000u", "900000u", "800000u"]),
        ("text/plain", "x-enmesh-timeout-ms", ["1000", "900", "800"]),
    ] {
        let upstream = Upstream::new([Reply::status(200).after(MS(200))]);
        let service = ServiceBuilder::new()
            .layer(RetryLayer::<enmesh::policy::call::Nobody>::by_route(Rng::seeded(1)))
            .layer(AttemptLayer::default())
            .service(upstream.clone());
        let request = Request::builder().header("content-type", kind).body(Empty::<Bytes>::new()).unwrap();
        let _ = service.oneshot(call::call(&entry, request)).await.unwrap_err();
        let seen = upstream.seen.lock().unwrap();
        let sent: Vec<_> = seen.iter().map(|seen| seen.parts.headers[header].to_str().unwrap()).collect();
        assert_eq!(sent, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_poll_nothing_stays() {
    let timeouts =
        Timeouts { request: after(50), response: after(40), idle: after(30), ..Timeouts::default() };
    let entry = call::entry(route(timeouts));
    for polls in 0..30 {
        let upstream = Upstream::new([Reply::status(200).after(MS(3)).body(vec![
            Sent::Wait(MS(3)),
            Sent::Data("x"),
            Sent::Wait(MS(3)),
        ])]);
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::request())
            .layer(AttemptLayer::default())
            .service(upstream.clone());
        let call = call::call(&entry, Request::new(Full::new(Bytes::from("x"))));
        let mut future = Box::pin(async move {
            service.oneshot(call).await.unwrap().into_body().collect().await.unwrap();
        });
        let mut done = false;
        for _ in 0..polls {
            if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                done = true;
                break;
            }
            tokio::time::advance(MS(1)).await;
        }
        drop(future);
        assert_eq!(upstream.alive(), 0, "after {polls} polls");
        assert!(polls < 25 || done);
    }
}

/// A hop: receives, and sends what it received on.
fn hop<S>(
    inner: S,
    own_timeout: u64,
) -> impl Service<Request<Empty<Bytes>>, Response = Response<Bytestream>, Error = Error, Future: Send> + Clone
where
    S: Service<Request<Empty<Bytes>>, Response = Response<Bytestream>, Error = Error>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let entry = call::entry(route(Timeouts { request: after(own_timeout), ..Timeouts::default() }));
    let handler = tower::service_fn(move |_: Request<Empty<Bytes>>| {
        let (entry, inner) = (entry.clone(), inner.clone());
        async move {
            tokio::time::sleep(MS(30)).await;
            let mut call = call::call(&entry, Request::new(Empty::<Bytes>::new()));
            let inherited = inherited::current().deadline;
            call.scope.state.deadline = [call.scope.state.deadline, inherited].into_iter().flatten().min();
            let client = ServiceBuilder::new()
                .layer(TimeoutLayer::request())
                .layer(AttemptLayer::default())
                .map_request(|http: Request<_>| http.map(|_| Empty::new()))
                .service(inner);
            client.oneshot(call).await.map(|response| response.map(|body| body.boxed_unsync()))
        }
    });
    ArrivalLayer::new().layer(handler).map_response(|response: Response<_>| {
        response.map(|body: enmesh::timeout::arrival::Inheriting<_>| BodyExt::boxed_unsync(body))
    })
}

#[tokio::test(start_paused = true)]
async fn deadlines_shrink_from_hop_to_hop_and_nobody_works_in_vain() {
    let leaf = Upstream::new([Reply::status(200)]);
    let chain = hop(hop(hop(leaf.clone(), 900), 900), 900);
    let send = |left: &'static str| {
        let request =
            Request::builder().header("x-enmesh-timeout-ms", left).body(Empty::<Bytes>::new()).unwrap();
        chain.clone().oneshot(request)
    };
    assert_eq!(send("100").await.unwrap().status(), 200);
    let got = leaf.seen.lock().unwrap()[0].parts.headers["x-enmesh-timeout-ms"].to_str().unwrap().to_owned();
    assert_eq!(got, "10");
    let begun = Instant::now();
    assert_eq!(scope(&send("80").await.unwrap_err()), Scope::Request);
    assert_eq!((leaf.count(), begun.elapsed()), (1, MS(80)), "the leaf is never asked");
}

#[tokio::test(start_paused = true)]
async fn what_arrives_without_time_left_is_refused_unserved() {
    let app = Upstream::new([Reply::status(200).after(MS(500))]);
    let layer = ArrivalLayer::new().with_max(MS(400));
    let (service, counts) = (layer.layer(app.clone()), layer.counts().clone());
    let send = |name: &'static str, value: &'static str| {
        let request = Request::builder().header(name, value).body(Empty::<Bytes>::new()).unwrap();
        let service = service.clone();
        async move {
            let begun = Instant::now();
            let error = service.oneshot(request).await.unwrap_err();
            assert_eq!(
                (error.to_status().as_u16(), error.to_grpc(), scope(&error)),
                (504, 4, Scope::Request)
            );
            begun.elapsed()
        }
    };
    assert_eq!(send("grpc-timeout", "0n").await, MS(0));
    assert_eq!(send("x-enmesh-timeout-ms", "0").await, MS(0));
    assert_eq!((app.count(), counts.expired(), counts.malformed()), (0, 2, 0));
    // Tightened by the header, never loosened by it, and never without limit.
    assert_eq!(send("grpc-timeout", "100m").await, MS(100));
    assert_eq!(send("grpc-timeout", "99999999H").await, MS(400));
    assert_eq!(send("grpc-timeout", "-1S").await, MS(400));
    assert_eq!((app.count(), counts.expired(), counts.malformed()), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_was_repeated_in_vain_below_is_marked_for_the_hop_above() {
    let leaf = Upstream::new([Reply::status(503)]);
    let entry = call::entry(retried(Timeouts::default(), None));
    let (inner, marked) = (leaf.clone(), entry.clone());
    let handler = tower::service_fn(move |_: Request<Empty<Bytes>>| {
        let client =
            RetryLayer::<enmesh::policy::call::Nobody>::by_route(Rng::seeded(1)).layer(inner.clone());
        let call = call::call(&marked, Request::new(Empty::<Bytes>::new()));
        async move {
            let status = client.oneshot(call).await?.status();
            Ok::<_, Error>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap())
        }
    });
    let server = ArrivalLayer::new().layer(handler);
    let answer = server.clone().oneshot(Request::new(Empty::<Bytes>::new())).await.unwrap();
    assert_eq!((answer.headers().contains_key("x-enmesh-retried"), leaf.count()), (true, 3));
    // A repeated attempt that arrives is not repeated again further down.
    let repeated = Request::builder().header("x-enmesh-attempt", "1").body(Empty::<Bytes>::new()).unwrap();
    let _ = server.oneshot(repeated).await.unwrap();
    assert_eq!(leaf.count(), 4);
    assert!(matches!(futures::poll!(std::future::ready(())), Poll::Ready(())));
}
