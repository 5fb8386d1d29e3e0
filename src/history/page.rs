//! Pages of a session's records, for clients that load messages over HTTP.
//!
//! The records after a cursor are in an order that is the same on all nodes, so that a client may ask another node for
//! each page: those of the session's own partition by offset, all others by timestamp, partition and offset.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::query::Collected;
use super::range::{self, Limits, NotHere, position_of};
use super::recent_log::RecentLog;
use crate::protocol::cursor::{CursorKey, Mark, Position};
use crate::protocol::frame;
use crate::protocol::record::Converter;
use crate::protocol::resume::Resume;

/// Messages of a session, the oldest first.
#[derive(Debug, Default)]
pub struct Page {
    /// The frames' payloads, each one JSON value.
    pub payloads: Vec<Bytes>,
    /// How many payloads were left out, as they are not one JSON value.
    pub left_out: u64,
    /// Whether there are more: newer ones, or older ones on a page of the last messages.
    pub has_more: bool,
    /// Where the page ends; `None` while the log is not known.
    pub cursor: Option<String>,
    bytes: usize,
}

impl Page {
    /// Nothing, and where live messages begin.
    pub fn empty(cursor: Option<String>) -> Self {
        Self {
            cursor,
            ..Self::default()
        }
    }

    /// Adds a payload; false if the page is full.
    pub fn add(&mut self, payload: Bytes, limits: &Limits) -> bool {
        if self.payloads.len() == limits.messages {
            return false;
        }
        if serde_json::from_slice::<IgnoredAny>(&payload).is_err() {
            self.left_out += 1;
            return true;
        }
        // With the comma. The first one is never too large, or a client would not get past it.
        let bytes = self.bytes + payload.len() + 1;
        if bytes > limits.bytes && !self.payloads.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.payloads.push(payload);
        true
    }
}

/// A record of the recent log.
#[derive(Clone, Copy)]
struct Record {
    position: u64,
    mark: Mark,
}

/// The first records of a session that follow what a client has.
pub fn after(log: &RecentLog, session_id: &str, since: &Resume, limits: &Limits) -> Result<Page, NotHere> {
    let since = position_of(log, session_id, since, 0)?;
    // Before the search: what is settled then has been found.
    let settled = log.settled_until();
    let key = log.cursor_key().ok_or(NotHere::Ahead)?;
    let end = log.end_position();
    let (mut own, mut others) = (Vec::new(), Vec::new());
    walk(log, session_id, |record| {
        let Mark {
            time,
            partition,
            offset,
        } = record.mark;
        if record.position < end && since.is_before(partition, offset, time) {
            let is_own = partition == since.partition;
            if is_own { &mut own } else { &mut others }.push(record);
        }
        true
    });
    {
        let state = log.lock();
        if state.log() != key.log() {
            return Err(NotHere::Ahead);
        }
        if !state.covers(&since) {
            return Err(NotHere::Older);
        }
    }
    own.reverse();
    others.sort_unstable_by_key(|record| record.mark);

    let (mut page, mut progress) = (Page::default(), Progress::from(since));
    let mut converter = Converter::default();
    for record in merge(own, others) {
        let payload = payload(log, &mut converter, record.position).ok_or(NotHere::Older)?;
        if payload.is_some_and(|payload| !page.add(payload, limits)) {
            page.has_more = true;
            break;
        }
        progress.pass(record.mark);
    }
    page.cursor = if page.has_more {
        Some(key.cursor(session_id, &progress.next(settled)))
    } else {
        let end = log.cursor_at(session_id, end);
        end.map(|(key, end)| key.cursor(session_id, &progress.end(end)))
    };
    Ok(page)
}

/// Where a page of records that are older than the recent log ends at the latest. To be asked for before they are read.
pub struct PageEnd {
    key: Arc<CursorKey>,
    position: Position,
    /// As [`RecentLog::settled_until`].
    settled: i64,
}

impl PageEnd {
    /// The position `end` of the recent log; `None` while the log is not known.
    pub fn new(log: &RecentLog, session_id: &str, end: u64) -> Option<Self> {
        let settled = log.settled_until();
        let (key, position) = log.cursor_at(session_id, end)?;
        Some(Self {
            key,
            position,
            settled,
        })
    }
}

