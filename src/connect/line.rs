//! Floor 5: who waits for a connection, and what is ordered for them.

use crate::connect::handshake::Protocol;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) protocol: Protocol,
    /// Whether HTTP/1.1 must not become HTTP/2 when the peer prefers it.
    pub(crate) strict: bool,
}

/// An order to open a connection, after a pause.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) want: Want,
    pub(crate) after: Duration,
}

/// Those who wait for one protocol, first come first served, and the connections there are for them.
#[derive(Default)]
pub(crate) struct Line {
    pub(crate) asleep: BTreeMap<u64, Sleeper>,
    pub(crate) opening: u32,
    /// Sockets that are open, upgraded ones included.
    pub(crate) open: u32,
}

pub(crate) struct Sleeper {
    pub(crate) waker: Waker,
    pub(crate) strict: bool,
}

/// The line that a socket is counted in as open, if it is; changed under the pool's lock.
#[derive(Debug)]
pub(crate) struct Place(AtomicU8);

const NEW: u8 = 254;
const CLOSED: u8 = 255;

impl Default for Place {
    fn default() -> Self {
        Self(AtomicU8::new(NEW))
    }
}

impl Place {
    /// The socket is open: whether it is to be counted, since it may be closed already.
    pub(crate) fn open(&self, line: Protocol) -> bool {
        self.0.compare_exchange(NEW, line as u8, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The socket is closed: where it was counted.
    pub(crate) fn close(&self) -> usize {
        usize::from(self.0.swap(CLOSED, Ordering::Relaxed))
    }
}
