//! The watch: asks the broker every moment what there is, on a thread and a client of its own, so that a broker
//! that doesn't answer delays nobody.

use std::collections::{HashMap, HashSet};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;

use super::audit::{Audited, is_refusal};
use super::credentials::Credentials;
use super::offsets::{Offsets, Partition};
use super::producer::Producer;
use super::topic_id::{self, TopicId};
use super::{Context, RECORD_OVERHEAD, Shared};
use crate::bus::Status;
use crate::protocol::record::Topic;

/// How often the broker is asked, and for how long it may think: a loss shows in health within five seconds.
const INTERVAL: Duration = Duration::from_millis(1_500);
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// While starting, a broker that has just come up is found sooner.
const STARTING_INTERVAL: Duration = Duration::from_millis(250);
/// How often a missing topic is asked for again.
const CREATE_INTERVAL: Duration = Duration::from_secs(10);
/// Typing and status are worth nothing later: an hour helps whoever looks into an incident.
const SHORT_RETENTION_MS: &str = "3600000";
/// Kafka's default of `max.message.bytes`: the largest batch that a topic takes. One that we create takes
/// `MAX_RECORD_BYTES`.
const KAFKA_DEFAULT_MAX_BYTES: usize = 1_048_588;
/// What our own client may have to say, of logs and errors, taken in one look.
const MAX_EVENTS: usize = 1_000;
const DRAIN: Duration = Duration::from_millis(10);

/// Of a topic on a broker that is too old for ids.
const NO_ID: TopicId = (0, 0);
/// There is no record since the time that was asked for.
const NO_RECORD: i64 = -1;

