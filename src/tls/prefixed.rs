//! Floor 5: a transport of which some bytes were read ahead, and are read again first.

use bytes::Buf;
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

/// The most bytes that are read ahead: whatever the first read brings, up to the head of a small request.
const AHEAD_MAX: usize = 512;

/// A transport whose first bytes were looked at. Reading gives them back before anything else.
#[derive(Debug)]
#[pin_project::pin_project]
pub struct Prefixed<IO> {
    prefix: Bytes,
    #[pin]
    io: IO,
}

impl<IO> Prefixed<IO> {
    /// A transport of which nothing was read.
    pub fn untouched(io: IO) -> Self {
        Self { prefix: Bytes::new(), io }
    }

    /// The transport below.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// What was read ahead and not yet read again.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }
}

impl<IO: AsyncRead + Unpin> Prefixed<IO> {
    /// Waits for the first bytes, however few: one read. None at all means that the peer has closed.
    pub(crate) async fn read_ahead(mut io: IO) -> io::Result<Self> {
        let mut prefix = [0; AHEAD_MAX];
        let length = io.read(&mut prefix).await?;
        let prefix = Bytes::copy_from_slice(prefix.get(..length).unwrap_or_default());
        Ok(Self { prefix, io })
    }
}

impl<IO: AsyncRead> AsyncRead for Prefixed<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        if this.prefix.is_empty() {
            return this.io.poll_read(cx, into);
        }
        let length = this.prefix.len().min(into.remaining());
        into.put_slice(this.prefix.get(..length).unwrap_or_default());
        this.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite> AsyncWrite for Prefixed<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.project().io.poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_ahead_is_read_again_in_order() {
        let whole: Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
        for step in [1, 7, 511, 512, 513, 4096] {
            let mut io = Prefixed::read_ahead(whole.as_slice()).await.unwrap();
            let mut seen = Vec::new();
            let mut buffer = vec![0; step];
            loop {
                let n = io.read(&mut buffer).await.unwrap();
                if n == 0 {
                    break;
                }
                seen.extend_from_slice(&buffer[..n]);
            }
            assert_eq!(seen, whole);
        }
    }
}
