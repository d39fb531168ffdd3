//! Floor 2: the place in a trace of the request that this thread serves, for the requests that its handler sends.
//!
//! It stands in a thread-local cell while the handler's future is polled, as deadlines do
//! ([`timeout::inherited`](crate::timeout::inherited)). A task that the handler spawns does not find it: pass
//! [`current`] on by hand, and poll the task's future in [`within`].

use crate::trace::context::TraceContext;
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    static CURRENT: RefCell<Option<Arc<TraceContext>>> = const { RefCell::new(None) };
}

/// The place in a trace of the request being served on this thread; none outside of one.
pub fn current() -> Option<Arc<TraceContext>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Does `work` with `context` in place.
pub fn within<T>(context: Option<Arc<TraceContext>>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Arc<TraceContext>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _restore = Restore(CURRENT.replace(context));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::rng::Rng;
    use crate::trace::context::Formats;

    #[test]
    fn it_is_in_place_only_while_work_is_done_also_after_a_panic() {
        let context = || Some(Arc::new(TraceContext::root(&Rng::thread(), Formats::default())));
        let (outer, inner) = (context(), context());
        within(outer.clone(), || {
            let caught =
                std::panic::catch_unwind(|| within(inner.clone(), || panic!("{:?}", current() == inner)));
            assert_eq!(caught.unwrap_err().downcast_ref::<String>().map(String::as_str), Some("true"));
            within(None, || assert_eq!(current(), None));
            assert_eq!(current(), outer);
        });
        assert_eq!(current(), None);
    }
}
