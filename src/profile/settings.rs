//! Floor 1: the settings of a route or a service. Every `Option` is "not said"; no value here is invalid.

use crate::profile::matching::TextMatch;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// A share of something: `numerator / denominator`, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Share {
    /// The parts taken.
    pub numerator: u32,
    /// The parts there are; never 0.
    pub denominator: u32,
}

/// A time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Limit {
    /// Not said: the dialect's default holds.
    #[default]
    Unset,
    /// Said to be none (`0s`).
    Disabled,
    /// This long.
    After(Duration),
}

impl Limit {
    /// The time, if this is one.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::After(time) => Some(time),
            Self::Unset | Self::Disabled => None,
        }
    }

    /// This limit, or `other` when nothing was said.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self == Self::Unset { other } else { self }
    }
}

/// How long the parts of a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// All attempts together, from the call to the end of the response (Gateway API `timeouts.request`).
    pub request: Limit,
    /// From the call, over all attempts, to the response's headers only (ServiceProfile `timeout`).
    pub response_headers: Limit,
    /// From the end of the request's body to the end of the response (Linkerd `timeout.linkerd.io/response`).
    pub response: Limit,
    /// Between two frames in either direction (Linkerd `timeout.linkerd.io/idle`).
    pub idle: Limit,
    /// One attempt, to its response's headers (Gateway API `timeouts.backendRequest`, Linkerd
    /// `retry.linkerd.io/timeout`).
    pub attempt: Limit,
    /// Opening a connection.
    pub connect: Limit,
}

/// Which ends of an attempt are worth another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// Whatever the route's response classes (or, without one, the default classifier) call a failure.
    pub failures: bool,
    /// These HTTP statuses.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// These gRPC codes, in headers or in trailers.
    pub grpc: Vec<u8>,
    /// The connection could not be opened.
    pub connect_failure: bool,
    /// The peer refused the stream, or closed before it took the request: it certainly did not process it.
    pub refused: bool,
    /// The connection or stream was reset before response headers, processed or not.
    pub reset: bool,
    /// The attempt's own timeout passed.
    pub attempt_timeout: bool,
}

/// The wait before another attempt: full jitter between 0 and `min(max, base · 2^n)` unless `jitter` is less.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackoffSettings {
    /// The first upper bound. Default 25 ms (Envoy, Linkerd).
    pub base: Duration,
    /// The last upper bound. Default 250 ms (ten times the base, as Envoy has it).
    pub max: Duration,
    /// The part of the wait that is random, 0 to 1. Default 1, full jitter (AWS, "Exponential Backoff And Jitter").
    pub jitter: f32,
}

impl Default for BackoffSettings {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250), jitter: 1.0 }
    }
}

/// What becomes of the marks by which hops keep their retries from multiplying.
///
/// A repeated attempt carries its number, and a failure that was repeated in vain says so; who reads either does not
/// repeat it again. So of a chain of hops only the one nearest to the failure retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HopMarks {
    /// Neither written nor read.
    Off,
    /// Written, and believed.
    #[default]
    Trust,
    /// Written; those of others are taken away and not believed. For the edge of a mesh.
    Strip,
}

/// When to send a second copy of a slow request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HedgeSettings {
    /// After this fixed time.
    After(Duration),
    /// After this quantile of the route's recent latencies, in thousandths (950 is p95).
    Quantile(u16),
}

