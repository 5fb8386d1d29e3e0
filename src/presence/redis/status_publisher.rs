//! Publishes status records to other nodes and other readers of the status topic, and keeps track of what the log has
//! not acknowledged yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::answers::Applied;
use crate::bus::Bus;
use crate::presence::dirty_sessions::DirtySessions;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::record::{self, Outgoing, RecordKey, Topic};
use crate::protocol::status::{ConnectionStatus, EventType, MAX_LISTED_EVENTS, StatusEvent};
use crate::protocol::timestamp;

/// At most so many sessions wait for the log. Beyond that, everything is published again later.
pub const MAX_WAITING: usize = 20_000;
/// At most so many sessions are removed from the lists in one pipeline.
pub const MAX_ACKNOWLEDGED: usize = 1_000;

/// The outcome of a publication, which may be several records.
#[derive(Clone)]
pub struct Receipt(Arc<ReceiptState>);

struct ReceiptState {
    outstanding: AtomicUsize,
    has_failed: AtomicBool,
}

impl Receipt {
    fn of(records: usize) -> Self {
        Self(Arc::new(ReceiptState {
            outstanding: AtomicUsize::new(records),
            has_failed: AtomicBool::new(false),
        }))
    }

    /// For when there is nothing to publish.
    pub fn acknowledged() -> Self {
        Self::of(0)
    }

    /// One more record has its outcome.
    fn note(&self, is_ok: bool) {
        if !is_ok {
            self.0.has_failed.store(true, Ordering::Release);
        }
        self.0.outstanding.fetch_sub(1, Ordering::AcqRel);
    }

    fn has_failed(&self) -> bool {
        self.0.has_failed.load(Ordering::Acquire)
    }

    fn is_acknowledged(&self) -> bool {
        self.0.outstanding.load(Ordering::Acquire) == 0 && !self.has_failed()
    }
}

/// A session on a node's list, to be removed when the log has acknowledged its status.
pub struct Unacknowledged {
    pub receipt: Receipt,
    /// Users whose leaves are kept in Redis until then.
    pub leaves: Vec<UserId>,
    /// Whether what the log rejects is kept in [`StatusPublisher::failed`].
    pub is_own: bool,
    /// The number of the pipeline that wrote to it last; for lists that others may write to as well.
    pub number: Option<u64>,
}

impl Unacknowledged {
    pub fn own(receipt: Receipt) -> Self {
        Self {
            receipt,
            leaves: Vec::new(),
            is_own: true,
            number: None,
        }
    }
}

/// A session on a node's list whose status the log has acknowledged.
pub struct Acknowledged {
    pub entry: ListEntry,
    pub leaves: Vec<UserId>,
    /// Whether it is removed from the list: it is not in use again.
    pub removes: bool,
    pub number: Option<u64>,
}

/// A node's name and a session: an entry of that node's list.
pub type ListEntry = (Arc<str>, SessionId);

pub struct StatusPublisher {
    bus: Arc<Bus>,
    dirty: Arc<DirtySessions>,
    failed: Arc<Mutex<Failed>>,
    unacknowledged: HashMap<ListEntry, Unacknowledged>,
}

#[derive(Default)]
struct Failed {
    sessions: HashMap<SessionId, Vec<StatusEvent>>,
    /// There were too many to keep.
    has_overflowed: bool,
}

impl StatusPublisher {
    pub fn new(bus: Arc<Bus>, dirty: Arc<DirtySessions>) -> Self {
        Self {
            bus,
            dirty,
            failed: Arc::default(),
            unacknowledged: HashMap::new(),
        }
    }

    /// Publishes a session's status. What the log rejects is returned by [`Self::take_failed`].
    pub fn publish(
        &self,
        session_id: &SessionId,
        status: &ConnectionStatus,
        events: Vec<StatusEvent>,
    ) -> Receipt {
        let failed = Arc::clone(&self.failed);
        let id = session_id.clone();
        self.publish_all(session_id, status, events, false, move |events| {
            let Failed {
                sessions,
                has_overflowed,
            } = &mut *failed.lock();
            if sessions.len() >= MAX_WAITING && !sessions.contains_key(&id) {
                *has_overflowed = true;
                return;
            }
            let kept = sessions.entry(id.clone()).or_default();
            kept.extend(events);
            // The newest are kept: others mostly need to know that something has changed.
            kept.drain(..kept.len().saturating_sub(MAX_LISTED_EVENTS));
        })
    }

    /// Publishes the leaves of a dead node's users. What the log rejects is still in Redis.
    pub fn publish_leaves(
        &self,
        session_id: &SessionId,
        status: &ConnectionStatus,
        events: Vec<StatusEvent>,
    ) -> Receipt {
        self.publish_all(session_id, status, events, true, drop)
    }

