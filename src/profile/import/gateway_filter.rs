//! Floor 1: reads Gateway API's filters, backends, retries and session persistence.

use crate::profile::duration;
use crate::profile::import::cluster::Spot;
use crate::profile::import::gateway_match::ITEMS_MAX;
use crate::profile::import::gateway_match::at_most;
use crate::profile::import::gateway_route::LINKERD;
use crate::profile::matching::TextMatch;
use crate::profile::object;
use crate::profile::read::action;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::route::Cors;
use crate::profile::route::Filter;
use crate::profile::route::PathRewrite;
use crate::profile::route::Redirect;
use crate::profile::route::RedirectPort;
use crate::profile::route::Rewrite;
use crate::profile::route::Session;
use crate::profile::settings::BackoffSettings;
use crate::profile::settings::Limit;
use crate::profile::settings::RetryOn;
use crate::profile::settings::RetrySettings;
use crate::profile::settings::Share;
use crate::profile::settings::Timeouts;
use std::sync::Arc;
use std::time::Duration;

/// What the filters of a rule, or of one of its backends, do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doing {
    pub(crate) filters: Vec<Filter>,
    pub(crate) mirrors: Vec<(BackendRef, Share)>,
    pub(crate) redirect: Option<Redirect>,
    /// A filter that cannot be honoured: requests must fail rather than pass without it.
    pub(crate) broken: Option<(Spot, String)>,
    /// Where a matched prefix is replaced, which wants exactly one match, of a prefix.
    pub(crate) replaces_prefix: Option<Spot>,
}

/// A reference to a backend.
#[derive(Debug, Clone)]
pub(crate) struct BackendRef {
    pub(crate) group: Arc<str>,
    pub(crate) kind: Arc<str>,
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) name: Arc<str>,
    pub(crate) port: Option<u16>,
    pub(crate) weight: u32,
    pub(crate) doing: Doing,
    pub(crate) spot: Spot,
}

impl BackendRef {
    /// Whether it is an EgressNetwork: its requests go where they were going.
    pub(crate) fn is_egress(&self) -> bool {
        *self.group == *LINKERD && *self.kind == *"EgressNetwork"
    }
}

/// The filters' types, and the field of each.
const KINDS: &[(&str, &str)] = &[
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
    ("ExternalAuth", "externalAuth"),
    ("ExtensionRef", "extensionRef"),
];

/// The list `filters`.
pub(crate) fn doing(field: &Field<'_>) -> Doing {
    at_most(field, ITEMS_MAX);
    let mut doing = Doing::default();
    let mut seen: Vec<&str> = Vec::new();
    for item in field.items() {
        item.fields(|f| {
            let kind = f.get("type").required();
            let Some(name) = kind.word(KINDS) else { return };
            let repeatable = matches!(name, "requestMirror" | "extensionRef");
            if seen.contains(&name) && !repeatable {
                kind.reject(format!("{} stands twice", kind.shown()), "merge both filters into one");
            }
            seen.push(name);
            for (_, other) in KINDS.iter().filter(|(_, other)| *other != name) {
                let other = f.get(other);
                if other.is_present() {
                    other.reject(format!("stands in a filter of type {}", kind.shown()), "remove it");
                }
            }
            filter(&mut doing, name, &f.get(name).required());
        });
    }
    let rewrites = doing.filters.iter().any(|filter| matches!(filter, Filter::Rewrite(_)));
    if doing.redirect.is_some() && rewrites {
        field.reject("redirects and rewrites at once", "keep one of: RequestRedirect, URLRewrite");
    }
    doing
}

fn filter(doing: &mut Doing, name: &str, field: &Field<'_>) {
    match name {
        "requestHeaderModifier" => {
            doing.filters.extend(field.fields(action::header_mods).map(Filter::RequestHeaders));
        }
        "responseHeaderModifier" => {
            doing.filters.extend(field.fields(action::header_mods).map(Filter::ResponseHeaders));
        }
        "requestMirror" => doing.mirrors.extend(field.fields(mirror).flatten()),
        "requestRedirect" => doing.redirect = field.fields(|f| redirect(f, &mut doing.replaces_prefix)),
        "urlRewrite" => {
            let rewrite = field.fields(|f| Rewrite {
                host: hostname(&f.get("hostname")),
                path: path(&f.get("path"), &mut doing.replaces_prefix),
            });
            doing.filters.extend(rewrite.map(Filter::Rewrite));
        }
        "cors" => doing.filters.extend(field.fields(cors).map(Filter::Cors)),
        _ => {
            let what = format!("is a filter ({name}) that cannot be applied here: its requests get an error");
            doing.broken.get_or_insert((Spot::of(field), what));
        }
    }
}

