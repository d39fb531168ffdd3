//! Floor 2: reads what requests a route of a server is for.

use crate::authz::linkerd::words::Specificity;
use crate::profile::matching::Condition;
use crate::profile::matching::GrpcMatch;
use crate::profile::matching::HostMatch;
use crate::profile::matching::KeyMatch;
use crate::profile::matching::PathKind;
use crate::profile::matching::PathMatch;
use crate::profile::matching::TextMatch;
use crate::profile::matching::ValueMatch;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use http::Method;

/// The matches of all rules of an `HTTPRoute`; a rule without any is for everything.
pub(crate) fn of_http(spec: &mut Fields<'_>) -> Vec<(Specificity, Condition)> {
    of_rules(spec, http_match)
}

/// The matches of all rules of a `GRPCRoute`.
pub(crate) fn of_grpc(spec: &mut Fields<'_>) -> Vec<(Specificity, Condition)> {
    of_rules(spec, grpc_match)
}

/// The ways to compare a text; whether it is a pattern.
const TEXT_KINDS: [(&str, bool); 2] = [("Exact", false), ("RegularExpression", true)];

fn text_match(regex: bool, text: &str) -> TextMatch {
    if regex { TextMatch::Regex(text.into()) } else { TextMatch::Exact(text.into()) }
}

type Read = fn(&mut Fields<'_>) -> (Specificity, Condition);

fn of_rules(spec: &mut Fields<'_>, read: Read) -> Vec<(Specificity, Condition)> {
    let hosts = spec.get("hostnames").each(|host| host.name().map(host_match));
    let mut all = Vec::new();
    for rule in spec.get("rules").items() {
        let matches = rule.fields(|rule| {
            rule.skip(&["name", "backendRefs"]);
            for part in ["filters", "timeouts", "retry", "sessionPersistence"] {
                rule.get(part).ignore("has no effect on authorization", "leave it out");
            }
            rule.get("matches").each(|one| one.fields(read))
        });
        match matches {
            Some(matches) if matches.is_empty() => all.push((Specificity::default(), Condition::Always)),
            Some(matches) => all.extend(matches),
            None => {}
        }
    }
    if hosts.is_empty() {
        return all;
    }
    let on_hosts = |condition| Condition::All(vec![Condition::Host(hosts.clone()), condition]);
    all.into_iter().map(|(specificity, condition)| (specificity, on_hosts(condition))).collect()
}

fn host_match(host: &str) -> HostMatch {
    match host.strip_prefix("*.") {
        Some(suffix) => HostMatch::Suffix(suffix.into()),
        None => HostMatch::Exact(host.into()),
    }
}

fn http_match(fields: &mut Fields<'_>) -> (Specificity, Condition) {
    let mut specificity = Specificity::default();
    let mut all = Vec::new();
    let path = fields.get("path").fields(|path| {
        let kinds = [
            ("PathPrefix", PathKind::PrefixElement),
            ("Exact", PathKind::Exact),
            ("RegularExpression", PathKind::Regex),
        ];
        let kind = path.get("type").word(&kinds).unwrap_or(PathKind::PrefixElement);
        (kind, path.get("value").name().unwrap_or("/"))
    });
    if let Some((kind, value)) = path {
        specificity.path = u8::from(kind != PathKind::Regex) + u8::from(kind == PathKind::Exact);
        specificity.length = value.len();
        all.push(Condition::Path(PathMatch::new(kind, value)));
    }
    let method = fields.get("method");
    if let Some(method) = method.parse(|text| text.parse::<Method>().map_err(|_| "an http method".to_owned()))
    {
        specificity.method = true;
        all.push(Condition::Method(vec![method]));
    }
    let headers = keys(&fields.get("headers"));
    let queries = keys(&fields.get("queryParams"));
    specificity.headers = headers.len();
    specificity.queries = queries.len();
    all.extend(headers.into_iter().map(Condition::Header));
    all.extend(queries.into_iter().map(Condition::Query));
    (specificity, if all.is_empty() { Condition::Always } else { Condition::All(all) })
}

fn grpc_match(fields: &mut Fields<'_>) -> (Specificity, Condition) {
    let mut specificity = Specificity::default();
    let grpc = fields.get("method").fields(|method| {
        let regex = method.get("type").word(&TEXT_KINDS).unwrap_or(false);
        let text = |text| text_match(regex, text);
        let (service, name) = (method.get("service").name(), method.get("method").name());
        specificity.length = service.map_or(0, str::len) + name.map_or(0, str::len);
        specificity.path = u8::from(service.is_some()) + u8::from(name.is_some());
        GrpcMatch { service: service.map(text), method: name.map(text) }
    });
    let headers = keys(&fields.get("headers"));
    specificity.headers = headers.len();
    let mut all = vec![Condition::Grpc(grpc.unwrap_or_default())];
    all.extend(headers.into_iter().map(Condition::Header));
    (specificity, Condition::All(all))
}

/// Matches of headers or query parameters.
fn keys(field: &Field<'_>) -> Vec<KeyMatch> {
    let one = |fields: &mut Fields<'_>| {
        let regex = fields.get("type").word(&TEXT_KINDS).unwrap_or(false);
        let name = fields.get("name").required().name()?;
        let value = fields.get("value").required().text()?;
        Some(KeyMatch::new(name, ValueMatch::Text(text_match(regex, value))))
    };
    field.each(|item| item.fields(one).flatten())
}
