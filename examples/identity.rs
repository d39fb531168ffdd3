//! Workload identities as files, and mutual TLS with them: what `.ci/interop/run` tries against openssl, curl and Envoy.
//!
//! ```text
//! cargo run --example identity -- ca certs web api     # a development CA and two identities: certs/web, certs/api
//! cargo run --example identity -- serve certs/api 127.0.0.1:8443
//! cargo run --example identity -- call certs/web 127.0.0.1:8443 spiffe://mesh.example/api
//! ```

use bytes::Bytes;
use enmesh::Mesh;
use enmesh::discover::endpoint::Endpoint;
use enmesh::error::BoxError;
use enmesh::tls::authority::Authority;
use enmesh::tls::authority::AuthoritySettings;
use enmesh::tls::files::FileSettings;
use enmesh::tls::files::Files;
use enmesh::tls::identity::PeerIdentity;
use http::Request;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::Full;
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::time::Duration;

const DOMAIN: &str = "mesh.example";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["ca", directory, names @ ..] if !names.is_empty() => ca(Path::new(directory), names),
        ["serve", directory, addr] => serve(directory, addr).await,
        ["call", directory, addr, expected, version @ ..] => call(directory, addr, expected, version).await,
        _ => Err("write `ca DIR NAME…`, `serve DIR ADDR` or `call DIR ADDR SPIFFE-ID [http1]`".into()),
    }
}

/// Issues an identity for each name, as files that only their owner reads.
fn ca(directory: &Path, names: &[&str]) -> Result<(), BoxError> {
    let authority = Authority::new(DOMAIN.parse()?, AuthoritySettings::default())?;
    for name in names {
        let pem = authority.issue_pem(&format!("spiffe://{DOMAIN}/{name}").parse()?)?;
        let own = directory.join(name);
        fs::create_dir_all(&own)?;
        fs::write(own.join("tls.crt"), &pem.chain)?;
        fs::write(own.join("ca.crt"), &pem.roots)?;
        fs::write(own.join("tls.key"), &*pem.key)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(own.join("tls.key"), fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Answers every request with who called.
async fn serve(directory: &str, addr: &str) -> Result<(), BoxError> {
    let mesh = Mesh::builder().identity(Files::new(FileSettings::directory(directory))).build()?;
    let app = tower::service_fn(|request: Request<enmesh::serve::body::RequestBody>| async move {
        let caller = request.extensions().get::<PeerIdentity>().map(|peer| peer.identity.to_string());
        let text = format!("hello {}\n", caller.as_deref().unwrap_or("stranger"));
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    mesh.serve(tokio::net::TcpListener::bind(addr).await?, app).await?;
    Ok(())
}

/// Calls one server, which must prove to be `expected`.
async fn call(directory: &str, addr: &str, expected: &str, version: &[&str]) -> Result<(), BoxError> {
    let http2 = version != ["http1"];
    let endpoint = Endpoint { identity: Some(expected.into()), http2, ..Endpoint::new(addr.parse()?) };
    let mesh = Mesh::builder()
        .identity(Files::new(FileSettings::directory(directory)))
        .endpoint_set("peer:443", [endpoint])
        .build()?;
    let identities = mesh.identities().ok_or("no identity")?;
    if tokio::time::timeout(Duration::from_secs(5), identities.ready()).await.is_err() {
        return Err(identities.status().fault.unwrap_or_default().into());
    }
    let response = mesh.client().get("http://peer:443/").await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    println!("{status} {}", String::from_utf8_lossy(&body));
    Ok(())
}
