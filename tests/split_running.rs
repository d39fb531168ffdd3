//! Splits, copies, sessions and cross-origin answers in a running mesh, with real backends on loopback.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns and reads its own clock")]

use bytes::Bytes;
use enmesh::control::source::{Snapshot, Source, Updates};
use enmesh::profile::name::ServiceName;
use enmesh::{CallOptions, Mesh, MeshBuilder, RequestExt, ResponseExt, ServiceProfile};
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// What a backend saw: method, path with query, headers, body.
type Seen = (String, http::HeaderMap, Bytes);

/// A backend that answers with its name, after `delay`, and remembers what it was asked.
#[derive(Clone)]
struct Backend {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Backend {
    async fn new(name: &'static str, status: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = Self { addr: listener.local_addr().unwrap(), seen: Arc::default() };
        let seen = Arc::clone(&backend.seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let seen = Arc::clone(&seen);
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
                        tokio::time::sleep(delay).await;
                        seen.lock().unwrap().push((
                            format!("{} {}", head.method, head.uri),
                            head.headers,
                            body,
                        ));
                        let response = Response::builder().status(status).header("x-backend", name);
                        Ok::<_, Infallible>(response.body(Full::<Bytes>::from(name)).unwrap())
                    }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let builder =
                    hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                tokio::spawn(async move { builder.serve_connection(io, service).await.map_err(drop) });
            }
        });
        backend
    }

    async fn good(name: &'static str) -> Self {
        Self::new(name, 200, Duration::ZERO).await
    }

    fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Waits until it was called so often; real time, since real sockets are between.
    async fn called(&self, times: usize) -> Vec<Seen> {
        for _ in 0..2_000 {
            if self.calls() >= times {
                return self.seen.lock().unwrap().clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("called {} times in 10 s, and not {times}", self.calls());
    }
}

fn profile(spec: &str) -> String {
    format!("apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {{name: web.ns}}\nspec:\n{spec}")
}

fn mesh(spec: &str, backends: &[(&str, &Backend)]) -> Mesh {
    let add = |builder: MeshBuilder, (name, backend): &(&str, &Backend)| {
        builder.endpoints(name, [backend.addr.to_string()])
    };
    let builder = Mesh::builder().dns(false).profile_yaml(&profile(spec));
    backends.iter().fold(builder, add).build().unwrap()
}

/// Sends so many requests, and counts who answered.
async fn ask(mesh: &Mesh, times: usize, request: impl Fn(usize) -> Request<()>) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for number in 0..times {
        let response = mesh.client().send(request(number)).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        *answers.entry(String::from_utf8(body.to_vec()).unwrap()).or_insert(0) += 1;
    }
    answers
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://web.ns{path}")).body(()).unwrap()
}

