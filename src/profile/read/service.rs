//! Floor 1: reads what is said of a service as a whole: balancer, breaker, limits, TLS, objective.

use crate::profile::duration;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::settings::Adaptive;
use crate::profile::settings::Algorithm;
use crate::profile::settings::BalancerSettings;
use crate::profile::settings::BreakerSettings;
use crate::profile::settings::ClientTls;
use crate::profile::settings::Detector;
use crate::profile::settings::FailureClass;
use crate::profile::settings::Growth;
use crate::profile::settings::Limits;
use crate::profile::settings::LocalitySettings;
use crate::profile::settings::Objective;
use crate::profile::settings::Overload;
use crate::profile::settings::Recovery;
use crate::profile::settings::TlsMode;
use std::sync::Arc;
use std::time::Duration;

/// The largest hash ring and Maglev table: 5,000,011 entries, Envoy's limit for the latter.
const TABLE_MAX: u32 = 5_000_011;

/// `balancer`.
pub(crate) fn balancer(field: &Field<'_>) -> BalancerSettings {
    let read = field.fields(|f| BalancerSettings {
        algorithm: algorithm(f),
        default_rtt: words::some_time(&f.get("defaultRtt")),
        decay: words::some_time(&f.get("decay")),
        slow_start: words::some_time(&f.get("slowStart")),
        subset: f.get("subset").integer(1..=u32::MAX),
        min_ready: f.get("minReady").integer(0..=u32::MAX),
        panic_percent: f.get("panicPercent").integer(0..=100),
        locality: f.get("locality").fields(locality).flatten(),
        hash: words::hash_keys(&f.get("hash")),
        reports: f.get("reports").bool().unwrap_or(false),
    });
    read.unwrap_or_default()
}

fn locality(f: &mut Fields<'_>) -> Option<LocalitySettings> {
    let zone = words::name(&f.get("zone").required());
    let overflow_below_percent = f.get("overflowBelowPercent").integer(0..=100).unwrap_or(70);
    zone.map(|zone| LocalitySettings { zone, overflow_below_percent })
}

