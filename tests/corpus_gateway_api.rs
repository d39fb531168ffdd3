//! Gateway API's conformance tables, decided offline: run with `ENMESH_CORPUS=…/shared/data`.
//!
//! Each row's manifests are imported, the frontend's profile is compiled and asked; what is checked is the decision:
//! route, backends, redirect, changes of the request, retries and timeouts. What needs bytes on a wire (TLS
//! handshakes, CORS answers) is checked as far as it is a decision.

#[path = "support/corpus.rs"]
mod support;

use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::{Imported, load};
use enmesh::profile::invalid::Severity;
use enmesh::profile::object;
use enmesh::profile::route::{Action, Backend, Filter, Forward, Route};
use enmesh::profile::service::{NoMatch, ServiceProfile};
use enmesh::profile::settings::Limit;
use enmesh::route::filter::Filters;
use enmesh::route::head::RequestHead;
use enmesh::route::matcher::Matcher;
use enmesh::route::redirect::Redirection;
use http::{HeaderName, HeaderValue, Request, Uri};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use support::{cases, check_location, corpus, files, json_of, list};

fn imported(root: &Path, names: &[&str]) -> Imported {
    let mut objects = Vec::new();
    for name in names {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        objects.extend(object::read(&text, name));
    }
    load(objects, &ImportSettings::default())
}

/// One row, with what it is asked of.
struct Row<'a> {
    case: &'a Value,
    id: &'a str,
    imported: &'a Imported,
}

