//! A server whose authorization is a file that is edited while connections are open.
#![cfg(feature = "http")]
#![expect(clippy::disallowed_methods, reason = "a test is no library: it spawns")]

use bytes::Bytes;
use enmesh::Mesh;
use http::Request;
use http::Response;
use http_body_util::Full;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("enmesh-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("policy.yaml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.0.join(".new"), text).unwrap();
        std::fs::rename(self.0.join(".new"), self.file()).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn policy(action: &str) -> String {
    format!(
        "apiVersion: enmesh.dev/v1\nkind: Authorization\nmetadata: {{name: a}}\nspec: {{rules: [{{name: all, action: {action}}}]}}\n"
    )
}

/// Asks on an open connection; the status.
async fn ask(stream: &mut TcpStream) -> u16 {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.to_lowercase().contains("content-length: 0"), "{head}");
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Asks until the status is this one.
async fn until(stream: &mut TcpStream, status: u16) {
    let asked = async {
        while ask(stream).await != status {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.expect("the edit takes effect");
}

#[tokio::test]
async fn an_edit_reaches_open_connections_and_a_bad_one_is_told_and_changes_nothing() {
    let folder = Folder::new("authz-file");
    folder.write(&policy("allow"));
    let mesh = Mesh::builder().authorize_file(folder.file()).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = tower::service_fn(|_: Request<enmesh::serve::body::RequestBody>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
    });
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app).await });
    let mut stream = TcpStream::connect(addr).await.unwrap();
    assert_eq!(ask(&mut stream).await, 200);
    folder.write(&policy("deny"));
    until(&mut stream, 403).await;
    folder.write("kind: [");
    let told = async {
        loop {
            let state = mesh.inspect().authorization.unwrap();
            if !state.faults.is_empty() {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let state = tokio::time::timeout(Duration::from_secs(20), told).await.expect("the fault shows");
    assert_eq!((state.refused, state.rules[0].name.as_str(), state.rules[0].action), (1, "all", "deny"));
    assert_eq!(ask(&mut stream).await, 403, "the last good policy stands");
    folder.write(&policy("allow"));
    until(&mut stream, 200).await;
    assert!(mesh.inspect().authorization.unwrap().faults.is_empty());
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_at_the_start_stops_the_process() {
    let folder = Folder::new("authz-start");
    let error = |path: PathBuf| Mesh::builder().authorize_file(path).build().unwrap_err().to_string();
    let source = |path: PathBuf| {
        let error = Mesh::builder().authorize_file(path).build().unwrap_err();
        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
    };
    let text = |path: PathBuf| error(path.clone()) + &source(path);
    assert!(text(folder.file()).contains("cannot be read"));
    assert!(text(folder.0.clone()).contains("regular file"));
    folder.write("kind: Other");
    assert!(text(folder.file()).contains("Authorization"));
}