fn hostname(field: &Field<'_>) -> Option<Arc<str>> {
    field.parse(|text| object::subdomain(text).map(|()| Arc::from(text)))
}

fn mirror(f: &mut Fields<'_>) -> Option<(BackendRef, Share)> {
    let share = words::share(f);
    let backend = f.get("backendRef").required();
    let backend = backend.fields(|f| reference(f, Spot::of(&backend)))?;
    backend.map(|backend| (backend, share))
}

fn redirect(f: &mut Fields<'_>, replaces_prefix: &mut Option<Spot>) -> Redirect {
    let status = f.get("statusCode");
    let code = status.integer(300..=399).unwrap_or(302);
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        status.must_be::<()>("one of 301, 302, 303, 307, 308");
    }
    Redirect {
        scheme: f.get("scheme").word(&[("http", "http"), ("https", "https")]).map(Arc::from),
        host: hostname(&f.get("hostname")),
        port: f.get("port").integer(1..=u16::MAX).map_or(RedirectPort::Default, RedirectPort::Port),
        path: path(&f.get("path"), replaces_prefix),
        status: code,
    }
}

fn path(field: &Field<'_>, replaces_prefix: &mut Option<Spot>) -> PathRewrite {
    let read = |f: &mut Fields<'_>| {
        let kind = f.get("type").required();
        let (full, prefix) = (f.get("replaceFullPath"), f.get("replacePrefixMatch"));
        let full_wanted = kind.word(&[("ReplaceFullPath", true), ("ReplacePrefixMatch", false)])?;
        let (wanted, other) = if full_wanted { (full, prefix) } else { (prefix, full) };
        if other.is_present() {
            other.reject(format!("stands beside type {}", kind.shown()), "remove it");
        }
        if !full_wanted {
            *replaces_prefix = Some(Spot::of(&wanted));
        }
        let text = Arc::from(wanted.required().text()?);
        Some(if full_wanted { PathRewrite::Full(text) } else { PathRewrite::PrefixElement(text) })
    };
    field.fields(read).flatten().unwrap_or_default()
}

fn cors(f: &mut Fields<'_>) -> Cors {
    Cors {
        allow_origins: f.get("allowOrigins").each(|item| {
            let text = words::name(&item)?;
            Some(origin(&text))
        }),
        allow_methods: words::names(&f.get("allowMethods")),
        allow_headers: words::names(&f.get("allowHeaders")),
        expose_headers: words::names(&f.get("exposeHeaders")),
        allow_credentials: f.get("allowCredentials").bool().unwrap_or(false),
        // 5 s is what the specification has.
        max_age: Some(Duration::from_secs(f.get("maxAge").integer(1..=i32::MAX as u64).unwrap_or(5))),
    }
}

/// An origin: as it is, any for `*`, or with a `*` that stands for one label or more of its host.
fn origin(text: &str) -> TextMatch {
    match text.split_once('*') {
        None => TextMatch::Exact(text.into()),
        Some(("", "")) => TextMatch::Prefix("".into()),
        Some((before, after)) => {
            let (before, after) = (regex_syntax::escape(before), regex_syntax::escape(after));
            TextMatch::Regex(format!("{before}[^:/]+{after}").into())
        }
    }
}

/// `backendRefs`.
pub(crate) fn backends(field: &Field<'_>) -> Vec<BackendRef> {
    at_most(field, ITEMS_MAX);
    field.each(|item| {
        item.fields(|f| {
            let weight = f.get("weight").integer(0..=1_000_000).unwrap_or(1);
            let doing = doing(&f.get("filters"));
            reference(f, Spot::of(&item)).map(|backend| BackendRef { weight, doing, ..backend })
        })?
    })
}

