//! Floor 1: writes routes as `enmesh.dev/v1` has them.

use crate::profile::route::Abort;
use crate::profile::route::Action;
use crate::profile::route::Backend;
use crate::profile::route::Choice;
use crate::profile::route::Cors;
use crate::profile::route::FaultSettings;
use crate::profile::route::Filter;
use crate::profile::route::Forward;
use crate::profile::route::HeaderMods;
use crate::profile::route::PathRewrite;
use crate::profile::route::Redirect;
use crate::profile::route::RedirectPort;
use crate::profile::route::Respond;
use crate::profile::route::ResponseClass;
use crate::profile::route::Route;
use crate::profile::route::Session;
use crate::profile::route::WeightedBackend;
use crate::profile::settings::Share;
use crate::profile::write::condition;
use crate::profile::write::service;
use crate::profile::write::settings;
use crate::profile::write::tree;
use crate::profile::write::tree::Tree;
use serde_json::Value;
use std::sync::Arc;

/// A route.
pub(crate) fn route(route: &Route) -> Value {
    let tree =
        Tree::default().with("name", &*route.name).with("condition", condition::request(&route.condition));
    let tree = match &route.action {
        Action::Forward(forward) => tree.and(self::forward(forward)),
        Action::Redirect(redirect) => tree.with("redirect", self::redirect(redirect)),
        Action::Respond(respond) => tree.with("directResponse", self::respond(respond)),
    };
    tree.list("responseClasses", route.response_classes.iter().map(class).collect())
        .below("timeouts", settings::timeouts(&route.timeouts))
        .maybe("retry", route.retry.as_ref().map(settings::retry))
        .maybe("fault", route.fault.as_ref().map(fault))
        .list("rateLimits", settings::rate_limits(&route.rates))
        .list("hash", settings::hash_keys(&route.hash))
        .maybe("sessionPersistence", route.session.as_ref().map(session))
        .maybe("slo", route.objective.as_ref().map(service::objective))
        .into()
}

/// A response class, in the form that Linkerd reads too.
pub(crate) fn class(class: &ResponseClass) -> Value {
    Tree::default()
        .with("condition", condition::response(&class.condition))
        .flag("isFailure", class.is_failure)
        .into()
}

fn forward(forward: &Forward) -> Tree {
    let mirror =
        |mirror: &crate::profile::route::Mirror| backend(&mirror.backend).and(share(mirror.share)).into();
    Tree::default()
        .list("backends", backends(&forward.backends))
        .maybe("backendChoice", choice(forward.choice))
        .list("filters", forward.filters.iter().map(filter).collect())
        .list("mirrors", forward.mirrors.iter().map(mirror).collect())
}

fn choice(choice: Choice) -> Option<&'static str> {
    match choice {
        Choice::Weighted => None,
        Choice::FirstAvailable => Some("FirstAvailable"),
        Choice::Sticky => Some("Sticky"),
    }
}

/// `backends`.
pub(crate) fn backends(backends: &[WeightedBackend]) -> Vec<Value> {
    let weighted = |weighted: &WeightedBackend| {
        backend(&weighted.backend)
            .with("weight", weighted.weight)
            .list("filters", weighted.filters.iter().map(filter).collect())
            .into()
    };
    backends.iter().map(weighted).collect()
}

fn backend(backend: &Backend) -> Tree {
    match backend {
        Backend::Service { name, subset } => {
            Tree::default().with("service", name.to_string()).maybe("subset", subset.as_deref())
        }
        Backend::Invalid { status, grpc, reason } => {
            let below =
                Tree::default().with("status", *status).with("grpcStatus", *grpc).with("reason", &**reason);
            Tree::default().with("invalid", below)
        }
    }
}

/// A share besides others; all of it is not said.
fn share(share: Share) -> Tree {
    let all = share == Share { numerator: 1, denominator: 1 };
    Tree::default().maybe("fraction", (!all).then(|| condition::fraction(share)))
}

