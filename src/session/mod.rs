//! Sessions, and who is connected to them on this node.
//!
//! - [`registry`]: the sessions of this node
//! - [`users`]: the users of one session on this node, by their connections
//! - [`disconnects`]: carries out what backends ask for; [`refusals`]: who is refused where
//! - [`memory_pressure`]: closes connections when all outbound queues together hold too much
//! - [`reads`]: how far users have read
//! - [`typists`]: who is typing, and when that expires

pub mod disconnects;
pub mod memory_pressure;
pub mod reads;
pub mod refusals;
pub mod registry;
#[cfg(test)]
pub mod testing;
pub mod typists;
pub mod users;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use reads::ReadStates;
pub use registry::Registry;
use typists::Typists;
pub use users::SessionUsers;

use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::lobby::{SessionState, Summary};
use crate::writer::{ConnectionWriter, Start};

/// What users do in their sessions besides sending messages.
#[derive(Default)]
pub struct Activity {
    pub typists: Typists,
    pub reads: ReadStates,
}

/// A connection as its session knows it.
#[derive(Clone)]
pub struct Member {
    pub writer: Arc<ConnectionWriter>,
    pub user_id: UserId,
}

/// A session with at least one connection on this node, or a user in the grace.
pub struct Session {
    pub id: SessionId,
    /// The position in the log at which it was created: earlier records are not sent to its members.
    pub created: u64,
    state: Mutex<State>,
}

struct State {
    /// Copied on write only while a fan-out holds it: no lock is held across a send.
    members: Arc<Vec<Member>>,
    users: SessionUsers,
    /// The position in the log up to which members have been taken for delivery: records before it are not sent to those
    /// who join now.
    delivered_to: u64,
    /// The registry has removed it: a new connection needs a new one.
    closed: bool,
    /// As last seen by [`Session::summary`], and since when.
    last_state: Option<SessionState>,
    since: Milliseconds,
}

/// Milliseconds since 1970 in six bytes, until the year 10889: they fit where a session would be padded.
#[derive(Clone, Copy, Default)]
struct Milliseconds([u16; 3]);

impl Milliseconds {
    fn new(at: i64) -> Self {
        Self([at as u16, (at >> 16) as u16, (at >> 32) as u16])
    }

    fn get(self) -> i64 {
        let [low, middle, high] = self.0.map(i64::from);
        low | middle << 16 | high << 32
    }
}

/// How a connection has joined its session.
#[derive(Clone, Copy, Debug)]
pub struct Joined {
    /// Its user's type; see [`SessionUsers::join`].
    pub user_type: UserType,
    /// The position in the log from which on records reach it live.
    pub position: u64,
}

impl Session {
    fn new(id: SessionId, created: u64, has_grace: bool) -> Self {
        let state = State {
            members: Arc::default(),
            users: SessionUsers::new(has_grace),
            delivered_to: created,
            closed: false,
            last_state: None,
            since: Milliseconds::default(),
        };
        Self {
            id,
            created,
            state: Mutex::new(state),
        }
    }

    /// Adds a connection. The greeting is its first frame: nothing is sent before it, and nothing that is fanned out
    /// after it is missed. `None` if the session has just ended.
    fn join(
        &self,
        member: Member,
        user_type: UserType,
        start: Start,
        greeting: impl FnOnce(Joined) -> Bytes,
    ) -> Option<Joined> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        let joined = Joined {
            user_type: state.users.join(&member.user_id, user_type),
            position: state.delivered_to,
        };
        let greeting = greeting(joined);
        let writer = Arc::clone(&member.writer);
        writer.send_first(&greeting, start, joined.position, move || {
            Arc::make_mut(&mut state.members).push(member);
            // The session's lock ends here; the writer's holds until the greeting is on its way.
        });
        Some(joined)
    }

    /// Removes a connection. `Some(true)` if it was the user's last here; `None` if it had been removed already.
    fn leave(&self, member: &Member) -> Option<bool> {
        let mut state = self.state.lock();
        let at = state
            .members
            .iter()
            .position(|other| Arc::ptr_eq(&other.writer, &member.writer))?;
        Arc::make_mut(&mut state.members).swap_remove(at);
        Some(state.users.leave(&member.user_id))
    }

    /// The current connections.
    pub fn members(&self) -> Arc<Vec<Member>> {
        Arc::clone(&self.state.lock().members)
    }

    /// The current connections, for records before this position in the log: who joins later does not get them.
    pub fn recipients(&self, position: u64) -> Arc<Vec<Member>> {
        let mut state = self.state.lock();
        state.delivered_to = state.delivered_to.max(position);
        Arc::clone(&state.members)
    }

    /// Reads or changes the users of this node.
    pub fn with_users<T>(&self, f: impl FnOnce(&mut SessionUsers) -> T) -> T {
        f(&mut self.state.lock().users)
    }

    /// The state of a session whose users are all here, and since when: from now on, if it has just changed. `None` if
    /// nobody is connected. `now` is in milliseconds since 1970.
    pub fn summary(&self, now: i64) -> Option<Summary> {
        let mut state = self.state.lock();
        let totals = state.users.totals();
        let now_in = totals.map(SessionState::of);
        if state.last_state != now_in {
            (state.last_state, state.since) = (now_in, Milliseconds::new(now));
        }
        Some(Summary {
            state: now_in?,
            totals: totals?,
            since: state.since.get(),
        })
    }

    /// Marks the session as ended if it has no connection and no user in the grace.
    fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        state.closed = state.members.is_empty() && !state.users.has_users_in_grace();
        state.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bytes_hold_any_time() {
        for at in [0, 1, 0xffff, 0x1_0000, 1_790_000_000_123, (1 << 48) - 1] {
            assert_eq!(Milliseconds::new(at).get(), at);
        }
    }

    /// Nothing is added to what a session holds.
    #[test]
    fn the_state_fits_where_a_session_would_be_padded() {
        struct Without {
            _members: Arc<Vec<Member>>,
            _users: SessionUsers,
            _delivered_to: u64,
            _closed: bool,
        }
        assert_eq!(size_of::<State>(), size_of::<Without>());
    }

    #[test]
    fn a_state_lasts_until_it_changes() {
        let session = Session::new(SessionId::parse("s").unwrap(), 0, false);
        let join = |user: &str, user_type| {
            let user_id = UserId::parse(user).unwrap();
            session.with_users(|users| users.join(&user_id, user_type));
        };
        let at = |now| session.summary(now).map(|summary| (summary.state, summary.since));
        assert_eq!(at(1), None);
        join("a", UserType::Admin);
        assert_eq!(at(2), Some((SessionState::Idle, 2)));
        join("b", UserType::Agent);
        assert_eq!(at(3), Some((SessionState::Idle, 2)));
        join("c", UserType::Customer);
        join("d", UserType::Customer);
        assert_eq!(at(4), Some((SessionState::Active, 4)));
        session.with_users(|users| users.leave(&UserId::parse("b").unwrap()));
        assert_eq!(at(5), Some((SessionState::Waiting, 5)));
        assert_eq!(session.summary(6).unwrap().totals.customers, 2);
        session.with_users(|users| ["a", "c", "d"].map(|id| users.leave(&UserId::parse(id).unwrap())));
        assert_eq!(at(7), None);
        join("c", UserType::Customer);
        assert_eq!(at(8), Some((SessionState::Waiting, 8)));
    }
}
