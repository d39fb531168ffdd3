//! The authorization cases of the corpus: paths, and whom Linkerd lets in.

#[path = "support/authz.rs"]
mod support;

use enmesh::authz::layer::Gate;
use enmesh::authz::settings::Action;
use enmesh::authz::settings::Clients;
use enmesh::authz::settings::IdentityMatch;
use enmesh::authz::settings::RuleSettings;
use support::*;

#[tokio::test]
async fn the_paths_of_the_corpus_get_their_answers() {
    let Ok(root) = std::env::var("ENMESH_CORPUS") else {
        eprintln!("skipped: ENMESH_CORPUS is not set");
        return;
    };
    let text = std::fs::read_to_string(format!("{root}/vectors/security-cases.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let gate = Gate::new(by_paths());
    let (mut seen, mut of_the_server) = (0, Vec::new());
    for case in cases["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        if !id.starts_with("path/") {
            continue;
        }
        let path = case["vector"]["path"].as_str().unwrap();
        let status = case["vector"]["status"].as_u64().unwrap() as u16;
        // What is no request target for the `http` crate, and lengths and authorities, the server answers before us.
        let Ok(uri) = path.parse::<http::Uri>() else {
            assert!(status >= 400, "{id}");
            of_the_server.push(id);
            continue;
        };
        if status == 414 || uri.authority().is_some() || path.contains('#') {
            of_the_server.push(id);
            continue;
        }
        seen += 1;
        let (answer, _) = ask(&gate, from("spiffe://mesh.example/web", path)).await;
        assert_eq!(answer, status, "{id} {path}");
    }
    eprintln!("answered by the server before the gate: {of_the_server:?}");
    assert!(seen >= 18, "only {seen} cases");
}

#[tokio::test]
async fn linkerds_authorization_cases_hold() {
    let Ok(root) = std::env::var("ENMESH_CORPUS") else {
        eprintln!("skipped: ENMESH_CORPUS is not set");
        return;
    };
    let text = std::fs::read_to_string(format!("{root}/vectors/linkerd-identity.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let list = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    for case in cases["authorization"].as_array().unwrap() {
        let client = case["client"].as_str().unwrap();
        let client = if client == "any DNS id" { "any.dns.id" } else { client };
        let exact =
            list(&case["identities"]).into_iter().map(|text| IdentityMatch::Exact(text.parse().unwrap()));
        let suffixes = list(&case["suffixes"]);
        let suffixes = suffixes.iter().map(|text| IdentityMatch::dns_suffix(text.trim_start_matches('*')));
        let clients = Clients::Any(exact.chain(suffixes).map(Clients::Identity).collect());
        let gate = Gate::new(compile(vec![RuleSettings::new("r", Action::Allow, clients)], Action::Deny));
        let (status, _) = ask(&gate, from(client, "/")).await;
        assert_eq!(status == 200, case["ok"].as_bool().unwrap(), "{case}");
    }
}
