//! Floor 5: opens TCP connections, to the first of several addresses that answers.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;

/// How sockets are set up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpSettings {
    /// Whether small writes go out at once. Default yes: a request waits for nothing.
    pub nodelay: bool,
    /// The idle time after which the kernel probes the peer, and the pause between probes; `None`: no probes.
    /// Default 10 s (Linkerd): a peer that vanished without a word is found while a response is awaited.
    pub keepalive: Option<Duration>,
    /// How long sent data may stay unacknowledged, probes included (Linux `TCP_USER_TIMEOUT`). Default 30 s
    /// (Linkerd).
    pub user_timeout: Option<Duration>,
    /// The head start of an address before the next is tried beside it. Default 250 ms (RFC 8305 §8).
    pub attempt_delay: Duration,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Duration::from_secs(10)),
            user_timeout: Some(Duration::from_secs(30)),
            attempt_delay: Duration::from_millis(250),
        }
    }
}

impl TcpSettings {
    /// Sets up a connected or accepted socket. Options the platform lacks are left out.
    ///
    /// # Errors
    ///
    /// When the socket refuses an option, usually because the peer is gone already.
    pub fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        if self.nodelay {
            stream.set_nodelay(true)?;
        }
        let socket = socket2::SockRef::from(stream);
        if let Some(time) = self.keepalive {
            socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(time).with_interval(time))?;
        }
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        socket.set_tcp_user_timeout(self.user_timeout)?;
        Ok(())
    }
}

/// Opens a connection to the first of these addresses that answers: Happy Eyeballs (RFC 8305).
///
/// Families alternate, beginning with the first address's; each address has a head start over the next, which
/// a failure ends early.
///
/// # Errors
///
/// The last failure when every address failed, `InvalidInput` when there is none. It has no time limit of its
/// own.
pub async fn connect(addrs: &[SocketAddr], settings: &TcpSettings) -> io::Result<TcpStream> {
    let stream = match addrs {
        [] => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to")),
        [addr] => dial(*addr).await?,
        _ => race(alternate(addrs), settings.attempt_delay).await?,
    };
    settings.apply(&stream)?;
    Ok(stream)
}

async fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.connect(addr).await
}

async fn race(addrs: Vec<SocketAddr>, delay: Duration) -> io::Result<TcpStream> {
    let mut left = addrs.into_iter();
    let mut dialling: FuturesUnordered<_> = left.next().map(dial).into_iter().collect();
    let mut failure = io::Error::from(io::ErrorKind::InvalidInput);
    loop {
        let head_start = tokio::time::sleep(delay);
        tokio::select! {
            biased;
            ended = dialling.next() => match ended {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = head_start, if left.len() > 0 => {}
        }
        dialling.extend(left.next().map(dial));
    }
}

fn alternate(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = addrs.first().is_some_and(SocketAddr::is_ipv6);
    let (mut same, mut other): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addrs.iter().rev().copied().partition(|a| a.is_ipv6() == first);
    let mut order = Vec::with_capacity(addrs.len());
    while !same.is_empty() || !other.is_empty() {
        order.extend(same.pop());
        order.extend(other.pop());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_alternate_beginning_with_the_first() {
        let given = ["[::1]:1", "[::1]:2", "[::1]:3", "1.1.1.1:1", "1.1.1.1:2"].map(addr);
        let order = ["[::1]:1", "1.1.1.1:1", "[::1]:2", "1.1.1.1:2", "[::1]:3"].map(addr);
        assert_eq!(alternate(&given), order);
        assert_eq!(alternate(&[]), []);
    }

    #[tokio::test]
    async fn a_refused_address_hands_over_to_the_next_at_once() {
        let shut = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = TcpSettings { attempt_delay: Duration::from_secs(3600), ..TcpSettings::default() };
        let stream = connect(&[shut, open.local_addr().unwrap()], &settings).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open.local_addr().unwrap());
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn all_refused_is_the_last_failure_and_none_is_invalid() {
        let shut = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let settings = TcpSettings::default();
        let error = connect(&[shut, shut], &settings).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&[], &settings).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