/// Whether, when and how often an attempt is repeated.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RetrySettings {
    /// Attempts in all, the first one included; at most 10 whatever is said. `None`: 3, or as the dialect has it.
    pub attempts_max: Option<u32>,
    /// Which ends are tried again.
    pub on: RetryOn,
    /// The wait between attempts; `None` is no wait.
    pub backoff: Option<BackoffSettings>,
    /// Whether the operator says that this route may be repeated whatever its method.
    pub idempotent: bool,
    /// A budget of this route's own; otherwise it shares its service's.
    pub budget: Option<BudgetSettings>,
    /// When to hedge.
    pub hedge: Option<HedgeSettings>,
    /// The most body bytes kept for a repetition; beyond it the request is sent once. Default 64 KiB (Linkerd).
    pub body_bytes_max: Option<usize>,
    /// How attempts are marked for the next hops.
    pub hops: HopMarks,
    /// How long an attempt may take, from the end of the request's body to its response's headers, while another may
    /// follow; the last one is not limited by it (Linkerd `retry.linkerd.io/timeout`).
    pub patience: Option<Duration>,
}

/// What bounds all retries of a service together. There is no retry without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BudgetSettings {
    /// At most `ratio` of the requests of the last `ttl`, plus a floor (Linkerd, Finagle, Gateway API).
    Windowed {
        /// Retries per request, in millionths: 0.2 is 200 000.
        ratio_ppm: u32,
        /// Retries always allowed each second.
        min_per_second: u32,
        /// How long a request counts; 1 s to 60 s.
        ttl: Duration,
    },
    /// At most `ratio` of what went well in the last second, plus a small bucket that time fills (the crate's own).
    Recent {
        /// Retries per success, in millionths: 0.2 is 200 000.
        ratio_ppm: u32,
        /// What time adds to the small bucket each second.
        min_per_second: u32,
        /// What the small bucket holds.
        burst: u32,
    },
    /// At most this share of what is in flight, or a floor if that is more (Envoy, Istio).
    ActiveShare {
        /// Retries in flight per request in flight, in millionths.
        ratio_ppm: u32,
        /// Retries in flight that are always allowed.
        min_concurrent: u32,
    },
    /// A bucket that successes fill by `ratio` and failures drain by 1; retries while more than half full
    /// (gRPC A6 `retryThrottling`).
    TokenBucket {
        /// The size of the bucket, in thousandths of a token.
        max_milli: u32,
        /// What a success adds, in thousandths of a token.
        ratio_milli: u32,
    },
}

/// Which replica of a service gets a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BalancerSettings {
    /// The rule; `None`: the crate's default.
    pub algorithm: Option<Algorithm>,
    /// The first latency assumed of an endpoint. Default 30 ms (Linkerd).
    pub default_rtt: Option<Duration>,
    /// How fast an old latency is forgotten. Default 10 s (Finagle, Linkerd).
    pub decay: Option<Duration>,
    /// How long a new endpoint gets less than its share. `None`: no slow start.
    pub slow_start: Option<Duration>,
    /// The most endpoints this client uses, chosen by rendezvous hashing; `None`: all.
    pub subset: Option<u32>,
    /// The least endpoints that stay in use however many are broken. Default 1.
    pub min_ready: Option<u32>,
    /// Below this percentage of usable endpoints all are used again (Envoy's panic threshold). Default 0, off.
    pub panic_percent: Option<u8>,
    /// Where the caller is, and how traffic prefers its own zone.
    pub locality: Option<LocalitySettings>,
    /// What is hashed, for the rules that hash; the first key that the request has decides.
    pub hash: Vec<HashKey>,
    /// Whether what endpoints tell of their load (ORCA's `endpoint-load-metrics`) counts beside what this client knows.
    pub reports: bool,
}

/// The rules for choosing a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The crate's own: recently freed endpoints and a random one, least `L^1.5 · (in flight + 1)` (docs/balancing.md).
    RecentlyFreed,
    /// Peak EWMA latency times requests in flight, the better of two random ones (Finagle, Linkerd).
    PeakEwma,
    /// Least requests in flight, of this many random ones (gRPC A48, Envoy).
    LeastRequest {
        /// How many are compared, 2 to 10.
        choices: u8,
    },
    /// One after the other, by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// A hash ring of at least this many entries (Envoy, gRPC A42).
    RingHash {
        /// The least entries; 1024 in Envoy.
        entries_min: u32,
    },
    /// Maglev's table of this prime size (Google, NSDI'16); 65537 in Envoy.
    Maglev {
        /// The table's size, a prime.
        table: u32,
    },
}

