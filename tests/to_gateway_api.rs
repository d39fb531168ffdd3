//! Profiles as HTTPRoutes: what is written decides as what it was written from, and what cannot be said is refused.

use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::load_text;
use enmesh::profile::invalid::Severity;
use enmesh::profile::route::{Action, Backend};
use enmesh::profile::service::{NoMatch, ServiceProfile};
use enmesh::route::head::RequestHead;
use enmesh::route::matcher::Matcher;
use http::Request;

fn profile(spec: &str) -> ServiceProfile {
    let text = format!(
        "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {{name: web.ns.svc.cluster.local}}\nspec:\n{spec}"
    );
    ServiceProfile::from_yaml(&text).unwrap()
}

/// Where a request goes: backends with weights, or what is answered.
fn decided(profile: &ServiceProfile, request: &Request<()>) -> String {
    let matcher = Matcher::compile(profile.routes.iter().map(|route| &route.condition)).unwrap();
    let found = matcher.find(&RequestHead::of_request(request)).map(|index| &profile.routes[index]);
    let to = |backends: &[enmesh::profile::route::WeightedBackend]| {
        let one = |weighted: &enmesh::profile::route::WeightedBackend| match &weighted.backend {
            Backend::Service { name, .. } => {
                format!("{}={}", name.short("cluster.local").host(), weighted.weight)
            }
            Backend::Invalid { .. } => "invalid".to_owned(),
        };
        backends.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let own = "web.ns=1".to_owned();
    match found.map(|route| &route.action) {
        None if profile.no_match == NoMatch::NotFound => "404".to_owned(),
        None if profile.backends.is_empty() => own,
        None => to(&profile.backends),
        Some(Action::Forward(forward)) if !forward.backends.is_empty() => to(&forward.backends),
        Some(Action::Forward(_)) if profile.backends.is_empty() => own,
        Some(Action::Forward(_)) => to(&profile.backends),
        Some(Action::Redirect(redirect)) => format!("redirect {redirect:?}"),
        Some(Action::Respond(respond)) => respond.status.to_string(),
    }
}

fn check(spec: &str) {
    let before = profile(spec);
    let written = before.to_gateway_api(Some(80), "cluster.local");
    let document = written.document.unwrap_or_else(|| panic!("{spec}: {:?}", written.faults)).to_string();
    let imported = load_text(&document, "written", &ImportSettings::default());
    let faults: Vec<_> = imported.notes.iter().flat_map(|notes| &notes.faults).collect();
    assert!(faults.is_empty(), "{document}: {faults:?}");
    let after = &imported.profiles[0];
    for method in ["GET", "POST", "PUT"] {
        for path in ["/", "/a", "/a/", "/a/b", "/ab", "/b?q=1", "/b?q=2", "/c/1"] {
            for header in ["1", "2"] {
                let uri = format!("http://web.ns{path}");
                let request =
                    Request::builder().method(method).uri(uri).header("x-h", header).body(()).unwrap();
                let (was, is) = (decided(&before, &request), decided(after, &request));
                assert_eq!(was, is, "{method} {path} {header}\n{spec}\n{document}");
            }
        }
    }
}

#[test]
fn what_is_written_decides_as_what_it_was_written_from() {
    check("  noMatch: Forward\n");
    check("  backends: [{service: a.ns, weight: 9}, {service: b.ns, weight: 1}]\n");
    check(
        "  routes:\n  - {name: GET /a, condition: {method: GET, path: {type: Exact, value: /a}}, backends: [{service: v1.ns}]}\n  \
         - {name: b, condition: {path: {type: PathPrefix, value: /a}}, backends: [{service: v2.ns, weight: 3}, {service: v3.ns}]}\n",
    );
    check(
        "  noMatch: NotFound\n  routes:\n  - name: r\n    condition: {any: [{path: {type: Exact, value: /ab}}, {all: [{path: {type: PathPrefix, value: /b}}, \
         {queryParams: [{name: q, value: '1'}]}]}]}\n  - name: s\n    condition: {path: {type: PathPrefix, value: /}, headers: [{name: x-h, value: '2'}], methods: [GET, PUT]}\n    \
         redirect: {hostname: other.test, statusCode: 301}\n",
    );
}

#[test]
fn what_an_httproute_cannot_say_is_refused() {
    let refused = |spec: &str, part: &str| {
        let written = profile(spec).to_gateway_api(Some(80), "cluster.local");
        assert!(written.document.is_none(), "{spec}");
        let rejected = written.faults.iter().filter(|fault| fault.severity == Severity::Rejected);
        let told: Vec<String> = rejected.map(ToString::to_string).collect();
        assert!(told.iter().any(|fault| fault.contains(part)), "{spec}: {told:?}");
    };
    let route = |text: &str| format!("  routes:\n  - {{name: r, {text}}}\n");
    refused(&route("condition: {not: {method: GET}}"), "cannot say");
    refused(&route("condition: {path: {type: StringPrefix, value: /a}}"), "compares its path");
    refused(&route("condition: {always: true}, directResponse: {status: 200}"), "answers by itself");
    refused(
        &route("condition: {always: true}, backendChoice: FirstAvailable, backends: [{service: a.ns}]"),
        "chooses",
    );
    refused(
        &route("condition: {always: true}, backends: [{service: www.example.com}]"),
        "no Service of Kubernetes",
    );
    // The wide rule stands first and takes all; Gateway API would ask the narrow one first.
    let order = "  routes:\n  - {name: wide, condition: {always: true}, backends: [{service: a.ns}]}\n  \
                 - {name: narrow, condition: {path: {type: Exact, value: /a}}, backends: [{service: b.ns}]}\n";
    refused(order, "in another order");
    let without_port = profile("  backends: [{service: a.ns}]\n").to_gateway_api(None, "cluster.local");
    assert!(without_port.document.is_none() && without_port.faults[0].problem.contains("--port"));
}
