//! Refused tokens and API keys, by address (`AUTH_FAILURES_PER_MINUTE`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dashmap::DashMap;

use crate::clock::Moment;

const MINUTE: Duration = Duration::from_secs(60);
/// Memory is bounded: where so many addresses have failed within a minute, further ones count by their networks.
const MAX_ADDRESSES: usize = 1 << 16;
/// How much of an IPv4 and of an IPv6 address counts, from the finest table to the coarsest, which has one entry for each.
const PREFIXES: [(u32, u32); 4] = [(32, 128), (24, 48), (16, 32), (0, 0)];

/// Counts failures in windows of a minute, each from an address' first failure on.
pub(super) struct Failures {
    /// 0: no limit.
    per_minute: u32,
    /// One for each of [`PREFIXES`].
    tables: [DashMap<IpAddr, Window>; PREFIXES.len()],
}

struct Window {
    ends: Moment,
    failures: u32,
}

impl Failures {
    pub(super) fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            tables: Default::default(),
        }
    }

    /// Where an address counts.
    fn place(&self, address: IpAddr) -> Option<(&DashMap<IpAddr, Window>, IpAddr)> {
        let networks = PREFIXES.map(|prefix| network(address, prefix));
        let mut tables = self.tables.iter().zip(networks);
        // Whoever fills a table with addresses of one network shares its entry in the next; nobody else does.
        tables.find(|(table, network)| table.len() < MAX_ADDRESSES || table.contains_key(network))
    }

    /// Whether there are too many already.
    pub(super) fn are_too_many(&self, address: IpAddr, now: Moment) -> bool {
        let too_many = |window: &Window| window.ends > now && window.failures >= self.per_minute;
        self.per_minute > 0
            && self
                .place(address)
                .and_then(|(table, network)| table.get(&network).map(|window| too_many(&window)))
                .unwrap_or(false)
    }

    /// Counts one; returns how long to wait if there are too many.
    pub(super) fn count(&self, address: IpAddr, now: Moment) -> Option<Duration> {
        if self.per_minute == 0 {
            return None;
        }
        let (table, network) = self.place(address)?;
        let mut window = table.entry(network).or_insert(Window {
            ends: now + MINUTE,
            failures: 0,
        });
        if window.ends <= now {
            (window.ends, window.failures) = (now + MINUTE, 0);
        }
        window.failures = window.failures.saturating_add(1);
        (window.failures > self.per_minute).then(|| window.ends.remaining(now))
    }

    /// Forgets addresses whose minute is over.
    pub(super) fn purge(&self, now: Moment) {
        for table in &self.tables {
            if !table.is_empty() {
                table.retain(|_, window| window.ends > now);
            }
        }
    }
}

fn network(address: IpAddr, (v4, v6): (u32, u32)) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - v4).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - v6).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_has_its_own_minute() {
        let (failures, start) = (Failures::new(3), Moment::now());
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(ip);
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..3 {
            assert_eq!(failures.count(one, at(second)), None);
        }
        assert!(failures.are_too_many(one, at(10)) && !failures.are_too_many(other, at(10)));
        assert_eq!(failures.count(one, at(10)), Some(Duration::from_secs(50)));
        assert_eq!(failures.count(other, at(10)), None);
        assert!(!failures.are_too_many(one, at(60)) && !failures.are_too_many(other, at(11)));
        assert_eq!(failures.count(one, at(60)), None, "the minute is over");
        failures.purge(at(69));
        assert_eq!(failures.tables[0].len(), 2);
        failures.purge(at(200));
        assert!(failures.tables.iter().all(DashMap::is_empty));
        let unlimited = Failures::new(0);
        assert_eq!(unlimited.count(one, start), None);
        assert!(!unlimited.are_too_many(one, start));
    }

    #[test]
    fn who_fills_the_table_is_limited_all_the_same_and_nobody_else_for_it() {
        let (failures, now) = (Failures::new(3), Moment::now());
        let guilty = ip("192.0.2.1");
        for _ in 0..4 {
            failures.count(guilty, now);
        }
        // All networks of one customer's /48.
        let of_customer = |number: u128| {
            IpAddr::from(Ipv6Addr::from_bits(
                0x2001_0db8_0001_0000_0000_0000_0000_0000 + (number << 64),
            ))
        };
        for number in 0..MAX_ADDRESSES as u128 {
            failures.count(of_customer(number), now);
        }
        assert_eq!(failures.tables[0].len(), MAX_ADDRESSES);
        assert!(failures.count(guilty, now).is_some(), "it is still known");
        // The last one did not fit: it counted by its /48.
        let more = |number| failures.count(of_customer(MAX_ADDRESSES as u128 - number), now);
        assert_eq!([more(1), more(1)], [None, None]);
        assert!(more(1).is_some());
        for innocent in ["198.51.100.7", "203.0.113.7", "2001:db8:2::", "2001:db8:3::"] {
            assert_eq!(failures.count(ip(innocent), now), None, "{innocent}");
        }
        // Those of one network share it.
        for host in 1..3 {
            assert_eq!(failures.count(ip(&format!("198.51.100.{host}")), now), None);
        }
        assert!(failures.count(ip("198.51.100.99"), now).is_some());
        // However many networks: memory is bounded.
        for number in 0..3 * MAX_ADDRESSES as u128 {
            let network = Ipv6Addr::from_bits((0x3000_0000_0000 + number) << 80);
            failures.count(network.into(), now);
        }
        let sizes: Vec<_> = failures.tables.iter().map(DashMap::len).collect();
        assert!(sizes.iter().all(|&size| size <= MAX_ADDRESSES), "{sizes:?}");
        failures.purge(now + MINUTE);
        assert!(failures.tables.iter().all(DashMap::is_empty));
    }

    #[test]
    fn an_address_is_part_of_its_networks() {
        let networks = |address| PREFIXES.map(|prefix| network(ip(address), prefix).to_string());
        assert_eq!(
            networks("192.0.2.1"),
            ["192.0.2.1", "192.0.2.0", "192.0.0.0", "0.0.0.0"]
        );
        assert_eq!(
            networks("2001:db8:1:2::"),
            ["2001:db8:1:2::", "2001:db8:1::", "2001:db8::", "::"]
        );
    }
}
