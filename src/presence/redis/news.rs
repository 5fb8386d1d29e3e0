//! What other nodes, and other readers of the status topic, are told; and what is still to be told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::store::Applied;
use crate::bus::Bus;
use crate::presence::inbox::Inbox;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::record::{self, Form, Outgoing, Topic};
use crate::protocol::status::{ConnectionStatus, EventType, MAX_LISTED_EVENTS, StatusEvent};
use crate::protocol::timestamp;

/// Sessions whose news waits for the log, at most. With more, only that there is news is remembered.
const MAX_WAITING: usize = 20_000;
/// The most sessions that one pipeline takes off the lists.
pub const MAX_SETTLED: usize = 1_000;

/// What became of a publication.
#[derive(Clone)]
pub struct Receipt(Arc<AtomicU8>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Unknown = 0,
    Told = 1,
    Failed = 2,
}

impl Receipt {
    fn new(outcome: Outcome) -> Self {
        Self(Arc::new(AtomicU8::new(outcome as u8)))
    }

    /// There was nothing to publish.
    pub fn told() -> Self {
        Self::new(Outcome::Told)
    }

    fn set(&self, outcome: Outcome) {
        self.0.store(outcome as u8, Ordering::Release);
    }

    fn is(&self, outcome: Outcome) -> bool {
        self.0.load(Ordering::Acquire) == outcome as u8
    }
}

/// A session of a node's list that can leave it when the log has the news.
pub struct Unsettled {
    receipt: Receipt,
    /// Users whose leave is kept in Redis until then.
    left: Vec<UserId>,
    /// Whether what the log refuses is kept in [`News::failed`].
    is_own: bool,
}

/// A node (name, boot and, after a lost lease, a number) and a session.
pub type Place = (Arc<str>, SessionId);

pub struct News {
    bus: Arc<Bus>,
    inbox: Arc<Inbox>,
    failed: Arc<Mutex<Failed>>,
    unsettled: HashMap<Place, Unsettled>,
}

#[derive(Default)]
struct Failed {
    sessions: HashMap<SessionId, Vec<StatusEvent>>,
    /// There were too many to keep.
    lost: bool,
}

impl News {
    pub fn new(bus: Arc<Bus>, inbox: Arc<Inbox>) -> Self {
        Self {
            bus,
            inbox,
            failed: Arc::default(),
            unsettled: HashMap::new(),
        }
    }

    /// Publishes a session's status. What the log refuses is given back by [`Self::take_failed`].
    pub fn publish(
        &self,
        session_id: &SessionId,
        status: &ConnectionStatus,
        events: Vec<StatusEvent>,
    ) -> Receipt {
        let failed = Arc::clone(&self.failed);
        let id = session_id.clone();
        self.publish_all(session_id, status, events, false, move |events| {
            let Failed { sessions, lost } = &mut *failed.lock();
            if sessions.len() >= MAX_WAITING && !sessions.contains_key(&id) {
                *lost = true;
                return;
            }
            let kept = sessions.entry(id.clone()).or_default();
            kept.extend(events);
            // The newest: what matters most is that there is news.
            kept.drain(..kept.len().saturating_sub(MAX_LISTED_EVENTS));
        })
    }

    /// Publishes what a dead node's users leave behind. What the log refuses is still in Redis.
    pub fn publish_left(
        &self,
        session_id: &SessionId,
        status: &ConnectionStatus,
        events: Vec<StatusEvent>,
    ) -> Receipt {
        self.publish_all(session_id, status, events, true, drop)
    }

    /// One record, or several where there are more events than one has room for; the receipt is the last one's.
    /// `nudges`: the pipeline task goes on when it is there.
    fn publish_all(
        &self,
        session_id: &SessionId,
        status: &ConnectionStatus,
        mut events: Vec<StatusEvent>,
        nudges: bool,
        on_failure: impl Fn(Vec<StatusEvent>) + Clone + Send + Sync + 'static,
    ) -> Receipt {
        loop {
            let rest = events.split_off(events.len().min(MAX_LISTED_EVENTS));
            let receipt = Receipt::new(Outcome::Unknown);
            let (theirs, on_failure, inbox) = (receipt.clone(), on_failure.clone(), Arc::clone(&self.inbox));
            let outgoing = Outgoing {
                topic: Topic::Status,
                key: session_id.clone(),
                value: record::status_value(session_id, status, &events, &timestamp()),
                form: Form::Old,
                message_id: None,
            };
            self.bus.publish(
                outgoing,
                Box::new(move |outcome| {
                    if outcome.is_ok() {
                        theirs.set(Outcome::Told);
                        if nudges {
                            inbox.nudge();
                        }
                    } else {
                        // Tried again with a heartbeat: a log that refuses at once is left alone until then.
                        theirs.set(Outcome::Failed);
                        on_failure(events);
                    }
                }),
            );
            if rest.is_empty() {
                return receipt;
            }
            events = rest;
        }
    }

