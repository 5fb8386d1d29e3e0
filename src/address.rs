//! The address that a client's connections and failures are counted under.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The part of an IPv6 address that identifies a customer: providers assign a /64 or more, whose addresses the customer
/// changes at will.
const IPV6_PREFIX: u32 = 64;

/// NAT64 (RFC 6052): IPv4 clients behind one /96, with their own address in the last 32 bits.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// 6to4 (RFC 3056): a host's IPv4 address follows these 16 bits. Its /64s are all its own.
const SIX_TO_FOUR: u16 = 0x2002;

/// An IPv4 address counts by itself, an IPv6 address by its network.
pub fn counted(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if ip.to_bits() >> 32 == NAT64.to_bits() >> 32 => {
            Ipv4Addr::from_bits(ip.to_bits() as u32).into()
        }
        IpAddr::V6(ip) if ip.segments()[0] == SIX_TO_FOUR => {
            Ipv4Addr::from_bits((ip.to_bits() >> 80) as u32).into()
        }
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << (128 - IPV6_PREFIX))).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_counts_by_its_network() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(counted(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(counted(ip("2001:db8:1:2:ffff::1")), ip("2001:db8:1:2::"));
        assert_ne!(counted(ip("2001:db8:1:3::1")), ip("2001:db8:1:2::"));
        assert_eq!(counted(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(counted(ip("192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(counted(ip("64:ff9b::192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(counted(ip("2002:c000:201::1")), ip("192.0.2.1"));
        assert_eq!(counted(ip("2002:c000:201:ffff::1")), ip("192.0.2.1"));
        assert_eq!(counted(ip("2003:c000:201::1")), ip("2003:c000:201::"));
        assert_eq!(counted(ip("64:ff9b:0:0:0:1::1")), ip("64:ff9b::"));
    }
}
