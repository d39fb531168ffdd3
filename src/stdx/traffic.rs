//! Floor 0: what happened on connections: opened, bytes both ways, and how they ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The ends that are told apart, by their POSIX names; the first is an end without an error, the last any other error.
pub const ENDS: [&str; 6] = ["", "ECONNRESET", "EPIPE", "ETIMEDOUT", "ECONNABORTED", "EIO"];

/// Counters of many connections.
#[derive(Debug, Default)]
pub struct Traffic {
    opened: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    ended: [AtomicU64; ENDS.len()],
}

/// A reading of [`Traffic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Volume {
    /// Connections opened.
    pub opened: u64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Connections ended, in order of [`ENDS`].
    pub ended: [u64; ENDS.len()],
}

impl Traffic {
    /// The counters now.
    pub fn read(&self) -> Volume {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Ends first, so that what is open is never negative.
        let ended = self.ended.each_ref().map(load);
        Volume { opened: load(&self.opened), read: load(&self.read), written: load(&self.written), ended }
    }
}

impl Volume {
    /// Adds what happened on others.
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.read += other.read;
        self.written += other.written;
        self.ended.iter_mut().zip(other.ended).for_each(|(own, more)| *own += more);
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.opened.saturating_sub(self.ended.iter().sum())
    }
}

/// One connection, counted from when it is made until it is dropped.
#[derive(Debug)]
pub struct Flow {
    traffic: Arc<Traffic>,
    end: usize,
}

impl Flow {
    /// A connection was opened.
    pub fn begin(traffic: &Arc<Traffic>) -> Self {
        traffic.opened.fetch_add(1, Ordering::Relaxed);
        Self { traffic: Arc::clone(traffic), end: 0 }
    }

    /// So many bytes were read from it, or reading failed.
    #[inline]
    pub fn read(&mut self, read: Result<usize, &io::Error>) {
        match read {
            Ok(bytes) => drop(self.traffic.read.fetch_add(bytes as u64, Ordering::Relaxed)),
            Err(error) => self.failed(error),
        }
    }

    /// So many bytes were written to it, or writing failed.
    #[inline]
    pub fn wrote(&mut self, written: Result<usize, &io::Error>) {
        match written {
            Ok(bytes) => drop(self.traffic.written.fetch_add(bytes as u64, Ordering::Relaxed)),
            Err(error) => self.failed(error),
        }
    }

    #[cold]
    fn failed(&mut self, error: &io::Error) {
        self.end = match error.kind() {
            io::ErrorKind::ConnectionReset => 1,
            io::ErrorKind::BrokenPipe => 2,
            io::ErrorKind::TimedOut => 3,
            io::ErrorKind::ConnectionAborted => 4,
            // The peer ended TLS without saying so: as common as an end is.
            io::ErrorKind::UnexpectedEof => 0,
            _ => 5,
        };
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if let Some(ended) = self.traffic.ended.get(self.end) {
            ended.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_is_open_or_has_ended_once() {
        let traffic = Arc::new(Traffic::default());
        let mut well = Flow::begin(&traffic);
        well.read(Ok(5));
        well.wrote(Ok(7));
        let mut broken = Flow::begin(&traffic);
        broken.read(Err(&io::ErrorKind::ConnectionReset.into()));
        let _open = Flow::begin(&traffic);
        drop((well, broken));
        let volume = traffic.read();
        assert_eq!((volume.opened, volume.read, volume.written, volume.open()), (3, 5, 7, 1));
        assert_eq!(volume.ended, [1, 1, 0, 0, 0, 0]);
    }
}
