//! A traced call is an exemplar of its latency, for whoever asks for OpenMetrics.
#![cfg(all(feature = "http", feature = "prometheus", feature = "admin"))]

use bytes::Bytes;
use enmesh::trace::settings::TraceSettings;
use enmesh::{Error, Mesh};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt};

/// The content type and the text of `/metrics` for whoever accepts this.
async fn metrics(mesh: &Mesh, accept: Option<&str>) -> (String, String) {
    let addr = mesh.admin_addr().unwrap();
    let asker = Mesh::builder().dns(false).endpoints("admin.ns:80", [addr.to_string()]).build().unwrap();
    let mut request = Request::get("http://admin.ns/metrics").header(header::HOST, "localhost");
    if let Some(accept) = accept {
        request = request.header(header::ACCEPT, accept);
    }
    let response = asker.client().send(request.body(()).unwrap()).await.unwrap();
    let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (content_type, String::from_utf8(text.to_vec()).unwrap())
}

const OPEN: &str = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";

#[tokio::test]
async fn a_traced_call_is_an_exemplar_of_its_routes_latency() {
    let builder = Mesh::builder().name("me.ns:1").dns(false).admin("127.0.0.1:0".parse().unwrap());
    let mesh = builder.trace(TraceSettings::record()).build().unwrap();
    let inner = tower::service_fn(|request: Request<_>| async move {
        let traced = request.headers()["traceparent"].to_str().unwrap().to_owned();
        Ok::<_, Error>(Response::new(Full::<Bytes>::from(traced)))
    });
    let request = Request::get("http://up.ns/").body(Full::<Bytes>::default()).unwrap();
    let response = mesh.layer().layer(inner).oneshot(request).await.unwrap();
    let parent = response.into_body().collect().await.unwrap().to_bytes();
    let trace = std::str::from_utf8(&parent).unwrap().split('-').nth(1).unwrap().to_owned();

    let (content_type, open) = metrics(&mesh, Some(OPEN)).await;
    assert!(content_type.starts_with("application/openmetrics-text; version=1.0.0"), "{content_type}");
    assert!(open.ends_with("# EOF\n") && !open.contains("\n\n"));
    for family in
        ["route_response_latency_ms_bucket{", "outbound_http_route_request_duration_seconds_bucket{"]
    {
        let lines = open.lines().filter(|line| line.starts_with(family) && line.contains(" # {trace_id="));
        let told: Vec<&str> = lines.filter(|line| line.contains(&trace)).collect();
        assert_eq!(told.len(), 1, "{family}\n{open}");
    }
    assert!(open.contains("# TYPE route_request counter\n") && open.contains("\nroute_request_total{"));

    let (content_type, classic) = metrics(&mesh, None).await;
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    assert!(!classic.contains("trace_id") && !classic.contains("# EOF"));
}
