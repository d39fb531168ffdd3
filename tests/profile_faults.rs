//! What is wrong with a profile is said: all of it, by path, with a remedy; and what has no effect, too.

use enmesh::profile::matching::Condition;
use enmesh::profile::parse::parse;
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::settings::BudgetSettings;
use enmesh::profile::settings::Limit;
use std::time::Duration;

/// Reads `spec` under `version`, checks its faults as `severity? path: problem`, and answers the profile if it is good.
fn check(version: &str, spec: &str, expected: &[&str]) -> Option<ServiceProfile> {
    let text = format!(
        "{{apiVersion: {version}, kind: ServiceProfile, metadata: {{name: a.b.svc.cluster.local}}, spec: {spec}}}\n"
    );
    let mut documents = parse(&text, "f").documents;
    assert_eq!(documents.len(), 1, "{spec}");
    let document = documents.remove(0);
    let seen: Vec<String> = document
        .faults
        .iter()
        .map(|fault| {
            assert!(fault.place.is_some() && !fault.remedy.is_empty(), "{fault}");
            let text = format!("{}: {}", fault.path, fault.problem);
            match fault.severity {
                enmesh::profile::invalid::Severity::Rejected => text,
                other => format!("{other} {text}"),
            }
        })
        .collect();
    assert_eq!(seen, expected, "{spec}");
    let refused =
        expected.iter().any(|fault| !["ignored ", "approximated "].iter().any(|s| fault.starts_with(s)));
    assert_eq!(document.profile.is_none(), refused, "{spec}");
    document.profile
}

const LINKERD: &str = "linkerd.io/v1alpha2";
const OURS: &str = "enmesh.dev/v1";

fn route(fields: &str) -> String {
    format!("{{routes: [{{name: r, condition: {{method: GET}}, {fields}}}]}}")
}

#[test]
fn all_faults_of_a_document_are_found_at_once() {
    check(
        LINKERD,
        "{routes: [{condition: {methd: GET}, timeout: 5, isRetryable: maybe}, null, {name: x, condition: {}}], \
         retryBudget: {retryRatio: -1, minRetriesPerSecond: 1.5, ttl: ''}, dstOverrides: [{weight: x}], opaquePorts: [0]}",
        &[
            "spec.routes[0].name: is missing",
            "spec.routes[0].condition: has no field set",
            "spec.routes[0].condition.methd: is no field here",
            "spec.routes[0].timeout: must be a duration such as 250ms, 10s or 1m30s, not 5",
            "spec.routes[0].isRetryable: must be true or false, not \"maybe\"",
            "spec.routes[1]: is null",
            "spec.routes[2].condition: has no field set",
            "spec.retryBudget.retryRatio: must be a number of 0 at least, not -1",
            "spec.retryBudget.minRetriesPerSecond: must be a whole number from 0 to 4294967295, not 1.5",
            "spec.dstOverrides[0].authority: is missing",
            "spec.dstOverrides[0].weight: must be a quantity such as 1, 500m or 1.5, not \"x\"",
            "spec.opaquePorts[0]: must be a port from 1 to 65535, not 0",
        ],
    );
}

#[test]
fn what_linkerd_would_drop_in_silence_is_said_and_widens_nothing() {
    let never = Condition::Any(Vec::new());
    let what = "a pattern in regex syntax (unclosed group)";
    for (condition, path, expected) in [
        ("{pathRegex: (}", "condition", never.clone()),
        ("{all: [{pathRegex: (}]}", "condition.all[0]", Condition::All(vec![never.clone()])),
        ("{not: {pathRegex: (}}", "condition.not", Condition::Not(Box::new(Condition::Always))),
    ] {
        let fault = format!(
            "ignored spec.routes[0].{path}.pathRegex: must be {what}, not \"(\": this part of the rule matches nothing"
        );
        let spec = format!("{{routes: [{{name: r, condition: {condition}}}]}}");
        let profile = check(LINKERD, &spec, &[&fault]).expect("good");
        assert_eq!(profile.routes[0].condition, expected);
        check(OURS, &spec, &[&format!("spec.routes[0].{path}.pathRegex: must be {what}, not \"(\"")]);
    }
    let profile = check(
        LINKERD,
        &route("timeout: -1s"),
        &["ignored spec.routes[0].timeout: is negative (\"-1s\"): the route has no timeout"],
    );
    assert_eq!(profile.expect("good").routes[0].timeouts.response_headers, Limit::Unset);
    check(
        LINKERD,
        &route("responseClasses: [{condition: {all: []}}]"),
        &[
            "ignored spec.routes[0].responseClasses[0].condition.all: must be a list with items, not a list: this part \
           of the class matches nothing",
        ],
    );
}

