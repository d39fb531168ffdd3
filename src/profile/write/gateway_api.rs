//! Floor 1: writes a profile as an HTTPRoute of Gateway API, as far as that can say it.
//!
//! A profile is tried from the top, Gateway API ranks matches by itself: what is written is read again, and refused if
//! its rules would be tried in another order.

use crate::profile::import::cluster::ImportSettings;
use crate::profile::import::load;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::matching::HostMatch;
use crate::profile::matching::KeyMatch;
use crate::profile::matching::PathKind;
use crate::profile::matching::TextMatch;
use crate::profile::matching::ValueMatch;
use crate::profile::name::ServiceName;
use crate::profile::route::Action;
use crate::profile::route::Backend;
use crate::profile::route::Choice;
use crate::profile::route::Filter;
use crate::profile::route::PathRewrite;
use crate::profile::route::Route;
use crate::profile::route::WeightedBackend;
use crate::profile::scope;
use crate::profile::service::NoMatch;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::Limit;
use crate::profile::settings::RetrySettings;
use crate::profile::write::linkerd::Written;
use crate::profile::write::route as ours;
use crate::profile::write::tree::Tree;
use crate::profile::write::tree::time;
use serde_json::Value;
use serde_json::json;
use std::sync::Arc;

/// What a rule may have (Gateway API).
const MATCHES_MAX: usize = 64;

impl ServiceProfile {
    /// The profile as an HTTPRoute for its Service. `port` is that of the Service where no name says one; `domain` is what
    /// the names of services end in.
    pub fn to_gateway_api(&self, port: Option<u16>, domain: &str) -> Written {
        let mut writer = Writer { domain, port, own: None, faults: Vec::new() };
        let document = writer.document(self);
        let rejected = writer.faults.iter().any(|fault| fault.severity == Severity::Rejected);
        let document = document.filter(|_| !rejected);
        if let Some(why) = document.as_ref().and_then(|document| misread(document, domain)) {
            writer.refuse("spec.routes", &why);
            return Written { document: None, faults: writer.faults };
        }
        Written { document, faults: writer.faults }
    }
}

/// Whether the rules of `document` would be tried in another order than they are written in.
fn misread(document: &Value, domain: &str) -> Option<String> {
    let settings = ImportSettings { cluster_domain: domain.into(), ..ImportSettings::default() };
    let imported = load::load_text(&document.to_string(), "written", &settings);
    let refused = imported.notes.iter().flat_map(|notes| &notes.faults);
    if let Some(fault) = refused.into_iter().find(|fault| fault.severity == Severity::Rejected) {
        return Some(format!("would be refused there: {}: {}", fault.path, fault.problem));
    }
    let routes = imported.profiles.first().map(|profile| profile.routes.as_slice()).unwrap_or_default();
    let rule = |route: &Route| {
        let (_, rest) = route.origin.split_once("rules[")?;
        rest.split(']').next()?.parse::<usize>().ok()
    };
    let order: Vec<usize> = routes.iter().filter_map(rule).collect();
    let sorted = order.windows(2).all(|pair| matches!(pair, [a, b] if a <= b));
    (!sorted).then(|| "could be tried in another order: Gateway API ranks matches by itself".to_owned())
}

/// One way to match.
#[derive(Clone, Default)]
struct Way {
    path: Option<Value>,
    method: Option<String>,
    headers: Vec<Value>,
    query: Vec<Value>,
}

struct Writer<'a> {
    domain: &'a str,
    port: Option<u16>,
    own: Option<(String, String, Option<u16>)>,
    faults: Vec<Fault>,
}