/// A page of records that were read from the log.
pub fn of_log(session_id: &str, collected: Collected, end: &PageEnd) -> Page {
    let mut progress = collected.after.map(Progress::from);
    for (mark, _) in &collected.records {
        if let Some(progress) = &mut progress {
            progress.pass(*mark);
        }
    }
    let payload = |(_, frame): &(Mark, Bytes)| frame.slice_ref(frame::payload(frame));
    let position = match progress {
        Some(progress) if collected.has_more => progress.next(end.settled),
        Some(progress) => progress.end(end.position),
        None => end.position,
    };
    Page {
        payloads: collected.records.iter().map(payload).collect(),
        left_out: collected.left_out,
        has_more: collected.has_more,
        cursor: Some(end.key.cursor(session_id, &position)),
        bytes: 0,
    }
}

/// How far pages have got.
struct Progress {
    /// Where the page began.
    since: Position,
    reached: Position,
}

impl From<Position> for Progress {
    fn from(since: Position) -> Self {
        let reached = since;
        Self { since, reached }
    }
}

impl Progress {
    /// A record is on the page, or left out.
    fn pass(&mut self, mark: Mark) {
        if mark.partition == self.since.partition {
            self.reached.offset = mark.offset + 1;
        } else {
            self.reached.passed = Some(mark);
        }
    }

    /// Records of other partitions may come late. Pages go on without them, and the last one's cursor goes back to where
    /// the first of these pages may have missed some.
    fn go_back(&self) -> i64 {
        let passed = self.since.passed.filter(|passed| self.since.time < passed.time);
        passed.map_or(i64::MAX, |_| self.since.time)
    }

    /// Where a page ends that more records follow.
    fn next(mut self, settled: i64) -> Position {
        if let Some(passed) = self.reached.passed {
            self.reached.time = passed.time.min(settled).min(self.go_back());
        }
        self.reached
    }

    /// Where the last page ends.
    fn end(self, end: Position) -> Position {
        let time = end.time.min(self.go_back());
        Position { time, ..end }
    }
}

/// The last records of a session; `now` in milliseconds since 1970.
pub fn last(log: &RecentLog, session_id: &str, limits: &Limits, now: i64) -> Result<Page, NotHere> {
    if log.lock().log() == 0 {
        return Err(NotHere::Ahead);
    }
    let end = log.end_position();
    let mut converter = Converter::default();
    let mut wanted = limits.messages + 1;
    loop {
        let mut records = Vec::new();
        walk(log, session_id, |record| {
            if record.position < end {
                records.push(record.position);
            }
            records.len() < wanted
        });
        let mut page = Page::default();
        for &position in &records {
            let payload = payload(log, &mut converter, position).ok_or(NotHere::Older)?;
            if payload.is_some_and(|payload| !page.add(payload, limits)) {
                page.has_more = true;
                break;
            }
        }
        if !page.has_more && records.len() == wanted {
            // Some were left out.
            wanted *= 4;
            continue;
        }
        if !page.has_more && log.lock().complete_since() > now - limits.window_ms {
            if page.payloads.len() < limits.messages {
                return Err(NotHere::Older);
            }
            page.has_more = true;
        }
        page.payloads.reverse();
        page.cursor = log.cursor(session_id, end);
        return Ok(page);
    }
}

/// Calls `visit` with a session's records, the newest first, until it returns false.
fn walk(log: &RecentLog, session_id: &str, mut visit: impl FnMut(Record) -> bool) {
    range::walk(log, session_id, 0, |position, entry| {
        let mark = Mark {
            time: entry.time,
            partition: entry.partition,
            offset: entry.offset,
        };
        visit(Record { position, mark })
    });
}

/// Both in their order, the earlier one first.
fn merge(own: Vec<Record>, others: Vec<Record>) -> impl Iterator<Item = Record> {
    let (mut own, mut others) = (own.into_iter().peekable(), others.into_iter().peekable());
    std::iter::from_fn(move || match (own.peek(), others.peek()) {
        (Some(first), Some(other)) if other.mark.time < first.mark.time => others.next(),
        (Some(_), _) => own.next(),
        (None, _) => others.next(),
    })
}

/// The payload of a record as it was delivered: `None` if it is no longer here, `Some(None)` if it was passed over.
fn payload(log: &RecentLog, converter: &mut Converter, position: u64) -> Option<Option<Bytes>> {
    let (entry, bytes) = log.lock().bytes(position)?;
    if entry.is_legacy {
        return Some(converter.payload(&bytes).map(Bytes::from));
    }
    Some(Some(bytes.slice_ref(frame::payload(&bytes))))
}
