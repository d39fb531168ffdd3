//! Floor 1: writes a profile as `linkerd.io/v1alpha2`, as far as that can say it.

use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::matching::GrpcMatch;
use crate::profile::matching::PathKind;
use crate::profile::matching::PathMatch;
use crate::profile::matching::TextMatch;
use crate::profile::object;
use crate::profile::quantity;
use crate::profile::read::settings as read;
use crate::profile::route::Action;
use crate::profile::route::Backend;
use crate::profile::route::Forward;
use crate::profile::route::Route;
use crate::profile::service::NoMatch;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::BalancerSettings;
use crate::profile::settings::BudgetSettings;
use crate::profile::settings::Limit;
use crate::profile::settings::Limits;
use crate::profile::settings::RetrySettings;
use crate::profile::settings::Timeouts;
use crate::profile::settings::TlsMode;
use crate::profile::write::emit;
use crate::profile::write::enmesh;
use crate::profile::write::route as ours;
use crate::profile::write::settings;
use crate::profile::write::tree::Tree;
use serde_json::Value;

/// A profile in another dialect, and what that dialect cannot say.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The document; `None` if it would send requests elsewhere, or protect them less.
    pub document: Option<Value>,
    /// What is lost or changed.
    pub faults: Vec<Fault>,
}

impl ServiceProfile {
    /// The profile as a `linkerd.io/v1alpha2` document, its keys in alphabetical order as Linkerd's own tool has them.
    pub fn to_linkerd(&self) -> Written {
        let mut writer = Writer::default();
        let spec = writer.spec(self);
        let rejected = writer.faults.iter().any(|fault| fault.severity == Severity::Rejected);
        let document = enmesh::document("linkerd.io/v1alpha2", self, spec);
        Written { document: (!rejected).then(|| emit::sorted(document)), faults: writer.faults }
    }
}

#[derive(Default)]
struct Writer {
    faults: Vec<Fault>,
}

impl Writer {
    fn note(&mut self, severity: Severity, path: &str, problem: &str, remedy: &str) {
        self.faults.push(Fault::new(severity, path, problem, remedy));
    }

    /// Notes that a setting is lost, if there is one.
    fn lost(&mut self, set: bool, path: &str) {
        if set {
            self.note(Severity::Ignored, path, "a ServiceProfile of Linkerd has no such field", "");
        }
    }

    fn refuse(&mut self, set: bool, path: &str, problem: &str) {
        if set {
            self.note(Severity::Rejected, path, problem, "keep it as enmesh.dev/v1");
        }
    }

    fn spec(&mut self, profile: &ServiceProfile) -> Tree {
        let name = profile.name().map(ToString::to_string).unwrap_or_default();
        self.refuse(object::subdomain(&name).is_err(), "metadata.name", "is no name of a Kubernetes object");
        self.lost(profile.names.len() > 1, "spec.hosts");
        self.refuse(
            profile.no_match == NoMatch::NotFound,
            "spec.noMatch",
            "unmatched requests would be sent on",
        );
        self.lost(profile.timeouts != Timeouts::default(), "spec.timeouts");
        self.lost(profile.retry.is_some(), "spec.retry");
        self.lost(profile.balancer != BalancerSettings::default(), "spec.balancer");
        self.lost(profile.breaker.is_some(), "spec.failureAccrual");
        self.lost(profile.limits != Limits::default(), "spec.limits");
        let guarded = profile.tls.mode != TlsMode::Auto || !profile.tls.identities.is_empty();
        self.refuse(guarded, "spec.tls", "the peer would not be checked so");
        self.lost(profile.objective.is_some(), "spec.slo");
        let routes = profile.routes.iter().enumerate();
        let routes =
            routes.map(|(index, route)| self.route(route, &format!("spec.routes[{index}]")).into()).collect();
        let opaque = profile.opaque_ports.iter();
        let opaque = opaque.fold(Tree::default(), |tree, port| tree.with(&port.to_string(), Tree::default()));
        let overrides = self.overrides(profile);
        Tree::default()
            .list("routes", routes)
            .maybe("retryBudget", profile.retry_budget.and_then(|budget| self.budget(&budget)))
            .list("dstOverrides", overrides)
            .below("opaquePorts", opaque)
    }

    fn budget(&mut self, budget: &BudgetSettings) -> Option<Value> {
        match budget {
            BudgetSettings::Windowed { .. } => Some(settings::budget(budget)),
            BudgetSettings::Recent { .. }
            | BudgetSettings::ActiveShare { .. }
            | BudgetSettings::TokenBucket { .. } => {
                let problem = "Linkerd has no budget of this kind: its default holds";
                self.note(Severity::Approximated, "spec.retryBudget", problem, "write a retryRatio");
                None
            }
        }
    }