impl Writer<'_> {
    fn refuse(&mut self, path: &str, problem: &str) {
        self.faults.push(Fault::new(Severity::Rejected, path, problem, "keep it as enmesh.dev/v1"));
    }

    fn lost(&mut self, set: bool, path: &str) {
        if set {
            let problem = "an HTTPRoute has no such field";
            self.faults.push(Fault::new(Severity::Ignored, path, problem, ""));
        }
    }

    /// Service, namespace and port of a name.
    fn place(&self, name: &ServiceName) -> Option<(String, String, Option<u16>)> {
        let short = name.short(self.domain);
        let (service, namespace) = scope::parts(&short)?;
        Some((service.to_owned(), namespace.to_owned(), name.port()))
    }

    fn document(&mut self, profile: &ServiceProfile) -> Option<Value> {
        let Some(own) = profile.name().and_then(|name| self.place(name)) else {
            self.refuse("metadata.name", "is no Service of Kubernetes");
            return None;
        };
        self.own = Some(own.clone());
        self.lost(profile.retry_budget.is_some(), "spec.retryBudget");
        self.lost(profile.breaker.is_some(), "spec.failureAccrual");
        self.lost(profile.balancer != Default::default(), "spec.balancer");
        self.lost(profile.limits != Default::default(), "spec.limits");
        self.lost(profile.objective.is_some(), "spec.slo");
        if profile.tls != Default::default() {
            self.refuse("spec.tls", "the peer would not be checked so: write a BackendTLSPolicy");
        }
        let hosts = self.hosts(&profile.routes);
        let mut rules = Vec::new();
        for (index, route) in profile.routes.iter().enumerate() {
            rules.extend(self.rule(profile, route, &format!("spec.routes[{index}]")));
        }
        if profile.no_match == NoMatch::Forward {
            let rest = Route { condition: Condition::Always, ..Route::default() };
            rules.extend(self.rule(profile, &rest, "spec"));
        }
        let parent = Tree::default().with("group", "").with("kind", "Service").with("name", own.0.as_str());
        let parent = parent.with("namespace", own.1.as_str()).maybe("port", own.2);
        let namespace = profile.namespace.as_deref().unwrap_or(&own.1);
        let spec = Tree::default()
            .with("parentRefs", vec![Value::from(parent)])
            .list("hostnames", hosts.into_iter().map(Value::from).collect())
            .list("rules", rules);
        Some(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": own.0, "namespace": namespace}, "spec": Value::from(spec),
        }))
    }

    /// The hosts that all routes name alike.
    fn hosts(&mut self, routes: &[Route]) -> Vec<String> {
        let of = |route: &Route| {
            let mut hosts = Vec::new();
            collect_hosts(&route.condition, &mut hosts);
            hosts
        };
        let first = routes.first().map(&of).unwrap_or_default();
        if routes.iter().any(|route| of(route) != first) {
            self.refuse("spec.routes", "name different hosts, and an HTTPRoute has one list of them");
        }
        first
    }

    fn rule(&mut self, profile: &ServiceProfile, route: &Route, path: &str) -> Option<Value> {
        let matches = match ways(&route.condition) {
            Ok(ways) if ways.len() <= MATCHES_MAX => ways.into_iter().map(Way::written).collect(),
            Ok(_) => return self.give_up(path, "has more matches than a rule may have"),
            Err(why) => return self.give_up(path, &why),
        };
        self.lost(!route.response_classes.is_empty(), &format!("{path}.responseClasses"));
        self.lost(route.fault.is_some(), &format!("{path}.fault"));
        self.lost(!route.rates.is_empty(), &format!("{path}.rateLimits"));
        self.lost(!route.hash.is_empty(), &format!("{path}.hash"));
        self.lost(route.session.is_some(), &format!("{path}.sessionPersistence"));
        let name = (!route.name.is_empty()).then(|| route.name.to_lowercase());
        let name = name.filter(|name| crate::profile::object::subdomain(name).is_ok());
        let tree = Tree::default().maybe("name", name).with("matches", Value::Array(matches));
        let tree = match &route.action {
            Action::Respond(_) => return self.give_up(path, "answers by itself, which an HTTPRoute cannot"),
            Action::Redirect(redirect) => {
                let filter = json!({"type": "RequestRedirect", "requestRedirect": ours::redirect(redirect)});
                tree.with("filters", vec![typed_paths(filter)])
            }
            Action::Forward(forward) => {
                if forward.choice != Choice::Weighted {
                    return self.give_up(path, "chooses a backend in a way that an HTTPRoute cannot");
                }
                let mut filters = Vec::new();
                for filter in &forward.filters {
                    filters.push(self.filter(filter, path)?);
                }
                for mirror in &forward.mirrors {
                    let reference = self.reference(&mirror.backend, path)?;
                    let share =
                        json!({"numerator": mirror.share.numerator, "denominator": mirror.share.denominator});
                    let mirror = json!({"backendRef": Value::from(reference), "fraction": share});
                    filters.push(json!({"type": "RequestMirror", "requestMirror": mirror}));
                }
                let backends = self.backends(profile, &forward.backends, path)?;
                tree.list("filters", filters).with("backendRefs", backends)
            }
        };
        Some(
            tree.below("timeouts", self.timeouts(route, path)).maybe("retry", self.retry(route, path)).into(),
        )
    }

    fn give_up<T>(&mut self, path: &str, why: &str) -> Option<T> {
        self.refuse(path, why);
        None
    }

    fn filter(&mut self, filter: &Filter, path: &str) -> Option<Value> {
        let kind = match filter {
            Filter::RequestHeaders(_) => "RequestHeaderModifier",
            Filter::ResponseHeaders(_) => "ResponseHeaderModifier",
            Filter::Cors(_) => {
                return self.give_up(path, "answers browsers, whose patterns an HTTPRoute may not have");
            }
            Filter::Rewrite(rewrite) => match rewrite.path {
                PathRewrite::Keep | PathRewrite::Full(_) | PathRewrite::PrefixElement(_) => "URLRewrite",
                PathRewrite::PrefixString(_) | PathRewrite::Regex { .. } => {
                    return self.give_up(path, "rewrites in a way that an HTTPRoute cannot");
                }
            },
        };
        let mut written = typed_paths(ours::filter(filter));
        if let Value::Object(fields) = &mut written {
            fields.insert("type".to_owned(), kind.into());
        }
        Some(written)
    }

    fn backends(
        &mut self,
        profile: &ServiceProfile,
        backends: &[WeightedBackend],
        path: &str,
    ) -> Option<Vec<Value>> {
        let said = if backends.is_empty() { &profile.backends } else { backends };
        // Gateway API has no word for the Service itself but its name.
        if said.iter().all(|backend| backend.weight == 0) && backends.is_empty() {
            let name = profile.name()?.clone();
            let own = self.reference(&Backend::Service { name, subset: None }, path)?;
            return Some(vec![own.into()]);
        }
        let mut references = Vec::new();
        for weighted in said {
            let mut filters = Vec::new();
            for filter in &weighted.filters {
                filters.push(self.filter(filter, path)?);
            }
            // Linkerd's weights are thousandths; what matters is their ratio.
            let weight = weighted.weight;
            if weight > 1_000_000 {
                return self.give_up(path, "has a weight above 1000000");
            }
            let reference = self.reference(&weighted.backend, path)?;
            references.push(reference.with("weight", weight).list("filters", filters).into());
        }
        Some(references)
    }

    fn reference(&mut self, backend: &Backend, path: &str) -> Option<Tree> {
        let Backend::Service { name, subset: None } = backend else {
            return self.give_up(path, "has a backend that is no whole Service");
        };
        let Some((service, namespace, port)) = self.place(name) else {
            return self.give_up(path, "has a backend that is no Service of Kubernetes");
        };
        let own = self.own.as_ref().and_then(|own| own.2);
        let Some(port) = port.or(own).or(self.port) else {
            return self.give_up(path, "leads to a Service whose port nobody says: give --port");
        };
        Some(Tree::default().with("name", service).with("namespace", namespace).with("port", port))
    }

    fn timeouts(&mut self, route: &Route, path: &str) -> Tree {
        let times = &route.timeouts;
        self.lost(times.response != Limit::Unset, &format!("{path}.timeouts.response"));
        self.lost(times.idle != Limit::Unset, &format!("{path}.timeouts.idle"));
        if times.response_headers != Limit::Unset {
            let problem = "bounds the response's headers, and there the whole response";
            let path = format!("{path}.timeout");
            self.faults.push(Fault::new(Severity::Approximated, path, problem, ""));
        }
        let text = |limit: Limit| match limit {
            Limit::Unset => None,
            Limit::Disabled => Some(Value::from("0s")),
            Limit::After(after) => Some(time(after)),
        };
        let request = text(times.request).or(text(times.response_headers));
        Tree::default().maybe("request", request).maybe("backendRequest", text(times.attempt))
    }

    fn retry(&mut self, route: &Route, path: &str) -> Option<Value> {
        let retry: &RetrySettings = route.retry.as_ref()?;
        let problem = "retries within its own conditions; there by status, and after broken connections";
        let path = format!("{path}.retry");
        self.faults.push(Fault::new(Severity::Approximated, path, problem, ""));
        let mut codes: Vec<u16> = retry.on.statuses.iter().flat_map(Clone::clone).collect();
        if retry.on.failures {
            codes.extend(500..=504);
        }
        codes.retain(|code| (400..=599).contains(code));
        codes.sort_unstable();
        codes.dedup();
        codes.truncate(64);
        let attempts = retry.attempts_max.map(|attempts| attempts.saturating_sub(1));
        Some(
            Tree::default()
                .list("codes", codes.into_iter().map(Value::from).collect())
                .maybe("attempts", attempts)
                .into(),
        )
    }
}

