//! Floor 5: several sources in order of precedence, as one.

use crate::control::source::Snapshot;
use crate::control::source::Source;
use crate::control::source::SourceFault;
use crate::control::source::Updates;
use crate::profile::name::ServiceName;
use futures::Stream;
use futures::StreamExt;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The most snapshots taken of one source at a time: 64. One that always has another must not stop the rest.
const SNAPSHOTS_MAX: usize = 64;

/// Sources in order: the first that knows a service is believed, whole, and those after it are not asked.
///
/// What is written in code comes before files, files before DNS, so that two sources that contradict each other
/// always end in the same way. A source further down is asked from the moment that all before it say that they do
/// not know the service, and dropped when one of them does.
pub struct Chain<T> {
    sources: Vec<Arc<dyn Source<T>>>,
}

impl<T> fmt::Debug for Chain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("sources", &self.sources.len()).finish()
    }
}

impl<T> Default for Chain<T> {
    /// Knows nothing.
    fn default() -> Self {
        Self { sources: Vec::new() }
    }
}

impl<T> Clone for Chain<T> {
    fn clone(&self) -> Self {
        Self { sources: self.sources.clone() }
    }
}

impl<T> Chain<T> {
    /// Adds a source that is asked after all others.
    #[must_use]
    pub fn then(mut self, source: impl Source<T>) -> Self {
        self.sources.push(Arc::new(source));
        self
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Source<T> for Chain<T> {
    fn watch(&self, service: &ServiceName) -> Updates<T> {
        let links =
            self.sources.iter().map(|source| Link { source: Arc::clone(source), state: State::Unasked });
        Links { service: service.clone(), links: links.collect(), told: None }.boxed()
    }
}

struct Link<T> {
    source: Arc<dyn Source<T>>,
    state: State<T>,
}

enum State<T> {
    Unasked,
    Asked { updates: Updates<T>, last: Option<Snapshot<T>>, ended: bool },
}

impl<T: 'static> Link<T> {
    /// Takes all that is there, and answers with the newest.
    fn poll(&mut self, cx: &mut Context<'_>, service: &ServiceName) -> &mut State<T> {
        if let State::Unasked = self.state {
            self.state = State::Asked { updates: self.source.watch(service), last: None, ended: false };
        }
        if let State::Asked { updates, last, ended } = &mut self.state {
            for _ in 0..SNAPSHOTS_MAX {
                match updates.poll_next_unpin(cx) {
                    Poll::Ready(Some(snapshot)) => *last = Some(snapshot),
                    Poll::Ready(None) => *ended = true,
                    Poll::Pending => return &mut self.state,
                }
                if *ended {
                    return &mut self.state;
                }
            }
            cx.waker().wake_by_ref();
        }
        &mut self.state
    }
}

struct Links<T> {
    service: ServiceName,
    links: Vec<Link<T>>,
    told: Option<Snapshot<T>>,
}

// Nothing in it is pinned in place.
impl<T> Unpin for Links<T> {}

impl<T: Clone + PartialEq + Send + 'static> Stream for Links<T> {
    type Item = Snapshot<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Snapshot<T>>> {
        let this = self.get_mut();
        let mut faults: Vec<SourceFault> = Vec::new();
        let mut value = None;
        let mut all_ended = true;
        for index in 0..this.links.len() {
            let State::Asked { last, ended, .. } = this.links[index].poll(cx, &this.service) else {
                continue;
            };
            all_ended &= *ended;
            match last {
                // It has not spoken yet: those after it are not asked, lest they be believed too early.
                None if !*ended => return Poll::Pending,
                None => {}
                Some(snapshot) => {
                    faults.extend(snapshot.faults.iter().cloned());
                    value.clone_from(&snapshot.value);
                }
            }
            if value.is_some() {
                this.links[index + 1..].iter_mut().for_each(|link| link.state = State::Unasked);
                break;
            }
        }
        let snapshot = Snapshot { value, faults: faults.into() };
        if this.told.as_ref() != Some(&snapshot) {
            this.told = Some(snapshot.clone());
            return Poll::Ready(Some(snapshot));
        }
        if all_ended { Poll::Ready(None) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixed::Fixed;
    use crate::profile::invalid::Fault;
    use futures::FutureExt;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::watch;

    struct Told {
        told: watch::Receiver<Option<Snapshot<u32>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Source<u32> for Told {
        fn watch(&self, _: &ServiceName) -> Updates<u32> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let told = self.told.clone();
            futures::stream::unfold((told, true), |(mut told, first)| async move {
                if !first {
                    told.changed().await.ok()?;
                }
                let now = told.wait_for(Option::is_some).await.ok()?.clone()?;
                told.mark_unchanged();
                Some((now, (told, false)))
            })
            .boxed()
        }
    }

    fn told() -> (watch::Sender<Option<Snapshot<u32>>>, Told, Arc<AtomicUsize>) {
        let (send, told) = watch::channel(None);
        let asked = Arc::new(AtomicUsize::new(0));
        (send, Told { told, asked: Arc::clone(&asked) }, asked)
    }

    fn next(updates: &mut Updates<u32>) -> Option<Option<Option<u32>>> {
        updates.next().now_or_never().map(|item| item.map(|snapshot| snapshot.value))
    }

    #[test]
    fn the_first_that_knows_is_believed_and_the_rest_is_not_asked() {
        let (first, source, _) = told();
        let (second, last, asked) = told();
        let mut updates = Chain::default().then(source).then(last).watch(&"web".parse().unwrap());
        second.send_replace(Some(Snapshot::good(Some(2))));
        assert_eq!(next(&mut updates), None, "the first has not spoken");
        first.send_replace(Some(Snapshot::good(Some(1))));
        assert_eq!(next(&mut updates), Some(Some(Some(1))));
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        first.send_replace(Some(Snapshot::good(None)));
        assert_eq!(next(&mut updates), Some(Some(Some(2))));
        second.send_replace(Some(Snapshot::good(Some(3))));
        assert_eq!(next(&mut updates), Some(Some(Some(3))));
        first.send_replace(Some(Snapshot::good(Some(1))));
        assert_eq!(next(&mut updates), Some(Some(Some(1))));
        first.send_replace(Some(Snapshot::good(Some(1))));
        assert_eq!(next(&mut updates), None, "nothing changed");
    }

    #[test]
    fn faults_of_all_that_were_asked_are_told() {
        let fault = |origin: &str| SourceFault::new(origin, Fault::rejected("", "is bad", "mend it"));
        let (first, source, _) = told();
        first.send_replace(Some(Snapshot { value: None, faults: Arc::new([fault("a")]) }));
        let (second, last, _) = told();
        second.send_replace(Some(Snapshot { value: Some(2), faults: Arc::new([fault("b")]) }));
        let mut updates = Chain::default().then(source).then(last).watch(&"web".parse().unwrap());
        let snapshot = updates.next().now_or_never().flatten().unwrap();
        assert_eq!(snapshot.faults.to_vec(), [fault("a"), fault("b")]);
        assert_eq!(snapshot.faults[0].to_string(), "a: is bad; mend it");
    }

    #[test]
    fn it_ends_when_nothing_can_change_any_more() {
        let fixed = |value| Fixed::default().with("web".parse().unwrap(), value);
        let all = |chain: Chain<u32>, service: &str| -> Vec<_> {
            let updates = chain.watch(&service.parse().unwrap());
            let seen = Mutex::new(Vec::new());
            updates
                .for_each(|s| {
                    seen.lock().unwrap().push(s.value);
                    futures::future::ready(())
                })
                .now_or_never()
                .unwrap();
            seen.into_inner().unwrap()
        };
        assert_eq!(all(Chain::default().then(fixed(1)).then(fixed(2)), "web"), [Some(1)]);
        assert_eq!(all(Chain::default().then(fixed(1)), "emoji"), [None]);
        assert_eq!(all(Chain::default(), "emoji"), [None]);
    }
}
