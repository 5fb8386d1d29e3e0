//! Refused tokens and API keys, by address (`AUTH_FAILURES_PER_MINUTE`).

use std::net::IpAddr;
use std::time::Duration;

use dashmap::DashMap;

use crate::clock::Moment;

const MINUTE: Duration = Duration::from_secs(60);
/// Memory is bounded: addresses beyond these are not limited.
const MAX_ADDRESSES: usize = 1 << 16;

/// Counts failures in windows of a minute, each from an address' first failure on.
pub(super) struct Failures {
    /// 0: no limit.
    per_minute: u32,
    addresses: DashMap<IpAddr, Window>,
}

struct Window {
    ends: Moment,
    failures: u32,
}

impl Failures {
    pub(super) fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            addresses: DashMap::new(),
        }
    }

    /// Counts one; returns how long to wait if there are too many.
    pub(super) fn count(&self, address: IpAddr, now: Moment) -> Option<Duration> {
        if self.per_minute == 0 {
            return None;
        }
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&address) {
            return None;
        }
        let mut window = self.addresses.entry(address).or_insert(Window {
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
        if !self.addresses.is_empty() {
            self.addresses.retain(|_, window| window.ends > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_minute() {
        let (failures, start) = (Failures::new(3), Moment::now());
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..3 {
            assert_eq!(failures.count(one, at(second)), None);
        }
        assert_eq!(failures.count(one, at(10)), Some(Duration::from_secs(50)));
        assert_eq!(failures.count(other, at(10)), None);
        assert_eq!(failures.count(one, at(60)), None, "the minute is over");
        failures.purge(at(69));
        assert_eq!(failures.addresses.len(), 2);
        failures.purge(at(200));
        assert!(failures.addresses.is_empty());
        assert_eq!(Failures::new(0).count(one, start), None);
    }
}
