//! Read receipts: shown to the others of a session, on this node and on all others, and to who joins.

use std::sync::Arc;

use super::parts::Parts;
use crate::bus::Bus;
use crate::fanout::broadcast;
use crate::protocol::ids::SessionId;
use crate::protocol::receipt::Receipt;
use crate::protocol::record::{Outgoing, RecordKey, Topic};
use crate::session::{Activity, Registry};
use crate::writer::ConnectionWriter;

#[derive(Clone)]
pub struct Receipts {
    registry: Arc<Registry>,
    activity: Arc<Activity>,
    bus: Arc<Bus>,
}

impl Receipts {
    pub fn new(parts: &Parts) -> Self {
        Self {
            registry: Arc::clone(&parts.registry),
            activity: Arc::clone(&parts.activity),
            bus: Arc::clone(&parts.bus),
        }
    }

    /// Shows it to the others, here and on other nodes, unless it is no news.
    pub fn show(&self, receipt: &Receipt) -> bool {
        let is_news = broadcast::receipt(&self.registry, &self.activity.reads, receipt);
        if is_news {
            self.publish(receipt);
        }
        is_news
    }

    /// The other nodes are told without an acknowledgement, as of typing: whoever joins later is told by the store.
    fn publish(&self, receipt: &Receipt) {
        let Some(value) = receipt.record_value() else {
            return;
        };
        let key = RecordKey::Session(receipt.session_id.clone());
        self.bus
            .publish_unacknowledged(Outgoing::legacy(Topic::Typing, key, value));
    }

    /// Adds what Redis has of a session that connections have joined.
    pub fn add_stored(&self, session_id: &SessionId, stored: &[Receipt], joined: &[Arc<ConnectionWriter>]) {
        broadcast::stored_receipts(&self.registry, &self.activity.reads, session_id, stored, joined);
    }

    /// Sends a new connection how far the users of its session have read.
    pub fn send_state(&self, session_id: &SessionId, writer: &Arc<ConnectionWriter>) {
        broadcast::read_state(&self.activity.reads, session_id, writer);
    }
}