fn reference(f: &mut Fields<'_>, spot: Spot) -> Option<BackendRef> {
    let group = f.get("group").text().unwrap_or_default().into();
    let kind = f.get("kind").text().unwrap_or("Service").into();
    let namespace = words::name(&f.get("namespace"));
    let port = f.get("port").integer(1..=u16::MAX);
    let name = words::name(&f.get("name").required())?;
    Some(BackendRef { group, kind, namespace, name, port, weight: 1, doing: Doing::default(), spot })
}

/// `timeouts` of a rule.
pub(crate) fn timeouts(field: &Field<'_>) -> Timeouts {
    let read = |f: &mut Fields<'_>| {
        let (request, attempt) = (f.get("request"), f.get("backendRequest"));
        let timeouts = Timeouts { request: limit(&request), attempt: limit(&attempt), ..Timeouts::default() };
        if let (Some(whole), Some(one)) = (timeouts.request.duration(), timeouts.attempt.duration())
            && one > whole
        {
            attempt.reject(
                format!("is longer than `request` ({})", duration::to_text(whole)),
                "write a shorter one, as all attempts together may take no longer than `request`",
            );
        }
        timeouts
    };
    field.fields(read).unwrap_or_default()
}

fn limit(field: &Field<'_>) -> Limit {
    match field.parse(duration::gateway) {
        None => Limit::Unset,
        Some(Duration::ZERO) => Limit::Disabled,
        Some(time) => Limit::After(time),
    }
}

/// `retry` of a rule. Whoever writes it wants every request of the rule repeated, whatever its method, and connection
/// errors and timeouts of an attempt as well as the codes (meshes.md §4.3, 37).
pub(crate) fn retry(field: &Field<'_>) -> Option<RetrySettings> {
    field.fields(|f| {
        let codes = f.get("codes").each(|item| item.integer(400..=599_u16));
        let attempts = f.get("attempts");
        let retries: Option<u32> = attempts.integer(0..=i32::MAX as u32);
        if retries.is_some_and(|retries| retries > 9) {
            attempts.approximate("is more than 9 retries", "9 are made at most");
        }
        // The backoff is a least wait: from once to twice of it, doubling.
        let backoff =
            f.get("backoff").parse(duration::gateway).filter(|least| !least.is_zero()).map(|least| {
                BackoffSettings { base: least.saturating_mul(2), max: least.saturating_mul(20), jitter: 0.5 }
            });
        RetrySettings {
            attempts_max: retries.map(|retries| retries.saturating_add(1)),
            on: RetryOn {
                statuses: codes.into_iter().map(|code| code..=code).collect(),
                connect_failure: true,
                refused: true,
                reset: true,
                attempt_timeout: true,
                ..RetryOn::default()
            },
            backoff,
            idempotent: true,
            ..RetrySettings::default()
        }
    })
}

/// `sessionPersistence`, with the field names of releases before and after 1.6.
pub(crate) fn session(field: &Field<'_>) -> Option<Session> {
    let name = |field: Field<'_>| {
        field.fields(|f| {
            f.skip(&["path"]);
            words::name(&f.get("name"))
        })
    };
    field.fields(|f| {
        let kind = f.get("type").word(&[("Cookie", false), ("Header", true)]);
        let absolute = f.get("absoluteTimeout");
        let permanent = f.get("cookieConfig").fields(|f| {
            let words = [("Session", false), ("Permanent", true)];
            f.get("lifetimeType").word(&words).unwrap_or(false)
        });
        if permanent == Some(true) && !absolute.is_present() {
            absolute.reject("is missing for a permanent cookie", "add it");
        }
        let (in_header, in_cookie) = (f.get("header"), f.get("cookie"));
        let header = kind.unwrap_or(in_header.is_present() && !in_cookie.is_present());
        let own = if header { name(in_header) } else { name(in_cookie) };
        let time = |field: Field<'_>| field.parse(duration::gateway).filter(|time| !time.is_zero());
        Session {
            name: words::name(&f.get("sessionName"))
                .or(own.flatten())
                .unwrap_or_else(|| "enmesh-session".into()),
            header,
            absolute: time(absolute),
            idle: time(f.get("idleTimeout")),
            permanent: permanent.unwrap_or(false),
        }
    })
}