/// What a hashing rule hashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// A header's value.
    Header(Arc<str>),
    /// A cookie's value; with a `ttl` the cookie is made when the request has none.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Its path attribute.
        path: Option<Arc<str>>,
        /// How long it lives; `None`: it is not made.
        ttl: Option<Duration>,
    },
    /// A query parameter's value.
    Query(Arc<str>),
    /// The path.
    Path,
    /// The caller's address.
    Source,
}

/// How traffic prefers its own zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalitySettings {
    /// The zone this process is in.
    pub zone: Arc<str>,
    /// Usable endpoints of a nearer priority below this percentage let traffic overflow to the next. Default 70
    /// (100 / Envoy's overprovisioning factor 1.4).
    pub overflow_below_percent: u8,
}

/// When an endpoint is left alone (circuit breaking, outlier detection, failure accrual).
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    /// The detectors; any of them trips the breaker.
    pub detectors: Vec<Detector>,
    /// The first time an endpoint is left alone. Default 1 s (Linkerd).
    pub ejection_base: Duration,
    /// The longest time. Default 60 s (Linkerd).
    pub ejection_max: Duration,
    /// The random part added, as a share of the time. Default 0.5 (Linkerd).
    pub jitter: f32,
    /// How the time grows.
    pub growth: Growth,
    /// The most endpoints that may be out at once, in percent. Default 50; `min_ready` of the balancer holds too.
    pub ejected_percent_max: u8,
    /// How an endpoint comes back.
    pub recovery: Recovery,
    /// Whether a `Retry-After` or gRPC pushback lengthens the time.
    pub honour_retry_after: bool,
    /// What of the detectors counts what is turned away because there is too much to do.
    pub overload: Overload,
    /// Whether failures are counted for each route apart, so that one bad route does not eject the endpoint.
    pub per_route: bool,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            detectors: vec![Detector::Consecutive { class: FailureClass::Any, threshold: 7 }],
            ejection_base: Duration::from_secs(1),
            ejection_max: Duration::from_secs(60),
            jitter: 0.5,
            growth: Growth::Exponential,
            ejected_percent_max: 50,
            recovery: Recovery::Probe,
            honour_retry_after: false,
            overload: Overload::Rate,
            per_route: false,
        }
    }
}

/// How the time of an ejection grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Growth {
    /// `base · 2^n` (Linkerd).
    Exponential,
    /// `base · n` (Envoy, gRPC A50).
    Linear,
}

/// How an ejected endpoint comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// One request is tried first; its end decides (Linkerd).
    Probe,
    /// All at once when the time is over (Envoy, gRPC A50).
    Timer,
}

/// Who counts what an endpoint turns away because it has too much to do: HTTP 429, gRPC RESOURCE_EXHAUSTED.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overload {
    /// Success rates alone (Linkerd).
    Rate,
    /// Every detector of any failure.
    Count,
    /// Nobody: it is the answer of one who is well.
    Ignore,
}

/// What makes an endpoint suspect.
#[derive(Debug, Clone, PartialEq)]
pub enum Detector {
    /// So many failures one after the other.
    Consecutive {
        /// Which failures.
        class: FailureClass,
        /// How many; at least 1.
        threshold: u32,
    },
    /// The success rate over a window fell below a threshold (Linkerd `unified`).
    SuccessRate {
        /// The least rate, 0 to 1.
        threshold: f64,
        /// The window, in ten buckets.
        window: Duration,
        /// The least requests in the window.
        min_requests: u32,
    },
    /// The success rate is further below the peers' mean than so many standard deviations (gRPC A50, Envoy).
    Deviation {
        /// Standard deviations, in thousandths.
        factor_milli: u32,
        /// The least endpoints with enough requests.
        min_hosts: u32,
        /// The least requests an interval.
        min_requests: u32,
        /// The interval.
        interval: Duration,
    },
    /// The share of failures in an interval reached a threshold (gRPC A50).
    FailurePercent {
        /// The threshold in percent.
        threshold: u8,
        /// The least endpoints with enough requests.
        min_hosts: u32,
        /// The least requests an interval.
        min_requests: u32,
        /// The interval.
        interval: Duration,
    },
}