    /// Publishes one record, or several if there are too many events for one.
    /// `wakes`: the presence task runs again when the log has acknowledged it.
    fn publish_all(
        &self,
        session_id: &SessionId,
        status: &ConnectionStatus,
        events: Vec<StatusEvent>,
        wakes: bool,
        on_failure: impl Fn(Vec<StatusEvent>) + Clone + Send + Sync + 'static,
    ) -> Receipt {
        let mut parts: Vec<_> = events.chunks(MAX_LISTED_EVENTS).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let receipt = Receipt::of(parts.len());
        for events in parts {
            let (theirs, on_failure, dirty) = (receipt.clone(), on_failure.clone(), Arc::clone(&self.dirty));
            let Some(value) = record::status_value(session_id, status, &events, &timestamp()) else {
                // As if the log had rejected it.
                theirs.note(false);
                on_failure(events);
                continue;
            };
            let key = RecordKey::Session(session_id.clone());
            let outgoing = Outgoing::legacy(Topic::Status, key, value);
            self.bus.publish(
                outgoing,
                Box::new(move |outcome| {
                    theirs.note(outcome.is_ok());
                    // After a rejection the log is left alone until the next upkeep.
                    match outcome {
                        Ok(()) if wakes => dirty.wake(),
                        Ok(()) => {}
                        Err(_) => on_failure(events),
                    }
                }),
            );
        }
        receipt
    }

    /// What has to be published again; `None` if that is everything. Only to be called while the log is available. What
    /// was rejected under other names than `node`, our own, is found again on the lists in Redis.
    pub fn take_failed(&mut self, node: &str) -> Option<HashMap<SessionId, Vec<StatusEvent>>> {
        self.unacknowledged.retain(|(of, _), unacknowledged| {
            let is_kept_here = unacknowledged.is_own && **of == *node;
            is_kept_here || !unacknowledged.receipt.has_failed()
        });
        let failed = std::mem::take(&mut *self.failed.lock());
        if failed.has_overflowed {
            // They are still on our list in Redis.
            self.unacknowledged
                .retain(|_, unacknowledged| !unacknowledged.receipt.has_failed());
            return None;
        }
        Some(failed.sessions)
    }

    /// Removes the session from the node's list as soon as the log has acknowledged its status.
    pub fn track(&mut self, entry: ListEntry, unacknowledged: Unacknowledged) {
        if self.is_full() && !self.is_tracked(&entry) {
            // It stays on the list in Redis.
            self.failed.lock().has_overflowed = true;
            return;
        }
        self.unacknowledged.insert(entry, unacknowledged);
    }

    /// Like [`Self::track`], if nothing is published and the session is not waiting for the log already.
    pub fn track_unpublished(&mut self, entry: ListEntry, number: Option<u64>) {
        if !self.is_tracked(&entry) {
            let mut unacknowledged = Unacknowledged::own(Receipt::acknowledged());
            unacknowledged.number = number;
            self.track(entry, unacknowledged);
        }
    }

    pub fn is_full(&self) -> bool {
        self.unacknowledged.len() >= MAX_WAITING
    }

    /// Whether this entry waits for the log.
    pub fn is_tracked(&self, entry: &ListEntry) -> bool {
        self.unacknowledged.contains_key(entry)
    }

    pub fn is_idle(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// Some of the acknowledged entries, except for those of `node`, our own name, that are in use again or have a
    /// pending write.
    pub fn acknowledged(
        &mut self,
        node: &str,
        is_in_use: impl Fn(&SessionId) -> bool,
        is_pending: impl Fn(&SessionId) -> bool,
    ) -> Vec<Acknowledged> {
        self.unacknowledged.retain(|(of, session_id), unacknowledged| {
            **of != *node || !unacknowledged.leaves.is_empty() || !is_in_use(session_id)
        });
        let acknowledged = self
            .unacknowledged
            .iter()
            .filter(|((of, session_id), unacknowledged)| {
                unacknowledged.receipt.is_acknowledged() && !(**of == *node && is_pending(session_id))
            });
        acknowledged
            .take(MAX_ACKNOWLEDGED)
            .map(|(entry, unacknowledged)| Acknowledged {
                entry: entry.clone(),
                leaves: unacknowledged.leaves.clone(),
                removes: *entry.0 != *node || !is_in_use(&entry.1),
                number: unacknowledged.number,
            })
            .collect()
    }

    /// Redis has lost data, maybe only the latest: users whose removal has been published may be back. So their
    /// sessions stay on the lists, and are reaped again.
    pub fn forget_all(&mut self) {
        self.unacknowledged.clear();
    }

    /// These are removed from the lists.
    pub fn forget(&mut self, acknowledged: &[Acknowledged]) {
        for Acknowledged { entry, .. } in acknowledged {
            self.unacknowledged.remove(entry);
        }
    }
}

/// The events of a change; if they are published again, their ids stay the same.
pub fn change_events(applied: &Applied) -> Vec<StatusEvent> {
    let changes = applied.changes.iter();
    changes
        .map(|(event_type, user_id)| event(*event_type, user_id, applied.version))
        .collect()
}

/// The leaves that a node's death causes.
pub fn leave_events(leaves: &[(UserId, u64)]) -> Vec<StatusEvent> {
    leaves
        .iter()
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
