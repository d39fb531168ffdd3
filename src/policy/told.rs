//! Floor 3: says as JSON what a policy decides for a request, for the tool and for the admin page alike.

use crate::policy::compile::Policy;
use crate::policy::explain::Candidate;
use crate::policy::explain::Decision;
use crate::policy::question::Question;
use crate::policy::route::{Answer, RoutePolicy, Target};
use crate::profile::duration;
use crate::profile::name::ServiceName;
use crate::profile::route::{
    Abort, Backend, Choice, FaultSettings, Filter, Forward, HeaderMods, Mirror, Respond, Session,
};
use crate::profile::scope;
use crate::profile::settings::{BudgetSettings, Share};
use crate::route::cors::Headers;
use crate::route::head::RequestHead;
use http::Request;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, VARY};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The answer to what is no request, or cannot be asked, in the same form.
pub fn unusable(id: &Value, why: &str) -> Value {
    let mut answer = json!({"id": id, "outcome": "reject", "status": 400, "grpc_status": null});
    if let Value::Object(fields) = &mut answer {
        fields.append(&mut silent());
        fields.insert("why".to_owned(), json!([why]));
    }
    answer
}

/// The fields of an answer in which nothing is said.
fn silent() -> Map<String, Value> {
    let fields = json!({
        "route": null, "rule": null, "choice": null, "backends": [], "request": null, "response": null, "redirect": null,
        "mirrors": [], "cors": null, "session": null, "timeouts": null, "retry": null, "fault": null,
        "authz": {"decision": "none", "rule": null},
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// What `policy`, of the service called `name`, decides for a request: the tool's machine form. `naming` says which
/// service a backend stands for, `authz` what the gate decides, and `domain` is the suffix of Kubernetes names.
///
/// # Errors
/// What is no request in `asked`.
pub fn told<T>(
    asked: &Question,
    policy: &Policy<T>,
    name: &ServiceName,
    naming: &dyn Fn(&T) -> ServiceName,
    authz: impl FnOnce(&RequestHead<'_>) -> Value,
    domain: &str,
) -> Result<Value, String> {
    let request = asked.http(name)?;
    let caller = asked.caller();
    let head = RequestHead::of_request(&request).from_caller(&caller);
    let decision = policy.explain(&head);
    let candidates = decision.candidates(policy);
    let entry = decision.entry.map(|entry| &*entry.policy);
    let cors = entry.and_then(|entry| entry.cors());
    // A browser's question is answered by the route itself.
    let preflight = cors.and_then(|cors| cors.preflight(request.method(), request.headers()));
    let (outcome, status, grpc) = match &preflight {
        Some((status, _)) => ("respond", Some(status.as_u16()), None),
        None => outcome(entry, &candidates),
    };
    let goes_on = preflight.is_none() && entry.is_some_and(|entry| entry.answer.is_none());
    let written = |text: &Arc<str>| Some(text.to_string()).filter(|text| !text.is_empty());
    let forward = decision.forward().filter(|_| goes_on);
    let of_route = forward.map_or(&[][..], |forward| &forward.filters);
    // What is changed for the only backend there is, is changed for every request.
    let of_backend = only(&candidates).filter(|_| goes_on).unwrap_or_default();
    let in_order = forward.is_some_and(|forward| forward.choice == Choice::FirstAvailable);
    let set = match (&preflight, cors) {
        (Some((_, headers)), _) => headers.clone(),
        (None, Some(cors)) => cors.response(request.headers()),
        (None, None) => Vec::new(),
    };
    let redirect = entry.and_then(|entry| match &entry.answer {
        Some(Answer::Redirect(to)) => {
            Some(json!({"location": to.location(&head), "status": to.status().as_u16()}))
        }
        Some(Answer::Fixed(_)) | None => None,
    });
    Ok(json!({
        "id": asked.id,
        "outcome": outcome,
        "route": entry.and_then(|entry| written(&entry.name)),
        "rule": decision.route.and_then(|route| written(&route.origin)),
        "status": status,
        "grpc_status": grpc.filter(|_| asked.is_grpc()),
        "choice": forward.map(choice),
        "backends": if goes_on { backends(&candidates, in_order, naming, domain) } else { Vec::new() },
        "request": sent(asked, request.clone(), entry, &candidates, of_route.iter().chain(of_backend)),
        "response": answered(of_backend.iter().chain(of_route), fixed(entry), &set),
        "redirect": redirect,
        "mirrors": forward.map(|forward| mirrors(forward, domain)).unwrap_or_default(),
        "cors": cors.map(|_| json!({"preflight": preflight.is_some(), "allowed": set.iter().any(|(name, _)| *name == ACCESS_CONTROL_ALLOW_ORIGIN)})),
        "session": entry.and_then(|entry| entry.session()).map(session),
        "timeouts": entry.map(timeouts),
        "retry": entry.and_then(retry),
        "fault": decision.route.and_then(|route| route.fault.as_ref()).map(fault),
        "authz": authz(&head),
        "why": why(&decision, entry),
    }))
}

/// What becomes of the request, with its status and its gRPC code where they are known beforehand.
fn outcome<T>(
    entry: Option<&RoutePolicy>,
    candidates: &[Candidate<'_, T>],
) -> (&'static str, Option<u16>, Option<u8>) {
    let Some(entry) = entry else { return ("no_route", Some(404), Some(12)) };
    match &entry.answer {
        Some(Answer::Redirect(to)) => return ("redirect", Some(to.status().as_u16()), None),
        Some(Answer::Fixed(respond)) => return ("respond", Some(respond.status), respond.grpc),
        None => {}
    }
    let mut asked = candidates.iter().filter(|candidate| candidate.weight > 0).peekable();
    if asked.peek().is_none() {
        return ("reject", Some(500), Some(14));
    }
    let mut refusals = asked.map(|candidate| match candidate.target {
        Target::Service(..) => None,
        Target::Invalid { status, grpc, .. } => Some((*status, *grpc)),
    });
    let first = refusals.next().flatten();
    match first.filter(|_| refusals.all(|refusal| refusal.is_some())) {
        Some((status, grpc)) => ("reject", Some(status), Some(grpc)),
        None => ("forward", None, None),
    }
}

fn fixed(entry: Option<&RoutePolicy>) -> Option<&Respond> {
    match &entry?.answer {
        Some(Answer::Fixed(respond)) => Some(respond),
        Some(Answer::Redirect(_)) | None => None,
    }
}

/// What is changed for the only backend that gets any requests.
fn only<'a, T>(candidates: &[Candidate<'a, T>]) -> Option<&'a [Filter]> {
    let mut asked = candidates.iter().filter(|candidate| candidate.weight > 0);
    let first = asked.next()?;
    asked.next().is_none().then_some(first.filters)
}

/// How one of several backends is chosen.
fn choice(forward: &Forward) -> &'static str {
    match forward.choice {
        Choice::Weighted => "weighted",
        Choice::FirstAvailable => "first-available",
        Choice::Sticky => "sticky",
    }
}

fn session(session: &Session) -> Value {
    json!({
        "name": &*session.name,
        "type": if session.header { "Header" } else { "Cookie" },
        "absolute": session.absolute.map(duration::to_text),
        "idle": session.idle.map(duration::to_text),
        "permanent": session.permanent,
    })
}

/// What is changed in the response: by filters, by the route's own answer, and for a browser's page.
fn answered<'a>(
    filters: impl Iterator<Item = &'a Filter>,
    respond: Option<&Respond>,
    set: &Headers,
) -> Value {
    let mut all = changes(filters, respond, |filter| match filter {
        Filter::ResponseHeaders(mods) => Some(mods),
        Filter::RequestHeaders(_) | Filter::Rewrite(_) | Filter::Cors(_) => None,
    });
    for (name, value) in set {
        let value = value.to_str().unwrap_or_default();
        let kind = if *name == VARY { "added_headers" } else { "set_headers" };
        if let Some(headers) = all.get_mut(kind).and_then(Value::as_object_mut) {
            headers.insert(name.as_str().to_owned(), value.into());
        }
    }
    all
}