impl Row<'_> {
    fn request(&self) -> &Value {
        &self.case["request"]
    }

    fn expect(&self, key: &str) -> &Value {
        &self.case["expect"][key]
    }

    fn named(&self, host: &str, namespace: Option<&str>) -> Option<&ServiceProfile> {
        let mut profiles = self
            .imported
            .profiles
            .iter()
            .filter(|profile| profile.names.first().is_some_and(|name| name.to_string() == host));
        profiles.clone().find(|profile| profile.namespace.as_deref() == namespace).or_else(|| profiles.next())
    }

    /// The profile of the row's gateway listener, or of the service that its client calls.
    fn profile(&self) -> Option<&ServiceProfile> {
        match self.case["gateway"].as_str() {
            Some(gateway) => {
                let (namespace, name) = gateway.split_once('/').unwrap();
                let port = self.case["listener_port"].as_u64().unwrap_or(80);
                self.named(&format!("{name}.{namespace}:{port}"), None)
            }
            None => {
                let namespace =
                    self.case["client"]["namespace"].as_str().unwrap_or("gateway-conformance-infra");
                if self.case["client"].is_null() {
                    return self.named(&format!("same-namespace.{namespace}:80"), None);
                }
                let host = self.request()["host"].as_str().unwrap();
                let (host, port) = host.split_once(':').unwrap_or((host, "80"));
                let full = format!("{host}.{namespace}.svc.cluster.local");
                self.named(&format!("{full}:{port}"), Some(namespace))
                    .or_else(|| self.named(&full, Some(namespace)))
            }
        }
    }

    fn http(&self) -> Request<()> {
        let request = self.request();
        let host = request["host"].as_str().filter(|host| !host.is_empty()).unwrap_or("unnamed.test");
        let query =
            request["query"].as_str().map(|query| format!("?{}", query.replace(['<', '>', ' '], "_")));
        let path = request["path"]
            .as_str()
            .unwrap()
            .replace("<echo service>", "echo.Echo")
            .replace("<method>", "Echo");
        let uri = format!("http://{host}{path}{}", query.unwrap_or_default());
        let mut http =
            Request::builder().method(request["method"].as_str().unwrap()).uri(uri).body(()).unwrap();
        for (name, value) in request["headers"].as_object().into_iter().flatten() {
            let name: HeaderName = name.parse().unwrap();
            http.headers_mut().insert(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
        }
        http
    }

    fn found<'p>(&self, profile: &'p ServiceProfile, http: &Request<()>) -> Option<&'p Route> {
        let matcher = Matcher::compile(profile.routes.iter().map(|route| &route.condition)).unwrap();
        let head = RequestHead::of_request(http);
        let found = matcher.find(&head);
        assert_eq!(found, matcher.find_in_order(&head), "{}", self.id);
        found.map(|index| &profile.routes[index])
    }

    fn check(&self) {
        let http = self.http();
        let Some(profile) = self.profile() else {
            // Nothing is said about the service: it is called as it is.
            let host = self.request()["host"].as_str().unwrap().split(':').next().unwrap();
            assert!(!self.case["client"].is_null(), "{}: no profile", self.id);
            let name = self.expect("backend")["name"].as_str();
            assert!(name.is_none_or(|name| name == host), "{}", self.id);
            return;
        };
        let route = self.found(profile, &http);
        match self.expect("kind").as_str().unwrap() {
            "backend" => self.check_backend(route, http),
            "status" => self.check_status(profile, route),
            "redirect" => self.check_redirect(route, &http),
            "grpc_status" => {
                assert_eq!(self.expect("grpc_status"), "UNIMPLEMENTED", "{}", self.id);
                assert!(route.is_none() && profile.no_match == NoMatch::NotFound, "{}: {route:?}", self.id);
            }
            "distribution" => self.check_shares(route),
            "distribution_per_backend_headers" => self.check_backend_headers(route),
            // A handshake must fail: the name that the certificate must prove is another one.
            "failure" => self.check_tls(route, &Value::Null),
            other => panic!("{}: {other} is not known", self.id),
        }
    }

    fn forward<'r>(&self, route: Option<&'r Route>) -> &'r Forward {
        match route.map(|route| &route.action) {
            Some(Action::Forward(forward)) => forward,
            other => panic!("{}: is not sent on: {other:?}", self.id),
        }
    }

    fn service(backend: &Backend) -> (String, String) {
        let Backend::Service { name, .. } = backend else { panic!("{backend:?}") };
        let mut labels = name.host().split('.');
        (labels.next().unwrap().to_owned(), labels.next().unwrap().to_owned())
    }

    fn check_backend(&self, route: Option<&Route>, http: Request<()>) {
        let forward = self.forward(route);
        let route = route.unwrap();
        let expected = self.expect("backend");
        assert!(!forward.backends.is_empty(), "{}", self.id);
        for backend in forward.backends.iter().filter(|backend| backend.weight > 0) {
            let (name, namespace) = Self::service(&backend.backend);
            assert!(expected["name"].is_null() || expected["name"] == name, "{}: {name}", self.id);
            assert_eq!(expected["namespace"], namespace, "{}", self.id);
        }
        let sent = &self.case["expect"]["backend_request"];
        if sent["sni"].is_string() {
            return self.check_tls(Some(route), &sent["sni"]);
        }
        let (mut uri, mut headers) = (http.uri().clone(), http.headers().clone());
        Filters::compile(&forward.filters, &route.condition).unwrap().request(&mut uri, &mut headers);
        self.check_sent(sent, &uri, &headers);
        let mirrors: Vec<_> = forward
            .mirrors
            .iter()
            .map(|mirror| {
                let percent = f64::from(mirror.share.numerator) * 100.0 / f64::from(mirror.share.denominator);
                (Self::service(&mirror.backend).0, percent)
            })
            .collect();
        let expected: Vec<_> = list(self.expect("mirrored_to"))
            .iter()
            .map(|one| (one["name"].as_str().unwrap().to_owned(), one["percent"].as_f64().unwrap_or(100.0)))
            .collect();
        assert_eq!(mirrors, expected, "{}", self.id);
        self.check_response(route, forward);
        self.check_behaviour(route, true);
    }

    fn check_sent(&self, sent: &Value, uri: &Uri, headers: &http::HeaderMap) {
        let waived =
            list(self.expect("not_asserted_upstream")).iter().any(|what| what == "backend_request.path");
        if let (Some(path), false) = (sent["path"].as_str(), waived) {
            assert_eq!(uri.path(), path.split('?').next().unwrap(), "{}", self.id);
        }
        for (name, value) in sent["headers"].as_object().into_iter().flatten() {
            let seen = headers.get(name.as_str()).map(|value| value.to_str().unwrap());
            assert_eq!(seen, value.as_str(), "{}: {name}", self.id);
        }
        for name in list(&sent["absent_headers"]) {
            assert!(!headers.contains_key(name.as_str().unwrap()), "{}: {name}", self.id);
        }
    }

    /// What the response's headers must be is set by filters: those that set are looked for.
    fn check_response(&self, route: &Route, forward: &Forward) {
        let response = self.expect("response");
        let set: Vec<_> = forward
            .filters
            .iter()
            .filter_map(|filter| match filter {
                Filter::ResponseHeaders(mods) => {
                    Some(mods.set.iter().map(|(name, _)| name.to_ascii_lowercase()))
                }
                _ => None,
            })
            .flatten()
            .collect();
        let cors = forward.filters.iter().any(|filter| matches!(filter, Filter::Cors(_)));
        for (name, _) in response["headers"].as_object().into_iter().flatten() {
            let by_cors = name.starts_with("access-control-") && cors;
            assert!(by_cors || set.contains(&name.to_ascii_lowercase()), "{}: {name} {route:?}", self.id);
        }
        for name in list(&response["absent_headers"]) {
            assert!(!set.contains(&name.as_str().unwrap().to_ascii_lowercase()), "{}: {name}", self.id);
        }
    }

    /// Whether the call succeeds, given how its backend behaves: as often failing as told, or as slow.
    fn check_behaviour(&self, route: &Route, succeeds: bool) {
        let behaviour = &self.case["backend_behavior"];
        if let Some(failures) = behaviour["fail_first_n_attempts"].as_u64() {
            let retry = route.retry.as_ref().unwrap();
            let status = behaviour["failure"]["http_status"].as_u64();
            let listed = status.is_none_or(|status| {
                retry.on.statuses.iter().any(|range| range.contains(&u16::try_from(status).unwrap()))
            });
            assert!(status.is_some() || (retry.on.reset && retry.on.connect_failure && retry.idempotent));
            let enough = failures < u64::from(retry.attempts_max.unwrap());
            assert_eq!(listed && enough, succeeds, "{}: {retry:?}", self.id);
        } else if self.request()["query"] == "delay=1s" {
            let in_time = match route.timeouts.request {
                Limit::After(time) => time > Duration::from_secs(1),
                Limit::Unset | Limit::Disabled => true,
            };
            assert_eq!(in_time, succeeds, "{}: {:?}", self.id, route.timeouts);
        }
    }

    fn check_status(&self, profile: &ServiceProfile, route: Option<&Route>) {
        let statuses: Vec<u64> = list(self.expect("status")).iter().filter_map(Value::as_u64).collect();
        if self.case["backend_behavior"].is_object() || self.request()["query"] == "delay=1s" {
            return self.check_behaviour(route.unwrap(), false);
        }
        let seen = match route.map(|route| &route.action) {
            None if profile.no_match == NoMatch::NotFound => 404,
            None => 200,
            Some(Action::Respond(respond)) => u64::from(respond.status),
            Some(Action::Redirect(redirect)) => u64::from(redirect.status),
            Some(Action::Forward(forward)) => {
                let preflight = self.request()["method"] == "OPTIONS";
                if preflight && forward.filters.iter().any(|filter| matches!(filter, Filter::Cors(_))) {
                    200
                } else {
                    match &forward.backends[..] {
                        [only] => match &only.backend {
                            Backend::Invalid { status, .. } => u64::from(*status),
                            Backend::Service { .. } => 200,
                        },
                        _ => 200,
                    }
                }
            }
        };
        assert!(statuses.contains(&seen), "{}: {seen} {route:?}", self.id);
    }

    fn check_redirect(&self, route: Option<&Route>, http: &Request<()>) {
        let Some(Action::Redirect(redirect)) = route.map(|route| &route.action) else {
            panic!("{}: no redirect: {route:?}", self.id);
        };
        assert_eq!(list(self.expect("status")), [u64::from(redirect.status)], "{}", self.id);
        let redirection = Redirection::compile(redirect, &route.unwrap().condition).unwrap();
        let location: Uri = redirection.location(&RequestHead::of_request(http)).parse().unwrap();
        check_location(self.id, self.expect("redirect"), &location);
    }

    fn check_shares(&self, route: Option<&Route>) {
        let backends = &self.forward(route).backends;
        let total: u32 = backends.iter().map(|backend| backend.weight).sum();
        let expected = self.expect("backends").as_object().unwrap();
        assert_eq!(expected.len(), backends.len(), "{}", self.id);
        for backend in backends {
            let (name, namespace) = Self::service(&backend.backend);
            let share = f64::from(backend.weight) / f64::from(total);
            let wanted = expected[&format!("{namespace}/{name}")].as_f64().unwrap();
            assert!(
                (share - wanted).abs() < 0.05 && (wanted > 0.0 || share == 0.0),
                "{}: {name} {share}",
                self.id
            );
        }
    }

    fn check_backend_headers(&self, route: Option<&Route>) {
        let backends = &self.forward(route).backends;
        let expected = self.expect("per_backend_headers").as_object().unwrap();
        assert_eq!(expected.len(), backends.len(), "{}", self.id);
        for backend in backends {
            let (name, namespace) = Self::service(&backend.backend);
            let mut headers = http::HeaderMap::new();
            let condition = &route.unwrap().condition;
            let filters = Filters::compile(&backend.filters, condition).unwrap();
            filters.request(&mut Uri::from_static("/"), &mut headers);
            for (header, value) in expected[&format!("{namespace}/{name}")].as_object().unwrap() {
                assert_eq!(headers[header.as_str()], value.as_str().unwrap(), "{}: {name}", self.id);
            }
        }
    }

    /// The name sent in the handshake is that of the policy on the backend's port.
    fn check_tls(&self, route: Option<&Route>, sni: &Value) {
        let Backend::Service { name, .. } = &self.forward(route).backends[0].backend else {
            panic!("{}", self.id)
        };
        let full = self.named(&name.to_string(), None).or_else(|| self.named(name.host(), None));
        let tls = &full.unwrap_or_else(|| panic!("{}: no profile for {name}", self.id)).tls;
        assert!(!tls.identities.is_empty(), "{}", self.id);
        assert!(sni.is_null() || tls.sni.as_deref() == sni.as_str(), "{}: {tls:?} {sni}", self.id);
    }
}

