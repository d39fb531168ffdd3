//! The corpus of ServiceProfiles (`ENMESH_CORPUS`): what loads, what does not, and what it means.

#[path = "support/corpus.rs"]
mod support;

use enmesh::profile::duration;
use enmesh::profile::generate::draft::Generated;
use enmesh::profile::generate::openapi::from_openapi;
use enmesh::profile::generate::refine::Refinements;
use enmesh::profile::generate::tap;
use enmesh::profile::generate::target::Sources;
use enmesh::profile::generate::target::Target;
use enmesh::profile::generate::template::template;
use enmesh::profile::invalid::Severity;
use enmesh::profile::matching::Condition;
use enmesh::profile::matching::PathKind;
use enmesh::profile::matching::ResponseCondition;
use enmesh::profile::node;
use enmesh::profile::node::Kind;
use enmesh::profile::node::Node;
use enmesh::profile::parse::parse;
use enmesh::profile::route::Backend;
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::BudgetSettings;
use enmesh::profile::settings::Limit;
use serde_json::Value;
use serde_json::json;
use support::corpus;
use support::json_of;

/// What the reference's refusal must be called here.
fn gist(error: &str) -> &str {
    let gists = [
        ("unknown field", "is no field here"),
        ("invalid name", "must be an RFC 1123 subdomain"),
        ("no condition", "condition: is missing"),
        ("must have a field set", "has no field set"),
        ("cannot be smaller", "is below min"),
        ("cannot unmarshal", "must be a whole number"),
        ("invalid duration", "must be a duration"),
        ("null condition", "is null"),
        ("null response class", "is null"),
    ];
    gists.iter().find(|(theirs, _)| error.contains(theirs)).map_or("?", |(_, ours)| ours)
}

#[test]
fn what_the_reference_accepts_loads_and_nothing_else() {
    let Some(path) = corpus("profile/validate") else { return };
    let mut count = 0;
    for file in ["cases.json", "derived-cases.json"] {
        for case in json_of(path.join(file))["cases"].as_array().expect("cases") {
            let parsed = parse(case["yaml"].as_str().expect("yaml"), "case");
            assert_eq!(parsed.documents.len(), 1, "{case}");
            let document = &parsed.documents[0];
            assert_eq!(
                Value::Bool(document.profile.is_some()),
                case["valid"],
                "{case}\n{:?}",
                document.faults
            );
            if let Some(error) = case["error"].as_str() {
                let faults: Vec<String> = document.faults.iter().map(ToString::to_string).collect();
                assert!(faults.iter().any(|fault| fault.contains(gist(error))), "{error}: {faults:?}");
                assert!(document.faults.iter().all(|fault| fault.place.is_some()), "{faults:?}");
            }
            count += 1;
        }
    }
    assert!(count >= 20, "{count}");
}

#[test]
fn published_profiles_load_without_a_word() {
    let Some(path) = corpus("profile/accept") else { return };
    let mut count = 0;
    for entry in std::fs::read_dir(path).expect("a folder") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("readable");
        let parsed = parse(&text, "accept");
        for document in &parsed.documents {
            assert_eq!(document.faults, []);
            let profile = document.profile.as_ref().expect("good");
            assert!(!profile.routes.is_empty());
            count += 1;
        }
    }
    assert!(count >= 5, "{count}");
}

fn condition_as_sent(condition: &Condition) -> Value {
    let list = |items: &[Condition]| items.iter().map(condition_as_sent).collect::<Vec<_>>();
    match condition {
        Condition::All(items) => json!({"all": list(items)}),
        Condition::Any(items) => json!({"any": list(items)}),
        Condition::Not(inner) => json!({"not": condition_as_sent(inner)}),
        Condition::Method(methods) => json!({"method": methods[0].as_str()}),
        Condition::Path(path) if path.kind == PathKind::Regex => json!({"path": {"regex": &*path.value}}),
        other => panic!("{other:?}"),
    }
}

fn class_as_sent(condition: &ResponseCondition) -> Value {
    let list = |items: &[ResponseCondition]| items.iter().map(class_as_sent).collect::<Vec<_>>();
    match condition {
        ResponseCondition::All(items) => json!({"all": list(items)}),
        ResponseCondition::Any(items) => json!({"any": list(items)}),
        ResponseCondition::Not(inner) => json!({"not": class_as_sent(inner)}),
        ResponseCondition::Status(range) => json!({"status": {"min": range.start(), "max": range.end()}}),
    }
}

