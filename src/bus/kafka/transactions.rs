//! Transactions that other producers leave open: consumers are given nothing behind the beginning of the oldest one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::offsets::Partition;

/// One that takes so long is told.
const LONG: Duration = Duration::from_secs(10);

/// Where partitions are held back.
#[derive(Default)]
pub struct Held {
    by_partition: BTreeMap<Partition, Hold>,
}

struct Hold {
    /// The last stable offset.
    stable: i64,
    /// Since when the log ends behind it.
    since: Instant,
    /// The last look has seen it.
    is_seen: bool,
}

impl Held {
    /// A look begins: until it has seen a partition, nothing is known of it.
    pub fn begin(&mut self) {
        for hold in self.by_partition.values_mut() {
            hold.is_seen = false;
        }
    }

    /// Takes in a partition's ends: what consumers are given, and what is there.
    pub fn look(&mut self, at: Partition, stable: i64, high: i64, now: Instant) {
        if stable >= high {
            self.by_partition.remove(&at);
            return;
        }
        let known = self.by_partition.get(&at).filter(|known| known.stable == stable);
        let since = known.map_or(now, |known| known.since);
        let hold = Hold {
            stable,
            since,
            is_seen: true,
        };
        self.by_partition.insert(at, hold);
    }

    /// Forgets partitions that are there no more.
    pub fn retain(&mut self, is_there: impl Fn(&Partition) -> bool) {
        self.by_partition.retain(|at, _| is_there(at));
    }

    fn seen(&self) -> impl Iterator<Item = (Partition, Instant)> {
        let seen = self.by_partition.iter().filter(|(_, hold)| hold.is_seen);
        seen.map(|(&at, hold)| (at, hold.since))
    }

    /// Which have been held back for long, and since when.
    pub fn long(&self, now: Instant) -> impl Iterator<Item = (Partition, Instant)> {
        self.seen()
            .filter(move |(_, since)| now.duration_since(*since) >= LONG)
    }

    /// For how long the oldest one has been.
    pub fn longest(&self, now: Instant) -> Duration {
        let ages = self.seen().map(|(_, since)| now.duration_since(since));
        ages.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::record::Topic;

    #[test]
    fn a_transaction_is_told_when_it_has_stood_for_long() {
        let (at, start) = ((Topic::Messages, 3), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut held = Held::default();
        held.look(at, 5, 9, start);
        assert_eq!(held.long(after(9)).count(), 0);
        held.look(at, 5, 12, after(9));
        assert_eq!(held.long(after(10)).collect::<Vec<_>>(), [(at, start)]);
        assert_eq!(held.longest(after(42)), Duration::from_secs(42));
        held.look(at, 7, 12, after(43));
        assert_eq!(
            held.long(after(44)).count(),
            0,
            "another one, which has just begun"
        );
        held.look(at, 12, 12, after(60));
        assert_eq!(held.longest(after(99)), Duration::ZERO);

        // Its ends can't be had for a while: maybe it has ended.
        held.look(at, 12, 13, after(100));
        held.begin();
        assert_eq!(held.long(after(120)).count(), 0);
        assert_eq!(held.longest(after(120)), Duration::ZERO);
        held.begin();
        held.look(at, 12, 13, after(121));
        assert_eq!(held.long(after(121)).collect::<Vec<_>>(), [(at, after(100))]);
    }
}