    /// What is to be published again; `None` when that is everything. Ask only when the log answers.
    pub fn take_failed(&mut self) -> Option<HashMap<SessionId, Vec<StatusEvent>>> {
        // Of other nodes' sessions, what was refused is still in Redis, and found again there.
        self.unsettled
            .retain(|_, unsettled| unsettled.is_own || !unsettled.receipt.is(Outcome::Failed));
        let failed = std::mem::take(&mut *self.failed.lock());
        if failed.lost {
            // They are on our list in Redis, and found again there.
            self.unsettled.clear();
            return None;
        }
        Some(failed.sessions)
    }

    /// The session leaves the node's list as soon as the log has the news.
    pub fn settle_with(&mut self, place: Place, receipt: Receipt, left: Vec<UserId>, is_own: bool) {
        if self.is_full() && !self.is_unsettled(&place) {
            // It stays on the list in Redis.
            self.failed.lock().lost = true;
            return;
        }
        let unsettled = Unsettled {
            receipt,
            left,
            is_own,
        };
        self.unsettled.insert(place, unsettled);
    }

    pub fn is_full(&self) -> bool {
        self.unsettled.len() >= MAX_WAITING
    }

    /// As [`Self::settle_with`], where nothing is published, unless it waits for something already.
    pub fn settle_without(&mut self, place: Place) {
        if !self.is_unsettled(&place) {
            self.settle_with(place, Receipt::told(), Vec::new(), false);
        }
    }

    /// Whether a session of a node's list waits for the log.
    pub fn is_unsettled(&self, place: &Place) -> bool {
        self.unsettled.contains_key(place)
    }

    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// Some sessions that others know of and that can leave their node's list, but for those of `node`, this one,
    /// that are in use again or have something pending.
    pub fn settled(
        &mut self,
        node: &str,
        is_in_use: impl Fn(&SessionId) -> bool,
        is_pending: impl Fn(&SessionId) -> bool,
    ) -> Vec<(Place, Vec<UserId>)> {
        self.unsettled
            .retain(|(of, session_id), _| **of != *node || !is_in_use(session_id));
        let settled = self.unsettled.iter().filter(|((of, session_id), unsettled)| {
            unsettled.receipt.is(Outcome::Told) && !(**of == *node && is_pending(session_id))
        });
        settled
            .take(MAX_SETTLED)
            .map(|(place, unsettled)| (place.clone(), unsettled.left.clone()))
            .collect()
    }

    /// They have left the list.
    pub fn forget(&mut self, places: &[(Place, Vec<UserId>)]) {
        for (place, _) in places {
            self.unsettled.remove(place);
        }
    }
}

/// The events of a change, with ids that are the same whenever they are told again.
pub fn events(applied: &Applied) -> Vec<StatusEvent> {
    let event = |event_type| move |user_id: &UserId| event(event_type, user_id, applied.version);
    let gone = applied.gone.iter().map(event(EventType::UserDisconnected));
    gone.chain(applied.came.iter().map(event(EventType::UserConnected)))
        .collect()
}

/// The events of a node's death.
pub fn leaves(left: &[(UserId, u64)]) -> Vec<StatusEvent> {
    left.iter()
        .map(|(user_id, version)| event(EventType::UserDisconnected, user_id, *version))
        .collect()
}

fn event(event_type: EventType, user_id: &UserId, version: u64) -> StatusEvent {
    StatusEvent {
        event_type,
        event_user_id: user_id.clone(),
        event_id: Some(format!("{version}:{user_id}")),
    }
}