fn counts(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[tokio::test]
async fn over_any_thousand_requests_the_share_is_exact() {
    let (a, b, c) = (Backend::good("a").await, Backend::good("b").await, Backend::good("c").await);
    let backends = [("a.ns", &a), ("b.ns", &b), ("c.ns", &c)];
    let spec = "  backends: [{service: a.ns, weight: 90}, {service: b.ns, weight: 9}, {service: c.ns, weight: 1}]\n  \
                routes:\n  - {name: r, condition: {pathRegex: /r}}\n";
    let mesh = mesh(spec, &backends);
    let path = |number: usize| if number.is_multiple_of(3) { "/r" } else { "/" };
    let _ = ask(&mesh, 37, |number| get(path(number))).await;
    let before = [a.calls(), b.calls(), c.calls()];
    let _ = ask(&mesh, 1000, |number| get(path(number))).await;
    let shares = [a.calls() - before[0], b.calls() - before[1], c.calls() - before[2]];
    for (share, due) in shares.into_iter().zip([900, 90, 10]) {
        assert!(share.abs_diff(due) <= 1, "{shares:?}");
    }
}

#[tokio::test]
async fn backends_without_weight_are_answered_for() {
    let web = Backend::good("web").await;
    let all_zero =
        mesh("  backends: [{service: a.ns, weight: 0}, {service: b.ns, weight: 0}]\n", &[("web.ns", &web)]);
    assert_eq!(ask(&all_zero, 3, |_| get("/")).await, counts(&[("web", 3)]), "Linkerd: the service itself");
    let of_route = mesh(
        "  routes: [{name: r, condition: {always: true}, backends: [{service: a.ns, weight: 0}]}]\n",
        &[("web.ns", &web)],
    );
    let error = of_route.client().send(get("/")).await.unwrap_err();
    assert_eq!((error.to_status().as_u16(), error.to_grpc()), (500, 14), "{error}");
    let invalid = mesh(
        "  routes:\n  - name: r\n    condition: {always: true}\n    backends:\n    - {service: web.ns}\n    \
         - {invalid: {status: 503, reason: gone}}\n",
        &[("web.ns", &web)],
    );
    let mut failed = 0;
    for _ in 0..10 {
        failed += usize::from(invalid.client().send(get("/")).await.is_err());
    }
    assert_eq!(failed, 5, "an invalid backend keeps its share");
}

#[tokio::test]
async fn headers_and_percentages_choose_the_backend() {
    let (stable, canary) = (Backend::good("stable").await, Backend::good("canary").await);
    let spec = "  routes:\n  - name: testers\n    condition: {headers: [{name: x-canary, value: always}]}\n    \
                backends: [{service: canary.ns}]\n  - name: some\n    condition: {fraction: {numerator: 25}}\n    \
                backends: [{service: canary.ns}]\n  - name: rest\n    condition: {always: true}\n    backends: [{service: stable.ns}]\n";
    let mesh = mesh(spec, &[("stable.ns", &stable), ("canary.ns", &canary)]);
    let tester = |_| Request::get("http://web.ns/").header("x-canary", "always").body(()).unwrap();
    assert_eq!(ask(&mesh, 20, tester).await, counts(&[("canary", 20)]));
    let some = ask(&mesh, 1000, |_| get("/")).await;
    // Drawn at random: 25 % of 1,000 is within 60 of 250 but for one time in 70,000.
    assert!(some["canary"].abs_diff(250) < 60, "{some:?}");
}

#[tokio::test]
async fn one_key_stays_with_one_backend_while_the_canary_grows() {
    let (stable, canary) = (Backend::good("stable").await, Backend::good("canary").await);
    let spec = |weight: u32| {
        format!(
            "  routes:\n  - name: r\n    condition: {{always: true}}\n    backendChoice: Sticky\n    hash: [{{header: x-user}}]\n    \
             backends: [{{service: stable.ns, weight: {}}}, {{service: canary.ns, weight: {weight}}}]\n",
            100 - weight
        )
    };
    let mut before: Vec<String> = Vec::new();
    for weight in [10, 50, 100] {
        let mesh = mesh(&spec(weight), &[("stable.ns", &stable), ("canary.ns", &canary)]);
        let mut now = Vec::new();
        for user in 0..100 {
            let request =
                |_| Request::get("http://web.ns/").header("x-user", user.to_string()).body(()).unwrap();
            let answers = ask(&mesh, 3, request).await;
            assert_eq!(answers.len(), 1, "user {user} met {answers:?}");
            now.extend(answers.into_keys());
        }
        let kept = before.iter().zip(&now).all(|(before, now)| before == now || now == "canary");
        assert!(kept, "nobody leaves a canary that grows");
        before = now;
    }
    assert!(before.iter().all(|name| name == "canary"));
}

#[tokio::test]
async fn the_first_available_backend_is_asked_and_the_next_at_once_when_it_is_gone() {
    let (first, second) = (Backend::good("first").await, Backend::good("second").await);
    let spec = "  routes:\n  - name: r\n    condition: {always: true}\n    backendChoice: FirstAvailable\n    \
                backends: [{service: first.ns}, {service: second.ns}]\n";
    let both = mesh(spec, &[("first.ns", &first), ("second.ns", &second)]);
    assert_eq!(ask(&both, 10, |_| get("/")).await, counts(&[("first", 10)]));
    // Nobody knows the first one, an empty set is known of it, and nobody listens there.
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let builder = || {
        Mesh::builder()
            .dns(false)
            .profile_yaml(&profile(spec))
            .endpoints("second.ns", [second.addr.to_string()])
    };
    for builder in
        [builder(), builder().endpoints("first.ns", [""; 0]), builder().endpoints("first.ns", [gone])]
    {
        let mesh = builder.build().unwrap();
        let begun = Instant::now();
        assert_eq!(ask(&mesh, 10, |_| get("/")).await, counts(&[("second", 10)]));
        // Waiting for endpoints takes 3 s each: nobody did.
        assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn copies_are_sent_elsewhere_and_their_answers_are_seen_by_nobody() {
    let (web, shadow) = (Backend::good("web").await, Backend::new("shadow", 500, Duration::ZERO).await);
    let spec = "  routes:\n  - name: r\n    condition: {always: true}\n    mirrors: [{service: shadow.ns}]\n    \
                filters: [{requestHeaderModifier: {set: [{name: x-by, value: route}]}}]\n";
    let mesh = mesh(spec, &[("web.ns", &web), ("shadow.ns", &shadow)]);
    let post = Request::post("http://web.ns/p?q=1").body("known").unwrap();
    assert_eq!(mesh.client().send(post).await.unwrap().status(), 200);
    let frames = ["stre", "amed"].map(|part| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(part))));
    let body = StreamBody::new(futures::stream::iter(frames));
    let streamed = Request::post("http://web.ns/s").body(body).unwrap();
    let response = tower::ServiceExt::oneshot(mesh.client(), streamed).await.unwrap();
    assert_eq!(response.headers()["x-backend"], "web");
    assert_eq!(ask(&mesh, 1, |_| get("/g")).await, counts(&[("web", 1)]));
    let mut seen = shadow.called(3).await;
    seen.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let told: Vec<(&str, &[u8])> = seen.iter().map(|(what, _, body)| (what.as_str(), &body[..])).collect();
    assert_eq!(told, [("GET /g", &b""[..]), ("POST /p?q=1", b"known"), ("POST /s", b"streamed")]);
    assert!(seen.iter().all(|(_, headers, _)| headers["x-by"] == "route"), "after the route's own changes");
    let routes = mesh.stats().routes;
    let of = |name: &str| routes.iter().find(|row| *row.route == *name).unwrap().reading.clone();
    assert_eq!((of("r").requests, of("r").failures), (3, 0), "copies are not the caller's");
    assert_eq!(of("mirror of r").requests, 3);
}

#[tokio::test]
async fn a_mirror_that_hangs_or_is_gone_costs_its_callers_nothing() {
    let (web, slow) = (Backend::good("web").await, Backend::new("slow", 200, Duration::from_secs(60)).await);
    let spec = |mirror: &str| {
        format!(
            "  routes:\n  - name: r\n    condition: {{always: true}}\n    mirrors: [{{service: {mirror}}}]\n    \
             retry: {{attempts: 3, on: [5xx]}}\n"
        )
    };
    for mirror in ["slow.ns", "nobody.ns"] {
        let mesh = mesh(&spec(mirror), &[("web.ns", &web), ("slow.ns", &slow)]);
        let begun = Instant::now();
        // More than may be under way at once.
        assert_eq!(ask(&mesh, 150, |_| get("/")).await, counts(&[("web", 150)]));
        assert!(begun.elapsed() < Duration::from_secs(60), "{mirror}: {:?}", begun.elapsed());
    }
    assert_eq!(slow.calls(), 0);
}

#[tokio::test]
async fn a_part_is_copied_and_long_bodies_are_not() {
    let (web, shadow) = (Backend::good("web").await, Backend::good("shadow").await);
    let spec = "  routes:\n  - name: r\n    condition: {always: true}\n    mirrors: [{service: shadow.ns, percent: 20}]\n";
    let mesh = mesh(spec, &[("web.ns", &web), ("shadow.ns", &shadow)]);
    let long = || Request::post("http://web.ns/long").body(vec![b'x'; 100_000]).unwrap();
    for _ in 0..50 {
        assert_eq!(mesh.client().send(long()).await.unwrap().status(), 200);
    }
    assert_eq!(ask(&mesh, 100, |_| get("/")).await, counts(&[("web", 100)]));
    let seen = shadow.called(20).await;
    assert!(seen.iter().all(|(what, ..)| what == "GET /"), "{seen:?}");
    assert_eq!(seen.len(), 20);
    #[cfg(feature = "prometheus")]
    {
        let metrics = mesh.metrics_text().unwrap();
        let told = |result: &str, count: u32| {
            metrics.lines().any(|line| {
                line.starts_with("enmesh_mirrored_total{")
                    && line.contains(&format!("result=\"{result}\""))
                    && line.ends_with(&format!(" {count}"))
            })
        };
        assert!(told("sent", 20) && told("skipped", 10), "{metrics}");
    }
}

#[tokio::test]
async fn a_session_stays_with_its_endpoint_and_begins_anew_when_that_is_gone() {
    let (a, b, c) = (Backend::good("a").await, Backend::good("b").await, Backend::good("c").await);
    for (kind, sent) in [("Cookie", "cookie"), ("Header", "sess")] {
        let spec = format!(
            "  routes:\n  - name: r\n    condition: {{always: true}}\n    sessionPersistence: {{sessionName: sess, type: {kind}}}\n    \
             backends: [{{service: one.ns}}, {{service: two.ns}}]\n"
        );
        let with = |two: &[&Backend]| {
            let two: Vec<String> = two.iter().map(|backend| backend.addr.to_string()).collect();
            let one = [a.addr.to_string()];
            let builder = Mesh::builder().dns(false).profile_yaml(&profile(&spec));
            builder.endpoints("one.ns", one).endpoints("two.ns", two).build().unwrap()
        };
        let all = with(&[&b, &c]);
        let request = |token: Option<&str>| {
            let request = Request::get("http://web.ns/");
            token.into_iter().fold(request, |request, token| request.header(sent, token)).body(()).unwrap()
        };
        let token = |response: &Response<enmesh::ResBody>| {
            let name = if kind == "Cookie" { "set-cookie" } else { "sess" };
            let value = response.headers().get(name)?.to_str().unwrap();
            assert!(kind == "Header" || value.ends_with("; Path=/; HttpOnly"), "{value}");
            Some(value.split(';').next().unwrap().to_owned())
        };
        for _ in 0..6 {
            let first = all.client().send(request(None)).await.unwrap();
            let (name, token_text) = (first.headers()["x-backend"].clone(), token(&first).unwrap());
            for _ in 0..5 {
                let again = all.client().send(request(Some(&token_text))).await.unwrap();
                assert_eq!(again.headers()["x-backend"], name);
                assert_eq!(token(&again), None, "nothing new is told");
            }
            // Another process of the same program knows the session; one without the endpoint begins another.
            let elsewhere = with(&[&b, &c]).client().send(request(Some(&token_text))).await.unwrap();
            assert_eq!(elsewhere.headers()["x-backend"], name);
            if name == "c" {
                let without = with(&[&b]).client().send(request(Some(&token_text))).await.unwrap();
                assert!(token(&without).is_some_and(|new| new != token_text));
            }
        }
    }
}

#[tokio::test]
async fn browsers_are_answered_and_told_what_they_may_see() {
    let web = Backend::good("web").await;
    let spec = "  routes:\n  - name: r\n    condition: {always: true}\n    filters:\n    - cors:\n        \
                allowOrigins: [{regex: 'https://[^:/]+[.]example[.]com'}]\n        allowMethods: [PUT]\n        maxAge: 60s\n    \
                - {responseHeaderModifier: {set: [{name: x-by, value: route}], add: [{name: vary, value: accept}]}}\n";
    let mesh = mesh(spec, &[("web.ns", &web)]);
    let send = |method: Method, origin: &'static str| {
        let request = Request::builder().method(method).uri("http://web.ns/").header("origin", origin);
        let request = request.header("access-control-request-method", "PUT").body(()).unwrap();
        let client = mesh.client();
        async move { client.send(request).await.unwrap() }
    };
    let preflight = send(Method::OPTIONS, "https://a.example.com").await;
    assert_eq!(preflight.status(), 204);
    assert_eq!(preflight.headers()["access-control-allow-origin"], "https://a.example.com");
    assert_eq!(preflight.headers()["access-control-allow-methods"], "PUT");
    assert_eq!(preflight.headers()["access-control-max-age"], "60");
    let foreign = send(Method::OPTIONS, "https://evil.com").await;
    assert_eq!(
        (foreign.status().as_u16(), foreign.headers().get("access-control-allow-origin")),
        (403, None)
    );
    assert_eq!(web.calls(), 0, "the backend was asked nothing");
    let actual = send(Method::PUT, "https://a.example.com").await;
    assert_eq!(actual.headers()["access-control-allow-origin"], "https://a.example.com");
    assert_eq!(
        (&actual.headers()["x-by"], &actual.headers()["vary"]),
        (&"route".parse().unwrap(), &"accept,Origin".parse().unwrap())
    );
    assert_eq!(actual.headers()["x-backend"], "web");
    let other = send(Method::PUT, "https://evil.com").await;
    assert_eq!((other.status().as_u16(), other.headers().get("access-control-allow-origin")), (200, None));
    assert_eq!(mesh.stats().routes.iter().map(|row| row.reading.requests).sum::<u64>(), 4, "all are counted");
}

