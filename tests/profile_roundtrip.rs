//! A profile written and read again is the same profile, whatever it says.

use enmesh::profile::invalid::Severity;
use enmesh::profile::matching::*;
use enmesh::profile::name::ServiceName;
use enmesh::profile::parse::parse;
use enmesh::profile::route::*;
use enmesh::profile::service::*;
use enmesh::profile::settings::*;
use http::Method;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

fn text() -> impl Strategy<Value = Arc<str>> {
    prop_oneof!["[a-z]{1,6}", "[ -~]{1,8}", "(?s).{1,4}", Just("no".to_owned()), Just("1".to_owned())]
        .prop_filter("null and booleans are quoted, so all is well but emptiness", |text| !text.is_empty())
        .prop_map(Arc::from)
}

fn name() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9-]{0,8}".prop_map(Arc::from)
}

fn pattern() -> impl Strategy<Value = Arc<str>> {
    select(vec!["/a", "/a|/b", "/books/[^/]*", r"\d+", "", " x ", "(?i)/a", r"/\.\$"]).prop_map(Arc::from)
}

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![1..1_000_000_000_u64, (1..10_000_u64).prop_map(|ms| ms * 1_000_000), Just(86_400_000_000_000)]
        .prop_map(Duration::from_nanos)
}

fn limit() -> impl Strategy<Value = Limit> {
    prop_oneof![Just(Limit::Unset), Just(Limit::Disabled), time().prop_map(Limit::After)]
}

fn share() -> impl Strategy<Value = Share> {
    (1..=1_000_000_u32).prop_flat_map(|denominator| {
        (0..=denominator).prop_map(move |numerator| Share { numerator, denominator })
    })
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        text().prop_map(TextMatch::Exact),
        text().prop_map(TextMatch::Prefix),
        text().prop_map(TextMatch::Suffix),
        text().prop_map(TextMatch::Contains),
        pattern().prop_map(TextMatch::Regex),
    ]
}

fn service() -> impl Strategy<Value = ServiceName> {
    ("[a-z][a-z0-9.-]{0,10}[a-z]", of(1..=u16::MAX)).prop_map(|(host, port)| match port {
        Some(port) => format!("{host}:{port}").parse().expect("a name"),
        None => host.parse().expect("a name"),
    })
}

fn key_match() -> impl Strategy<Value = KeyMatch> {
    let value = prop_oneof![
        Just(ValueMatch::Present),
        text_match().prop_map(ValueMatch::Text),
        (any::<i64>(), any::<i64>()).prop_map(|(a, b)| ValueMatch::Integer(a.min(b)..=a.max(b))),
    ];
    let multi = select(vec![Multi::Any, Multi::First, Multi::Joined]);
    (name(), value, any::<bool>(), any::<bool>(), multi).prop_map(
        |(name, value, invert, ignore_case, multi)| KeyMatch { name, value, invert, ignore_case, multi },
    )
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    let kinds = [
        PathKind::Exact,
        PathKind::PrefixString,
        PathKind::PrefixElement,
        PathKind::Regex,
        PathKind::RegexPrefix,
        PathKind::Suffix,
        PathKind::Contains,
    ];
    (select(kinds.to_vec()), text(), pattern(), any::<bool>()).prop_map(
        |(kind, text, pattern, ignore_case)| {
            let value = if matches!(kind, PathKind::Regex | PathKind::RegexPrefix) { pattern } else { text };
            PathMatch { kind, value, ignore_case }
        },
    )
}

fn condition() -> impl Strategy<Value = Condition> {
    let method = select(vec!["GET", "POST", "PURGE", "get"])
        .prop_map(|m| Method::from_bytes(m.as_bytes()).expect("m"));
    let host = prop_oneof![name().prop_map(HostMatch::Exact), name().prop_map(HostMatch::Suffix)];
    let grpc =
        (of(text_match()), of(text_match())).prop_map(|(service, method)| GrpcMatch { service, method });
    let labels =
        proptest::collection::btree_map(text(), text(), 0..3).prop_map(|map| map.into_iter().collect());
    let caller = (vec(text(), 0..3), labels, vec(text_match(), 0..3))
        .prop_map(|(namespaces, labels, identities)| CallerMatch { namespaces, labels, identities });
    let leaf = prop_oneof![
        Just(Condition::Always),
        vec(method, 0..3).prop_map(Condition::Method),
        path_match().prop_map(Condition::Path),
        key_match().prop_map(Condition::Header),
        key_match().prop_map(Condition::Query),
        vec(host, 0..3).prop_map(Condition::Host),
        text().prop_map(Condition::Scheme),
        (1..=u16::MAX).prop_map(Condition::Port),
        grpc.prop_map(Condition::Grpc),
        caller.prop_map(Condition::Caller),
        share().prop_map(Condition::Fraction),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Condition::All),
            vec(inner.clone(), 0..3).prop_map(Condition::Any),
            inner.prop_map(|condition| Condition::Not(Box::new(condition))),
        ]
    })
}