/// The model in the form that the controller sends.
fn as_sent(profile: &ServiceProfile, port: u16) -> Value {
    let route = |route: &enmesh::profile::route::Route| {
        let class = |class: &enmesh::profile::route::ResponseClass| json!({"condition": class_as_sent(&class.condition), "isFailure": class.is_failure});
        let mut sent = json!({
            "metricsLabels": {"route": &*route.name},
            "condition": condition_as_sent(&route.condition),
            "responseClasses": route.response_classes.iter().map(class).collect::<Vec<_>>(),
        });
        if let Limit::After(time) = route.timeouts.response_headers {
            sent["timeout"] = json!({"seconds": time.as_secs(), "nanos": time.subsec_nanos()});
        }
        sent
    };
    let default = BudgetSettings::Windowed {
        ratio_ppm: 200_000,
        min_per_second: 10,
        ttl: std::time::Duration::from_secs(10),
    };
    let Some(BudgetSettings::Windowed { ratio_ppm, min_per_second, ttl }) =
        profile.retry_budget.or(Some(default))
    else {
        panic!()
    };
    let mut sent = json!({
        "routes": profile.routes.iter().map(route).collect::<Vec<_>>(),
        "retryBudget": {
            "minRetriesPerSecond": min_per_second,
            "retryRatio": f64::from(ratio_ppm) / 1e6,
            "ttl": duration::to_go(ttl),
        },
    });
    if !profile.backends.is_empty() {
        let backend = |weighted: &enmesh::profile::route::WeightedBackend| {
            let Backend::Service { name, .. } = &weighted.backend else { panic!() };
            // Theirs is in ten-thousandths.
            json!({"authority": name.or_port(port).to_string(), "weight": weighted.weight * 10})
        };
        sent["dstOverrides"] = profile.backends.iter().map(backend).collect();
    }
    sent
}

/// The controller sends a missing bound as 0, which its proxy then drops; here it is that one status.
fn one_bound_is_one_status(value: &mut Value) {
    if let Some(status) = value.get_mut("status").filter(|status| status["max"] == 0) {
        status["max"] = status["min"].clone();
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(one_bound_is_one_status),
        Value::Object(map) => map.values_mut().for_each(one_bound_is_one_status),
        _ => {}
    }
}

#[test]
fn the_model_means_what_the_controller_sends() {
    let Some(path) = corpus("profile/translate/cases.json") else { return };
    let cases = json_of(path);
    let port = u16::try_from(cases["port"].as_u64().expect("port")).expect("small");
    let mut count = 0;
    for case in cases["cases"].as_array().expect("cases") {
        let mut spec = if case["profile"].is_null() { json!({}) } else { case["profile"].clone() };
        // The cases skip validation, which wants names.
        for route in spec["routes"].as_array_mut().into_iter().flatten() {
            if route.get("name").is_none() {
                route["name"] = json!("unnamed");
            }
        }
        let document = json!({
            "apiVersion": "linkerd.io/v1alpha2",
            "kind": "ServiceProfile",
            "metadata": {"name": "foo.bar.svc.cluster.local", "namespace": "bar"},
            "spec": spec,
        });
        let parsed = parse(&document.to_string(), "case");
        let profile = parsed.documents[0].profile.as_ref();
        let name = case["name"].as_str().expect("a name");
        count += 1;
        if name == "derived: bad route timeout is dropped, profile still sent" {
            assert!(profile.is_none(), "the validator refuses it before it gets there, and so do we");
            continue;
        }
        let mut sent = case["sent"].clone();
        one_bound_is_one_status(&mut sent);
        match (sent, profile) {
            (Value::Null, profile) => assert!(profile.is_none(), "{name}: {profile:?}"),
            (Value::String(any), profile) => assert!(any == "any" && profile.is_some(), "{name}"),
            (sent, Some(profile)) => assert_eq!(as_sent(profile, port), sent, "{name}"),
            (_, None) => panic!("{name}: {:?}", parsed.documents[0].faults),
        }
    }
    assert!(count >= 10, "{count}");
}