fn algorithm(f: &mut Fields<'_>) -> Option<Algorithm> {
    let (choices, entries, table) = (f.get("choices"), f.get("entriesMin"), f.get("tableSize"));
    let words = [
        ("RecentlyFreed", Algorithm::RecentlyFreed),
        ("PeakEwma", Algorithm::PeakEwma),
        ("LeastRequest", Algorithm::LeastRequest { choices: choices.integer(2..=10).unwrap_or(2) }),
        ("RoundRobin", Algorithm::RoundRobin),
        ("Random", Algorithm::Random),
        ("RingHash", Algorithm::RingHash { entries_min: entries.integer(1..=TABLE_MAX).unwrap_or(1_024) }),
        ("Maglev", Algorithm::Maglev { table: table.integer(2..=TABLE_MAX).unwrap_or(65_537) }),
    ];
    let algorithm = f.get("algorithm").word(&words);
    let of_another = [
        (&choices, matches!(algorithm, Some(Algorithm::LeastRequest { .. })), "LeastRequest"),
        (&entries, matches!(algorithm, Some(Algorithm::RingHash { .. })), "RingHash"),
        (&table, matches!(algorithm, Some(Algorithm::Maglev { .. })), "Maglev"),
    ];
    for (field, fits, owner) in of_another {
        if field.is_present() && !fits {
            field.reject(format!("is for the algorithm {owner} only"), "remove it, or set `algorithm`");
        }
    }
    if let Some(Algorithm::Maglev { table: size }) = algorithm
        && !is_prime(size)
    {
        table.must_be::<()>("a prime number");
    }
    algorithm
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// `failureAccrual`.
pub(crate) fn breaker(field: &Field<'_>) -> Option<BreakerSettings> {
    field.fields(|f| {
        let usual = BreakerSettings::default();
        let base = words::some_time(&f.get("minPenalty")).unwrap_or(usual.ejection_base);
        let max_field = f.get("maxPenalty");
        let max = words::some_time(&max_field).unwrap_or(usual.ejection_max.max(base));
        if max < base {
            let (base, max) = (duration::to_text(base), duration::to_text(max));
            max_field
                .reject(format!("maxPenalty ({max}) is below minPenalty ({base})"), "write a larger one");
        }
        let growth = [("Exponential", Growth::Exponential), ("Linear", Growth::Linear)];
        let recovery = [("Probe", Recovery::Probe), ("Timer", Recovery::Timer)];
        BreakerSettings {
            detectors: detectors(f),
            ejection_base: base,
            ejection_max: max,
            jitter: f.get("jitterRatio").float(0.0..=100.0).map_or(usual.jitter, |jitter| jitter as f32),
            growth: f.get("growth").word(&growth).unwrap_or(usual.growth),
            ejected_percent_max: f
                .get("maxEjectionPercent")
                .integer(0..=100)
                .unwrap_or(usual.ejected_percent_max),
            recovery: f.get("recovery").word(&recovery).unwrap_or(usual.recovery),
            honour_retry_after: f.get("honorRetryAfter").bool().unwrap_or(usual.honour_retry_after),
            overload: f.get("overload").word(OVERLOADS).unwrap_or(usual.overload),
            per_route: f.get("perRoute").bool().unwrap_or(usual.per_route),
        }
    })
}

/// `mode`, Linkerd's two, or `detectors`; neither is `mode: consecutive`.
fn detectors(f: &mut Fields<'_>) -> Vec<Detector> {
    let (mode, list) = (f.get("mode"), f.get("detectors"));
    if mode.is_present() && list.is_present() {
        mode.reject("stands beside `detectors`", "remove one of them");
    }
    let usual = BreakerSettings::default().detectors;
    match mode.word(&[("consecutive", false), ("unified", true)]) {
        Some(true) => usual.into_iter().chain([SUCCESS_RATE]).collect(),
        None if list.is_present() => list.each(|item| item.fields(detector)?),
        Some(false) | None => usual,
    }
}

/// Linkerd's defaults for `unified`.
const SUCCESS_RATE: Detector =
    Detector::SuccessRate { threshold: 0.8, window: Duration::from_secs(10), min_requests: 5 };

/// The failures a detector can count, by name.
pub(crate) const OVERLOADS: &[(&str, Overload)] =
    &[("Rate", Overload::Rate), ("Count", Overload::Count), ("Ignore", Overload::Ignore)];

pub(crate) const FAILURE_CLASSES: &[(&str, FailureClass)] = &[
    ("Any", FailureClass::Any),
    ("Server", FailureClass::Server),
    ("Gateway", FailureClass::Gateway),
    ("Local", FailureClass::Local),
];

fn detector(f: &mut Fields<'_>) -> Option<Detector> {
    words::one_of(f, &["consecutive", "successRate", "deviation", "failurePercent"]);
    let consecutive = f.get("consecutive").fields(|f| Detector::Consecutive {
        class: f.get("class").word(FAILURE_CLASSES).unwrap_or(FailureClass::Any),
        threshold: f.get("maxFailures").integer(1..=u32::MAX).unwrap_or(7),
    });
    // Ten buckets of a millisecond at least.
    let window = Duration::from_millis(10)..=words::TIME_MAX;
    let success_rate = f.get("successRate").fields(|f| Detector::SuccessRate {
        threshold: f.get("threshold").float(0.0..=1.0).unwrap_or(0.8),
        window: words::time(&f.get("window"), window).unwrap_or(Duration::from_secs(10)),
        min_requests: f.get("minRequests").integer(0..=1_000_000).unwrap_or(5),
    });
    // Defaults of gRPC A50.
    let usual = Duration::from_secs(10);
    let deviation = f.get("deviation").fields(|f| {
        let factor = f.get("factor").fixed(3, 0..=1_000_000).and_then(|n| u32::try_from(n).ok());
        Detector::Deviation {
            factor_milli: factor.unwrap_or(1_900),
            min_hosts: f.get("minHosts").integer(0..=u32::MAX).unwrap_or(5),
            min_requests: f.get("minRequests").integer(0..=u32::MAX).unwrap_or(100),
            interval: words::some_time(&f.get("interval")).unwrap_or(usual),
        }
    });
    let failure_percent = f.get("failurePercent").fields(|f| Detector::FailurePercent {
        threshold: f.get("threshold").integer(0..=100).unwrap_or(85),
        min_hosts: f.get("minHosts").integer(0..=u32::MAX).unwrap_or(5),
        min_requests: f.get("minRequests").integer(0..=u32::MAX).unwrap_or(50),
        interval: words::some_time(&f.get("interval")).unwrap_or(usual),
    });
    consecutive.or(success_rate).or(deviation).or(failure_percent)
}

/// `limits`.
pub(crate) fn limits(field: &Field<'_>) -> Limits {
    let adaptive = [("Gradient2", Adaptive::Gradient2), ("Vegas", Adaptive::Vegas)];
    let read = field.fields(|f| Limits {
        requests_max: f.get("maxRequests").integer(1..=u32::MAX),
        pending_max: f.get("maxPending").integer(0..=u32::MAX),
        connections_max: f.get("maxConnections").integer(1..=u32::MAX),
        streams_max: f.get("maxConcurrentStreams").integer(1..=u32::MAX),
        requests_per_connection_max: f.get("maxRequestsPerConnection").integer(1..=u32::MAX),
        idle: words::some_time(&f.get("idleTimeout")),
        connection_age_max: words::some_time(&f.get("maxConnectionAge")),
        adaptive: f.get("adaptive").word(&adaptive),
        rates: words::rate_limits(&f.get("rateLimits")),
    });
    read.unwrap_or_default()
}

/// Certificates as PEM. Whether they are authorities shows when a connection is opened.
fn certificates(text: &str) -> Result<Arc<str>, String> {
    match text.contains("-----BEGIN CERTIFICATE-----") {
        true => Ok(text.into()),
        false => Err("certificates in PEM".to_owned()),
    }
}

/// The modes of TLS, by name.
pub(crate) const TLS_MODES: &[(&str, TlsMode)] =
    &[("Auto", TlsMode::Auto), ("Off", TlsMode::Off), ("Mesh", TlsMode::Mesh), ("Simple", TlsMode::Simple)];

/// `tls`.
pub(crate) fn tls(field: &Field<'_>) -> ClientTls {
    let read = field.fields(|f| {
        let mode = f.get("mode").word(TLS_MODES).unwrap_or_default();
        let sni = words::name(&f.get("sni"));
        let identities = f.get("identities").each(|item| words::text_match(&item));
        let roots = f.get("roots");
        if mode != TlsMode::Simple && roots.is_present() {
            roots.reject("are for mode `Simple` alone", "trust domains bring their own roots; remove these");
        }
        let roots = roots.parse(certificates);
        ClientTls { mode, sni, identities, roots }
    });
    read.unwrap_or_default()
}

/// `slo`.
pub(crate) fn objective(field: &Field<'_>) -> Option<Objective> {
    field.fields(|f| {
        let ppm = |field: Field<'_>| field.fixed(6, 0..=1_000_000).and_then(|n| u32::try_from(n).ok());
        let objective = Objective {
            availability_ppm: ppm(f.get("availability")),
            latency: words::some_time(&f.get("latency")),
            latency_share_ppm: ppm(f.get("latencyTarget")).unwrap_or(990_000),
            // Thirty days, the window of most published objectives (SRE Workbook, chapter 2).
            window: words::some_time(&f.get("window")).unwrap_or(Duration::from_secs(30 * 24 * 3600)),
        };
        if objective.availability_ppm.is_none() && objective.latency.is_none() {
            f.whole().reject("says no objective", "write `availability`, `latency` or both");
        }
        objective
    })
}
