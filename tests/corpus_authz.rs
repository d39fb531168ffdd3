//! The authorization cases of the corpus: paths, and whom Linkerd lets in.

#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/authz.rs"]
mod support;

use corpus::vectors;
use enmesh::authz::layer::Gate;
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::Action;
use enmesh::authz::settings::AuthzSettings;
use enmesh::authz::settings::Clients;
use enmesh::authz::settings::IdentityMatch;
use enmesh::authz::settings::RateSettings;
use enmesh::authz::settings::RuleSettings;
use support::*;

#[tokio::test]
async fn the_paths_of_the_corpus_get_their_answers() {
    let Some(cases) = vectors("security-cases.json") else { return };
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
    let Some(cases) = vectors("linkerd-identity.json") else { return };
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

#[tokio::test(start_paused = true)]
async fn linkerds_timeline_of_rate_limits_holds() {
    let Some(corpus) = vectors("linkerd-rate-limit.json") else { return };
    let timeline = &corpus["timeline"];
    let rate = |value: &serde_json::Value| Some(u32::try_from(value.as_u64().unwrap()).unwrap());
    let name = |client: &str| format!("spiffe://mesh.example/{client}");
    let special = timeline["overrides"].as_object().unwrap().iter();
    let overrides = special
        .map(|(client, value)| {
            (rate(value).unwrap(), vec![IdentityMatch::Exact(name(client).parse().unwrap())])
        })
        .collect();
    let (total, identity) = (rate(&timeline["total"]), rate(&timeline["per_identity"]));
    let rates = RateSettings { name: "r".into(), total, identity, overrides };
    let rules = vec![RuleSettings::new("all", Action::Allow, Clients::Anyone)];
    let settings = AuthzSettings { rules, rates, ..AuthzSettings::default() };
    let gate = Gate::new(AuthzPolicy::compile(&settings).unwrap());
    let denied = u16::try_from(corpus["denied"]["http"].as_u64().unwrap()).unwrap();
    let mut seen = 0;
    for _second in 0..5 {
        for step in timeline["each_second_for_5_seconds"].as_array().unwrap() {
            let expected = if step[1] == "ok" { 200 } else { denied };
            for part in step[0].as_str().unwrap().split(", ") {
                let (client, times) = part.split_once(" x").unwrap_or((part, "1"));
                for _ in 0..times.parse().unwrap() {
                    seen += 1;
                    let (status, headers) = ask(&gate, from(&name(client), "/")).await;
                    assert_eq!(status, expected, "{step}");
                    assert_eq!(headers.contains_key("retry-after"), expected == denied, "{step}");
                }
            }
        }
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    }
    assert_eq!(seen, 5 * 36);
}
