//! Listening sockets, with faults that say which port and what to do.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::TcpListener;

/// Listens at `addr`; `remedy` says how another port is chosen.
pub async fn at(addr: SocketAddr, remedy: &str) -> Result<TcpListener, String> {
    TcpListener::bind(addr).await.map_err(|error| fault(addr, &error, remedy))
}

/// Listens at `port` of all addresses: IPv6 and IPv4 where the system has both, else IPv4.
pub async fn everywhere(port: u16, remedy: &str) -> Result<TcpListener, String> {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpListener::bind(v6).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(fault(v6, &error, remedy)),
        Err(_) => at(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), remedy).await,
    }
}

fn fault(addr: SocketAddr, error: &io::Error, remedy: &str) -> String {
    let port = addr.port();
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => format!("port {port} is in use by another program"),
        io::ErrorKind::PermissionDenied => format!("port {port} may not be used by this user"),
        _ => format!("cannot listen at {addr} ({error})"),
    };
    format!("{why}: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_busy_port_is_named_with_the_remedy() {
        let first = at(SocketAddr::from(([127, 0, 0, 1], 0)), "").await.unwrap();
        let addr = first.local_addr().unwrap();
        let fault = at(addr, "choose another with --port").await.unwrap_err();
        let port = addr.port();
        assert_eq!(fault, format!("port {port} is in use by another program: choose another with --port"));
    }
}
