//! Documents of SMI, Flagger and Linkerd's vectors through the importers: run with `ENMESH_CORPUS=…/shared/data`.

#[path = "support/corpus.rs"]
mod support;

use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::{Imported, load_text};
use enmesh::profile::invalid::Severity;
use enmesh::profile::settings::Detector;
use enmesh::route::head::RequestHead;
use enmesh::route::matcher::Matcher;
use enmesh::stdx::rng::Rng;
use http::Request;
use serde_json::{Value, json};
use support::{cases, corpus, files, list, vectors};

const YAML: [&str; 2] = ["yaml", "yml"];

fn imported(text: &str) -> Imported {
    load_text(text, "f", &ImportSettings::default())
}

fn refused(imported: &Imported) -> Vec<String> {
    let faults = imported.notes.iter().flat_map(|notes| &notes.faults);
    faults.filter(|fault| fault.severity == Severity::Rejected).map(ToString::to_string).collect()
}

#[test]
fn every_document_of_smi_and_flagger_loads_or_says_why_not() {
    let Some(root) = corpus("config") else { return };
    let (mut loaded, mut why) = (0, Vec::new());
    for file in files(&root.join("smi"), &YAML).iter().chain(&files(&root.join("flagger"), &YAML)) {
        let imported = imported(&std::fs::read_to_string(file).unwrap());
        let name = file.file_name().unwrap().to_str().unwrap();
        match refused(&imported).first() {
            None => loaded += 1,
            Some(fault) => why.push(format!("{name}: {fault}")),
        }
    }
    // Access control is read by `authz/smi.rs`; the others are fragments: a patch, answers of an API, no YAML.
    let known = |line: &&String| {
        line.contains("access control is not read here")
            || line.starts_with("ingress-ts-patch.yml")
            || line.contains("traffic-metrics__v1alpha1")
    };
    let strange: Vec<_> = why.iter().filter(|line| !known(line)).collect();
    assert!(strange.is_empty(), "{strange:#?}");
    assert!(loaded > 30 && why.len() < 15, "{loaded} {why:#?}");
}

#[test]
fn changed_documents_never_make_it_panic() {
    let Some(root) = corpus("config") else { return };
    let rng = Rng::seeded(1);
    for file in
        files(&root.join("gateway-api/conformance"), &YAML).iter().chain(&files(&root.join("smi"), &YAML))
    {
        let text = std::fs::read_to_string(file).unwrap();
        for _ in 0..10 {
            let mut lines: Vec<&str> = text.lines().collect();
            for _ in 0..=rng.below(6) {
                let at = rng.below(lines.len() as u32) as usize;
                let other = rng.below(lines.len() as u32) as usize;
                match rng.below(3) {
                    0 => drop(lines.remove(at)),
                    1 => lines.insert(at, lines[other]),
                    _ => lines.swap(at, other),
                }
            }
            for profile in imported(&lines.join("\n")).profiles {
                Matcher::compile(profile.routes.iter().map(|route| &route.condition)).unwrap();
            }
        }
    }
}

/// What a service with these annotations becomes.
fn annotated(annotations: &Value) -> Imported {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "n", "annotations": annotations},
        "spec": {"ports": [{"port": 80}]},
    });
    imported(&service.to_string())
}

#[test]
fn annotations_are_read_as_linkerd_reads_them() {
    let Some(vectors) = vectors("linkerd-annotations.json") else { return };
    let retry =
        |key: &str, value: &Value| annotated(&json!({ key: value })).profiles.pop().and_then(|p| p.retry);
    for case in cases(&vectors, "retry_http") {
        let statuses = retry("retry.linkerd.io/http", &case[0]).map(|retry| {
            let pair = |range: &std::ops::RangeInclusive<u16>| json!([range.start(), range.end()]);
            Value::from(retry.on.statuses.iter().map(pair).collect::<Vec<_>>())
        });
        assert_eq!(statuses.unwrap_or_else(|| json!("invalid")), case[1], "{case}");
    }
    for case in cases(&vectors, "retry_grpc") {
        let codes = retry("retry.linkerd.io/grpc", &case[0]).map(|retry| json!(retry.on.grpc));
        assert_eq!(codes.unwrap_or_else(|| json!("invalid")), case[1], "{case}");
    }
    for case in cases(&vectors, "duration") {
        let all = annotated(&json!({"timeout.linkerd.io/request": case[0]}));
        let bad = !all.notes[0].faults.is_empty();
        assert_eq!(bad, case[1] == "invalid", "{case}");
        if let Some(millis) = case[1].as_u64().filter(|millis| *millis > 0) {
            let time = all.profiles[0].timeouts.request.duration().unwrap();
            assert_eq!(time.as_millis(), u128::from(millis), "{case}");
        }
    }
}

