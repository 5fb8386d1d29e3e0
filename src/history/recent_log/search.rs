//! Finds a session's entries, the newest first.

use super::{NONE, State};
use crate::history::segment::{Entry, Segment};
use crate::protocol::cursor::Position;

/// How many entries a search looks at: it holds the lock that delivery needs.
const MAX_SEARCH: usize = 10_000;

/// Where a walk along the entries of a bucket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WalkEnd {
    /// At its start, or where the visitor wanted.
    Reached,
    /// At an entry that is no longer here.
    Dropped,
    /// After as many entries as a walk may look at, before this one.
    Unfinished(u64),
}

impl State {
    /// Calls `visit` with the session's records from `start` on, the newest first. False if some of them may be gone, or
    /// there are more entries than a search may look at.
    pub fn search_since(
        &self,
        session_id: &str,
        hash: u64,
        start: u64,
        mut visit: impl FnMut(u64, &Entry),
    ) -> bool {
        let end = self.walk(None, session_id, hash, start, |at, entry| {
            visit(at, entry);
            true
        });
        end == WalkEnd::Reached
    }

    /// Calls `visit` with the session's records from `start` on, the newest first, until it returns false. `from`: where an
    /// earlier search stopped. Returns where it has to go on: a search looks at so many entries at most.
    pub fn search_from(
        &self,
        from: Option<u64>,
        session_id: &str,
        hash: u64,
        start: u64,
        visit: impl FnMut(u64, &Entry) -> bool,
    ) -> Option<u64> {
        match self.walk(from, session_id, hash, start.max(self.hidden), visit) {
            WalkEnd::Unfinished(at) => Some(at),
            WalkEnd::Reached | WalkEnd::Dropped => None,
        }
    }

    fn walk(
        &self,
        from: Option<u64>,
        session_id: &str,
        hash: u64,
        start: u64,
        mut visit: impl FnMut(u64, &Entry) -> bool,
    ) -> WalkEnd {
        let mut at = from.unwrap_or_else(|| self.buckets[hash as usize & (self.buckets.len() - 1)]);
        for _ in 0..MAX_SEARCH {
            if at == NONE || at < start {
                return WalkEnd::Reached;
            }
            let Some((segment, entry)) = self.entry(at) else {
                return WalkEnd::Dropped;
            };
            if entry.hash == (hash >> 32) as u32 && segment.is_of(entry, session_id) && !visit(at, entry) {
                return WalkEnd::Reached;
            }
            at = entry.previous;
        }
        WalkEnd::Unfinished(at)
    }

    /// An entry that is still here.
    fn entry(&self, position: u64) -> Option<(&Segment, &Entry)> {
        let number = self.segments.partition_point(|segment| segment.first <= position);
        let segment = self.segments.get(number.checked_sub(1)?)?;
        Some((segment, segment.get(position)?))
    }

    /// The position before which all records have an earlier timestamp than this.
    pub fn first_since(&self, time: i64) -> u64 {
        let recent = self.segments.iter().find(|segment| segment.newest >= time);
        recent.map_or(u64::MAX, |segment| segment.first)
    }

    /// The position before which no records of other partitions follow this position in the log.
    pub fn others_from(&self, position: &Position) -> u64 {
        if self.count == 1 {
            return u64::MAX;
        }
        self.first_since(position.passed.map_or(position.time, |passed| passed.time))
    }
}
