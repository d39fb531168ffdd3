//! The gate before an application: who gets through, what the application sees, and policies that change.

#[path = "support/authz.rs"]
mod support;

use enmesh::authz::layer::AuthzLayer;
use enmesh::authz::layer::Gate;
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::Action;
use enmesh::authz::settings::AuthzSettings;
use enmesh::authz::settings::Clients;
use enmesh::authz::settings::IdentityMatch;
use enmesh::authz::settings::NetworkMatch;
use enmesh::authz::settings::RateSettings;
use enmesh::authz::settings::RuleSettings;
use enmesh::error::Error;
use enmesh::profile::matching::Condition;
use enmesh::profile::matching::PathKind;
use enmesh::profile::matching::PathMatch;
use futures::FutureExt;
use http::Request;
use http::Response;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::*;
use tower::Layer;
use tower::Service;
use tower::ServiceExt;
use tower::service_fn;

#[tokio::test]
async fn ambiguous_paths_get_400_refused_ones_403_and_the_others_arrive_as_they_are() {
    let gate = Gate::new(by_paths());
    for (path, expected) in [
        ("/public/a", 200),
        ("/public/", 200),
        ("/public/a%20b", 200),
        ("/public?x=/admin", 200),
        ("/PUBLIC/a", 403),
        ("/admin/x", 403),
        ("/admin?x=/public", 403),
        ("/publicity", 403),
        ("*", 403),
        ("/public/..", 400),
        ("/public/%2e%2e/admin", 400),
        ("/public%2f..%2fadmin", 400),
        ("/public;x=1/a", 400),
        ("//admin", 400),
        ("/%2561dmin", 400),
    ] {
        let (status, headers) = ask(&gate, from("spiffe://mesh.example/web", path)).await;
        assert_eq!(status, expected, "{path}");
        if expected == 200 {
            assert_eq!(headers["x-path"], path.split('?').next().unwrap());
        }
    }
    let grpc = Request::post("/a.B/C")
        .header("content-type", "application/grpc")
        .extension(peer("spiffe://mesh.example/web"))
        .body(())
        .unwrap();
    let (status, headers) = ask(&gate, grpc).await;
    assert_eq!((status, &headers["grpc-status"]), (200, &"7".parse().unwrap()));
}

#[tokio::test]
async fn the_application_sees_who_calls_and_nothing_that_a_peer_made_up() {
    let anyone = RuleSettings::new("all", Action::Allow, Clients::Anyone);
    let gate = Gate::new(compile(vec![anyone], Action::Deny));
    let spoofed = |mut request: Request<()>| {
        for (name, value) in [
            ("l5d-client-id", "admin"),
            ("l5d-retry-limit", "18446744073709551615"),
            ("l5d-timeout", "9999d"),
            ("x-envoy-max-retries", "99"),
            ("connection", "authorization"),
            ("authorization", "Bearer x"),
        ] {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        request
    };
    let (_, seen) = ask(&gate, spoofed(from("spiffe://mesh.example/web", "/"))).await;
    assert_eq!(seen["l5d-client-id"], "spiffe://mesh.example/web");
    assert_eq!(seen.get_all("l5d-client-id").iter().count(), 1);
    assert!(
        seen.get("l5d-retry-limit").or(seen.get("l5d-timeout")).or(seen.get("x-envoy-max-retries")).is_none()
    );
    assert_eq!(seen["authorization"], "Bearer x");
    let (_, seen) = ask(&gate, spoofed(Request::get("/").body(()).unwrap())).await;
    assert!(seen.get("l5d-client-id").is_none());
}

#[tokio::test]
async fn networks_see_through_mapped_addresses() {
    let ten = NetworkMatch { cidr: "10.0.0.0/8".parse().unwrap(), except: Vec::new() };
    let deny = RuleSettings::new("no-ten", Action::Deny, Clients::Networks(vec![ten]));
    let gate = Gate::new(compile(vec![deny], Action::Allow));
    for (text, expected) in
        [("[::ffff:10.0.0.1]:1", 403), ("10.1.2.3:1", 403), ("[::1]:1", 200), ("11.0.0.1:1", 200)]
    {
        let remote: SocketAddr = text.parse().unwrap();
        let request = Request::get("/").extension(remote).body(()).unwrap();
        assert_eq!(ask(&gate, request).await.0, expected, "{text}");
    }
}

#[tokio::test]
async fn a_change_of_policy_is_for_the_next_request_of_every_connection() {
    let gate = Gate::new(by_paths());
    let app = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
    // One service, as one connection holds it.
    let mut connection = AuthzLayer::new(gate.clone(), address).layer(app);
    let web = || from("spiffe://mesh.example/web", "/public/a");
    assert!(connection.ready().await.unwrap().call(web()).await.is_ok());
    gate.publish(compile(Vec::new(), Action::Deny));
    let error = connection.ready().await.unwrap().call(web()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { rule } if &*rule == "default"));
}

