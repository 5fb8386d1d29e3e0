//! The recent log: what this node has read lately from the messages topic, of all sessions, in memory.
//!
//! Records are numbered in the order in which they were read: such a number is a *position*. They are indexed by
//! buckets of sessions: a bucket has the position of its last record, and each record that of the one before it. So an
//! append is one copy and one write to a table of fixed size, and nothing has to be removed from the table when old
//! segments are reused.

mod retention;
mod search;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use foldhash::quality::RandomState;
use parking_lot::{Mutex, MutexGuard};

use super::partitioner;
use super::segment::{Entry, LogRecord, Segment};
use crate::clock;
use crate::protocol::cursor::{Cursor, CursorKey, Position};

/// Segments are this large, or a sixteenth of the log if that is less.
const SEGMENT_BYTES: usize = 1 << 20;
const MIN_SEGMENT_BYTES: usize = 16 << 10;
/// What a log without memory for old records takes: what is being delivered, and what replays from the log wait for.
const LEAST_BYTES: usize = 4 << 20;
/// A bucket has room for every so many bytes of the log.
const BYTES_PER_BUCKET: usize = 512;
const MIN_BUCKETS: usize = 64;

/// How far clocks of nodes, brokers and producers may differ, in milliseconds.
pub const CLOCK_SKEW_MS: i64 = 5_000;

/// There is no previous entry.
const NONE: u64 = u64::MAX;

/// The recent log of one node. One thread appends; any may read.
pub struct RecentLog {
    state: Mutex<State>,
    /// The position after the last appended record. It is written before the record's session is looked up: a session
    /// created later, or a member added later, sees it.
    end: Arc<AtomicU64>,
    /// The position before which everything has been handed to the members of its session.
    delivered: AtomicU64,
    /// See [`RecentLog::start_live`].
    live_from: AtomicU64,
    /// See [`RecentLog::set_read_until`].
    read_until: AtomicI64,
    hasher: RandomState,
    /// `RECENT_LOG_BYTES`.
    limit: usize,
    /// The memory that it may take.
    most_bytes: usize,
    segment_bytes: usize,
}

pub(super) struct State {
    segments: VecDeque<Segment>,
    /// Dropped segments whose bytes readers may still hold; they count as memory.
    released: Vec<Segment>,
    /// Empty segments, ready for use.
    spare: Vec<Segment>,
    /// The position of the last entry of each bucket.
    buckets: Vec<u64>,
    /// Records before this position are not searched for.
    hidden: u64,
    partitions: Vec<PartitionState>,
    /// Which log this is, and the key of its cursors; `None`: not known yet.
    key: Option<Arc<CursorKey>>,
    /// It is another one now, and what is here belongs to the old one.
    is_outdated: bool,
    /// How many partitions the topic has.
    count: i32,
    /// Records of any partition with this timestamp or a later one are all here, in milliseconds since 1970.
    complete_since: i64,
    /// The time after the newest record that was dropped.
    dropped_until: i64,
}

#[derive(Clone, Copy, Debug)]
struct PartitionState {
    /// The offset after the last record that was appended.
    next: i64,
    /// Records from this offset on are all here; `i64::MAX`: the partition is not read yet.
    complete_from: i64,
}

impl PartitionState {
    const UNKNOWN: Self = Self {
        next: 0,
        complete_from: i64::MAX,
    };

    fn is_known(&self) -> bool {
        self.complete_from < i64::MAX
    }
}

impl RecentLog {
    /// A log of at most `limit` bytes; with 0 nothing is found in it any more once it was delivered.
    pub fn new(limit: usize) -> Self {
        let most_bytes = if limit == 0 { LEAST_BYTES } else { limit };
        let segment_bytes = (most_bytes / 16).clamp(MIN_SEGMENT_BYTES, SEGMENT_BYTES);
        let buckets = (most_bytes / BYTES_PER_BUCKET)
            .next_power_of_two()
            .max(MIN_BUCKETS);
        Self {
            state: Mutex::new(State {
                segments: VecDeque::new(),
                released: Vec::new(),
                spare: Vec::new(),
                buckets: vec![NONE; buckets],
                hidden: 0,
                partitions: Vec::new(),
                key: None,
                is_outdated: false,
                count: 0,
                complete_since: i64::MAX,
                dropped_until: i64::MIN,
            }),
            end: Arc::default(),
            delivered: AtomicU64::new(0),
            live_from: AtomicU64::new(0),
            read_until: AtomicI64::new(i64::MIN),
            hasher: RandomState::default(),
            limit,
            most_bytes,
            segment_bytes,
        }
    }

