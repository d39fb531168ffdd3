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

#[tokio::test]
async fn a_million_paths_hosts_and_headers_leave_memory_flat() {
    let mesh = Mesh::builder().profile_yaml(PROFILE).dns(false).build().unwrap();
    let inner = tower::service_fn(|request: Request<_>| async move {
        drop(request);
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut service = mesh.layer().layer(inner);
    let mut send = async |n: u32| {
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = format!("http://web.ns/{n}").parse().unwrap();
        let value = HeaderValue::from_str(&format!("{n}.example")).unwrap();
        for name in ["host", "user-agent", "x-tenant", "l5d-dst-override"] {
            request.headers_mut().insert(name, value.clone());
        }
        drop(service.call(request).await.unwrap());
    };
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