fn backends<T>(
    candidates: &[Candidate<'_, T>],
    in_order: bool,
    naming: &dyn Fn(&T) -> ServiceName,
    domain: &str,
) -> Vec<Value> {
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
    // In order, the first gets all as long as it is usable.
    let first = candidates.iter().position(|candidate| candidate.weight > 0);
    let share = |index: usize, weight: u32| match in_order {
        true => f64::from(u8::from(Some(index) == first)),
        false if total == 0 => 0.0,
        false => f64::from(weight) / total as f64,
    };
    let several = candidates.iter().filter(|candidate| candidate.weight > 0).count() > 1;
    let backend = |(index, candidate): (usize, &Candidate<'_, T>)| {
        let (place, status, reason) = match candidate.target {
            Target::Service(target, _) => (place(&naming(target), domain), None, None),
            Target::Invalid { status, reason, .. } => {
                ([Value::Null, Value::Null, Value::Null], Some(*status), Some(&**reason))
            }
        };
        let [service, namespace, port] = place;
        let mut written = json!({
            "service": service, "namespace": namespace, "port": port, "subset": candidate.subset.map(|name| &**name),
            "weight": candidate.weight, "share": share(index, candidate.weight), "status": status,
        });
        if let (true, false, Value::Object(fields)) = (several, candidate.filters.is_empty(), &mut written) {
            let own = candidate.filters.iter();
            fields.insert("request".to_owned(), changes(own.clone(), None, request_headers));
            fields.insert("response".to_owned(), answered(own, None, &Vec::new()));
        }
        if let (Some(reason), Value::Object(fields)) = (reason, &mut written) {
            fields.insert("reason".to_owned(), reason.into());
        }
        written
    };
    candidates.iter().enumerate().map(backend).collect()
}

/// Service, namespace and port of a name. A host of two labels is a service and its namespace, as it is for a mesh.
fn place(name: &ServiceName, domain: &str) -> [Value; 3] {
    let short = name.short(domain);
    let (service, namespace) = match scope::parts(&short) {
        Some((service, namespace)) => (service, Some(namespace)),
        None => (short.host(), None),
    };
    [json!(service), json!(namespace), json!(name.port())]
}

/// What the backend would see.
fn sent<'a, T>(
    asked: &Question,
    mut request: Request<()>,
    entry: Option<&RoutePolicy>,
    candidates: &[Candidate<'_, T>],
    filters: impl Iterator<Item = &'a Filter>,
) -> Value {
    let before = request.uri().authority().cloned();
    if let Some(entry) = entry {
        entry.filters.apply(&mut request);
    }
    let mut asks = candidates.iter().filter(|candidate| candidate.weight > 0);
    if let (Some(Target::Service(_, Some(own))), None) = (asks.next().map(|one| one.target), asks.next()) {
        own.apply(&mut request);
    }
    let after = request.uri().authority();
    let host = match after {
        after if after == before.as_ref() => asked.host().or(after.map(|authority| authority.as_str())),
        after => after.map(|authority| authority.as_str()),
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut sent = json!({"host": host, "path": path, "method": request.method().as_str()});
    let changes = changes(filters, None, request_headers);
    if let (Value::Object(sent), Value::Object(changes)) = (&mut sent, changes) {
        sent.extend(changes);
    }
    sent
}

fn request_headers(filter: &Filter) -> Option<&HeaderMods> {
    match filter {
        Filter::RequestHeaders(mods) => Some(mods),
        Filter::ResponseHeaders(_) | Filter::Rewrite(_) | Filter::Cors(_) => None,
    }
}

/// What all changes of headers together come to, names in lower case; a name with several values has a list.
fn changes<'a>(
    filters: impl Iterator<Item = &'a Filter>,
    respond: Option<&Respond>,
    mods: impl Fn(&'a Filter) -> Option<&'a HeaderMods>,
) -> Value {
    let (mut set, mut added, mut removed) = (Map::new(), Map::new(), Vec::new());
    let fixed = respond.map(|respond| respond.headers.as_slice()).unwrap_or_default();
    fixed.iter().for_each(|pair| put(&mut set, pair));
    for mods in filters.filter_map(mods) {
        for name in mods.remove.iter().map(|name| name.to_ascii_lowercase()) {
            set.remove(&name);
            added.remove(&name);
            removed.retain(|other| *other != name);
            removed.push(name);
        }
        for (name, value) in &mods.set {
            let name = name.to_ascii_lowercase();
            added.remove(&name);
            removed.retain(|other| *other != name);
            set.insert(name, json!(&**value));
        }
        for pair in &mods.add {
            let name = pair.0.to_ascii_lowercase();
            let is_gone = removed.contains(&name);
            removed.retain(|other| *other != name);
            put(if is_gone || set.contains_key(&name) { &mut set } else { &mut added }, pair);
        }
    }
    json!({"set_headers": set, "added_headers": added, "removed_headers": removed})
}

fn put(into: &mut Map<String, Value>, (name, value): &(Arc<str>, Arc<str>)) {
    let value = json!(&**value);
    match into.entry(name.to_ascii_lowercase()).or_insert(Value::Null) {
        Value::Array(values) => values.push(value),
        place @ Value::Null => *place = value,
        place => *place = json!([place.take(), value]),
    }
}

fn mirrors(forward: &Forward, domain: &str) -> Vec<Value> {
    let mirror = |mirror: &Mirror| {
        let fraction = fraction(mirror.share);
        match &mirror.backend {
            Backend::Service { name, .. } => {
                let [service, namespace, port] = place(name, domain);
                json!({"service": service, "namespace": namespace, "port": port, "fraction": fraction})
            }
            Backend::Invalid { reason, .. } => json!({
                "service": null, "namespace": null, "port": null, "fraction": fraction, "reason": &**reason,
            }),
        }
    };
    forward.mirrors.iter().map(mirror).collect()
}

fn fraction(share: Share) -> f64 {
    f64::from(share.numerator) / f64::from(share.denominator)
}

/// `request` bounds the call whether to its headers or to its end; which, says `response_headers`.
pub(crate) fn timeouts(entry: &RoutePolicy) -> Value {
    let text = |time: Option<Duration>| time.map(duration::to_text);
    let times = &entry.timeouts;
    json!({
        "request": text(times.request.or(times.response_headers)),
        "response": text(times.response),
        "idle": text(times.idle),
        "attempt": text(times.attempt),
        "response_headers": text(times.response_headers),
        "connect": text(times.connect),
    })
}

pub(crate) fn retry(entry: &RoutePolicy) -> Option<Value> {
    // What is certainly not processed is tried again unasked; that is no rule of the route.
    let retry = entry.retry.as_ref().filter(|_| entry.retry_is_asked)?;
    let budget = budget(retry.budget().settings());
    Some(json!({"attempts_max": retry.attempts(), "on": retry.on().words(), "budget": budget}))
}

/// The rules of a retry budget.
pub(crate) fn budget(settings: &BudgetSettings) -> Value {
    let ratio = |ppm: u32| f64::from(ppm) / 1e6;
    match *settings {
        BudgetSettings::Windowed { ratio_ppm, min_per_second, ttl } => {
            json!({"ratio": ratio(ratio_ppm), "min_per_second": min_per_second, "ttl": duration::to_text(ttl)})
        }
        BudgetSettings::Recent { ratio_ppm, min_per_second, burst } => {
            json!({"ratio": ratio(ratio_ppm), "min_per_second": min_per_second, "ttl": null, "burst": burst})
        }
        BudgetSettings::ActiveShare { ratio_ppm, min_concurrent } => {
            json!({"active_ratio": ratio(ratio_ppm), "min_concurrent": min_concurrent})
        }
        BudgetSettings::TokenBucket { max_milli, ratio_milli } => {
            json!({"max_tokens": f64::from(max_milli) / 1e3, "token_ratio": f64::from(ratio_milli) / 1e3})
        }
    }
}

/// What is broken on purpose.
pub(crate) fn fault(fault: &FaultSettings) -> Value {
    let delay = fault.delay.as_ref();
    let delay =
        delay.map(|(time, share)| json!({"time": duration::to_text(*time), "fraction": fraction(*share)}));
    let abort = fault.abort.as_ref().map(|(abort, share)| match abort {
        Abort::Http(status) => json!({"status": status, "fraction": fraction(*share)}),
        Abort::Grpc(code) => json!({"grpc_status": code, "fraction": fraction(*share)}),
    });
    json!({"delay": delay, "abort": abort})
}

fn why<T>(decision: &Decision<'_, T>, entry: Option<&RoutePolicy>) -> Vec<String> {
    let mut why: Vec<String> = decision.others.iter().map(ToString::to_string).collect();
    if decision.route.is_none() {
        why.push(match entry {
            Some(_) => "no route is for it: it goes to the service itself".to_owned(),
            None => "no route is for it, and then it is not found".to_owned(),
        });
    }
    why
}
