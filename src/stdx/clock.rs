//! Floor 0: the one door for time.
//!
//! Instants come from tokio's clock, so a test with paused time moves everything; deciding code takes them as
//! arguments and reads no clock.

pub use std::time::{Duration, Instant, SystemTime};

/// The present instant of the runtime's clock; monotonic.
#[inline]
#[must_use]
pub fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    tokio::time::Instant::now().into_std()
}

/// The wall clock, which may jump.
#[must_use]
pub fn wall() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    SystemTime::now()
}
