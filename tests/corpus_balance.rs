//! Linkerd's vectors for balancing and circuit breaking, each deliberate difference named and asserted
//! (docs/linkerd-differences.md).

#[path = "support/corpus.rs"]
mod support;

use bytes::Bytes;
use enmesh::balance::cost::{Estimator, Formula, Latency, Power, went_well};
use enmesh::balance::endpoint::Cell;
use enmesh::balance::layer::Balance;
use enmesh::breaker::detect::Chart;
use enmesh::breaker::success_rate::{SuccessRate, Window};
use enmesh::breaker::ward::{Patient, Ward};
use enmesh::classify::classifier::{Classifier, hint};
use enmesh::classify::outcome::{Cause, Outcome, Verdict};
use enmesh::discover::endpoint::{Endpoint as Discovered, EndpointSet};
use enmesh::error::Error;
use enmesh::profile::settings::{Algorithm, BalancerSettings, BreakerSettings, Detector, FailureClass};
use enmesh::stdx::backoff::Backoff;
use enmesh::stdx::moment::Moment;
use enmesh::stdx::rng::Rng;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use support::{cases, list, vectors};
use tower::{Service, ServiceExt};

fn millis(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// A second later than the vectors' beginning, which lies at 0.
fn at(ms: f64) -> Moment {
    Moment::from_micros(1_000_000 + (ms * 1000.0).round() as u64)
}

fn near(found: f64, expected: f64) -> bool {
    // Latencies are kept in 32 bits.
    (found - expected).abs() <= expected.abs() * 1e-5 + 1e-7
}

/// What Linkerd's estimator would say: reading it folds in a sample of nothing.
struct Theirs {
    rtt: f64,
    stamp: f64,
    decay: f64,
    read_between: bool,
}

impl Theirs {
    fn fold(&mut self, now: f64, sample: f64) {
        if sample > self.rtt {
            self.rtt = sample;
        } else {
            let keep = (-(now - self.stamp) / self.decay).exp();
            self.rtt = self.rtt * keep + sample * (1.0 - keep);
        }
        self.stamp = now;
    }
}

/// Deliberate: reading changes nothing. Where a read lies between two ends and the second is no peak, Linkerd weighs it
/// by the time since the read and we by the time since the first end; there the case is checked against that rule.
#[test]
fn peak_ewma_follows_linkerd() {
    let Some(file) = vectors("linkerd-ewma.json") else { return };
    let mut seen = 0;
    for case in cases(&file, "peak_ewma_cases") {
        let name = case["name"].as_str().unwrap();
        let (first, decay) = (millis(&case["default_rtt_ms"]), millis(&case["decay_ms"]));
        let decay_time = Duration::from_secs_f64(decay / 1000.0);
        let formula = Formula::new(Estimator::Peak, Power::One, decay_time, Duration::ZERO);
        let cell = Cell::new(1, 0, at(0.0), (first / 1000.0) as f32);
        let mut theirs = Theirs { rtt: first, stamp: 0.0, decay, read_between: false };
        let mut differs = false;
        let mut started: Vec<(String, f64)> = Vec::new();
        let mut loads = list(&case["loads"]).iter();
        for op in list(&case["ops"]) {
            let now = millis(&op[1]);
            match op[0].as_str().unwrap() {
                "start" => {
                    cell.begin(at(now));
                    started.push((op[2].to_string(), now));
                }
                "end" => {
                    let this = op[2].to_string();
                    let found = started.iter().position(|(id, _)| *id == this).unwrap();
                    let (_, start) = started.swap_remove(found);
                    cell.headers(at(start));
                    cell.learn(&formula, at(now), ((now - start) / 1000.0) as f32);
                    differs |= theirs.read_between && now - start <= theirs.rtt;
                    theirs.fold(now, now - start);
                    theirs.read_between = false;
                }
                "load" => {
                    let before = theirs.stamp;
                    theirs.fold(now, 0.0);
                    theirs.read_between |= now > before;
                    let expected = loads.next().unwrap();
                    assert_eq!(expected["pending"].as_u64().unwrap(), u64::from(cell.in_flight()), "{name}");
                    let pending = f64::from(cell.in_flight()) + 1.0;
                    assert!(
                        near(theirs.rtt * pending, millis(&expected["load_ms"])),
                        "{name}: the model is Linkerd's"
                    );
                    let ours = f64::from(formula.estimate(cell.latency(), at(now))) * 1000.0 * pending;
                    // Ours keeps at least a microsecond, so that costs compare.
                    let exact = near(ours, millis(&expected["load_ms"]).max(0.001 * pending));
                    assert!(exact || differs, "{name} at {now}: {ours}, not {}", expected["load_ms"]);
                    seen += 1;
                }
                other => panic!("{name}: {other} is no operation"),
            }
        }
    }
    assert!(seen >= 5, "{seen}");
}

/// Deliberate: nothing is infinite before the first sample, it is marked as assumed; a sample of the same moment as the
/// last, or an earlier one, counts a little (at most a tenth) and is not ignored.
#[test]
fn averages_follow_linkerds_ewma() {
    let Some(file) = vectors("linkerd-ewma.json") else { return };
    let part = &file["ewma_crate"];
    let mut seen = 0;
    for case in cases(part, "cases") {
        let name = case["name"].as_str().unwrap();
        let decay = millis(case.get("decay_ms").unwrap_or(&part["decay_ms"]));
        let decay = Duration::from_secs_f64(decay / 1000.0);
        let average = Formula::new(Estimator::Average, Power::One, decay, Duration::ZERO);
        let peak = Formula::new(Estimator::Peak, Power::One, decay, Duration::ZERO);
        let mut value = Latency::assumed(f32::MAX, at(0.0));
        let mut last = f64::NEG_INFINITY;
        for op in list(&case["ops"]) {
            let kind = op[0].as_str().unwrap();
            let now = millis(op.as_array().unwrap().last().unwrap());
            match kind {
                "add" | "add_peak" => {
                    let sample = millis(&op[1]) as f32;
                    let formula = if kind == "add" { &average } else { &peak };
                    let before = value;
                    // Linkerd's peak over nothing is the sample; ours begins with an assumption, here none.
                    value = if before.assumed {
                        Latency { secs: sample, stamp: at(now).millis(), assumed: false }
                    } else {
                        formula.learn(before, at(now), sample)
                    };
                    if now <= last {
                        let moved = f64::from((value.secs - before.secs).abs());
                        assert!(moved <= f64::from((sample - before.secs).abs()) * 0.1 + 1e-6, "{name}");
                        value = before;
                    } else {
                        last = now;
                    }
                }
                "reset" => {
                    value = Latency { secs: millis(&op[1]) as f32, stamp: at(now).millis(), assumed: false };
                    last = now;
                }
                "get_at" => {
                    let found = f64::from(average.estimate(value, at(now)));
                    assert!(near(found, millis(&case["get_at"])), "{name}: {found}");
                }
                other => panic!("{name}: {other} is no operation"),
            }
        }
        match case["value"].as_f64() {
            Some(expected) => assert!(near(f64::from(value.secs), expected), "{name}: {value:?}"),
            None => assert!(case["value"] == "inf" && value.assumed, "{name}"),
        }
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

/// Deliberate: no penalty is fed into the latency, where it would stay for half a minute; such an end lowers the
/// endpoint's health instead, which raises its cost at once and is forgiven in seconds. What is penalised is the same.
#[test]
fn what_linkerd_penalises_lowers_the_health() {
    let Some(file) = vectors("linkerd-load-biaser.json") else { return };
    let mut seen = 0;
    for case in cases(&file, "cases") {
        let (status, headers) = response(&case["response"]);
        let outcome = Classifier::default().head(status, &headers, || 0).outcome();
        let penalised = case["rtt"].is_number();
        assert_eq!(went_well(&outcome), Some(!penalised), "{case}");
        if let (true, Some(hint)) = (penalised, outcome.retry_after) {
            // The hint itself is read alike, also where Linkerd's penalty is longer than it.
            let cap = millis(&file["config"]["max_retry_after"]);
            assert!(hint.as_secs_f64() <= cap && hint.as_secs_f64() <= millis(&case["rtt"]), "{case}");
        }
        seen += 1;
    }
    assert!(seen >= 7, "{seen}");
}

fn response(value: &Value) -> (StatusCode, HeaderMap) {
    let mut headers = HeaderMap::new();
    let mut status = StatusCode::OK;
    for (key, value) in value.as_object().unwrap() {
        if key == "status" {
            status = StatusCode::from_u16(value.as_u64().unwrap() as u16).unwrap();
        } else {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let name = HeaderName::try_from(key.as_str()).unwrap();
            headers.insert(name, HeaderValue::try_from(text).unwrap());
        }
    }
    (status, headers)
}

#[test]
fn hints_when_to_come_back_are_read_as_linkerd_reads_them() {
    let Some(file) = vectors("linkerd-load-biaser.json") else { return };
    // Past dates are zero, so the present is far after them.
    let present = || 4_000_000_000;
    let mut seen = 0;
    for case in cases(&file["retry_after"], "cases") {
        let status = StatusCode::from_u16(case["status"].as_u64().unwrap() as u16).unwrap();
        let mut headers = HeaderMap::new();
        if let Some(value) = case["value"].as_str() {
            headers.insert("retry-after", HeaderValue::try_from(value).unwrap());
        }
        let found = Classifier::default().head(status, &headers, present).outcome().retry_after;
        assert_eq!(found.map(|wait| wait.as_secs()), case["s"].as_u64(), "{case}");
        seen += 1;
    }
    for case in cases(&file["grpc_retry_pushback_ms"], "cases") {
        let mut headers = HeaderMap::new();
        if let Some(value) = case["value"].as_str() {
            headers.insert("grpc-retry-pushback-ms", HeaderValue::try_from(value).unwrap());
        }
        let found = hint(&headers, present).map(|wait| wait.as_millis() as u64);
        assert_eq!(found, case["ms"].as_u64(), "{case}");
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
}

/// One endpoint and its breaker.
struct Endpoint {
    ward: Ward<Bearer>,
    bearer: Bearer,
    rng: Rng,
    now: Moment,
    /// The pass of the last request that was let in.
    pass: u32,
}

#[derive(Debug, Clone)]
struct Bearer(Arc<(AtomicU32, Chart, AtomicU32)>);

impl Patient for Bearer {
    fn number(&self) -> u32 {
        1
    }
    fn gate(&self) -> &AtomicU32 {
        &self.0.0
    }
    fn chart(&self) -> &Chart {
        &self.0.1
    }
    fn shut(&self) -> &AtomicU32 {
        &self.0.2
    }
}

fn ms(value: &Value) -> Duration {
    Duration::from_secs_f64(millis(value) / 1000.0)
}

impl Endpoint {
    fn new(detectors: Vec<Detector>, backoff: &Value) -> Self {
        let settings = BreakerSettings {
            detectors,
            ejection_base: ms(&backoff["min_ms"]),
            ejection_max: ms(&backoff["max_ms"]),
            jitter: backoff["jitter"].as_f64().unwrap_or(0.0) as f32,
            // Linkerd knows no share that must stay.
            ejected_percent_max: 100,
            ..BreakerSettings::default()
        };
        let now = at(0.0);
        let ward = Ward::new(settings, 0, now);
        ward.resize(1);
        let bearer = Bearer(Arc::new((AtomicU32::new(0), ward.chart(), AtomicU32::new(0))));
        Self { ward, bearer, rng: Rng::seeded(1), now, pass: 0 }
    }

    fn state(&self) -> &'static str {
        match self.ward.state(1) {
            None => "open",
            Some(bed) if bed.probing || bed.until <= self.now => "limited",
            Some(_) => "shut",
        }
    }

    fn event(&mut self, event: &str) {
        let (verb, rest) = event.split_once(' ').unwrap_or((event, ""));
        match verb {
            "send" => {
                // While it is shut nobody is let in: this is a straggler, and the classes of stragglers are ignored.
                if self.state() == "open" {
                    self.pass = self.bearer.gate().load(Relaxed);
                }
                let now = self.now;
                self.ward.record(&self.bearer, self.pass, &self.rng, &class(rest), || now);
            }
            "wait_ms" => self.now = self.now.plus(Duration::from_millis(rest.parse().unwrap())),
            "expect" => assert_eq!(self.state(), rest),
            "take_probe" => {
                let probe = self.ward.attend(self.now, &self.rng, Vec::new);
                self.pass = probe.expect("one may try").1;
                assert!(self.ward.attend(self.now, &self.rng, Vec::new).is_none(), "only one");
            }
            "expect_reason" => {
                let reason = self.ward.state(1).expect("it is shut").reason.as_str();
                assert_eq!(reason, rest);
            }
            other => panic!("{other} is no event"),
        }
    }
}

/// `http-502-failure`, `http-429-ok`, `http-ok`, `grpc-13`.
fn class(text: &str) -> Outcome {
    let mut parts = text.split('-');
    let (protocol, code, judged) = (parts.next(), parts.next(), parts.next());
    let code_number = code.and_then(|code| code.parse::<u16>().ok());
    match (protocol, code_number, judged.or(code)) {
        (Some("grpc"), Some(code), _) => {
            let fails = matches!(code, 2 | 4 | 7 | 13 | 14 | 15);
            let verdict = if fails { Verdict::Failure } else { Verdict::Success };
            Outcome::new(verdict, Cause::Grpc(code as u8))
        }
        (Some("http"), code, Some("ok")) => {
            Outcome::new(Verdict::Success, Cause::Status(code.unwrap_or(200)))
        }
        (Some("http"), code, Some("failure")) => {
            Outcome::new(Verdict::Failure, Cause::Status(code.unwrap_or(500)))
        }
        _ => panic!("{text} is no class"),
    }
}

/// Deliberate: a straggler from before the trip decides no probe, and a probe that has not ended after the longest
/// ejection has failed. The vectors' timelines hold as they are.
#[test]
fn failure_accrual_follows_linkerd() {
    let Some(file) = vectors("linkerd-failure-accrual.json") else { return };
    let mut seen = 0;
    let consecutive = |case: &Value| Detector::Consecutive {
        class: FailureClass::Any,
        threshold: case["max_failures"].as_u64().unwrap() as u32,
    };
    let mut run = |case: &Value, detectors: Vec<Detector>| {
        let backoff = case.get("backoff").unwrap_or(&file["backoff"]);
        let mut endpoint = Endpoint::new(detectors, backoff);
        for event in list(&case["events"]) {
            let event = event.as_str().unwrap();
            let name = case["name"].as_str().unwrap();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| endpoint.event(event)));
            assert!(outcome.is_ok(), "{name}: {event}");
        }
        seen += 1;
    };
    for case in cases(&file, "consecutive") {
        run(case, vec![consecutive(case)]);
    }
    for case in cases(&file, "unified") {
        let rate = Detector::SuccessRate {
            threshold: case["threshold"].as_f64().unwrap(),
            window: ms(&case["window_ms"]),
            min_requests: case["min_requests"].as_u64().unwrap() as u32,
        };
        run(case, vec![consecutive(case), rate]);
    }
    assert!(seen >= 7, "{seen}");
}

#[test]
fn windows_count_as_linkerds_do() {
    let Some(file) = vectors("linkerd-success-rate-window.json") else { return };
    let mut seen = 0;
    for case in cases(&file, "cases") {
        let window = Window::new(ms(&case["window_ms"]));
        let mut now = at(0.0);
        for record in list(&case["records"]) {
            now = Moment::from_micros((millis(&record[1]) * 1000.0) as u64);
            window.record(now, record[0].as_bool().unwrap());
        }
        let expected = (case["successes"].as_u64().unwrap() as u32, case["total"].as_u64().unwrap() as u32);
        assert_eq!(window.counts(now), expected, "{case}");
        seen += 1;
    }
    for case in cases(&file, "trip_cases") {
        let min = case["min"].as_u64().unwrap() as u32;
        let detector = SuccessRate::new(case["threshold"].as_f64().unwrap(), Duration::from_secs(10), min);
        let words: Vec<&str> = case["records"].as_str().unwrap().split_whitespace().collect();
        let mut last = None;
        for pair in words.chunks(2).filter(|pair| pair.len() == 2) {
            let count: u32 = pair[0].parse().unwrap();
            let class = if pair[1].starts_with("ok") { "http-ok" } else { "http-502-failure" };
            for _ in 0..count {
                last = enmesh::breaker::detect::Detect::record(&detector, at(0.0), &crate::class(class));
            }
        }
        let trips = last.is_some();
        assert_eq!(trips, detector.judge(at(0.0)).is_some());
        assert_eq!(trips, case["trip"].as_bool().unwrap(), "{case}");
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

/// Deliberate: the jitter is uniform over its whole interval; Linkerd drops the part below a second.
#[test]
fn backoffs_double_as_linkerds_do_and_jitter_really() {
    let Some(file) = vectors("linkerd-backoff.json") else { return };
    let duration = |text: &str| match text.strip_suffix("ms") {
        Some(number) => Duration::from_millis(number.parse().unwrap()),
        None => Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap()),
    };
    let mut seen = 0;
    for (name, bounds) in file["bases_ms"].as_object().unwrap() {
        let range = name.split_whitespace().find(|word| word.contains("..")).unwrap();
        let (min, max) = range.split_once("..").unwrap();
        let backoff = Backoff::new(duration(min), duration(max), 0.0).unwrap();
        for (index, bound) in bounds.as_array().unwrap().iter().enumerate() {
            assert_eq!(
                backoff.bound(index as u32).as_millis() as u64,
                bound.as_u64().unwrap(),
                "{name} {index}"
            );
        }
        seen += 1;
    }
    for case in cases(&file, "validity") {
        let jitter = case["jitter"].as_f64().unwrap_or(f64::NAN);
        let made = Backoff::new(ms(&case["min_ms"]), ms(&case["max_ms"]), jitter);
        assert_eq!(made.is_ok(), case["ok"].as_bool().unwrap(), "{case}");
        seen += 1;
    }
    let rng = Rng::seeded(1);
    for case in cases(&file["linkerd_defect"], "consequence") {
        let (base, jitter) = (ms(&case["base_ms"]), case["jitter"].as_f64().unwrap());
        let backoff = Backoff::new(base, base * 10, jitter).unwrap();
        let waits: Vec<Duration> = (0..200).map(|_| backoff.above(0, &rng)).collect();
        let whole = waits.iter().filter(|wait| wait.subsec_millis() == 0).count();
        assert!(whole < 5, "{case}: {whole} of 200 are whole seconds");
        assert!(waits.iter().all(|wait| *wait >= base && *wait <= base.mul_f64(1.0 + jitter)));
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

#[derive(Debug, Clone)]
struct Replica(SocketAddr, Arc<AtomicU16>);

impl Service<Request<()>> for Replica {
    type Response = Response<Empty<Bytes>>;
    type Error = Error;
    type Future = std::future::Ready<Result<Response<Empty<Bytes>>, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let status = if self.0.port() == 1 { self.1.load(Relaxed) } else { 200 };
        std::future::ready(Ok(Response::builder().status(status).body(Empty::new()).unwrap()))
    }
}

/// A balancer over so many endpoints, of which the first answers with the status that is returned.
fn balance(file: &Value, case: &str, endpoints: u16) -> (Balance<Replica>, Arc<AtomicU16>) {
    let threshold = file[case]["max_failures"].as_u64().unwrap_or(3) as u32;
    let base = file[case]["min_backoff_ms"].as_u64().unwrap_or(1000);
    let breaker = BreakerSettings {
        detectors: vec![Detector::Consecutive { class: FailureClass::Any, threshold }],
        ejection_base: Duration::from_millis(base),
        jitter: 0.0,
        ejected_percent_max: 100,
        ..BreakerSettings::default()
    };
    let settings = BalancerSettings {
        min_ready: Some(0),
        algorithm: Some(Algorithm::RoundRobin),
        ..BalancerSettings::default()
    };
    let balance = Balance::new("svc", &settings, Some(&breaker), Rng::seeded(1));
    let status = Arc::new(AtomicU16::new(200));
    let set = EndpointSet::new((1..=endpoints).map(|port| Discovered::new(([127, 0, 0, 1], port).into())));
    balance.update(&set, |endpoint| Replica(endpoint.addr, Arc::clone(&status)));
    (balance, status)
}

async fn ask(balance: &Balance<Replica>) -> Result<u16, Error> {
    balance.clone().oneshot(Request::new(())).await.map(|response| response.status().as_u16())
}

/// Deliberate: with all endpoints shut a request fails at once, and says when to come back; Linkerd lets the first one
/// wait for three seconds.
#[tokio::test(start_paused = true)]
async fn a_lone_endpoint_is_shut_probed_and_opened() {
    let Some(file) = vectors("linkerd-failure-accrual.json") else { return };
    let case = &file["end_to_end"];
    let (balance, status) = balance(&file, "end_to_end", case["endpoints"].as_u64().unwrap() as u16);
    let base = ms(&case["min_backoff_ms"]);
    assert_eq!(ask(&balance).await.unwrap(), 200);
    status.store(500, Relaxed);
    for _ in 0..case["max_failures"].as_u64().unwrap() {
        assert_eq!(ask(&balance).await.unwrap(), 500);
    }
    let shut = async |wait: Duration| {
        for _ in 0..2 {
            let error = ask(&balance).await.unwrap_err();
            assert!(matches!(error, Error::BreakerOpen { retry_in } if retry_in == wait), "{error}");
        }
        tokio::time::advance(wait).await;
    };
    shut(base).await;
    assert_eq!(ask(&balance).await.unwrap(), 500, "the probe's answer is the caller's");
    status.store(200, Relaxed);
    shut(base * 2).await;
    assert_eq!(ask(&balance).await.unwrap(), 200);
    assert_eq!(ask(&balance).await.unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn with_one_of_two_shut_all_go_to_the_other() {
    let Some(file) = vectors("linkerd-failure-accrual.json") else { return };
    let (balance, status) = balance(&file, "two_endpoints", 2);
    status.store(500, Relaxed);
    while balance.inspect().shut == 0 {
        ask(&balance).await.unwrap();
    }
    for _ in 0..100 {
        assert_eq!(ask(&balance).await.unwrap(), 200);
    }
}
