//! A client's question for what is older than the recent log, which the reader of the log answers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::range::{Limits, message_id};
use super::recent_log::CLOCK_SKEW_MS;
use crate::protocol::cursor::Position;
use crate::protocol::frame;
use crate::protocol::ids::SessionId;
use crate::protocol::record::{Converter, Form};
use crate::protocol::resume::{NotResumed, Resume};

/// Frames in the log's order, or why there are none.
pub type Answer = Result<VecDeque<Bytes>, NotResumed>;

/// What one client wants from the log.
pub struct LogQuery {
    pub session_id: SessionId,
    pub resume: Resume,
    /// The offset of each partition up to which records are wanted.
    pub ends: Vec<i64>,
    pub limits: Limits,
    pub deadline: Instant,
    pub reply: Box<dyn FnOnce(Answer) + Send>,
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
            Resume::Cursor { cursor, .. } => cursor.position.time,
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
}

/// A record of the session, as it was read.
struct Found {
    partition: i32,
    offset: i64,
    time: i64,
    frame: Bytes,
}

/// Collects what one query wants while the log is read, partition by partition in their order.
pub struct Collector {
    query: LogQuery,
    found: Vec<Found>,
    bytes: usize,
    /// What the client has: known from the start for a cursor, else once its message is found.
    after: Option<Position>,
    refused: Option<NotResumed>,
}

impl Collector {
    pub fn new(query: LogQuery) -> Self {
        let after = match &query.resume {
            Resume::Cursor { cursor, .. } => Some(cursor.position),
            _ => None,
        };
        Self {
            query,
            found: Vec::new(),
            bytes: 0,
            after,
            refused: None,
        }
    }

    pub fn query(&self) -> &LogQuery {
        &self.query
    }

    pub fn deadline(&self) -> Instant {
        self.query.deadline
    }

    /// Nothing more is collected, and this is the answer.
    pub fn refuse(&mut self, why: NotResumed) {
        self.refused.get_or_insert(why);
        self.found = Vec::new();
        self.bytes = 0;
    }

    /// Adds a record of the session; `frame` is made only if it is wanted.
    pub fn add(
        &mut self,
        (partition, offset, time): (i32, i64, i64),
        converter: &mut Converter,
        frame: impl FnOnce() -> Bytes,
    ) {
        if self.refused.is_some() || offset >= self.query.end(partition) {
            return;
        }
        if self
            .after
            .is_some_and(|after| !after.is_before(partition, offset, time))
        {
            return;
        }
        let frame = frame();
        if self.after.is_none()
            && let Resume::Message { id, .. } = &self.query.resume
            && memchr::memmem::find(&frame, id.as_bytes()).is_some()
            && message_id(converter, Form::Native, &frame).as_deref() == Some(id)
        {
            let after = Position {
                partition,
                offset: offset + 1,
                time: time.saturating_sub(CLOCK_SKEW_MS),
                passed: None,
            };
            self.after = Some(after);
            self.found
                .retain(|found| after.is_before(found.partition, found.offset, found.time));
            self.bytes = self.found.iter().map(|found| found.frame.len()).sum();
            return;
        }
        self.bytes += frame.len();
        self.found.push(Found {
            partition,
            offset,
            time,
            frame,
        });
        if let Resume::Rewind(count) = self.query.resume {
            // Each partition may have the last ones.
            self.keep_last(partition, count);
        }
        let limits = &self.query.limits;
        // While the client's message is not found, what precedes it is here, too.
        if self.after.is_some() && (self.found.len() > limits.messages || self.bytes > limits.bytes) {
            self.refuse(NotResumed::TooMany);
        }
    }

    fn keep_last(&mut self, partition: i32, count: usize) {
        let of_partition = self.found.iter().filter(|found| found.partition == partition);
        if of_partition.count() > count
            && let Some(at) = self.found.iter().position(|found| found.partition == partition)
        {
            self.bytes -= self.found.remove(at).frame.len();
        }
    }

    /// Answers, after everything has been read.
    pub fn finish(self) {
        let answer = match (self.refused, &self.query.resume, self.after) {
            (Some(why), ..) => Err(why),
            (None, Resume::Message { .. }, None) => Err(NotResumed::UnknownMessage),
            (None, resume, _) => {
                let rewind = match resume {
                    Resume::Rewind(count) => Some(*count),
                    _ => None,
                };
                let mut frames = in_order(self.found);
                if let Some(count) = rewind {
                    frames.drain(..frames.len().saturating_sub(count));
                }
                let bytes: usize = frames.iter().map(Bytes::len).sum();
                let limits = &self.query.limits;
                if frames.len() > limits.messages || bytes > limits.bytes {
                    Err(NotResumed::TooMany)
                } else {
                    Ok(frames)
                }
            }
        };
        (self.query.reply)(answer);
    }
}

/// The frames by their time, those of one partition in its order.
fn in_order(mut found: Vec<Found>) -> VecDeque<Bytes> {
    found.sort_by_key(|found| (found.partition, found.offset));
    let mut newest = BTreeMap::new();
    let mut keyed: Vec<_> = found
        .into_iter()
        .map(|found| {
            let time = newest.entry(found.partition).or_insert(found.time);
            *time = found.time.max(*time);
            ((*time, found.partition, found.offset), found.frame)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, frame)| frame).collect()
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
