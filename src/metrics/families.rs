//! Floor 1: every metric family: name, kind, labels, buckets and meaning. `docs/metrics.md` is held to it by a test.

/// What the numbers of a family are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts by size.
    Histogram(Scale, &'static [f64]),
}

/// What a histogram of durations is told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
}

impl Scale {
    /// So many of it in one second.
    pub fn per_second(self) -> f64 {
        match self {
            Self::Millis => 1e3,
            Self::Seconds => 1.0,
        }
    }
}

/// A metric family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// The name, as Prometheus shows it.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// Every label that a series may have, apart by spaces; `dst_*` stands for the labels of discovery.
    pub labels: &'static str,
    /// What is counted, and when.
    pub help: &'static str,
}

/// Linkerd's latency buckets in milliseconds (linkerd2-proxy `linkerd/metrics/src/latency.rs`).
pub const LATENCY_MS: &[f64] = &[
    1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 1000.0, 2000.0,
    3000.0, 4000.0, 5000.0, 10000.0, 20000.0, 30000.0, 40000.0, 50000.0,
];
/// Linkerd's buckets of requests of policy routes, in seconds (linkerd.md §8.5).
pub const REQUEST_SECONDS: &[f64] = &[0.05, 0.5, 1.0, 10.0];
/// Linkerd's buckets of responses of backends, and of requests that arrive, in seconds (linkerd.md §8.5).
pub const RESPONSE_SECONDS: &[f64] = &[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];
/// Linkerd's buckets of looking what a connection speaks, in seconds (linkerd.md §8.5).
pub const DETECT_BUCKETS: &[f64] = &[0.001, 0.1];
/// Linkerd's buckets of time in a queue, in seconds (linkerd.md §8.5).
pub const QUEUE_SECONDS: &[f64] = &[0.0005, 0.005, 0.05, 0.5, 1.0, 3.0];

macro_rules! endpoint {
    ($($more:literal)?) => {
        concat!("direction authority target_addr target_ip target_port tls no_tls_reason server_id dst_*", $($more)?)
    };
}
/// What more is known of what arrives.
macro_rules! arrived {
    ($($more:literal)?) => {
        concat!(" client_id srv_group srv_kind srv_name srv_port route_group route_kind route_name authz_group authz_kind authz_name", $($more)?)
    };
}
macro_rules! judged {
    ($($more:literal)?) => {
        concat!("target_addr target_ip target_port tls no_tls_reason client_id srv_group srv_kind srv_name srv_port", $($more,)? " authz_group authz_kind authz_name")
    };
}
macro_rules! sp_route {
    ($($more:literal)?) => { concat!("direction dst rt_route", $($more)?) };
}
macro_rules! parent {
    ($($more:literal)?) => {
        concat!("parent_group parent_kind parent_namespace parent_name parent_port parent_section_name", $($more)?)
    };
}
macro_rules! policy_route {
    ($($more:literal)?) => {
        concat!(parent!(), " route_group route_kind route_namespace route_name hostname", $($more)?)
    };
}
macro_rules! policy_backend {
    ($($more:literal)?) => {
        concat!(
            policy_route!(),
            " backend_group backend_kind backend_namespace backend_name backend_port backend_section_name",
            $($more)?
        )
    };
}
macro_rules! in_route {
    ($($more:literal)?) => {
        concat!("parent_group parent_kind parent_name parent_port route_group route_kind route_name", $($more)?)
    };
}
macro_rules! tcp {
    ($($more:literal)?) => {
        concat!("direction peer target_addr target_ip target_port tls no_tls_reason server_id client_id srv_group srv_kind srv_name srv_port dst_*", $($more)?)
    };
}

macro_rules! families {
    ($($id:ident = $name:literal, $kind:expr, $labels:expr, $help:literal;)*) => {
        $(#[doc = concat!("`", $name, "`: ", $help, ".")]
        pub const $id: Family = Family { name: $name, kind: $kind, labels: $labels, help: $help };)*
        /// All families.
        pub const ALL: &[Family] = &[$($id),*];
    };
}

use Kind::{Counter, Gauge, Histogram};
use Scale::{Millis, Seconds};

