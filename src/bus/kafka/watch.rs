//! The watch: asks the broker every moment what there is, on a thread and a client of its own, so that a broker
//! that doesn't answer delays nobody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::offsets::{Offsets, Partition};
use super::producer::Producer;
use super::topic_id::{self, TopicId};
use super::{Context, Shared};
use crate::bus::Status;
use crate::protocol::record::Topic;

/// How often the broker is asked, and for how long it may think: a loss shows in health within five seconds.
const INTERVAL: Duration = Duration::from_millis(1_500);
const PATIENCE: Duration = Duration::from_secs(2);
/// While starting, a broker that has just come up is found sooner.
const STARTING_INTERVAL: Duration = Duration::from_millis(250);
/// How often positions are compared with the log's ends.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);
/// How often a missing topic is asked for again.
const CREATE_INTERVAL: Duration = Duration::from_secs(10);
/// Typing and status are worth nothing later: an hour helps whoever looks into an incident.
const SHORT_RETENTION_MS: &str = "3600000";

pub(super) struct Watch {
    shared: Arc<Shared>,
    producer: Arc<Producer>,
    runtime: Handle,
    client: Option<BaseConsumer<Context>>,
    /// Topics that the broker has said do not exist before they were ever read: when they come, they are read from
    /// their beginning.
    missing: HashSet<Topic>,
    /// The topics that are read, by their ids: partitions that come later are read from their beginning, and a
    /// topic with another id is another topic.
    known: HashMap<Topic, TopicId>,
    /// By reader.
    audited: [Audited; 2],
    last_create: Option<Instant>,
    /// Whether the last probe failed: each outage is logged once.
    has_failed: bool,
}

/// One reader's last audit.
struct Audited {
    last: Instant,
    /// Positions of the partitions that had more to read.
    behind: BTreeMap<Partition, i64>,
    /// Partitions with nothing between these position and end but what is never delivered: the ends of transactions, and
    /// what those that were aborted had.
    silent: BTreeMap<Partition, (i64, i64)>,
}

impl Watch {
    pub fn new(shared: Arc<Shared>, producer: Arc<Producer>, runtime: Handle) -> Self {
        Self {
            shared,
            producer,
            runtime,
            client: None,
            missing: HashSet::new(),
            known: HashMap::new(),
            audited: [(); 2].map(|()| Audited {
                last: Instant::now(),
                behind: BTreeMap::new(),
                silent: BTreeMap::new(),
            }),
            last_create: None,
            has_failed: false,
        }
    }

