//! A balancer's endpoints are replaced while requests pick, under every order of threads.

use bytes::Bytes;
use enmesh_modelled::balance::layer::Balance;
use enmesh_modelled::discover::endpoint::{Endpoint, EndpointSet};
use enmesh_modelled::error::Error;
use enmesh_modelled::profile::settings::{
    Algorithm, BalancerSettings, BreakerSettings, Detector, FailureClass,
};
use enmesh_modelled::stdx::rng::Rng;
use http::{Request, Response};
use http_body_util::Empty;
use loom::model::Builder;
use loom::thread;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tower_service::Service;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Answers with the status at once.
#[derive(Clone)]
struct Replica(u16);

impl Service<Request<()>> for Replica {
    type Response = Response<Empty<Bytes>>;
    type Error = Error;
    type Future = Ready<Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let response = Response::builder().status(self.0).body(Empty::new());
        ready(response.map_err(|error| Error::Inner(error.into())))
    }
}

fn addr(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Two endpoints in turn, which answer with this status and are shut by one failure.
fn balance(status: u16) -> Balance<Replica> {
    let breaker = BreakerSettings {
        detectors: vec![Detector::Consecutive { class: FailureClass::Any, threshold: 1 }],
        ejected_percent_max: 100,
        jitter: 0.0,
        ..BreakerSettings::default()
    };
    let settings = BalancerSettings { algorithm: Some(Algorithm::RoundRobin), ..BalancerSettings::default() };
    let balance = Balance::new("svc", &settings, Some(&breaker), Rng::seeded(1));
    let endpoints = [1, 2].map(|port| Endpoint::new(addr(port)));
    balance.update(&EndpointSet::new(endpoints), |_| Replica(status));
    balance
}

/// One request to the end of its response; the port that served it.
fn ask(balance: &Balance<Replica>) -> Result<u16, Error> {
    let mut balance = balance.clone();
    let mut sent = pin!(balance.call(Request::new(())));
    match sent.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result.map(|response| response.body().endpoint().unwrap().addr.port()),
        Poll::Pending => panic!("nobody waits where endpoints are known"),
    }
}

#[test]
fn who_was_removed_gets_nothing_new_and_no_request_is_lost() {
    check(2, || {
        let balance = balance(200);
        let asker = {
            let balance = balance.clone();
            thread::spawn(move || ask(&balance).unwrap())
        };
        balance.remove(addr(1));
        assert_eq!(ask(&balance).unwrap(), 2, "removed is removed");
        asker.join().unwrap();
        let state = balance.inspect();
        assert_eq!((state.endpoints.len(), state.endpoints[0].in_flight, state.shut), (1, 0, 0));
    });
}

#[test]
fn who_leaves_while_it_fails_is_not_counted_as_shut() {
    check(2, || {
        let balance = balance(500);
        let asker = {
            let balance = balance.clone();
            thread::spawn(move || ask(&balance))
        };
        balance.remove(addr(1));
        let _ = asker.join().unwrap();
        // The floor of one keeps whoever is left in use.
        let state = balance.inspect();
        assert!(state.endpoints[0].in_flight == 0 && state.shut <= 1);
        assert_eq!(state.shut > 0, !state.endpoints[0].is_open(), "{state:?}");
    });
}
