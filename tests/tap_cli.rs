//! `enmesh tap` and `enmesh profile --tap` against a running process.
#![cfg(feature = "cli")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns its own servers")]

use bytes::Bytes;
use enmesh::Mesh;
use http::Response;
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::process::Stdio;
use tokio::net::TcpListener;
use tokio::process::Command;

/// A process that serves, and a client that calls it.
struct World {
    server: Mesh,
    client: Mesh,
}

impl World {
    async fn new() -> Self {
        let server = Mesh::builder().name("web.ns:80").dns(false).admin("127.0.0.1:0".parse().unwrap());
        let server = server.build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = server.clone();
        tokio::spawn(async move {
            let app = tower::service_fn(|_| async { Ok::<_, Infallible>(Response::new(Full::from("x"))) });
            serving.serve(listener, app).await
        });
        let client = Mesh::builder().dns(false).endpoints("web.ns:80", [addr.to_string()]).build().unwrap();
        Self { server, client }
    }

    fn admin(&self) -> String {
        self.server.admin_addr().unwrap().to_string()
    }

    async fn get(&self, path: &str) {
        let response = self.client.client().get(format!("http://web.ns{path}")).await.unwrap();
        let _: Bytes = response.into_body().collect().await.unwrap().to_bytes();
    }

    /// Runs the tool, and calls `paths` in turn once it watches, until it ends.
    async fn run(&self, args: &[&str], paths: impl Fn(usize) -> String) -> (Option<i32>, String, String) {
        let tool = Command::new(env!("CARGO_BIN_EXE_enmesh"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = tool.wait_with_output();
        let calls = async {
            for number in 0.. {
                match self.server.taps().is_idle() {
                    true => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                    false => self.get(&paths(number)).await,
                }
            }
        };
        tokio::select! {
            output = ended => {
                let output = output.unwrap();
                let text = |bytes| String::from_utf8(bytes).unwrap();
                (output.status.code(), text(output.stdout), text(output.stderr))
            }
            () = calls => unreachable!("there is always one more"),
        }
    }
}

#[tokio::test]
async fn live_requests_are_lines_as_linkerds_are() {
    let world = World::new().await;
    let admin = world.admin();
    let args = ["tap", "--admin", &admin, "--max", "2", "--path", "/a*"];
    let (code, out, err) = world.run(&args, |number| format!("/{}/{number}", ["a", "b"][number % 2])).await;
    assert_eq!(code, Some(0), "{err}");
    let kinds: Vec<&str> = out.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(kinds, ["req", "rsp", "end", "req", "rsp", "end"], "{out}");
    assert!(
        out.lines().next().unwrap().contains(" proxy=in  src=127.0.0.1:") && !out.contains("/b/"),
        "{out}"
    );
    let (code, out, _) =
        world.run(&["tap", "--admin", &admin, "--max", "1", "-o", "json"], |_| "/".into()).await;
    assert_eq!((code, out.matches("\"proxyDirection\":\"INBOUND\"").count()), (Some(0), 3), "{out}");
    let (code, out, _) =
        world.run(&["tap", "--admin", &admin, "--max", "1", "-o", "yaml"], |_| "/".into()).await;
    let told = (code, out.matches("---\n").count(), out.matches("\nproxyDirection: INBOUND\n").count());
    assert_eq!(told, (Some(0), 3, 3), "{out}");
}

#[tokio::test]
async fn one_server_speaks_for_its_peers_and_who_is_not_watched_is_told() {
    let world = World::new().await;
    let peers = [format!("http://{}", world.admin()), "http://127.0.0.1:1".to_owned()];
    let speaker =
        Mesh::builder().name("me.ns:1").dns(false).admin_peers(peers).admin("127.0.0.1:0".parse().unwrap());
    let speaker = speaker.build().unwrap();
    let admin = speaker.admin_addr().unwrap().to_string();
    let (code, out, err) = world.run(&["tap", "--admin", &admin, "--max", "1"], |_| "/".into()).await;
    assert_eq!((code, out.matches(" proxy=in ").count()), (Some(0), 3), "{out} {err}");
    assert!(err.contains("http://127.0.0.1:1: cannot be reached"), "{err}");
    let both = ["tap", "--admin", &admin, "http://127.0.0.1:1", &world.admin(), "--max", "1"];
    let (code, out, err) = world.run(&both, |_| "/".into()).await;
    assert_eq!(
        (code, out.matches(" proxy=in ").count()),
        (Some(0), 3),
        "each speaks for itself: {out} {err}"
    );
    assert!(err.contains("http://127.0.0.1:1: cannot be reached"), "{err}");
}

#[tokio::test]
async fn mistakes_and_absent_processes_are_told() {
    let world = World::new().await;
    let admin = world.admin();
    let (code, _, err) = world.run(&["tap", "--admin", &admin, "--status", "5x"], |_| "/".into()).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("status cannot be read (`5x`); write such as 503"), "{err}");
    let (code, _, err) = world.run(&["tap", "--admin", "127.0.0.1:1"], |_| "/".into()).await;
    assert_eq!(code, Some(3));
    assert!(err.contains("http://127.0.0.1:1: cannot be reached"), "{err}");
}

#[tokio::test]
async fn a_profile_comes_from_what_a_process_serves() {
    let world = World::new().await;
    let admin = world.admin();
    let paths = |number: usize| match number % 3 {
        0 => format!("/users/{number}?x=1"),
        1 => "/list".to_owned(),
        _ => "/".to_owned(),
    };
    let args = ["profile", "--tap", &admin, "-n", "ns", "web", "--tap-route-limit", "2"];
    let (code, out, err) = world.run(&args, paths).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("name: GET /list") && out.contains("name: GET /users/"), "{out}");
    let args = [&args[..6], &["--generalize", "--suggest-timeouts", "--tap-duration", "2s"]].concat();
    let (code, out, err) = world.run(&args, paths).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.matches("  - condition:").count(), 2, "{out}");
    assert!(out.contains("pathRegex: /users/[^/]*") && out.contains("timeout: "), "{out}");
    let (code, _, err) = world.run(&[&args[..], &["--template"]].concat(), paths).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("exactly one of"), "{err}");
}
