//! A client's question for what is older than the recent log, which the reader of the log answers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::message_id::IdSearch;
use super::range::Limits;
use super::recent_log::CLOCK_SKEW_MS;
use crate::protocol::cursor::{Mark, Position};
use crate::protocol::frame;
use crate::protocol::ids::SessionId;
use crate::protocol::record::{Converter, Form};
use crate::protocol::resume::{NotResumed, Resume};

/// The records, or why there are none.
pub type Answer = Result<Collected, NotResumed>;

/// What one client wants from the log.
pub struct LogQuery {
    pub session_id: SessionId,
    pub resume: Resume,
    pub wanted: Wanted,
    /// The offset of each partition up to which records are wanted.
    pub ends: Vec<i64>,
    pub limits: Limits,
    pub deadline: Instant,
    pub reply: Box<dyn FnOnce(Answer) + Send>,
}

/// How much of what a client lacks is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it, or nothing if that is too much.
    All,
    /// As much as the limits allow: the first records that follow, or the last ones of the session. Only JSON counts.
    Page,
}

/// Records of a session.
#[derive(Debug, Default)]
pub struct Collected {
    /// In their order, with their own timestamps.
    pub records: Vec<(Mark, Bytes)>,
    /// What the client has; `None` if it asks for the last records.
    pub after: Option<Position>,
    /// There are more than the limits allow.
    pub has_more: bool,
    /// How many were left out as they are not one JSON value.
    pub left_out: u64,
}

impl Collected {
    pub fn into_frames(self) -> VecDeque<Bytes> {
        self.records.into_iter().map(|(_, frame)| frame).collect()
    }
}

impl LogQuery {
    /// The timestamp from which on records have to be read, in milliseconds since 1970; `now` is such a time, too.
    ///
    /// # Errors
    ///
    /// That is too far back.
    pub fn start_time(&self, now: i64) -> Result<i64, NotResumed> {
        let oldest = now - self.limits.window_ms;
        let time = match &self.resume {
            Resume::Cursor { cursor, .. } => {
                let position = &cursor.position;
                position.passed.map_or(position.time, |passed| passed.time)
            }
            Resume::Message { time: Some(time), .. } => time.saturating_sub(CLOCK_SKEW_MS),
            // It may be anywhere.
            Resume::Message { time: None, .. } | Resume::Rewind(_) => return Ok(oldest),
            Resume::Invalid(_) => return Err(NotResumed::Invalid),
        };
        // An id's time is somewhat before the record's.
        if time < oldest - CLOCK_SKEW_MS {
            return Err(NotResumed::TooOld);
        }
        Ok(time)
    }

    /// The exact start in one partition, if it is known.
    pub fn start_offset(&self) -> Option<(i32, i64)> {
        match &self.resume {
            Resume::Cursor { cursor, .. } => Some((cursor.position.partition, cursor.position.offset)),
            _ => None,
        }
    }

    /// The offset up to which records of a partition are wanted.
    pub fn end(&self, partition: i32) -> i64 {
        let end = usize::try_from(partition).ok().and_then(|at| self.ends.get(at));
        end.copied().unwrap_or(0)
    }

    /// The id to search for, while it is not known where that message is.
    fn message(&self) -> Option<&str> {
        match &self.resume {
            Resume::Message { id, .. } => Some(id),
            _ => None,
        }
    }

    /// How many of the last records are wanted, if it is them.
    fn rewind(&self) -> Option<usize> {
        match self.resume {
            Resume::Rewind(count) => Some(count),
            _ => None,
        }
    }
}

/// Collects what one query wants while the log is read, partition by partition in their order.
pub struct Collector {
    query: LogQuery,
    /// By their order: a partition's own, and by time between partitions.
    found: BTreeMap<Mark, Found>,
    bytes: usize,
    /// What the client has: known from the start for a cursor, else once its message is found.
    after: Option<Position>,
    /// Records that may follow the client's message, which is not found yet, by partition.
    before_message: HashMap<i32, BeforeMessage>,
    /// The newest timestamp of each partition.
    newest: HashMap<i32, i64>,
    /// There is no room for records from here on, or up to here if the last ones are wanted.
    full_at: Option<Mark>,
    left_out: u64,
    refused: Option<NotResumed>,
}