    pub fn run(mut self) {
        while !self.shared.is_stopping() {
            let result = self.probe();
            self.report(&result);
            self.producer.check();
            let interval = match self.shared.status() {
                Status::Connecting => STARTING_INTERVAL,
                Status::Ok | Status::Degraded => INTERVAL,
            };
            let until = Instant::now() + interval;
            while !self.shared.is_stopping() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                // Whoever stops the bus unparks this thread.
                thread::park_timeout(left);
            }
        }
    }

    /// One look.
    fn probe(&mut self) -> KafkaResult<Found> {
        let shared = Arc::clone(&self.shared);
        let mut absent = Vec::new();
        for reader in &shared.readers {
            for &topic in reader.topics {
                match self.partitions_of(topic)? {
                    Some(partitions) => self.read_topic(&reader.offsets, topic, &partitions)?,
                    None => {
                        absent.push(topic);
                        // A topic that is read keeps its positions: brokers that have just started say this of topics
                        // they have, and to read one again from its beginning would repeat all of its history.
                        if !self.known.contains_key(&topic) {
                            self.missing.insert(topic);
                        }
                    }
                }
            }
        }
        for (at, reader) in shared.readers.iter().enumerate() {
            let is_due = reader.offsets.take_suspect() || self.audited[at].last.elapsed() >= AUDIT_INTERVAL;
            // Until the consumer has taken over what was changed, its positions say nothing.
            if is_due && !reader.offsets.is_resetting() {
                self.audited[at].last = Instant::now();
                self.audit(at, &absent)?;
            }
        }
        if !absent.is_empty() && self.last_create.is_none_or(|at| at.elapsed() >= CREATE_INTERVAL) {
            self.last_create = Some(Instant::now());
            if self.create(&absent) {
                return Ok(Found::Created);
            }
        }
        Ok(if absent.is_empty() {
            Found::All
        } else {
            Found::Missing(absent)
        })
    }

    /// Reads what a topic has, from where it is right to begin.
    fn read_topic(&mut self, offsets: &Offsets, topic: Topic, partitions: &[i32]) -> KafkaResult<()> {
        let name = self.shared.topic_name(topic).to_owned();
        let id = topic_id::of(self.client()?.client(), &name, PATIENCE)?;
        let is_another = self.known.get(&topic).is_some_and(|known| *known != id);
        if is_another {
            self.shared.metrics.kafka_gaps.inc();
            tracing::error!(
                topic = name,
                "the Kafka topic was deleted and made again: this node reads the new one from its beginning"
            );
        }
        let from_end = !self.known.contains_key(&topic) && !self.missing.contains(&topic);
        let all = partitions.iter().map(|&partition| (topic, partition));
        let new: Vec<_> = all
            .filter(|&at| is_another || offsets.get(at).is_none())
            .collect();
        // At the end where the topic was there before us, so that a late first connect replays nothing; from the
        // beginning where it, or the partition, came after us.
        let start = if from_end { Offset::End } else { Offset::Beginning };
        // All or none: half of a topic at its end and half, a probe later, at its beginning would be wrong.
        let starts = self.list_offsets(&new, start)?;
        for (&at, &start) in new.iter().zip(&starts) {
            offsets.begin(at, start);
        }
        if is_another {
            offsets.keep(topic, partitions);
            offsets.restart();
        } else if !starts.is_empty() {
            offsets.changed();
        }
        self.missing.remove(&topic);
        self.known.insert(topic, id);
        Ok(())
    }

    fn client(&mut self) -> KafkaResult<&BaseConsumer<Context>> {
        if self.client.is_none() {
            let mut config = self.shared.consumer_config();
            // It reads where a reader seems to stand still, one record.
            config.set("queued.max.messages.kbytes", "1024");
            self.client = Some(config.create_with_context(Context)?);
        }
        self.client.as_ref().ok_or(KafkaError::Canceled)
    }

    /// The ids of a topic's partitions; `None` where there is no such topic.
    fn partitions_of(&mut self, topic: Topic) -> KafkaResult<Option<Vec<i32>>> {
        let name = self.shared.topic_name(topic).to_owned();
        let metadata = self.client()?.fetch_metadata(Some(&name), PATIENCE)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == name) else {
            return Ok(None);
        };
        match found.error() {
            None => Ok(Some(
                found
                    .partitions()
                    .iter()
                    .map(rdkafka::metadata::MetadataPartition::id)
                    .collect(),
            )),
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => Ok(None),
            Some(error) => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::from(error))),
        }
    }

    /// Where each partition begins or ends now: one request to each of their brokers.
    fn list_offsets(&mut self, partitions: &[Partition], which: Offset) -> KafkaResult<Vec<i64>> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let shared = Arc::clone(&self.shared);
        let mut asked = TopicPartitionList::with_capacity(partitions.len());
        for &(topic, partition) in partitions {
            asked.add_partition_offset(shared.topic_name(topic), partition, which)?;
        }
        // A "time" below zero stands for an end of the log.
        let answered = self.client()?.offsets_for_times(asked, PATIENCE)?;
        let answer_of = |&(topic, partition): &Partition| {
            let found = answered.find_partition(shared.topic_name(topic), partition);
            let found = found.ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition))?;
            found.error()?;
            match found.offset() {
                Offset::Offset(offset) => Ok(offset),
                _ => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::NoOffset)),
            }
        };
        partitions.iter().map(answer_of).collect()
    }

    /// Compares positions with the log's ends: counts gaps, and makes a consumer anew that has more to read and
    /// doesn't (rust-rdkafka issue 597, librdkafka issue 5153).
    fn audit(&mut self, number: usize, absent: &[Topic]) -> KafkaResult<()> {
        let reader = Arc::clone(&self.shared.readers[number]);
        let mut before = reader.offsets.all();
        before.retain(|(at, _)| !absent.contains(&at.0));
        let partitions: Vec<_> = before.iter().map(|&(at, _)| at).collect();
        let lows = self.list_offsets(&partitions, Offset::Beginning)?;
        let highs = self.list_offsets(&partitions, Offset::End)?;
        // Nothing below fails: what is begun is taken over with the restart that follows it.
        let Audited { behind, silent, .. } = &mut self.audited[number];
        let was_behind = std::mem::take(behind);
        let (mut still, mut has_gap) = (Vec::new(), false);
        for ((at, before), (low, high)) in before.into_iter().zip(lows.into_iter().zip(highs)) {
            let Some(next) = reader.offsets.get(at) else {
                continue;
            };
            if let Some(start) = start_after_gap(before, next, low, high) {
                has_gap = true;
                self.shared.metrics.kafka_gaps.inc();
                tracing::error!(
                    topic = at.0.name(),
                    partition = at.1,
                    next,
                    low,
                    high,
                    "records are missing from the log: this node goes on with what there is"
                );
                reader.offsets.begin(at, start);
            } else if next < high {
                let is_known = silent.get(&at) == Some(&(next, high));
                if was_behind.get(&at) == Some(&next) && !is_known {
                    still.push((at, (next, high)));
                }
                behind.insert(at, next);
            }
        }
        let is_stalled = match self.has_records(&still) {
            Ok(true) => true,
            Ok(false) => {
                self.audited[number].silent.extend(still);
                false
            }
            // Asked again at the next audit.
            Err(_) => false,
        };
        if is_stalled {
            tracing::warn!(
                thread = reader.thread,
                "a Kafka consumer stands still although there is more to read: it is made anew"
            );
            self.audited[number].behind.clear();
        }
        if is_stalled || has_gap {
            reader.offsets.restart();
        }
        Ok(())
    }

    /// Whether a consumer that begins at one of these positions is given a record.
    fn has_records(&mut self, positions: &[(Partition, (i64, i64))]) -> KafkaResult<bool> {
        if positions.is_empty() {
            return Ok(false);
        }
        let shared = Arc::clone(&self.shared);
        let mut asked = TopicPartitionList::with_capacity(positions.len());
        for &((topic, partition), (next, _)) in positions {
            asked.add_partition_offset(shared.topic_name(topic), partition, Offset::Offset(next))?;
        }
        let client = self.client()?;
        client.assign(&asked)?;
        let until = Instant::now() + PATIENCE;
        let mut has_records = false;
        while !has_records && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            has_records = matches!(client.poll(left), Some(Ok(_)));
        }
        client.unassign()?;
        Ok(has_records)
    }

    /// Creates topics; where a broker doesn't allow it, the log says so and health says degraded.
    fn create(&self, topics: &[Topic]) -> bool {
        let admin: AdminClient<_> = match self.shared.client_config().create() {
            Ok(admin) => admin,
            Err(error) => {
                tracing::error!(%error, "cannot make a Kafka admin client");
                return false;
            }
        };
        let (partitions, replication) = (self.shared.config.partitions, self.shared.config.replication);
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|&topic| {
                let new = NewTopic::new(
                    self.shared.topic_name(topic),
                    partitions,
                    TopicReplication::Fixed(replication),
                );
                match topic {
                    Topic::Messages => new,
                    Topic::Typing | Topic::Status => new.set("retention.ms", SHORT_RETENTION_MS),
                }
            })
            .collect();
        let options = AdminOptions::new()
            .operation_timeout(Some(PATIENCE))
            .request_timeout(Some(2 * PATIENCE));
        match self.runtime.block_on(admin.create_topics(&new, &options)) {
            Ok(results) => {
                let mut are_there = true;
                for result in results {
                    match result {
                        Ok(name) => tracing::info!(topic = name, "Kafka topic created"),
                        // Another node was quicker.
                        Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                        Err((name, error)) => {
                            are_there = false;
                            tracing::error!(topic = name, %error, "cannot create the Kafka topic");
                        }
                    }
                }
                are_there
            }
            Err(error) => {
                tracing::error!(%error, "cannot create Kafka topics");
                false
            }
        }
    }

    fn has_just_created(&self) -> bool {
        self.last_create.is_some_and(|at| at.elapsed() < PATIENCE)
    }

    /// Tells health, and the log where something has changed.
    fn report(&mut self, result: &KafkaResult<Found>) {
        let before = self.shared.status();
        let status = match result {
            Ok(Found::All) => Status::Ok,
            Ok(Found::Missing(_)) => Status::Degraded,
            // The next look, in a moment, finds them.
            Ok(Found::Created) => before,
            // A topic that was just created may have no leader for a moment.
            Err(_) if self.has_just_created() => before,
            Err(_) if before == Status::Connecting => Status::Connecting,
            Err(_) => Status::Degraded,
        };
        self.shared.metrics.kafka_up.set(i64::from(result.is_ok()));
        let is_failure = result.is_err() && !self.has_just_created();
        let had_failed = std::mem::replace(&mut self.has_failed, is_failure);
        if status == before && (had_failed || !self.has_failed) {
            return;
        }
        let detail = match result {
            Ok(Found::All) => {
                tracing::info!(brokers = self.shared.config.brokers, "Kafka is connected");
                None
            }
            Ok(Found::Missing(absent)) => {
                let names: Vec<_> = absent
                    .iter()
                    .map(|&topic| self.shared.topic_name(topic))
                    .collect();
                let names = names.join(",");
                tracing::warn!(topics = names, "Kafka topics are missing");
                Some(format!("topics are missing: {names}"))
            }
            Ok(Found::Created) => None,
            Err(error) => {
                tracing::warn!(%error, "Kafka does not answer");
                Some("the broker does not answer".to_owned())
            }
        };
        self.shared.set_status(status, detail);
    }
}

/// What a look has found.
enum Found {
    /// Every topic, with every partition assigned.
    All,
    /// These do not exist.
    Missing(Vec<Topic>),
    /// Some did not exist and have just been created.
    Created,
}

/// Where to go on when records are missing between the positions and the log's ends. The position is taken `before`
/// the ends were asked for and after (`next`): what was delivered in between is no gap.
fn start_after_gap(before: i64, next: i64, low: i64, high: i64) -> Option<i64> {
    if next < low {
        // Behind the oldest: the rest of the log is news.
        Some(low)
    } else if before > high {
        // Beyond the newest: the log was cut short, and what is left of it has been read.
        Some(high)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_during_a_look_is_no_gap() {
        assert_eq!(start_after_gap(28, 29, 0, 28), None);
        assert_eq!(start_after_gap(20, 28, 25, 28), None);
        assert_eq!(start_after_gap(29, 29, 0, 28), Some(28), "the log was cut short");
        assert_eq!(start_after_gap(4, 4, 5, 28), Some(5), "the oldest are gone");
    }
}
