//! Floor 3: which endpoint an attempt went to that has no response, told by the balancer to the retries above it.
//!
//! An error has no body that could carry it, as a response has, and neither has an attempt that is under way. It is told
//! within one call or poll, on one thread: the balancer notes where an attempt failed and returns its error, or, of one
//! that may be hedged, where it was sent; the retries above take it before they do anything else.

use crate::policy::call::EndpointId;
use std::cell::Cell;

thread_local! {
    static FAILED: Cell<Option<EndpointId>> = const { Cell::new(None) };
}

/// An attempt is polled: what was noted before is of another.
#[inline]
pub(crate) fn forget() {
    // An error is a thread that ends, which polls nothing any more.
    let _ = FAILED.try_with(|failed| failed.set(None));
}

/// An attempt failed at this endpoint, and its error is about to be returned; or one that may be hedged is sent there.
pub(crate) fn note(endpoint: EndpointId) {
    let _ = FAILED.try_with(|failed| failed.set(Some(endpoint)));
}

/// Where the attempt failed that just returned an error, or went that was just called or polled; `None` if no endpoint
/// was picked.
pub(crate) fn take() -> Option<EndpointId> {
    FAILED.try_with(Cell::take).ok().flatten()
}
