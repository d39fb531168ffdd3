//! The `enmesh` tool as it is run: exit status, results on standard output, faults on standard error.
#![cfg(feature = "cli")]

use bytes::Bytes;
use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::load_text;
use enmesh::stdx::rng::Rng;
use enmesh::{Error, Mesh};
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tower::{Layer, ServiceExt};

/// What a run of the tool gave.
struct Ran {
    status: i32,
    out: String,
    err: String,
}

fn enmesh(args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_enmesh"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A child that answers while it is asked must not wait for us, nor we for it. One that stops reading may.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A directory that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("enmesh-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn explained(config: &str, requests: &[Value]) -> Vec<Value> {
    let input: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let ran = enmesh(&["explain", "--config", config, "--requests", "-"], &input);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let answers: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), requests.len());
    answers
}

const SWAGGER: &str = "
swagger: '2.0'
info: {title: web, version: v1}
paths:
  /api/list: {get: {responses: {}}}
  /api/vote: {get: {responses: {}}}
";

const PROFILE: &str = r"
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: web-svc.emojivoto.svc.cluster.local, namespace: emojivoto}
spec:
  routes:
  - name: GET /api/list
    condition: {method: GET, pathRegex: /api/list}
    isRetryable: true
    timeout: 300ms
  - name: GET /api/vote
    condition: {method: GET, pathRegex: /api/vote}
";

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: cart, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - type: URLRewrite
      urlRewrite: {hostname: new.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: X-Set, value: a}], add: [{name: x-add, value: b}], remove: [x-gone]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-by, value: mesh}]}
    timeouts: {request: 2s, backendRequest: 500ms}
    backendRefs: [{name: cart-v1, port: 80, weight: 9}, {name: cart-v2, port: 8080, weight: 1}]
  - matches: [{path: {type: Exact, value: /moved}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, hostname: cart.test, statusCode: 301}
";

#[test]
fn the_tutorial_s_description_becomes_its_profile() {
    let ran = enmesh(&["profile", "--open-api", "-", "-n", "emojivoto", "-o", "json", "web-svc"], SWAGGER);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let route = |path: &str| json!({"condition": {"method": "GET", "pathRegex": path}, "name": format!("GET {path}")});
    let expected = json!({
        "apiVersion": "linkerd.io/v1alpha2",
        "kind": "ServiceProfile",
        "metadata": {"name": "web-svc.emojivoto.svc.cluster.local", "namespace": "emojivoto"},
        "spec": {"routes": [route("/api/list"), route("/api/vote")]},
    });
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), expected);
    let yaml = enmesh(&["profile", "--open-api", "-", "-n", "emojivoto", "web-svc"], SWAGGER);
    let checked = enmesh(&["check", "-"], &yaml.out);
    assert_eq!((checked.status, checked.err.as_str()), (0, ""));
    let template = enmesh(&["profile", "--template", "-n", "emojivoto", "web-svc"], "");
    assert_eq!((template.status, enmesh(&["check", "-"], &template.out).status), (0, 0));
}

/// The block of the README in `language` that follows the heading about profiles.
fn of_readme(language: &str) -> &'static str {
    let readme = include_str!("../README.md");
    let part = readme.split_once("## From an API description to a profile").unwrap().1;
    let block = part.split_once(&format!("```{language}\n")).unwrap().1;
    block.split_once("```").unwrap().0
}

#[tokio::test]
async fn the_readme_s_description_gives_what_it_says_and_a_mesh_takes_it() {
    let folder = Folder::new("readme");
    let description = folder.file("web.yaml", of_readme("yaml"));
    let (command, expected) = of_readme("console").split_once('\n').unwrap();
    assert_eq!(command, "$ enmesh profile --open-api web.yaml -n emojivoto web-svc");
    let ran = enmesh(&["profile", "--open-api", &description, "-n", "emojivoto", "web-svc"], "");
    assert_eq!((ran.status, ran.out.as_str()), (0, expected));
    let mesh = Mesh::builder().profile_yaml(&ran.out).dns(false).build().unwrap();
    let answers =
        tower::service_fn(|_: Request<_>| async { Ok::<_, Error>(Response::new(Full::<Bytes>::default())) });
    let layered = mesh.layer().layer(answers);
    for path in ["/api/list", "/api/vote", "/api/vote", "/other"] {
        let request = Request::get(format!("http://web-svc.emojivoto{path}")).body(Full::<Bytes>::default());
        layered.clone().oneshot(request.unwrap()).await.unwrap();
    }
    let counted = |name: &str| {
        let routes = mesh.stats().routes.into_iter().filter(|row| row.route == name);
        routes.map(|row| row.reading.requests).sum::<u64>()
    };
    assert_eq!(["GET /api/list", "GET /api/vote", ""].map(counted), [1, 2, 1]);
}

