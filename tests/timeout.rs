//! Timeouts on a paused clock.
#![expect(
    clippy::disallowed_methods,
    reason = "a test is no library: it spawns and reads its own paused clock"
)]

use bytes::Bytes;
use enmesh::error::{Error, Scope};
use enmesh::timeout::body::{Limits, TimedBody};
use enmesh::timeout::layer::TimeoutLayer;
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

const SEC: Duration = Duration::from_secs(1);

fn scope(error: &(dyn std::error::Error + 'static)) -> Scope {
    match error.downcast_ref::<Error>() {
        Some(Error::Timeout { scope, .. }) => *scope,
        other => panic!("no timeout: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_ends_on_time_and_its_inner_future_is_dropped() {
    struct Alive(std::sync::Arc<()>);
    let (alive, begun) = (std::sync::Arc::new(()), Instant::now());
    let held = Alive(alive.clone());
    let inner = tower::service_fn(move |_: Request<()>| {
        let held = held.0.clone();
        async move {
            tokio::time::sleep(9 * SEC).await;
            drop(held);
            Ok::<_, Error>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let service = TimeoutLayer::request().with_own(SEC).layer(inner);
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!((scope(&error), begun.elapsed()), (Scope::Request, SEC));
    assert_eq!(std::sync::Arc::strong_count(&alive), 1, "the inner future is gone");
}

fn frames(
    every: Duration,
    count: usize,
) -> StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, Error>>> {
    StreamBody::new(futures::stream::iter(0..count).then(move |_| async move {
        tokio::time::sleep(every).await;
        Ok(Frame::data(Bytes::from("x")))
    }))
}

#[tokio::test(start_paused = true)]
async fn a_body_is_limited_as_a_whole_and_in_its_silences() {
    let begun = Instant::now();
    let whole = Limits { deadline: Some((begun.into_std() + 5 * SEC, 5 * SEC)), idle: None };
    let error = Box::pin(TimedBody::new(frames(2 * SEC, 9), whole)).collect().await.unwrap_err();
    assert_eq!((scope(error.as_ref()), begun.elapsed()), (Scope::Request, 5 * SEC));
    let begun = Instant::now();
    let idle = Limits { deadline: None, idle: Some(3 * SEC) };
    assert!(Box::pin(TimedBody::new(frames(2 * SEC, 9), idle)).collect().await.is_ok());
    assert_eq!(begun.elapsed(), 18 * SEC);
    let begun = Instant::now();
    let error = Box::pin(TimedBody::new(frames(4 * SEC, 9), idle)).collect().await.unwrap_err();
    assert_eq!((scope(error.as_ref()), begun.elapsed()), (Scope::Idle, 3 * SEC));
}
