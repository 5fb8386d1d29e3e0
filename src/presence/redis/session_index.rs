//! What has to be written to the index of all sessions in Redis, which the agents' desk reads.
//!
//! A session's own keys and the index are in different slots, so no script writes both. What a write of a session has
//! answered is written to the index by the next pipeline, before that takes the session off this node's list: so if the
//! node dies in between, whoever reaps it writes the index again. Versions keep late writes from undoing newer ones.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::answers::Applied;
use super::session_entry::StateAfter;
use crate::protocol::ids::SessionId;

/// The most rows of one pipeline.
const MAX_ROWS: usize = 500;
/// A row that could not be written for so long is read again first: whoever remembers the sessions that have ended does
/// so for a minute ([`ENDED_KEPT`]).
const MAX_AGE: Duration = Duration::from_secs(5);
/// How long, and how many, sessions that have ended are remembered in the index.
pub const ENDED_KEPT: Duration = Duration::from_secs(60);
pub const MOST_ENDED: usize = 50_000;
/// At most so many sessions are checked later; a full cycle of checks finds the others.
const MAX_LATER: usize = 10_000;
/// At most so many that are not as the index has them wait for that.
const MAX_DOUBTFUL: usize = 1_000;

/// Sessions that somebody has not found as the index has them: that is looked into.
#[derive(Default)]
pub struct Doubtful(Mutex<HashSet<SessionId>>);

impl Doubtful {
    pub fn add(&self, session_id: SessionId) {
        let mut sessions = self.0.lock();
        if sessions.len() < MAX_DOUBTFUL {
            sessions.insert(session_id);
        }
    }

    pub fn take(&self) -> HashSet<SessionId> {
        std::mem::take(&mut *self.0.lock())
    }
}

#[derive(Default)]
pub struct SessionIndex {
    rows: HashMap<SessionId, Row>,
    /// Sessions whose keys were damaged, or that the index may have wrong: when to look again.
    later: HashMap<SessionId, Instant>,
}

/// Why a session's state was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Write {
    /// It is written whether it is news or not.
    pub must_write: bool,
    /// Everything is being written again: keys that seem damaged are those that were lost, and what is written last is
    /// the most complete.
    pub is_rebuilding: bool,
}

impl Write {
    pub fn required() -> Self {
        Self {
            must_write: true,
            is_rebuilding: false,
        }
    }
}

#[derive(Clone, Copy)]
struct Row {
    after: StateAfter,
    seen: Instant,
}

impl SessionIndex {
    /// A session's state was seen. It is written if that is news, or if `must_write`.
    pub fn note(&mut self, session_id: &SessionId, applied: &Applied, write: Write, now: Instant) {
        let Some(mut after) = applied.state else {
            return;
        };
        if let Some(damage) = applied.damage {
            // Other nodes may not have written their users again yet: what the index has may be better.
            after.is_suspect = !write.is_rebuilding;
            self.look_later(session_id, now + damage.suspect_for);
        }
        let is_newer = |row: &Row| row.after.version <= after.version;
        if (after.is_news || write.must_write) && self.rows.get(session_id).is_none_or(is_newer) {
            self.rows.insert(session_id.clone(), Row { after, seen: now });
        }
    }

    /// The session is to be read again at this time.
    pub fn look_later(&mut self, session_id: &SessionId, at: Instant) {
        if self.later.len() < MAX_LATER {
            self.later.entry(session_id.clone()).or_insert(at);
        }
    }

    /// Sessions that have to be read again now.
    pub fn take_due(&mut self, now: Instant) -> Vec<SessionId> {
        let due = self.later.extract_if(|_, at| *at <= now);
        let mut due: Vec<_> = due.map(|(session_id, _)| session_id).collect();
        let old = self.rows.extract_if(|_, row| now - row.seen > MAX_AGE);
        due.extend(old.map(|(session_id, _)| session_id));
        due
    }

    /// When [`Self::take_due`] has something.
    pub fn due(&self) -> Option<Instant> {
        self.later.values().min().copied()
    }

    /// Whether something is to be written.
    pub fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Some rows to write.
    pub fn rows(&self) -> Vec<(SessionId, StateAfter)> {
        let rows = self.rows.iter().take(MAX_ROWS);
        rows.map(|(session_id, row)| (session_id.clone(), row.after))
            .collect()
    }

    /// These are written.
    pub fn written(&mut self, rows: &[(SessionId, StateAfter)]) {
        for (session_id, after) in rows {
            if self.rows.get(session_id).is_some_and(|row| row.after == *after) {
                self.rows.remove(session_id);
            }
        }
    }

    /// Redis has lost data: what was seen means nothing, and all sessions are written again.
    pub fn clear(&mut self) {
        self.rows.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::redis::answers::Damage;
    use crate::protocol::lobby::{SessionState, Summary, Totals};

    fn id(id: &str) -> SessionId {
        SessionId::parse(id).unwrap()
    }

    fn applied(version: u64, is_news: bool) -> Applied {
        let totals = Totals {
            customers: 1,
            agents: 0,
        };
        let summary = Summary {
            state: SessionState::Waiting,
            totals,
            since: 1,
        };
        Applied {
            state: Some(StateAfter {
                is_news,
                version,
                is_suspect: false,
                state: Ok(summary),
            }),
            ..Applied::default()
        }
    }

    #[test]
    fn news_and_checks_are_written_and_newer_ones_replace_them() {
        let (mut index, now) = (SessionIndex::default(), Instant::now());
        let note = |index: &mut SessionIndex, version, is_news| {
            index.note(&id("a"), &applied(version, is_news), Write::default(), now);
        };
        note(&mut index, 3, false);
        assert!(!index.has_rows(), "who has changed it writes it");
        index.note(&id("a"), &applied(3, false), Write::required(), now);
        note(&mut index, 5, true);
        note(&mut index, 4, true);
        let rows = index.rows();
        assert_eq!(rows.iter().map(|(_, row)| row.version).collect::<Vec<_>>(), [5]);
        note(&mut index, 6, true);
        index.written(&rows);
        assert_eq!(index.rows()[0].1.version, 6, "that one is not written yet");
        index.written(&index.rows());
        assert!(!index.has_rows());
    }

    #[test]
    fn what_is_old_or_doubtful_is_read_again() {
        let (mut index, now) = (SessionIndex::default(), Instant::now());
        index.note(&id("a"), &applied(3, true), Write::default(), now);
        let damaged = Applied {
            damage: Some(Damage {
                found: 1,
                suspect_for: 2 * MAX_AGE,
            }),
            ..applied(3, true)
        };
        index.note(&id("b"), &damaged, Write::required(), now);
        let suspects = |index: &SessionIndex| index.rows().iter().filter(|(_, row)| row.is_suspect).count();
        assert_eq!(suspects(&index), 1);
        let (must_write, is_rebuilding) = (true, true);
        let write = Write {
            must_write,
            is_rebuilding,
        };
        index.note(&id("b"), &damaged, write, now);
        assert_eq!(suspects(&index), 0, "everything is written again");
        index.written(&index.rows());
        index.note(&id("a"), &applied(3, true), Write::default(), now);
        assert_eq!(index.due(), Some(now + 2 * MAX_AGE));
        assert_eq!(index.take_due(now + MAX_AGE), []);
        assert_eq!(index.take_due(now + 2 * MAX_AGE).len(), 2);
        assert!(!index.has_rows() && index.due().is_none());
    }
}