/// Which failures a detector counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// Whatever the classifier calls a failure, transport errors included.
    Any,
    /// HTTP 5xx and transport errors (Envoy `consecutive_5xx`).
    Server,
    /// HTTP 502, 503, 504 and transport errors (Envoy `consecutive_gateway_failure`).
    Gateway,
    /// Transport errors only (Envoy `consecutive_local_origin_failure`).
    Local,
}

/// How much at once. `None` is the crate's default, which is always finite.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests in flight to the service.
    pub requests_max: Option<u32>,
    /// Requests that wait for a place.
    pub pending_max: Option<u32>,
    /// Connections to one endpoint.
    pub connections_max: Option<u32>,
    /// Streams at once over one HTTP/2 connection, if its peer allows as many.
    pub streams_max: Option<u32>,
    /// Requests over one connection before it is closed.
    pub requests_per_connection_max: Option<u32>,
    /// How long an unused connection is kept.
    pub idle: Option<Duration>,
    /// How long a connection is used before a new one takes its place.
    pub connection_age_max: Option<Duration>,
    /// Whether the limit follows the measured latency.
    pub adaptive: Option<Adaptive>,
    /// Requests each second, per key.
    pub rates: Vec<RateLimit>,
}

/// The rules for a limit that follows latency (Netflix `concurrency-limits`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Adaptive {
    /// Gradient2.
    Gradient2,
    /// Vegas.
    Vegas,
}

/// A rate limit (GCRA).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// What is counted together.
    pub scope: RateScope,
    /// Requests per `per`.
    pub requests: u32,
    /// The time that `requests` are for; 1 s in Linkerd.
    pub per: Duration,
    /// How many may come at once; `None`: `requests`.
    pub burst: Option<u32>,
}

/// What a rate limit counts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateScope {
    /// All requests.
    Total,
    /// Each client identity apart; those without one together.
    Identity,
    /// These client identities together.
    Override(Vec<Arc<str>>),
    /// Each value of a key apart.
    Key(HashKey),
}

/// How a client speaks TLS to a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientTls {
    /// Whether and how.
    pub mode: TlsMode,
    /// The name sent in the handshake; `None`: the host.
    pub sni: Option<Arc<str>>,
    /// The identities accepted of the peer; empty: those that discovery names, and in mode `Simple` the name sent.
    pub identities: Vec<TextMatch>,
    /// In mode `Simple`, the authorities that vouch for the peer, as PEM; `None`: the system's.
    pub roots: Option<Arc<str>>,
}

/// Whether a client speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TlsMode {
    /// Mutual TLS when we have an identity and discovery names the peer's (Linkerd, Istio's auto mTLS).
    #[default]
    Auto,
    /// Never.
    Off,
    /// Mutual TLS with workload identities, or no request.
    Mesh,
    /// TLS to a server outside the mesh, verified by `roots`, without a certificate of ours.
    Simple,
}

impl TlsMode {
    /// Whether no request may be sent without TLS.
    pub fn is_required(self) -> bool {
        matches!(self, Self::Mesh | Self::Simple)
    }
}

/// An objective for a route or a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objective {
    /// The share of requests that succeed, in millionths: 99.9 % is 999 000.
    pub availability_ppm: Option<u32>,
    /// The latency that `latency_share_ppm` of requests stay within.
    pub latency: Option<Duration>,
    /// The share for `latency`, in millionths.
    pub latency_share_ppm: u32,
    /// The window both are judged over.
    pub window: Duration,
}