#[tokio::test]
async fn the_routes_own_hash_comes_before_the_services() {
    let (a, b) = (Backend::good("a").await, Backend::good("b").await);
    let spec = "  balancer: {algorithm: {ringHash: {}}, hash: [{path: true}]}\n  routes:\n  - name: r\n    condition: {always: true}\n    hash: [{header: x-user}]\n";
    let spec = spec.replace("{ringHash: {}}", "RingHash");
    let mesh = Mesh::builder()
        .dns(false)
        .profile_yaml(&profile(&spec))
        .endpoints("web.ns", [a.addr.to_string(), b.addr.to_string()])
        .build()
        .unwrap();
    for user in 0..20 {
        let request = |number: usize| {
            let uri = format!("http://web.ns/{number}");
            Request::get(uri).header("x-user", user.to_string()).body(()).unwrap()
        };
        assert_eq!(ask(&mesh, 6, request).await.len(), 1, "user {user}");
    }
    let own = |_| get("/").with_options(CallOptions::default().hash_key(1));
    assert_eq!(ask(&mesh, 6, own).await.len(), 1);
}

struct Told(tokio::sync::watch::Receiver<Arc<ServiceProfile>>);

impl Source<Arc<ServiceProfile>> for Told {
    fn watch(&self, name: &ServiceName) -> Updates<Arc<ServiceProfile>> {
        let of_web = name.host() == "web.ns";
        let stream = futures::stream::unfold((self.0.clone(), true), |(mut told, first)| async move {
            if !first {
                told.changed().await.ok()?;
            }
            let profile = told.borrow_and_update().clone();
            Some((profile, (told, false)))
        });
        stream.map(move |profile| Snapshot::good(of_web.then_some(profile))).boxed()
    }
}

