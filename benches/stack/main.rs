//! The whole client stack in process, over a mock connection, on one thread: against the same stack of tower 0.5.
//!
//! `cargo bench --bench stack -- --callgrind`

#[path = "../common/mod.rs"]
mod common;

use bytes::Bytes;
use common::{Options, Row, measure, print};
use enmesh::balance::layer::Balance;
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::fault::decide::FaultSwitch;
use enmesh::mesh::body::ReqBody;
use enmesh::mesh::client::enter;
use enmesh::mesh::dispatch::Dispatch;
use enmesh::mesh::stack::{self, Backend};
use enmesh::metrics::names::Direction;
use enmesh::metrics::registry::Registry;
use enmesh::metrics::set::MetricsSet;
use enmesh::policy::call::Call;
use enmesh::policy::compile::{Compiler, Policy};
use enmesh::profile::matching::{Condition, PathKind, PathMatch};
use enmesh::profile::route::{Action, Filter, Forward, HeaderMods, Route};
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::{
    Adaptive, BreakerSettings, HedgeSettings, Limit, RetryOn, RetrySettings, Timeouts,
};
use enmesh::stdx::rng::Rng;
use http::{Request, Response};
use http_body_util::Empty;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower::{Layer, Service};

type Boxed = Pin<Box<dyn Future<Output = Result<Response<Empty<Bytes>>, Infallible>> + Send>>;

/// A connection that answers at once, in a box: what a nameable client's leaf must be.
#[derive(Clone)]
struct Mock;

impl<B> Service<Request<B>> for Mock {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Boxed;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Boxed {
        Box::pin(std::future::ready(Ok(Response::new(Empty::new()))))
    }
}

fn address(index: usize) -> SocketAddr {
    let [_, b, c, d] = (index as u32).to_be_bytes();
    SocketAddr::from(([10, b, c, d], 80))
}

fn profile(routes: usize) -> ServiceProfile {
    let timeouts = Timeouts {
        request: Limit::After(Duration::from_secs(5)),
        attempt: Limit::After(Duration::from_secs(1)),
        ..Timeouts::default()
    };
    let retry =
        RetrySettings { on: RetryOn { failures: true, ..RetryOn::default() }, ..RetrySettings::default() };
    let route = |index: usize| Route {
        name: format!("r{index}").into(),
        condition: Condition::Path(PathMatch::new(PathKind::Exact, format!("/api/r{index}"))),
        timeouts,
        retry: Some(retry.clone()),
        ..Route::default()
    };
    ServiceProfile {
        routes: (0..routes).map(route).collect(),
        breaker: Some(BreakerSettings::default()),
        ..ServiceProfile::new("web:80".parse().expect("a name"))
    }
}

fn registry() -> Registry {
    #[cfg(feature = "prometheus")]
    return enmesh::metrics::prometheus::Prometheus::new().expect("buckets").registry().clone();
    #[cfg(not(feature = "prometheus"))]
    Registry::global()
}

fn policy(profile: ServiceProfile, endpoints: usize) -> Policy<Backend<Mock>> {
    let metrics = MetricsSet::new(registry());
    let own = "web:80".parse().expect("a name");
    let balance = Balance::new("web", &profile.balancer, profile.breaker.as_ref(), Rng::thread());
    let set = EndpointSet::new((0..endpoints).map(|index| Endpoint::new(address(index))));
    balance.update(&set, |_| stack::replica(Mock));
    let compiler = Compiler {
        service: "web:80".into(),
        own,
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    compiler.compile(Arc::new(profile), None, |_| balance.clone()).expect("compiles")
}

fn request(path: &str) -> Request<ReqBody> {
    Request::get(format!("http://web:80{path}")).body(ReqBody::empty()).expect("a request")
}

/// Polls a future that is ready at once, as `block_on` would without its parking.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the mock answers at once"),
    }
}

fn enmesh_row(options: &Options, name: &str, routes: usize, endpoints: usize) -> Option<Row> {
    featured_row(options, name, profile(routes), endpoints)
}

/// The same with something else switched on.
fn featured_row(options: &Options, name: &str, profile: ServiceProfile, endpoints: usize) -> Option<Row> {
    if !options.wants(name) {
        return None;
    }
    let routes = profile.routes.len();
    let policy = policy(profile, endpoints);
    let stack = stack::outbound(Rng::thread());
    let path = format!("/api/r{}", routes - 1);
    let model = request(&path);
    measure(options, name, || {
        let mut http = request_like(&model);
        let scope = enter(&policy, &mut http).expect("a route");
        let response = now(stack.clone().call(Call { http, scope })).expect("a response");
        drop(std::hint::black_box(response));
    })
}

