//! Floor 5: the stream under a server's HTTP: begins with the bytes that detection read, spoils ambiguous heads,
//! and notes when a head is under way.

use crate::serve::framing::Framing;
use crate::serve::framing::Scan;
use crate::stdx::clock;
use crate::stdx::traffic::Flow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A write of this length may be a ping or a settings frame, and is no sign that a response moves on.
const CONTROL_BYTES_MAX: usize = 64;

/// No header name begins so: hyper answers 400 and closes.
const SPOIL: &[u8] = b"\0\r\n\r\n";

/// Whether the first bytes are HTTP/2's, and these bytes; `None` if the peer closed without a byte.
///
/// # Errors
///
/// What reading gives.
pub(crate) async fn detect<Io: AsyncRead + Unpin>(io: &mut Io) -> io::Result<Option<(bool, Vec<u8>)>> {
    let mut bytes = Vec::with_capacity(PREFACE.len());
    loop {
        if (&mut *io).take((PREFACE.len() - bytes.len()) as u64).read_buf(&mut bytes).await? == 0 {
            return Ok(if bytes.is_empty() { None } else { Some((false, bytes)) });
        }
        if !PREFACE.starts_with(&bytes) {
            return Ok(Some((false, bytes)));
        }
        if bytes.len() == PREFACE.len() {
            return Ok(Some((true, bytes)));
        }
    }
}

/// What is under way on a connection, for its timers.
#[derive(Debug)]
pub(crate) struct Activity {
    born: Instant,
    /// When the head under way began, in milliseconds after `born` and 1; 0 for none.
    head_since: AtomicU64,
    /// When the last request ended, likewise.
    idle_since: AtomicU64,
    in_flight: AtomicU32,
    /// How many responses wait for the peer (lower half), and how many pieces it has taken (upper half, wrapping).
    flow: AtomicU64,
    /// Counts writes of more than a control frame, wrapping.
    written: AtomicU32,
    /// Whether the socket takes no more at present.
    blocked: AtomicBool,
}

impl Activity {
    pub(crate) fn new(born: Instant) -> Self {
        Self {
            born,
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(1),
            in_flight: AtomicU32::new(0),
            flow: AtomicU64::new(0),
            written: AtomicU32::new(0),
            blocked: AtomicBool::new(false),
        }
    }

    fn stamp(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn instant(&self, stamp: u64) -> Option<Instant> {
        stamp.checked_sub(1).map(|millis| self.born + Duration::from_millis(millis))
    }

    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.idle_since.store(self.stamp(clock::now()), Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// A response has a piece that waits for the peer.
    pub(crate) fn waits(&self) {
        self.flow.fetch_add(1, Ordering::Relaxed);
    }

    /// The peer has taken it, or nobody wants it any more.
    pub(crate) fn taken(&self) {
        self.flow.fetch_add((1 << 32) - 1, Ordering::Relaxed);
    }

    /// How many responses wait for the peer, and how many pieces it has taken.
    pub(crate) fn flow(&self) -> (u32, u32) {
        let flow = self.flow.load(Ordering::Relaxed);
        (flow as u32, (flow >> 32) as u32)
    }

    fn note_write(&self, polled: &Poll<io::Result<usize>>) {
        let blocked = polled.is_pending();
        if self.blocked.load(Ordering::Relaxed) != blocked {
            self.blocked.store(blocked, Ordering::Relaxed);
        }
        if matches!(polled, Poll::Ready(Ok(bytes)) if *bytes > CONTROL_BYTES_MAX) {
            // Only the connection's own task writes.
            let written = self.written.load(Ordering::Relaxed).wrapping_add(1);
            self.written.store(written, Ordering::Relaxed);
        }
    }

    /// How many writes there were, and whether the socket takes no more at present.
    pub(crate) fn writes(&self) -> (u32, bool) {
        (self.written.load(Ordering::Relaxed), self.blocked.load(Ordering::Relaxed))
    }

    /// Since when a head is under way.
    pub(crate) fn head_since(&self) -> Option<Instant> {
        self.instant(self.head_since.load(Ordering::Relaxed))
    }

    /// Since when there is no request.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return None;
        }
        self.instant(self.idle_since.load(Ordering::Relaxed))
    }

    fn note_head(&self, in_head: bool) {
        let noted = self.head_since.load(Ordering::Relaxed) != 0;
        if in_head != noted {
            let stamp = if in_head { self.stamp(clock::now()) } else { 0 };
            self.head_since.store(stamp, Ordering::Relaxed);
        }
    }
}

/// The stream under a server's HTTP.
pub(crate) struct Wire<Io> {
    io: Io,
    flow: Flow,
    /// What is read before the stream: what detection took, or what spoils a head.
    before: Vec<u8>,
    read: usize,
    /// `None` for HTTP/2.
    framing: Option<Framing>,
    activity: Arc<Activity>,
}

impl<Io> Wire<Io> {
    /// `first` are the bytes that detection read, and whether they are HTTP/2's.
    pub(crate) fn new(
        io: Io,
        mut flow: Flow,
        (first, http2): (Vec<u8>, bool),
        activity: Arc<Activity>,
    ) -> Self {
        flow.read(Ok(first.len()));
        Self { io, flow, before: first, read: 0, framing: (!http2).then(Framing::new), activity }
    }

    /// Takes note of what was written, and hands it on.
    fn note_write(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.note_write(&polled);
        let written = ready!(polled);
        self.flow.wrote(written.as_ref().copied());
        Poll::Ready(written)
    }

    fn look(&mut self, buf: &mut ReadBuf<'_>, from: usize) {
        let Some(framing) = &mut self.framing else { return };
        let scan = framing.scan(buf.filled().get(from..).unwrap_or_default());
        self.activity.note_head(framing.in_head());
        if let Scan::Ambiguous(offset) = scan {
            self.framing = None;
            buf.set_filled(from + offset);
            self.before = SPOIL.to_vec();
            self.read = 0;
            self.fill(buf);
        }
    }

    fn fill(&mut self, buf: &mut ReadBuf<'_>) {
        let left = self.before.get(self.read..).unwrap_or_default();
        let fits = left.len().min(buf.remaining());
        buf.put_slice(&left[..fits]);
        self.read += fits;
        if self.read == self.before.len() {
            self.before = Vec::new();
            self.read = 0;
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Wire<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let from = buf.filled().len();
        if this.before.is_empty() {
            let read = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
            this.flow.read(read.as_ref().map(|()| buf.filled().len() - from));
            read?;
        } else {
            this.fill(buf);
        }
        this.look(buf, from);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Wire<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        this.note_write(polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.note_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
