//! The clients of this node: each change is told once, as the difference to what was shown before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::answers::{Applied, Damage};
use super::shown::{Next, Shown};
use super::store::SUSPICION;
use crate::fanout::broadcast::deliver_in_slices;
use crate::metrics::Metrics;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::status::StatusEvent;
use crate::protocol::{server, timestamp};
use crate::session::{Registry, Session};
use crate::writer::ConnectionWriter;

pub struct Audience {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    shown: HashMap<SessionId, Shown>,
    /// Sessions in [`Self::shown`] with something that has to wait for its time.
    waiting: HashSet<SessionId>,
    /// Sessions whose keys were damaged, and are not all written again yet.
    suspects: HashMap<SessionId, Suspect>,
}

struct Suspect {
    found: u64,
    until: Instant,
}

impl Audience {
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            metrics,
            shown: HashMap::new(),
            waiting: HashSet::new(),
            suspects: HashMap::new(),
        }
    }

    /// When a session that has waited may be looked at again.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().filter_map(|id| self.shown.get(id));
        let suspects = self.suspects.values().map(|suspect| suspect.until);
        waiting.map(Shown::next_frame).chain(suspects).min()
    }

    /// Sessions that have waited long enough.
    pub fn take_due(&mut self, now: Instant) -> Vec<SessionId> {
        let is_due = |shown: &Shown| now >= shown.next_frame();
        let waiting = self
            .waiting
            .extract_if(|id| self.shown.get(id).is_none_or(is_due));
        let suspects = self.suspects.extract_if(|_, suspect| now >= suspect.until);
        waiting
            .chain(suspects.map(|(session_id, _)| session_id))
            .collect()
    }

    /// Notes what Redis says of damage to a session's keys; whether that is news.
    pub fn note_damage(&mut self, session_id: &SessionId, damage: Damage) -> bool {
        let until = Instant::now() + damage.suspect_for;
        let found = damage.found;
        let before = self.suspects.insert(session_id.clone(), Suspect { found, until });
        before.is_none_or(|before| before.found != found)
    }

    /// Notes whether a value of a session's can't be read; whether that is news. Whoever it hides is not said to have
    /// left before its node has had the time to write again; one that stays is nobody's.
    pub fn note_unreadable(&mut self, session_id: &SessionId, has_unreadable: bool) -> bool {
        let Some(shown) = self.shown.get_mut(session_id) else {
            return false;
        };
        if !has_unreadable {
            shown.unreadable_since = None;
            return false;
        }
        if shown.unreadable_since.is_some() {
            return false;
        }
        let now = Instant::now();
        shown.unreadable_since = Some(now);
        let (found, until) = (0, now + SUSPICION);
        self.suspects
            .entry(session_id.clone())
            .or_insert(Suspect { found, until });
        true
    }

    /// The birth that a session's keys are expected to have; empty where there is none.
    pub fn birth(&self, session_id: &SessionId) -> &str {
        self.shown.get(session_id).map_or("", |shown| &shown.birth)
    }

    pub fn note_birth(&mut self, session_id: &SessionId, birth: String) {
        if let Some(shown) = self.shown.get_mut(session_id) {
            shown.birth = birth;
        }
    }

    /// All keys may have been made anew.
    pub fn expect_nothing(&mut self) {
        self.shown.values_mut().for_each(|shown| shown.birth.clear());
    }

    /// Whether a snapshot would be used at once. That of a large session is asked for once per frame.
    pub fn wants_snapshot(&self, session_id: &SessionId, now: Instant) -> bool {
        let is_here = self.registry.contains(session_id.as_str());
        let wants = |shown: &Shown| shown.wants_snapshot(now);
        !is_here || self.shown.get(session_id).is_none_or(wants)
    }

    /// Keeps what other nodes are to be told until there is a snapshot to go with it. Gives it back where clients here
    /// were shown nothing yet.
    pub fn defer(
        &mut self,
        session_id: &SessionId,
        events: Vec<StatusEvent>,
    ) -> Result<(), Vec<StatusEvent>> {
        let Some(shown) = self.shown.get_mut(session_id) else {
            return Err(events);
        };
        shown.unpublished.get_or_insert_default().extend(events);
        Ok(())
    }

    /// Whether clients here were told that this user is there.
    pub fn has_told(&self, session_id: &SessionId, user_id: &UserId) -> bool {
        let shown = self.shown.get(session_id);
        shown.is_some_and(|shown| shown.has_told(user_id))
    }

    pub fn take_deferred(&mut self, session_id: &SessionId) -> Option<Vec<StatusEvent>> {
        self.shown.get_mut(session_id)?.unpublished.take()
    }

    /// Shows what Redis says of a session, to everyone or to those who have come.
    pub async fn show(
        &mut self,
        session: &Arc<Session>,
        joiners: Vec<Arc<ConnectionWriter>>,
        applied: Applied,
    ) {
        let now = Instant::now();
        let shown = match (self.shown.get_mut(&session.id), &applied.snapshot) {
            (Some(shown), _) => shown,
            (None, Some(status)) => {
                let came: Vec<_> = applied.came().cloned().collect();
                let before = Shown::before(status, &came, now);
                self.shown.entry(session.id.clone()).or_insert(before)
            }
            (None, None) => return,
        };
        shown.joiners.extend(joiners);
        shown.birth.clone_from(&applied.birth);
        let Some(status) = applied.snapshot else {
            self.waiting.insert(session.id.clone());
            return;
        };
        let is_suspect = self.suspects.contains_key(&session.id);
        shown.update(applied.version, status, is_suspect);
        loop {
            let next = shown.next(now, &applied.latest);
            let events = match &next {
                Next::Everyone(events) => events.as_slice(),
                Next::Joiners => &[],
                Next::Later => {
                    self.waiting.insert(session.id.clone());
                    return;
                }
                Next::Nothing => return,
            };
            self.metrics.status_frames.inc();
            let Some(frame) =
                server::connection_status_update(&session.id, &shown.status, events, &timestamp())
            else {
                return;
            };
            if next == Next::Joiners {
                for writer in shown.joiners.drain(..) {
                    writer.send_required(&frame);
                }
            } else {
                deliver_in_slices(&session.members(), &frame).await;
            }
        }
    }

    /// Nobody of a session is here any more.
    pub fn forget(&mut self, session_id: &SessionId) {
        self.shown.remove(session_id);
        self.suspects.remove(session_id);
    }

    /// Redis is away: forgets sessions that have ended, and those who came and went.
    pub fn forget_the_gone(&mut self) {
        let registry = &self.registry;
        self.shown
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        self.suspects
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        for shown in self.shown.values_mut() {
            shown.joiners.retain(|writer| writer.is_open());
        }
    }

    /// Redis has lost what it knew.
    pub fn distrust(&mut self) {
        self.shown.values_mut().for_each(Shown::distrust);
    }
}
