//! Sessions, and who is connected to them on this node.
//!
//! - [`registry`]: the sessions of this node
//! - [`users`]: the users of one session on this node, by their connections
//! - [`memory_pressure`]: closes connections when all outbound queues together hold too much
//! - [`reads`]: how far users have read
//! - [`typists`]: who is typing, and when that expires

pub mod memory_pressure;
pub mod reads;
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

    /// Marks the session as ended if it has no connection and no user in the grace.
    fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        state.closed = state.members.is_empty() && !state.users.has_users_in_grace();
        state.closed
    }
}
