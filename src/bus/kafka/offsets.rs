//! The next offset of each partition, kept here so that a recreated consumer continues where the old one stopped.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::protocol::record::Topic;

pub type Partition = (Topic, i32);

#[derive(Default)]
pub struct Offsets {
    next: Mutex<BTreeMap<Partition, i64>>,
    /// New positions of partitions that are being read. The next assignment applies them: until then the consumer still
    /// advances the old ones.
    resets: Mutex<BTreeMap<Partition, i64>>,
    /// Incremented with each change by the monitor: the consumer reassigns when it sees a new one.
    generation: AtomicU64,
    /// The consumer is to be recreated.
    restart: AtomicBool,
    /// The monitor is to audit this reader with its next probe.
    audit_requested: AtomicBool,
    /// The consumer has met an offset out of range, and no longer reads that partition.
    is_missing: AtomicBool,
}

impl Offsets {
    /// Applies the resets and returns what the consumer is to assign.
    pub fn assignment(&self) -> Vec<(Partition, i64)> {
        let mut next = self.next.lock();
        for (at, to) in std::mem::take(&mut *self.resets.lock()) {
            if let Some(known) = next.get_mut(&at) {
                *known = to;
            }
        }
        drop(next);
        self.all()
    }

    /// All partitions with their next offsets.
    pub fn all(&self) -> Vec<(Partition, i64)> {
        self.next.lock().iter().map(|(&at, &next)| (at, next)).collect()
    }

    pub fn get(&self, at: Partition) -> Option<i64> {
        self.next.lock().get(&at).copied()
    }

    /// The consumer has delivered everything before these offsets.
    pub fn advance<'a>(&self, delivered: impl IntoIterator<Item = (&'a Partition, &'a i64)>) {
        let mut next = self.next.lock();
        for (at, &delivered) in delivered {
            // A partition that the monitor has removed meanwhile stays removed.
            if let Some(known) = next.get_mut(at) {
                *known = (*known).max(delivered);
            }
        }
    }

    /// Sets where to read a partition from: at once if it is new, with the next assignment if it is being read.
    /// Call [`Offsets::changed`] or [`Offsets::restart`] to notify the consumer.
    pub fn start_at(&self, partition: Partition, at: i64) {
        match self.next.lock().entry(partition) {
            Entry::Occupied(_) => drop(self.resets.lock().insert(partition, at)),
            Entry::Vacant(new) => drop(new.insert(at)),
        }
    }

    /// Forgets the partitions that a topic no longer has.
    pub fn retain(&self, topic: Topic, partitions: &[i32]) {
        let is_kept = |at: &Partition| at.0 != topic || partitions.contains(&at.1);
        self.next.lock().retain(|at, _| is_kept(at));
    }

    /// Whether the consumer has yet to apply a new position.
    pub fn is_resetting(&self) -> bool {
        !self.resets.lock().is_empty()
    }

    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    pub fn restart(&self) {
        self.restart.store(true, Ordering::SeqCst);
        self.changed();
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    pub fn take_restart(&self) -> bool {
        self.restart.swap(false, Ordering::SeqCst)
    }

    pub fn request_audit(&self) {
        self.audit_requested.store(true, Ordering::SeqCst);
    }

    pub fn note_missing(&self) {
        self.is_missing.store(true, Ordering::SeqCst);
        self.request_audit();
    }

    pub fn take_missing(&self) -> bool {
        self.is_missing.swap(false, Ordering::SeqCst)
    }

    pub fn take_audit_request(&self) -> bool {
        self.audit_requested.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_only_advances_partitions_that_are_assigned() {
        let offsets = Offsets::default();
        offsets.advance([(&(Topic::Messages, 0), &5)]);
        assert_eq!(offsets.get((Topic::Messages, 0)), None);
        offsets.start_at((Topic::Messages, 0), 5);
        offsets.start_at((Topic::Typing, 1), 9);
        offsets.advance([(&(Topic::Messages, 0), &7)]);
        offsets.advance([(&(Topic::Messages, 0), &6)]);
        assert_eq!(
            offsets.all(),
            vec![((Topic::Messages, 0), 7), ((Topic::Typing, 1), 9)]
        );
        offsets.start_at((Topic::Messages, 0), 2);
        offsets.advance([(&(Topic::Messages, 0), &8)]);
        assert_eq!(
            offsets.assignment(),
            vec![((Topic::Messages, 0), 2), ((Topic::Typing, 1), 9)]
        );
        offsets.retain(Topic::Typing, &[0]);
        assert_eq!(offsets.all().len(), 1);
    }
}
