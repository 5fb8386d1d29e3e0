//! The clients of this node: each change is told once, as the difference to what was shown before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::shown::{Next, Shown};
use super::store::Applied;
use crate::metrics::Metrics;
use crate::protocol::ids::SessionId;
use crate::protocol::status::StatusEvent;
use crate::protocol::{server, timestamp};
use crate::session::fanout::deliver_in_slices;
use crate::session::{Registry, Session};
use crate::ws::Outbox;

pub struct Audience {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    shown: HashMap<SessionId, Shown>,
    /// Sessions in [`Self::shown`] with something that has to wait for its time.
    waiting: HashSet<SessionId>,
}

impl Audience {
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            metrics,
            shown: HashMap::new(),
            waiting: HashSet::new(),
        }
    }

    /// When a session that has waited may be looked at again.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().filter_map(|id| self.shown.get(id));
        waiting.map(Shown::next_frame).min()
    }

    /// Sessions that have waited long enough.
    pub fn take_due(&mut self, now: Instant) -> Vec<SessionId> {
        let is_due = |shown: &Shown| now >= shown.next_frame();
        self.waiting
            .extract_if(|id| self.shown.get(id).is_none_or(is_due))
            .collect()
    }

    /// Whether a snapshot would be used at once. That of a large session is asked for once per frame.
    pub fn wants_snapshot(&self, session_id: &SessionId, now: Instant) -> bool {
        let is_here = self.registry.contains(session_id.as_str());
        let wants = |shown: &Shown| shown.wants_snapshot(now);
        !is_here || self.shown.get(session_id).is_none_or(wants)
    }

    /// Keeps what other nodes are to be told until there is a snapshot to go with it.
    pub fn defer(&mut self, session_id: &SessionId, events: Vec<StatusEvent>) {
        if let Some(shown) = self.shown.get_mut(session_id) {
            shown.unpublished.get_or_insert_default().extend(events);
        }
    }

    pub fn take_deferred(&mut self, session_id: &SessionId) -> Option<Vec<StatusEvent>> {
        self.shown.get_mut(session_id)?.unpublished.take()
    }

    /// Shows what Redis says of a session, to everyone or to those who have come.
    pub async fn show(&mut self, session: &Arc<Session>, joiners: Vec<Arc<Outbox>>, applied: Applied) {
        let now = Instant::now();
        let shown = match (self.shown.get_mut(&session.id), &applied.snapshot) {
            (Some(shown), _) => shown,
            (None, Some(status)) => {
                let before = Shown::before(status, &applied.came, now);
                self.shown.entry(session.id.clone()).or_insert(before)
            }
            (None, None) => return,
        };
        shown.joiners.extend(joiners);
        let Some(status) = applied.snapshot else {
            self.waiting.insert(session.id.clone());
            return;
        };
        shown.update(applied.version, status);
        loop {
            let next = shown.next(now);
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
                for outbox in shown.joiners.drain(..) {
                    outbox.insist(&frame);
                }
            } else {
                deliver_in_slices(&session.members(), &frame).await;
            }
        }
    }

    /// Nobody of a session is here any more.
    pub fn forget(&mut self, session_id: &SessionId) {
        self.shown.remove(session_id);
    }

    /// Redis is away: forgets sessions that have ended, and those who came and went.
    pub fn forget_the_gone(&mut self) {
        let registry = &self.registry;
        self.shown
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        for shown in self.shown.values_mut() {
            shown.joiners.retain(|outbox| outbox.is_open());
        }
    }

    /// Redis has lost what it knew.
    pub fn distrust(&mut self) {
        self.shown.values_mut().for_each(Shown::distrust);
    }
}