pub(crate) fn filter(filter: &Filter) -> Value {
    let tree = Tree::default();
    let tree = match filter {
        Filter::RequestHeaders(mods) => tree.with("requestHeaderModifier", header_mods(mods)),
        Filter::ResponseHeaders(mods) => tree.with("responseHeaderModifier", header_mods(mods)),
        Filter::Rewrite(rewrite) => {
            let below = Tree::default().maybe("hostname", rewrite.host.as_deref());
            tree.with("urlRewrite", below.maybe("path", path_rewrite(&rewrite.path)))
        }
        Filter::Cors(cors) => tree.with("cors", self::cors(cors)),
    };
    tree.into()
}

fn header_mods(mods: &HeaderMods) -> Value {
    Tree::default()
        .list("set", headers(&mods.set))
        .list("add", headers(&mods.add))
        .list("remove", tree::texts(&mods.remove))
        .into()
}

fn headers(headers: &[(Arc<str>, Arc<str>)]) -> Vec<Value> {
    let header = |(name, value): &(Arc<str>, Arc<str>)| {
        Tree::default().with("name", &**name).with("value", &**value).into()
    };
    headers.iter().map(header).collect()
}

fn path_rewrite(path: &PathRewrite) -> Option<Tree> {
    let tree = Tree::default();
    match path {
        PathRewrite::Keep => None,
        PathRewrite::Full(path) => Some(tree.with("replaceFullPath", &**path)),
        PathRewrite::PrefixElement(path) => Some(tree.with("replacePrefixMatch", &**path)),
        PathRewrite::PrefixString(path) => Some(tree.with("replacePrefixString", &**path)),
        PathRewrite::Regex { pattern, substitution } => {
            let below = Tree::default().with("pattern", &**pattern).with("substitution", &**substitution);
            Some(tree.with("replaceRegularExpression", below))
        }
    }
}

fn cors(cors: &Cors) -> Value {
    Tree::default()
        .list("allowOrigins", cors.allow_origins.iter().map(condition::text_match).collect())
        .list("allowMethods", tree::texts(&cors.allow_methods))
        .list("allowHeaders", tree::texts(&cors.allow_headers))
        .list("exposeHeaders", tree::texts(&cors.expose_headers))
        .flag("allowCredentials", cors.allow_credentials)
        .maybe("maxAge", cors.max_age.map(tree::time))
        .into()
}

pub(crate) fn redirect(redirect: &Redirect) -> Value {
    let port = match redirect.port {
        RedirectPort::Default => None,
        RedirectPort::Port(port) => Some(Value::from(port)),
        RedirectPort::FromRequest => Some("FromRequest".into()),
    };
    Tree::default()
        .maybe("scheme", redirect.scheme.as_deref())
        .maybe("hostname", redirect.host.as_deref())
        .maybe("port", port)
        .maybe("path", path_rewrite(&redirect.path))
        .with("statusCode", redirect.status)
        .into()
}

fn respond(respond: &Respond) -> Value {
    Tree::default()
        .with("status", respond.status)
        .maybe("grpcStatus", respond.grpc)
        .maybe("body", (!respond.body.is_empty()).then_some(&*respond.body))
        .list("headers", headers(&respond.headers))
        .into()
}

fn fault(fault: &FaultSettings) -> Value {
    let delay =
        fault.delay.map(|(time, part)| Tree::default().with("fixedDelay", tree::time(time)).and(share(part)));
    let abort = fault.abort.map(|(abort, part)| {
        let tree = match abort {
            Abort::Http(status) => Tree::default().with("httpStatus", status),
            Abort::Grpc(code) => Tree::default().with("grpcStatus", code),
        };
        tree.and(share(part))
    });
    Tree::default().maybe("delay", delay).maybe("abort", abort).into()
}

fn session(session: &Session) -> Value {
    Tree::default()
        .with("sessionName", &*session.name)
        .maybe("type", session.header.then_some("Header"))
        .maybe("absoluteTimeout", session.absolute.map(tree::time))
        .maybe("lifetimeType", session.permanent.then_some("Permanent"))
        .maybe("idleTimeout", session.idle.map(tree::time))
        .into()
}