#[tokio::test]
async fn changes_of_weight_under_load_drop_nothing() {
    let (stable, canary) = (Backend::good("stable").await, Backend::good("canary").await);
    let weights = |canary: u32| {
        let spec = format!(
            "  backends: [{{service: stable.ns, weight: {}}}, {{service: canary.ns, weight: {canary}}}]\n",
            100 - canary
        );
        Arc::new(ServiceProfile::from_yaml(&profile(&spec)).unwrap())
    };
    let (sender, told) = tokio::sync::watch::channel(weights(0));
    let mesh = Mesh::builder()
        .dns(false)
        .profile_source(Told(told))
        .endpoints("stable.ns", [stable.addr.to_string()])
        .endpoints("canary.ns", [canary.addr.to_string()])
        .build()
        .unwrap();
    assert_eq!(ask(&mesh, 100, |_| get("/")).await, counts(&[("stable", 100)]));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let mesh = mesh.clone();
            tokio::spawn(async move { ask(&mesh, 250, |_| get("/")).await.values().sum::<usize>() })
        })
        .collect();
    for canary in 0..=100 {
        sender.send_replace(weights(canary));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut answered = 0;
    for task in load {
        answered += task.await.unwrap();
    }
    assert_eq!((answered, stable.calls() + canary.calls()), (1000, 1100), "each call was sent once");
    assert_eq!(ask(&mesh, 100, |_| get("/")).await, counts(&[("canary", 100)]));
}

#[tokio::test]
async fn a_call_tells_which_attempt_and_endpoint_served_it_with_extras_too() {
    let web = Backend::good("web").await;
    let spec = "  routes: [{name: r, condition: {always: true}, sessionPersistence: {sessionName: s}}]\n";
    let mesh = mesh(spec, &[("web.ns", &web)]);
    let info = mesh.client().send(get("/")).await.unwrap().call_info();
    assert_eq!((&*info.route, info.attempts, info.endpoint.map(|one| one.addr)), ("r", 1, Some(web.addr)));
}
