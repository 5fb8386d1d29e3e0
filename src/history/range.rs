//! Finds the records that follow what a client has, and counts them before the first is sent.

use super::message_id::{IdSearch, TooLong};
use super::recent_log::{CLOCK_SKEW_MS, RecentLog};
use super::segment::Entry;
use crate::protocol::cursor::{Cursor, Position};
use crate::protocol::resume::{NotResumed, Resume};

/// How many records are searched for an id before the lock is released for a moment.
const STEP: usize = 64;
/// So many records are searched at once, by the thread that serves others, too.
const QUICK: usize = 256;
/// How many of a session's newest records are searched for a message that a user has read, and how many bytes of those
/// that do not begin with their id.
const SEARCHED: usize = 1_000;
const SEARCHED_BYTES: usize = 1 << 20;

/// How much is replayed at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `RESUME_MAX_MESSAGES`.
    pub messages: usize,
    /// `RESUME_MAX_BYTES`.
    pub bytes: usize,
    /// `RESUME_WINDOW`, in milliseconds.
    pub window_ms: i64,
}

/// Why the recent log does not have what a client lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHere {
    Refused(NotResumed),
    /// This node has not read as far as the client has.
    Ahead,
    /// It has, but some of what the client has is still being delivered here: it would come again, live.
    Undelivered,
    /// The client is further back than the recent log goes.
    Older,
}

/// The positions of a session's records before `end` that follow what the client has, in their order; `now` in
/// milliseconds since 1970. A message is searched for from the position `from` on: it is not before that.
pub fn find(
    log: &RecentLog,
    session_id: &str,
    resume: &Resume,
    (from, end): (u64, u64),
    limits: &Limits,
    now: i64,
) -> Result<Vec<u64>, NotHere> {
    match resume {
        Resume::Rewind(count) => last(log, session_id, *count, end, limits, now),
        _ => {
            let position = position_of(log, session_id, resume, from)?;
            after(log, session_id, &position, end, limits)
        }
    }
}

/// Calls `visit` with a session's records from the position `start` on, the newest first, until it returns false. The
/// lock that delivery needs is released from time to time, and not held between two calls for long.
pub(super) fn walk(
    log: &RecentLog,
    session_id: &str,
    start: u64,
    mut visit: impl FnMut(u64, &Entry) -> bool,
) {
    let hash = log.hash(session_id);
    let mut from = None;
    loop {
        let state = log.lock();
        from = state.search_from(from, session_id, hash, start, &mut visit);
        if from.is_none() {
            return;
        }
    }
}

/// Where a client is that has got this much; otherwise why that is not known here.
pub(super) fn position_of(
    log: &RecentLog,
    session_id: &str,
    resume: &Resume,
    from: u64,
) -> Result<Position, NotHere> {
    match resume {
        Resume::Cursor { cursor, .. } => position_of_cursor(log, session_id, cursor),
        Resume::Message { id, time } => position_of_message(log, session_id, id, *time, from),
        Resume::Rewind(_) | Resume::Invalid(_) => Err(NotHere::Refused(NotResumed::Invalid)),
    }
}

fn position_of_cursor(log: &RecentLog, session_id: &str, cursor: &Cursor) -> Result<Position, NotHere> {
    let Some(key) = log.cursor_key() else {
        return Err(NotHere::Ahead);
    };
    // Nobody has the key of a log that is gone.
    if key.log() == cursor.log && !key.has_signed(session_id, cursor) {
        return Err(NotHere::Refused(NotResumed::Invalid));
    }
    let state = log.lock();
    if state.log() == 0 {
        return Err(NotHere::Ahead);
    }
    // It is signed where these are the same: otherwise the log has become another one just now.
    if key.log() != state.log()
        || state.log() != cursor.log
        || !state.has_partition(cursor.position.partition)
    {
        return Err(NotHere::Refused(NotResumed::UnknownMessage));
    }
    if state.next_offset(cursor.position.partition) < cursor.position.offset {
        return Err(NotHere::Ahead);
    }
    Ok(cursor.position)
}

/// The records that follow a position.
fn after(
    log: &RecentLog,
    session_id: &str,
    position: &Position,
    end: u64,
    limits: &Limits,
) -> Result<Vec<u64>, NotHere> {
    let mut is_delivered = true;
    let follows = |entry: &Entry| position.is_before(entry.partition, entry.offset, entry.time);
    let others_from = {
        let state = log.lock();
        let hash = log.hash(session_id);
        let is_all = state.search_since(session_id, hash, end, |_, entry| is_delivered &= follows(entry));
        if !is_all || !is_delivered {
            return Err(NotHere::Undelivered);
        }
        if !state.covers(position) {
            return Err(NotHere::Older);
        }
        state.others_from(position)
    };
    let (mut count, mut has_passed) = (Counted::new(limits), false);
    walk(log, session_id, 0, |at, entry| {
        if at >= end {
            return true;
        }
        if follows(entry) {
            return count.add(at, entry.len());
        }
        has_passed |= entry.partition == position.partition;
        !has_passed || at >= others_from
    });
    if !count.is_within {
        return Err(NotHere::Refused(NotResumed::TooMany));
    }
    // Some may have been dropped meanwhile.
    if log.lock().covers(position) {
        Ok(count.into_positions())
    } else {
        Err(NotHere::Older)
    }
}