fn statuses() -> impl Strategy<Value = RangeInclusive<u16>> {
    prop_oneof![
        (100..=599_u16, 100..=599_u16).prop_map(|(a, b)| a.min(b)..=a.max(b)),
        Just(500..=599),
        Just(502..=504),
        Just(503..=503),
    ]
}

fn class() -> impl Strategy<Value = ResponseClass> {
    let leaf = statuses().prop_map(ResponseCondition::Status);
    let condition = leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(ResponseCondition::All),
            vec(inner.clone(), 0..3).prop_map(ResponseCondition::Any),
            inner.prop_map(|condition| ResponseCondition::Not(Box::new(condition))),
        ]
    });
    (condition, any::<bool>()).prop_map(|(condition, is_failure)| ResponseClass { condition, is_failure })
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    (limit(), limit(), limit(), limit(), limit(), limit()).prop_map(
        |(request, response_headers, response, idle, attempt, connect)| {
            // An attempt longer than the whole request is a fault.
            let attempt = match (attempt, request) {
                (Limit::After(a), Limit::After(r)) => Limit::After(a.min(r)),
                (attempt, _) => attempt,
            };
            Timeouts { request, response_headers, response, idle, attempt, connect }
        },
    )
}

fn budget() -> impl Strategy<Value = BudgetSettings> {
    let ratio = 0..=1_000_000_000_u32;
    prop_oneof![
        (ratio.clone(), any::<u32>(), 1..=60_u64).prop_map(|(ratio_ppm, min_per_second, ttl)| {
            BudgetSettings::Windowed { ratio_ppm, min_per_second, ttl: Duration::from_secs(ttl) }
        }),
        (ratio.clone(), any::<u32>(), any::<u32>()).prop_map(|(ratio_ppm, min_per_second, burst)| {
            BudgetSettings::Recent { ratio_ppm, min_per_second, burst }
        }),
        (ratio, any::<u32>()).prop_map(|(ratio_ppm, min_concurrent)| BudgetSettings::ActiveShare {
            ratio_ppm,
            min_concurrent
        }),
        (1..=1_000_000_u32, 1..=1_000_000_u32)
            .prop_map(|(max_milli, ratio_milli)| BudgetSettings::TokenBucket { max_milli, ratio_milli }),
    ]
}

fn retry() -> impl Strategy<Value = RetrySettings> {
    let on = (any::<[bool; 5]>(), vec(statuses(), 0..3), vec(0..=16_u8, 0..3)).prop_map(
        |(flags, statuses, grpc)| {
            let [failures, connect_failure, refused, reset, attempt_timeout] = flags;
            RetryOn { failures, statuses, grpc, connect_failure, refused, reset, attempt_timeout }
        },
    );
    let backoff = (time(), time(), 0.0..=1.0_f32).prop_map(|(a, b, jitter)| BackoffSettings {
        base: a.min(b),
        max: a.max(b),
        jitter,
    });
    let hedge =
        prop_oneof![time().prop_map(HedgeSettings::After), (1..=999_u16).prop_map(HedgeSettings::Quantile)];
    let hops = select(vec![HopMarks::Off, HopMarks::Trust, HopMarks::Strip]);
    let rest = (any::<bool>(), of(budget().boxed()), of(hedge), of(0..=(1_usize << 20)), hops, of(time()));
    (of(1..=10_u32), on, of(backoff), rest).prop_map(|(attempts_max, on, backoff, rest)| {
        let (idempotent, budget, hedge, body_bytes_max, hops, patience) = rest;
        RetrySettings { attempts_max, on, backoff, idempotent, budget, hedge, body_bytes_max, hops, patience }
    })
}

