//! Floor 1: a ServiceProfile from a protobuf file.

use crate::profile::generate::draft::Draft;
use crate::profile::generate::draft::Generated;
use crate::profile::generate::edition::without_edition;
use crate::profile::generate::refine::Refinements;
use crate::profile::generate::target::Target;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::invalid::Place;
use crate::profile::node;
use prost_types::MethodDescriptorProto;
use prost_types::UninterpretedOption;
use prost_types::method_options::IdempotencyLevel;

/// Generates a profile from the text of a protobuf file: one route for each `rpc`, in the order of the file:
/// `proto2`, `proto3` or an edition. Imports are not read: they hold messages, which no route speaks of.
///
/// # Errors
///
/// The text is no protobuf.
pub fn from_proto(text: &str, target: &Target, refinements: Refinements) -> Result<Generated, Invalid> {
    let text = without_edition(text);
    let file = protox_parse::parse("input.proto", &text).map_err(|error| {
        let problem = format!("is no protobuf: {error}");
        // Without a place it has ended too soon.
        let at = error.span().map_or(text.len(), |span| span.start);
        Invalid::from(Fault::rejected("", problem, "correct the syntax").at(place_at(&text, at)))
    })?;
    let package = file.package().to_owned();
    let mut drafts = Vec::new();
    for service in &file.service {
        let full = if package.is_empty() {
            service.name().to_owned()
        } else {
            format!("{package}.{}", service.name())
        };
        for method in &service.method {
            drafts.push(Draft {
                name: method.name().to_owned(),
                method: "POST".to_owned(),
                path: format!("/{full}/{}", method.name()),
                retryable: is_idempotent(method).then_some(true),
                qualifier: Some(service.name().to_owned()),
                ..Draft::default()
            });
        }
    }
    Ok(Generated::new(target, refinements.refine(drafts)))
}

/// The line and column of a byte.
fn place_at(text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    node::place(before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Whether the first `idempotency_level` of an `rpc`, in parentheses or not, says that it may be repeated.
fn is_idempotent(method: &MethodDescriptorProto) -> bool {
    let Some(options) = &method.options else { return false };
    let named = |option: &&UninterpretedOption| matches!(option.name.as_slice(), [part] if part.name_part == "idempotency_level");
    match options.uninterpreted_option.iter().find(named) {
        Some(option) => {
            let quoted = option.string_value.as_deref();
            let constant = option.identifier_value.as_deref().map(str::as_bytes).or(quoted);
            matches!(constant, Some(b"IDEMPOTENT" | b"NO_SIDE_EFFECTS"))
        }
        None => options.idempotency_level() != IdempotencyLevel::IdempotencyUnknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_level_decides_and_what_is_no_protobuf_is_refused() {
        let own = |text: &str| text.to_owned();
        let target = Target { service: own("a"), namespace: own("b"), cluster_domain: own("c") };
        let text = "syntax = \"proto3\";\nimport \"other.proto\";\nservice S {\n\
             rpc A (M) returns (stream M) { option idempotency_level = NO_SIDE_EFFECTS; }\n\
             rpc B (M) returns (M) { option (idempotency_level) = \"IDEMPOTENT\"; }\n\
             rpc C (M) returns (M) { option idempotency_level = IDEMPOTENCY_UNKNOWN; }\n\
             rpc D (stream M) returns (M);\n}\n";
        let generated = from_proto(text, &target, Refinements::default()).expect("protobuf");
        let routes = generated.document["spec"]["routes"].as_array().cloned().unwrap_or_default();
        let retryable: Vec<bool> = routes.iter().map(|route| route["isRetryable"] == true).collect();
        assert_eq!(retryable, [true, true, false, false]);
        for (text, line, column) in [("service {", 1, 9), ("syntax = \"proto3\";\nservice S { rpc }", 2, 17)]
        {
            let refused = from_proto(text, &target, Refinements::default()).expect_err(text);
            assert_eq!(refused.faults[0].place, Some(Place { line, column }), "{refused}");
        }
    }
}
