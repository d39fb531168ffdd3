//! Limits on a paused clock, over a service that answers by a script.
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
use enmesh::error::{Error, Scope};
use enmesh::limit::body::Placed;
use enmesh::limit::concurrency::{Limiter, WAIT_MAX};
use enmesh::limit::layer::{Limit, LimitLayer};
use enmesh::limit::priority::{HEADER, Priority};
use enmesh::policy::limits::LimitPolicy;
use enmesh::profile::route::Route;
use enmesh::profile::settings::{HashKey, Limits, RateLimit, RateScope};
use enmesh::tls::identity::PeerIdentity;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use upstream::{Bytestream, Reply, Sent, Upstream};

const MS: fn(u64) -> Duration = Duration::from_millis;

type Answer = Result<Response<Placed<Bytestream>>, Error>;

/// A service that takes 100 ms, behind so many places, and its limiter.
fn limited(requests_max: u32, pending_max: u32) -> (Limit<Upstream>, Arc<Limiter>) {
    limited_by(Upstream::new(vec![Reply::status(200).after(MS(100))]), requests_max, pending_max)
}

fn limited_by(inner: Upstream, requests_max: u32, pending_max: u32) -> (Limit<Upstream>, Arc<Limiter>) {
    let (requests_max, pending_max) = (Some(requests_max), Some(pending_max));
    let policy = LimitPolicy::new(&Limits { requests_max, pending_max, ..Limits::default() });
    let limiter = Arc::clone(&policy.places.as_ref().unwrap().limit);
    (LimitLayer::new(policy).layer(inner), limiter)
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("http://svc/x").body(Empty::new()).unwrap()
}

fn said(priority: Priority) -> Request<Empty<Bytes>> {
    let mut request = get();
    priority.write(request.headers_mut());
    request
}

async fn send(service: Limit<Upstream>, request: Request<Empty<Bytes>>) -> (Answer, Duration) {
    let begun = Instant::now();
    let answer = service.oneshot(request).await;
    (answer, begun.elapsed())
}

