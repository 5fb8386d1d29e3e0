//! Passes over records that repeat a message, and tells senders which messages this node has read.

use std::sync::Arc;

use crate::history::Sent;
use crate::history::sent::{Key, SentMessages, SentRecord};
use crate::metrics::Metrics;
use crate::protocol::record::{Converter, Incoming, Poison};

/// A message that was read, and the first record of it.
pub type ReadMessage = (Key, Sent);

/// Called with the messages of a batch once they have been handed to the members of their sessions; takes them out. It
/// must not block.
pub type MessagesRead = Box<dyn Fn(&mut Vec<ReadMessage>) + Send>;

/// Which records of the messages topic repeat an earlier one. Used by the thread that reads them.
pub struct Repeats {
    sent: Arc<SentMessages>,
    on_read: MessagesRead,
    /// Of the current batch.
    read: Vec<ReadMessage>,
    converter: Converter,
    metrics: Arc<Metrics>,
}

impl Repeats {
    pub fn new(sent: Arc<SentMessages>, on_read: MessagesRead, metrics: Arc<Metrics>) -> Self {
        Self {
            sent,
            on_read,
            read: Vec::new(),
            converter: Converter::default(),
            metrics,
        }
    }

    /// Whether a valid native record is passed over.
    pub fn is_repeat(
        &mut self,
        session_id: &str,
        incoming: &Incoming<'_>,
        value: &[u8],
        is_live: bool,
    ) -> bool {
        let Some(client_id) = incoming.client_id else {
            return false;
        };
        self.check(session_id, client_id, incoming, is_live, || {
            Sent::of_node(incoming.node, incoming.message_id)
                .unwrap_or_else(|| Sent::of_payload(value, incoming.message_id, incoming.time))
        })
    }

    /// Whether a legacy record is passed over. One with a client id is rare, and converted for this alone.
    pub fn is_legacy_repeat(
        &mut self,
        incoming: &Incoming<'_>,
        value: &[u8],
        is_live: bool,
    ) -> Result<bool, Poison> {
        let Some(client_id) = incoming.client_id else {
            return Ok(false);
        };
        let Some((session_id, payload)) = self.converter.message(value, |_| true)? else {
            return Ok(false);
        };
        let message = || Sent::of_payload(&payload, None, incoming.time);
        Ok(self.check(session_id.as_str(), client_id, incoming, is_live, message))
    }

    fn check(
        &mut self,
        session_id: &str,
        client_id: &[u8],
        incoming: &Incoming<'_>,
        is_live: bool,
        message: impl FnOnce() -> Sent,
    ) -> bool {
        let Some(key) = self.sent.key_of_header(session_id, client_id) else {
            return false;
        };
        let record = SentRecord {
            key,
            partition: incoming.partition,
            time: incoming.time,
        };
        let known = self.sent.read(record, message);
        let metrics = &self.metrics.history;
        if known.is_repeat {
            metrics.duplicates_skipped.inc();
        }
        if known.forgotten > 0 {
            metrics.dedup_forgotten.inc_by(known.forgotten);
        }
        if is_live {
            self.read.push((key, known.first));
        }
        known.is_repeat
    }

    /// The batch has been delivered.
    pub fn delivered(&mut self) {
        if !self.read.is_empty() {
            (self.on_read)(&mut self.read);
            self.read.clear();
        }
    }
}
