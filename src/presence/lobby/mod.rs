//! The lobby: agents who watch the sessions of all nodes. Each gets a snapshot, then an event for each change of state.
//!
//! The presence task says what has become of a session ([`Lobby::set`]); the lobby's own task sends snapshots and
//! events ([`Lobby::run`]), so that slow agents never hold up presence. Only that task sends, and a batch is taken
//! under one lock, with the agents whom its events are for and the snapshots of those who have come since: between the
//! two nothing is missed and nothing comes twice.
//!
//! What is known of the sessions ([`View`]) is kept only while somebody watches, and for [`LINGER`] after that. It is
//! bounded by the number of sessions, and so are the changes that have not been sent: of several in one session only
//! what they come to is announced.

mod delivery;
pub mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::dirty_sessions::DirtySessions;
use super::unavailable::Unavailable;
use crate::auth::Sessions;
use crate::protocol::ids::SessionId;
use crate::protocol::lobby::{
    ListedSession, MAX_PAGE, Position, SessionPage, SessionState, StateFilter, Summary,
};
use crate::writer::ConnectionWriter;
use delivery::{Batch, Snapshot};
use view::View;

/// How long the view is kept when nobody needs it any more: an agent who reloads the page gets a snapshot at once.
const LINGER: Duration = Duration::from_secs(60);
/// How long a page waits for the view.
const PATIENCE: Duration = Duration::from_millis(700);

pub struct Lobby {
    inner: Mutex<Inner>,
    /// Whether the view is wanted, for those who only need to know that.
    is_wanted: AtomicBool,
    /// Wakes the lobby's task.
    changed: Notify,
    /// Wakes those who wait for the view.
    loaded: Notify,
    /// Wakes the presence task, which loads the view.
    dirty: Arc<DirtySessions>,
}

#[derive(Default)]
struct Inner {
    stage: Stage,
    view: View,
    last_used: Option<Instant>,
    members: Vec<Member>,
    /// What has changed since the last batch, in order.
    changes: Vec<SessionId>,
    /// The same by session.
    changed: HashMap<SessionId, Change, RandomState>,
}

/// What the view is worth.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Stage {
    /// Nobody needs it.
    #[default]
    Off,
    /// To be loaded. It may be there already, but changes were missed.
    Wanted,
    Loading,
    Current,
}

struct Member {
    writer: Arc<ConnectionWriter>,
    scope: Arc<Sessions>,
    /// Has got its snapshot.
    is_told: bool,
}

struct Change {
    /// As announced.
    before: Option<SessionState>,
    now: Summary,
}

impl Lobby {
    pub fn new(dirty: Arc<DirtySessions>) -> Self {
        Self {
            inner: Mutex::default(),
            is_wanted: AtomicBool::new(false),
            changed: Notify::new(),
            loaded: Notify::new(),
            dirty,
        }
    }

    /// Adds an agent who has been greeted; `scope` is what their token covers.
    pub fn join(&self, writer: &Arc<ConnectionWriter>, scope: Sessions) {
        let mut inner = self.inner.lock();
        inner.members.push(Member {
            writer: Arc::clone(writer),
            scope: Arc::new(scope),
            is_told: false,
        });
        self.want(&mut inner);
        self.changed.notify_one();
    }

    /// An agent's renewed token: if it covers other sessions, they get a new snapshot.
    pub fn set_scope(&self, writer: &Arc<ConnectionWriter>, scope: Sessions) {
        let mut inner = self.inner.lock();
        let of_writer = |member: &&mut Member| Arc::ptr_eq(&member.writer, writer);
        if let Some(member) = inner.members.iter_mut().find(of_writer)
            && *member.scope != scope
        {
            (member.scope, member.is_told) = (Arc::new(scope), false);
            self.changed.notify_one();
        }
    }

