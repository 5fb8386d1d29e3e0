//! The sessions of this node: a sharded map, with one lookup per record, join or leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dashmap::DashMap;
use foldhash::quality::RandomState;

use super::{Joined, Member, Session};
use crate::clock::Moment;
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::writer::Start;

/// DashMap's default, four shards a core, is too few for storms of connects.
const SHARDS: usize = 128;

pub struct Registry {
    sessions: DashMap<SessionId, Arc<Session>, RandomState>,
    /// The connections of the lobby, which is no session: it has no presence, and no record reaches it.
    lobby: Arc<Session>,
    /// Whether users have a grace ([`SessionUsers::new`](super::SessionUsers::new)).
    has_grace: bool,
    /// The position after the last record that was read from the log.
    log_end: Arc<AtomicU64>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new(false, Arc::default())
    }
}

impl Registry {
    pub fn new(has_grace: bool, log_end: Arc<AtomicU64>) -> Self {
        Self {
            sessions: DashMap::with_capacity_and_hasher_and_shard_amount(0, RandomState::default(), SHARDS),
            lobby: Arc::new(Session::new(SessionId::lobby(), 0, false)),
            has_grace,
            log_end,
        }
    }

    pub fn get(&self, session_id: &str) -> Option<Arc<Session>> {
        self.sessions.get(session_id).map(|session| Arc::clone(&session))
    }

    pub fn contains(&self, session_id: &str) -> bool {
        self.sessions.contains_key(session_id)
    }

    /// How many sessions have a connection here, or somebody in the grace.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// All current sessions.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.iter().map(|session| Arc::clone(&session)).collect()
    }

    /// All current sessions, and the lobby: everywhere a connection can be.
    pub fn everywhere(&self) -> Vec<Arc<Session>> {
        let mut all = self.all();
        all.push(Arc::clone(&self.lobby));
        all
    }

    /// Adds a connection to the lobby; see [`Session::join`].
    pub fn join_lobby(
        &self,
        member: &Member,
        user_type: UserType,
        greeting: impl FnOnce(Joined) -> Bytes,
    ) -> (Arc<Session>, Joined) {
        let joined = self.lobby.join(member.clone(), user_type, Start::Live, greeting);
        // It never ends, so it was joined.
        let position = 0;
        let joined = joined.unwrap_or(Joined { user_type, position });
        (Arc::clone(&self.lobby), joined)
    }

    /// Adds a connection to its session; see [`Session::join`].
    pub fn join(
        &self,
        session_id: &SessionId,
        member: &Member,
        user_type: UserType,
        start: Start,
        greeting: impl Fn(Joined) -> Bytes,
    ) -> (Arc<Session>, Joined) {
        loop {
            // Within the map's lock: a record that is not looked up here any more is before this position.
            let new = || {
                let created = self.log_end.load(Ordering::Acquire);
                Arc::new(Session::new(session_id.clone(), created, self.has_grace))
            };
            let session = Arc::clone(&self.sessions.entry(session_id.clone()).or_insert_with(new));
            // `None`: it ended between the two lines; the next iteration creates a new one.
            if let Some(joined) = session.join(member.clone(), user_type, start, &greeting) {
                return (session, joined);
            }
        }
    }

    /// Removes a connection; `Some(true)` if it was the user's last in the session here.
    pub fn leave(&self, session: &Arc<Session>, member: &Member) -> Option<bool> {
        let is_last = session.leave(member)?;
        self.remove_if_empty(session);
        Some(is_last)
    }

    /// Ends a user's grace; see [`SessionUsers::end_grace`](super::SessionUsers::end_grace).
    pub fn end_grace(&self, session_id: &SessionId, user_id: &UserId, left_at: Moment, end: Moment) -> bool {
        let Some(session) = self.get(session_id.as_str()) else {
            return false;
        };
        let is_gone = session.with_users(|users| users.end_grace(user_id, left_at, end));
        self.remove_if_empty(&session);
        is_gone
    }

    fn remove_if_empty(&self, session: &Arc<Session>) {
        let removed = self.sessions.remove_if(session.id.as_str(), |_, current| {
            Arc::ptr_eq(current, session) && current.close_if_empty()
        });
        // DashMap keeps its peak capacity: it is released after a storm.
        if removed.is_some() && self.sessions.is_empty() {
            self.sessions.shrink_to_fit();
        }
    }
}
