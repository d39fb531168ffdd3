//! What the authorization tests share: a policy, a gate, and an application that tells what it saw.

#![allow(dead_code, reason = "each test binary uses a part")]

use enmesh::authz::layer::AuthzLayer;
use enmesh::authz::layer::Gate;
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::Action;
use enmesh::authz::settings::AuthzSettings;
use enmesh::authz::settings::Clients;
use enmesh::authz::settings::IdentityMatch;
use enmesh::authz::settings::RuleSettings;
use enmesh::classify::respond::RespondLayer;
use enmesh::profile::matching::Condition;
use enmesh::profile::matching::PathKind;
use enmesh::profile::matching::PathMatch;
use enmesh::tls::identity::PeerIdentity;
use http::Extensions;
use http::HeaderMap;
use http::Request;
use http::Response;
use std::convert::Infallible;
use std::net::IpAddr;
use std::net::SocketAddr;
use tower::Layer;
use tower::ServiceExt;
use tower::service_fn;

pub(crate) fn peer(name: &str) -> PeerIdentity {
    PeerIdentity {
        identity: name.parse().unwrap(),
        trust_domain: "mesh.example".parse().unwrap(),
        not_after: std::time::SystemTime::UNIX_EPOCH,
    }
}

pub(crate) fn compile(rules: Vec<RuleSettings>, otherwise: Action) -> AuthzPolicy {
    let trust_domain = Some("mesh.example".parse().unwrap());
    AuthzPolicy::compile(&AuthzSettings { rules, otherwise, trust_domain, ..AuthzSettings::default() })
        .unwrap()
}

/// The policy of the corpus's paths.
pub(crate) fn by_paths() -> AuthzPolicy {
    let prefix = |text: &str| Condition::Path(PathMatch::new(PathKind::PrefixElement, text));
    let admin = IdentityMatch::Exact("spiffe://mesh.example/admin".parse().unwrap());
    compile(
        vec![
            RuleSettings::new("public", Action::Allow, Clients::Identity(IdentityMatch::AnyLocal))
                .on(prefix("/public")),
            RuleSettings::new("admin", Action::Allow, Clients::Identity(admin)).on(prefix("/admin")),
        ],
        Action::Deny,
    )
}

pub(crate) fn address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<SocketAddr>().map(SocketAddr::ip)
}

/// An application that answers with the path and client id it saw, behind a gate.
pub(crate) async fn ask(gate: &Gate, request: Request<()>) -> (u16, HeaderMap) {
    let app = service_fn(|request: Request<()>| async move {
        let mut response = Response::new(());
        response.headers_mut().insert("x-path", request.uri().path().parse().unwrap());
        for (name, value) in request.headers() {
            response.headers_mut().append(name.clone(), value.clone());
        }
        Ok::<_, Infallible>(response)
    });
    let app = RespondLayer.layer(AuthzLayer::new(gate.clone(), address).layer(app));
    let response = app.oneshot(request).await.unwrap();
    (response.status().as_u16(), response.headers().clone())
}

pub(crate) fn from(name: &str, uri: &str) -> Request<()> {
    Request::get(uri).extension(peer(name)).body(()).unwrap()
}