fn collect_hosts(condition: &Condition, into: &mut Vec<String>) {
    match condition {
        Condition::Host(hosts) => into.extend(hosts.iter().map(|host| match host {
            HostMatch::Exact(name) => name.to_string(),
            HostMatch::Suffix(suffix) => format!("*.{suffix}"),
        })),
        Condition::All(parts) => parts.iter().for_each(|part| collect_hosts(part, into)),
        _ => {}
    }
}

impl Way {
    fn written(self) -> Value {
        let tree = Tree::default().maybe("path", self.path).maybe("method", self.method);
        tree.list("headers", self.headers).list("queryParams", self.query).into()
    }

    fn and(mut self, other: Self) -> Result<Self, String> {
        if self.path.is_some() && other.path.is_some() || self.method.is_some() && other.method.is_some() {
            return Err("matches two paths or methods at once".to_owned());
        }
        self.path = self.path.or(other.path);
        self.method = self.method.or(other.method);
        self.headers.extend(other.headers);
        self.query.extend(other.query);
        Ok(self)
    }
}

/// All ways in which a condition can hold.
fn ways(condition: &Condition) -> Result<Vec<Way>, String> {
    match condition {
        // The hosts are the whole route's.
        Condition::Always | Condition::Host(_) => Ok(vec![Way::default()]),
        Condition::Any(parts) => {
            parts.iter().map(ways).collect::<Result<Vec<_>, _>>().map(|all| all.concat())
        }
        Condition::All(parts) => parts.iter().try_fold(vec![Way::default()], |before, part| {
            let more = ways(part)?;
            if before.len().saturating_mul(more.len()) > MATCHES_MAX {
                return Err("has more matches than a rule may have".to_owned());
            }
            let both =
                |one: &Way| more.iter().map(|other| one.clone().and(other.clone())).collect::<Vec<_>>();
            before.iter().flat_map(both).collect()
        }),
        Condition::Method(methods) => {
            Ok(methods.iter().map(|one| Way { method: Some(one.to_string()), ..Way::default() }).collect())
        }
        Condition::Path(path) => {
            let kind = match path.kind {
                _ if path.ignore_case => return Err("ignores the case of its path".to_owned()),
                PathKind::Exact => "Exact",
                PathKind::PrefixElement => "PathPrefix",
                PathKind::Regex => "RegularExpression",
                PathKind::PrefixString | PathKind::RegexPrefix | PathKind::Suffix | PathKind::Contains => {
                    return Err("compares its path in a way that an HTTPRoute cannot".to_owned());
                }
            };
            let path = json!({"type": kind, "value": &*path.value});
            Ok(vec![Way { path: Some(path), ..Way::default() }])
        }
        Condition::Header(key) => Ok(vec![Way { headers: vec![pair(key)?], ..Way::default() }]),
        Condition::Query(key) => Ok(vec![Way { query: vec![pair(key)?], ..Way::default() }]),
        Condition::Not(_)
        | Condition::Scheme(_)
        | Condition::Port(_)
        | Condition::Grpc(_)
        | Condition::Caller(_)
        | Condition::Fraction(_) => Err("has a condition that an HTTPRoute cannot say".to_owned()),
    }
}

