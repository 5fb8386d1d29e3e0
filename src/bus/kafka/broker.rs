//! The monitor's own client, which asks the broker where partitions begin and end, and reads single records.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::Shared;
use super::credentials::Credentials;
use super::offsets::Partition;
use super::reasons::Reasons;

/// How long to wait for the broker's answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The most events of our own client, logs and errors, that are drained per probe.
const MAX_EVENTS: usize = 1_000;
const DRAIN: Duration = Duration::from_millis(10);

/// The answer where there is no record since the time that was asked for.
pub(super) const NO_RECORD: i64 = -1;

pub(super) struct BrokerClient {
    pub(super) shared: Arc<Shared>,
    client: Option<BaseConsumer<Reasons>>,
    /// Why brokers can't be reached, as the client reports it.
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

    /// Drops the client: the next request creates a new one.
    pub fn recreate_client(&mut self) {
        self.client = None;
    }

    pub fn refresh_credentials(&mut self) {
        if let Some(client) = &self.client {
            self.credentials.refresh(&self.shared, client.client());
        }
    }

    /// Drains the client's events. Nothing else does, and while no broker answers they would pile up.
    pub fn drain(&mut self) {
        let Ok(client) = self.client() else { return };
        for _ in 0..MAX_EVENTS {
            // With a timeout of zero, this would stop at the first log line.
            if client.poll(DRAIN).is_none() {
                break;
            }
        }
    }

    pub fn client(&mut self) -> KafkaResult<&BaseConsumer<Reasons>> {
        if self.client.is_none() {
            let mut config = self.shared.consumer_config();
            // It reads one record where a reader has stalled, and has to know when there is none.
            config
                .set("queued.max.messages.kbytes", "1024")
                .set("enable.partition.eof", "true");
            self.client = Some(config.create_with_context(self.reasons.clone())?);
        }
        self.client.as_ref().ok_or(KafkaError::Canceled)
    }

    /// The beginning or end of each partition, or the offset of its first record since a time (given as an offset, in
    /// milliseconds since 1970), or [`NO_RECORD`]. Sends one request to each broker involved. `None`: no answer.
    pub fn list_offsets(&mut self, asked: &[(Partition, Offset)]) -> KafkaResult<Vec<Option<i64>>> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let shared = Arc::clone(&self.shared);
        let positions = shared.positions(asked.iter().copied())?;
        // A negative "time" stands for the beginning or end of the log.
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
