//! Floor 0: a network in CIDR notation, and whether an address is in it.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A network: `10.0.0.0/8`, `fd00::/8`, or one address.
///
/// IPv4 addresses that are written as IPv6 (`::ffff:10.0.0.1`) are IPv4 addresses here, on both sides: a caller
/// cannot leave a rule by the notation of its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no [`Network`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadNetwork {
    given: String,
}

impl fmt::Display for BadNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a network; write `10.0.0.0/8`, `fd00::/8` or one address", self.given)
    }
}

impl std::error::Error for BadNetwork {}

impl Network {
    /// Every address of both families: `0.0.0.0/0` and `::/0`.
    pub const ALL: [Self; 2] = [
        Self { address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), prefix: 0 },
        Self { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 0 },
    ];

    /// Whether `address` is in it.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same(u32::from(network).into(), u32::from(address).into(), 32, self.prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                same(network.into(), address.into(), 128, self.prefix)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Whether the first `prefix` of `width` bits are the same.
fn same(a: u128, b: u128, width: u32, prefix: u8) -> bool {
    let rest = width.saturating_sub(u32::from(prefix));
    rest >= width || a >> rest == b >> rest
}

impl From<IpAddr> for Network {
    /// This one address.
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, prefix: width(address) }
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork { given: text.chars().take(100).collect() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) if prefix.bytes().all(|b| b.is_ascii_digit()) => {
                (address, Some(prefix.parse::<u8>().map_err(|_| bad())?))
            }
            Some(_) => return Err(bad()),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| bad())?;
        let canonical = written.to_canonical();
        let prefix = prefix.unwrap_or(width(written));
        if prefix > width(written) {
            return Err(bad());
        }
        // `::ffff:10.0.0.0/104` is `10.0.0.0/8`; a mapped network wider than all of IPv4 is not one network.
        let lost = width(written) - width(canonical);
        let prefix = prefix.checked_sub(lost).ok_or_else(bad)?;
        Ok(Self { address: canonical, prefix })
    }
}

/// How many bits an address has.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(network: &str, inside: &[&str], outside: &[&str]) {
        let network: Network = network.parse().unwrap();
        for address in inside {
            assert!(network.contains(address.parse().unwrap()), "{network} {address}");
        }
        for address in outside {
            assert!(!network.contains(address.parse().unwrap()), "{network} {address}");
        }
    }

    #[test]
    fn addresses_are_in_networks_by_their_first_bits() {
        check(
            "10.0.0.0/8",
            &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"],
            &["11.0.0.0", "9.9.9.9", "::a00:1"],
        );
        check("10.1.2.3/8", &["10.9.9.9"], &[]);
        check("10.0.0.1", &["10.0.0.1"], &["10.0.0.0", "10.0.0.2"]);
        check("0.0.0.0/0", &["1.2.3.4", "::ffff:1.2.3.4"], &["::1"]);
        check("::/0", &["::1", "fd00::1"], &["1.2.3.4"]);
        check("fd00::/8", &["fd12::1"], &["fe00::1"]);
        check("::ffff:10.0.0.0/104", &["10.1.1.1"], &["11.1.1.1"]);
        check("192.168.0.0/31", &["192.168.0.1"], &["192.168.0.2"]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "a",
            "10.0.0.0/",
            "::ffff:0:0/90",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
