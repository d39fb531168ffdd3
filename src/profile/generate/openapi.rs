//! Floor 1: a ServiceProfile from an OpenAPI description: Swagger 2.0, OpenAPI 3.0 and 3.1, in YAML or JSON.

use crate::profile::generate::draft::Draft;
use crate::profile::generate::draft::Generated;
use crate::profile::generate::refine::Refinements;
use crate::profile::generate::target::Target;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::node;
use crate::profile::node::Kind;
use crate::profile::node::Value;
use crate::profile::reader::Faults;
use crate::profile::reader::Field;

/// The operations of a path that become routes, in the order of the reference. TRACE is none of them.
const OPERATIONS: [(&str, &str); 7] = [
    ("DELETE", "delete"),
    ("GET", "get"),
    ("HEAD", "head"),
    ("OPTIONS", "options"),
    ("PATCH", "patch"),
    ("POST", "post"),
    ("PUT", "put"),
];

/// Generates a profile from the text of an OpenAPI description.
///
/// Only `basePath`, `paths`, their operations, `responses`, `x-linkerd-retryable` and `x-linkerd-timeout` have an
/// effect, as in the reference.
///
/// # Errors
///
/// The text is no YAML or JSON, is not one document, or a field that has an effect has a wrong type.
pub fn from_openapi(text: &str, target: &Target, refinements: Refinements) -> Result<Generated, Invalid> {
    let mut documents = node::read(text);
    let document = documents.pop().filter(|_| documents.is_empty()).ok_or_else(|| {
        Fault::rejected("", "is not one document", "give an OpenAPI description in YAML or JSON")
    })?;
    let faults = Faults::default();
    for fault in document.faults {
        faults.add(fault);
    }
    let root = Field::root(&document.root, &faults);
    if !matches!(document.root.value, Value::Map(_)) && !faults.any_rejected() {
        root.must_be::<()>("an OpenAPI description");
    }
    let base = base(&root, refinements);
    let mut paths = root.look("paths").pairs();
    paths.retain(|(key, _)| key.starts_with('/'));
    paths.sort_by_key(|(key, _)| *key);
    let mut drafts = Vec::new();
    for (key, item) in paths.iter().filter(|(_, item)| item.is_present()) {
        let path = format!("{base}/{}", key.trim_start_matches('/'));
        // The type of the item is asked once, whatever it holds.
        item.pairs();
        for (method, name) in OPERATIONS {
            let operation = item.look(name);
            if operation.is_present() {
                drafts.push(draft(method, &path, &operation));
            }
        }
    }
    if faults.any_rejected() {
        return Err(Invalid { faults: faults.into_vec() });
    }
    Ok(Generated::new(target, refinements.refine(drafts)))
}

fn base(root: &Field<'_>, refinements: Refinements) -> String {
    let base = root.look("basePath").text().unwrap_or_default().trim_end_matches('/');
    if !base.is_empty() || !refinements.server_paths {
        return base.to_owned();
    }
    let servers = root.look("servers").items();
    let url = servers.first().and_then(|server| server.look("url").text()).unwrap_or_default();
    let after_host =
        url.split_once("://").map_or(url, |(_, rest)| rest.find('/').map_or("", |at| rest.split_at(at).1));
    after_host.trim_end_matches('/').to_owned()
}

fn draft(method: &str, path: &str, operation: &Field<'_>) -> Draft {
    // Extensions of another type have no effect.
    let scalar = |name: &str| match operation.look(name).node().map(|node| &node.value) {
        Some(Value::Scalar(scalar)) => Some((scalar.kind(), scalar.text.clone())),
        _ => None,
    };
    let retryable = scalar("x-linkerd-retryable").and_then(|(kind, _)| match kind {
        Kind::Bool(retryable) => Some(retryable),
        Kind::Null | Kind::Number | Kind::Text => None,
    });
    let timeout = scalar("x-linkerd-timeout").and_then(|(kind, text)| (kind == Kind::Text).then_some(text));
    operation.pairs();
    let responses = operation.look("responses").pairs();
    let mut statuses: Vec<u32> = responses.iter().filter_map(|(key, _)| key.parse().ok()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    Draft { retryable, timeout, statuses, ..Draft::of_path(method, path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str, refinements: Refinements) -> Result<Vec<String>, String> {
        let own = |text: &str| text.to_owned();
        let target = Target { service: own("a"), namespace: own("b"), cluster_domain: own("c") };
        let generated = from_openapi(text, &target, refinements).map_err(|invalid| invalid.to_string())?;
        let routes = generated.document["spec"]["routes"].as_array().cloned().unwrap_or_default();
        Ok(routes.iter().map(|route| route["name"].as_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn the_paths_of_servers_count_only_when_asked() {
        for (url, path) in [
            ("https://a.b/v1/", "/v1/x"),
            ("/v2", "/v2/x"),
            ("https://a.b", "/x"),
            ("{scheme}://a/{v}", "/{v}/x"),
        ] {
            let text = format!("openapi: 3.1.0\nservers: [{{url: '{url}'}}]\npaths: {{/x: {{get: {{}}}}}}\n");
            let refined = Refinements { server_paths: true, ..Refinements::default() };
            assert_eq!(names(&text, refined), Ok(vec![format!("GET {path}")]));
            assert_eq!(names(&text, Refinements::default()), Ok(vec!["GET /x".to_owned()]));
        }
    }

    #[test]
    fn what_is_no_description_is_refused() {
        for (text, fault) in [
            ("", "is not one document"),
            ("a: 1\n---\nb: 2\n", "is not one document"),
            ("- a\n", "must be an OpenAPI description"),
            ("paths: 5\n", "paths: must be a mapping"),
            ("paths: {/a: {get: 5}}\n", "must be a mapping"),
            ("a: [\n", "is no YAML"),
        ] {
            let refused = names(text, Refinements::default()).expect_err(text);
            assert!(refused.contains(fault), "{refused}");
        }
    }
}
