//! Floor 1: reads what becomes of a request: backends, filters, redirects, answers, faults.

use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::route::Abort;
use crate::profile::route::Action;
use crate::profile::route::Backend;
use crate::profile::route::Choice;
use crate::profile::route::Cors;
use crate::profile::route::FaultSettings;
use crate::profile::route::Filter;
use crate::profile::route::Forward;
use crate::profile::route::HeaderMods;
use crate::profile::route::Mirror;
use crate::profile::route::PathRewrite;
use crate::profile::route::Redirect;
use crate::profile::route::RedirectPort;
use crate::profile::route::Respond;
use crate::profile::route::Rewrite;
use crate::profile::route::Session;
use crate::profile::route::WeightedBackend;
use http::HeaderName;
use http::HeaderValue;
use std::sync::Arc;

/// The action of a route: `redirect`, `directResponse`, or the fields of sending on.
pub(crate) fn action(f: &mut Fields<'_>) -> Action {
    let forward = forward(f);
    let (redirect_field, respond_field) = (f.get("redirect"), f.get("directResponse"));
    let set = [redirect_field.is_present(), respond_field.is_present(), forward != Forward::default()];
    if set.iter().filter(|set| **set).count() > 1 {
        f.whole().reject(
            "sends on, redirects or answers itself at once",
            "keep one of: redirect, directResponse, or backends with filters and mirrors",
        );
    }
    let redirect = redirect_field.fields(redirect).map(Action::Redirect);
    redirect.or(respond_field.fields(respond).map(Action::Respond)).unwrap_or(Action::Forward(forward))
}

fn forward(f: &mut Fields<'_>) -> Forward {
    let choice = [
        ("Weighted", Choice::Weighted),
        ("FirstAvailable", Choice::FirstAvailable),
        ("Sticky", Choice::Sticky),
    ];
    Forward {
        backends: backends(&f.get("backends")),
        choice: f.get("backendChoice").word(&choice).unwrap_or_default(),
        filters: filters(&f.get("filters")),
        mirrors: f.get("mirrors").each(|item| {
            item.fields(|f| {
                let share = words::share(f);
                backend(f).map(|backend| Mirror { backend, share })
            })?
        }),
    }
}

/// `backends`. A weight that is not said is 1, as in Gateway API.
pub(crate) fn backends(field: &Field<'_>) -> Vec<WeightedBackend> {
    let backends = field.each(|item| {
        item.fields(|f| {
            let weight = f.get("weight").integer(0..=u32::MAX).unwrap_or(1);
            let filters = filters(&f.get("filters"));
            backend(f).map(|backend| WeightedBackend { backend, weight, filters })
        })?
    });
    check_weights(field, &backends);
    backends
}

/// A fault if the weights together are more than a draw can be from.
pub(crate) fn check_weights(field: &Field<'_>, backends: &[WeightedBackend]) {
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if sum > u64::from(u32::MAX) {
        field.reject(format!("the weights add up to {sum}, more than {}", u32::MAX), "write smaller weights");
    }
}

fn backend(f: &mut Fields<'_>) -> Option<Backend> {
    words::one_of(f, &["service", "invalid"]);
    let (service_field, subset) = (f.get("service"), f.get("subset"));
    if subset.is_present() && !service_field.is_present() {
        subset.reject("stands without `service`", "remove it");
    }
    let service = words::service(&service_field);
    let subset = words::name(&subset);
    let invalid = f.get("invalid").fields(|f| Backend::Invalid {
        status: f.get("status").integer(100..=599).unwrap_or(500),
        grpc: f.get("grpcStatus").integer(0..=16).unwrap_or(14),
        reason: f.get("reason").text().unwrap_or_default().into(),
    });
    service.map(|name| Backend::Service { name, subset }).or(invalid)
}

fn filters(field: &Field<'_>) -> Vec<Filter> {
    field.each(|item| item.fields(filter)?)
}

/// A filter, in Gateway API's form; `type` may be left out.
fn filter(f: &mut Fields<'_>) -> Option<Filter> {
    const KINDS: &[(&str, &str)] = &[
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("URLRewrite", "urlRewrite"),
        ("CORS", "cors"),
    ];
    words::one_of(f, &["requestHeaderModifier", "responseHeaderModifier", "urlRewrite", "cors"]);
    let kind = f.get("type");
    if let Some(name) = kind.word(KINDS)
        && !f.has(name)
    {
        kind.reject(format!("says {} and `{name}` is not set", kind.shown()), "correct it, or leave it out");
    }
    let request = f.get("requestHeaderModifier").fields(header_mods).map(Filter::RequestHeaders);
    let response = f.get("responseHeaderModifier").fields(header_mods).map(Filter::ResponseHeaders);
    let rewrite = f.get("urlRewrite").fields(|f| {
        let host = words::name(&f.get("hostname"));
        Filter::Rewrite(Rewrite { path: path_rewrite(&f.get("path")), host })
    });
    let cors = f.get("cors").fields(cors).map(Filter::Cors);
    request.or(response).or(rewrite).or(cors)
}

/// `set`, `add`, `remove` in Gateway API's form.
pub(crate) fn header_mods(f: &mut Fields<'_>) -> HeaderMods {
    HeaderMods {
        set: headers(&f.get("set")),
        add: headers(&f.get("add")),
        remove: f.get("remove").each(|item| header_name(&item)),
    }
}

