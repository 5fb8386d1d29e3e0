//! What the pipeline task is to look at: marks, folded per session, so that they are bounded by what there is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::Moment;
use crate::protocol::ids::{SessionId, UserId};
use crate::writer::ConnectionWriter;

/// Sessions with something to tell, and typists.
#[derive(Default)]
pub struct Inbox {
    changes: Mutex<Changes>,
    wake: Notify,
    is_nudged: AtomicBool,
    /// How long the task may take for its end, once it is to end.
    stopping: OnceLock<Duration>,
}

#[derive(Default)]
pub struct Changes {
    pub sessions: HashMap<SessionId, Change, RandomState>,
    /// Who types and who has stopped, for the store's readers.
    pub typing: HashMap<(SessionId, UserId), bool, RandomState>,
}

#[derive(Default)]
pub struct Change {
    /// Users whose connections here have changed.
    pub users: HashMap<UserId, Mark, RandomState>,
    /// Connections that have come: where nothing has changed, each gets a snapshot of its own.
    pub joiners: Vec<Arc<ConnectionWriter>>,
    /// What the store says of it is not what is here.
    pub is_doubted: bool,
}

/// What has happened to one user's connections.
#[derive(Clone, Copy, Default)]
pub struct Mark {
    /// The last of them went: who is here all the same has come anew, maybe as another type.
    pub has_left: bool,
    /// When the user was gone, who may be back since.
    pub gone: Option<Moment>,
}

impl Mark {
    fn merge(&mut self, other: Self) {
        self.has_left |= other.has_left;
        self.gone = self.gone.max(other.gone);
    }
}

impl Change {
    /// A user's grace is over.
    pub fn gone(&mut self, user_id: UserId, at: Moment) {
        let (has_left, gone) = (false, Some(at));
        self.users
            .entry(user_id)
            .or_default()
            .merge(Mark { has_left, gone });
    }

    pub fn merge(&mut self, other: Self) {
        for (user_id, mark) in other.users {
            self.users.entry(user_id).or_default().merge(mark);
        }
        self.joiners.extend(other.joiners);
        self.is_doubted |= other.is_doubted;
    }
}

impl Inbox {
    pub fn joined(&self, session_id: &SessionId, user_id: &UserId, writer: &Arc<ConnectionWriter>) {
        self.mark(session_id, |change| {
            change.users.entry(user_id.clone()).or_default();
            change.joiners.push(Arc::clone(writer));
        });
    }

    pub fn left(&self, session_id: &SessionId, user_id: &UserId, is_last: bool) {
        let gone = is_last.then(Moment::now);
        self.mark(session_id, |change| {
            let mark = Mark {
                has_left: is_last,
                gone,
            };
            change.users.entry(user_id.clone()).or_default().merge(mark);
        });
    }

    /// The store knows more of a session than we do.
    pub fn is_stale(&self, session_id: &SessionId) {
        self.mark(session_id, |_| {});
    }

    /// The store does not have whom we hold: maybe not yet.
    pub fn doubt(&self, session_id: &SessionId) {
        self.mark(session_id, |change| change.is_doubted = true);
    }

    pub fn typing(&self, session_id: &SessionId, user_id: &UserId, is_typing: bool) {
        self.changes
            .lock()
            .typing
            .insert((session_id.clone(), user_id.clone()), is_typing);
        self.wake.notify_one();
    }

    fn mark(&self, session_id: &SessionId, set: impl FnOnce(&mut Change)) {
        let is_first = {
            let sessions = &mut self.changes.lock().sessions;
            let is_first = sessions.is_empty();
            set(sessions.entry(session_id.clone()).or_default());
            is_first
        };
        // One wake per window, not per join.
        if is_first {
            self.wake.notify_one();
        }
    }

    pub fn take(&self) -> Changes {
        std::mem::take(&mut *self.changes.lock())
    }

    /// Resolves when there is something to look at.
    pub async fn marked(&self) {
        self.wake.notified().await;
    }

    /// Wakes the task: something it waits for has come.
    pub fn nudge(&self) {
        self.is_nudged.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub fn take_nudge(&self) -> bool {
        self.is_nudged.swap(false, Ordering::AcqRel)
    }

    /// The task is to end within `patience`.
    pub fn stop(&self, patience: Duration) {
        let _ = self.stopping.set(patience);
        self.wake.notify_one();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.get().is_some()
    }

    pub fn patience(&self) -> Duration {
        self.stopping.get().copied().unwrap_or_default()
    }
}
