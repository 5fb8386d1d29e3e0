//! Open transactions of other producers: consumers get no records after the start of the oldest one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::offsets::Partition;

/// A transaction open for this long is reported.
const LONG_LIVED: Duration = Duration::from_secs(10);

/// The partitions held back by an open transaction.
#[derive(Default)]
pub struct OpenTransactions {
    by_partition: BTreeMap<Partition, OpenTransaction>,
}

struct OpenTransaction {
    /// The last stable offset.
    stable: i64,
    /// When the log was first seen to end after `stable`.
    since: Instant,
    /// Whether the last check saw it.
    is_current: bool,
}

impl OpenTransactions {
    /// Starts a check: nothing is known of a partition until the check observes it.
    pub fn start_check(&mut self) {
        for open in self.by_partition.values_mut() {
            open.is_current = false;
        }
    }

    /// Notes a partition's last stable offset, up to which consumers read, and its high watermark.
    pub fn observe(&mut self, at: Partition, stable: i64, high: i64, now: Instant) {
        if stable >= high {
            self.by_partition.remove(&at);
            return;
        }
        let known = self.by_partition.get(&at).filter(|known| known.stable == stable);
        let since = known.map_or(now, |known| known.since);
        let open = OpenTransaction {
            stable,
            since,
            is_current: true,
        };
        self.by_partition.insert(at, open);
    }

    /// Forgets the other partitions.
    pub fn retain(&mut self, is_kept: impl Fn(&Partition) -> bool) {
        self.by_partition.retain(|at, _| is_kept(at));
    }

    fn current(&self) -> impl Iterator<Item = (Partition, Instant)> {
        let current = self.by_partition.iter().filter(|(_, open)| open.is_current);
        current.map(|(&at, open)| (at, open.since))
    }

    /// The partitions held back for [`LONG_LIVED`] or longer, with when that began.
    pub fn long_lived(&self, now: Instant) -> impl Iterator<Item = (Partition, Instant)> {
        self.current()
            .filter(move |(_, since)| now.duration_since(*since) >= LONG_LIVED)
    }

    /// How long the longest-held partition has been held back.
    pub fn oldest_age(&self, now: Instant) -> Duration {
        let ages = self.current().map(|(_, since)| now.duration_since(since));
        ages.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::record::Topic;

    #[test]
    fn a_transaction_is_reported_once_it_has_been_open_for_long() {
        let (at, start) = ((Topic::Messages, 3), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut transactions = OpenTransactions::default();
        transactions.observe(at, 5, 9, start);
        assert_eq!(transactions.long_lived(after(9)).count(), 0);
        transactions.observe(at, 5, 12, after(9));
        assert_eq!(
            transactions.long_lived(after(10)).collect::<Vec<_>>(),
            [(at, start)]
        );
        assert_eq!(transactions.oldest_age(after(42)), Duration::from_secs(42));
        transactions.observe(at, 7, 12, after(43));
        assert_eq!(
            transactions.long_lived(after(44)).count(),
            0,
            "this is another one, which has just started"
        );
        transactions.observe(at, 12, 12, after(60));
        assert_eq!(transactions.oldest_age(after(99)), Duration::ZERO);

        // The partition's offsets are unavailable for a while: the transaction may have ended.
        transactions.observe(at, 12, 13, after(100));
        transactions.start_check();
        assert_eq!(transactions.long_lived(after(120)).count(), 0);
        assert_eq!(transactions.oldest_age(after(120)), Duration::ZERO);
        transactions.start_check();
        transactions.observe(at, 12, 13, after(121));
        assert_eq!(
            transactions.long_lived(after(121)).collect::<Vec<_>>(),
            [(at, after(100))]
        );
    }
}
