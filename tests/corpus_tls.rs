//! The identity corpus: every SPIFFE ID and certificate case, by verifier and by handshake.

use serde_json::Value;

/// A file of the corpus, or nothing when `ENMESH_CORPUS` is unset.
fn corpus(file: &str) -> Option<Value> {
    let Ok(root) = std::env::var("ENMESH_CORPUS") else {
        eprintln!("skipped: ENMESH_CORPUS is not set");
        return None;
    };
    let text =
        std::fs::read_to_string(format!("{root}/vectors/{file}")).expect("the corpus file is readable");
    Some(serde_json::from_str(&text).expect("the corpus file is JSON"))
}

#[test]
fn spiffe_ids_of_the_corpus_are_judged_right() {
    let Some(cases) = corpus("security-cases.json") else { return };
    let mut seen = 0;
    for case in cases["cases"].as_array().expect("cases") {
        let id = case["id"].as_str().expect("id");
        if !id.starts_with("spiffe-id/") {
            continue;
        }
        seen += 1;
        let input = case["vector"]["input"].as_str().expect("input");
        let parsed = input.parse::<enmesh::tls::identity::SpiffeId>();
        match &case["vector"]["decision"] {
            Value::Bool(right) => assert_eq!(parsed.is_ok(), *right, "{id}: {parsed:?}"),
            // A matter of policy: ours is to refuse what is too long.
            _ => assert!(parsed.is_err() || input.len() <= 2048, "{id}: {parsed:?}"),
        }
        if let Ok(parsed) = parsed {
            assert_eq!(parsed.to_string(), input, "{id}");
        }
    }
    assert!(seen >= 20, "only {seen} cases");
}
