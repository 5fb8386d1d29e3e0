//! Where each partition is read next: kept by us, so that a consumer made anew goes on where the old one was.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::protocol::record::Topic;

pub type Partition = (Topic, i32);

#[derive(Default)]
pub struct Offsets {
    next: Mutex<BTreeMap<Partition, i64>>,
    /// Offsets that aren't there any more, and where to go on instead: taken over with the next assignment, since
    /// until then the consumer still writes where it was.
    resets: Mutex<BTreeMap<Partition, i64>>,
    /// Grows with each change of the watch's: the consumer assigns anew when it sees a new one.
    generation: AtomicU64,
    /// The consumer is to be made anew.
    restart: AtomicBool,
    /// The watch is to look at once.
    suspect: AtomicBool,
    /// The consumer has met an offset that isn't there, and reads that partition no more.
    is_missing: AtomicBool,
}

impl Offsets {
    /// What the consumer is to assign: [`Offsets::all`] after all resets.
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
            // A partition that the watch has taken away meanwhile stays away.
            if let Some(known) = next.get_mut(at) {
                *known = (*known).max(delivered);
            }
        }
    }

    /// Where to read a partition from: at once where it is new, with the next assignment where it is being read.
    /// [`Offsets::changed`] or [`Offsets::restart`] tells the consumer.
    pub fn start_at(&self, partition: Partition, at: i64) {
        match self.next.lock().entry(partition) {
            Entry::Occupied(_) => drop(self.resets.lock().insert(partition, at)),
            Entry::Vacant(new) => drop(new.insert(at)),
        }
    }

    /// Forgets the partitions that a topic no longer has.
    pub fn keep(&self, topic: Topic, partitions: &[i32]) {
        let is_kept = |at: &Partition| at.0 != topic || partitions.contains(&at.1);
        self.next.lock().retain(|at, _| is_kept(at));
    }

    /// Whether the consumer has yet to take over an offset.
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

    pub fn suspect(&self) {
        self.suspect.store(true, Ordering::SeqCst);
    }

    pub fn note_missing(&self) {
        self.is_missing.store(true, Ordering::SeqCst);
        self.suspect();
    }

    pub fn take_missing(&self) -> bool {
        self.is_missing.swap(false, Ordering::SeqCst)
    }

    pub fn take_suspect(&self) -> bool {
        self.suspect.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_only_moves_forward_on_partitions_it_was_given() {
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
        offsets.keep(Topic::Typing, &[0]);
        assert_eq!(offsets.all().len(), 1);
    }
}
