//! What choosing an endpoint costs, alone and as a layer, from 10 to 10 000 endpoints, against tower's p2c with peak
//! EWMA in the same run; and what one change of the endpoints costs.
//!
//! `cargo bench --bench balance -- --callgrind`

#[path = "common/mod.rs"]
mod common;

use bytes::Bytes;
use common::{Options, Row, measure, print};
use enmesh::balance::cost::{Estimator, Formula, Power};
use enmesh::balance::endpoint::Cell;
use enmesh::balance::layer::Balance;
use enmesh::balance::pick::{Ask, Picker, Rule};
use enmesh::balance::ring::Ring;
use enmesh::balance::set::{Rank, Set, Slot};
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::profile::settings::{Algorithm, BalancerSettings, BreakerSettings};
use enmesh::stdx::moment::Moment;
use enmesh::stdx::rng::Rng;
use http::{Request, Response};
use http_body_util::Empty;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower::Service;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

#[derive(Debug, Clone)]
struct Mock;

impl Service<Request<()>> for Mock {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Empty<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}

fn address(index: usize) -> SocketAddr {
    let [_, b, c, d] = (index as u32).to_be_bytes();
    SocketAddr::from(([10, b, c, d], 80))
}

fn fleet(size: usize) -> EndpointSet {
    EndpointSet::new((0..size).map(|index| Endpoint::new(address(index))))
}

/// One request through a service that is ready at once.
fn send<S: Service<Request<()>>>(service: &mut S) {
    let mut cx = Context::from_waker(Waker::noop());
    while service.poll_ready(&mut cx).is_pending() {}
    let mut future = pin!(service.call(Request::new(())));
    while future.as_mut().poll(&mut cx).is_pending() {}
}

fn settings(algorithm: Algorithm) -> BalancerSettings {
    BalancerSettings { algorithm: Some(algorithm), ..BalancerSettings::default() }
}

fn layer(size: usize, algorithm: Algorithm, breaker: Option<&BreakerSettings>) -> Balance<Mock> {
    let balance = Balance::new("bench", &settings(algorithm), breaker, Rng::thread());
    balance.update(&fleet(size), |_| Mock);
    (0..size.max(100)).for_each(|_| send(&mut balance.clone()));
    balance
}

/// The choice alone: no clock, no request, no completion. Every third endpoint has a request in flight; each latency was
/// learned at some time within `age` before the choice.
fn choice(size: usize, rule: Rule, formula: Formula, age: Duration) -> impl FnMut() {
    let mut set = Set::default();
    let mut ring = Ring::default();
    let now = Moment::from_micros(100_000_000);
    for index in 0..size {
        let place = set.vacancy(Rank { priority: 0, far: false });
        let cell = Cell::new(index as u32 + 1, index as u64, Moment::default(), 0.03);
        let before = (index as u64 * 7919 * 1000) % (age.as_micros() as u64 + 1);
        let learned = Moment::from_micros(now.micros() - before);
        cell.learn(&formula, learned, 0.01 + index as f32 * 1e-6);
        if index % 3 == 0 {
            cell.begin(now);
        }
        let cell = Arc::new(cell);
        ring.push(&cell);
        set.put(place, Slot { cell, weight: 1000, item: () });
    }
    set.seal();
    let picker = Picker::new(rule, formula);
    let rng = Rng::thread();
    move || {
        let now = black_box(now);
        let ask = Ask { now, rng: &rng, hash: None, ring: &ring, panic: false, avoid: |_: u32| false };
        black_box(picker.pick(&set, &ask).map(|slot| slot.cell.id()));
    }
}

/// All of a choice but the choice.
fn nothing() -> impl FnMut() {
    let (ring, rng) = (Ring::default(), Rng::thread());
    let now = Moment::from_micros(100_000_000);
    move || {
        let now = black_box(now);
        let ask = Ask { now, rng: &rng, hash: None, ring: &ring, panic: false, avoid: |_: u32| false };
        black_box(&ask);
    }
}

