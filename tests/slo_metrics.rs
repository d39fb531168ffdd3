//! What objectives count, as metrics, when the process outlives their window.
#![cfg(all(feature = "http", feature = "prometheus", feature = "admin"))]

use bytes::Bytes;
use enmesh::{Error, Mesh};
use http::{Request, Response};
use http_body_util::Full;
use std::time::Duration;
use tower::{Layer, Service};

const PROFILE: &str = "
apiVersion: enmesh.dev/v1
kind: ServiceProfile
metadata: {name: web.ns.svc.cluster.local}
spec:
  slo: {availability: 0.9, window: 1h}
";

/// The value of the one series of `family` that holds `text`.
fn value(mesh: &Mesh, family: &str, text: &str) -> Option<f64> {
    let shown = mesh.metrics_text().unwrap();
    let is_it = |line: &&str| line.split('{').next() == Some(family) && line.contains(text);
    shown.lines().find(is_it).map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn counters_of_objectives_never_fall_while_budgets_look_at_their_window() {
    let builder = Mesh::builder().dns(false).profile_yaml(PROFILE).admin("127.0.0.1:0".parse().unwrap());
    let mesh = builder.build().unwrap();
    let inner = tower::service_fn(|request: Request<_>| async move {
        let status = if request.uri().path() == "/bad" { 500 } else { 200 };
        drop(request);
        Ok::<_, Error>(Response::builder().status(status).body(Full::<Bytes>::default()).unwrap())
    });
    let mut service = mesh.layer().layer(inner);
    let mut send = async |path: &str, times: usize| {
        for _ in 0..times {
            let mut request = Request::new(Full::<Bytes>::default());
            *request.uri_mut() = format!("http://web.ns{path}").parse().unwrap();
            drop(service.call(request).await.unwrap());
        }
    };
    let (total, bad) = ("enmesh_slo_total", "enmesh_slo_bad_total");
    let left = "enmesh_slo_error_budget_left";
    send("/bad", 10).await;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    send("/", 10).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let of =
        |family: &str| value(&mesh, family, "kind=\"availability\"").map(|value| (value * 1e9).round() / 1e9);
    assert_eq!((of(total), of(bad), of(left)), (Some(20.0), Some(10.0), Some(-4.0)));
    // Three quarters of an hour later the failures have left the window, and what came after them has not.
    tokio::time::sleep(Duration::from_secs(2700)).await;
    for _ in 0..3 {
        assert_eq!((of(total), of(bad), of(left)), (Some(20.0), Some(10.0), Some(1.0)));
    }
}