/// Parses one route of `condition` and answers its condition and whether something was found to have no effect.
fn condition(condition: &Value) -> (Condition, bool) {
    let document = json!({
        "apiVersion": "linkerd.io/v1alpha2",
        "kind": "ServiceProfile",
        "metadata": {"name": "a.b.svc.cluster.local"},
        "spec": {"routes": [{"name": "r", "condition": condition}]},
    });
    let document = parse(&document.to_string(), "case").documents.remove(0);
    let noted = document.faults.iter().any(|fault| fault.severity == Severity::Ignored);
    (document.profile.unwrap_or_else(|| panic!("{:?}", document.faults)).routes.remove(0).condition, noted)
}

/// A slow and obvious matcher.
fn holds(condition: &Condition, method: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    match condition {
        Condition::Always => true,
        Condition::All(items) => items.iter().all(|item| holds(item, method, path)),
        Condition::Any(items) => items.iter().any(|item| holds(item, method, path)),
        Condition::Not(inner) => !holds(inner, method, path),
        Condition::Method(methods) => methods.iter().any(|one| one.as_str() == method),
        Condition::Path(matcher) => {
            regex::Regex::new(&format!("^(?:{})$", matcher.value)).expect("a pattern").is_match(path)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn conditions_are_those_of_the_vectors() {
    let Some(path) = corpus("vectors/linkerd-sp-match.json") else { return };
    let vectors = json_of(path);
    for row in vectors["request"].as_array().expect("rows") {
        let (condition, noted) = condition(&row["condition"]);
        assert!(!noted, "{row}");
        for request in row["requests"].as_array().expect("requests") {
            let (method, path) =
                (request["method"].as_str().expect("m"), request["path"].as_str().expect("p"));
            let seen = holds(&condition, method, path);
            // What is a quirk of theirs is grouped here: `/a|/b` is exactly these two.
            let quirk = row["quirk"] == true && !["/a", "/b"].contains(&path);
            assert_eq!(
                Value::Bool(seen),
                if quirk { json!(false) } else { request["match"].clone() },
                "{row}"
            );
        }
    }
    for row in vectors["invalid_regex"].as_array().expect("rows") {
        let (condition, noted) = condition(&row["condition"]);
        assert!(noted && !holds(&condition, "GET", "/"), "a part that is lost widens nothing: {row}");
    }
}

/// Whether a status is in a class.
fn in_class(condition: &ResponseCondition, status: u16) -> bool {
    match condition {
        ResponseCondition::All(items) => items.iter().all(|item| in_class(item, status)),
        ResponseCondition::Any(items) => items.iter().any(|item| in_class(item, status)),
        ResponseCondition::Not(inner) => !in_class(inner, status),
        ResponseCondition::Status(range) => range.contains(&status),
    }
}

#[test]
fn response_classes_are_those_of_the_vectors() {
    let Some(path) = corpus("vectors/linkerd-sp-match.json") else { return };
    for row in json_of(path)["response"].as_array().expect("rows") {
        let document = json!({
            "apiVersion": "linkerd.io/v1alpha2",
            "kind": "ServiceProfile",
            "metadata": {"name": "a.b.svc.cluster.local"},
            "spec": {"routes": [{
                "name": "r",
                "condition": {"method": "GET"},
                "responseClasses": [{"condition": row["condition"]}],
            }]},
        });
        let profile = ServiceProfile::from_yaml(&document.to_string()).expect("good");
        let class = &profile.routes[0].response_classes[0].condition;
        for (status, holds) in row["statuses"].as_object().expect("statuses") {
            // Their proxy drops a range with one bound; here it is that status, as their documentation says.
            let holds = if row["quirk"] == true { json!(true) } else { holds.clone() };
            assert_eq!(Value::Bool(in_class(class, status.parse().expect("a status"))), holds, "{row}");
        }
    }
}

/// The YAML of a document as JSON, so that documents are compared and not bytes.
fn tree(text: &str) -> Value {
    let mut documents = node::read(text);
    assert_eq!(documents.len(), 1, "{text}");
    let document = documents.remove(0);
    assert_eq!(document.faults, [], "{text}");
    as_json(&document.root)
}

fn as_json(node: &Node) -> Value {
    match &node.value {
        node::Value::Map(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.clone(), as_json(&entry.node))).collect())
        }
        node::Value::List(items) => Value::Array(items.iter().map(as_json).collect()),
        node::Value::Scalar(scalar) => match scalar.kind() {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(value),
            Kind::Number => serde_json::from_str(&scalar.text).expect("a number"),
            Kind::Text => Value::String(scalar.text.clone()),
        },
    }
}