families! {
    // Linkerd's, by endpoint (linkerd.md §8.2)
    REQUEST = "request_total", Counter, concat!(endpoint!(), arrived!()), "Attempts sent to an endpoint; inbound: requests that arrived";
    RESPONSE = "response_total", Counter, concat!(endpoint!(), arrived!(" status_code classification grpc_status error")),
        "Attempts at an endpoint that ended, when the response's body has ended; inbound: requests answered";
    LATENCY = "response_latency_ms", Histogram(Millis, LATENCY_MS), concat!(endpoint!(), arrived!()),
        "From the attempt to its response's headers, or its end";
    // Linkerd's, by route of a ServiceProfile
    ROUTE_REQUEST = "route_request_total", Counter, sp_route!(), "Calls of a route, outside retries";
    ROUTE_RESPONSE = "route_response_total", Counter, sp_route!(" status_code classification grpc_status error"),
        "Calls of a route that ended, outside retries";
    ROUTE_LATENCY = "route_response_latency_ms", Histogram(Millis, LATENCY_MS), sp_route!(),
        "From the call to its response's first frame, or its end, outside retries";
    ROUTE_ACTUAL_REQUEST = "route_actual_request_total", Counter, sp_route!(), "Attempts of a route, retries included";
    ROUTE_ACTUAL_RESPONSE = "route_actual_response_total", Counter,
        sp_route!(" status_code classification grpc_status error"), "Attempts of a route that ended, retries included";
    ROUTE_RETRYABLE = "route_retryable_total", Counter, sp_route!(" skipped"),
        "Failures that were to be tried again; with skipped=\"no_budget\" those that the budget refused";
    // Linkerd's, by route and backend of a policy (§8.5)
    OUT_HTTP_DURATION = "outbound_http_route_request_duration_seconds", Histogram(Seconds, REQUEST_SECONDS),
        policy_route!(), "From the call to its response's first frame, or its end";
    OUT_HTTP_STATUSES = "outbound_http_route_request_statuses_total", Counter, policy_route!(" http_status error"),
        "Calls that ended, those that their callers gave up (error=\"CANCEL\") included";
    OUT_HTTP_RETRIES = "outbound_http_route_retry_requests_total", Counter, policy_route!(), "Retries sent";
    OUT_HTTP_RETRY_SUCCESSES = "outbound_http_route_retry_successes_total", Counter, policy_route!(),
        "Retries that needed no further one";
    OUT_HTTP_RETRY_LIMIT = "outbound_http_route_retry_limit_exceeded_total", Counter, policy_route!(),
        "Failures that were to be tried again after the last attempt";
    OUT_HTTP_RETRY_OVERFLOW = "outbound_http_route_retry_overflow_total", Counter, policy_route!(),
        "Failures that were to be tried again and that the budget refused";
    OUT_HTTP_BACKEND_REQUESTS = "outbound_http_route_backend_requests_total", Counter, policy_backend!(),
        "Attempts sent to a backend";
    OUT_HTTP_BACKEND_DURATION = "outbound_http_route_backend_response_duration_seconds",
        Histogram(Seconds, RESPONSE_SECONDS), policy_backend!(), "From the attempt to its response's headers, or its end";
    OUT_HTTP_BACKEND_STATUSES = "outbound_http_route_backend_response_statuses_total", Counter,
        policy_backend!(" http_status error"), "Attempts at a backend that ended, those given up included";
    OUT_GRPC_DURATION = "outbound_grpc_route_request_duration_seconds", Histogram(Seconds, REQUEST_SECONDS),
        policy_route!(), "From the call to its response's first frame, or its end";
    OUT_GRPC_STATUSES = "outbound_grpc_route_request_statuses_total", Counter, policy_route!(" grpc_status error"),
        "Calls that ended, those that their callers gave up (error=\"CANCEL\") included";
    OUT_GRPC_RETRIES = "outbound_grpc_route_retry_requests_total", Counter, policy_route!(), "Retries sent";
    OUT_GRPC_RETRY_SUCCESSES = "outbound_grpc_route_retry_successes_total", Counter, policy_route!(),
        "Retries that needed no further one";
    OUT_GRPC_RETRY_LIMIT = "outbound_grpc_route_retry_limit_exceeded_total", Counter, policy_route!(),
        "Failures that were to be tried again after the last attempt";
    OUT_GRPC_RETRY_OVERFLOW = "outbound_grpc_route_retry_overflow_total", Counter, policy_route!(),
        "Failures that were to be tried again and that the budget refused";
    OUT_GRPC_BACKEND_REQUESTS = "outbound_grpc_route_backend_requests_total", Counter, policy_backend!(),
        "Attempts sent to a backend";
    OUT_GRPC_BACKEND_DURATION = "outbound_grpc_route_backend_response_duration_seconds",
        Histogram(Seconds, RESPONSE_SECONDS), policy_backend!(), "From the attempt to its response's headers, or its end";
    OUT_GRPC_BACKEND_STATUSES = "outbound_grpc_route_backend_response_statuses_total", Counter,
        policy_backend!(" grpc_status error"), "Attempts at a backend that ended, those given up included";
    // Linkerd's, of what arrives
    IN_HTTP_REQUESTS = "inbound_http_requests_total", Counter, in_route!(), "Requests that arrived";
    IN_HTTP_STATUSES = "inbound_http_statuses_total", Counter, in_route!(" status"), "Requests that were answered";
    IN_HTTP_DURATION = "inbound_http_request_duration_seconds", Histogram(Seconds, RESPONSE_SECONDS), in_route!(),
        "From the request's head to its response's first frame, or its end";
    IN_GRPC_REQUESTS = "inbound_grpc_requests_total", Counter, in_route!(), "Requests that arrived";
    IN_GRPC_STATUSES = "inbound_grpc_statuses_total", Counter, in_route!(" status"), "Requests that were answered";
    IN_GRPC_DURATION = "inbound_grpc_request_duration_seconds", Histogram(Seconds, RESPONSE_SECONDS), in_route!(),
        "From the request's head to its response's first frame, or its end";
    OUT_HTTP_ERRORS = "outbound_http_errors_total", Counter, "error", "Calls that ended without a response, by Linkerd's words";
    IN_HTTP_ERRORS = "inbound_http_errors_total", Counter,
        "error target_addr target_ip target_port srv_group srv_kind srv_name srv_port",
        "Requests that this process could not answer, refusals by policy excluded, by Linkerd's words";
    // Linkerd's, of authorization and limits (§8.4)
    AUTHZ_ALLOW = "inbound_http_authz_allow_total", Counter, judged!(" route_group route_kind route_name"), "Requests that a rule let in";
    AUTHZ_DENY = "inbound_http_authz_deny_total", Counter, judged!(" route_group route_kind route_name"), "Requests that a rule refused";
    ROUTE_NOT_FOUND = "inbound_http_route_not_found_total", Counter, judged!(),
        "Requests that met no route and were refused";
    RATE_LIMITED = "inbound_http_local_ratelimit_total", Counter,
        "ratelimit_group ratelimit_kind ratelimit_name ratelimit_scope", "Requests that a rate limit refused";
    // Linkerd's, of connections (§8.3)
    TCP_OPEN = "tcp_open_total", Counter, tcp!(), "Connections opened (peer=\"dst\") or accepted (peer=\"src\")";
    TCP_OPEN_NOW = "tcp_open_connections", Gauge, tcp!(), "Connections that are open";
    TCP_CLOSE = "tcp_close_total", Counter, tcp!(" errno"), "Connections closed; errno=\"\" is an end without an error";
    TCP_READ = "tcp_read_bytes_total", Counter, tcp!(), "Bytes read, inside TLS";
    TCP_WRITE = "tcp_write_bytes_total", Counter, tcp!(), "Bytes written, inside TLS";
    TRANSFER_COST = "outbound_tcp_transfer_cost_bytes_total", Counter, "op zone_locality",
        "Bytes to and from endpoints, inside TLS, by whether they are in the zone that their service's profile says is ours";
    IN_TCP_ERRORS = "inbound_tcp_errors_total", Counter, "error target_addr target_ip target_port srv_group srv_kind srv_name srv_port",
        "Connections whose handshake failed or took too long";
    DETECTED = "inbound_tcp_detect_http_results_total", Counter, "result srv_group srv_kind srv_name srv_port",
        "Accepted connections without ALPN that were looked at for what they speak";
    DETECT_SECONDS = "inbound_tcp_detect_http_duration_seconds", Histogram(Seconds, DETECT_BUCKETS),
        "srv_group srv_kind srv_name srv_port", "How long that took, to the first bytes";
    // Linkerd's, of balancers (§8.5)
    BALANCER_ENDPOINTS = "outbound_http_balancer_endpoints", Gauge, policy_backend!(" endpoint_state"),
        "Endpoints that may be picked (ready), and those that their breaker, weight or drain keeps out (pending)";
    BALANCER_P2C = "outbound_http_balancer_p2c_endpoints", Gauge, policy_backend!(), "Endpoints in the balancer";
    BALANCER_UPDATES = "outbound_http_balancer_p2c_updates_total", Counter, policy_backend!(" op"),
        "Endpoints that came (op=\"Add\") or went (op=\"Remove\")";
    // Linkerd's, of the own identity (§8.5)
    CERT_EXPIRY = "control_identity_cert_expiration_timestamp_seconds", Gauge, "",
        "When the certificate of this process ends, in seconds since 1970";
    CERT_REFRESH = "control_identity_cert_refresh_timestamp_seconds", Gauge, "",
        "When the certificate of this process was last taken over, in seconds since 1970";
    CERT_REFRESHES = "control_identity_cert_refreshes_total", Counter, "", "Certificates taken over";
    // Ours, of the own identity and TLS
    CERT_LEFT = "control_identity_cert_seconds_left", Gauge, "", "Time until the certificate of this process ends";
    CERT_ALARM = "control_identity_cert_alarm", Gauge, "level", "1 at the level at which the certificate is not being renewed";
    ANCHOR_LEFT = "control_identity_anchor_seconds_left", Gauge, "trust_domain",
        "Time until the first trust anchor of a domain ends; below 0 it has";
    HANDSHAKES = "tls_handshakes_total", Counter, "direction", "TLS handshakes that succeeded";
    HANDSHAKES_FAILED = "tls_handshake_failures_total", Counter, "direction reason", "TLS handshakes that failed";
    RETIRED = "tls_connections_retired_total", Counter, "reason",
        "Connections taken out of use because what secured them holds no more";
    REJECTED = "config_rejected_total", Counter, "source reason",
        "Certificates, anchors and policies that were not taken over; the last good ones stay";
    // Our own
    CANCELLED = "enmesh_cancelled_total", Counter, sp_route!(), "Calls whose callers went away before their end was known";
    ENDPOINT_CANCELLED = "enmesh_endpoint_cancelled_total", Counter, endpoint!(),
        "Attempts whose callers went away before their end was known";
    IN_FLIGHT = "enmesh_in_flight", Gauge, sp_route!(), "Calls under way, to the end of their response's body";
    BUDGET_LEVEL = "enmesh_retry_budget_level", Gauge, "dst", "Retries that the service's budget would grant at once";
    RETRY_SKIPPED = "enmesh_retry_skipped_total", Counter, sp_route!(" reason"),
        "Failures that were to be tried again and were not, by what forbade it";
    BREAKER_SHUT = "enmesh_breaker_shut_endpoints", Gauge, "dst", "Endpoints that their breaker leaves alone";
    BREAKER_EVENTS = "enmesh_breaker_events_total", Counter, "dst event reason",
        "Endpoints left alone (event=\"shut\", with the reason), tried (probed) and used again (opened)";
    BREAKER_SPARED = "enmesh_breaker_spared_total", Counter, "dst",
        "Endpoints that a breaker would have left alone, had not too many been so already";
    PICKS = "enmesh_balancer_picks_total", Counter, "dst reason", "Picks that were no usual choice among open endpoints: a probe, all shut ones too (panic), or none (breaker_open, no_endpoints)";
    DEADLINE_LEFT = "enmesh_deadline_left_seconds", Histogram(Seconds, LEFT_SECONDS), sp_route!(),
        "What was left of the deadline of a call that has one, when its response's headers had come";
    HEDGES = "enmesh_hedges_total", Counter, sp_route!(" result"), "Second copies of slow requests, and which copy won";
    FAULTS = "enmesh_faults_total", Counter, sp_route!(" kind"), "Faults injected on purpose";
    MIRRORED = "enmesh_mirrored_total", Counter, "dst rt_route result", "Copies of requests that were due: sent, or skipped for want of room or because their body was too long or broke off";
    LIMIT_LEVEL = "enmesh_limit_level", Gauge, "dst limit", "How many requests a limit lets in at once";
    LIMIT_IN_FLIGHT = "enmesh_limit_in_flight", Gauge, "dst limit", "Requests that a limit has let in and that have not ended";
    LIMIT_SHED = "enmesh_limit_shed_total", Counter, "dst limit reason", "Requests that a limit refused";
    LIMIT_QUEUE = "enmesh_limit_queue_seconds", Histogram(Seconds, QUEUE_SECONDS), "dst limit", "Time in the queue of a limit";
    CONFIG_GENERATION = "enmesh_config_generation", Gauge, "", "Updates of configuration or endpoints that changed anything";
    CONFIG_REJECTED = "enmesh_source_rejected_total", Counter, "source", "Inputs that a source refused; the last good one stays";
    CONFIG_FAULTS = "enmesh_config_faults", Gauge, "dst", "What is wrong with the newest input of a service";
    IDENTITY_EPOCH = "control_identity_epoch", Gauge, "", "The number of the certificate and anchors in use, from 1";
    IDENTITY_REFUSED = "enmesh_identity_refused_total", Counter, "", "Certificates or anchors that were not taken over";
    CONNECT_FAILURES = "enmesh_connect_failures_total", Counter, "target_addr reason",
        "Connections to an endpoint that could not be opened";
    CONNECT_OVERFLOWS = "enmesh_connect_overflows_total", Counter, "target_addr limit",
        "Requests that were refused since too many waited for a connection, or waited since no more may be opened";
    RESENT = "enmesh_resent_total", Counter, "target_addr",
        "Requests that an endpoint certainly did not process, sent again on another connection";
    SLO_TARGET = "enmesh_slo_objective_ratio", Gauge, sp_route!(" kind"), "The share of calls that an objective wants to be good";
    SLO_CALLS = "enmesh_slo_total", Counter, sp_route!(" kind"), "Calls that an objective judges";
    SLO_BAD = "enmesh_slo_bad_total", Counter, sp_route!(" kind"), "Calls that were not good";
    SLO_LEFT = "enmesh_slo_error_budget_left", Gauge, sp_route!(" kind"),
        "The share of the error budget that is left, as far as this process knows the window; below 0 it is overspent";
    SLO_BURN = "enmesh_slo_burn_rate", Gauge, sp_route!(" kind window"),
        "How fast the error budget burns, as this process saw it since it began: at 1 it is used up when the objective's window ends";
    TAP_OBSERVERS = "enmesh_tap_observers", Gauge, "", "Observers of live requests";
    ACCESS_LOG_DROPPED = "enmesh_access_log_dropped_total", Counter, "", "Lines of the access log that could not be written in time";
    SPANS = "enmesh_spans_total", Counter, "result", "Spans that ended, that the collector took, and that it did not take";
    TAP_DROPPED = "enmesh_tap_dropped_total", Counter, "", "Events that an observer was too slow for";
    SERIES = "enmesh_series", Gauge, "family", "Series of a family that are shown";
    SERIES_OVERFLOW = "enmesh_series_overflow_total", Counter, "family",
        "Times that a series was counted as overflow=\"true\" because its family was full";
    BUILD_INFO = "enmesh_build_info", Gauge, "version", "1, with the version of this crate";
}

/// Buckets of what is left of a deadline, in seconds: a sixth of the usual latencies up to the usual deadlines.
pub const LEFT_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_their_kind() {
        for (at, family) in ALL.iter().enumerate() {
            assert!(ALL[..at].iter().all(|other| other.name != family.name), "{}", family.name);
            let total = family.name.ends_with("_total");
            assert_eq!(total, family.kind == Counter, "{}", family.name);
            assert!(!family.help.ends_with('.'), "{}", family.name);
            if let Histogram(_, buckets) = family.kind {
                assert!(buckets.is_sorted() && buckets[0] > 0.0, "{}", family.name);
            }
        }
    }
}