#[test]
fn exit_status_tells_wrong_use_from_bad_input_from_faults() {
    let check = |args: &[&str], input: &str, status: i32, told: &str| {
        let ran = enmesh(args, input);
        assert_eq!(ran.status, status, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(told), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
    };
    let one = "You must specify exactly one of --template or --open-api or --proto";
    check(&["profile", "a"], "", 2, one);
    check(&["profile", "--template", "--proto", "x", "a"], "", 2, one);
    check(
        &["profile", "--template", "service.name"],
        "",
        2,
        "invalid service \"service.name\": [a DNS-1035 label",
    );
    check(&["profile", "--template", "a", "-n", "a/b"], "", 2, "invalid namespace \"a/b\"");
    check(&["profile", "--open-api", "/no/such", "a"], "", 3, "/no/such");
    check(&["profile", "--open-api", "-", "a"], "a: [", 3, "is no YAML");
    check(&["check"], "", 2, "FILE");
    check(&["check", "/no/such.yaml"], "", 3, "/no/such.yaml");
    check(&["chekc"], "", 2, "unrecognized");
    for command in ["profile", "check", "convert", "explain", "ca"] {
        let help = enmesh(&[command, "--help"], "");
        assert!(help.status == 0 && help.out.contains("Example:"), "{command}: {}", help.out);
    }
}

#[test]
fn check_tells_every_fault_with_its_file_and_line() {
    let folder = Folder::new("check");
    let bad = PROFILE.replace("300ms", "300").replace("pathRegex: /api/vote", "pathRegex: /(");
    let good = folder.file("a-good.yaml", &format!("{PROFILE}---\n{ROUTE}"));
    let bad = folder.file(
        "b-bad.yaml",
        &format!("{ROUTE}---\n{bad}---\nkind: HTTPRout\napiVersion: gateway.networking.k8s.io/v1\n"),
    );
    let ran = enmesh(&["check", &good], "");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let ran = enmesh(&["check", folder.0.to_str().unwrap(), "-o", "json"], "");
    assert_eq!(ran.status, 1);
    let lines: Vec<&str> = ran.err.lines().collect();
    let number = |needle: &str| {
        let text = std::fs::read_to_string(&bad).unwrap();
        text.lines().position(|line| line.contains(needle)).unwrap() + 1
    };
    for (needle, told) in [
        ("timeout: 300", "spec.routes[0].timeout: must be a duration"),
        ("pathRegex: /(", "ignored: spec.routes[1].condition.pathRegex: must be a pattern"),
    ] {
        let begins = format!("{bad}:{}: {told}", number(needle));
        assert!(lines.iter().any(|line| line.starts_with(&begins)), "{begins}\n{}", ran.err);
    }
    assert!(ran.err.contains("HTTPRoute"), "{}", ran.err);
    let result: Value = serde_json::from_str(&ran.out).unwrap();
    let refused: Vec<bool> =
        result["documents"].as_array().unwrap().iter().map(|one| one["refused"].as_bool().unwrap()).collect();
    assert_eq!(refused, [false, false, false, true, true]);
}

#[test]
fn certificates_are_made_shown_and_gathered() {
    let folder = Folder::new("ca");
    let dir = folder.path("ca");
    let run = |args: &[&str]| enmesh(&[&["ca"], args].concat(), "");
    assert_eq!(run(&["init", "--trust-domain", "dev.test", "--dir", &dir]).status, 0);
    assert_eq!(
        run(&["init", "--trust-domain", "dev.test", "--dir", &dir]).status,
        2,
        "a root is overwritten"
    );
    let (web, id) = (folder.path("web"), "spiffe://dev.test/ns/emojivoto/sa/web");
    assert_eq!(run(&["issue", "--dir", &dir, "--out", &web, id]).status, 0);
    let foreign = run(&["issue", "--dir", &dir, "--out", &folder.path("x"), "spiffe://other.test/a"]);
    assert!(foreign.status == 2 && foreign.err.contains("dev.test"), "{}", foreign.err);
    let svid = format!("{web}/svid.pem");
    let shown = run(&["inspect", &svid, "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&shown[0]["role"], &shown[0]["identity"]), (&json!("workload"), &json!([id])));
    assert_eq!(shown[1]["role"], "signer");
    let bundle = run(&["bundle", &format!("{dir}/root.pem"), &format!("{web}/bundle.pem")]);
    assert_eq!((bundle.status, bundle.out.matches("BEGIN CERTIFICATE").count()), (0, 1));
    assert_eq!(run(&["bundle", &format!("{web}/svid.key")]).status, 3);
}

#[test]
fn what_another_mesh_says_is_converted_and_loads_again() {
    let converted = enmesh(&["convert", "-"], ROUTE);
    assert_eq!((converted.status, converted.err.as_str()), (0, ""));
    assert!(converted.out.contains("apiVersion: enmesh.dev/v1"), "{}", converted.out);
    assert_eq!(enmesh(&["check", "--strict", "-"], &converted.out).status, 0);
    let linkerd = enmesh(&["convert", "--to", "linkerd", "-"], ROUTE);
    assert!(linkerd.status == 1 && linkerd.out.is_empty() && !linkerd.err.is_empty(), "{}", linkerd.out);
    let foreign = enmesh(&["convert", "--from", "smi", "-"], ROUTE);
    assert!(foreign.status == 1 && foreign.err.contains("is of another dialect"), "{}", foreign.err);
}

#[test]
fn explain_says_what_a_linkerd_profile_does() {
    let folder = Folder::new("linkerd");
    let config = folder.file("web.yaml", PROFILE);
    let host = "web-svc.emojivoto:80";
    let answers = explained(
        &config,
        &[
            json!({"id": "a", "host": host, "path": "/api/list?x=1"}),
            json!({"id": 2, "host": host, "path": "/other"}),
            json!({"path": "/api/vote", "to": {"service": "web-svc", "namespace": "emojivoto"}}),
            json!({"host": host, "path": "/api/list", "method": "POST"}),
            json!({"host": "unknown.ns", "path": "/api/list"}),
            json!({"host": host, "path": "no slash"}),
        ],
    );
    let [first, second, third, post, unknown, bad] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(
        (&first["id"], &first["outcome"], &first["route"]),
        (&json!("a"), &json!("forward"), &json!("GET /api/list"))
    );
    assert_eq!(first["timeouts"]["request"], "300ms");
    assert_eq!(first["retry"]["budget"], json!({"ratio": 0.2, "min_per_second": 10, "ttl": "10s"}));
    assert_eq!(first["request"]["path"], "/api/list?x=1");
    assert_eq!(first["rule"], format!("{config}#0:routes[0]"));
    let backend = &first["backends"][0];
    assert_eq!((&backend["service"], &backend["namespace"]), (&json!("web-svc"), &json!("emojivoto")));
    assert_eq!((&backend["port"], &backend["share"]), (&json!(80), &json!(1.0)));
    assert_eq!((&second["id"], &second["route"], &second["retry"]), (&json!(2), &Value::Null, &Value::Null));
    assert!(second["why"].as_array().unwrap().len() == 3, "{second}");
    assert_eq!(third["route"], "GET /api/vote");
    assert_eq!(post["route"], Value::Null);
    assert_eq!(
        (&unknown["outcome"], &unknown["backends"][0]["service"]),
        (&json!("forward"), &json!("unknown"))
    );
    assert_eq!((&bad["outcome"], &bad["status"]), (&json!("reject"), &json!(400)));
}

#[test]
fn explain_says_what_an_http_route_does() {
    let folder = Folder::new("gateway");
    let config = folder.file("cart.yaml", ROUTE);
    let host = "cart.shop.svc.cluster.local";
    let answers = explained(
        &config,
        &[
            json!({"host": host, "path": "/old/a?q", "headers": {"x-gone": ["1", "2"]}}),
            json!({"host": host, "path": "/moved"}),
            json!({"host": host, "path": "/else"}),
            json!({"host": host, "path": "/pkg.Svc/Do", "protocol": "grpc"}),
        ],
    );
    let [old, moved, other, grpc] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(old["outcome"], "forward");
    assert_eq!(
        old["request"],
        json!({
            "host": "new.test", "path": "/new/a?q", "method": "GET",
            "set_headers": {"x-set": "a"}, "added_headers": {"x-add": "b"}, "removed_headers": ["x-gone"],
        })
    );
    assert_eq!(old["response"]["set_headers"], json!({"x-by": "mesh"}));
    assert_eq!((&old["timeouts"]["request"], &old["timeouts"]["attempt"]), (&json!("2s"), &json!("500ms")));
    let shares: Vec<_> =
        old["backends"].as_array().unwrap().iter().map(|one| (&one["service"], &one["share"])).collect();
    assert_eq!(shares, [(&json!("cart-v1"), &json!(0.9)), (&json!("cart-v2"), &json!(0.1))]);
    assert_eq!((&moved["outcome"], &moved["status"]), (&json!("redirect"), &json!(301)));
    assert_eq!(moved["redirect"], json!({"location": "https://cart.test/moved", "status": 301}));
    assert_eq!(
        (&other["outcome"], &other["status"], &other["grpc_status"]),
        (&json!("no_route"), &json!(404), &Value::Null)
    );
    assert_eq!(grpc["grpc_status"], 12);
    assert_eq!(grpc["why"].as_array().unwrap().len(), 3);
}

#[test]
fn explain_asks_the_authorization_documents() {
    let folder = Folder::new("authz");
    let documents = "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web-http, namespace: emojivoto}
spec: {podSelector: {matchLabels: {app: web}}, port: 8080, proxyProtocol: HTTP/1}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web-users, namespace: emojivoto}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: web-http}
  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: users}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: {name: users, namespace: emojivoto}
spec: {identities: ['spiffe://cluster.local/ns/emojivoto/sa/vote-bot']}
";
    let config = folder.file("authz.yaml", documents);
    let ask = |identity: Option<&str>, port: u16, path: &str| {
        json!({
            "path": path, "port": port, "from": {"identity": identity, "ip": "10.0.0.9"},
            "to": {"service": "web-svc", "namespace": "emojivoto", "labels": {"app": "web"}},
        })
    };
    let (bot, other) =
        (Some("spiffe://cluster.local/ns/emojivoto/sa/vote-bot"), Some("spiffe://cluster.local/ns/x/sa/y"));
    let answers = explained(
        &config,
        &[
            ask(bot, 8080, "/"),
            ask(other, 8080, "/"),
            ask(None, 8080, "/"),
            ask(None, 9090, "/"),
            ask(bot, 8080, "/a/../b"),
        ],
    );
    let decisions: Vec<&str> = answers.iter().map(|one| one["authz"]["decision"].as_str().unwrap()).collect();
    assert_eq!(decisions, ["allow", "deny", "deny", "allow", "deny"]);
    let own = "apiVersion: enmesh.dev/v1\nkind: Authorization\nmetadata: {name: a}\nspec:\n  rules:\n  \
               - {name: readers, request: {methods: [GET]}}\n";
    let config = folder.file("own.yaml", own);
    let answers = explained(
        &config,
        &[json!({"host": "a", "path": "/"}), json!({"host": "a", "path": "/", "method": "PUT"})],
    );
    assert_eq!(answers[0]["authz"], json!({"decision": "allow", "rule": "readers"}));
    assert_eq!(answers[1]["authz"]["decision"], "deny");
    assert_eq!(enmesh(&["check", "-"], &own.replace("request:", "requets:")).status, 1);
}

