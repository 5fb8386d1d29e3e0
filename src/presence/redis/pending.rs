//! What has to be written, or read, of one session.

use super::listing::{Requested, UserWrite, WriteMode};
use crate::presence::dirty_sessions::SessionChange;
use crate::protocol::format_timestamp;
use crate::protocol::ids::UserId;
use crate::protocol::status::StatusEvent;
use crate::session::Session;

#[derive(Default)]
pub struct Pending {
    pub change: SessionChange,
    /// All users are written, and those who are not here are removed.
    pub writes_all: bool,
    /// All users are written as they should be stored already: this is a check.
    pub is_check: bool,
    /// The session is written to the index of all sessions, whether it has changed or not.
    pub must_index: bool,
    /// What is stored can't be read, and is replaced.
    pub replaces: bool,
    /// Clients here may have to be notified; a mere check notifies nobody.
    pub must_notify: bool,
    /// A status must be published even if Redis reports no change: an earlier attempt failed, or went unseen.
    pub must_publish: bool,
    /// Events that are not published yet.
    pub events: Vec<StatusEvent>,
}

impl Pending {
    pub fn merge(&mut self, other: Self) {
        self.change.merge(other.change);
        self.writes_all |= other.writes_all;
        self.is_check |= other.is_check;
        self.must_index |= other.must_index;
        self.replaces |= other.replaces;
        self.must_notify |= other.must_notify;
        self.must_publish |= other.must_publish;
        self.events.extend(other.events);
    }

    /// Whether all users who are here are written, not only those who have changed.
    pub fn lists_all(&self) -> bool {
        self.writes_all || self.is_check
    }

    /// What is requested in the answer. `can_notify`: a snapshot would be sent to clients at once.
    pub fn requested(&self, can_notify: bool) -> Requested {
        match (can_notify && self.must_notify, self.is_check) {
            (true, _) => Requested::Snapshot,
            (false, true) => Requested::Listed,
            (false, false) => Requested::Nothing,
        }
    }

    /// The users to write with their connections, from the session as it is now, in the order in which they joined and
    /// left.
    pub fn user_writes(&self, session: Option<&Session>) -> Vec<UserWrite> {
        let marks = &self.change.users;
        let mut ids: Vec<UserId> = marks.keys().cloned().collect();
        if let Some(session) = session.filter(|_| self.lists_all()) {
            let here = session.with_users(|users| users.ids());
            ids.extend(here.into_iter().filter(|id| !marks.contains_key(id)));
        }
        let of_session = |user_id: UserId| {
            let mark = marks.get(&user_id).copied().unwrap_or_default();
            match session.and_then(|session| session.with_users(|users| users.state_of(&user_id))) {
                Some(state) => {
                    let mode = match (self.replaces, mark.was_disconnected) {
                        (true, _) => WriteMode::Replace,
                        (false, true) => WriteMode::Anew,
                        (false, false) => WriteMode::Change,
                    };
                    let write = UserWrite {
                        user_id,
                        user_type: state.user_type,
                        joined_at: format_timestamp(state.joined_at),
                        connections: Some(state.connections),
                        mode,
                    };
                    (Some(state.came), write)
                }
                None => (mark.left_at, UserWrite::removal(user_id)),
            }
        };
        let mut writes: Vec<_> = ids.into_iter().map(of_session).collect();
        writes.sort_by_key(|(when, _)| *when);
        writes.into_iter().map(|(_, write)| write).collect()
    }
}