fn hash_key() -> impl Strategy<Value = HashKey> {
    prop_oneof![
        text().prop_map(HashKey::Header),
        (text(), of(text()), of(time())).prop_map(|(name, path, ttl)| HashKey::Cookie { name, path, ttl }),
        text().prop_map(HashKey::Query),
        Just(HashKey::Path),
        Just(HashKey::Source),
    ]
}

fn rate() -> impl Strategy<Value = RateLimit> {
    let scope = prop_oneof![
        Just(RateScope::Total),
        Just(RateScope::Identity),
        vec(text(), 1..3).prop_map(RateScope::Override),
        hash_key().prop_map(RateScope::Key),
    ];
    (scope, 1..=u32::MAX, time(), of(1..=u32::MAX)).prop_map(|(scope, requests, per, burst)| RateLimit {
        scope,
        requests,
        per,
        burst,
    })
}

fn objective() -> impl Strategy<Value = Objective> {
    (0..=1_000_000_u32, of(time()), 0..=1_000_000_u32, time()).prop_map(
        |(available, latency, share, window)| Objective {
            availability_ppm: Some(available),
            latency,
            latency_share_ppm: share,
            window,
        },
    )
}

fn backend() -> impl Strategy<Value = Backend> {
    prop_oneof![
        (service(), of(text())).prop_map(|(name, subset)| Backend::Service { name, subset }),
        (100..=599_u16, 0..=16_u8, text()).prop_map(|(status, grpc, reason)| Backend::Invalid {
            status,
            grpc,
            reason
        }),
    ]
}

fn header() -> impl Strategy<Value = (Arc<str>, Arc<str>)> {
    (name(), "[!-~]{0,5}".prop_map(Arc::from))
}

