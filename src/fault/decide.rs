//! Floor 2: decides which requests are held up or broken off on purpose.

use crate::error::Error;
use crate::profile::route::{Abort, FaultSettings};
use crate::profile::settings::Share;
use crate::stdx::rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The longest that a request is held up, whatever is said: an hour outlasts every caller.
pub const DELAY_MAX: Duration = Duration::from_secs(3600);

/// The one switch of all faults of a mesh, and the chance by which they are drawn. Clones are one switch.
#[derive(Debug, Clone)]
pub struct FaultSwitch(Arc<AtomicBool>, Rng);

impl FaultSwitch {
    /// A switch that is on or off.
    pub fn new(on: bool) -> Self {
        Self(Arc::new(AtomicBool::new(on)), Rng::thread())
    }

    /// Draws by this chance and not by the thread's own.
    #[must_use]
    pub fn with_rng(mut self, rng: Rng) -> Self {
        self.1 = rng;
        self
    }

    /// Turns all faults on or off, from the next request on.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    /// Whether they are on.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for FaultSwitch {
    /// On: who writes a fault wants it.
    fn default() -> Self {
        Self::new(true)
    }
}

/// The faults of a route, compiled.
#[derive(Debug, Clone)]
pub struct FaultPolicy {
    settings: FaultSettings,
    switch: FaultSwitch,
}

/// What is done to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Injected {
    /// It is held up first.
    pub delay: Option<Duration>,
    /// It is answered with this and not sent.
    pub abort: Option<Abort>,
}

impl FaultPolicy {
    /// Faults that `switch` turns off.
    pub fn new(settings: FaultSettings, switch: FaultSwitch) -> Self {
        Self { settings, switch }
    }

    /// What they were made from.
    pub fn settings(&self) -> &FaultSettings {
        &self.settings
    }

    /// The chance of its mesh.
    pub fn rng(&self) -> &Rng {
        &self.switch.1
    }

    /// What is done to this request: delay and abort are drawn apart, as in Envoy.
    pub fn decide(&self, rng: &Rng) -> Injected {
        if !self.switch.is_on() {
            return Injected::default();
        }
        let delay = self.settings.delay.filter(|(delay, share)| !delay.is_zero() && hits(*share, rng));
        let abort = self.settings.abort.filter(|(_, share)| hits(*share, rng));
        Injected { delay: delay.map(|(delay, _)| delay.min(DELAY_MAX)), abort: abort.map(|(abort, _)| abort) }
    }
}

/// The share is exact over a long run: one number below the denominator is drawn.
fn hits(share: Share, rng: &Rng) -> bool {
    rng.below(share.denominator) < share.numerator
}

/// The error that stands for an abort, in the words of HTTP and of gRPC, whichever was said.
pub fn error(abort: Abort) -> Error {
    match abort {
        Abort::Http(status) => Error::Fault { status, grpc: grpc_of(status) },
        Abort::Grpc(grpc) => Error::Fault { status: status_of(grpc), grpc },
    }
}

/// gRPC's own table ("HTTP to gRPC Status Code Mapping").
fn grpc_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// `google/rpc/code.proto`.
fn status_of(grpc: u8) -> u16 {
    match grpc {
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(numerator: u32, denominator: u32) -> Share {
        Share { numerator, denominator }
    }

    /// How many of 100,000 requests are held up, and how many are broken off.
    fn counts(delay: Share, abort: Share, switch: &FaultSwitch) -> (u32, u32) {
        let settings = FaultSettings {
            delay: Some((Duration::from_secs(1), delay)),
            abort: Some((Abort::Http(503), abort)),
        };
        let (policy, rng) = (FaultPolicy::new(settings, switch.clone()), Rng::seeded(7));
        (0..100_000).map(|_| policy.decide(&rng)).fold((0, 0), |(delays, aborts), injected| {
            (delays + u32::from(injected.delay.is_some()), aborts + u32::from(injected.abort.is_some()))
        })
    }

    #[test]
    fn each_fault_has_its_share_and_the_switch_ends_all() {
        let switch = FaultSwitch::default();
        let (delays, aborts) = counts(share(10, 100), share(1, 1000), &switch);
        assert!((9_700..10_300).contains(&delays) && (60..140).contains(&aborts), "{delays}, {aborts}");
        assert_eq!(counts(share(100, 100), share(0, 100), &switch), (100_000, 0));
        switch.set(false);
        assert_eq!(counts(share(100, 100), share(100, 100), &switch), (0, 0));
    }

    #[test]
    fn an_abort_has_a_status_and_a_code_whichever_was_said() {
        for (abort, status, grpc) in [
            (Abort::Http(503), 503, 14),
            (Abort::Http(404), 404, 12),
            (Abort::Http(418), 418, 2),
            (Abort::Grpc(8), 429, 8),
            (Abort::Grpc(14), 503, 14),
            (Abort::Grpc(200), 500, 200),
        ] {
            let error = error(abort);
            assert_eq!((error.to_status().as_u16(), error.to_grpc()), (status, grpc), "{abort:?}");
        }
    }
}
