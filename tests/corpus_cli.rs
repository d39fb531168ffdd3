//! Gateway API's conformance tables and the reference's profiles, through the tool: run with
//! `ENMESH_CORPUS=…/shared/data`.
#![cfg(feature = "cli")]

#[path = "support/corpus.rs"]
mod support;

use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{cases, corpus, files, json_of, list};

/// Exit status, standard output and standard error.
fn enmesh(args: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_enmesh"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A row of a table as a request of `explain`.
fn request(case: &Value) -> Value {
    let row = &case["request"];
    let path =
        row["path"].as_str().unwrap().replace("<echo service>", "echo.Echo").replace("<method>", "Echo");
    let query = row["query"].as_str().map(|query| format!("?{}", query.replace(['<', '>', ' '], "_")));
    let mut asked = json!({
        "id": case["id"], "host": row["host"], "path": path + &query.unwrap_or_default(), "method": row["method"],
    });
    if row["headers"].is_object() {
        asked["headers"] = row["headers"].clone();
    }
    let to = |namespace: &str, service: &str| json!({"namespace": namespace, "service": service});
    match case["gateway"].as_str().and_then(|gateway| gateway.split_once('/')) {
        Some((namespace, gateway)) => {
            asked["port"] = case["listener_port"].as_u64().unwrap_or(80).into();
            asked["to"] = to(namespace, gateway);
        }
        None => {
            let namespace = case["client"]["namespace"].as_str().unwrap_or("gateway-conformance-infra");
            asked["from"] = json!({"namespace": namespace});
            if case["client"].is_null() {
                asked["to"] = to(namespace, "same-namespace");
            }
        }
    }
    asked
}

fn check(case: &Value, answer: &Value) {
    let expect = &case["expect"];
    let told = format!("{case}\n{answer}");
    let backends = list(&answer["backends"]);
    match expect["kind"].as_str().unwrap() {
        "backend" => {
            assert_eq!(answer["outcome"], "forward", "{told}");
            let wanted = &expect["backend"];
            let is_it = |backend: &&Value| {
                (wanted["name"].is_null() || backend["service"] == wanted["name"])
                    && backend["namespace"] == wanted["namespace"]
            };
            assert!(backends.iter().any(|backend| is_it(&backend)), "{told}");
            let waived =
                list(&expect["not_asserted_upstream"]).iter().any(|what| what == "backend_request.path");
            let bare = |path: &str| path.split('?').next().unwrap().to_owned();
            if let Some(path) = expect["backend_request"]["path"].as_str().filter(|_| !waived) {
                assert_eq!(bare(answer["request"]["path"].as_str().unwrap()), bare(path), "{told}");
            }
            let mirrors = list(&answer["mirrors"]).iter().map(|one| &one["service"]);
            assert!(mirrors.eq(list(&expect["mirrored_to"]).iter().map(|one| &one["name"])), "{told}");
        }
        // What depends on how the backend behaves is no decision.
        "status" if case["backend_behavior"].is_null() && case["request"]["query"] != "delay=1s" => {
            let status = answer["status"].as_u64().unwrap_or(200);
            assert!(list(&expect["status"]).iter().any(|one| one.as_u64() == Some(status)), "{told}");
        }
        "redirect" => {
            assert_eq!(answer["outcome"], "redirect", "{told}");
            assert!(list(&expect["status"]).contains(&answer["redirect"]["status"]), "{told}");
        }
        "grpc_status" => assert_eq!(answer["outcome"], "no_route", "{told}"),
        "distribution" => {
            for backend in backends {
                let (namespace, service) = (&backend["namespace"], &backend["service"]);
                let name = format!("{}/{}", namespace.as_str().unwrap(), service.as_str().unwrap());
                let wanted = expect["backends"][&name].as_f64().unwrap();
                assert!((backend["share"].as_f64().unwrap() - wanted).abs() < 0.05, "{told}");
            }
        }
        "status" | "distribution_per_backend_headers" | "failure" => {}
        other => panic!("{other} is not known"),
    }
}

#[test]
fn explain_decides_every_row_of_gateway_apis_tables() {
    let Some(root) = corpus("config/gateway-api") else { return };
    let mut rows = 0;
    for file in files(&root.join("cases"), &["json"]) {
        let table = json_of(file);
        for case in
            cases(&table, "cases").iter().filter(|case| !case["expect"]["contradicts_manifest"].is_string())
        {
            let own = || {
                table["route_file"]
                    .as_str()
                    .into_iter()
                    .chain(list(&table["extra_route_files"]).iter().filter_map(Value::as_str))
            };
            let mut names: Vec<&str> = vec![table["base_manifest"].as_str().unwrap()];
            match case["manifest"].as_str() {
                Some(manifest) => names.push(manifest),
                None => names.extend(own()),
            }
            let files: Vec<String> =
                names.iter().map(|name| root.join(name).to_str().unwrap().to_owned()).collect();
            let mut args = vec!["explain", "--config"];
            args.extend(files.iter().map(String::as_str));
            args.extend(["--requests", "-"]);
            let (status, out, err) = enmesh(&args, &request(case).to_string());
            assert_eq!(status, 0, "{err}");
            check(case, &serde_json::from_str(&out).unwrap());
            rows += 1;
        }
    }
    eprintln!("{rows} rows decided");
    assert!(rows > 200);
}

#[test]
fn profile_writes_what_the_reference_writes() {
    let Some(root) = corpus("profile") else { return };
    let yaml = |text: &str| {
        let profiles = enmesh::profile::parse::parse(text, "text").into_profiles();
        assert_eq!(profiles.len(), 1, "{text}");
        let mut profile = profiles.into_iter().next().unwrap();
        profile.routes.iter_mut().for_each(|route| route.origin = "".into());
        profile
    };
    let mut count = 0;
    for (kind, flag, input) in [("openapi", "--open-api", "input.yaml"), ("proto", "--proto", "input.proto")]
    {
        for folder in sorted(&root.join(kind)) {
            let args = json_of(folder.join("args.json"));
            let input = folder.join(input);
            if !input.exists() {
                continue;
            }
            let text = |key: &str| args[key].as_str().unwrap().to_owned();
            let (status, out, err) = enmesh(
                &[
                    "profile",
                    flag,
                    input.to_str().unwrap(),
                    "-n",
                    &text("namespace"),
                    "--cluster-domain",
                    &text("clusterDomain"),
                    &text("service"),
                ],
                "",
            );
            let expected = std::fs::read_to_string(folder.join("expected.yaml")).unwrap();
            assert!(status <= 1, "{}: {err}", folder.display());
            if status == 1 {
                // What the input says is no profile; corpus_profile.rs compares such documents.
                eprintln!("not compared: {}", folder.display());
                continue;
            }
            assert_eq!(yaml(&out), yaml(&expected), "{}", folder.display());
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}