/// A route of random rules over few paths, methods and headers, each of which says who it is by a header or a redirect.
fn random_route(rng: &Rng) -> Value {
    let one = |texts: &[&str]| texts[rng.below(texts.len() as u32) as usize].to_owned();
    let matches = || {
        let mut matched = json!({"path": {
            "type": one(&["Exact", "PathPrefix", "PathPrefix", "RegularExpression"]),
            "value": one(&["/", "/a", "/a/b", "/a/b/c", "/b"]),
        }});
        if rng.below(3) == 0 {
            matched["method"] = one(&["GET", "POST"]).into();
        }
        if rng.below(3) == 0 {
            matched["headers"] = json!([{"name": "x-h", "value": one(&["1", "2"])}]);
        }
        matched
    };
    let rule = |index: u32| {
        let rewrite = match rng.below(3) {
            0 => json!({"hostname": "new.test"}),
            1 => json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/full"}}),
            _ => {
                json!({"hostname": "other.test", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}})
            }
        };
        let mark = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {
            "set": [{"name": "x-rule", "value": index.to_string()}], "remove": ["x-gone"],
        }});
        let kind = rng.below(5);
        let filters = match kind {
            0 => json!([{"type": "RequestRedirect", "requestRedirect": {
                "hostname": format!("rule{index}.test"), "statusCode": 302,
            }}]),
            1 => json!([mark, {"type": "URLRewrite", "urlRewrite": rewrite}]),
            2 => json!([mark, {"type": "CORS", "cors": {
                "allowOrigins": [one(&["*", "https://a.test", "https://*.test"])], "allowMethods": ["PUT"],
                "allowCredentials": rng.below(2) == 0,
            }}]),
            _ => json!([mark]),
        };
        json!({
            "matches": (0..=rng.below(2)).map(|_| matches()).collect::<Vec<_>>(),
            "backendRefs": if kind == 0 || rng.below(5) == 0 { json!([]) } else { json!([{"name": "web", "port": 80}]) },
            "filters": filters,
        })
    };
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "ns"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": (0..=rng.below(6)).map(rule).collect::<Vec<_>>(),
        },
    })
}

