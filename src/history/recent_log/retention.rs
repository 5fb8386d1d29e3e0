//! How long records stay: segments are reused, the oldest first, to keep within `RECENT_LOG_BYTES`.

use std::sync::atomic::Ordering;

use super::{RecentLog, State};
use crate::clock;
use crate::history::segment::{Entry, LogRecord, Segment};

/// An entry has room for every so many bytes of a segment, so that small records do not need more memory.
const BYTES_PER_ENTRY: usize = 192;

impl RecentLog {
    /// Takes all of the memory at once, so that delivery need not wait for the kernel to provide it page by page.
    pub fn reserve(&self) {
        let mut state = self.state.lock();
        while state.memory() + segment_memory(self.segment_bytes) <= self.most_bytes {
            let segment = Segment::touched(self.segment_bytes, entries_of(self.segment_bytes));
            state.spare.push(segment);
        }
    }

    /// Starts a segment, and drops the oldest ones to keep within the limit.
    pub(super) fn add_segment(&self, state: &mut State, position: u64, record: &LogRecord<'_>) {
        let needed = record.session_id.len() + record.value.len() + 16;
        let bytes = self.segment_bytes.max(needed);
        state.close_last();
        let is_usual = bytes == self.segment_bytes;
        state.take_back(self.segment_bytes);
        while state.memory() > self.most_bytes && state.spare.pop().is_some() {}
        let mut segment = if is_usual { state.spare.pop() } else { None };
        // What is being delivered stays.
        let delivered = self.delivered.load(Ordering::Relaxed);
        while segment.is_none() && state.memory() + segment_memory(bytes) > self.most_bytes {
            let oldest = state.segments.front();
            if state.spare.pop().is_some() {
                // A longer record needs the memory.
            } else if oldest.is_some_and(|oldest| oldest.end() <= delivered) {
                state.drop_oldest();
                state.take_back(self.segment_bytes);
                segment = if is_usual { state.spare.pop() } else { None };
            } else {
                break;
            }
        }
        let mut segment = segment.unwrap_or_else(|| Segment::new(bytes, entries_of(bytes)));
        segment.first = position;
        state.segments.push_back(segment);
    }
}

fn entries_of(bytes: usize) -> usize {
    (bytes / BYTES_PER_ENTRY).max(1)
}

fn segment_memory(bytes: usize) -> usize {
    bytes + entries_of(bytes) * size_of::<Entry>()
}

impl State {
    pub(super) fn memory(&self) -> usize {
        let all = self.segments.iter().chain(&self.released).chain(&self.spare);
        self.buckets.len() * size_of::<u64>() + all.map(Segment::memory).sum::<usize>()
    }

    fn close_last(&mut self) {
        let ends = self.partitions.iter().map(|partition| partition.next).collect();
        if let Some(last) = self.segments.back_mut() {
            last.ends = ends;
        }
    }

    fn drop_oldest(&mut self) {
        let Some(mut oldest) = self.segments.pop_front() else {
            return;
        };
        for (known, &end) in self.partitions.iter_mut().zip(&oldest.ends) {
            known.complete_from = known.complete_from.max(end);
        }
        self.drop_until(oldest.newest);
        oldest.clear();
        self.released.push(oldest);
    }

    /// Makes dropped segments of this size whose bytes no reader holds ready for use; others of that kind are freed.
    fn take_back(&mut self, bytes: usize) {
        for mut segment in std::mem::take(&mut self.released) {
            if !segment.clear() {
                self.released.push(segment);
            } else if segment.capacity() == bytes {
                self.spare.push(segment);
            }
        }
    }

    /// Forgets all records.
    pub(super) fn forget(&mut self) {
        self.close_last();
        while !self.segments.is_empty() {
            self.drop_oldest();
        }
    }

    /// What precedes `end` is there only for replays that have begun.
    pub(super) fn hide(&mut self, end: u64) {
        self.hidden = end;
        for known in self.partitions.iter_mut().filter(|known| known.is_known()) {
            known.complete_from = known.next;
        }
        if let Some(newest) = self.segments.iter().map(|segment| segment.newest).max() {
            self.drop_until(newest);
        }
    }

    /// Records up to this timestamp are not all here.
    fn drop_until(&mut self, newest: i64) {
        // A timestamp in the future says nothing of others.
        let newest = newest.min(clock::unix_ms());
        self.dropped_until = self.dropped_until.max(newest.saturating_add(1));
        self.complete_since = self.complete_since.max(self.dropped_until);
    }
}