pub(super) struct Watch {
    pub(super) shared: Arc<Shared>,
    producer: Arc<Producer>,
    runtime: Handle,
    client: Option<BaseConsumer<Context>>,
    /// Topics that the broker has said do not exist before they were ever read: when they come, they are read from
    /// their beginning.
    missing: HashSet<Topic>,
    /// The topics that are read, by their ids: partitions that come later are read from their beginning, and a
    /// topic with another id is another topic.
    known: HashMap<Topic, TopicId>,
    /// Partitions that were there when their topic was first read, and had no leader that could be asked for their ends.
    /// They are read from when that was, in milliseconds since 1970.
    awaited: HashMap<Partition, i64>,
    /// By reader.
    pub(super) audited: [Audited; 2],
    last_create: Option<Instant>,
    credentials: Credentials,
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
            awaited: HashMap::new(),
            audited: [Audited::default(), Audited::default()],
            last_create: None,
            credentials: Credentials::default(),
        }
    }

    pub fn run(mut self) {
        while !self.shared.is_stopping() {
            // A watch that had ended would leave health as it was.
            let result = panic::catch_unwind(AssertUnwindSafe(|| self.probe())).unwrap_or_else(|_| {
                tracing::error!("the look at Kafka has failed: please report this bug");
                Err(KafkaError::Canceled)
            });
            self.report(&result);
            self.producer.check();
            if let Some(client) = &self.client {
                self.credentials.refresh(&self.shared, client.client());
            }
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
        let client = self.client()?;
        // Nobody else takes what it has to say: while no broker answers it would pile up.
        for _ in 0..MAX_EVENTS {
            // With a moment, or it would end at the first log line.
            if client.poll(DRAIN).is_none() {
                break;
            }
        }
        let mut found = Found::default();
        for reader in &shared.readers {
            for &topic in reader.topics {
                match self.partitions_of(topic)? {
                    Some(partitions) => {
                        let leaderless = partitions.leaderless.iter();
                        found
                            .leaderless
                            .extend(leaderless.map(|&partition| (topic, partition)));
                        self.read_topic(&reader.offsets, topic, &partitions)?;
                    }
                    None => {
                        found.absent.push(topic);
                        // A topic that is read keeps its positions: brokers that have just started say this of topics
                        // they have, and to read one again from its beginning would repeat all of its history.
                        if !self.known.contains_key(&topic) {
                            self.missing.insert(topic);
                        }
                    }
                }
            }
        }
        for number in 0..shared.readers.len() {
            self.audit_when_due(number, |at| {
                found.absent.contains(&at.0) || found.leaderless.contains(at)
            });
        }
        let is_due = self.last_create.is_none_or(|at| at.elapsed() >= CREATE_INTERVAL);
        if !found.absent.is_empty() && is_due {
            self.last_create = Some(Instant::now());
            found.has_created = self.create(&found.absent);
        }
        match self.audited.iter().find_map(|audited| audited.failed.clone()) {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    /// Reads what a topic has, from where it is right to begin.
    fn read_topic(&mut self, offsets: &Offsets, topic: Topic, partitions: &Partitions) -> KafkaResult<()> {
        let name = self.shared.topic_name(topic).to_owned();
        let id = topic_id::of(self.client()?.client(), &name, PATIENCE)?;
        // An old broker among new ones knows no ids.
        let is_another = self
            .known
            .get(&topic)
            .is_some_and(|known| *known != id && *known != NO_ID && id != NO_ID);
        let from_end = !self.known.contains_key(&topic) && !self.missing.contains(&topic);
        let of_topic = |partition: &i32| (topic, *partition);
        let all = partitions.led.iter().map(of_topic);
        let (awaited, new): (Vec<_>, Vec<_>) = all
            .filter(|&at| is_another || offsets.get(at).is_none())
            .partition(|at| !is_another && self.awaited.contains_key(at));
        // At the end where the topic was there before us, so that a late first connect replays nothing; from the
        // beginning where it, or the partition, came after us.
        let start = if from_end { Offset::End } else { Offset::Beginning };
        let new: Vec<_> = new.into_iter().map(|at| (at, start)).collect();
        let new_starts = self.list_offsets(&new)?;
        // What has come since we looked first: its leader was away then. The end is asked for first, so that nothing
        // falls between.
        let ends: Vec<_> = awaited.iter().map(|&at| (at, Offset::End)).collect();
        let ends = self.list_offsets(&ends)?;
        let awaited: Vec<_> = awaited
            .into_iter()
            .map(|at| (at, Offset::Offset(self.awaited[&at])))
            .collect();
        let firsts = self.list_offsets(&awaited)?.into_iter().zip(ends);
        let awaited_starts = firsts.map(|(first, end)| if first == Some(NO_RECORD) { end } else { first });
        let asked = new.into_iter().chain(awaited).map(|(at, _)| at);
        let mut begun = Vec::new();
        let mut unled: Vec<_> = partitions.leaderless.iter().map(of_topic).collect();
        for (at, start) in asked.zip(new_starts.into_iter().chain(awaited_starts)) {
            match start {
                Some(start) => {
                    self.awaited.remove(&at);
                    offsets.begin(at, start);
                    begun.push(at.1);
                }
                // It was led by somebody who is gone.
                None => unled.push(at),
            }
        }
        if from_end {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
            self.awaited.extend(unled.into_iter().map(|at| (at, now_ms)));
        }
        if is_another {
            self.shared.metrics.kafka_gaps.inc();
            tracing::error!(
                topic = name,
                "the Kafka topic was deleted and made again: this node reads the new one from its beginning"
            );
            self.awaited.retain(|at, _| at.0 != topic);
            offsets.keep(topic, &begun);
            offsets.restart();
        } else if !begun.is_empty() {
            offsets.changed();
        }
        self.missing.remove(&topic);
        if id != NO_ID || !self.known.contains_key(&topic) {
            self.known.insert(topic, id);
        }
        Ok(())
    }

    pub(super) fn client(&mut self) -> KafkaResult<&BaseConsumer<Context>> {
        if self.client.is_none() {
            let mut config = self.shared.consumer_config();
            // It reads where a reader stands still, one record, and is to know when there is none.
            config
                .set("queued.max.messages.kbytes", "1024")
                .set("enable.partition.eof", "true");
            self.client = Some(config.create_with_context(Context)?);
        }
        self.client.as_ref().ok_or(KafkaError::Canceled)
    }

    /// A topic's partitions; `None` where there is no such topic.
    fn partitions_of(&mut self, topic: Topic) -> KafkaResult<Option<Partitions>> {
        let name = self.shared.topic_name(topic).to_owned();
        let metadata = self.client()?.fetch_metadata(Some(&name), PATIENCE)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == name) else {
            return Ok(None);
        };
        match found.error() {
            None => {
                let mut partitions = Partitions::default();
                for partition in found.partitions() {
                    let has_leader = partition.leader() >= 0;
                    let list = if has_leader {
                        &mut partitions.led
                    } else {
                        &mut partitions.leaderless
                    };
                    list.push(partition.id());
                }
                Ok(Some(partitions))
            }
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => Ok(None),
            Some(error) => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::from(error))),
        }
    }

    /// Where each partition begins or ends now, or has its first record since a time (milliseconds since 1970, as an
    /// offset), or [`NO_RECORD`]: one request to each of their brokers. `None` where there is no answer.
    pub(super) fn list_offsets(&mut self, asked: &[(Partition, Offset)]) -> KafkaResult<Vec<Option<i64>>> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let shared = Arc::clone(&self.shared);
        let positions = shared.positions(asked.iter().copied())?;
        // A "time" below zero stands for an end of the log.
        let answered = match self.client()?.offsets_for_times(positions, PATIENCE) {
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
        let largest = (self.shared.max_record_bytes + RECORD_OVERHEAD).to_string();
        let takes_more = self.shared.max_record_bytes + RECORD_OVERHEAD > KAFKA_DEFAULT_MAX_BYTES;
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|&topic| {
                let new = NewTopic::new(
                    self.shared.topic_name(topic),
                    partitions,
                    TopicReplication::Fixed(replication),
                );
                match topic {
                    Topic::Messages if takes_more => new.set("max.message.bytes", &largest),
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
        self.shared.metrics.kafka_up.set(i64::from(result.is_ok()));
        let missing = match result {
            // The next look, in a moment, finds what was created, and who leads it.
            Ok(found) if found.has_created => return,
            Ok(found)
                if found.absent.is_empty() && !found.leaderless.is_empty() && self.has_just_created() =>
            {
                return;
            }
            Err(_) if self.has_just_created() => return,
            Ok(found) => found.missing(&self.shared),
            Err(error) if is_refusal(error) => Some(format!("the broker refuses reading: {error}")),
            Err(_) => Some("the broker does not answer".to_owned()),
        };
        let status = match result {
            Err(_) if self.shared.status() == Status::Connecting => Status::Connecting,
            _ if missing.is_some() => Status::Degraded,
            _ => Status::Ok,
        };
        let now = (status, missing);
        // Each outage is logged once.
        if *self.shared.status.lock() == now {
            return;
        }
        match (result, &now.1) {
            (Err(error), _) if is_refusal(error) => {
                tracing::error!(%error, "Kafka refuses to let this node read");
            }
            (Err(error), _) => tracing::warn!(%error, "Kafka does not answer"),
            (Ok(_), Some(missing)) => tracing::warn!(missing, "Kafka is not all there"),
            (Ok(_), None) => tracing::info!(brokers = self.shared.config.brokers, "Kafka is connected"),
        }
        self.shared.set_status(now.0, now.1);
    }
}

/// A topic's partitions.
#[derive(Default)]
struct Partitions {
    led: Vec<i32>,
    leaderless: Vec<i32>,
}

/// What a look has found.
#[derive(Default)]
struct Found {
    /// Topics that do not exist.
    absent: Vec<Topic>,
    /// Partitions that nobody leads: their brokers are away.
    leaderless: Vec<Partition>,
    /// The absent ones have just been created.
    has_created: bool,
}

impl Found {
    /// What is missing, in words.
    fn missing(&self, shared: &Shared) -> Option<String> {
        let absent = self.absent.iter().map(|&topic| shared.topic_name(topic));
        let absent: Vec<_> = absent.collect();
        let leaderless = self.leaderless.iter();
        let leaderless: Vec<_> = leaderless
            .map(|&(topic, at)| format!("{}/{at}", shared.topic_name(topic)))
            .collect();
        let mut parts = Vec::new();
        if !absent.is_empty() {
            parts.push(format!("topics are missing: {}", absent.join(",")));
        }
        if !leaderless.is_empty() {
            parts.push(format!("partitions without a leader: {}", leaderless.join(",")));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}
