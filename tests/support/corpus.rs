//! The shared corpus, which `ENMESH_CORPUS` names, and what its tables have in common.

#![allow(dead_code, reason = "each test binary uses a part")]

use http::Uri;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What lies below the corpus's folder, or nothing when `ENMESH_CORPUS` is unset.
pub(crate) fn corpus(below: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("ENMESH_CORPUS") else {
        eprintln!("skipped: ENMESH_CORPUS is not set");
        return None;
    };
    Some(Path::new(&root).join(below))
}

/// A file of JSON.
pub(crate) fn json_of(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("readable")).expect("JSON")
}

/// A file of the corpus's vectors, or nothing when `ENMESH_CORPUS` is unset.
pub(crate) fn vectors(file: &str) -> Option<Value> {
    Some(json_of(corpus("vectors")?.join(file)))
}

/// The cases that a file must have.
pub(crate) fn cases<'a>(file: &'a Value, key: &str) -> &'a [Value] {
    let cases = list(&file[key]);
    assert!(!cases.is_empty(), "no cases `{key}`");
    cases
}

/// What a case may leave out.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The files below a folder whose names end so, in order.
pub(crate) fn files(folder: &Path, ends: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path, ends));
        } else if path.extension().is_some_and(|end| ends.iter().any(|wanted| end == *wanted)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Holds where a redirect leads to what the row `id` of a table expects.
pub(crate) fn check_location(id: &str, expected: &Value, location: &Uri) {
    let check = |key: &str, seen: Option<&str>| {
        if let Some(wanted) = expected[key].as_str() {
            assert_eq!(seen, Some(wanted), "{id}: {location}");
        }
    };
    check("scheme", location.scheme_str());
    check("host", location.host());
    check("path", Some(location.path()));
    let own = if location.scheme_str() == Some("https") { "443" } else { "80" };
    let port = location.port_u16().map(|port| port.to_string());
    check("port", Some(port.as_deref().unwrap_or(own)));
    if expected["port"].is_null() && expected["scheme"].is_string() {
        assert_eq!(port, None, "{id}: {location}");
    }
}
