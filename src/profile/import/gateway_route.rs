//! Floor 1: reads Gateway API's HTTPRoute and GRPCRoute, and Linkerd's older copy of the former.

use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::Identity;
use crate::profile::import::cluster::Spot;
use crate::profile::import::gateway_filter;
use crate::profile::import::gateway_filter::BackendRef;
use crate::profile::import::gateway_filter::Doing;
use crate::profile::import::gateway_match;
use crate::profile::import::gateway_match::ITEMS_MAX;
use crate::profile::import::gateway_match::Match;
use crate::profile::import::gateway_match::at_most;
use crate::profile::import::linkerd;
use crate::profile::matching::HostMatch;
use crate::profile::object::Object;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::route::Session;
use crate::profile::settings::RetrySettings;
use crate::profile::settings::Timeouts;
use std::sync::Arc;

/// The group of Gateway API.
pub(crate) const GROUP: &str = "gateway.networking.k8s.io";
/// The group of Linkerd's policies.
pub(crate) const LINKERD: &str = "policy.linkerd.io";

/// The most matches of all rules together.
const MATCHES_MAX: usize = 128;

/// An HTTPRoute or a GRPCRoute.
#[derive(Debug, Clone)]
pub(crate) struct RouteObject {
    pub(crate) identity: Identity,
    pub(crate) grpc: bool,
    /// Whether it is Linkerd's own kind, whose consumer routes are merged with producer routes, and whose rules
    /// without backends go to the parent (linkerd.md §6).
    pub(crate) linkerd: bool,
    pub(crate) parents: Vec<ParentRef>,
    pub(crate) hosts: Vec<HostMatch>,
    pub(crate) rules: Vec<Rule>,
    /// What Linkerd's annotations say: they replace what the rules say.
    pub(crate) retry: Option<RetrySettings>,
    pub(crate) timeouts: Option<Timeouts>,
}

/// A parent of a route.
#[derive(Debug, Clone)]
pub(crate) struct ParentRef {
    pub(crate) group: Arc<str>,
    pub(crate) kind: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) section: Option<Arc<str>>,
    pub(crate) port: Option<u16>,
    pub(crate) spot: Spot,
}

/// A rule of a route.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) matches: Vec<Match>,
    pub(crate) doing: Doing,
    pub(crate) backends: Vec<BackendRef>,
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<RetrySettings>,
    pub(crate) session: Option<Session>,
    pub(crate) spot: Spot,
}

/// Reads a route.
pub(crate) fn read(
    documents: &mut Documents,
    document: usize,
    object: &Object,
    namespace: &Arc<str>,
) -> Option<RouteObject> {
    let (grpc, own) = (object.kind == "GRPCRoute", object.group() == LINKERD);
    let (_, route) = documents.read(document, object, namespace, |f, identity| {
        let (retry, timeouts) = annotations(f, identity, grpc);
        f.get("spec").required().fields(|f| RouteObject {
            identity: identity.clone(),
            grpc,
            linkerd: own,
            parents: parents(&f.get("parentRefs"), identity),
            hosts: gateway_match::hostnames(&f.get("hostnames")),
            rules: rules(&f.get("rules"), grpc),
            retry,
            timeouts,
        })
    })?;
    Some(route)
}

/// Linkerd's annotations; a bad one on a route refuses the route.
fn annotations(
    f: &mut Fields<'_>,
    identity: &Identity,
    grpc: bool,
) -> (Option<RetrySettings>, Option<Timeouts>) {
    let field = f.get("metadata").look("annotations");
    let mut report = |key: &str, what: &str| field.look(key).reject(format!("must be {what}"), "correct it");
    let retry = linkerd::retry(&identity.annotations, grpc, &mut report);
    (retry, linkerd::timeouts(&identity.annotations, &mut report))
}

fn parents(field: &Field<'_>, identity: &Identity) -> Vec<ParentRef> {
    at_most(field, 32);
    field.each(|item| {
        item.fields(|f| {
            let group = f.get("group").text().unwrap_or(GROUP).into();
            let kind = f.get("kind").text().unwrap_or("Gateway").into();
            let namespace =
                words::name(&f.get("namespace")).unwrap_or_else(|| Arc::clone(&identity.namespace));
            let section = words::name(&f.get("sectionName"));
            let port = f.get("port").integer(1..=u16::MAX);
            let name = words::name(&f.get("name").required())?;
            Some(ParentRef { group, kind, namespace, name, section, port, spot: Spot::of(&item) })
        })?
    })
}

fn rules(field: &Field<'_>, grpc: bool) -> Vec<Rule> {
    at_most(field, ITEMS_MAX);
    let rules: Vec<Rule> = match field.is_present() {
        true => field.each(|item| item.fields(|f| rule(f, grpc))),
        false => vec![everything(field, grpc)],
    };
    let matches: usize = rules.iter().map(|rule| rule.matches.len()).sum();
    if matches > MATCHES_MAX {
        let problem = format!("have {matches} matches and {MATCHES_MAX} at most are allowed");
        field.reject(problem, "split the route");
    }
    rules
}

/// The rule of a route that has none: every request, to no backend.
fn everything(field: &Field<'_>, grpc: bool) -> Rule {
    Rule {
        name: None,
        matches: gateway_match::matches(field, grpc),
        doing: Doing::default(),
        backends: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
        spot: Spot::of(field),
    }
}

fn rule(f: &mut Fields<'_>, grpc: bool) -> Rule {
    let spot = Spot::of(f.whole());
    let rule = Rule {
        name: words::name(&f.get("name")),
        matches: gateway_match::matches(&f.get("matches"), grpc),
        doing: gateway_filter::doing(&f.get("filters")),
        backends: gateway_filter::backends(&f.get("backendRefs")),
        timeouts: if grpc { Timeouts::default() } else { gateway_filter::timeouts(&f.get("timeouts")) },
        retry: if grpc { None } else { gateway_filter::retry(&f.get("retry")) },
        session: gateway_filter::session(&f.get("sessionPersistence")),
        spot,
    };
    let one_prefix = matches!(rule.matches.as_slice(), [only] if only.prefix);
    let doings = std::iter::once(&rule.doing).chain(rule.backends.iter().map(|backend| &backend.doing));
    if let Some(spot) = doings.filter_map(|doing| doing.replaces_prefix.as_ref()).find(|_| !one_prefix) {
        let problem = format!("`{}` replaces a prefix, and the rule does not match exactly one", spot.path);
        f.whole().reject(problem, "give the rule one match, of a PathPrefix");
    }
    if rule.doing.redirect.is_some() && !rule.backends.is_empty() {
        f.whole()
            .reject("redirects, and has backends", "remove one of: the filter RequestRedirect, backendRefs");
    }
    rule
}
