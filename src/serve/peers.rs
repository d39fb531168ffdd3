//! Floor 5: counts what each peer of a server holds at once, so that none holds all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

/// Whose, and what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Held {
    /// Connections of an address.
    Connection(IpAddr),
    /// Handshakes of an address.
    Handshake(IpAddr),
    /// Connections of a peer that has proved who it is.
    Named(Arc<str>),
}

/// What one host can choose freely counts as one: of IPv6 the 64 bits that a network gives it.
pub(crate) fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// What each peer holds. It is asked once or twice a connection, and never by a request.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<Held, usize>>);

impl Peers {
    /// A place for one more, if there are fewer than `max`.
    pub(crate) fn admit(self: &Arc<Self>, held: Held, max: usize) -> Option<Place> {
        let mut counts = self.lock();
        let count = counts.entry(held.clone()).or_default();
        if *count >= max {
            // With a limit of nothing the entry is new.
            if *count == 0 {
                counts.remove(&held);
            }
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Place { peers: Arc::clone(self), held })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Held, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place of a peer, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    peers: Arc<Peers>,
    held: Held,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.peers.lock();
        if let Some(count) = counts.get_mut(&self.held) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.held);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holds_its_own_places_and_nothing_stays_of_who_is_gone() {
        let peers = Arc::new(Peers::default());
        let (a, b) = (Held::Connection([10, 0, 0, 1].into()), Held::Named("b".into()));
        let held: Vec<_> = (0..3).map(|_| peers.admit(a.clone(), 2)).collect();
        assert_eq!(held.iter().filter(|place| place.is_some()).count(), 2);
        let named = peers.admit(b.clone(), 2);
        assert!(named.is_some() && peers.admit(Held::Handshake([10, 0, 0, 1].into()), 1).is_some());
        drop(held);
        assert!(peers.admit(a, 2).is_some());
        drop(named);
        assert!(peers.admit(b, 0).is_none());
        assert!(peers.lock().is_empty());
    }

    #[test]
    fn a_host_is_one_under_all_of_its_addresses() {
        let check = |a: &str, b: &str, same: bool| {
            let host = |text: &str| host_of(text.parse().unwrap());
            assert_eq!(host(a) == host(b), same, "{a} {b}");
        };
        check("10.0.0.1", "::ffff:10.0.0.1", true);
        check("10.0.0.1", "10.0.0.2", false);
        check("2001:db8::1", "2001:db8::ffff:2", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
    }
}