    pub fn leave(&self, writer: &Arc<ConnectionWriter>) {
        let mut inner = self.inner.lock();
        inner
            .members
            .retain(|member| !Arc::ptr_eq(&member.writer, writer));
        inner.last_used = Some(Instant::now());
        if inner.members.is_empty() {
            // The time to forget the view begins.
            self.changed.notify_one();
        }
    }

    fn want(&self, inner: &mut Inner) {
        inner.last_used = Some(Instant::now());
        if inner.stage == Stage::Off {
            inner.stage = Stage::Wanted;
            self.is_wanted.store(true, Ordering::Release);
        }
        if inner.stage == Stage::Wanted {
            self.dirty.nudge();
        }
    }

    /// Whether the presence task has to say what becomes of sessions.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Acquire)
    }

    /// Sessions have changed on another node.
    pub fn changed_elsewhere(&self) {
        if self.is_wanted() {
            self.dirty.nudge();
        }
    }

    /// A session is like this now; `Err`: nobody is in it any more, since that time.
    pub fn set(&self, session_id: &SessionId, now: Result<Summary, i64>) {
        if !self.is_wanted() {
            return;
        }
        let inner = &mut *self.inner.lock();
        if matches!(inner.stage, Stage::Loading | Stage::Current) {
            inner.set(session_id, now);
            self.wake_for(inner);
        }
    }

    fn wake_for(&self, inner: &Inner) {
        if !inner.changes.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Whether the presence task has to begin a load.
    pub fn must_load(&self) -> bool {
        self.is_wanted() && self.inner.lock().stage == Stage::Wanted
    }

    /// Everything follows.
    pub fn begin_load(&self) {
        let mut inner = self.inner.lock();
        if inner.stage != Stage::Off {
            inner.stage = Stage::Loading;
            inner.view.begin_load();
        }
    }

    /// Everything has been set: sessions that were not have ended.
    pub fn finish_load(&self, now: i64) {
        let inner = &mut *self.inner.lock();
        if inner.stage != Stage::Loading {
            return;
        }
        for session_id in inner.view.not_found() {
            inner.set(&session_id, Err(now));
        }
        inner.stage = Stage::Current;
        self.changed.notify_one();
        self.loaded.notify_waiters();
    }

    /// Changes may have been missed: everything is to be loaded again. Until then nobody gets a snapshot.
    pub fn suspend(&self) {
        let mut inner = self.inner.lock();
        if inner.stage != Stage::Off {
            inner.stage = Stage::Wanted;
        }
    }

    /// A page of the view, which is loaded if need be.
    ///
    /// # Errors
    ///
    /// It can't be loaded in time.
    pub async fn page(
        &self,
        filter: StateFilter,
        scope: &Sessions,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<SessionPage, Unavailable> {
        let read = async {
            loop {
                // Before the look, so that a load that ends now is not missed.
                let loaded = self.loaded.notified();
                {
                    let mut inner = self.inner.lock();
                    self.want(&mut inner);
                    if inner.stage == Stage::Current {
                        return inner.page(filter, scope, after, limit);
                    }
                }
                loaded.await;
            }
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .map_err(|_| Unavailable)
    }

    /// What is to be sent now, if there is anything.
    fn take_batch(&self) -> Option<Batch> {
        let inner = &mut *self.inner.lock();
        let mut batch = Batch {
            events: inner.take_events(),
            ..Batch::default()
        };
        let told = inner.members.iter().filter(|member| member.is_told);
        batch.members = told
            .map(|member| (Arc::clone(&member.writer), Arc::clone(&member.scope)))
            .collect();
        if inner.stage == Stage::Current {
            batch.joiners = inner.snapshots();
        }
        let has_events = !batch.events.is_empty() && !batch.members.is_empty();
        (has_events || !batch.joiners.is_empty()).then_some(batch)
    }

    /// Forgets the view if nobody has needed it for a while. Returns when to look again.
    fn release(&self) -> Option<Instant> {
        let inner = &mut *self.inner.lock();
        if !inner.members.is_empty() || inner.stage == Stage::Off {
            return None;
        }
        let due = inner.last_used.unwrap_or_else(Instant::now) + LINGER;
        if Instant::now() < due {
            return Some(due);
        }
        *inner = Inner::default();
        self.is_wanted.store(false, Ordering::Release);
        None
    }

    /// Sends snapshots and events. Never returns.
    pub async fn run(self: Arc<Self>) {
        // After a panic nobody knows what was sent.
        for member in &mut self.inner.lock().members {
            member.is_told = false;
        }
        let mut due = self.release();
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            while let Some(batch) = self.take_batch() {
                delivery::send(batch).await;
            }
            due = self.release();
        }
    }
}

/// The state that clients are told of; `None`: they see no session.
fn announced(summary: Option<Summary>) -> Option<SessionState> {
    let state = summary.map(|summary| summary.state);
    state.filter(|state| *state != SessionState::Idle)
}

impl Inner {
    fn set(&mut self, session_id: &SessionId, now: Result<Summary, i64>) {
        let before = announced(self.view.set(session_id, now.ok()));
        let now = now.unwrap_or_else(Summary::ended);
        if let Some(change) = self.changed.get_mut(session_id) {
            change.now = now;
        } else if before != announced(Some(now)) {
            self.changes.push(session_id.clone());
            self.changed.insert(session_id.clone(), Change { before, now });
        }
    }

    /// What the changes since the last call come to.
    fn take_events(&mut self) -> Vec<ListedSession> {
        let changed = std::mem::take(&mut self.changed);
        let changes = std::mem::take(&mut self.changes).into_iter();
        let events = changes.filter_map(|session_id| {
            let Change { before, now } = changed.get(&session_id)?;
            let is_change = *before != announced(Some(*now));
            is_change.then(|| ListedSession::new(session_id, *now))
        });
        events.collect()
    }

    fn page(
        &self,
        filter: StateFilter,
        scope: &Sessions,
        after: Option<&Position>,
        limit: usize,
    ) -> SessionPage {
        match scope {
            Sessions::All => self.view.page(filter, after, limit),
            Sessions::Listed(ids) => {
                let known = ids.iter().filter_map(|session_id| {
                    let summary = self.view.get(session_id.as_str())?;
                    Some(ListedSession::new(session_id.clone(), summary))
                });
                view::page_of(known.collect(), filter, after, limit)
            }
        }
    }

    /// The snapshots of those who have none; from now on they get events.
    fn snapshots(&mut self) -> Vec<(Arc<ConnectionWriter>, Snapshot)> {
        let mut members = std::mem::take(&mut self.members);
        let mut of_all: Option<Snapshot> = None;
        let mut snapshots = Vec::new();
        for member in members.iter_mut().filter(|member| !member.is_told) {
            member.is_told = true;
            let page = || Arc::new(self.page(StateFilter::Desk, &member.scope, None, MAX_PAGE));
            let snapshot = match &*member.scope {
                Sessions::All => Arc::clone(of_all.get_or_insert_with(page)),
                Sessions::Listed(_) => page(),
            };
            snapshots.push((Arc::clone(&member.writer), snapshot));
        }
        self.members = members;
        snapshots
    }
}

/// For tests that need no connections.
#[cfg(test)]
impl Lobby {
    pub fn watch(&self) {
        self.want(&mut self.inner.lock());
    }

    pub fn take_events(&self) -> Vec<ListedSession> {
        self.inner.lock().take_events()
    }

    /// What a snapshot would be, if there could be one now.
    pub fn snapshot(&self) -> Option<SessionPage> {
        let inner = self.inner.lock();
        let page = || inner.page(StateFilter::Desk, &Sessions::All, None, MAX_PAGE);
        (inner.stage == Stage::Current).then(page)
    }
}

#[cfg(test)]
#[path = "lobby_tests.rs"]
mod tests;
