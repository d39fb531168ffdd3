//! The balancer's contract: cancel, panic, drop and update whenever you like; nothing stays in flight.

use bytes::Bytes;
use enmesh::balance::body::{AskBody, Served};
use enmesh::balance::layer::{Balance, FAIL_FAST};
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::error::Error;
use enmesh::policy::call::ServedBy;
use enmesh::profile::settings::BalancerSettings;
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::{Service, ServiceExt};

type Reply = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Error>> + Send>>;

/// A replica that answers its port after `delay`.
#[derive(Clone)]
struct Replica {
    port: u16,
    delay: Duration,
    served: Arc<AtomicU32>,
}

impl<B> Service<Request<B>> for Replica {
    type Response = Response<Full<Bytes>>;
    type Error = Error;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Reply {
        let Self { port, delay, served } = self.clone();
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            served.fetch_add(1, Ordering::Relaxed);
            Ok(Response::new(Full::from(port.to_string())))
        })
    }
}

fn set(ports: &[u16]) -> EndpointSet {
    EndpointSet::new(ports.iter().map(|port| Endpoint::new(([127, 0, 0, 1], *port).into())))
}

fn balance(ports: &[u16], delay: Duration) -> Balance<Replica> {
    let balance = Balance::new("svc:80", &BalancerSettings::default(), None, Rng::seeded(1));
    if !ports.is_empty() {
        fill(&balance, ports, delay);
    }
    balance
}

fn fill(balance: &Balance<Replica>, ports: &[u16], delay: Duration) {
    let make =
        |endpoint: &Arc<Endpoint>| Replica { port: endpoint.addr.port(), delay, served: Arc::default() };
    balance.update(&set(ports), make);
}

fn request() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

fn passed(since: clock::Instant) -> Duration {
    clock::now().saturating_duration_since(since)
}

fn in_flight(balance: &Balance<Replica>) -> u32 {
    balance.inspect().endpoints.iter().map(|endpoint| endpoint.in_flight).sum()
}

#[tokio::test(start_paused = true)]
async fn a_response_knows_its_endpoint_to_its_end_and_is_in_flight_until_then() {
    let balance = balance(&[1, 2], Duration::from_millis(10));
    let response = balance.clone().oneshot(request()).await.unwrap();
    let id = AskBody::served_by(response.body()).unwrap();
    assert_eq!(in_flight(&balance), 1);
    let port = response.body().endpoint().unwrap().addr.port();
    let mut body: Served<_> = response.into_body();
    let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(bytes, port.to_string());
    assert_eq!((in_flight(&balance), body.endpoint_id()), (0, Some(id)));
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_discovery_and_not_for_ever() {
    let late = balance(&[], Duration::ZERO);
    let started = clock::now();
    let update = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        fill(&late, &[7], Duration::ZERO);
    };
    let (answer, ()) = futures::join!(late.clone().oneshot(request()), update);
    assert!(answer.is_ok());
    assert_eq!(passed(started), Duration::from_secs(1));

    let never = balance(&[], Duration::ZERO);
    let started = clock::now();
    let error = never.clone().oneshot(request()).await.unwrap_err();
    assert!(matches!(error, Error::NoEndpoints { .. }), "{error}");
    assert!(passed(started) >= FAIL_FAST);

    fill(&never, &[], Duration::ZERO);
    let started = clock::now();
    assert!(never.clone().oneshot(request()).await.is_err());
    assert_eq!(passed(started), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_at_any_poll_leaves_nothing_in_flight() {
    for polls in 0..4 {
        let balance = balance(&[1], Duration::from_millis(10));
        let mut call = Box::pin(balance.clone().oneshot(request()));
        for _ in 0..polls {
            let _ = futures::poll!(call.as_mut());
            tokio::time::advance(Duration::from_millis(4)).await;
        }
        drop(call);
        assert_eq!(in_flight(&balance), 0, "after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_what_is_known_of_those_that_stay() {
    let balance = balance(&[1, 2, 3], Duration::from_millis(10));
    for _ in 0..50 {
        balance.clone().oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
    }
    let before = balance.inspect();
    fill(&balance, &[2, 3, 4], Duration::from_millis(10));
    let after = balance.inspect();
    for port in [2, 3] {
        let find = |state: &enmesh::balance::inspect::BalanceState| {
            let endpoint = state.endpoints.iter().find(|e| e.endpoint.addr.port() == port).unwrap();
            (endpoint.id, endpoint.latency)
        };
        assert_eq!(find(&before), find(&after));
    }
    assert_eq!(after.endpoints.len(), 3);
}