    fn overrides(&mut self, profile: &ServiceProfile) -> Vec<Value> {
        let mut overrides = Vec::new();
        for (index, weighted) in profile.backends.iter().enumerate() {
            let path = format!("spec.backends[{index}]");
            self.refuse(
                !weighted.filters.is_empty(),
                &path,
                "a ServiceProfile of Linkerd changes no requests",
            );
            match &weighted.backend {
                Backend::Service { name, subset: None } => overrides.push(
                    Tree::default()
                        .with("authority", name.to_string())
                        .with("weight", quantity::from_milli(u64::from(weighted.weight)))
                        .into(),
                ),
                Backend::Service { subset: Some(_), .. } | Backend::Invalid { .. } => {
                    self.refuse(true, &path, "is no whole service");
                }
            }
        }
        overrides
    }

    fn route(&mut self, route: &Route, path: &str) -> Tree {
        if route.action != Action::Forward(Forward::default()) {
            self.refuse(
                true,
                path,
                "a ServiceProfile of Linkerd sends a route's requests to the service, unchanged",
            );
        }
        let condition = match condition(&route.condition) {
            Ok(condition) => condition,
            Err(problem) => {
                self.refuse(true, &format!("{path}.condition"), &problem);
                Value::Null
            }
        };
        self.lost(route.fault.is_some(), &format!("{path}.fault"));
        self.lost(!route.rates.is_empty(), &format!("{path}.rateLimits"));
        self.lost(!route.hash.is_empty(), &format!("{path}.hash"));
        self.lost(route.session.is_some(), &format!("{path}.sessionPersistence"));
        self.lost(route.objective.is_some(), &format!("{path}.slo"));
        let retryable =
            route.retry.as_ref().is_some_and(|retry| self.retryable(retry, &format!("{path}.retry")));
        Tree::default()
            .with("name", &*route.name)
            .with("condition", condition)
            .list("responseClasses", route.response_classes.iter().map(ours::class).collect())
            .flag("isRetryable", retryable)
            .maybe("timeout", self.timeout(&route.timeouts, &format!("{path}.timeouts")))
    }

    fn retryable(&mut self, retry: &RetrySettings, path: &str) -> bool {
        if *retry == read::retryable() {
            return true;
        }
        let problem = if retry.idempotent && retry.on.failures {
            "Linkerd retries failures at once, within the budget and without another limit"
        } else {
            "Linkerd retries either every failure of a route or nothing: nothing is retried"
        };
        self.note(Severity::Approximated, path, problem, "");
        retry.idempotent && retry.on.failures
    }

    fn timeout(&mut self, timeouts: &Timeouts, path: &str) -> Option<Value> {
        let own = Timeouts { response_headers: timeouts.response_headers, ..Timeouts::default() };
        if timeouts.response_headers == Limit::Unset && timeouts.request != Limit::Unset {
            let problem = "Linkerd's timeout ends with the response's headers";
            self.note(Severity::Approximated, &format!("{path}.request"), problem, "");
            self.lost(Timeouts { request: Limit::Unset, ..*timeouts } != own, path);
            return settings::limit(timeouts.request);
        }
        self.lost(*timeouts != own, path);
        settings::limit(timeouts.response_headers)
    }
}

/// A condition on requests, or what Linkerd has no words for.
fn condition(condition: &Condition) -> Result<Value, String> {
    let list = |items: &[Condition]| items.iter().map(self::condition).collect::<Result<Vec<_>, _>>();
    let tree = Tree::default();
    let no_words = |what: &str| Err(format!("a ServiceProfile of Linkerd matches no {what}"));
    let tree = match condition {
        Condition::Always => tree.with("pathRegex", ".*"),
        Condition::All(items) => tree.with("all", list(items)?),
        Condition::Any(items) => tree.with("any", list(items)?),
        Condition::Not(inner) => tree.with("not", self::condition(inner)?),
        Condition::Method(methods) => {
            if methods.iter().any(|method| method.as_str() != method.as_str().to_ascii_uppercase()) {
                return no_words("methods in lower case");
            }
            match methods.as_slice() {
                [one] => tree.with("method", one.as_str()),
                several => {
                    let one = |method: &http::Method| Tree::default().with("method", method.as_str()).into();
                    tree.with("any", several.iter().map(one).collect::<Vec<Value>>())
                }
            }
        }
        Condition::Path(matcher) => tree.with("pathRegex", path_regex(matcher)),
        Condition::Grpc(matcher) => tree.with("method", "POST").with("pathRegex", grpc_regex(matcher)),
        Condition::Header(_) => return no_words("headers"),
        Condition::Query(_) => return no_words("query parameters"),
        Condition::Host(_) => return no_words("hosts"),
        Condition::Scheme(_) | Condition::Port(_) => return no_words("schemes and ports"),
        Condition::Caller(_) => return no_words("callers"),
        Condition::Fraction(_) => return no_words("shares of requests"),
    };
    Ok(tree.into())
}