/// What the running stack did with a request, in the words of `explain`.
async fn ran<S>(service: S, request: &Value) -> Value
where
    S: tower::Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = Error>,
{
    let text = |key: &str| request[key].as_str().unwrap();
    let mut http =
        Request::builder().method(text("method")).uri(format!("http://{}{}", text("host"), text("path")));
    for (name, value) in request["headers"].as_object().unwrap() {
        http = http.header(name, value.as_str().unwrap());
    }
    let response = match service.oneshot(http.body(Full::default()).unwrap()).await {
        Ok(response) => response,
        Err(Error::NoRoute { .. }) => return json!({"outcome": "no_route"}),
        Err(error) => panic!("{error}"),
    };
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    match header("location") {
        None if header("seen-host").is_none() => json!({
            "outcome": "respond", "status": response.status().as_u16(), "allow": header("access-control-allow-origin"),
            "methods": header("access-control-allow-methods"),
        }),
        Some(location) => {
            json!({"outcome": "redirect", "location": location, "status": response.status().as_u16()})
        }
        None => json!({
            "outcome": "forward", "host": header("seen-host"), "path": header("seen-path"), "rule": header("seen-rule"),
            "allow": header("access-control-allow-origin"),
        }),
    }
}

/// What `explain` said, in the same words.
fn said(answer: &Value) -> Value {
    let response =
        |name: &str| answer["response"]["set_headers"][format!("access-control-allow-{name}")].clone();
    match answer["outcome"].as_str().unwrap() {
        "redirect" => json!({
            "outcome": "redirect", "location": answer["redirect"]["location"], "status": answer["status"],
        }),
        "forward" => json!({
            "outcome": "forward", "host": answer["request"]["host"], "path": answer["request"]["path"],
            "rule": answer["request"]["set_headers"]["x-rule"], "allow": response("origin"),
        }),
        "respond" => json!({
            "outcome": "respond", "status": answer["status"], "allow": response("origin"), "methods": response("methods"),
        }),
        other => json!({"outcome": other}),
    }
}