fn target_of(case: &std::path::Path) -> Target {
    let args = json_of(case.join("args.json"));
    let text = |key: &str| args[key].as_str().expect("a text").to_owned();
    let target = Target {
        service: text("service"),
        namespace: text("namespace"),
        cluster_domain: text("clusterDomain"),
    };
    assert_eq!(target.check(), Ok(()));
    target
}

/// Checks every case of a folder: what `generate` makes of it, as YAML and as JSON.
fn generated(folder: &str, least: usize, generate: impl Fn(&std::path::Path, &Target) -> Generated) {
    let Some(path) = corpus(folder) else { return };
    let mut count = 0;
    for entry in std::fs::read_dir(path).expect("a folder") {
        let case = entry.expect("an entry").path();
        let generated = generate(&case, &target_of(&case));
        let expected = tree(&std::fs::read_to_string(case.join("expected.yaml")).expect("readable"));
        assert_eq!(tree(&generated.to_yaml()), expected, "{}", case.display());
        assert_eq!(tree(&generated.to_json()), expected, "{}", case.display());
        assert!(!generated.to_json().contains('\n'));
        assert_eq!(generated.faults, [], "{}", case.display());
        count += 1;
    }
    assert!(count >= least, "{count}");
}

fn input(case: &std::path::Path) -> String {
    let found = ["input.yaml", "input.json", "input.proto"].map(|name| case.join(name));
    let path = found.iter().find(|path| path.exists()).expect("an input");
    std::fs::read_to_string(path).expect("readable")
}

#[test]
fn openapi_descriptions_become_the_reference_s_documents() {
    generated("profile/openapi", 11, |case, target| {
        from_openapi(&input(case), target, Refinements::default()).expect("a description")
    });
}

#[cfg(feature = "cli")]
#[test]
fn protobuf_files_become_the_reference_s_documents() {
    generated("profile/proto", 6, |case, target| {
        enmesh::profile::generate::proto::from_proto(&input(case), target, Refinements::default())
            .expect("protobuf")
    });
}

#[test]
fn tapped_requests_become_the_reference_s_documents() {
    generated("profile/tap", 2, |case, target| {
        let events = json_of(case.join("events.json"));
        let seen = events.as_array().expect("events").iter().map(|event| tap::Seen {
            direction: match event["direction"].as_str() {
                Some("INBOUND") => tap::Direction::Inbound,
                _ => tap::Direction::Outbound,
            },
            stage: match event["event"].as_str() {
                Some("requestInit") => tap::Stage::Request,
                _ => tap::Stage::Response,
            },
            method: event["method"].as_str().expect("a method").to_owned(),
            path: event["path"].as_str().expect("a path").to_owned(),
        });
        let limit = json_of(case.join("args.json"))["tapRouteLimit"].as_u64().expect("a limit");
        tap::from_tap(seen, target, usize::try_from(limit).expect("small"), Refinements::default())
    });
}

#[test]
fn the_template_reads_as_the_reference_s_does() {
    let Some(case) = corpus("profile/template") else { return };
    let text = template(&target_of(&case));
    assert_eq!(tree(&text), tree(&std::fs::read_to_string(case.join("expected.yaml")).expect("readable")));
    let profile = ServiceProfile::from_yaml(&text).expect("good");
    assert_eq!(profile.routes.len(), 1);
}

#[test]
fn wrong_use_is_refused_in_the_reference_s_words() {
    let Some(path) = corpus("profile/cli/cases.json") else { return };
    let cases = json_of(path);
    for case in cases["cases"].as_array().expect("cases") {
        let options = &case["options"];
        let text = |key: &str, default: &str| options[key].as_str().unwrap_or(default).to_owned();
        let sources = Sources {
            template: options["template"] == true,
            open_api: options["openAPI"].is_string(),
            proto: options["proto"].is_string(),
        };
        let target = Target {
            service: text("name", ""),
            namespace: text("namespace", "default"),
            cluster_domain: "cluster.local".to_owned(),
        };
        let error = sources.check().and_then(|()| target.check()).err().map(|refusal| refusal.to_string());
        assert_eq!(error.as_deref(), case["error"].as_str(), "{case}");
    }
}
