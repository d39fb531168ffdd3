//! Floor 6: hides in documents that are shown what proves who somebody is: the values of headers that no tap shows.

use crate::tap::redact::{HIDDEN, Redaction};
use serde_json::{Map, Value};

/// Hides the values of such headers in a profile: of those that its filters set, and of those that its conditions ask for.
pub(crate) fn in_profile(document: &mut Value, redaction: &Redaction) {
    let headers = ["headers", "set", "add"];
    walk(document, &mut |key, value| {
        let Value::Array(list) = value else { return };
        for header in list.iter_mut().filter(|_| headers.contains(&key)).filter_map(Value::as_object_mut) {
            let hidden = header.get("name").and_then(Value::as_str).is_some_and(|name| redaction.hides(name));
            if let Some(value) = header.get_mut("value").filter(|_| hidden) {
                *value = HIDDEN.into();
            }
        }
    });
}

/// Hides them in an explanation: in what is set, and in the conditions that it names.
#[cfg(any(feature = "admin", test))]
pub(crate) fn in_explanation(answer: &mut Value, redaction: &Redaction) {
    walk(answer, &mut |key, value| match value {
        Value::Object(headers) if key == "set_headers" || key == "added_headers" => {
            headers.iter_mut().filter(|(name, _)| redaction.hides(name)).for_each(|(_, value)| {
                *value = HIDDEN.into();
            });
        }
        Value::Array(lines) if key == "why" => {
            for line in lines {
                if let Some(text) = line.as_str().and_then(|text| without_secret(text, redaction)) {
                    *line = text.into();
                }
            }
        }
        _ => {}
    });
}

/// `routes[0]: header authorization: Bearer x does not match` without what must not be told; `None`: nothing must not.
#[cfg(any(feature = "admin", test))]
fn without_secret(text: &str, redaction: &Redaction) -> Option<String> {
    const HEADER: &str = "header ";
    let (at, _) = text.match_indices(HEADER).find(|(at, _)| {
        let name = text.get(at + HEADER.len()..).and_then(|rest| rest.split([':', ' ']).next());
        name.is_some_and(|name| redaction.hides(name))
    })?;
    let end =
        text.get(at + HEADER.len()..)?.find([':', ' ']).map_or(text.len(), |end| at + HEADER.len() + end);
    Some(format!("{}: {HIDDEN}", text.get(..end)?))
}

/// Shows every field of a document to `see`, the outer ones first.
fn walk(value: &mut Value, see: &mut dyn FnMut(&str, &mut Value)) {
    let fields = |fields: &mut Map<String, Value>, see: &mut dyn FnMut(&str, &mut Value)| {
        for (key, value) in fields {
            see(key, value);
            walk(value, see);
        }
    };
    match value {
        Value::Object(object) => fields(object, see),
        Value::Array(list) => list.iter_mut().for_each(|value| walk(value, see)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_profile_shows_no_secret_that_its_filters_set_or_its_conditions_ask_for() {
        let mut document = json!({"metadata": {"name": "session.ns"}, "spec": {"routes": [{
            "condition": {"all": [{"headers": [{"name": "X-Api-Key", "type": "Prefix", "value": "s"}]}, {"method": "GET"}]},
            "filters": [{"requestHeaderModifier": {
                "set": [{"name": "Authorization", "value": "Bearer s"}, {"name": "x-a", "value": "b"}],
                "add": [{"name": "x-mine", "value": "s"}],
            }}],
        }]}});
        in_profile(&mut document, &Redaction::and(["x-mine".parse().unwrap()]));
        let text = document.to_string();
        assert_eq!(text.matches(HIDDEN).count(), 3, "{text}");
        assert!(!text.contains("\"s\"") && !text.contains("Bearer") && text.contains("session.ns"), "{text}");
        assert!(text.contains(r#"{"name":"x-a","value":"b"}"#), "{text}");
    }

    #[test]
    fn an_explanation_shows_none_either() {
        let mut answer = json!({
            "request": {"set_headers": {"authorization": "Bearer s", "x-a": "b"}, "added_headers": {"cookie": ["s"]}},
            "why": ["routes[0]: header authorization: Bearer s does not match", "routes[1]: header x-a: b does not match",
                    "routes[2]: header x-token present does not match, and path /s does not match"],
        });
        in_explanation(&mut answer, &Redaction::default());
        assert_eq!(
            answer,
            json!({
                "request": {"set_headers": {"authorization": HIDDEN, "x-a": "b"}, "added_headers": {"cookie": HIDDEN}},
                "why": ["routes[0]: header authorization: <hidden>", "routes[1]: header x-a: b does not match",
                        "routes[2]: header x-token: <hidden>"],
            })
        );
    }
}
