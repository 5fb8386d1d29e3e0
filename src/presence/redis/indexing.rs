//! Writes the index of all sessions, and follows it for the lobby: the first commands of a pipeline.

use redis::{Pipeline, RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::index_store::read_feed;
use super::presence_task::PresenceTask;
use super::session_entry::StateAfter;
use crate::clock;
use crate::protocol::ids::SessionId;

/// The commands at the start of a pipeline.
#[derive(Default)]
pub(super) struct Indexed {
    /// What is written; empty: there is no such command.
    rows: Vec<(SessionId, StateAfter)>,
    /// From where on the feed is read, if it is.
    from: Option<u64>,
}

impl PresenceTask {
    /// Adds what has to be written to the index and, if somebody is in the lobby, the reading of what has changed in it.
    /// During a recovery it knows too little to be read.
    pub(super) fn add_index(&mut self, pipeline: &mut Pipeline) -> Indexed {
        let rows = self.index.rows();
        if !rows.is_empty() {
            self.store.add_index(pipeline, &rows);
        }
        let from = match self.lease.state().is_recovering() {
            true => None,
            false => self.feed.next(&self.parts.lobby),
        };
        if let Some(from) = from {
            self.store.add_feed(pipeline, from);
        }
        Indexed { rows, from }
    }

    /// Handles the answers to these commands, without which the others are returned: none of a pipeline's own.
    pub(super) fn indexed(
        &mut self,
        indexed: Indexed,
        mut answers: Vec<RedisResult<Value>>,
    ) -> Vec<RedisResult<Value>> {
        let Indexed { rows, from } = indexed;
        let mut next = 0;
        if !rows.is_empty() {
            if let Some(Err(error)) = answers.get(next) {
                self.index_refused(error);
            }
            // A refusal will be the same next time; the checks write it again.
            self.index.written(&rows);
            next += 1;
        }
        // The pipeline may have found a loss of data, which only this node's state tells.
        if let Some(from) = from
            && let Some(answer) = answers.get_mut(next)
        {
            let answer = std::mem::replace(answer, Ok(Value::Nil));
            match answer.and_then(read_feed) {
                Ok(page) => {
                    let has_more = self.feed.read(from, &page, &self.parts.lobby, clock::unix_ms());
                    if has_more {
                        self.next_heartbeat = Instant::now();
                    }
                }
                Err(error) => self.index_refused(&error),
            }
        }
        answers
    }

    fn index_refused(&mut self, error: &RedisError) {
        self.parts.metrics.redis_refusals.inc();
        if self.refusal_log.allows() {
            tracing::warn!(code = error.code(), "Redis refuses the index of sessions");
        }
    }

    /// Writes what is left for the index.
    pub(super) async fn flush_index(&mut self) -> Result<(), RedisError> {
        while self.index.has_rows() {
            if !self.write_sessions(Vec::new()).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}
