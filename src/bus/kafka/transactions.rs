//! Transactions that other producers leave open: consumers are given nothing behind the beginning of the oldest one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::offsets::Partition;

/// One that takes so long is told.
const LONG: Duration = Duration::from_secs(10);

/// Where partitions are held back.
#[derive(Default)]
pub struct Held {
    /// The last stable offset, and since when the log ends behind it.
    since: BTreeMap<Partition, (i64, Instant)>,
}

impl Held {
    /// Takes in a partition's ends: what consumers are given, and what is there.
    pub fn look(&mut self, at: Partition, stable: i64, high: i64, now: Instant) {
        if stable >= high {
            self.since.remove(&at);
        } else if self.since.get(&at).is_none_or(|(known, _)| *known != stable) {
            self.since.insert(at, (stable, now));
        }
    }

    /// Forgets partitions that are there no more.
    pub fn retain(&mut self, is_there: impl Fn(&Partition) -> bool) {
        self.since.retain(|at, _| is_there(at));
    }

    /// Which have been held back for long, and since when.
    pub fn long(&self, now: Instant) -> impl Iterator<Item = (Partition, Instant)> {
        let held = self.since.iter().map(|(&at, &(_, since))| (at, since));
        held.filter(move |(_, since)| now.duration_since(*since) >= LONG)
    }

    /// For how long the oldest one has been.
    pub fn longest(&self, now: Instant) -> Duration {
        let ages = self.since.values().map(|(_, since)| now.duration_since(*since));
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
    }
}
