//! Floor 2: what a request being served hands down to the requests that its handler sends.
//!
//! It stands in a thread-local cell while the handler's future is polled, so that a call made within it finds the
//! deadline without being told. A task that the handler spawns does not: pass [`current`] on by hand.

use std::cell::Cell;
use std::time::Instant;

/// What is handed down, and what comes back up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inherited {
    /// When the request being served must have ended.
    pub deadline: Option<Instant>,
    /// How critical it said to be; what it sends is as critical.
    pub priority: Option<u8>,
    /// Whether it is itself another hop's repeated attempt, so that what it sends is not repeated again.
    pub repeated: bool,
    /// Whether something it sent failed and was repeated in vain, so that its caller need not repeat it.
    pub in_vain: bool,
}

thread_local! {
    static CURRENT: Cell<Inherited> = const {
        Cell::new(Inherited { deadline: None, priority: None, repeated: false, in_vain: false })
    };
}

/// What the request being served on this thread hands down; nothing outside of one.
pub fn current() -> Inherited {
    CURRENT.get()
}

/// Notes that a failure was repeated in vain while the present request was served.
pub fn note_in_vain() {
    CURRENT.set(Inherited { in_vain: true, ..CURRENT.get() });
}

/// Does `work` with `inherited` in place, and puts back into it what `work` noted.
pub fn within<T>(inherited: &mut Inherited, work: impl FnOnce() -> T) -> T {
    struct Restore<'a>(&'a mut Inherited, Inherited);
    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            *self.0 = CURRENT.replace(self.1);
        }
    }
    let before = CURRENT.replace(*inherited);
    let _restore = Restore(inherited, before);
    work()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    #[test]
    fn it_is_in_place_only_while_work_is_done() {
        let mut outer = Inherited { deadline: Some(clock::now()), ..Inherited::default() };
        let mut inner = Inherited { repeated: true, ..Inherited::default() };
        within(&mut outer, || {
            assert!(current().deadline.is_some());
            within(&mut inner, || {
                note_in_vain();
                assert!(current().repeated && current().deadline.is_none());
            });
            assert!(!current().in_vain);
        });
        assert_eq!((inner.in_vain, outer.in_vain, current()), (true, false, Inherited::default()));
    }

    #[test]
    fn a_panic_leaves_nothing_in_place() {
        let panics =
            || within(&mut Inherited { repeated: true, ..Inherited::default() }, || panic!("on purpose"));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(current(), Inherited::default());
    }
}