fn choices(options: &Options) {
    let peak = Formula::new(Estimator::Peak, Power::One, Duration::from_secs(10), Duration::ZERO);
    let mut rows: Vec<Row> = Vec::new();
    let name = "no choice: what the bench itself costs";
    if options.wants(name) {
        rows.extend(measure(options, name, nothing()));
    }
    for size in SIZES {
        let name = format!("peak EWMA of two, {size}");
        if options.wants(&name) {
            rows.extend(measure(options, &name, choice(size, Rule::Choices(2), peak, Duration::ZERO)));
        }
        let name = format!("  the same, learned within a minute, {size}");
        if options.wants(&name) {
            let choice = choice(size, Rule::Choices(2), peak, Duration::from_secs(60));
            rows.extend(measure(options, &name, choice));
        }
    }
    let load = Formula::new(Estimator::Peak, Power::None, Duration::from_secs(10), Duration::ZERO);
    for size in SIZES {
        let name = format!("least request of two, {size}");
        if options.wants(&name) {
            rows.extend(measure(options, &name, choice(size, Rule::Choices(2), load, Duration::ZERO)));
        }
    }
    for size in SIZES {
        let name = format!("recently freed, {size}");
        if options.wants(&name) {
            let choice = choice(size, Rule::Freed, Formula::default(), Duration::ZERO);
            rows.extend(measure(options, &name, choice));
        }
    }
    print("The choice alone", "cargo bench --bench balance -- --callgrind", &rows);
}

fn layers(options: &Options) {
    let mut rows = Vec::new();
    let name = "no balancer: the request and the mock alone";
    if options.wants(name) {
        rows.extend(measure(options, name, || send(&mut Mock)));
    }
    print("No layer", "cargo bench --bench balance -- --callgrind", &rows);
    for size in SIZES {
        let mut rows = Vec::new();
        let name = format!("tower p2c, peak EWMA, {size}");
        if options.wants(&name) {
            let one = |_| {
                let decay = Duration::from_secs(10).as_nanos() as f64;
                PeakEwma::new(Mock, Duration::from_millis(30), decay, CompleteOnResponse::default())
            };
            let list = ServiceList::new((0..size).map(one).collect::<Vec<_>>());
            let mut tower = tower::balance::p2c::Balance::new(list);
            rows.extend(measure(options, &name, || send(&mut tower)));
        }
        for (what, algorithm) in [
            ("peak EWMA", Algorithm::PeakEwma),
            ("least request", Algorithm::LeastRequest { choices: 2 }),
            ("round robin", Algorithm::RoundRobin),
            ("recently freed", Algorithm::RecentlyFreed),
        ] {
            let name = format!("enmesh {what}, {size}");
            if options.wants(&name) {
                let balance = layer(size, algorithm, None);
                rows.extend(measure(options, &name, || send(&mut balance.clone())));
            }
        }
        let name = format!("enmesh recently freed and breaker, {size}");
        if options.wants(&name) {
            let balance = layer(size, Algorithm::RecentlyFreed, Some(&BreakerSettings::default()));
            rows.extend(measure(options, &name, || send(&mut balance.clone())));
        }
        print("A request through the layer, to its end", "cargo bench --bench balance -- --callgrind", &rows);
    }
}

fn changes(options: &Options) {
    let mut rows = Vec::new();
    for size in SIZES {
        let name = format!("one put and removed of {size}");
        if options.wants(&name) {
            let balance = layer(size, Algorithm::RecentlyFreed, None);
            let extra = Endpoint::new(address(1 << 20));
            rows.extend(measure(options, &name, || {
                balance.put(&extra, |_| Mock);
                balance.remove(extra.addr);
            }));
        }
    }
    for size in SIZES {
        let name = format!("the same {size} told again");
        if options.wants(&name) {
            let balance = layer(size, Algorithm::RecentlyFreed, None);
            let fleet = fleet(size);
            rows.extend(measure(options, &name, || balance.update(&fleet, |_| Mock)));
        }
    }
    print("A change of the endpoints", "cargo bench --bench balance", &rows);
}

/// Requests of several threads through one balancer: what they share costs more the more threads write it.
fn contention(options: &Options) {
    if options.rounds.is_some() {
        return;
    }
    let rounds = if options.smoke { 200 } else { 200_000 };
    println!("\nSeveral threads, one balancer of 100 endpoints (ns of wall time per request and thread)\n");
    for (what, algorithm) in
        [("recently freed", Algorithm::RecentlyFreed), ("round robin", Algorithm::RoundRobin)]
    {
        for threads in [1u32, 2, 4, 8] {
            let balance = layer(100, algorithm, Some(&BreakerSettings::default()));
            let took = common::time(1, &mut || {
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        let balance = balance.clone();
                        scope.spawn(move || (0..rounds).for_each(|_| send(&mut balance.clone())));
                    }
                });
            });
            let each = took.as_nanos() as f64 / f64::from(rounds);
            println!("  {what}, {threads} threads {each:>40.1}");
        }
    }
}

fn main() {
    let options = Options::read();
    choices(&options);
    layers(&options);
    changes(&options);
    contention(&options);
}
