//! Floor 6: live requests over HTTP: `GET /api/v1/tap`, as JSON lines or server-sent events.

use crate::admin::asked::Asked;
use crate::admin::guard::Access;
use crate::admin::server::{Admin, AdminBody, response, text};
use crate::tap::filter::Filter;
use crate::tap::hub::{Item, OBSERVERS_MAX, Tap, TapHub};
use bytes::Bytes;
use futures::stream;
use http::{Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

/// How often a stream of server-sent events says that it is there: before proxies give up on it, most of which wait 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The most bytes of one chunk: what is ready is sent together, so that a busy stream does not cost a write for each event.
const CHUNK_BYTES_MAX: usize = 32 << 10;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    ServerSent,
}

impl Form {
    fn put(self, item: &Item, into: &mut Vec<u8>) {
        let (before, after) = match self {
            Self::Lines => ("", "\n"),
            Self::ServerSent => ("data: ", "\n\n"),
        };
        into.extend(before.as_bytes());
        into.extend(item.to_json().as_bytes());
        into.extend(after.as_bytes());
    }
}

/// Adds the page to an admin server.
pub(crate) fn page(admin: Admin, hub: Arc<TapHub>) -> Admin {
    admin.route(Method::GET, "/api/v1/tap", Access::Private, move |asked| {
        Box::pin(ready(answer(&hub, &asked)))
    })
}

/// Streams live requests to whoever asks, until they go away.
fn answer(hub: &Arc<TapHub>, asked: &Asked) -> Response<AdminBody> {
    let filter = match Filter::parse(asked.pairs()) {
        Ok(filter) => filter,
        Err(bad) => return text(StatusCode::BAD_REQUEST, &format!("{bad}\n")),
    };
    let format = asked.value("format");
    let form = match format.as_deref() {
        Some("sse") => Form::ServerSent,
        None if asked.wants_events => Form::ServerSent,
        None | Some("json") => Form::Lines,
        Some(_) => return text(StatusCode::BAD_REQUEST, "format is json or sse\n"),
    };
    let content_type = match form {
        Form::Lines => "application/x-ndjson",
        Form::ServerSent => "text/event-stream",
    };
    if asked.method == Method::HEAD {
        return response(StatusCode::OK, content_type, Bytes::new());
    }
    let Some(tap) = hub.observe(filter) else {
        let why = format!("{OBSERVERS_MAX} observe already; come back when one has gone\n");
        return text(StatusCode::TOO_MANY_REQUESTS, &why);
    };
    let events = stream::unfold((tap, true), move |(mut tap, is_first)| async move {
        let chunk = match (form, is_first) {
            // Tells the browser that it is connected, before anything happens.
            (Form::ServerSent, true) => Some(b": observing\n\n".to_vec()),
            _ => chunk(&mut tap, form).await,
        };
        let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(chunk?)));
        Some((frame, (tap, false)))
    });
    let mut answer = response(StatusCode::OK, content_type, Bytes::new());
    *answer.body_mut() = StreamBody::new(events).boxed_unsync();
    answer
}

/// What there is to send next.
async fn chunk(tap: &mut Tap, form: Form) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match tokio::time::timeout(KEEP_ALIVE, tap.next()).await {
        Ok(Some(item)) => form.put(&item, &mut bytes),
        Ok(None) => return None,
        Err(_) if form == Form::ServerSent => return Some(b": still observing\n\n".to_vec()),
        // Lines have no comments; a reader that went away is seen by its connection.
        Err(_) => form.put(&tap.next().await?, &mut bytes),
    }
    while bytes.len() < CHUNK_BYTES_MAX {
        let Some(item) = tap.ready() else { break };
        form.put(&item, &mut bytes);
    }
    Some(bytes)
}
