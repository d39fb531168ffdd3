//! Floor 5: a stream that counts its own end and reads the peer's first HTTP/2 settings in passing.

use crate::stdx::traffic::Flow;
use futures::task::AtomicWaker;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::sync::oneshot;

/// Ends a stream from outside.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    done: AtomicBool,
    reader: AtomicWaker,
}

impl Cut {
    /// Makes the next read fail, which ends the connection.
    pub(crate) fn cut(&self) {
        self.done.store(true, Ordering::Release);
        self.reader.wake();
    }

    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        self.reader.register(cx.waker());
        if self.done.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "connection cut off: it was retired",
            ));
        }
        Ok(())
    }
}

/// A stream whose end runs `on_close`.
pub(crate) struct Socket<Io, F: FnOnce()> {
    io: Io,
    flow: Flow,
    cut: Arc<Cut>,
    settings: Option<(SettingsFrame, oneshot::Sender<u32>)>,
    on_close: Option<F>,
}

impl<Io, F: FnOnce()> Socket<Io, F> {
    pub(crate) fn new(io: Io, flow: Flow, cut: Arc<Cut>, on_close: F) -> Self {
        Self { io, flow, cut, settings: None, on_close: Some(on_close) }
    }

    /// Tells how many streams the peer's first settings allow; an error if the first frame is another.
    pub(crate) fn tell_streams(&mut self) -> oneshot::Receiver<u32> {
        let (tell, told) = oneshot::channel();
        self.settings = Some((SettingsFrame::default(), tell));
        told
    }

    fn watch(&mut self, bytes: &[u8]) {
        if let Some((mut frame, tell)) = self.settings.take() {
            match frame.feed(bytes) {
                Fed::More => self.settings = Some((frame, tell)),
                Fed::Streams(streams) => drop(tell.send(streams)),
                Fed::Other => {}
            }
        }
    }
}

impl<Io, F: FnOnce()> Drop for Socket<Io, F> {
    fn drop(&mut self) {
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }
}

impl<Io: AsyncRead + Unpin, F: FnOnce() + Unpin> AsyncRead for Socket<Io, F> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if let Poll::Ready(read) = &polled {
            let read = read.as_ref().map(|()| buf.filled().len() - before);
            this.flow.read(read);
        } else {
            this.cut.check(cx)?;
        }
        if this.settings.is_some() && matches!(polled, Poll::Ready(Ok(()))) {
            this.watch(buf.filled().get(before..).unwrap_or_default());
        }
        polled
    }
}

impl<Io: AsyncWrite + Unpin, F: FnOnce() + Unpin> AsyncWrite for Socket<Io, F> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf));
        this.flow.wrote(written.as_ref().copied());
        Poll::Ready(written)
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
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs));
        this.flow.wrote(written.as_ref().copied());
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Reads one SETTINGS frame (RFC 9113 §6.5) from pieces of any size.
#[derive(Debug, Default)]
struct SettingsFrame {
    header: [u8; 9],
    header_filled: usize,
    payload_read: usize,
    entry: [u8; 6],
    streams: Option<u32>,
}

#[derive(Debug, PartialEq, Eq)]
enum Fed {
    More,
    Streams(u32),
    Other,
}

const SETTINGS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;

impl SettingsFrame {
    fn feed(&mut self, bytes: &[u8]) -> Fed {
        for &byte in bytes {
            if self.header_filled < self.header.len() {
                self.header[self.header_filled] = byte;
                self.header_filled += 1;
                if self.header_filled == self.header.len() && self.header[3..] != [SETTINGS, 0, 0, 0, 0, 0] {
                    return Fed::Other;
                }
            } else {
                self.entry[self.payload_read % 6] = byte;
                self.payload_read += 1;
                let [id_high, id_low, value @ ..] = self.entry;
                if self.payload_read.is_multiple_of(6)
                    && u16::from_be_bytes([id_high, id_low]) == MAX_CONCURRENT_STREAMS
                {
                    self.streams = Some(u32::from_be_bytes(value));
                }
            }
            if self.header_filled == self.header.len() && self.payload_read == self.length() {
                return Fed::Streams(self.streams.unwrap_or(u32::MAX));
            }
        }
        Fed::More
    }

    fn length(&self) -> usize {
        let [a, b, c, ..] = self.header;
        usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(frame: &[u8], expected: &Fed) {
        for size in 1..=frame.len() {
            let mut reader = SettingsFrame::default();
            let mut last = Fed::More;
            for piece in frame.chunks(size) {
                if last == Fed::More {
                    last = reader.feed(piece);
                }
            }
            assert_eq!(&last, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn the_allowed_streams_are_read_from_any_pieces() {
        let empty = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        check(&empty, &Fed::Streams(u32::MAX));
        let two = [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 255, 255, 0, 3, 0, 0, 0, 7, 9, 9];
        check(&two, &Fed::Streams(7));
        check(&two[..20], &Fed::More);
        check(b"HTTP/1.1 400 Bad Request\r\n", &Fed::Other);
        check(&[0, 0, 0, 4, 1, 0, 0, 0, 0], &Fed::Other);
    }
}
