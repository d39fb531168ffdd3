//! Retries on a paused clock, over a service that answers by a script.

#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/upstream.rs"]
mod upstream;

use bytes::Bytes;
use enmesh::error::{BoxError, Error, Scope};
use enmesh::profile::settings::{BackoffSettings, BudgetSettings, HopMarks, RetrySettings};
use enmesh::retry::body::Attempted;
use enmesh::retry::budget::Budget;
use enmesh::retry::decide::RetryPolicy;
use enmesh::retry::layer::{Retry, RetryLayer};
use enmesh::retry::replay::Replay;
use enmesh::stdx::rng::Rng;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower::{Layer, Service, ServiceExt};
use upstream::{Bytestream, Reply, Sent, Upstream};

const MS: fn(u64) -> Duration = Duration::from_millis;

type Answer = Result<Response<Attempted<Bytestream>>, Error>;

fn rich() -> BudgetSettings {
    BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 1000, ttl: MS(10_000) }
}

fn policy(settings: RetrySettings) -> RetryPolicy {
    RetryPolicy::compile(&settings, Arc::new(Budget::new(&rich())))
}

fn retry(upstream: &Upstream, settings: RetrySettings) -> Retry<Upstream> {
    RetryLayer::new(policy(settings), Rng::seeded(1)).layer(upstream.clone())
}

fn request<B>(method: Method, body: B) -> Request<B> {
    Request::builder().method(method).uri("http://svc/x").header("k", "v").body(body).unwrap()
}

async fn send<B>(upstream: &Upstream, settings: RetrySettings, method: Method, body: B) -> Answer
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    retry(upstream, settings).oneshot(request(method, body)).await
}

/// Status and attempts of a GET answered by this script.
async fn get(script: Vec<Reply>, settings: RetrySettings) -> (u16, u32) {
    let response = send(&Upstream::new(script), settings, Method::GET, Empty::new()).await.unwrap();
    (response.status().as_u16(), response.body().attempts())
}

fn idempotent() -> RetrySettings {
    RetrySettings { idempotent: true, ..RetrySettings::default() }
}

fn refused() -> Error {
    Error::Transport { endpoint: None, unsent: true, source: "REFUSED_STREAM".into() }
}

fn reset() -> Error {
    Error::Transport { endpoint: None, unsent: false, source: "reset".into() }
}

fn late() -> Error {
    Error::Timeout { scope: Scope::Attempt, after: MS(1) }
}

