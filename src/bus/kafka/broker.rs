//! What the broker is asked by the watch, on a client of its own: where partitions begin and end, and what is read
//! there.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::Shared;
use super::credentials::Credentials;
use super::offsets::Partition;
use super::reasons::Reasons;

/// How long the broker may take for an answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What our own client may have to say, of logs and errors, taken in one look.
const MAX_EVENTS: usize = 1_000;
const DRAIN: Duration = Duration::from_millis(10);

/// There is no record since the time that was asked for.
pub(super) const NO_RECORD: i64 = -1;

pub(super) struct BrokerClient {
    pub(super) shared: Arc<Shared>,
    client: Option<BaseConsumer<Reasons>>,
    /// What the client hears of brokers.
    pub(super) reasons: Reasons,
    credentials: Credentials,
}

impl BrokerClient {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            client: None,
            reasons: Reasons::default(),
            credentials: Credentials::default(),
        }
    }

    /// The next question is asked by a new client.
    pub fn renew(&mut self) {
        self.client = None;
    }

    pub fn refresh_credentials(&mut self) {
        if let Some(client) = &self.client {
            self.credentials.refresh(&self.shared, client.client());
        }
    }

    /// Takes what the client has to say. Nobody else does: while no broker answers it would pile up.
    pub fn drain(&mut self) {
        let Ok(client) = self.client() else { return };
        for _ in 0..MAX_EVENTS {
            // With a moment, or it would end at the first log line.
            if client.poll(DRAIN).is_none() {
                break;
            }
        }
    }

    pub fn client(&mut self) -> KafkaResult<&BaseConsumer<Reasons>> {
        if self.client.is_none() {
            let mut config = self.shared.consumer_config();
            // It reads where a reader stands still, one record, and is to know when there is none.
            config
                .set("queued.max.messages.kbytes", "1024")
                .set("enable.partition.eof", "true");
            self.client = Some(config.create_with_context(self.reasons.clone())?);
        }
        self.client.as_ref().ok_or(KafkaError::Canceled)
    }

    /// Where each partition begins or ends now, or has its first record since a time (milliseconds since 1970, as an
    /// offset), or [`NO_RECORD`]: one request to each of their brokers. `None` where there is no answer.
    pub fn list_offsets(&mut self, asked: &[(Partition, Offset)]) -> KafkaResult<Vec<Option<i64>>> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let shared = Arc::clone(&self.shared);
        let positions = shared.positions(asked.iter().copied())?;
        // A "time" below zero stands for an end of the log.
        let answered = match self.client()?.offsets_for_times(positions, ANSWER_TIMEOUT) {
            // None of them has a leader.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition) => {
                return Ok(vec![None; asked.len()]);
            }
            answered => answered?,
        };
        let answer_of = |&((topic, partition), which): &(Partition, Offset)| {
            let found = answered.find_partition(shared.topic_name(topic), partition)?;
            match (found.error(), found.offset()) {
                (Ok(()), Offset::Offset(offset)) => Some(offset),
                (Ok(()), Offset::End) if matches!(which, Offset::Offset(_)) => Some(NO_RECORD),
                _ => None,
            }
        };
        Ok(asked.iter().map(answer_of).collect())
    }
}
