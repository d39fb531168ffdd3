//! A million requests that differ in all that a caller can choose leave memory and the series as they are.
#![cfg(all(feature = "http", feature = "prometheus"))]

use bytes::Bytes;
use enmesh::Mesh;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::convert::Infallible;
use tower::{Layer, Service};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are allocated and not freed.
fn held() -> i64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
}

fn series(mesh: &Mesh) -> usize {
    let text = mesh.metrics_text().unwrap();
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count()
}

const PROFILE: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.ns.svc.cluster.local}
spec:
  routes:
  - name: even
    condition: {pathRegex: '/.*[02468]'}
";

/// One after the other, since what is held is counted for the whole process.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A request that says `n` wherever a caller can say something.
fn request(host: &str, n: u32) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = format!("http://{host}/{n}").parse().unwrap();
    let value = HeaderValue::from_str(&format!("{n}.example")).unwrap();
    for name in ["host", "user-agent", "x-tenant", "l5d-dst-override", "l5d-client-id", "traceparent"] {
        request.headers_mut().insert(name, value.clone());
    }
    request
}

#[tokio::test]
async fn a_million_paths_hosts_and_headers_leave_memory_flat() {
    let _turn = TURN.lock().await;
    let mesh = Mesh::builder().profile_yaml(PROFILE).dns(false).build().unwrap();
    let inner = tower::service_fn(|request: Request<_>| async move {
        drop(request);
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut service = mesh.layer().layer(inner);
    let mut send = async |n: u32| drop(service.call(request("web.ns", n)).await.unwrap());
    for n in 0..20_000 {
        send(n).await;
    }
    let (before, shown) = (held(), series(&mesh));
    let before = before.max(held());
    for n in 20_000..1_000_000 {
        send(n).await;
    }
    let grown = held() - before;
    // A latency that was not met before costs half a kibibyte, of which there are 25.
    assert!(grown < 64 * 1024, "{grown} bytes more are held");
    // A bucket shows its zeros too, so even a new latency adds no series.
    assert_eq!(series(&mesh), shown);
}

#[tokio::test]
async fn a_million_requests_that_arrive_from_as_many_callers_leave_memory_flat() {
    let _turn = TURN.lock().await;
    let mesh = Mesh::builder().name("web.ns:80").profile_yaml(PROFILE).dns(false).build().unwrap();
    let app = tower::service_fn(|request: Request<_>| async move {
        drop(request);
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut service = mesh.inbound().layer(app);
    let mut send = async |n: u32| {
        let mut request = request(&format!("h{n}.example"), n);
        // Also those who prove who they are are many.
        #[cfg(any(feature = "tls", feature = "ring"))]
        request.extensions_mut().insert(enmesh::tls::identity::PeerIdentity {
            identity: format!("spiffe://mesh.example/{n}").parse().unwrap(),
            trust_domain: "mesh.example".parse().unwrap(),
            not_after: std::time::SystemTime::UNIX_EPOCH,
        });
        drop(service.call(request).await.unwrap());
    };
    for n in 0..20_000 {
        send(n).await;
    }
    let shown = series(&mesh);
    let before = held();
    for n in 20_000..1_000_000 {
        send(n).await;
    }
    let grown = held() - before;
    assert!(grown < 64 * 1024, "{grown} bytes more are held");
    assert_eq!(series(&mesh), shown);
}

#[tokio::test]
async fn hosts_beyond_what_callers_may_name_leave_memory_flat() {
    let _turn = TURN.lock().await;
    let mesh = Mesh::builder().dns(false).build().unwrap();
    let inner = tower::service_fn(|_: Request<_>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut service = mesh.layer().layer(inner);
    let mut send = async |n: u32| service.call(request(&format!("h{n}.ns"), n)).await.is_ok();
    let max = u32::try_from(enmesh::mesh::directory::SERVICES_MAX).unwrap();
    let mut taken = 0;
    for n in 0..max + 100 {
        taken += u32::from(send(n).await);
    }
    // The mesh knows itself besides.
    assert!((max - 1..=max).contains(&taken), "{taken} services may be named");
    let (before, shown) = (held(), series(&mesh));
    let before = before.max(held());
    for n in max + 100..1_000_000 {
        assert!(!send(n).await);
    }
    let grown = held() - before;
    assert!(grown < 64 * 1024, "{grown} bytes more are held");
    assert_eq!(series(&mesh), shown);
}

#[test]
fn counting_a_request_allocates_nothing() {
    use enmesh::classify::outcome::{Cause, Outcome, Verdict};
    use enmesh::metrics::names::Direction;
    use enmesh::metrics::series::Ending;
    use enmesh::metrics::set::{MetricsSet, Tls};
    use std::time::Duration;

    let _turn = TURN.blocking_lock();
    let set = MetricsSet::default();
    let dst = "web:80".into();
    let route = set.route(Direction::Outbound, &dst, &"r".into());
    let backend = route.backend(&dst);
    let endpoint = enmesh::discover::endpoint::Endpoint::new(([10, 0, 0, 1], 80).into());
    let endpoint = set.endpoint(&dst, &endpoint, Tls::Disabled);
    let count = || {
        let latency = Duration::from_micros(1500);
        let ending = Ending::new(Some(200), &Outcome::new(Verdict::Success, Cause::Status(200)));
        route.begin();
        route.latency(latency);
        route.deadline_left(latency);
        route.end(ending);
        for tally in [&endpoint.tally, &backend.tally] {
            tally.begin();
            tally.latency(latency);
            tally.end(ending);
        }
    };
    count();
    let before = ALLOCATOR.stats().allocations;
    (0..1000).for_each(|_| count());
    // Other threads of the test's own harness may allocate now and then.
    let made = ALLOCATOR.stats().allocations - before;
    assert!(made < 100, "{made} allocations for a thousand requests");
}