#[test]
fn budgets_are_exact_and_those_of_no_use_retry_nothing() {
    let budget = |spec: &str, faults: &[&str]| {
        check(LINKERD, &format!("{{retryBudget: {spec}}}"), faults).expect("good").retry_budget.expect("one")
    };
    let windowed = |ratio_ppm, min_per_second, ttl| BudgetSettings::Windowed {
        ratio_ppm,
        min_per_second,
        ttl: Duration::from_secs(ttl),
    };
    assert_eq!(
        budget("{retryRatio: 0.15, minRetriesPerSecond: 2147483647, ttl: 1m}", &[]),
        windowed(150_000, 2_147_483_647, 60)
    );
    let nothing = windowed(0, 0, 10);
    assert_eq!(
        budget(
            "{retryRatio: 5000.0, minRetriesPerSecond: 1, ttl: 10s}",
            &["ignored spec.retryBudget.retryRatio: must be from 0 to 1000, not 5000.0: nothing is retried"]
        ),
        nothing
    );
    assert_eq!(
        budget(
            "{retryRatio: 1, minRetriesPerSecond: 1, ttl: 61s}",
            &["ignored spec.retryBudget.ttl: must be from 1s to 60s, not \"61s\": nothing is retried"]
        ),
        nothing
    );
    check(
        OURS,
        "{retryBudget: {retryRatio: 1, ttl: 61s, minRetriesPerSecond: 1}}",
        &["spec.retryBudget.ttl: must be a duration from 1s to 1m, not \"61s\""],
    );
    check(
        OURS,
        "{retryBudget: {activeRatio: 0.2, maxTokens: 5}}",
        &["spec.retryBudget: says 2 things at once"],
    );
}

#[test]
fn overrides_keep_their_weights_exactly() {
    let spec = "{dstOverrides: [{authority: 'x.y:80', weight: 500m}, {authority: x.z, weight: 2}]}";
    let profile = check(LINKERD, spec, &[]).expect("good");
    assert_eq!(profile.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [500, 2_000]);
    check(
        LINKERD,
        "{dstOverrides: [{authority: x, weight: 4294968}, {authority: y, weight: -1}]}",
        &[
            "spec.dstOverrides[0].weight: must be a weight from 0 to 4294967, not 4294968",
            "spec.dstOverrides[1].weight: must be a weight from 0 to 4294967, not -1",
        ],
    );
    check(
        LINKERD,
        "{dstOverrides: [{authority: x, weight: 4000000}, {authority: y, weight: 4000000}]}",
        &["spec.dstOverrides: the weights add up to 8000000000, more than 4294967295"],
    );
    let profile = check(
        LINKERD,
        "{dstOverrides: [{authority: x, weight: 0}]}",
        &["ignored spec.dstOverrides: has only weights of 0: traffic goes to the service itself"],
    );
    assert_eq!(profile.expect("good").backends, []);
    let profile = check(
        LINKERD,
        "{dstOverrides: [{authority: 'a b', weight: 1}, {authority: y, weight: 1}]}",
        &[
            "ignored spec.dstOverrides[0].authority: is no host (only letters, digits, `-`, `_` and `.` may stand in a \
           host): it gets nothing",
        ],
    );
    assert_eq!(profile.expect("good").backends.len(), 1);
}

