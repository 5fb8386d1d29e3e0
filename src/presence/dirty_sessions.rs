//! What the presence task has to look at, folded per session, so that its size is bounded by the number of sessions and
//! users.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::newest_receipts::NewestReceipts;
use crate::clock::Moment;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::receipt::Receipt;
use crate::writer::ConnectionWriter;

/// Sessions whose users have changed, users who are typing, and users who have read something.
#[derive(Default)]
pub struct DirtySessions {
    changes: Mutex<Changes>,
    wake: Notify,
    must_run: AtomicBool,
    /// How long the task may take to finish, once it is told to stop.
    stop_timeout: OnceLock<Duration>,
}

#[derive(Default)]
pub struct Changes {
    pub sessions: HashMap<SessionId, SessionChange, RandomState>,
    /// Who is typing and who has stopped, for the store's readers.
    pub typing: HashMap<(SessionId, UserId), bool, RandomState>,
    /// How far users have read, for the store.
    pub receipts: NewestReceipts,
}

#[derive(Default)]
pub struct SessionChange {
    /// Users whose connections here have changed.
    pub users: HashMap<UserId, UserChange, RandomState>,
    /// New connections: where nothing else has changed, each gets its own snapshot.
    pub joiners: Vec<Arc<ConnectionWriter>>,
    /// The store disagrees with what this node holds.
    pub needs_check: bool,
}

/// What happened to one user's connections.
#[derive(Clone, Copy, Default)]
pub struct UserChange {
    /// The last connection was closed: a user who is here all the same has joined again, maybe as another type.
    pub was_disconnected: bool,
    /// When the user left, who may be back since.
    pub left_at: Option<Moment>,
}

impl UserChange {
    fn merge(&mut self, other: Self) {
        self.was_disconnected |= other.was_disconnected;
        self.left_at = self.left_at.max(other.left_at);
    }
}

impl SessionChange {
    /// A user's grace has expired.
    pub fn grace_expired(&mut self, user_id: UserId, at: Moment) {
        let (was_disconnected, left_at) = (false, Some(at));
        self.users.entry(user_id).or_default().merge(UserChange {
            was_disconnected,
            left_at,
        });
    }

    pub fn merge(&mut self, other: Self) {
        for (user_id, change) in other.users {
            self.users.entry(user_id).or_default().merge(change);
        }
        self.joiners.extend(other.joiners);
        self.needs_check |= other.needs_check;
    }
}

impl DirtySessions {
    pub fn connection_opened(
        &self,
        session_id: &SessionId,
        user_id: &UserId,
        writer: &Arc<ConnectionWriter>,
    ) {
        self.mark_with(session_id, |change| {
            change.users.entry(user_id.clone()).or_default();
            change.joiners.push(Arc::clone(writer));
        });
    }

    pub fn connection_closed(&self, session_id: &SessionId, user_id: &UserId, is_last: bool) {
        let left_at = is_last.then(Moment::now);
        self.mark_with(session_id, |change| {
            let user_change = UserChange {
                was_disconnected: is_last,
                left_at,
            };
            change
                .users
                .entry(user_id.clone())
                .or_default()
                .merge(user_change);
        });
    }

    /// The session has changed in the store.
    pub fn mark(&self, session_id: &SessionId) {
        self.mark_with(session_id, |_| {});
    }

    /// The store lacks users who are here: they may not be written yet.
    pub fn request_check(&self, session_id: &SessionId) {
        self.mark_with(session_id, |change| change.needs_check = true);
    }

    pub fn typing(&self, session_id: &SessionId, user_id: &UserId, is_typing: bool) {
        self.changes
            .lock()
            .typing
            .insert((session_id.clone(), user_id.clone()), is_typing);
        self.wake.notify_one();
    }

    /// A user has read further, maybe.
    pub fn receipt(&self, receipt: Receipt) {
        if self.changes.lock().receipts.add(receipt) {
            self.wake.notify_one();
        }
    }

    fn mark_with(&self, session_id: &SessionId, set: impl FnOnce(&mut SessionChange)) {
        let is_first = {
            let sessions = &mut self.changes.lock().sessions;
            let is_first = sessions.is_empty();
            set(sessions.entry(session_id.clone()).or_default());
            is_first
        };
        // One wake-up per window, not per join.
        if is_first {
            self.wake.notify_one();
        }
    }

    pub fn take(&self) -> Changes {
        std::mem::take(&mut *self.changes.lock())
    }

    /// Resolves when there is something to do.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Wakes the task as a change does.
    pub fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Wakes the task: what it waits for has happened.
    pub fn wake(&self) {
        self.must_run.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether [`Self::wake`] was called since the last time.
    pub fn take_wake(&self) -> bool {
        self.must_run.swap(false, Ordering::AcqRel)
    }

    /// Tells the task to finish within `timeout`.
    pub fn stop(&self, timeout: Duration) {
        let _ = self.stop_timeout.set(timeout);
        self.wake.notify_one();
    }

    pub fn is_stopping(&self) -> bool {
        self.stop_timeout.get().is_some()
    }

    pub fn stop_timeout(&self) -> Duration {
        self.stop_timeout.get().copied().unwrap_or_default()
    }
}