#[test]
fn failure_accrual_is_read_as_linkerd_reads_it() {
    let Some(vectors) = vectors("linkerd-annotations.json") else { return };
    for case in cases(&vectors, "accrual") {
        let mut annotations = case["a"].as_object().cloned().unwrap_or_default();
        for (key, name) in [
            ("mode", "balancer.linkerd.io/failure-accrual"),
            ("max-failures", "balancer.linkerd.io/failure-accrual-consecutive-max-failures"),
            ("min-penalty", "balancer.linkerd.io/failure-accrual-consecutive-min-penalty"),
            ("jitter-ratio", "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio"),
            ("threshold", "balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold"),
            ("window", "balancer.alpha.linkerd.io/failure-accrual-success-rate-window"),
            ("min-requests", "balancer.alpha.linkerd.io/failure-accrual-success-rate-min-requests"),
        ] {
            if let Some(value) = case.get(key) {
                annotations.insert(name.to_owned(), value.clone());
            }
        }
        let all = annotated(&Value::Object(annotations));
        let breaker = all.profiles.first().and_then(|profile| profile.breaker.clone());
        let expected = &case["r"];
        if expected.is_null() || expected == "invalid" {
            assert!(breaker.is_none(), "{case}");
            assert_eq!(all.notes[0].faults.is_empty(), expected.is_null(), "{case}");
            continue;
        }
        let breaker = breaker.unwrap_or_else(|| panic!("{case}: {:?}", all.notes));
        let consecutive = breaker.detectors.iter().find_map(|detector| match detector {
            Detector::Consecutive { threshold, .. } => Some(*threshold),
            _ => None,
        });
        let rate = breaker.detectors.iter().find_map(|detector| match detector {
            Detector::SuccessRate { threshold, window, min_requests } => {
                Some((*threshold, *window, *min_requests))
            }
            _ => None,
        });
        let Some(expected) = expected.as_object() else {
            let both_off = expected.as_str().unwrap().starts_with("both");
            assert_eq!((consecutive.is_none(), rate.is_none()), (both_off, true), "{case}");
            continue;
        };
        for (key, value) in expected {
            let seen = match key.as_str() {
                "mode" => json!(if rate.is_some() { "unified" } else { "consecutive" }),
                "max_failures" => json!(consecutive),
                "min_ms" => json!(breaker.ejection_base.as_millis() as u64),
                "max_ms" => json!(breaker.ejection_max.as_millis() as u64),
                "jitter" => json!(f64::from(breaker.jitter)),
                "threshold" => json!(rate.unwrap().0),
                "window_ms" => json!(rate.unwrap().1.as_millis() as u64),
                "min_requests" => json!(rate.unwrap().2),
                other => panic!("{other} is not known"),
            };
            assert_eq!(seen.as_f64(), value.as_f64(), "{case} {key}");
        }
    }
}

#[test]
fn routes_rank_as_linkerd_ranks_them_but_for_regexes() {
    let Some(vectors) = vectors("linkerd-route-match.json") else { return };
    for case in cases(&vectors, "precedence") {
        let documents = list(&case["routes"]).iter().enumerate().map(|(index, route)| {
            let mut one = json!({});
            if let Some(path) = route["path"].as_str() {
                let kind = if path.starts_with('=') { "Exact" } else { "RegularExpression" };
                one["path"] = json!({"type": kind, "value": &path[1..]});
            }
            let headers = 0..route["headers"].as_u64().unwrap_or(0);
            one["headers"] = headers.map(|n| json!({"name": format!("x-{n}"), "value": "1"})).collect();
            let spec = json!({
                "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "hostnames": route["hosts"],
                "rules": [{"matches": [one], "backendRefs": [{"name": format!("b{index}"), "port": 80}]}],
            });
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": format!("r{index}"), "namespace": "n"}, "spec": spec,
            })
        });
        let text: Vec<String> = documents.map(|document| document.to_string()).collect();
        let all = imported(&text.join("\n"));
        assert!(refused(&all).is_empty(), "{case} {:?}", all.notes);
        let uri = case["request"].as_str().filter(|uri| uri.contains('/')).unwrap_or("/");
        let request =
            Request::get(uri).header("x-0", "1").header("x-1", "1").header("x-2", "1").body(()).unwrap();
        let routes = &all.profiles[0].routes;
        let matcher = Matcher::compile(routes.iter().map(|route| &route.condition)).unwrap();
        let found =
            matcher.find(&RequestHead::of_request(&request)).map(|index| routes[index].name.to_string());
        let winner = case["winner"].as_u64().unwrap();
        // The one quirk is a regex that ties with an exact path; Gateway API wants the exact one.
        let expected = if case["quirk"].is_string() { 1 - winner } else { winner };
        assert_eq!(found, Some(format!("r{expected}")), "{case}");
    }
}