#[test]
fn both_forms_of_opaque_ports_load_and_the_first_version_wants_routes() {
    for spec in ["{opaquePorts: {'3306': {}, '25': {}}}", "{opaquePorts: ['25', 3306]}"] {
        assert_eq!(check(LINKERD, spec, &[]).expect("good").opaque_ports, [25, 3306]);
    }
    check("linkerd.io/v1alpha1", "{}", &["spec.routes: is missing"]);
    check("linkerd.io/v1alpha1", "{routes: []}", &[]);
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    for (fields, fault) in [
        ("isRetryable: false, retry: {}", "isRetryable: is false beside `retry`"),
        (
            "timeout: 1s, timeouts: {responseHeaders: 2s}",
            "timeout: is another name of `timeouts.responseHeaders`, which is set too",
        ),
        (
            "timeouts: {attempt: 1s, backendRequest: 1s}",
            "timeouts.backendRequest: is another name of `attempt`, which is set too",
        ),
        ("timeouts: {attempt: 2s, request: 1s}", "timeouts: attempt (2s) is longer than request (1s)"),
        ("retry: {backoff: {base: 2s, max: 1s}}", "retry.backoff.max: max (1s) is below base (2s)"),
        ("retry: {'on': [5xy]}", "retry.on[0]: \"5xy\" is no status, no range of them and no condition"),
        ("retry: {attempts: 11}", "retry.attempts: must be a whole number from 1 to 10, not 11"),
        ("redirect: {}, backends: [{service: x}]", ": sends on, redirects or answers itself at once"),
        ("backends: [{service: x, weight: 1, wieght: 2}]", "backends[0].wieght: is no field here"),
        (
            "filters: [{type: CORS, urlRewrite: {hostname: x}}]",
            "filters[0].type: says \"CORS\" and `cors` is not set",
        ),
        (
            "mirrors: [{service: x, fraction: {numerator: 3, denominator: 2}}]",
            "mirrors[0].fraction: is more than all (3 of 2)",
        ),
        (
            "fault: {abort: {httpStatus: 1}}",
            "fault.abort.httpStatus: must be a whole number from 200 to 599, not 1",
        ),
        ("hash: [{header: a, query: b}]", "hash[0]: says 2 things at once"),
        ("slo: {}", "slo: says no objective"),
    ] {
        let dot = if fault.starts_with(':') { "" } else { "." };
        check(OURS, &route(fields), &[&format!("spec.routes[0]{dot}{fault}")]);
    }
    for (spec, fault) in [
        (
            "{balancer: {algorithm: Maglev, tableSize: 4}}",
            "balancer.tableSize: must be a prime number, not 4",
        ),
        ("{balancer: {choices: 3}}", "balancer.choices: is for the algorithm LeastRequest only"),
        (
            "{failureAccrual: {mode: consecutive, detectors: []}}",
            "failureAccrual.mode: stands beside `detectors`",
        ),
        (
            "{failureAccrual: {minPenalty: 2s, maxPenalty: 1s}}",
            "failureAccrual.maxPenalty: maxPenalty (1s) is below minPenalty (2s)",
        ),
        ("{backends: [], dstOverrides: []}", "backends: stands beside `dstOverrides`"),
        ("{tls: {mode: mesh}}", "tls.mode: \"mesh\" is no value here"),
        (
            "{limits: {maxRequests: 0}}",
            "limits.maxRequests: must be a whole number from 1 to 4294967295, not 0",
        ),
        ("{defaults: envoy}", "defaults: \"envoy\" is no value here"),
    ] {
        check(OURS, spec, &[&format!("spec.{fault}")]);
    }
}

#[test]
fn a_document_of_linkerd_means_the_same_under_our_version() {
    let spec = "{routes: [{name: r, condition: {method: get, pathRegex: ' /a|/b '}, isRetryable: true, timeout: 300ms, \
                responseClasses: [{condition: {status: {min: 404}}, isFailure: true}]}], \
                retryBudget: {retryRatio: 0.2, minRetriesPerSecond: 10, ttl: 10s}, opaquePorts: {'25': {}}, \
                dstOverrides: [{authority: x, weight: 1}]}";
    let theirs = check(LINKERD, spec, &[]).expect("good");
    let ours = check(OURS, spec, &[]).expect("good");
    assert_eq!(ServiceProfile { defaults: ours.defaults, ..theirs }, ours);
}

#[test]
fn documents_of_other_kinds_are_refused_with_a_word() {
    for (text, problem) in [
        ("kind: Service\napiVersion: v1\n", "is no ServiceProfile (kind \"Service\", apiVersion \"v1\")"),
        ("kind: ServiceProfile\napiVersion: linkerd.io/v2\n", "apiVersion \"linkerd.io/v2\" is not known"),
        ("5\n", "is no ServiceProfile (kind \"\", apiVersion \"\")"),
        ("a: [\n", "is no YAML: "),
    ] {
        let documents = parse(text, "f").documents;
        assert!(documents[0].profile.is_none());
        assert_eq!(documents[0].faults.len(), 1, "{:?}", documents[0].faults);
        assert!(documents[0].faults[0].problem.starts_with(problem), "{:?}", documents[0].faults);
    }
    assert!(
        ServiceProfile::from_yaml("").is_err() && ServiceProfile::from_yaml("a: 1\n---\nb: 1\n").is_err()
    );
}