/// As many records before the client's message are kept at least, for short pages.
const LEAST_BEFORE: usize = 1_000;

/// Records of one partition that were read before the client's message: no more than a replay may have.
#[derive(Default)]
struct BeforeMessage {
    records: VecDeque<(Mark, Bytes)>,
    bytes: usize,
    /// The newest timestamp of those for which there was no room.
    dropped_until: Option<i64>,
}

impl BeforeMessage {
    fn add(&mut self, mark: Mark, frame: Bytes, limits: &Limits) {
        self.bytes += frame.len();
        self.records.push_back((mark, frame));
        let most = limits.messages.max(LEAST_BEFORE);
        while self.records.len() > most || self.bytes > limits.bytes {
            let Some((mark, frame)) = self.records.pop_front() else {
                return;
            };
            self.bytes -= frame.len();
            self.dropped_until = self.dropped_until.max(Some(mark.time));
        }
    }
}

struct Found {
    /// The record's own timestamp.
    time: i64,
    frame: Bytes,
}

impl Collector {
    pub fn new(query: LogQuery) -> Self {
        let after = match &query.resume {
            Resume::Cursor { cursor, .. } => Some(cursor.position),
            _ => None,
        };
        Self {
            query,
            found: BTreeMap::new(),
            bytes: 0,
            after,
            before_message: HashMap::new(),
            newest: HashMap::new(),
            full_at: None,
            left_out: 0,
            refused: None,
        }
    }

    pub fn query(&self) -> &LogQuery {
        &self.query
    }

    /// Nothing more is collected, and this is the answer.
    pub fn refuse(&mut self, why: NotResumed) {
        self.refused.get_or_insert(why);
        self.found.clear();
        self.before_message.clear();
        self.bytes = 0;
    }

    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// The time of the client's message, in milliseconds since 1970, if it is known and the message was not found.
    pub fn unknown_since(&self) -> Option<i64> {
        match &self.query.resume {
            Resume::Message { time, .. } if self.after.is_none() && !self.is_refused() => *time,
            _ => None,
        }
    }

    /// Adds a record of the session; `frame` is made only if it is wanted.
    pub fn add(&mut self, mark: Mark, frame: impl FnOnce() -> Bytes) {
        if self.is_refused() || mark.offset >= self.query.end(mark.partition) {
            return;
        }
        match self.query.message() {
            Some(id) if self.after.is_none() => {
                let frame = frame();
                if IdSearch::new(id).is_in(Form::Native, &frame) == Ok(true) {
                    self.found_message(mark);
                } else if self.may_follow_message(mark) {
                    let before = self.before_message.entry(mark.partition).or_default();
                    before.add(mark, frame, &self.query.limits);
                }
            }
            _ => self.insert(mark, frame),
        }
    }

    /// Whether a record that was read before the client's message may follow it: in another partition.
    fn may_follow_message(&self, mark: Mark) -> bool {
        match &self.query.resume {
            // The message's record may be that much older than its id, and then as much is to spare.
            Resume::Message { time: Some(time), .. } => mark.time >= time.saturating_sub(2 * CLOCK_SKEW_MS),
            _ => true,
        }
    }

    /// The client's message: what follows it is wanted.
    fn found_message(&mut self, mark: Mark) {
        let time = mark.time.saturating_sub(CLOCK_SKEW_MS);
        self.after = Some(Position {
            partition: mark.partition,
            offset: mark.offset + 1,
            time,
            passed: None,
        });
        for (partition, before) in std::mem::take(&mut self.before_message) {
            let follows = before.dropped_until.is_some_and(|dropped| dropped >= time);
            if follows && partition != mark.partition {
                return self.refuse(NotResumed::TooMany);
            }
            for (mark, frame) in before.records {
                self.insert(mark, || frame);
            }
        }
    }

