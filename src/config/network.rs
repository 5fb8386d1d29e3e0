//! An address range in CIDR notation, for trusted proxies.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use super::parse::without_user;

/// `10.0.0.0/8`, `2001:db8::/32`, or a single address; IPv4-mapped IPv6 is kept as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

/// The number of bits before the IPv4 address in an IPv4-mapped IPv6 address.
const MAPPED_PREFIX: u8 = 96;

impl Network {
    /// Whether the address is in the range. `::ffff:10.1.2.3`, as a dual-stack listener reports it, counts as
    /// `10.1.2.3`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) => text.parse::<IpNet>().ok(),
        };
        let network = parsed.ok_or_else(|| {
            format!(
                "{:?} is neither an address nor a network such as 10.0.0.0/8 or 2001:db8::/32",
                without_user(text)
            )
        })?;
        if network.trunc() != network {
            return Err(format!(
                "{network} has bits beyond its prefix: write {}",
                network.trunc()
            ));
        }
        let prefix = network.prefix_len();
        Ok(Network(match (network.addr(), network.addr().to_canonical()) {
            // A shorter prefix covers more than mapped addresses, and is kept as it is.
            (IpAddr::V6(_), IpAddr::V4(v4)) if prefix >= MAPPED_PREFIX => {
                Ipv4Net::new_assert(v4, prefix - MAPPED_PREFIX).into()
            }
            _ => network,
        }))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

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
    fn errors_name_the_mistake() {
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
        fn a_shown_network_is_read_back(bits: u128, prefix in 0u8..=128) {
            let network = Network(IpNet::new(Ipv6Addr::from_bits(bits).into(), prefix).unwrap().trunc());
            prop_assume!(network.0.addr().to_canonical().is_ipv6());
            prop_assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
        }

        #[test]
        fn agrees_with_a_comparison_of_bits(a: u32, b: u32, prefix in 0u8..=32) {
            let network = Network(IpNet::new(Ipv4Addr::from_bits(a).into(), prefix).unwrap().trunc());
            let same = (a ^ b).leading_zeros() >= u32::from(prefix);
            prop_assert_eq!(network.contains(IpAddr::V4(Ipv4Addr::from_bits(b))), same);
        }
    }
}