fn path_rewrite() -> impl Strategy<Value = PathRewrite> {
    prop_oneof![
        Just(PathRewrite::Keep),
        text().prop_map(PathRewrite::Full),
        text().prop_map(PathRewrite::PrefixElement),
        text().prop_map(PathRewrite::PrefixString),
        (pattern(), text()).prop_map(|(pattern, substitution)| PathRewrite::Regex { pattern, substitution }),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    let mods = || {
        (vec(header(), 0..3), vec(header(), 0..3), vec(name(), 0..3))
            .prop_map(|(set, add, remove)| HeaderMods { set, add, remove })
    };
    let cors = (
        vec(text_match(), 0..2),
        vec(text(), 0..2),
        vec(text(), 0..2),
        vec(text(), 0..2),
        any::<bool>(),
        of(time()),
    );
    let cors = cors.prop_map(
        |(allow_origins, allow_methods, allow_headers, expose_headers, allow_credentials, max_age)| Cors {
            allow_origins,
            allow_methods,
            allow_headers,
            expose_headers,
            allow_credentials,
            max_age,
        },
    );
    prop_oneof![
        mods().prop_map(Filter::RequestHeaders),
        mods().prop_map(Filter::ResponseHeaders),
        (path_rewrite(), of(text())).prop_map(|(path, host)| Filter::Rewrite(Rewrite { path, host })),
        cors.prop_map(Filter::Cors),
    ]
}

fn backends() -> impl Strategy<Value = Vec<WeightedBackend>> {
    let weighted = (backend(), 0..=1_000_000_u32, vec(filter().boxed(), 0..2));
    vec(weighted.prop_map(|(backend, weight, filters)| WeightedBackend { backend, weight, filters }), 0..3)
}

fn action() -> impl Strategy<Value = Action> {
    let choice = select(vec![Choice::Weighted, Choice::FirstAvailable]);
    let mirror = (backend(), share()).prop_map(|(backend, share)| Mirror { backend, share });
    let forward = (backends().boxed(), choice, vec(filter().boxed(), 0..3), vec(mirror, 0..2))
        .prop_map(|(backends, choice, filters, mirrors)| Forward { backends, choice, filters, mirrors });
    let port = prop_oneof![
        Just(RedirectPort::Default),
        (1..=u16::MAX).prop_map(RedirectPort::Port),
        Just(RedirectPort::FromRequest)
    ];
    let scheme = of(select(vec!["http", "https"]).prop_map(Arc::from));
    let status = select(vec![301, 302, 303, 307, 308_u16]);
    let redirect = (scheme, of(text()), port, path_rewrite(), status)
        .prop_map(|(scheme, host, port, path, status)| Redirect { scheme, host, port, path, status });
    let respond = (100..=599_u16, of(0..=16_u8), text(), vec(header(), 0..3))
        .prop_map(|(status, grpc, body, headers)| Respond { status, grpc, body, headers });
    prop_oneof![
        forward.prop_map(Action::Forward),
        redirect.prop_map(Action::Redirect),
        respond.prop_map(Action::Respond)
    ]
}

fn fault() -> impl Strategy<Value = FaultSettings> {
    let abort = prop_oneof![(200..=599_u16).prop_map(Abort::Http), (0..=16_u8).prop_map(Abort::Grpc)];
    (of((time(), share())), of((abort, share()))).prop_map(|(delay, abort)| FaultSettings { delay, abort })
}

fn session() -> impl Strategy<Value = Session> {
    (name(), any::<bool>(), of(time()), of(time())).prop_map(|(name, header, absolute, idle)| Session {
        permanent: absolute.is_some() && idle.is_none(),
        name,
        header,
        absolute,
        idle,
    })
}

fn route() -> impl Strategy<Value = Route> {
    let first = (
        text(),
        condition().boxed(),
        action().boxed(),
        vec(class().boxed(), 0..3),
        timeouts().boxed(),
        of(retry().boxed()),
    );
    let rest = (
        of(fault().boxed()),
        vec(rate().boxed(), 0..2),
        vec(hash_key(), 0..2),
        of(session()),
        of(objective()),
    );
    (first, rest).prop_map(|(first, rest)| {
        let (name, condition, action, response_classes, timeouts, retry) = first;
        let (fault, rates, hash, session, objective) = rest;
        let origin = Arc::from("");
        Route {
            name,
            condition,
            action,
            response_classes,
            timeouts,
            retry,
            fault,
            rates,
            hash,
            session,
            objective,
            origin,
        }
    })
}

fn balancer() -> impl Strategy<Value = BalancerSettings> {
    let algorithm = prop_oneof![
        Just(Algorithm::RecentlyFreed),
        Just(Algorithm::PeakEwma),
        (2..=10_u8).prop_map(|choices| Algorithm::LeastRequest { choices }),
        Just(Algorithm::RoundRobin),
        Just(Algorithm::Random),
        (1..=5_000_000_u32).prop_map(|entries_min| Algorithm::RingHash { entries_min }),
        select(vec![2, 13, 65_537, 5_000_011_u32]).prop_map(|table| Algorithm::Maglev { table }),
    ];
    let locality = (text(), 0..=100_u8)
        .prop_map(|(zone, overflow_below_percent)| LocalitySettings { zone, overflow_below_percent });
    let times = (of(time()), of(time()), of(time()));
    let counts = (of(1..=u32::MAX), of(any::<u32>()), of(0..=100_u8));
    (of(algorithm), times, counts, of(locality), (vec(hash_key(), 0..3), any::<bool>())).prop_map(
        |(
            algorithm,
            (default_rtt, decay, slow_start),
            (subset, min_ready, panic_percent),
            locality,
            (hash, reports),
        )| {
            BalancerSettings {
                algorithm,
                default_rtt,
                decay,
                slow_start,
                subset,
                min_ready,
                panic_percent,
                locality,
                hash,
                reports,
            }
        },
    )
}

fn breaker() -> impl Strategy<Value = BreakerSettings> {
    let class =
        select(vec![FailureClass::Any, FailureClass::Server, FailureClass::Gateway, FailureClass::Local]);
    let counted = || (any::<u32>(), any::<u32>(), time());
    let window = (10..100_000_u64).prop_map(Duration::from_millis);
    let detector = prop_oneof![
        (class, 1..=u32::MAX).prop_map(|(class, threshold)| Detector::Consecutive { class, threshold }),
        (0.0..=1.0_f64, window, 0..=1_000_000_u32).prop_map(|(threshold, window, min_requests)| {
            Detector::SuccessRate { threshold, window, min_requests }
        }),
        (0..=1_000_000_u32, counted()).prop_map(|(factor_milli, (min_hosts, min_requests, interval))| {
            Detector::Deviation { factor_milli, min_hosts, min_requests, interval }
        }),
        (0..=100_u8, counted()).prop_map(|(threshold, (min_hosts, min_requests, interval))| {
            Detector::FailurePercent { threshold, min_hosts, min_requests, interval }
        }),
    ];
    let growth = select(vec![Growth::Exponential, Growth::Linear]);
    let recovery = select(vec![Recovery::Probe, Recovery::Timer]);
    let overload = select(vec![Overload::Rate, Overload::Count, Overload::Ignore]);
    (
        vec(detector, 0..3),
        time(),
        time(),
        0.0..=100.0_f32,
        growth,
        0..=100_u8,
        recovery,
        (overload, any::<[bool; 2]>()),
    )
        .prop_map(
            |(
                detectors,
                a,
                b,
                jitter,
                growth,
                ejected_percent_max,
                recovery,
                (overload, [honour_retry_after, per_route]),
            )| {
                let (ejection_base, ejection_max) = (a.min(b), a.max(b));
                BreakerSettings {
                    detectors,
                    ejection_base,
                    ejection_max,
                    jitter,
                    growth,
                    ejected_percent_max,
                    recovery,
                    honour_retry_after,
                    overload,
                    per_route,
                }
            },
        )
}

fn limits() -> impl Strategy<Value = Limits> {
    let adaptive = select(vec![Adaptive::Gradient2, Adaptive::Vegas]);
    let counts = (of(1..=u32::MAX), of(any::<u32>()), of(1..=u32::MAX), of(1..=u32::MAX), of(1..=u32::MAX));
    (counts, of(time()), of(time()), of(adaptive), vec(rate().boxed(), 0..2)).prop_map(
        |(
            (requests_max, pending_max, connections_max, streams_max, requests_per_connection_max),
            idle,
            connection_age_max,
            adaptive,
            rates,
        )| {
            Limits {
                requests_max,
                pending_max,
                connections_max,
                streams_max,
                requests_per_connection_max,
                idle,
                connection_age_max,
                adaptive,
                rates,
            }
        },
    )
}

fn tls() -> impl Strategy<Value = ClientTls> {
    let mode = select(vec![TlsMode::Auto, TlsMode::Off, TlsMode::Mesh, TlsMode::Simple]);
    let pem = select(vec!["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]);
    (mode, of(text()), vec(text_match(), 0..3), of(pem)).prop_map(|(mode, sni, identities, pem)| {
        let roots = pem.filter(|_| mode == TlsMode::Simple).map(Into::into);
        ClientTls { mode, sni, identities, roots }
    })
}

fn profile() -> impl Strategy<Value = ServiceProfile> {
    let defaults = select(vec![
        DefaultsProfile::Enmesh,
        DefaultsProfile::Linkerd,
        DefaultsProfile::GatewayApi,
        DefaultsProfile::Istio,
        DefaultsProfile::Consul,
        DefaultsProfile::AppMesh,
        DefaultsProfile::ServiceFabric,
        DefaultsProfile::Smi,
    ]);
    let no_match = select(vec![NoMatch::Forward, NoMatch::NotFound]);
    let ports = proptest::collection::btree_set(1..=u16::MAX, 0..3).prop_map(|set| set.into_iter().collect());
    let first = (
        vec(service(), 1..3),
        of(name()),
        defaults,
        vec(route().boxed(), 0..3),
        no_match,
        backends().boxed(),
    );
    let second = (
        timeouts().boxed(),
        of(retry().boxed()),
        of(budget().boxed()),
        balancer().boxed(),
        of(breaker().boxed()),
    );
    let third = (limits().boxed(), tls().boxed(), ports, of(objective()));
    (first, second, third).prop_map(|(first, second, third)| {
        let (names, namespace, defaults, routes, no_match, backends) = first;
        let (timeouts, retry, retry_budget, balancer, breaker) = second;
        let (limits, tls, opaque_ports, objective) = third;
        let origin = Arc::from("");
        ServiceProfile {
            names,
            namespace,
            defaults,
            routes,
            no_match,
            backends,
            timeouts,
            retry,
            retry_budget,
            balancer,
            breaker,
            limits,
            tls,
            opaque_ports,
            objective,
            origin,
        }
    })
}

/// Profiles that a document of Linkerd can say.
fn linkerd_profile() -> impl Strategy<Value = ServiceProfile> {
    let leaf = prop_oneof![
        select(vec![Method::GET, Method::POST]).prop_map(|method| Condition::Method(vec![method])),
        select(vec!["/a", "/a.*", "/books/[^/]*"])
            .prop_map(|pattern| Condition::Path(PathMatch::new(PathKind::Regex, pattern))),
    ];
    let condition = leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Condition::All),
            vec(inner.clone(), 0..3).prop_map(Condition::Any),
            inner.prop_map(|condition| Condition::Not(Box::new(condition))),
        ]
    });
    // A list without items is dropped in a response class.
    let class = class().prop_filter("no empty lists", |class| !format!("{class:?}").contains("[]"));
    let retryable = RetrySettings {
        attempts_max: Some(10),
        on: RetryOn { failures: true, ..RetryOn::default() },
        idempotent: true,
        ..RetrySettings::default()
    };
    let route = (text(), condition, vec(class, 0..3), limit(), of(Just(retryable))).prop_map(
        |(name, condition, response_classes, limit, retry)| Route {
            name,
            condition,
            response_classes,
            timeouts: Timeouts { response_headers: limit, ..Timeouts::default() },
            retry,
            ..Route::default()
        },
    );
    let budget =
        of(budget().prop_filter("of Linkerd", |kind| matches!(kind, BudgetSettings::Windowed { .. })));
    let ports = proptest::collection::btree_set(1..=u16::MAX, 0..3).prop_map(|set| set.into_iter().collect());
    let backend = (service(), 1..=u32::MAX / 3).prop_map(|(name, weight)| WeightedBackend {
        backend: Backend::Service { name, subset: None },
        weight,
        filters: Vec::new(),
    });
    ("[a-z]{1,9}", of(name()), vec(route.boxed(), 0..3), budget.boxed(), vec(backend, 0..3), ports).prop_map(
        |(name, namespace, routes, retry_budget, backends, opaque_ports)| ServiceProfile {
            names: std::vec![format!("{name}.ns.svc.cluster.local").parse().expect("a name")],
            namespace,
            defaults: DefaultsProfile::Linkerd,
            routes,
            retry_budget,
            backends,
            opaque_ports,
            ..ServiceProfile::default()
        },
    )
}

