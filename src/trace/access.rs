//! Floor 4: the access log: a line for each request that arrived, when its response has ended.
//!
//! Lines go through a bounded channel to whoever writes them. When they are not written fast enough they are dropped
//! and counted; no request waits for a disk.

use crate::metrics::names::Direction;
use crate::policy::observe::{Note, Observer, Subject};
use crate::stdx::clock::Instant;
use crate::trace::log::{self, LogFormat};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use tokio::sync::mpsc;

/// The lines that wait to be written: a second of a busy server, 2 MB of usual lines.
pub const LINES_MAX: usize = 8192;

/// Tells requests to a log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    format: LogFormat,
    sender: mpsc::Sender<String>,
    dropped: Arc<AtomicU64>,
}

/// Where the lines of a log come out.
pub type Lines = mpsc::Receiver<String>;

impl AccessLog {
    /// A log, and where its lines come out.
    pub fn new(format: LogFormat) -> (Self, Lines) {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        (Self { format, sender, dropped: Arc::default() }, lines)
    }

    /// The lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// What writes the line of a call, if it arrived here.
    pub fn begin(&self, call: &Subject) -> Option<Box<dyn Observer>> {
        let arrived = call.direction == Direction::Inbound;
        arrived.then(|| Box::new(Entry { log: self.clone(), status: AtomicU16::new(0) }) as Box<dyn Observer>)
    }
}

/// One request's line.
#[derive(Debug)]
struct Entry {
    log: AccessLog,
    /// 0 while there is none.
    status: AtomicU16,
}

impl Observer for Entry {
    fn note(&self, call: &Arc<Subject>, at: Instant, note: Note<'_>) {
        match note {
            Note::Head(status, _) => self.status.store(status.as_u16(), Relaxed),
            Note::End(ending) => {
                let seen = Some(self.status.load(Relaxed)).filter(|status| *status != 0);
                let took = at.saturating_duration_since(call.started);
                let line = log::line(self.log.format, call, ending.status(seen), took, ending);
                if self.log.sender.try_send(line).is_err() {
                    self.log.dropped.fetch_add(1, Relaxed);
                }
            }
            Note::Sent(..)
            | Note::Answered(..)
            | Note::Ended(..)
            | Note::Retried(..)
            | Note::GivenUp(..)
            | Note::Event(..)
            | Note::Audited(_) => {}
        }
    }
}