fn headers(field: &Field<'_>) -> Vec<(Arc<str>, Arc<str>)> {
    field.each(|item| {
        item.fields(|f| {
            let name = header_name(&f.get("name").required());
            let value = f.get("value").required();
            let value = value.parse_literal(|text| match HeaderValue::from_str(text) {
                Ok(_) => Ok(Arc::from(text)),
                Err(_) => Err("a header value".to_owned()),
            });
            Some((name?, value?))
        })?
    })
}

fn header_name(field: &Field<'_>) -> Option<Arc<str>> {
    field.parse(|text| match HeaderName::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(Arc::from(text)),
        Err(_) => Err("a header name".to_owned()),
    })
}

fn path_rewrite(field: &Field<'_>) -> PathRewrite {
    let read = field.fields(|f| {
        const KINDS: &[(&str, &str)] = &[
            ("ReplaceFullPath", "replaceFullPath"),
            ("ReplacePrefixMatch", "replacePrefixMatch"),
            ("ReplacePrefixString", "replacePrefixString"),
            ("ReplaceRegularExpression", "replaceRegularExpression"),
        ];
        let names: Vec<&'static str> = KINDS.iter().map(|(_, name)| *name).collect();
        words::one_of(f, &names);
        let kind = f.get("type");
        if let Some(name) = kind.word(KINDS)
            && !f.has(name)
        {
            kind.reject(
                format!("says {} and `{name}` is not set", kind.shown()),
                "correct it, or leave it out",
            );
        }
        let text = |field: Field<'_>| field.text().map(Arc::from);
        let regex = f.get("replaceRegularExpression").fields(|f| {
            let pattern = words::regex(&f.get("pattern").required());
            let substitution = text(f.get("substitution").required());
            Some(PathRewrite::Regex { pattern: pattern?, substitution: substitution? })
        });
        text(f.get("replaceFullPath"))
            .map(PathRewrite::Full)
            .or(text(f.get("replacePrefixMatch")).map(PathRewrite::PrefixElement))
            .or(text(f.get("replacePrefixString")).map(PathRewrite::PrefixString))
            .or(regex.flatten())
    });
    read.flatten().unwrap_or_default()
}

fn cors(f: &mut Fields<'_>) -> Cors {
    Cors {
        allow_origins: f.get("allowOrigins").each(|item| words::text_match(&item)),
        allow_methods: words::names(&f.get("allowMethods")),
        allow_headers: words::names(&f.get("allowHeaders")),
        expose_headers: words::names(&f.get("exposeHeaders")),
        allow_credentials: f.get("allowCredentials").bool().unwrap_or(false),
        max_age: words::time(&f.get("maxAge"), std::time::Duration::ZERO..=words::TIME_MAX),
    }
}

fn redirect(f: &mut Fields<'_>) -> Redirect {
    let port = f.get("port");
    let asked = port.node().is_some_and(|node| node.text() == Some("FromRequest"));
    let status = f.get("statusCode");
    let code = status.integer(300..=399).unwrap_or(302);
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        status.must_be::<()>("one of 301, 302, 303, 307, 308");
    }
    Redirect {
        scheme: f.get("scheme").word(&[("http", "http"), ("https", "https")]).map(Arc::from),
        host: words::name(&f.get("hostname")),
        port: match (asked, port.is_present()) {
            (true, _) => RedirectPort::FromRequest,
            (false, true) => port.integer(1..=u16::MAX).map_or(RedirectPort::Default, RedirectPort::Port),
            (false, false) => RedirectPort::Default,
        },
        path: path_rewrite(&f.get("path")),
        status: code,
    }
}

fn respond(f: &mut Fields<'_>) -> Respond {
    Respond {
        status: f.get("status").required().integer(100..=599).unwrap_or(500),
        grpc: f.get("grpcStatus").integer(0..=16),
        body: f.get("body").text().unwrap_or_default().into(),
        headers: headers(&f.get("headers")),
    }
}

/// `fault`.
pub(crate) fn fault(field: &Field<'_>) -> Option<FaultSettings> {
    field.fields(|f| {
        let delay = f.get("delay").fields(|f| {
            let share = words::share(f);
            words::some_time(&f.get("fixedDelay").required()).map(|time| (time, share))
        });
        let abort = f.get("abort").fields(|f| {
            let share = words::share(f);
            words::one_of(f, &["httpStatus", "grpcStatus"]);
            let http = f.get("httpStatus").integer(200..=599).map(Abort::Http);
            let abort = http.or(f.get("grpcStatus").integer(0..=16).map(Abort::Grpc));
            abort.map(|abort| (abort, share))
        });
        FaultSettings { delay: delay.flatten(), abort: abort.flatten() }
    })
}

/// `sessionPersistence`, by Gateway API's names.
pub(crate) fn session(field: &Field<'_>) -> Option<Session> {
    field.fields(|f| {
        let header = f.get("type").word(&[("Cookie", false), ("Header", true)]).unwrap_or(false);
        let (absolute, idle) =
            (words::some_time(&f.get("absoluteTimeout")), words::some_time(&f.get("idleTimeout")));
        let lifetime = f.get("lifetimeType");
        let permanent = lifetime.word(&[("Session", false), ("Permanent", true)]).unwrap_or(false);
        if permanent && absolute.is_none() {
            lifetime.reject("is Permanent, and `absoluteTimeout` is missing", "add it");
        }
        let name = header_name(&f.get("sessionName").required());
        name.map(|name| Session { name, header, absolute, idle, permanent })
    })?
}
