//! What other nodes, and other readers of the status topic, are told; and what is still to be told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::answers::Applied;
use crate::bus::Bus;
use crate::presence::inbox::Inbox;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::record::{self, Form, Outgoing, Topic};
use crate::protocol::status::{ConnectionStatus, EventType, MAX_LISTED_EVENTS, StatusEvent};
use crate::protocol::timestamp;

/// Sessions whose news waits for the log, at most. With more, only that there is news is remembered.
pub const MAX_WAITING: usize = 20_000;
/// The most sessions that one pipeline takes off the lists.
pub const MAX_SETTLED: usize = 1_000;

/// What became of a publication, maybe of several records.
#[derive(Clone)]
pub struct Receipt(Arc<Open>);

struct Open {
    left: AtomicUsize,
    has_failed: AtomicBool,
}

impl Receipt {
    fn of(records: usize) -> Self {
        Self(Arc::new(Open {
            left: AtomicUsize::new(records),
            has_failed: AtomicBool::new(false),
        }))
    }

    /// There was nothing to publish.
    pub fn told() -> Self {
        Self::of(0)
    }

    /// One more has its outcome.
    fn note(&self, is_ok: bool) {
        if !is_ok {
            self.0.has_failed.store(true, Ordering::Release);
        }
        self.0.left.fetch_sub(1, Ordering::AcqRel);
    }

    fn has_failed(&self) -> bool {
        self.0.has_failed.load(Ordering::Acquire)
    }

    fn is_told(&self) -> bool {
        self.0.left.load(Ordering::Acquire) == 0 && !self.has_failed()
    }
}

/// A session of a node's list that can leave it when the log has the news.
pub struct Unsettled {
    pub receipt: Receipt,
    /// Users whose leave is kept in Redis until then.
    pub left: Vec<UserId>,
    /// Whether what the log refuses is kept in [`News::failed`].
    pub is_own: bool,
    /// The number of the pipeline that had written to it last, where somebody else may write again.
    pub number: Option<u64>,
}

impl Unsettled {
    pub fn own(receipt: Receipt) -> Self {
        Self {
            receipt,
            left: Vec::new(),
            is_own: true,
            number: None,
        }
    }
}

/// What is to be done about one whose news the log has.
pub struct Settled {
    pub place: Place,
    pub left: Vec<UserId>,
    /// Whether it leaves the list: it is not in use again.
    pub removes: bool,
    pub number: Option<u64>,
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

    /// One record, or several where there are more events than one has room for.
    /// `nudges`: the pipeline task goes on when it is there.
    fn publish_all(
        &self,
        session_id: &SessionId,
        status: &ConnectionStatus,
        events: Vec<StatusEvent>,
        nudges: bool,
        on_failure: impl Fn(Vec<StatusEvent>) + Clone + Send + Sync + 'static,
    ) -> Receipt {
        let mut parts: Vec<_> = events.chunks(MAX_LISTED_EVENTS).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let receipt = Receipt::of(parts.len());
        for events in parts {
            let (theirs, on_failure, inbox) = (receipt.clone(), on_failure.clone(), Arc::clone(&self.inbox));
            let Some(value) = record::status_value(session_id, status, &events, &timestamp()) else {
                // As if the log had refused it.
                theirs.note(false);
                on_failure(events);
                continue;
            };
            let outgoing = Outgoing {
                topic: Topic::Status,
                key: session_id.clone(),
                value,
                form: Form::Old,
                message_id: None,
            };
            self.bus.publish(
                outgoing,
                Box::new(move |outcome| {
                    theirs.note(outcome.is_ok());
                    // A log that refuses is left alone until the next upkeep.
                    match outcome {
                        Ok(()) if nudges => inbox.nudge(),
                        Ok(()) => {}
                        Err(_) => on_failure(events),
                    }
                }),
            );
        }
        receipt
    }

    /// What is to be published again; `None` when that is everything. Ask only when the log answers. Under other names
    /// than `node`, this one, what was refused is found again on the lists in Redis.
    pub fn take_failed(&mut self, node: &str) -> Option<HashMap<SessionId, Vec<StatusEvent>>> {
        self.unsettled.retain(|(of, _), unsettled| {
            let is_kept_here = unsettled.is_own && **of == *node;
            is_kept_here || !unsettled.receipt.has_failed()
        });
        let failed = std::mem::take(&mut *self.failed.lock());
        if failed.lost {
            // They are on our list in Redis, and found again there.
            self.unsettled
                .retain(|_, unsettled| !unsettled.receipt.has_failed());
            return None;
        }
        Some(failed.sessions)
    }

    /// The session leaves the node's list as soon as the log has the news.
    pub fn settle_with(&mut self, place: Place, unsettled: Unsettled) {
        if self.is_full() && !self.is_still_moving(&place) {
            // It stays on the list in Redis.
            self.failed.lock().lost = true;
            return;
        }
        self.unsettled.insert(place, unsettled);
    }

    /// As [`Self::settle_with`], where nothing is published, unless it waits for something already.
    pub fn settle_without(&mut self, place: Place, number: Option<u64>) {
        if !self.is_still_moving(&place) {
            let mut unsettled = Unsettled::own(Receipt::told());
            unsettled.number = number;
            self.settle_with(place, unsettled);
        }
    }

    pub fn is_full(&self) -> bool {
        self.unsettled.len() >= MAX_WAITING
    }

    /// Whether a session of a node's list waits for the log.
    pub fn is_still_moving(&self, place: &Place) -> bool {
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
    ) -> Vec<Settled> {
        self.unsettled.retain(|(of, session_id), unsettled| {
            **of != *node || !unsettled.left.is_empty() || !is_in_use(session_id)
        });
        let settled = self.unsettled.iter().filter(|((of, session_id), unsettled)| {
            unsettled.receipt.is_told() && !(**of == *node && is_pending(session_id))
        });
        settled
            .take(MAX_SETTLED)
            .map(|(place, unsettled)| Settled {
                place: place.clone(),
                left: unsettled.left.clone(),
                removes: *place.0 != *node || !is_in_use(&place.1),
                number: unsettled.number,
            })
            .collect()
    }

    /// It is done.
    pub fn forget(&mut self, settled: &[Settled]) {
        for Settled { place, .. } in settled {
            self.unsettled.remove(place);
        }
    }
}

/// The events of a change, with ids that are the same whenever they are told again.
pub fn events(applied: &Applied) -> Vec<StatusEvent> {
    let changes = applied.changes.iter();
    changes
        .map(|(event_type, user_id)| event(*event_type, user_id, applied.version))
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
        event_id: Some(format!("{version}:{}", user_id.as_str())),
    }
}