#[test]
fn every_decision_is_of_one_whole_policy() {
    // Each policy allows exactly one of two callers; a mix would allow or refuse both.
    let only = |name: &str| {
        let clients = Clients::Identity(IdentityMatch::Exact(name.parse().unwrap()));
        compile(
            vec![
                RuleSettings::new("deny-others", Action::Deny, Clients::Not(Box::new(clients.clone()))),
                RuleSettings::new("allow", Action::Allow, clients),
            ],
            Action::Deny,
        )
    };
    let (a, b) = ("spiffe://mesh.example/a", "spiffe://mesh.example/b");
    let gate = Gate::new(only(a));
    let done = Arc::new(AtomicBool::new(false));
    let asker = |name: &'static str| {
        let (gate, done) = (gate.clone(), Arc::clone(&done));
        std::thread::spawn(move || {
            let app = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(()) });
            let mut app = AuthzLayer::new(gate, address).layer(app);
            let (mut yes, mut no) = (0u32, 0u32);
            while !done.load(Ordering::Relaxed) {
                match app.call(from(name, "/")).now_or_never().unwrap() {
                    Ok(()) => yes += 1,
                    Err(Error::Denied { rule }) if &*rule == "deny-others" => no += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            (yes, no)
        })
    };
    let askers = [asker(a), asker(b)];
    for index in 0..10_000 {
        gate.publish(only(if index % 2 == 0 { b } else { a }));
    }
    done.store(true, Ordering::Relaxed);
    for asker in askers {
        let (yes, no) = asker.join().unwrap();
        assert!(yes + no > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_whose_source_is_lost_stands_until_its_age_limit_and_then_refuses() {
    let minute = Duration::from_secs(60);
    let unlimited = Gate::new(by_paths());
    let limited = Gate::with_age_max(by_paths(), 10 * minute);
    let web = || from("spiffe://mesh.example/web", "/public/a");
    tokio::time::sleep(9 * minute).await;
    assert_eq!((ask(&limited, web()).await.0, limited.age()), (200, 9 * minute));
    limited.heard();
    tokio::time::sleep(9 * minute).await;
    assert_eq!(ask(&limited, web()).await.0, 200);
    tokio::time::sleep(2 * minute).await;
    assert_eq!(ask(&limited, web()).await.0, 403);
    assert_eq!(ask(&unlimited, web()).await.0, 200);
    limited.publish(by_paths());
    assert_eq!(ask(&limited, web()).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn rates_refuse_with_429_and_a_time_count_nothing_that_is_denied_and_survive_an_update() {
    let settings = |total| AuthzSettings {
        rules: vec![
            RuleSettings::new("no", Action::Deny, Clients::Anyone)
                .on(Condition::Path(PathMatch::new(PathKind::Exact, "/no"))),
            RuleSettings::new("all", Action::Allow, Clients::Anyone),
        ],
        rates: RateSettings { total: Some(total), ..RateSettings::default() },
        ..AuthzSettings::default()
    };
    let policy = |total| AuthzPolicy::compile(&settings(total)).unwrap();
    let gate = Gate::new(policy(2));
    for _ in 0..9 {
        assert_eq!(ask(&gate, from("spiffe://mesh.example/web", "/no")).await.0, 403);
    }
    for _ in 0..2 {
        assert_eq!(ask(&gate, from("spiffe://mesh.example/web", "/")).await.0, 200);
    }
    let (status, headers) = ask(&gate, from("spiffe://mesh.example/web", "/")).await;
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (429, "1"));
    let mut grpc = from("spiffe://mesh.example/web", "/a.B/C");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let (status, headers) = ask(&gate, grpc).await;
    assert_eq!((status, headers["grpc-status"].to_str().unwrap()), (200, "8"));
    gate.publish(policy(2));
    assert_eq!(ask(&gate, from("spiffe://mesh.example/web", "/")).await.0, 429, "the same limit goes on");
    gate.publish(policy(3));
    assert_eq!(ask(&gate, from("spiffe://mesh.example/web", "/")).await.0, 200, "another begins anew");
}