fn stream(
    chunks: Vec<&'static [u8]>,
    trailers: bool,
) -> impl Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static {
    let data = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk))));
    let end = trailers
        .then(|| Ok(Frame::trailers(HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]))));
    StreamBody::new(futures::stream::iter(data.chain(end).collect::<Vec<_>>()).boxed())
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_repeated_until_it_goes_well_or_was_enough() {
    let (bad, good) = (Reply::status(503), Reply::status(204));
    assert_eq!(get(vec![good.clone()], RetrySettings::default()).await, (204, 1));
    assert_eq!(get(vec![bad.clone(), good.clone()], RetrySettings::default()).await, (204, 2));
    assert_eq!(get(vec![bad.clone(), bad.clone(), good.clone()], RetrySettings::default()).await, (204, 3));
    assert_eq!(get(vec![bad.clone()], RetrySettings::default()).await, (503, 3));
    let many = RetrySettings { attempts_max: Some(1000), ..RetrySettings::default() };
    assert_eq!(get(vec![bad.clone()], many).await, (503, 10));
    let one = RetrySettings { attempts_max: Some(1), ..RetrySettings::default() };
    assert_eq!(get(vec![bad, good], one).await, (503, 1));
    assert_eq!(get(vec![Reply::status(404)], RetrySettings::default()).await, (404, 1));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_the_whole_request() {
    let upstream = Upstream::new([Reply::status(503), Reply::error(reset), Reply::status(200)]);
    let body = stream(vec![b"he", b"", b"llo"], true);
    let answer = send(&upstream, idempotent(), Method::POST, body).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.body().attempts()), (200, 3));
    assert_eq!(upstream.bodies(), vec![b"hello"; 3]);
    let seen = upstream.seen.lock().unwrap();
    for (number, seen) in seen.iter().enumerate() {
        assert_eq!((seen.parts.method.as_str(), seen.parts.uri.path()), ("POST", "/x"));
        assert_eq!(seen.parts.headers["k"], "v");
        assert_eq!(seen.trailers.as_ref().unwrap().len(), 1);
        let mark = seen.parts.headers.get("x-enmesh-attempt").map(|value| value.to_str().unwrap());
        assert_eq!(mark, [None, Some("1"), Some("2;last")][number]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_long_streams_on_unharmed_and_is_sent_once() {
    let chunk: &'static [u8] = Box::leak(vec![b'x'; 32 * 1024].into_boxed_slice());
    for (chunks, known, attempts) in [(2, false, 3), (3, false, 1), (2, true, 3)] {
        let upstream = Upstream::new([Reply::status(503)]);
        let answer = match known {
            false => send(&upstream, idempotent(), Method::POST, stream(vec![chunk; chunks], true)).await,
            true => {
                send(
                    &upstream,
                    idempotent(),
                    Method::POST,
                    Full::new(Bytes::from(vec![b'x'; chunks * 32 * 1024])),
                )
                .await
            }
        };
        assert_eq!(answer.unwrap().body().attempts(), attempts);
        assert_eq!(upstream.bodies(), vec![vec![b'x'; chunks * 32 * 1024]; attempts as usize]);
    }
    let upstream = Upstream::new([Reply::status(503)]);
    let answer =
        send(&upstream, idempotent(), Method::POST, Full::new(Bytes::from(vec![b'x'; 65_537]))).await;
    assert_eq!((answer.unwrap().body().attempts(), upstream.bodies()[0].len()), (1, 65_537));
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_processed_is_repeated_only_when_safe() {
    for (error, method, settings, attempts) in [
        (reset as fn() -> Error, Method::GET, RetrySettings::default(), 3),
        (reset, Method::POST, RetrySettings::default(), 1),
        (reset, Method::POST, idempotent(), 3),
        (late, Method::GET, RetrySettings::default(), 3),
        (late, Method::PUT, RetrySettings::default(), 1),
        (
            || Error::Connect { endpoint: ([1, 1, 1, 1], 1).into(), source: "x".into() },
            Method::POST,
            RetrySettings::default(),
            3,
        ),
        // One more, since the peer certainly did not process it.
        (refused, Method::POST, RetrySettings::default(), 4),
        (|| Error::Body("x".into()), Method::GET, RetrySettings::default(), 1),
        (|| Error::NoEndpoints { service: "x".into() }, Method::GET, RetrySettings::default(), 1),
        (
            || Error::InvalidBackend { status: 500, grpc: 2, reason: "x".into() },
            Method::GET,
            RetrySettings::default(),
            1,
        ),
        (|| Error::Timeout { scope: Scope::Request, after: MS(1) }, Method::GET, RetrySettings::default(), 1),
    ] {
        let upstream = Upstream::new([Reply::error(error)]);
        let answer = send(&upstream, settings, method.clone(), Full::new(Bytes::from("x"))).await;
        let (got, kind) = (answer.unwrap_err(), error().kind());
        assert_eq!((got.kind(), upstream.count()), (kind, attempts), "{method} {got}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_stands_and_an_early_error_does_not() {
    let body = || stream(vec![b"hello"], false);
    let upstream = Upstream::new([Reply::status(503).early(), Reply::status(200)]);
    let answer = send(&upstream, idempotent(), Method::POST, body()).await.unwrap();
    assert_eq!((answer.status().as_u16(), upstream.count()), (503, 1));
    let upstream = Upstream::new([Reply::error(reset).early(), Reply::status(200)]);
    let answer = send(&upstream, idempotent(), Method::POST, body()).await.unwrap();
    assert_eq!((answer.status().as_u16(), upstream.bodies()), (200, vec![b"hello".to_vec()]));
}

#[tokio::test(start_paused = true)]
async fn waits_grow_and_are_random() {
    let backoff = Some(BackoffSettings { base: MS(100), max: MS(400), jitter: 1.0 });
    let settings = RetrySettings { attempts_max: Some(5), backoff, ..RetrySettings::default() };
    let mut waits = Vec::new();
    for _ in 0..20 {
        let upstream = Upstream::new([Reply::status(503)]);
        let service = RetryLayer::new(policy(settings.clone()), Rng::thread()).layer(upstream.clone());
        let _ = service.oneshot(request(Method::GET, Empty::<Bytes>::new())).await.unwrap();
        let seen = upstream.seen.lock().unwrap();
        waits.push(seen.windows(2).map(|two| two[1].at - two[0].at).collect::<Vec<_>>());
    }
    for (n, bound) in [100, 200, 400, 400].into_iter().enumerate() {
        // tokio's timer rounds up to a millisecond.
        assert!(waits.iter().all(|waits| waits[n] <= MS(bound + 1)), "{waits:?}");
        assert!(waits.iter().any(|waits| waits[n] > MS(bound / 2)), "{waits:?}");
    }
    assert!(waits.iter().any(|w| *w != waits[0]));
}

#[tokio::test(start_paused = true)]
async fn hints_when_to_come_back_are_obeyed_up_to_a_cap() {
    let hint = |name, value| Reply::status(503).header(name, value);
    for (reply, wait, attempts) in [
        (hint("retry-after", "2"), 2000, 3),
        (hint("retry-after", "11"), 0, 1),
        (hint("retry-after", "1000000000"), 0, 1),
        (hint("retry-after", "99999999999999999999999999"), 0, 1),
        (hint("grpc-retry-pushback-ms", "30"), 30, 3),
        (hint("grpc-retry-pushback-ms", "-1"), 0, 1),
        (hint("grpc-retry-pushback-ms", "soon"), 0, 1),
        (hint("retry-after", "soon"), 0, 3),
    ] {
        let upstream = Upstream::new([reply]);
        let answer = send(&upstream, RetrySettings::default(), Method::GET, Empty::new()).await.unwrap();
        let seen = upstream.seen.lock().unwrap();
        assert_eq!((answer.status().as_u16(), seen.len()), (503, attempts));
        assert!(seen.windows(2).all(|two| two[1].at - two[0].at == MS(wait)));
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_codes_are_found_in_headers_and_in_trailers_and_no_frame_is_eaten() {
    let failed = || Sent::Trailers(vec![("grpc-status", "14")]);
    let fine = || Sent::Trailers(vec![("grpc-status", "0")]);
    let data = || Sent::Data("data");
    let wait = || Sent::Wait(MS(5));
    for (frames, attempts) in [
        (vec![failed()], 3),
        (vec![wait(), failed()], 3),
        (vec![data(), failed()], 3),
        (vec![wait(), data(), failed()], 3),
        (vec![data(), wait(), failed()], 1),
        (vec![data(), data(), failed()], 1),
        (vec![data(), data(), fine()], 1),
        (vec![data(), fine()], 1),
        (vec![Sent::Break], 1),
        (vec![data(), Sent::Break], 1),
    ] {
        let upstream = Upstream::new([Reply::grpc(frames.clone())]);
        let answer = send(&upstream, idempotent(), Method::POST, Full::new(Bytes::from("x"))).await.unwrap();
        assert_eq!((answer.body().attempts() as usize, upstream.count()), (attempts, attempts));
        let mut body = answer.into_body();
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            got.push(match frame {
                Ok(frame) => frame.into_data().map_or('T', |_| 'D'),
                Err(_) => 'E',
            });
        }
        let expected = frames.iter().filter_map(|sent| match sent {
            Sent::Data(_) => Some('D'),
            Sent::Trailers(_) => Some('T'),
            Sent::Break => Some('E'),
            Sent::Wait(_) => None,
        });
        assert_eq!(got, expected.collect::<Vec<_>>());
        drop(body);
        assert_eq!(upstream.alive(), 0);
    }
    let head = Reply::status(200).header("grpc-status", "14");
    assert_eq!(get(vec![head, Reply::status(200).header("grpc-status", "0")], idempotent()).await, (200, 2));
    // Over HTTP/1.1 nobody waits for a frame.
    let upstream = Upstream::new([Reply::status(200).body(vec![wait(), failed()])]);
    let begun = std::pin::pin!(send(&upstream, idempotent(), Method::GET, Empty::new()));
    assert!(matches!(futures::poll!(begun), Poll::Ready(Ok(_))));
}

/// gRPC servers push back in trailers, with any code that is retried (gRFC A6).
#[tokio::test(start_paused = true)]
async fn a_pushback_in_trailers_is_obeyed_too() {
    let pushed = |code, ms| {
        let said = vec![("grpc-status", code), ("grpc-retry-pushback-ms", ms)];
        (Reply::grpc(vec![Sent::Trailers(said.clone())]), said)
    };
    for (code, ms, wait, attempts) in [
        ("14", "30", 30, 3),
        ("13", "40", 40, 3),
        ("14", "-1", 0, 1),
        ("14", "99999", 0, 1),
        ("14", "x", 0, 1),
    ] {
        let (in_trailers, said) = pushed(code, ms);
        let in_head = said.iter().fold(Reply::status(200), |reply, &(name, value)| reply.header(name, value));
        for reply in [in_trailers, in_head] {
            let upstream = Upstream::new([reply]);
            send(&upstream, idempotent(), Method::POST, Empty::new()).await.unwrap();
            let seen = upstream.seen.lock().unwrap();
            assert_eq!(seen.len(), attempts, "{code} {ms}");
            assert!(seen.windows(2).all(|two| two[1].at - two[0].at == MS(wait)), "{code} {ms}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_no_retry_without_budget_and_it_is_counted_over_all() {
    let budget =
        Arc::new(Budget::new(&BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 1, ttl: MS(5000) }));
    let policy = RetryPolicy::compile(&RetrySettings::default(), Arc::clone(&budget));
    let upstream = Upstream::new([Reply::status(503)]);
    let service = RetryLayer::new(policy, Rng::seeded(1)).layer(upstream.clone());
    let mut attempts = Vec::new();
    for _ in 0..5 {
        let answer = service.clone().oneshot(request(Method::GET, Empty::<Bytes>::new())).await.unwrap();
        attempts.push(answer.body().attempts());
    }
    assert_eq!(attempts, [3, 3, 2, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn hops_do_not_repeat_what_others_repeat() {
    let marked = |hops, attempts, value: &'static str| {
        let upstream = Upstream::new([Reply::status(503)]);
        let settings = RetrySettings { hops, attempts_max: Some(attempts), ..RetrySettings::default() };
        let mut request = request(Method::GET, Empty::<Bytes>::new());
        request.headers_mut().insert("x-enmesh-attempt", value.parse().unwrap());
        async move {
            let answer = retry(&upstream, settings).oneshot(request).await.unwrap();
            let first = upstream.seen.lock().unwrap()[0].parts.headers.contains_key("x-enmesh-attempt");
            (answer.body().attempts(), first, answer.headers().contains_key("x-enmesh-retried"))
        }
    };
    assert_eq!(marked(HopMarks::Trust, 3, "1").await, (1, true, true));
    assert_eq!(marked(HopMarks::Trust, 3, "0").await, (3, true, true));
    assert_eq!(marked(HopMarks::Strip, 3, "1").await, (3, false, true));
    assert_eq!(marked(HopMarks::Strip, 1, "1").await, (1, false, false));
    assert_eq!(marked(HopMarks::Off, 3, "1").await, (3, true, false));
    let answered = |hops| async move {
        let upstream = Upstream::new([Reply::status(503).header("x-enmesh-retried", "3")]);
        let settings = RetrySettings { hops, ..RetrySettings::default() };
        let _ = send(&upstream, settings, Method::GET, Empty::new()).await.unwrap();
        upstream.count()
    };
    assert_eq!(
        [answered(HopMarks::Trust).await, answered(HopMarks::Strip).await, answered(HopMarks::Off).await],
        [1, 3, 3]
    );
}

/// Three hops that retry, each with its own budget, over a leaf that always fails: how often the leaf is asked for each
/// request.
async fn chain(hops: HopMarks, budget: BudgetSettings, requests: u32, every: Duration) -> f64 {
    let leaf = Upstream::new([Reply::status(503)]);
    let layer = || {
        let settings = RetrySettings { hops, attempts_max: Some(4), ..RetrySettings::default() };
        RetryLayer::new(RetryPolicy::compile(&settings, Arc::new(Budget::new(&budget))), Rng::seeded(1))
    };
    // A hop passes marks on, as a gateway does.
    let hop = |inner: Retry<Upstream>| layer().layer(inner);
    let service = layer().layer(hop(layer().layer(leaf.clone())));
    for _ in 0..requests {
        let _ = service.clone().oneshot(request(Method::GET, Empty::<Bytes>::new())).await.unwrap();
        tokio::time::sleep(every).await;
    }
    leaf.count() as f64 / f64::from(requests)
}

#[tokio::test(start_paused = true)]
async fn three_retrying_hops_at_full_failure_send_at_most_a_quarter_more() {
    let plenty = BudgetSettings::Windowed { ratio_ppm: 0, min_per_second: 100_000, ttl: MS(10_000) };
    // Without marks and budget: 4 * 4 * 4.
    assert_eq!(chain(HopMarks::Off, plenty, 50, MS(10)).await, 64.0);
    // With marks alone only the last hop retries.
    assert_eq!(chain(HopMarks::Trust, plenty, 50, MS(10)).await, 4.0);
    let default = enmesh::retry::budget::DEFAULT;
    for (requests, every) in [(1000, MS(10)), (10_000, MS(1))] {
        let sent = chain(HopMarks::Trust, default, requests, every).await;
        assert!((1.0..=1.25).contains(&sent), "{sent} with marks");
        let sent = chain(HopMarks::Off, default, requests, every).await;
        assert!((1.0..=1.25).contains(&sent), "{sent} without marks");
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_poll_nothing_stays() {
    for polls in 0..40 {
        let budget = BudgetSettings::ActiveShare { ratio_ppm: 1_000_000, min_concurrent: 1 };
        let budget = Arc::new(Budget::new(&budget));
        let backoff = Some(BackoffSettings { base: MS(1), max: MS(1), jitter: 0.0 });
        let settings = RetrySettings { backoff, idempotent: true, ..RetrySettings::default() };
        let policy = RetryPolicy::compile(&settings, Arc::clone(&budget));
        let script = [
            Reply::status(503).after(MS(1)).body(vec![Sent::Data("no")]),
            Reply::grpc(vec![
                Sent::Wait(MS(1)),
                Sent::Data("no"),
                Sent::Trailers(vec![("grpc-status", "14")]),
            ]),
            Reply::grpc(vec![
                Sent::Wait(MS(1)),
                Sent::Data("yes"),
                Sent::Trailers(vec![("grpc-status", "0")]),
            ]),
        ];
        let upstream = Upstream::new(script);
        let service = RetryLayer::new(policy, Rng::seeded(1)).layer(upstream.clone());
        let body = stream(vec![b"he", b"llo"], true);
        let mut future = Box::pin(async move {
            let answer = service.oneshot(request(Method::POST, body)).await.unwrap();
            answer.into_body().collect().await.unwrap().to_bytes()
        });
        let mut done = false;
        for _ in 0..polls {
            if let Poll::Ready(bytes) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                assert_eq!(bytes, "yes");
                done = true;
                break;
            }
            tokio::time::advance(MS(1)).await;
        }
        drop(future);
        assert_eq!(
            (upstream.alive(), budget.level(enmesh::stdx::clock::now())),
            (0, 1),
            "after {polls} polls"
        );
        assert!(polls < 30 || done, "thirty polls are enough");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_within_leaves_nothing_behind() {
    for script in [vec![Reply::panic()], vec![Reply::status(503), Reply::panic().after(MS(1))]] {
        let budget = Arc::new(Budget::new(&BudgetSettings::ActiveShare { ratio_ppm: 0, min_concurrent: 5 }));
        let policy = RetryPolicy::compile(&RetrySettings::default(), Arc::clone(&budget));
        let upstream = Upstream::new(script);
        let service = RetryLayer::new(policy, Rng::seeded(1)).layer(upstream.clone());
        let one = service.clone();
        #[expect(clippy::disallowed_methods, reason = "its panic is caught here")]
        let end = tokio::spawn(one.oneshot(request(Method::GET, stream(vec![b"x"], false)))).await;
        assert!(end.unwrap_err().is_panic());
        assert_eq!((upstream.alive(), budget.level(enmesh::stdx::clock::now())), (0, 5));
    }
}

#[tokio::test(start_paused = true)]
async fn clones_that_were_ready_and_are_dropped_hold_nothing() {
    let upstream = Upstream::new([Reply::status(503), Reply::status(200)]);
    let service = retry(&upstream, RetrySettings::default());
    let mut clones: Vec<_> = std::iter::repeat_with(|| service.clone()).take(10_000).collect();
    for clone in &mut clones {
        ServiceExt::<Request<Empty<Bytes>>>::ready(clone).await.unwrap();
    }
    drop(clones);
    let mut service = service;
    let first = ServiceExt::<Request<Empty<Bytes>>>::ready(&mut service)
        .await
        .unwrap()
        .call(request(Method::GET, Empty::<Bytes>::new()));
    assert_eq!(first.await.unwrap().body().attempts(), 2);
    let again = ServiceExt::<Request<Empty<Bytes>>>::ready(&mut service)
        .await
        .unwrap()
        .call(request(Method::GET, Empty::<Bytes>::new()));
    assert_eq!(again.await.unwrap().body().attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn layers_of_others_can_stand_below() {
    fn boxed<B>(_: &Replay<B>) {}
    let upstream = tower::service_fn(|request: Request<Replay<Full<Bytes>>>| async move {
        boxed(request.body());
        Ok::<_, BoxError>(Response::new(request.into_body().collect().await?.to_bytes()))
    });
    let service = tower::ServiceBuilder::new()
        .layer(RetryLayer::new(policy(RetrySettings::default()), Rng::thread()))
        .map_response(|response: Response<Bytes>| response.map(Full::new))
        .service(upstream);
    let answer = service.oneshot(request(Method::GET, Full::new(Bytes::from("echo")))).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "echo");
}
