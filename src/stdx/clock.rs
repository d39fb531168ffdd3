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

/// The wall clock in whole seconds since the Unix epoch; 0 before it.
#[must_use]
pub fn wall_secs() -> u64 {
    wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