fn at_rest(limiter: &Limiter) {
    assert_eq!((limiter.in_flight(), limiter.waiting()), (0, 0), "{limiter:?}");
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_waits_and_who_finds_no_place_to_wait_is_refused() {
    let (service, limiter) = limited(2, 2);
    let calls = (0..5).map(|_| tokio::spawn(send(service.clone(), get())));
    let mut ends = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        ends.push(match call.await.unwrap() {
            (Ok(_), after) => Some(after),
            (Err(Error::Overloaded { retry_after: Some(_) }), after) => {
                assert_eq!(after, MS(0));
                None
            }
            (Err(error), _) => panic!("{error}"),
        });
    }
    assert_eq!(ends, [Some(MS(100)), Some(MS(100)), Some(MS(200)), Some(MS(200)), None]);
    at_rest(&limiter);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_body_ends_or_is_dropped() {
    let chunks = vec![Sent::Data("a"), Sent::Wait(MS(50)), Sent::Data("b")];
    let (service, limiter) = limited_by(Upstream::new(vec![Reply::status(200).body(chunks)]), 1, 0);
    let read = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(limiter.in_flight(), 1);
    assert!(matches!(service.clone().oneshot(get()).await, Err(Error::Overloaded { .. })));
    assert_eq!(read.into_body().collect().await.unwrap().to_bytes(), "ab");
    at_rest(&limiter);
    drop(service.clone().oneshot(get()).await.unwrap());
    at_rest(&limiter);
}

#[tokio::test(start_paused = true)]
async fn the_least_important_goes_first() {
    let (service, limiter) = limited(1, 2);
    let busy = tokio::spawn(send(service.clone(), get()));
    tokio::task::yield_now().await;
    let mut calls = Vec::new();
    for priority in [Priority::Sheddable, Priority::Critical, Priority::CriticalPlus, Priority::SheddablePlus]
    {
        calls.push(tokio::spawn(send(service.clone(), said(priority))));
        tokio::task::yield_now().await;
    }
    assert!(busy.await.unwrap().0.is_ok());
    let mut ends = Vec::new();
    for call in calls {
        let (answer, after) = call.await.unwrap();
        ends.push((answer.is_ok(), after));
    }
    // The first was displaced by the third, and the last could displace nobody.
    assert_eq!(ends, [(false, MS(0)), (true, MS(300)), (true, MS(200)), (false, MS(0))]);
    assert!(get().headers().get(&HEADER).is_none());
    at_rest(&limiter);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let (service, limiter) = limited_by(Upstream::new(vec![Reply::status(200).after(MS(60_000))]), 1, 5);
    let busy = tokio::spawn(send(service.clone(), get()));
    tokio::task::yield_now().await;
    let (answer, after) = send(service, get()).await;
    assert!(matches!(answer, Err(Error::Timeout { scope: Scope::Queue, after: WAIT_MAX })), "{answer:?}");
    assert_eq!((after, limiter.waiting()), (WAIT_MAX, 0));
    busy.abort();
    assert!(busy.await.is_err());
    at_rest(&limiter);
}

#[tokio::test(start_paused = true)]
async fn the_layers_own_limits_are_for_requests_that_met_no_route() {
    let inner = Upstream::new(vec![Reply::status(200).after(MS(100))]);
    let policy = LimitPolicy::new(&Limits { requests_max: Some(1), ..Limits::default() });
    let limiter = Arc::clone(&policy.places.as_ref().unwrap().limit);
    let entry = call::entry(Route::default());
    assert!(entry.policy.limits().is_none());
    let service = LimitLayer::by_route().layer(inner.clone());
    assert!(service.oneshot(call::call(&entry, get())).await.is_ok());
    let service = LimitLayer::new(policy).layer(inner.clone());
    for _ in 0..3 {
        assert!(service.clone().oneshot(get()).await.is_ok());
    }
    at_rest(&limiter);
    assert_eq!(inner.seen.lock().unwrap().len(), 4);
}

/// The requests of a profile with these limits, of which the route says those.
fn routed(limits: Limits, rates: Vec<RateLimit>) -> Arc<enmesh::policy::route::RouteEntry<()>> {
    call::entry_of(Route { rates, ..Route::default() }, |profile| profile.limits = limits)
}

fn per_second(scope: RateScope, requests: u32) -> RateLimit {
    RateLimit { scope, requests, per: Duration::from_secs(1), burst: None }
}

#[tokio::test(start_paused = true)]
async fn a_route_says_its_deadline_to_the_queue() {
    let inner = Upstream::new(vec![Reply::status(200).after(MS(100))]);
    let entry = routed(Limits { requests_max: Some(1), ..Limits::default() }, Vec::new());
    let limiter = Arc::clone(&entry.policy.limits().unwrap().places.as_ref().unwrap().limit);
    let service = LimitLayer::by_route().layer(inner.clone());
    let with = |left: u64| {
        let mut call = call::call(&entry, get());
        call.scope.state.deadline = Some((Instant::now() + MS(left)).into_std());
        call
    };
    assert!(service.clone().oneshot(with(1000)).await.is_ok());
    let busy = tokio::spawn(service.clone().oneshot(with(1000)));
    tokio::task::yield_now().await;
    // What usually takes 100 ms has 30 left.
    let refused = service.clone().oneshot(with(30)).await;
    assert!(matches!(refused, Err(Error::Timeout { scope: Scope::Queue, .. })), "{refused:?}");
    // It may wait, but the place comes too late.
    let late = tokio::spawn(service.clone().oneshot(with(120)));
    assert!(busy.await.unwrap().is_ok());
    assert!(matches!(late.await.unwrap(), Err(Error::Timeout { scope: Scope::Queue, .. })));
    assert_eq!(inner.seen.lock().unwrap().len(), 2, "neither was sent");
    at_rest(&limiter);
}

#[tokio::test(start_paused = true)]
async fn rates_of_the_service_and_of_the_route_hold_both() {
    let inner = Upstream::new(vec![Reply::status(200)]);
    let limits = Limits { rates: vec![per_second(RateScope::Total, 10)], ..Limits::default() };
    let by_tenant = per_second(RateScope::Key(HashKey::Header("tenant".into())), 2);
    let entry = routed(limits, vec![by_tenant]);
    let service = LimitLayer::by_route().layer(inner);
    let mut ok = 0;
    for n in 0..30 {
        let request = Request::get("http://svc/x").header("tenant", format!("t{}", n % 3));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        match service.clone().oneshot(call::call(&entry, request)).await {
            Ok(_) => ok += 1,
            Err(Error::RateLimited { retry_after }) => assert!(retry_after <= MS(500)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(ok, 6, "two of each of three tenants, and ten in all");
    tokio::time::advance(MS(500)).await;
    let request = Request::get("http://svc/x").header("tenant", "t0").body(Empty::<Bytes>::new()).unwrap();
    assert!(service.oneshot(call::call(&entry, request)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_server_counts_each_client_and_each_address_apart() {
    let rates = vec![
        per_second(RateScope::Identity, 2),
        per_second(RateScope::Override(vec!["spiffe://mesh/batch".into()]), 1),
        per_second(RateScope::Key(HashKey::Source), 2),
    ];
    let policy = LimitPolicy::new(&Limits { rates, ..Limits::default() });
    let service = LimitLayer::new(policy).layer(Upstream::new(vec![Reply::status(200)]));
    let ask = async |name: Option<&str>, host: u8| {
        let mut request = get();
        request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, host], 7)));
        if let Some(name) = name {
            request.extensions_mut().insert(PeerIdentity {
                identity: name.parse().unwrap(),
                trust_domain: "mesh".parse().unwrap(),
                not_after: std::time::SystemTime::UNIX_EPOCH,
            });
        }
        service.clone().oneshot(request).await.is_ok()
    };
    assert!(ask(Some("spiffe://mesh/web"), 1).await && ask(Some("spiffe://mesh/web"), 2).await);
    assert!(!ask(Some("spiffe://mesh/web"), 3).await, "two a second");
    assert!(ask(Some("spiffe://mesh/batch"), 3).await && !ask(Some("spiffe://mesh/batch"), 3).await);
    assert!(ask(None, 3).await && !ask(None, 3).await, "two a second of one address");
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_at_any_time_leaves_nothing_behind() {
    let body = || vec![Sent::Data("a"), Sent::Wait(MS(10)), Sent::Data("b")];
    for polls in 0..60 {
        let inner = Upstream::new(vec![Reply::status(200).after(MS(20)).body(body())]);
        let (service, limiter) = limited_by(inner.clone(), 1, 3);
        let others: Vec<_> = (0..2).map(|_| tokio::spawn(send(service.clone(), get()))).collect();
        tokio::task::yield_now().await;
        {
            let mut call = pin!(async {
                let response = service.clone().oneshot(get()).await?;
                response.into_body().collect().await.map_err(Error::from)
            });
            for _ in 0..polls {
                if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    break;
                }
                tokio::time::advance(MS(3)).await;
            }
        }
        for other in others {
            drop(other.await.unwrap().0.unwrap());
        }
        at_rest(&limiter);
        assert_eq!(inner.alive.load(std::sync::atomic::Ordering::SeqCst), 0, "after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_below_gives_the_place_back() {
    let (service, limiter) = limited_by(Upstream::new(vec![Reply::panic()]), 1, 0);
    for _ in 0..3 {
        assert!(tokio::spawn(send(service.clone(), get())).await.is_err());
        at_rest(&limiter);
    }
}

#[tokio::test(start_paused = true)]
async fn many_clones_share_the_places_and_a_ready_one_holds_none() {
    let (service, limiter) = limited(5, 0);
    let mut clones = vec![service; 10_000];
    for clone in &mut clones {
        let ready =
            Service::<Request<Empty<Bytes>>>::poll_ready(clone, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(ready, Poll::Ready(Ok(()))));
    }
    at_rest(&limiter);
    let calls: Vec<_> = clones.iter_mut().take(6).map(|clone| clone.call(get())).collect();
    assert_eq!(limiter.in_flight(), 5);
    let ok = futures::future::join_all(calls).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(ok, 5);
    at_rest(&limiter);
}

#[cfg(feature = "http")]
const PROFILE: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.shop}
spec:
  limits:
    maxRequests: 1
    maxPending: 0
    rateLimits: [{requests: 5}]
";

#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn a_server_answers_what_is_too_much_and_says_when_to_come_back() {
    let mesh = enmesh::Mesh::builder().name("web.shop:80").profile_yaml(PROFILE).build().unwrap();
    let app = tower::service_fn(|_: Request<Empty<Bytes>>| async {
        tokio::time::sleep(MS(10)).await;
        Ok::<_, Error>(Response::new(Empty::<Bytes>::new()))
    });
    let server = mesh.inbound().layer(app);
    let ask = async |content_type: &str| {
        let request = Request::post("http://web.shop/x").header("content-type", content_type);
        let answer = server.clone().oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        (
            answer.status().as_u16(),
            header("retry-after"),
            header("grpc-status"),
            header("grpc-retry-pushback-ms"),
        )
    };
    let both = futures::future::join(ask("text/plain"), ask("text/plain")).await;
    assert_eq!((both.0.0, both.1.0, both.1.1.as_deref()), (200, 503, Some("1")), "one place");
    for _ in 0..3 {
        ask("text/plain").await;
    }
    let refused = ask("text/plain").await;
    assert_eq!((refused.0, refused.1.as_deref()), (429, Some("1")), "five a second");
    let (status, _, grpc, pushback) = ask("application/grpc").await;
    assert_eq!((status, grpc.as_deref()), (200, Some("8")));
    assert!((1..=200).contains(&pushback.unwrap().parse::<u32>().unwrap()));
}

#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn a_client_holds_to_its_profile_and_nothing_is_left_of_a_dropped_call() {
    let profile = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.shop}
spec:
  limits: {maxRequests: 1, maxPending: 1}
";
    let mesh = enmesh::Mesh::builder().profile_yaml(profile).dns(false).build().unwrap();
    let body = || vec![Sent::Data("a"), Sent::Wait(MS(10)), Sent::Data("b")];
    let inner = Upstream::new(vec![Reply::status(200).after(MS(20)).body(body())]);
    let client = mesh.layer().layer(inner.clone());
    let get = || Request::get("http://web.shop/x").body(Empty::<Bytes>::new()).unwrap();
    let read = async || {
        let response = client.clone().oneshot(get()).await?;
        response.into_body().collect().await.map_err(Error::from).map(|body| body.to_bytes())
    };
    let ends = futures::future::join3(read(), read(), read()).await;
    assert_eq!((ends.0.unwrap(), ends.1.unwrap()), (Bytes::from("ab"), Bytes::from("ab")));
    assert!(matches!(ends.2, Err(Error::Overloaded { .. })));
    let limit = || {
        let services = mesh.inspect().services;
        let limit = services.iter().find_map(|service| service.limit).unwrap();
        (limit.limit, limit.in_flight, limit.waiting)
    };
    assert_eq!(limit(), (1, 0, 0));
    for polls in 0..60 {
        let busy = tokio::spawn(client.clone().oneshot(get()));
        tokio::task::yield_now().await;
        {
            let mut call = pin!(read());
            for _ in 0..polls {
                if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    break;
                }
                tokio::time::advance(MS(3)).await;
            }
        }
        drop(busy.await.unwrap());
        assert_eq!(limit(), (1, 0, 0), "after {polls} polls");
        assert_eq!(inner.alive.load(std::sync::atomic::Ordering::SeqCst), 0, "after {polls} polls");
    }
}
