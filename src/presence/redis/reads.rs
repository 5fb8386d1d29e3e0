//! How far users have read, in Redis: receipts are stored and then shown, and new connections get what is stored.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{Pipeline, RedisResult, Value};

use super::keys;
use super::store::Store;
use crate::presence::newest_receipts::NewestReceipts;
use crate::presence::parts::Parts;
use crate::presence::receipts::Receipts;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::receipt::Receipt;
use crate::writer::ConnectionWriter;

/// At most so many receipts, and sessions to read, in one pipeline.
const MAX_PIPELINE: usize = 500;

/// What waits for Redis.
pub struct Reads {
    receipts: NewestReceipts,
    /// New connections that have not been told yet.
    joined: HashMap<SessionId, Vec<Arc<ConnectionWriter>>>,
    shared: Receipts,
}

/// What a pipeline has, in its order, and where it starts.
pub struct Asked {
    first: usize,
    receipts: Vec<Receipt>,
    sessions: Vec<(SessionId, Vec<Arc<ConnectionWriter>>)>,
}

impl Reads {
    pub fn new(parts: &Parts) -> Self {
        Self {
            receipts: NewestReceipts::default(),
            joined: HashMap::new(),
            shared: Receipts::new(parts),
        }
    }

    pub fn add(&mut self, receipts: NewestReceipts) {
        for receipt in receipts.into_values() {
            self.receipts.add(receipt);
        }
    }

    /// Connections have joined a session.
    pub fn joined(&mut self, session_id: &SessionId, joiners: &[Arc<ConnectionWriter>]) {
        if !joiners.is_empty() {
            let joined = self.joined.entry(session_id.clone()).or_default();
            joined.extend(joiners.iter().cloned());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.receipts.is_empty() && self.joined.is_empty()
    }

    /// Redis is unavailable: connections that have closed are forgotten.
    pub fn trim(&mut self) {
        self.joined.retain(|_, joined| {
            joined.retain(|writer| writer.is_open());
            !joined.is_empty()
        });
    }

    /// Adds some of it to a pipeline; what is not answered is added again.
    pub fn add_to(&self, pipeline: &mut Pipeline, store: &Store) -> Asked {
        let first = pipeline.len();
        let receipts: Vec<_> = self.receipts.iter().take(MAX_PIPELINE).cloned().collect();
        for receipt in &receipts {
            store.add_read(pipeline, receipt);
        }
        let joined = self.joined.iter().take(MAX_PIPELINE);
        let sessions: Vec<_> = joined.map(|(id, joined)| (id.clone(), joined.clone())).collect();
        for (session_id, _) in &sessions {
            pipeline.cmd("HGETALL").arg(keys::read(session_id));
        }
        Asked {
            first,
            receipts,
            sessions,
        }
    }

    /// Shows what is stored now, and tells new connections. `answers`: those of the pipeline without its first.
    pub fn answered(&mut self, asked: Asked, answers: &[RedisResult<Value>]) {
        let mut answers = answers.iter().skip(asked.first - 1);
        for (receipt, answer) in asked.receipts.iter().zip(&mut answers) {
            self.receipts.remove(receipt);
            // After a lost answer it is stored already.
            let is_stored = matches!(answer, Ok(Value::Int(1)));
            if is_stored {
                self.shared.show(receipt);
            }
        }
        for ((session_id, joined), answer) in asked.sessions.into_iter().zip(answers) {
            self.joined.remove(&session_id);
            // Another type of key counts as empty.
            let stored = answer.as_ref().map(|answer| read_states(&session_id, answer));
            self.shared
                .add_stored(&session_id, &stored.unwrap_or_default(), &joined);
            for writer in joined {
                self.shared.send_state(&session_id, &writer);
            }
        }
    }
}

/// The answer to `HGETALL`. What can't be read is left out.
fn read_states(session_id: &SessionId, answer: &Value) -> Vec<Receipt> {
    let stored: Vec<(Vec<u8>, Vec<u8>)> = redis::from_redis_value(answer.clone()).unwrap_or_default();
    let reader = |(user_id, text): &(Vec<u8>, Vec<u8>)| {
        let user_id = UserId::parse(std::str::from_utf8(user_id).ok()?)?;
        Receipt::of_stored(session_id, user_id, std::str::from_utf8(text).ok()?)
    };
    stored.iter().filter_map(reader).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let position = "018f4e3a7c1e70008000000000000000";
        let answer = Value::Array(vec![
            text("u1"),
            text(&format!("{position} agent T m 1")),
            text("u2"),
            text("foreign"),
            text("u/3"),
            text(&format!("{position} agent T m")),
        ]);
        let session_id = SessionId::parse("s").unwrap();
        let read = read_states(&session_id, &answer);
        assert_eq!(read.len(), 1);
        assert_eq!(
            (read[0].user_id.as_str(), &*read[0].up_to.message_id),
            ("u1", "m 1")
        );
        assert!(read_states(&session_id, &Value::Nil).is_empty());
    }
}