/// Answers with what it was asked.
fn mirror<B>(request: &Request<B>) -> Response<Full<Bytes>> {
    let mut response = Response::builder()
        .header("seen-host", request.uri().authority().unwrap().as_str())
        .header("seen-path", request.uri().path_and_query().unwrap().as_str());
    if let Some(rule) = request.headers().get("x-rule") {
        response = response.header("seen-rule", rule);
    }
    assert!(!request.headers().contains_key("x-gone") || !request.headers().contains_key("x-rule"));
    response.body(Full::default()).unwrap()
}

#[tokio::test]
async fn explain_says_what_the_running_stack_does() {
    let folder = Folder::new("equal");
    let mut outcomes = std::collections::BTreeMap::<String, usize>::new();
    for seed in 0..25 {
        let rng = Rng::seeded(seed);
        let text = random_route(&rng).to_string();
        let config = folder.file("route.json", &text);
        let one = |texts: &[&str]| texts[rng.below(texts.len() as u32) as usize].to_owned();
        let requests: Vec<Value> = (0..60)
            .map(|id| {
                json!({
                    "id": id, "host": "web.ns", "method": one(&["GET", "POST", "PUT", "OPTIONS"]),
                    "path": one(&["/", "/a", "/a/", "/a/b", "/a/b/c?q=1", "/ab", "/b?x", "/c"]),
                    "headers": {
                        "x-h": one(&["1", "2", "3"]), "x-gone": "1", "access-control-request-method": "PUT",
                        "origin": one(&["https://a.test", "https://b.test", "http://a.test"]),
                    },
                })
            })
            .collect();
        let answers = explained(&config, &requests);
        let imported = load_text(&text, "route.json", &ImportSettings::default());
        let mesh = imported
            .profiles
            .into_iter()
            .fold(Mesh::builder(), enmesh::MeshBuilder::profile)
            .build()
            .unwrap();
        for (request, answer) in requests.iter().zip(&answers) {
            let inner = tower::service_fn(async |request| Ok::<_, Error>(mirror(&request)));
            let service = tower::ServiceBuilder::new()
                .map_response(|response: Response<_>| response.map(|_| Full::default()))
                .layer(mesh.layer())
                .service(inner);
            let ran = ran(service, request).await;
            assert_eq!(said(answer), ran, "seed {seed}: {request}\n{answer}\n{text}");
            *outcomes.entry(ran["outcome"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    assert!(outcomes.len() == 4 && outcomes.values().all(|count| *count > 20), "{outcomes:?}");
}

/// Two splits of one service: that comes out only when all documents are read.
const SPLITS: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: split.smi-spec.io/v1alpha4
  kind: TrafficSplit
  metadata: {name: one, namespace: shop}
  spec: {service: cart, backends: [{service: v1, weight: 1}]}
- apiVersion: split.smi-spec.io/v1alpha4
  kind: TrafficSplit
  metadata: {name: two, namespace: shop}
  spec:
    backends: [{service: v1, weight: 1}]
    service: cart
---
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: cart.shop.svc.cluster.local, namespace: shop}
spec: {routes: [{name: a, condition: &c {}}, {name: b, condition: *c}]}
";

#[test]
fn each_fault_is_one_line_with_its_file_line_and_column() {
    let folder = Folder::new("places");
    let file = folder.file("splits.yaml", SPLITS);
    for (name, input) in [(file.as_str(), ""), ("-", SPLITS)] {
        let ran = enmesh(&["check", name], input);
        assert_eq!(ran.status, 1, "{}", ran.err);
        let place = |line: &str| {
            let (place, said) = line.split_once(": ").unwrap();
            let column = said.rsplit_once("(column ").unwrap().1;
            format!("{}:{column}", place.strip_prefix(name).unwrap())
        };
        let places: Vec<String> = ran.err.lines().map(place).collect();
        assert_eq!(places, [":14:5)", ":19:38)", ":19:38)"], "{}", ran.err);
    }
    let broken = folder.file("broken.proto", "syntax = \"proto3\";\nservice S { rpc }\n");
    let ran = enmesh(&["profile", "--proto", &broken, "web"], "");
    assert_eq!(ran.status, 3);
    assert!(ran.err.starts_with(&format!("error: {broken}:2: is no protobuf")), "{}", ran.err);
    let kept = folder.file("kept.yaml", PROFILE);
    let ran = enmesh(&["convert", "--to", "gateway-api", &kept], "");
    assert!(ran.status == 1 && ran.err.starts_with(&format!("{kept}:2: spec.routes[0]: ")), "{}", ran.err);
}

#[test]
fn of_two_documents_about_one_service_the_second_is_refused_as_it_is_by_a_mesh() {
    let folder = Folder::new("twice");
    let theirs = PROFILE.replace("namespace: emojivoto", "namespace: callers");
    let file = folder.file("twice.yaml", &format!("{PROFILE}---{PROFILE}---{theirs}"));
    let ran = enmesh(&["check", &file], "");
    assert_eq!((ran.status, ran.err.lines().count()), (1, 1), "{}", ran.err);
    assert!(
        ran.err.starts_with(&format!("{file}:14: says what an earlier document already says")),
        "{}",
        ran.err
    );
    assert!(ran.out.starts_with("3 documents, 1 refused; 2 profiles"), "{}", ran.out);
    let split = "---\napiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
                 metadata: {name: s, namespace: shop}\nspec: {service: cart, backends: [{service: v2, weight: 1}]}\n";
    let route = ROUTE.replace("name: cart, port: 80}", "name: cart}");
    let ran = enmesh(&["check", "-"], &format!("{route}{split}"));
    assert!(ran.status == 1 && ran.err.contains("already says of cart.shop"), "{}", ran.err);
}
