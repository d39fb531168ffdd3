//! Floor 6: calls of the few routes that copy their requests or keep sessions.
//!
//! A copy is made once per call, not per attempt, and of what the route's own changes made of the request. It has a call
//! of its own, which is counted under `mirror of <route>`, runs in a task of the mesh, and is forgotten: its answer is
//! read and thrown away. When there is no room for it, it is not made.

use crate::balance::session::{Token, fingerprint};
use crate::error::Error;
use crate::mesh::body::{BodyCopy, ReqBody};
use crate::mesh::client::ClientStack;
use crate::mesh::directory::Target;
use crate::mesh::response::{ResBody, ResponseFuture};
use crate::mesh::services::Services;
use crate::policy::call::{Call, CallScope, CallState, MeshRequest, copy_head};
use crate::policy::route::RouteEntry;
use crate::split::mirror::{ANSWER_BYTES_MAX, BODY_BYTES_MAX, COPY_MAX, CopyPass};
use crate::stdx::clock;
use http::{Request, Response};
use http_body_util::BodyExt;
use std::sync::Arc;
use tower_service::Service;

/// Sends a call whose route has extras.
#[cold]
pub(crate) fn send(
    stack: &ClientStack,
    services: &Services,
    mut call: Call<ReqBody, Target>,
    grpc: bool,
) -> ResponseFuture {
    let entry = Arc::clone(&call.scope.entry);
    let answers = |call: &Call<ReqBody, Target>| {
        let (cors, http) = (entry.policy.cors()?, call.http());
        cors.preflight(http.method(), http.headers())
    };
    if !entry.mirrors().is_empty() && answers(&call).is_none() {
        copy(stack, services, &entry, &mut call);
    }
    let Some(session) = entry.policy.session() else {
        return ResponseFuture::sent(stack.clone().call(call), grpc);
    };
    let now = clock::wall_secs();
    let token = Token::of(session, call.http(), now);
    call.scope.state.hash = token.map(|token| token.endpoint).or(call.scope.state.hash);
    let sent = ResponseFuture::sent(stack.clone().call(call), false);
    let told = async move {
        let mut response = sent.await?;
        tell(&entry, token, now, &mut response);
        Ok(response)
    };
    ResponseFuture::waits(Box::pin(told), grpc)
}

/// Tells the caller of its session, if there is news of it.
fn tell(entry: &RouteEntry<Target>, before: Option<Token>, now: u64, response: &mut Response<ResBody>) {
    let endpoint = response.body().call_info().endpoint;
    let (Some(session), Some(endpoint)) = (entry.policy.session(), endpoint) else { return };
    let next = Token::next(before, session, fingerprint(&endpoint.addr), now);
    if let Some((name, value)) = next.and_then(|token| token.header(session, now)) {
        response.headers_mut().append(name, value);
    }
}

/// Makes the copies that are due.
fn copy(
    stack: &ClientStack,
    services: &Services,
    entry: &RouteEntry<Target>,
    call: &mut Call<ReqBody, Target>,
) {
    for mirror in entry.mirrors().iter().filter(|mirror| mirror.is_due()) {
        let Some(pass) = mirror.budget.take() else { continue };
        let (body, copied) = std::mem::take(call.http.body_mut()).copied(BODY_BYTES_MAX);
        *call.http.body_mut() = body;
        let Some(copied) = copied else { continue };
        let mut head = copy_head(&call.http);
        entry.policy.filters.apply(&mut head);
        let to = Copy { stack: stack.clone(), entry: Arc::clone(&mirror.entry), pass };
        services.run_aside(Box::pin(to.send(head, copied)));
    }
}

struct Copy {
    stack: ClientStack,
    entry: Arc<RouteEntry<Target>>,
    pass: CopyPass,
}

impl Copy {
    async fn send(mut self, head: Request<()>, body: BodyCopy) {
        // A body that takes longer than a copy may is not waited for.
        let Ok(Some(body)) = tokio::time::timeout(COPY_MAX, body.whole()).await else { return };
        let mut state = CallState::new(clock::now());
        state.deadline = self.entry.policy.timeouts.request.map(|time| state.started + time);
        state.priority = Some(0);
        let call =
            Call { http: head.map(|()| ReqBody::from(body)), scope: CallScope::new(self.entry, state) };
        self.pass.sent();
        let answer: Result<_, Error> = ResponseFuture::sent(self.stack.call(call), false).await;
        let Ok(response) = answer else { return };
        let mut body = response.into_body();
        let mut left = ANSWER_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            let Some(less) = left.checked_sub(length) else { return };
            left = less;
        }
    }
}
