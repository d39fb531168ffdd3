//! Floor 1: writes what is said of a service as a whole, as `enmesh.dev/v1` has it.

use crate::profile::read::service::FAILURE_CLASSES;
use crate::profile::read::service::OVERLOADS;
use crate::profile::read::service::TLS_MODES;
use crate::profile::settings::Adaptive;
use crate::profile::settings::Algorithm;
use crate::profile::settings::BalancerSettings;
use crate::profile::settings::BreakerSettings;
use crate::profile::settings::ClientTls;
use crate::profile::settings::Detector;
use crate::profile::settings::Growth;
use crate::profile::settings::Limits;
use crate::profile::settings::Objective;
use crate::profile::settings::Recovery;
use crate::profile::settings::TlsMode;
use crate::profile::write::condition;
use crate::profile::write::settings;
use crate::profile::write::tree;
use crate::profile::write::tree::Tree;
use serde_json::Value;

/// `balancer`.
pub(crate) fn balancer(balancer: &BalancerSettings) -> Tree {
    let tree = match balancer.algorithm {
        None => Tree::default(),
        Some(algorithm) => self::algorithm(algorithm),
    };
    let locality = balancer.locality.as_ref().map(|locality| {
        Tree::default()
            .with("zone", &*locality.zone)
            .with("overflowBelowPercent", locality.overflow_below_percent)
    });
    tree.maybe("defaultRtt", balancer.default_rtt.map(tree::time))
        .maybe("decay", balancer.decay.map(tree::time))
        .maybe("slowStart", balancer.slow_start.map(tree::time))
        .maybe("subset", balancer.subset)
        .maybe("minReady", balancer.min_ready)
        .maybe("panicPercent", balancer.panic_percent)
        .maybe("locality", locality)
        .list("hash", settings::hash_keys(&balancer.hash))
        .flag("reports", balancer.reports)
}

fn algorithm(algorithm: Algorithm) -> Tree {
    let named = |name: &str| Tree::default().with("algorithm", name);
    match algorithm {
        Algorithm::RecentlyFreed => named("RecentlyFreed"),
        Algorithm::PeakEwma => named("PeakEwma"),
        Algorithm::LeastRequest { choices } => named("LeastRequest").with("choices", choices),
        Algorithm::RoundRobin => named("RoundRobin"),
        Algorithm::Random => named("Random"),
        Algorithm::RingHash { entries_min } => named("RingHash").with("entriesMin", entries_min),
        Algorithm::Maglev { table } => named("Maglev").with("tableSize", table),
    }
}

/// `failureAccrual`, with every value written out.
pub(crate) fn breaker(breaker: &BreakerSettings) -> Value {
    let growth = match breaker.growth {
        Growth::Exponential => "Exponential",
        Growth::Linear => "Linear",
    };
    let recovery = match breaker.recovery {
        Recovery::Probe => "Probe",
        Recovery::Timer => "Timer",
    };
    Tree::default()
        .with("detectors", breaker.detectors.iter().map(detector).collect::<Vec<_>>())
        .with("minPenalty", tree::time(breaker.ejection_base))
        .with("maxPenalty", tree::time(breaker.ejection_max))
        .with("jitterRatio", tree::short(breaker.jitter))
        .with("growth", growth)
        .with("maxEjectionPercent", breaker.ejected_percent_max)
        .with("recovery", recovery)
        .flag("honorRetryAfter", breaker.honour_retry_after)
        .with("overload", tree::word(OVERLOADS, &breaker.overload))
        .flag("perRoute", breaker.per_route)
        .into()
}

fn detector(detector: &Detector) -> Value {
    let tree = Tree::default();
    let (name, tree) = match detector {
        Detector::Consecutive { class, threshold } => (
            "consecutive",
            tree.with("class", tree::word(FAILURE_CLASSES, class)).with("maxFailures", *threshold),
        ),
        Detector::SuccessRate { threshold, window, min_requests } => (
            "successRate",
            tree.with("threshold", *threshold)
                .with("window", tree::time(*window))
                .with("minRequests", *min_requests),
        ),
        Detector::Deviation { factor_milli, min_hosts, min_requests, interval } => (
            "deviation",
            tree.with("factor", tree::fixed(*factor_milli, 3))
                .with("minHosts", *min_hosts)
                .with("minRequests", *min_requests)
                .with("interval", tree::time(*interval)),
        ),
        Detector::FailurePercent { threshold, min_hosts, min_requests, interval } => (
            "failurePercent",
            tree.with("threshold", *threshold)
                .with("minHosts", *min_hosts)
                .with("minRequests", *min_requests)
                .with("interval", tree::time(*interval)),
        ),
    };
    Tree::default().with(name, tree).into()
}

/// `limits`.
pub(crate) fn limits(limits: &Limits) -> Tree {
    let adaptive = limits.adaptive.map(|adaptive| match adaptive {
        Adaptive::Gradient2 => "Gradient2",
        Adaptive::Vegas => "Vegas",
    });
    Tree::default()
        .maybe("maxRequests", limits.requests_max)
        .maybe("maxPending", limits.pending_max)
        .maybe("maxConnections", limits.connections_max)
        .maybe("maxConcurrentStreams", limits.streams_max)
        .maybe("maxRequestsPerConnection", limits.requests_per_connection_max)
        .maybe("idleTimeout", limits.idle.map(tree::time))
        .maybe("maxConnectionAge", limits.connection_age_max.map(tree::time))
        .maybe("adaptive", adaptive)
        .list("rateLimits", settings::rate_limits(&limits.rates))
}

/// `tls`.
pub(crate) fn tls(tls: &ClientTls) -> Tree {
    Tree::default()
        .maybe("mode", (tls.mode != TlsMode::Auto).then(|| tree::word(TLS_MODES, &tls.mode)))
        .maybe("sni", tls.sni.as_deref())
        .list("identities", tls.identities.iter().map(condition::text_match).collect())
        .maybe("roots", tls.roots.as_deref())
}

/// `slo`.
pub(crate) fn objective(objective: &Objective) -> Value {
    Tree::default()
        .maybe("availability", objective.availability_ppm.map(|ppm| tree::fixed(ppm, 6)))
        .maybe("latency", objective.latency.map(tree::time))
        .with("latencyTarget", tree::fixed(objective.latency_share_ppm, 6))
        .with("window", tree::time(objective.window))
        .into()
}