    /// The position after the last appended record, shared.
    pub fn end(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.end)
    }

    pub fn end_position(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Whether records stay here after their delivery.
    pub fn keeps_records(&self) -> bool {
        self.limit > 0
    }

    /// Which log is read, and how many partitions it has. Another log than before: what is here is forgotten.
    pub fn set_log(&self, key: &Arc<CursorKey>, partitions: i32) {
        let mut state = self.state.lock();
        if state.key.as_ref().is_some_and(|old| old.log() != key.log()) {
            state.forget();
        }
        state.key = Some(Arc::clone(key));
        (state.count, state.is_outdated) = (partitions, false);
    }

    /// The log was made again: until [`RecentLog::set_log`], nothing is known.
    pub fn outdate(&self) {
        self.state.lock().is_outdated = true;
    }

    /// The log is in this process and has one partition: all of it is read here, and is here until it is dropped.
    pub fn set_whole_log(&self, key: &Arc<CursorKey>) {
        self.set_log(key, 1);
        self.continue_at(0, 0);
        self.set_complete_since(i64::MIN);
        self.set_read_until(i64::MAX);
    }

    /// A partition is read on from `offset`: if that is not where it was left, what precedes it is not all here.
    pub fn continue_at(&self, partition: i32, offset: i64) {
        let mut state = self.state.lock();
        let mut is_gap = false;
        if let Some(known) = state.partition(partition)
            && (known.next != offset || !known.is_known())
        {
            is_gap = known.is_known();
            (known.next, known.complete_from) = (offset, offset);
        }
        if is_gap {
            state.complete_since = state.complete_since.max(clock::unix_ms());
        }
    }

    /// All records of a partition before `offset` have been read.
    pub fn reached(&self, partition: i32, offset: i64) {
        if let Some(known) = self.state.lock().partition(partition) {
            known.next = known.next.max(offset);
        }
    }

    /// `RECENT_LOG_BYTES`.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Records with this timestamp or a later one are all here, but for those that were dropped.
    pub fn set_complete_since(&self, time: i64) {
        let mut state = self.state.lock();
        state.complete_since = time.max(state.dropped_until);
    }

    /// What was appended up to now is not sent to anyone live.
    pub fn start_live(&self) {
        let end = self.end.load(Ordering::Relaxed);
        self.live_from.store(end, Ordering::Release);
        self.delivered();
    }

    /// The position from which on records are live for a connection whose session has delivered up to this one: what all
    /// sessions have delivered is behind it, and so is what was read at the start.
    pub fn live_start(&self, delivered: u64) -> u64 {
        delivered.max(self.live_from()).max(self.delivered_end())
    }

    /// See [`RecentLog::start_live`].
    pub fn live_from(&self) -> u64 {
        self.live_from.load(Ordering::Acquire)
    }

    /// Whether it is known since when all records are here.
    pub fn has_start(&self) -> bool {
        self.state.lock().complete_since < i64::MAX
    }

    /// Everything that was in any partition at this time of this node's clock, in milliseconds since 1970, has been read.
    pub fn set_read_until(&self, time: i64) {
        self.read_until.fetch_max(time, Ordering::Relaxed);
    }

    /// Whether it is known which log is read.
    pub fn is_known(&self) -> bool {
        self.state.lock().log() != 0
    }

    /// Whether everything that was in the log at this time has been read.
    pub fn has_read(&self, time: i64) -> bool {
        self.state.lock().log() != 0 && self.read_until.load(Ordering::Relaxed) >= time
    }

    /// Appends a record and returns its position.
    pub fn append(&self, record: &LogRecord<'_>) -> u64 {
        let hash = self.hash(record.session_id);
        let mut state = self.state.lock();
        let position = self.end.load(Ordering::Relaxed);
        if !state.segments.back().is_some_and(|last| last.has_room(record)) {
            self.add_segment(&mut state, position, record);
        }
        let State {
            segments, buckets, ..
        } = &mut *state;
        let bucket = hash as usize & (buckets.len() - 1);
        let bucket = &mut buckets[bucket];
        let previous = std::mem::replace(bucket, position);
        if let Some(last) = segments.back_mut() {
            last.push(record, (hash >> 32) as u32, previous);
        }
        if let Some(known) = state.partition(record.partition) {
            known.next = record.offset + 1;
        }
        // Under the lock, so that a reader who sees the position finds the record.
        self.end.store(position + 1, Ordering::Release);
        position
    }

    /// A record that is passed over: it is not kept.
    pub fn skip(&self, partition: i32, offset: i64) {
        if let Some(known) = self.state.lock().partition(partition) {
            known.next = offset + 1;
        }
    }

    /// Everything appended so far has been handed to the members of its session.
    pub fn delivered(&self) {
        let end = self.end.load(Ordering::Relaxed);
        self.delivered.store(end, Ordering::Release);
        if self.limit == 0 {
            self.state.lock().hide(end);
        }
    }

    /// The position before which everything has been handed to the members of its session.
    pub fn delivered_end(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    /// Bytes of memory, and the timestamp of the oldest segment's newest record.
    pub fn usage(&self) -> (usize, Option<i64>) {
        let state = self.state.lock();
        let oldest = state.segments.front().map(|segment| segment.newest);
        (state.memory(), oldest.filter(|&time| time > i64::MIN))
    }

    /// What a client that has got everything of its session before `position` has: `None` while the log is not known.
    pub fn cursor(&self, session_id: &str, position: u64) -> Option<String> {
        let (key, position) = self.cursor_at(session_id, position)?;
        Some(key.cursor(session_id, &position))
    }

    /// Whether a cursor was made for this session, of the log that is read.
    pub fn has_signed(&self, session_id: &str, cursor: &Cursor) -> bool {
        let key = self.cursor_key();
        key.is_some_and(|key| key.has_signed(session_id, cursor))
    }

    /// The key of cursors; `None` while the log is not known.
    pub(super) fn cursor_key(&self) -> Option<Arc<CursorKey>> {
        self.state.lock().key().cloned()
    }

    /// The position of a cursor, which is signed without the lock.
    pub(super) fn cursor_at(&self, session_id: &str, position: u64) -> Option<(Arc<CursorKey>, Position)> {
        let hash = self.hash(session_id);
        let read_until = self.read_until.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        let key = Arc::clone(state.key()?);
        let partition = partitioner::partition(session_id, state.count);
        let known = state.partition(partition).filter(|known| known.is_known());
        let mut offset = known?.next;
        let mut time = read_until;
        let is_complete = state.search_since(session_id, hash, position, |_, entry| {
            if entry.partition == partition {
                offset = offset.min(entry.offset);
            } else {
                time = time.min(entry.time);
            }
        });
        if !is_complete {
            return None;
        }
        let position = Position {
            partition,
            offset,
            time: time.saturating_sub(CLOCK_SKEW_MS).max(0),
            passed: None,
        };
        Some((key, position))
    }

    /// Records with an earlier timestamp have all been read, in milliseconds since 1970.
    pub(super) fn settled_until(&self) -> i64 {
        let read_until = self.read_until.load(Ordering::Relaxed).min(clock::unix_ms());
        read_until.saturating_sub(CLOCK_SKEW_MS)
    }

    /// The session's own partition, that of its keyed records.
    pub fn partition_of(&self, session_id: &str) -> i32 {
        partitioner::partition(session_id, self.state.lock().count.max(1))
    }

    /// The offset of each partition up to which a session's records precede `position`; `None` if later ones are gone, or
    /// a partition is not read yet.
    pub fn offsets_at(&self, session_id: &str, position: u64) -> Option<Vec<i64>> {
        let state = self.state.lock();
        let count = usize::try_from(state.count).unwrap_or(0);
        if state.partitions.len() < count
            || !state.partitions.iter().take(count).all(PartitionState::is_known)
        {
            return None;
        }
        let mut offsets: Vec<_> = state.partitions.iter().map(|known| known.next).collect();
        let is_complete = state.search_since(session_id, self.hash(session_id), position, |_, entry| {
            let at = usize::try_from(entry.partition).ok();
            if let Some(offset) = at.and_then(|at| offsets.get_mut(at)) {
                *offset = (*offset).min(entry.offset);
            }
        });
        is_complete.then_some(offsets)
    }

    pub(super) fn hash(&self, session_id: &str) -> u64 {
        self.hasher.hash_one(session_id)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn partition(&mut self, partition: i32) -> Option<&mut PartitionState> {
        let at = usize::try_from(partition).ok()?;
        if at >= self.partitions.len() {
            // The broker numbers partitions from 0 on.
            self.partitions.resize(at + 1, PartitionState::UNKNOWN);
        }
        self.partitions.get_mut(at)
    }

    /// A record's bytes: a frame, or the value of a legacy record. `None` if it is no longer here.
    pub fn bytes(&mut self, position: u64) -> Option<(Entry, Bytes)> {
        let number = self.segments.partition_point(|segment| segment.first <= position);
        let segment = self.segments.get_mut(number.checked_sub(1)?)?;
        let entry = *segment.get(position)?;
        Some((entry, segment.bytes(&entry)))
    }

    /// Which log this is; 0: not known.
    pub fn log(&self) -> u64 {
        self.key().map_or(0, |key| key.log())
    }

    fn key(&self) -> Option<&Arc<CursorKey>> {
        self.key.as_ref().filter(|_| !self.is_outdated)
    }

    pub fn has_partition(&self, partition: i32) -> bool {
        (0..self.count).contains(&partition)
    }

    /// The offset after the last record of a partition that was read.
    pub fn next_offset(&self, partition: i32) -> i64 {
        let at = usize::try_from(partition).ok();
        at.and_then(|at| self.partitions.get(at))
            .map_or(0, |known| known.next)
    }

    /// Whether all records of a session that follow `position` are here.
    pub fn covers(&self, position: &Position) -> bool {
        let at = usize::try_from(position.partition).ok();
        let known = at.and_then(|at| self.partitions.get(at));
        let is_exact = known.is_some_and(|known| known.complete_from <= position.offset);
        is_exact && (self.count == 1 || self.complete_since <= position.time)
    }

    /// The time since which all records are here.
    pub fn complete_since(&self) -> i64 {
        self.complete_since
    }
}
