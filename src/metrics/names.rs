//! Floor 1: the names of the metric families, and their buckets.

/// Requests of a route, outside retries (*effective*).
pub const ROUTE_REQUEST: &str = "route_request_total";
/// Responses of a route, outside retries.
pub const ROUTE_RESPONSE: &str = "route_response_total";
/// Latency of a route in milliseconds, outside retries.
pub const ROUTE_LATENCY: &str = "route_response_latency_ms";
/// Attempts of a route, inside retries (*actual*).
pub const ROUTE_ACTUAL_REQUEST: &str = "route_actual_request_total";
/// Responses to attempts of a route.
pub const ROUTE_ACTUAL_RESPONSE: &str = "route_actual_response_total";
/// Failures of a route that could be tried again; with `skipped` those that were not.
pub const ROUTE_RETRYABLE: &str = "route_retryable_total";
/// Requests to an endpoint (outbound) or to the application (inbound).
pub const REQUEST: &str = "request_total";
/// Responses of an endpoint or of the application.
pub const RESPONSE: &str = "response_total";
/// Latency of an endpoint or of the application in milliseconds.
pub const LATENCY: &str = "response_latency_ms";

/// The upper bounds of Linkerd's latency buckets, in milliseconds (linkerd2-proxy `linkerd/metrics/src/latency.rs`).
pub const LATENCY_BUCKETS_MS: [f64; 25] = [
    1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 1000.0, 2000.0,
    3000.0, 4000.0, 5000.0, 10000.0, 20000.0, 30000.0, 40000.0, 50000.0,
];

/// Whether traffic leaves this process or enters it; the label `direction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It enters.
    Inbound,
    /// It leaves.
    Outbound,
}

impl Direction {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}
