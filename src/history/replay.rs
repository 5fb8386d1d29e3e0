//! Passes records of the recent log to a connection's writer, as fast as its socket takes them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::recent_log::RecentLog;
use crate::protocol::frame;
use crate::protocol::ids::SessionId;
use crate::protocol::record::Converter;
use crate::protocol::resume::{Asked, NotResumed, resumed};
use crate::writer::{Pulled, Replay};

/// How much is passed on at once: enough to keep a socket busy.
const PULL_BYTES: usize = 64 << 10;

/// The replay of one connection: what it has missed, then `resumed`, then the live records that have come meanwhile.
pub struct LogReplay {
    log: Arc<RecentLog>,
    session_id: SessionId,
    /// Frames that are older than the recent log.
    older: VecDeque<Bytes>,
    /// Records of the recent log that are still to be sent.
    positions: VecDeque<u64>,
    /// The position from which on records are live.
    next: u64,
    /// Not answered yet.
    answer: Option<Answer>,
    converter: Converter,
}

struct Answer {
    asked: Asked,
    outcome: Result<usize, NotResumed>,
}

impl LogReplay {
    /// A replay for a connection that gets records live from the position `start` on. `found`: frames that are older than
    /// the recent log, and positions in it before `start`.
    pub fn new(
        log: Arc<RecentLog>,
        session_id: SessionId,
        start: u64,
        asked: Asked,
        found: Result<(VecDeque<Bytes>, Vec<u64>), NotResumed>,
    ) -> Self {
        let outcome = found
            .as_ref()
            .map(|(older, positions)| older.len() + positions.len());
        let answer = Answer {
            asked,
            outcome: outcome.map_err(|why| *why),
        };
        let (older, positions) = found.unwrap_or_default();
        Self {
            log,
            session_id,
            older,
            positions: positions.into(),
            next: start,
            answer: Some(answer),
            converter: Converter::default(),
        }
    }

    /// Adds the live records up to `end`; false if there are too many to find.
    fn add_live(&mut self, end: u64) -> bool {
        let (session_id, start) = (self.session_id.as_str(), self.next);
        let (hash, positions) = (self.log.hash(session_id), &mut self.positions);
        let found = self.log.lock().search_since(session_id, hash, start, |at, _| {
            if at < end {
                positions.push_front(at);
            }
        });
        self.next = end;
        found
    }

    /// The frame of a record; `None` if it is no longer there, an empty one for a record that can't be converted.
    fn frame(&mut self, position: u64) -> Option<Bytes> {
        let (entry, bytes) = self.log.lock().bytes(position)?;
        if !entry.is_legacy {
            return Some(bytes);
        }
        let payload = self.converter.payload(&bytes);
        Some(payload.map_or_else(Bytes::new, |payload| frame::text(&payload)))
    }
}

impl Replay for LogReplay {
    fn pull(&mut self, live_end: u64, push: &mut dyn FnMut(Bytes)) -> Pulled {
        let mut bytes = 0;
        while bytes < PULL_BYTES {
            let frame = if let Some(older) = self.older.pop_front() {
                older
            } else if let Some(position) = self.positions.pop_front() {
                match self.frame(position) {
                    Some(frame) => frame,
                    None => return Pulled::Lost,
                }
            } else if let Some(Answer { asked, outcome }) = self.answer.take() {
                let cursor = self.log.cursor(self.session_id.as_str(), self.next);
                resumed(&asked, outcome, cursor.as_deref())
            } else if self.next < live_end {
                if !self.add_live(live_end) {
                    return Pulled::Lost;
                }
                continue;
            } else {
                return Pulled::CaughtUp;
            };
            bytes += frame.len();
            if !frame.is_empty() {
                push(frame);
            }
        }
        Pulled::More
    }

    fn position(&self) -> Option<u64> {
        let next = self.positions.front().copied().unwrap_or(self.next);
        self.older.is_empty().then_some(next)
    }
}