fn position_of_message(
    log: &RecentLog,
    session_id: &str,
    id: &str,
    time: Option<i64>,
    from: u64,
) -> Result<Position, NotHere> {
    let since = earliest(time);
    if log.lock().log() == 0 {
        return Err(NotHere::Ahead);
    }
    let start = first_position(log, since, from);
    let mut search = IdSearch::new(id);
    if let Some(entry) = find_record(log, session_id, &mut search, start, usize::MAX)? {
        return Ok(Position {
            partition: entry.partition,
            offset: entry.offset + 1,
            time: entry.time.saturating_sub(CLOCK_SKEW_MS),
            passed: None,
        });
    }
    let state = log.lock();
    match since {
        // Another node may have read further.
        Some(since) if state.complete_since() <= since => Err(NotHere::Ahead),
        _ => Err(NotHere::Older),
    }
}

/// The earliest time that the record of a message may have whose id has this time: that is at most so much later.
fn earliest(time: Option<i64>) -> Option<i64> {
    time.map(|time| time.saturating_sub(CLOCK_SKEW_MS))
}

/// The position of the first record since then, which is not before `from`.
fn first_position(log: &RecentLog, since: Option<i64>, from: u64) -> u64 {
    from.max(since.map_or(0, |since| log.lock().first_since(since)))
}

/// Whether few records have to be searched to find what a client has: that holds up nobody.
pub fn is_quick(log: &RecentLog, session_id: &str, resume: &Resume, from: u64) -> bool {
    let Resume::Message { time, .. } = resume else {
        return true;
    };
    let (start, mut left) = (first_position(log, earliest(*time), from), QUICK);
    walk(log, session_id, start, |_, _| {
        left -= 1;
        left > 0
    });
    left > 0
}

/// The timestamp of a message's record, in milliseconds since 1970, and its offset, if it is among the session's newest
/// messages that are still here.
pub fn find_message(log: &RecentLog, session_id: &str, id: &str) -> Option<(i64, i64)> {
    let mut search = IdSearch::within(id, SEARCHED_BYTES);
    let found = find_record(log, session_id, &mut search, 0, SEARCHED);
    let entry = found.ok().flatten()?;
    Some((entry.time, entry.offset))
}

/// The record of a message at the position `start` or later, among the session's newest `most`.
fn find_record(
    log: &RecentLog,
    session_id: &str,
    search: &mut IdSearch<'_>,
    start: u64,
    most: usize,
) -> Result<Option<Entry>, NotHere> {
    let mut positions = Vec::new();
    walk(log, session_id, start, |at, _| {
        positions.push(at);
        positions.len() < most
    });
    for some in positions.chunks(STEP) {
        // Delivery needs the lock: the search is made without it.
        let some: Vec<_> = {
            let mut state = log.lock();
            some.iter().map(|&at| state.bytes(at)).collect()
        };
        for found in some {
            // It may have been dropped meanwhile: then so have all older ones.
            let Some((entry, bytes)) = found else {
                return Err(NotHere::Older);
            };
            match search.is_in(entry.form(), &bytes) {
                Ok(true) => return Ok(Some(entry)),
                Ok(false) => {}
                Err(TooLong) => return Ok(None),
            }
        }
    }
    Ok(None)
}

fn last(
    log: &RecentLog,
    session_id: &str,
    count: usize,
    end: u64,
    limits: &Limits,
    now: i64,
) -> Result<Vec<u64>, NotHere> {
    let mut counted = Counted::new(limits);
    if log.lock().log() == 0 {
        return Err(NotHere::Ahead);
    }
    walk(log, session_id, 0, |at, entry| {
        if at >= end {
            return true;
        }
        counted.add(at, entry.len()) && counted.positions.len() < count
    });
    if !counted.is_within {
        return Err(NotHere::Refused(NotResumed::TooMany));
    }
    let is_all = counted.positions.len() == count || log.lock().complete_since() <= now - limits.window_ms;
    if is_all {
        Ok(counted.into_positions())
    } else {
        Err(NotHere::Older)
    }
}

/// Positions, the newest first, and whether they are within the limits.
struct Counted {
    positions: Vec<u64>,
    bytes: usize,
    is_within: bool,
    limits: Limits,
}

impl Counted {
    fn new(limits: &Limits) -> Self {
        Self {
            positions: Vec::new(),
            bytes: 0,
            is_within: true,
            limits: *limits,
        }
    }

    /// False if that is one too many.
    fn add(&mut self, position: u64, bytes: usize) -> bool {
        self.bytes += bytes;
        self.is_within = self.positions.len() < self.limits.messages && self.bytes <= self.limits.bytes;
        if self.is_within {
            self.positions.push(position);
        }
        self.is_within
    }

    fn into_positions(mut self) -> Vec<u64> {
        self.positions.reverse();
        self.positions
    }
}
