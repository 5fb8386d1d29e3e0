//! An address range in CIDR notation, for the proxies whose `X-Forwarded-For` is believed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `10.0.0.0/8`, `2001:db8::/32`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// The first address of the range; IPv4-mapped IPv6 is kept as IPv4.
    address: IpAddr,
    /// How many leading bits have to agree.
    prefix: u8,
}

impl Network {
    /// Whether the address is in the range. `::ffff:10.1.2.3`, as a dual-stack listener reports it, counts as `10.1.2.3`.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                mask_v4(network, self.prefix) == mask_v4(address, self.prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                mask_v6(network, self.prefix) == mask_v6(address, self.prefix)
            }
            _ => false,
        }
    }

    fn new(address: IpAddr, prefix: u8) -> Result<Self, String> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return Err(format!("the prefix of {address} is at most /{bits}"));
        }
        let (address, prefix) = match address.to_canonical() {
            // A mapped range is an IPv4 range; with fewer than 96 bits it would be more than that, and stays as it is.
            IpAddr::V4(v4) if address.is_ipv6() && prefix >= 96 => (IpAddr::V4(v4), prefix - 96),
            _ => (address, prefix),
        };
        let first = match address {
            IpAddr::V4(v4) => IpAddr::V4(mask_v4(v4, prefix)),
            IpAddr::V6(v6) => IpAddr::V6(mask_v6(v6, prefix)),
        };
        if first != address {
            return Err(format!(
                "{address}/{prefix} has bits beyond its prefix: write {first}/{prefix}"
            ));
        }
        Ok(Network { address, prefix })
    }
}

fn mask_v4(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

fn mask_v6(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0))
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{text:?} is neither an address nor a network such as 10.0.0.0/8"))?;
        let prefix = match prefix {
            Some(prefix) if !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit()) => prefix
                .parse()
                .map_err(|_| format!("/{prefix} is too long a prefix"))?,
            Some(prefix) => return Err(format!("/{prefix} is not a prefix length")),
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Network::new(address, prefix)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn contains_its_own_range_only() {
        assert!(network("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(!network("10.0.0.0/8").contains(ip("11.0.0.0")));
        assert!(network("192.0.2.7").contains(ip("192.0.2.7")));
        assert!(!network("192.0.2.7").contains(ip("192.0.2.8")));
        assert!(network("0.0.0.0/0").contains(ip("255.255.255.255")));
        assert!(!network("0.0.0.0/0").contains(ip("::1")));
        assert!(network("2001:db8::/32").contains(ip("2001:db8:ffff::1")));
        assert!(network("::/0").contains(ip("2001:db8::1")));
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        assert!(network("10.0.0.0/8").contains(ip("::ffff:10.1.2.3")));
        assert!(network("::ffff:10.0.0.0/104").contains(ip("10.1.2.3")));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1/32"));
    }

    #[test]
    fn says_what_is_wrong() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/999",
            "host/8",
            "10.0.0/8",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
        assert!(
            "10.0.0.1/8"
                .parse::<Network>()
                .unwrap_err()
                .contains("10.0.0.0/8")
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Network>();
        }

        #[test]
        fn what_is_shown_is_read_back(bits: u128, prefix in 0u8..=128) {
            let network = Network::new(IpAddr::V6(mask_v6(Ipv6Addr::from_bits(bits), prefix)), prefix).unwrap();
            prop_assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
        }

        #[test]
        fn agrees_with_a_comparison_of_bits(a: u32, b: u32, prefix in 0u8..=32) {
            let network = Network::new(IpAddr::V4(mask_v4(Ipv4Addr::from_bits(a), prefix)), prefix).unwrap();
            let same = (a ^ b).leading_zeros() >= u32::from(prefix);
            prop_assert_eq!(network.contains(IpAddr::V4(Ipv4Addr::from_bits(b))), same);
        }
    }
}