    fn insert(&mut self, mark: Mark, frame: impl FnOnce() -> Bytes) {
        let follows = |after: Position| after.is_before(mark.partition, mark.offset, mark.time);
        if !self.after.is_none_or(follows) {
            return;
        }
        let key = self.key(mark);
        if self.is_past(key) {
            return;
        }
        let frame = frame();
        if self.query.wanted == Wanted::Page
            && serde_json::from_slice::<IgnoredAny>(frame::payload(&frame)).is_err()
        {
            self.left_out += 1;
            return;
        }
        self.bytes += frame.len();
        let time = mark.time;
        self.found.insert(key, Found { time, frame });
        self.keep_within_limits();
    }

    /// The place of a record among the others. A page goes on by offset in the partition of its cursor, and by timestamp
    /// in all others; elsewhere, timestamps never put a record before an earlier one of its partition.
    fn key(&mut self, mark: Mark) -> Mark {
        let newest = self.newest.entry(mark.partition).or_insert(mark.time);
        *newest = mark.time.max(*newest);
        let goes_by_time = self.query.wanted == Wanted::Page
            && self.after.is_some_and(|after| after.partition != mark.partition);
        let time = if goes_by_time { mark.time } else { *newest };
        Mark { time, ..mark }
    }

    /// Whether there is no room for it.
    fn is_past(&self, key: Mark) -> bool {
        let is_last = self.query.rewind().is_some();
        self.full_at
            .is_some_and(|full_at| if is_last { key <= full_at } else { key >= full_at })
    }

    fn is_too_much(&self) -> bool {
        let limits = &self.query.limits;
        self.found.len() > limits.messages || self.bytes > limits.bytes
    }

    fn keep_within_limits(&mut self) {
        match (self.query.wanted, self.query.rewind()) {
            (Wanted::All, None) => {
                if self.is_too_much() {
                    self.refuse(NotResumed::TooMany);
                }
            }
            // Whether they are too large is known only at the end.
            (Wanted::All, Some(count)) => {
                while self.found.len() > count {
                    let dropped = self.found.pop_first();
                    self.note_dropped(dropped);
                }
            }
            // A single one is never too large, or a client would not get past it.
            (Wanted::Page, rewind) => {
                while self.is_too_much() && self.found.len() > 1 {
                    let dropped = match rewind {
                        Some(_) => self.found.pop_first(),
                        None => self.found.pop_last(),
                    };
                    self.note_dropped(dropped);
                }
            }
        }
    }

    fn note_dropped(&mut self, dropped: Option<(Mark, Found)>) {
        if let Some((key, found)) = dropped {
            self.bytes -= found.frame.len();
            self.full_at = Some(key);
        }
    }

    /// Answers, after everything has been read.
    pub fn finish(self) {
        let answer = if let Some(why) = self.refused {
            Err(why)
        } else if self.after.is_none() && self.query.message().is_some() {
            Err(NotResumed::UnknownMessage)
        } else if self.query.wanted == Wanted::All && self.is_too_much() {
            Err(NotResumed::TooMany)
        } else {
            let records = self.found.into_iter().map(|(key, Found { time, frame })| {
                let mark = Mark { time, ..key };
                (mark, frame)
            });
            Ok(Collected {
                records: records.collect(),
                after: self.after,
                has_more: self.full_at.is_some(),
                left_out: self.left_out,
            })
        };
        (self.query.reply)(answer);
    }
}

/// The session of a record and its frame, if `wanted`: the frame is made only then.
pub fn frame_of(
    converter: &mut Converter,
    form: Form,
    key: Option<&[u8]>,
    value: &[u8],
    wanted: impl Fn(&str) -> bool,
) -> Option<(SessionId, Bytes)> {
    use crate::protocol::record::native_session;
    match form {
        Form::Native => {
            let session_id = native_session(key).ok()?;
            let is_wanted = wanted(&session_id) && simdutf8::basic::from_utf8(value).is_ok();
            let session_id = is_wanted.then(|| SessionId::parse(&session_id)).flatten()?;
            Some((session_id, frame::text(value)))
        }
        Form::Legacy => {
            let (session_id, payload) = converter.message(value, wanted).ok().flatten()?;
            Some((session_id, frame::text(&payload)))
        }
        Form::Unknown => None,
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