fn pair(key: &KeyMatch) -> Result<Value, String> {
    let (kind, value): (_, Arc<str>) = match &key.value {
        _ if key.invert || key.ignore_case => return Err("inverts a match, or ignores its case".to_owned()),
        ValueMatch::Text(TextMatch::Exact(text)) => ("Exact", Arc::clone(text)),
        ValueMatch::Text(TextMatch::Regex(text)) => ("RegularExpression", Arc::clone(text)),
        ValueMatch::Present => ("RegularExpression", ".*".into()),
        ValueMatch::Text(_) | ValueMatch::Integer(_) => {
            return Err("compares a value in a way that an HTTPRoute cannot".to_owned());
        }
    };
    Ok(json!({"type": kind, "name": &*key.name, "value": &*value}))
}

/// Gateway API wants the `type` of a path's change beside it.
fn typed_paths(mut filter: Value) -> Value {
    for key in ["urlRewrite", "requestRedirect"] {
        let Some(Value::Object(path)) = filter.get_mut(key).and_then(|below| below.get_mut("path")) else {
            continue;
        };
        let full = path.contains_key("replaceFullPath");
        let kind = if full { "ReplaceFullPath" } else { "ReplacePrefixMatch" };
        path.insert("type".to_owned(), kind.into());
    }
    filter
}
