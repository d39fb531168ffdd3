//! Handshakes that are cut, flipped and split at every byte.

use crate::NOW;
use crate::support::*;
use enmesh::tls::acceptor::Accepted;
use enmesh::tls::acceptor::Acceptor;
use enmesh::tls::acceptor::Mode;
use enmesh::tls::connector::Connector;
use enmesh::tls::connector::ExpectedPeer;
use enmesh::tls::material::Fixed;
use enmesh::tls::verify::Expected;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::DuplexStream;
use tokio::io::ReadBuf;
use tokio::io::duplex;

/// What is done to the bytes that one end reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    None,
    /// The pipe ends before this byte.
    Cut(usize),
    /// A bit of this byte is turned.
    Flip(usize),
    /// Nothing comes any more from this byte on, and the pipe stays open.
    Stall(usize),
}

/// A pipe whose reader suffers, gets at most `step` bytes at a time, and leaves a copy of what came.
struct Wire {
    io: DuplexStream,
    harm: Harm,
    step: usize,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let at = self.seen.lock().unwrap().len();
        let mut room = self.step.min(into.remaining());
        match self.harm {
            Harm::Cut(end) if at >= end => return Poll::Ready(Ok(())),
            Harm::Stall(end) if at >= end => return Poll::Pending,
            Harm::Cut(end) | Harm::Stall(end) => room = room.min(end - at),
            Harm::None | Harm::Flip(_) => {}
        }
        let mut bytes = vec![0; room];
        let mut buffer = ReadBuf::new(&mut bytes);
        let poll = Pin::new(&mut self.io).poll_read(cx, &mut buffer);
        let filled = buffer.filled_mut();
        if let Harm::Flip(flip) = self.harm
            && let Some(byte) = flip.checked_sub(at).and_then(|index| filled.get_mut(index))
        {
            *byte ^= 1 << (flip % 8);
        }
        into.put_slice(filled);
        self.seen.lock().unwrap().extend_from_slice(filled);
        poll
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

const SECRET: &[u8] = b"a request that nobody else may read";

/// What came of one connection.
struct Outcome {
    /// Whether the client's handshake, and the server's, went well.
    client: bool,
    server: bool,
    /// What the server's application read.
    read: Vec<u8>,
    /// How many bytes the server and the client read from the wire.
    up: usize,
    down: usize,
}

struct Ends {
    connector: Connector,
    acceptor: Acceptor,
    expected: ExpectedPeer,
}

async fn ends(mode: Mode) -> Ends {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let web = keep(Fixed::new(ca.issue(&id("web")).unwrap()), settings(&wall));
    let api = keep(Fixed::new(ca.issue(&id("api")).unwrap()), settings(&wall));
    web.ready().await;
    api.ready().await;
    let expected = ExpectedPeer::new(Expected::Is(id("api")));
    Ends { connector: connector(&web), acceptor: acceptor(&api, mode), expected }
}

/// One connection on which the client sends a request as soon as it may. Its end is awaited, so a hang is a test
/// that never ends; the clock is paused, so limits cost no time.
async fn run(ends: &Ends, up: Harm, down: Harm, step: usize) -> Outcome {
    let (near, far) = duplex(64 * 1024);
    let wire = |io, harm| Wire { io, harm, step, seen: Arc::default() };
    let (near, far) = (wire(near, down), wire(far, up));
    let (seen_near, seen_far) = (Arc::clone(&near.seen), Arc::clone(&far.seen));
    let client = async {
        let Ok((mut stream, _)) = ends.connector.connect(near, &ends.expected).await else { return false };
        let _ = stream.write_all(SECRET).await;
        let _ = stream.shutdown().await;
        true
    };
    let server = async {
        match ends.acceptor.accept(far).await {
            Ok(Accepted::Tls(mut stream, session)) => {
                assert_eq!(session.peer().unwrap().identity, id("web"));
                let mut read = vec![0; SECRET.len()];
                let limit = tokio::time::timeout(Acceptor::HANDSHAKE_MAX, stream.read_exact(&mut read));
                let whole = matches!(limit.await, Ok(Ok(_)));
                (true, if whole { read } else { Vec::new() })
            }
            Ok(Accepted::Plain(mut io)) => {
                let mut read = Vec::new();
                let _ = tokio::time::timeout(Acceptor::HANDSHAKE_MAX, io.read_to_end(&mut read)).await;
                (false, read)
            }
            Err(_) => (false, Vec::new()),
        }
    };
    let (client, (server, read)) = tokio::join!(client, server);
    let (up_seen, down_seen) = (seen_far.lock().unwrap().clone(), seen_near.lock().unwrap().clone());
    for wire in [&up_seen, &down_seen] {
        assert!(!wire.windows(SECRET.len()).any(|window| window == SECRET), "the request was readable");
    }
    Outcome { client, server, read, up: up_seen.len(), down: down_seen.len() }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_come_one_by_one_make_the_same_connection() {
    for mode in [Mode::Strict, Mode::Permissive] {
        let ends = ends(mode).await;
        let outcome = run(&ends, Harm::None, Harm::None, 1).await;
        assert!(outcome.client && outcome.server && outcome.read == SECRET);
    }
}

/// Every harm at every byte of one direction.
async fn every_byte(upward: bool, harm: fn(usize) -> Harm) {
    let ends = ends(Mode::Permissive).await;
    let whole = run(&ends, Harm::None, Harm::None, usize::MAX).await;
    let length = if upward { whole.up } else { whole.down };
    assert!(length > 1000, "{length}");
    for at in 0..length {
        let (up, down) = if upward { (harm(at), Harm::None) } else { (Harm::None, harm(at)) };
        let outcome = run(&ends, up, down, usize::MAX).await;
        // The application gets the request whole from whom it knows, or not at all; a first byte that says "no TLS"
        // makes a plain connection of noise.
        if !outcome.server {
            assert!(outcome.read.is_empty() || at == 0, "{at}: {:?}", outcome.read.len());
        } else {
            assert!(outcome.read.is_empty() || outcome.read == SECRET, "{at}");
        }
        assert!(outcome.client || outcome.read != SECRET, "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_cut_at_any_byte_from_the_client_ends_cleanly() {
    every_byte(true, Harm::Cut).await;
}

#[tokio::test(start_paused = true)]
async fn a_handshake_cut_at_any_byte_from_the_server_ends_cleanly() {
    every_byte(false, Harm::Cut).await;
}

#[tokio::test(start_paused = true)]
async fn a_bit_turned_in_any_byte_from_the_client_lets_nothing_wrong_through() {
    every_byte(true, Harm::Flip).await;
}

#[tokio::test(start_paused = true)]
async fn a_bit_turned_in_any_byte_from_the_server_lets_nothing_wrong_through() {
    every_byte(false, Harm::Flip).await;
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_at_any_byte_ends_at_the_limit() {
    every_byte(true, Harm::Stall).await;
    every_byte(false, Harm::Stall).await;
}