fn path_regex(matcher: &PathMatch) -> String {
    let value = &*matcher.value;
    let pattern = match matcher.kind {
        PathKind::Exact => quote(value),
        PathKind::PrefixString => format!("{}.*", quote(value)),
        PathKind::PrefixElement => match value.trim_end_matches('/') {
            "" => ".*".to_owned(),
            elements => format!("{}(/.*)?", quote(elements)),
        },
        PathKind::Suffix => format!(".*{}", quote(value)),
        PathKind::Contains => format!(".*{}.*", quote(value)),
        PathKind::RegexPrefix => format!("(?:{value}).*"),
        // Linkerd puts its anchors around the pattern without a group, and takes an escaped `$` for one.
        PathKind::Regex if value.contains('|') || value.ends_with("\\$") => format!("(?:{value})"),
        PathKind::Regex => value.to_owned(),
    };
    if matcher.ignore_case { format!("(?i:{pattern})") } else { pattern }
}

fn grpc_regex(matcher: &GrpcMatch) -> String {
    let part = |matcher: Option<&TextMatch>| match matcher {
        None => "[^/]+".to_owned(),
        Some(TextMatch::Exact(text)) => quote(text),
        Some(TextMatch::Prefix(text)) => format!("{}[^/]*", quote(text)),
        Some(TextMatch::Suffix(text)) => format!("[^/]*{}", quote(text)),
        Some(TextMatch::Contains(text)) => format!("[^/]*{}[^/]*", quote(text)),
        Some(TextMatch::Regex(text)) => format!("(?:{text})"),
    };
    format!("/{}/{}", part(matcher.service.as_ref()), part(matcher.method.as_ref()))
}

/// A text as a pattern of itself; the characters that Go's `regexp.QuoteMeta` escapes.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if matches!(c, '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::name::ServiceName;
    use regex::Regex;

    fn matches(kind: PathKind, value: &str, ignore_case: bool) -> Regex {
        let pattern = path_regex(&PathMatch { kind, value: value.into(), ignore_case });
        // As Linkerd's proxy compiles it: anchored without a group.
        let start = if pattern.starts_with('^') { "" } else { "^" };
        let end = if pattern.ends_with('$') { "" } else { "$" };
        Regex::new(&format!("{start}{pattern}{end}")).unwrap()
    }

    #[test]
    fn every_kind_of_path_becomes_a_pattern_that_linkerd_reads_alike() {
        for (kind, value, ignore_case, path, holds) in [
            (PathKind::Exact, "/a.b", false, "/a.b", true),
            (PathKind::Exact, "/a.b", false, "/axb", false),
            (PathKind::Exact, "/a", true, "/A", true),
            (PathKind::Exact, "/a$", false, "/a$", true),
            (PathKind::PrefixString, "/a", false, "/ab", true),
            (PathKind::PrefixElement, "/a/", false, "/a", true),
            (PathKind::PrefixElement, "/a", false, "/a/b", true),
            (PathKind::PrefixElement, "/a", false, "/ab", false),
            (PathKind::PrefixElement, "/", false, "/ab", true),
            (PathKind::Suffix, ".js", false, "/x.js", true),
            (PathKind::Contains, "/b/", false, "/a/b/c", true),
            (PathKind::Regex, "/a|/b", false, "/a", true),
            (PathKind::Regex, "/a|/b", false, "/a/x", false),
            (PathKind::Regex, "/a|/b", false, "/x/b", false),
            (PathKind::Regex, r"/a\$", false, "/a$", true),
            (PathKind::Regex, r"/a\$", false, "/a$/x", false),
            (PathKind::RegexPrefix, "/a|/b", false, "/b/c", true),
        ] {
            assert_eq!(matches(kind, value, ignore_case).is_match(path), holds, "{kind:?} {value} {path}");
        }
        let grpc = GrpcMatch { service: Some(TextMatch::Exact("a.B".into())), method: None };
        assert_eq!(grpc_regex(&grpc), r"/a\.B/[^/]+");
    }

    #[test]
    fn what_would_send_requests_elsewhere_is_refused() {
        let name: ServiceName = "a.b.svc.cluster.local".parse().unwrap();
        let plain = ServiceProfile::new(name.clone());
        assert!(plain.to_linkerd().document.is_some_and(|_| plain.to_linkerd().faults.is_empty()));
        let strict = ServiceProfile { no_match: NoMatch::NotFound, ..plain.clone() };
        assert_eq!(strict.to_linkerd().document, None);
        let condition = Condition::Host(Vec::new());
        let hosts = ServiceProfile { routes: vec![Route { condition, ..Route::default() }], ..plain };
        assert_eq!(hosts.to_linkerd().faults[0].path, "spec.routes[0].condition");
    }
}
