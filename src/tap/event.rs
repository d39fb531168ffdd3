//! Floor 2: one event of a live request, as observers get it: Linkerd's own JSON (`linkerd viz tap -o json`), with
//! fields of ours beside.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// The longest path that is told, in bytes; the rest is cut off.
pub const PATH_BYTES_MAX: usize = 2048;

/// One end of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Peer {
    /// Its address.
    pub ip: String,
    /// Its port.
    pub port: u16,
    /// What is known of it: `tls`, `client_id` or `server_id`, `zone`, labels.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl Peer {
    /// The peer at `addr`; unknown is `0.0.0.0:0`.
    pub fn at(addr: Option<SocketAddr>) -> Self {
        let (ip, port) =
            addr.map_or_else(|| ("0.0.0.0".to_owned(), 0), |addr| (addr.ip().to_string(), addr.port()));
        Self { ip, port, metadata: BTreeMap::new() }
    }
}

/// What joins the events of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct StreamId {
    /// The process.
    pub base: u32,
    /// The attempt in it.
    pub stream: u64,
}

/// A time, as protobuf's JSON of Linkerd has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Span {
    /// Whole seconds.
    #[serde(default)]
    pub seconds: u64,
    /// The rest in nanoseconds.
    #[serde(default)]
    pub nanos: u32,
}

impl From<Duration> for Span {
    fn from(time: Duration) -> Self {
        Self { seconds: time.as_secs(), nanos: time.subsec_nanos() }
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::new(span.seconds.min(u64::MAX / 4), span.nanos)
    }
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value, or that it is hidden.
    pub value_str: String,
}

/// A request begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestInit {
    /// Which.
    pub id: StreamId,
    /// Its method.
    pub method: String,
    /// Its scheme.
    pub scheme: String,
    /// The authority it names.
    pub authority: String,
    /// Its path, without the query.
    pub path: String,
    /// Its headers, if they were asked for.
    pub headers: Option<Vec<Header>>,
    /// Why it is sent again; `null` for a first attempt.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A response begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResponseInit {
    /// Of which.
    pub id: StreamId,
    /// How long after the request began.
    pub since_request_init: Span,
    /// Its status.
    pub http_status: u16,
    /// Its headers, if they were asked for.
    pub headers: Option<Vec<Header>>,
}

/// A response, or what should have become one, ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResponseEnd {
    /// Of which.
    pub id: StreamId,
    /// How long after the request began.
    pub since_request_init: Span,
    /// How long after the response began; `null` without a response.
    pub since_response_init: Option<Span>,
    /// The bytes of its body.
    pub response_bytes: u64,
    /// Its trailers, if headers were asked for.
    pub trailers: Option<Vec<Header>>,
    /// The gRPC status, if it is gRPC's.
    pub grpc_status_code: Option<u32>,
    /// HTTP/2's error code, if the stream broke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_error_code: Option<u32>,
    /// `success`, `failure` or `cancelled`.
    #[serde(default)]
    pub outcome: String,
    /// What was seen at the end: `status`, `grpc`, `timeout`, `connect`, `refused`, `reset`, `local`, `dropped`.
    #[serde(default)]
    pub cause: String,
    /// The kind of the error, if there was one: `denied`, `overloaded`, `breaker_open`, …
    #[serde(default)]
    pub error: Option<String>,
    /// The rule that denied it.
    #[serde(default)]
    pub rule: Option<String>,
    /// The rule on trial (`audit`) that would have denied it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Who sends.
    pub source: Peer,
    /// Who answers.
    pub destination: Peer,
    /// The route, `{"route": name}`; `null` for the default one.
    pub route_meta: Option<BTreeMap<String, String>>,
    /// `INBOUND` or `OUTBOUND`.
    pub proxy_direction: String,
    /// The service it is for.
    #[serde(default)]
    pub service: String,
    /// The service that this process is.
    #[serde(default)]
    pub process: String,
    /// What tells this process from others of the same service, as in the admin server's other answers.
    #[serde(default)]
    pub process_id: String,
    /// When, in milliseconds since 1970.
    #[serde(default, rename = "at_ms")]
    pub at_ms: u64,
    /// The number of the attempt, from 0.
    #[serde(default)]
    pub attempt: u32,
    /// What joins the attempts of one call.
    #[serde(default)]
    pub call: String,
    /// The trace, if the request is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Set in the first event of an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_init_event: Option<RequestInit>,
    /// Set in the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_init_event: Option<ResponseInit>,
    /// Set in the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_end_event: Option<ResponseEnd>,
}

/// What is kept of a path.
pub fn cut(path: &str) -> &str {
    let mut end = path.len().min(PATH_BYTES_MAX);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    path.get(..end).unwrap_or_default()
}