/// A request with the same URI; its clone costs a reference count.
fn request_like(model: &Request<ReqBody>) -> Request<ReqBody> {
    let mut request = Request::new(ReqBody::empty());
    *request.uri_mut() = model.uri().clone();
    request
}

/// The same request through the first layers alone, from the route inward.
fn part_row<S>(options: &Options, name: &str, stack: S) -> Option<Row>
where
    S: Service<Call<ReqBody, Backend<Mock>>> + Clone,
    S::Error: std::fmt::Debug,
{
    if !options.wants(name) {
        return None;
    }
    let policy = policy(profile(10), 10);
    let model = request("/api/r9");
    measure(options, name, || {
        let mut http = request_like(&model);
        let scope = enter(&policy, &mut http).expect("a route");
        let response = now(stack.clone().call(Call { http, scope })).expect("a response");
        drop(std::hint::black_box(response));
    })
}

/// A way to switch something on.
type Switch = fn(&mut ServiceProfile);

/// What else a profile may switch on, one by one and all at once.
const FEATURES: [(&str, Switch); 7] = [
    ("  with limits of idle and response time", |profile| {
        for route in &mut profile.routes {
            route.timeouts.idle = Limit::After(Duration::from_secs(1));
            route.timeouts.response = Limit::After(Duration::from_secs(2));
        }
    }),
    ("  with a hedge after a second", |profile| {
        for retry in profile.routes.iter_mut().flat_map(|route| &mut route.retry) {
            retry.hedge = Some(HedgeSettings::After(Duration::from_secs(1)));
        }
    }),
    ("  with a limit of requests", |profile| profile.limits.requests_max = Some(1_000_000)),
    ("  with a limit that follows latency", |profile| profile.limits.adaptive = Some(Adaptive::Gradient2)),
    ("  with a breaker for each route", |profile| {
        profile.breaker.iter_mut().for_each(|breaker| breaker.per_route = true);
    }),
    ("  with reports of load", |profile| profile.balancer.reports = true),
    ("  with a header set in each response", |profile| {
        let mods = HeaderMods { set: vec![("x-a".into(), "b".into())], ..HeaderMods::default() };
        for route in &mut profile.routes {
            let filters = vec![Filter::ResponseHeaders(mods.clone())];
            route.action = Action::Forward(Forward { filters, ..Forward::default() });
        }
    }),
];

fn features(options: &Options) -> Vec<Row> {
    let with = |switches: &[(&str, Switch)], name: &str| {
        let mut profile = profile(10);
        switches.iter().for_each(|(_, switch)| switch(&mut profile));
        featured_row(options, name, profile, 10)
    };
    let each = FEATURES.iter().map(|switch| with(&[*switch], switch.0));
    each.chain([with(&FEATURES, "  with all of these")]).flatten().collect()
}

/// What every row has in it that is no part of the stack: making a request, the mock and its box, dropping the response.
fn bare_row(options: &Options, name: &str) -> Option<Row> {
    if !options.wants(name) {
        return None;
    }
    let model = request("/api/r9");
    measure(options, name, || {
        let response = now(Mock.call(request_like(&model))).expect("a response");
        drop(std::hint::black_box(response));
    })
}

/// What each layer adds.
fn parts(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(bare_row(options, "of this the bench itself: request and box"));
    rows.extend(part_row(options, "its parts: request, route, box", stack::PlainLayer.layer(Mock)));
    rows.extend(part_row(options, "  and attempt", stack::replica(Mock)));
    rows.extend(part_row(options, "  and split, balance, breaker", Dispatch));
    rows.extend(part_row(
        options,
        "  and retry, metrics, filters, timeout: all",
        stack::outbound(Rng::thread()),
    ));
    rows.extend(part_row(options, "the same layer by layer", stack::layers(Rng::thread())));
    rows
}

mod reference;

fn main() {
    let options = Options::read();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _guard = runtime.enter();
    let mut rows = Vec::new();
    rows.extend(reference::tower_row(
        &options,
        "tower 0.5: timeout, retry, timeout, buffer, balance, breaker",
        &runtime,
    ));
    for endpoints in [10, 100, 1_000, 10_000] {
        rows.extend(enmesh_row(&options, &format!("enmesh, {endpoints} endpoints"), 10, endpoints));
    }
    for routes in [1_000, 10_000] {
        rows.extend(enmesh_row(&options, &format!("enmesh, 10 endpoints, {routes} routes"), routes, 10));
    }
    rows.extend(features(&options));
    rows.extend(parts(&options));
    let title = "Whole client stack, one request on a mock connection (box included)";
    print(title, "cargo bench --bench stack -- --callgrind", &rows);
}
