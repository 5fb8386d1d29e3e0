//! Notifies the clients of this node: each change is announced once, as the difference to what was announced before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::answers::{Applied, Damage};
use super::client_view::ClientView;
use super::listing::Known;
use super::store::SUSPICION;
use crate::metrics::Metrics;
use crate::presence::status_frames::{self, NextFrame};
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::status::StatusEvent;
use crate::session::{Registry, Session};
use crate::writer::ConnectionWriter;

pub struct ClientNotifier {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    views: HashMap<SessionId, ClientView>,
    /// Sessions in [`Self::views`] with something that has to wait for its time.
    waiting: HashSet<SessionId>,
    /// Sessions whose keys were damaged and may not be completely rewritten yet.
    suspects: HashMap<SessionId, Suspect>,
}

struct Suspect {
    found: u64,
    until: Instant,
}

impl ClientNotifier {
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            metrics,
            views: HashMap::new(),
            waiting: HashSet::new(),
            suspects: HashMap::new(),
        }
    }

    /// When the next waiting session is due.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().filter_map(|id| self.views.get(id));
        let suspects = self.suspects.values().map(|suspect| suspect.until);
        waiting.map(ClientView::next_frame).chain(suspects).min()
    }

    /// Removes and returns the waiting sessions that are due.
    pub fn take_due(&mut self, now: Instant) -> Vec<SessionId> {
        let is_due = |view: &ClientView| now >= view.next_frame();
        let waiting = self
            .waiting
            .extract_if(|id| self.views.get(id).is_none_or(is_due));
        let suspects = self.suspects.extract_if(|_, suspect| now >= suspect.until);
        waiting
            .chain(suspects.map(|(session_id, _)| session_id))
            .collect()
    }

    /// Records damage to a session's keys. Returns whether it is new.
    pub fn note_damage(&mut self, session_id: &SessionId, damage: Damage) -> bool {
        let until = Instant::now() + damage.suspect_for;
        let found = damage.found;
        let before = self.suspects.insert(session_id.clone(), Suspect { found, until });
        before.is_none_or(|before| before.found != found)
    }

    /// Records whether one of a session's values is unreadable. Returns whether that is new. The user it hides is not
    /// announced as having left before their node has had the time to rewrite it; a value that stays is nobody's.
    pub fn note_unreadable(&mut self, session_id: &SessionId, has_unreadable: bool) -> bool {
        let Some(view) = self.views.get_mut(session_id) else {
            return false;
        };
        if !has_unreadable {
            view.unreadable_since = None;
            return false;
        }
        if view.unreadable_since.is_some() {
            return false;
        }
        let now = Instant::now();
        view.unreadable_since = Some(now);
        let (found, until) = (0, now + SUSPICION);
        self.suspects
            .entry(session_id.clone())
            .or_insert(Suspect { found, until });
        true
    }

    /// What a session's keys are expected to say.
    pub fn known(&self, session_id: &SessionId) -> Known<'_> {
        let view = self.views.get(session_id);
        view.map_or_else(Known::default, |view| Known {
            birth: &view.birth,
            state: view.state,
        })
    }

    pub fn note_keys(&mut self, session_id: &SessionId, applied: Applied) {
        if let Some(view) = self.views.get_mut(session_id) {
            (view.birth, view.state) = (applied.birth, applied.state);
        }
    }

    /// All keys may have been recreated.
    pub fn forget_births(&mut self) {
        self.views.values_mut().for_each(|view| view.birth.clear());
    }

    /// Whether a snapshot would be used at once. A large session's is only requested once per frame.
    pub fn wants_snapshot(&self, session_id: &SessionId, now: Instant) -> bool {
        let is_here = self.registry.contains(session_id.as_str());
        let wants = |view: &ClientView| view.wants_snapshot(now);
        !is_here || self.views.get(session_id).is_none_or(wants)
    }

    /// Keeps events for other nodes until there is a snapshot to publish with them. Returns them as an error if clients
    /// here have not been notified of anything yet.
    pub fn defer(
        &mut self,
        session_id: &SessionId,
        events: Vec<StatusEvent>,
    ) -> Result<(), Vec<StatusEvent>> {
        let Some(view) = self.views.get_mut(session_id) else {
            return Err(events);
        };
        view.unpublished.get_or_insert_default().extend(events);
        Ok(())
    }

    /// Whether this user's join was announced to clients here.
    pub fn has_announced(&self, session_id: &SessionId, user_id: &UserId) -> bool {
        let view = self.views.get(session_id);
        view.is_some_and(|view| view.has_announced(user_id))
    }

    pub fn take_deferred(&mut self, session_id: &SessionId) -> Option<Vec<StatusEvent>> {
        self.views.get_mut(session_id)?.unpublished.take()
    }

    /// Sends the state of a session in Redis to its clients: to all of them, or to new connections only.
    pub async fn notify(
        &mut self,
        session: &Arc<Session>,
        joiners: Vec<Arc<ConnectionWriter>>,
        applied: Applied,
    ) {
        let now = Instant::now();
        let view = match (self.views.get_mut(&session.id), &applied.snapshot) {
            (Some(view), _) => view,
            (None, Some(status)) => {
                let joined: Vec<_> = applied.joined().cloned().collect();
                let initial = ClientView::initial(status, &joined, now);
                self.views.entry(session.id.clone()).or_insert(initial)
            }
            (None, None) => return,
        };
        view.joiners.extend(joiners);
        view.birth.clone_from(&applied.birth);
        view.state = applied.state;
        let Some(status) = applied.snapshot else {
            self.waiting.insert(session.id.clone());
            return;
        };
        let is_suspect = self.suspects.contains_key(&session.id);
        view.update(applied.version, status, is_suspect);
        loop {
            let next = view.next(now, &applied.latest);
            match next {
                NextFrame::Everyone(_) | NextFrame::Joiners => {
                    // A frame to everyone is theirs, too.
                    let joiners = std::mem::take(&mut view.joiners);
                    status_frames::send(session, &view.status, &next, &joiners, &self.metrics).await;
                }
                NextFrame::Later => {
                    self.waiting.insert(session.id.clone());
                    return;
                }
                NextFrame::Nothing => return,
            }
        }
    }

    /// Forgets a session that has no users here any more.
    pub fn forget(&mut self, session_id: &SessionId) {
        self.views.remove(session_id);
        self.suspects.remove(session_id);
    }

    /// Redis is unavailable: drops sessions that have ended and connections that have closed.
    pub fn prune(&mut self) {
        let registry = &self.registry;
        self.views
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        self.suspects
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        for view in self.views.values_mut() {
            view.joiners.retain(|writer| writer.is_open());
        }
    }

    /// Redis has lost data.
    pub fn reset_versions(&mut self) {
        self.views.values_mut().for_each(ClientView::reset_versions);
    }
}