fn without_origins(mut profile: ServiceProfile) -> ServiceProfile {
    profile.origin = Arc::from("");
    for route in &mut profile.routes {
        route.origin = Arc::from("");
    }
    profile
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_profile_reads_back_from_yaml_and_json(profile in profile()) {
        for text in [profile.to_yaml(), profile.to_json().to_string()] {
            let mut parsed = parse(&text, "written");
            prop_assert_eq!(parsed.documents.len(), 1);
            let document = parsed.documents.remove(0);
            prop_assert_eq!(&document.faults, &vec![], "{}", text);
            prop_assert_eq!(document.profile.map(without_origins), Some(profile.clone()), "{}", text);
        }
    }

    #[test]
    fn what_linkerd_can_say_reads_back_from_linkerd(profile in linkerd_profile()) {
        let written = profile.to_linkerd();
        prop_assert_eq!(&written.faults, &vec![]);
        let document = written.document.expect("nothing was refused");
        let parsed = parse(&document.to_string(), "written").documents.remove(0);
        prop_assert_eq!(&parsed.faults, &vec![], "{}", document);
        prop_assert_eq!(parsed.profile.map(without_origins), Some(profile), "{}", document);
    }

    #[test]
    fn what_linkerd_cannot_say_is_noted_and_the_rest_loads(profile in profile()) {
        let written = profile.to_linkerd();
        let refused = written.faults.iter().any(|fault| fault.severity == Severity::Rejected);
        prop_assert_eq!(written.document.is_none(), refused);
        if let Some(document) = written.document {
            let parsed = parse(&document.to_string(), "written").documents.remove(0);
            prop_assert!(parsed.profile.is_some(), "{document}\n{:?}", parsed.faults);
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(text in "(?s).{0,300}", cut in 0..2_000_usize, profile in profile()) {
        parse(&text, "noise");
        let yaml = profile.to_yaml();
        let end = yaml.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(yaml.len());
        parse(&yaml[..end], "cut");
        parse(&format!("{}{text}{}", &yaml[..end], &yaml[end..]), "spoilt");
    }
}
