//! Floor 5: runs what hyper starts for each stream of one HTTP/2 connection.
//!
//! hyper starts a future for each request, of which the largest variant is the whole connection: more than a thousand
//! bytes. As tasks of their own these cost a large allocation and several copies each. Here they run within the
//! task that drives their connection, in places that are used again.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use tokio::runtime::Handle;

/// The most unused places that a connection keeps, of about 1.5 KiB each.
const FREE_MAX: usize = 64;

/// hyper's executor of one connection.
#[derive(Clone)]
pub(crate) struct Streams(Arc<Shared>);

struct Shared {
    runtime: Handle,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// Whether somebody polls `started`; otherwise there are tasks.
    driven: bool,
    started: Vec<Box<dyn Place>>,
    free: Vec<Box<dyn Place>>,
}

/// Room for one future of a kind.
trait Place: Any + Send {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

impl<F: Future<Output = ()> + Send + Unpin + 'static> Place for Option<F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(future) = self {
            // A caller's body may panic, which must end its own stream only.
            let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(cx)));
            ready!(polled.unwrap_or(Poll::Ready(())));
            *self = None;
        }
        Poll::Ready(())
    }
}

impl Streams {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self(Arc::new(Shared { runtime, places: Mutex::default() }))
    }

    /// From now on, what is started runs when the result is polled.
    pub(crate) fn drive(&self) -> Running {
        self.0.lock().driven = true;
        Running { shared: self.0.clone(), running: FuturesUnordered::new(), done: Vec::new() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + Unpin + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, future: F) {
        let mut places = self.0.lock();
        if !places.driven {
            drop(places);
            self.0.runtime.spawn(future);
            return;
        }
        if let Some(mut free) = places.free.pop() {
            let any: &mut dyn Any = free.as_mut();
            if let Some(place) = any.downcast_mut::<Option<F>>() {
                *place = Some(future);
                return places.started.push(free);
            }
        }
        places.started.push(Box::new(Some(future)));
    }
}

/// The streams of a connection that are under way.
pub(crate) struct Running {
    shared: Arc<Shared>,
    running: FuturesUnordered<Stream>,
    done: Vec<Box<dyn Place>>,
}

impl Running {
    /// Runs what can run. Ready when nothing is under way.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.take_in();
            let left = loop {
                match self.running.poll_next_unpin(cx) {
                    Poll::Ready(Some(place)) => self.done.extend(place),
                    Poll::Ready(None) => break Poll::Ready(()),
                    Poll::Pending => break Poll::Pending,
                }
            };
            // What ended may have started something, as an upgrade does.
            if self.done.is_empty() {
                return left;
            }
        }
    }

    fn take_in(&mut self) {
        let mut places = self.shared.lock();
        self.running.extend(places.started.drain(..).map(|place| Stream(Some(place))));
        let room = FREE_MAX.saturating_sub(places.free.len());
        let dropped = self.done.split_off(room.min(self.done.len()));
        places.free.append(&mut self.done);
        drop(places);
        drop(dropped);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut places = self.shared.lock();
        places.driven = false;
        let left = (std::mem::take(&mut places.started), std::mem::take(&mut places.free));
        drop(places);
        drop(left);
    }
}

/// A future in its place, which it gives back in the end.
struct Stream(Option<Box<dyn Place>>);

impl Future for Stream {
    type Output = Option<Box<dyn Place>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(place) = &mut self.0 {
            ready!(place.poll(cx));
        }
        Poll::Ready(self.0.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::oneshot;
    use futures::future::BoxFuture;
    use hyper::rt::Executor;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    type Work = BoxFuture<'static, ()>;

    fn poll(running: &mut Running) -> Poll<()> {
        running.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn what_is_started_runs_when_the_connection_does_and_its_place_is_used_again() {
        let streams = Streams::new(Handle::current());
        let mut running = streams.drive();
        for _ in 0..3 {
            let (end, ended) = oneshot::channel::<()>();
            let work: Work = Box::pin(async move { assert!(ended.await.is_err()) });
            streams.execute(work);
            assert_eq!(poll(&mut running), Poll::Pending);
            drop(end);
            assert_eq!(poll(&mut running), Poll::Ready(()));
            assert_eq!(streams.0.lock().free.len(), 1);
        }
    }

    #[tokio::test]
    async fn what_a_stream_starts_at_its_end_runs_at_once() {
        let streams = Streams::new(Handle::current());
        let mut running = streams.drive();
        let ran = Arc::new(AtomicU32::new(0));
        let (again, count) = (streams.clone(), ran.clone());
        let first: Work = Box::pin(async move {
            let second: Work = Box::pin(async move { count.store(1, Ordering::Relaxed) });
            again.execute(second);
        });
        streams.execute(first);
        assert_eq!(poll(&mut running), Poll::Ready(()));
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_panic_ends_one_stream_only() {
        let streams = Streams::new(Handle::current());
        let mut running = streams.drive();
        let broken: Work = Box::pin(async { panic!("a body's own fault") });
        streams.execute(broken);
        streams.execute(Box::pin(std::future::pending()) as Work);
        assert_eq!(poll(&mut running), Poll::Pending);
        assert_eq!(running.running.len(), 1);
    }

    #[tokio::test]
    async fn without_a_driver_there_are_tasks() {
        let streams = Streams::new(Handle::current());
        for _ in ["before it", "after it"] {
            let (end, ended) = oneshot::channel::<()>();
            streams.execute(Box::pin(async move { drop(end) }) as Work);
            assert!(ended.await.is_err());
            let running = streams.drive();
            streams.execute(Box::pin(std::future::pending()) as Work);
            drop(running);
        }
        assert!(streams.0.lock().started.is_empty());
    }
}