#[test]
fn every_row_of_the_tables_gets_its_decision() {
    let Some(root) = corpus("config/gateway-api") else { return };
    let (mut checked, mut contradictory) = (0, 0);
    for file in files(&root.join("cases"), &["json"]) {
        let table = json_of(file);
        for case in cases(&table, "cases") {
            let id = case["id"].as_str().unwrap();
            if case["expect"]["contradicts_manifest"].is_string() {
                contradictory += 1;
                continue;
            }
            let mut names: Vec<&str> = vec![table["base_manifest"].as_str().unwrap()];
            match case["manifest"].as_str() {
                Some(manifest) => names.push(manifest),
                None => {
                    names.extend(table["route_file"].as_str());
                    names.extend(list(&table["extra_route_files"]).iter().filter_map(Value::as_str));
                }
            }
            let imported = imported(&root, &names);
            assert!(!imported.any_rejected(), "{id}: {:#?}", imported.notes);
            Row { case, id, imported: &imported }.check();
            checked += 1;
        }
    }
    eprintln!("{checked} rows checked, {contradictory} contradict their manifest");
    assert!(checked > 250);
}

#[test]
fn every_manifest_loads() {
    let Some(root) = corpus("config/gateway-api") else { return };
    for file in files(&root.join("conformance"), &["yaml"]) {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let imported = imported(&root, &[&name]);
        let faults = imported.notes.iter().flat_map(|notes| &notes.faults);
        let refused: Vec<_> = faults.filter(|fault| fault.severity == Severity::Rejected).collect();
        assert!(refused.is_empty(), "{name}: {refused:#?}");
        for profile in &imported.profiles {
            Matcher::compile(profile.routes.iter().map(|route| &route.condition)).unwrap();
        }
    }
}
