//! The watch: asks the broker every moment what there is, on a thread and a client of its own, so that a broker
//! that doesn't answer delays nobody. [`report`] says what is wrong.

mod report;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;

use super::Shared;
use super::audit::{Audit, is_refusal};
use super::broker::{ANSWER_TIMEOUT, BrokerClient, NO_RECORD};
use super::causes::Teller;
use super::native::{self, Described, TopicId};
use super::offsets::{Offsets, Partition};
use super::producer::Producer;
use super::topics::TopicAdmin;
use super::transactions::Held;
use crate::bus::Status;
use crate::protocol::record::Topic;
use crate::supervise::catch_panic;
use report::Found;

/// How often the broker is asked. It has [`ANSWER_TIMEOUT`] for each answer: a loss shows in health within five
/// seconds.
const INTERVAL: Duration = Duration::from_millis(1_500);
/// While starting, a broker that has just come up is found sooner.
const STARTING_INTERVAL: Duration = Duration::from_millis(250);
/// How often a missing topic is asked for again.
const CREATE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the ends of all partitions are looked at, for what is held back and how far behind we are: each time, since
/// nothing else asks every broker.
const ENDS_INTERVAL: Duration = INTERVAL;
/// Of a topic on a broker that is too old for ids.
const NO_ID: TopicId = (0, 0);
pub(super) struct Watch {
    shared: Arc<Shared>,
    producer: Arc<Producer>,
    broker: BrokerClient,
    /// Topics that the broker has said do not exist before they were ever read: when they come, they are read from
    /// their beginning.
    missing: HashSet<Topic>,
    /// The topics that are read, by their ids: partitions that come later are read from their beginning, and a
    /// topic with another id is another topic.
    known: HashMap<Topic, TopicId>,
    /// Partitions that were there when their topic was first read, and had no leader that could be asked for their
    /// ends. They are read from when that was, in milliseconds since 1970.
    awaited: HashMap<Partition, i64>,
    /// By reader.
    audits: [Audit; 2],
    /// Topics that were found to be others: the producer was renewed for that.
    renewed: HashMap<Topic, TopicId>,
    held: Held,
    last_ends: Option<Instant>,
    last_create: Option<Instant>,
    topics: TopicAdmin,
    /// The last look ended with an error that passes while leaders are being chosen.
    was_still_moving: bool,
    /// Since when looks have found nothing wrong.
    well_since: Option<Instant>,
    teller: Teller,
}

impl Watch {
    pub fn new(shared: Arc<Shared>, producer: Arc<Producer>, runtime: Handle) -> Self {
        Self {
            broker: BrokerClient::new(Arc::clone(&shared)),
            audits: [0, 1].map(|reader| Audit::new(Arc::clone(&shared.readers[reader]))),
            topics: TopicAdmin::new(Arc::clone(&shared), runtime),
            shared,
            producer,
            missing: HashSet::new(),
            known: HashMap::new(),
            awaited: HashMap::new(),
            renewed: HashMap::new(),
            held: Held::default(),
            last_ends: None,
            last_create: None,
            was_still_moving: false,
            well_since: None,
            teller: Teller::default(),
        }
    }

    pub fn run(mut self) {
        while !self.shared.is_stopping() {
            self.shared.look.store(false, Ordering::SeqCst);
            let asked = Instant::now();
            // A watch that had ended would leave health as it was.
            let looked = catch_panic(|| self.probe()).unwrap_or_else(|| {
                tracing::error!("the look at Kafka has failed: please report this bug");
                Err(KafkaError::Canceled)
            });
            self.report(&looked, asked);
            self.producer.check(self.well_since);
            self.broker.refresh_credentials();
            let interval = match self.shared.status() {
                Status::Connecting => STARTING_INTERVAL,
                Status::Ok | Status::Degraded => INTERVAL,
            };
            let until = Instant::now() + interval;
            while !self.shared.is_stopping() && !self.shared.look.load(Ordering::SeqCst) {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                // Whoever stops the bus, or wants a look, unparks this thread.
                thread::park_timeout(left);
            }
        }
    }

    /// One look.
    fn probe(&mut self) -> KafkaResult<Found> {
        let shared = Arc::clone(&self.shared);
        self.broker.drain();
        let mut found = Found::default();
        for reader in &shared.readers {
            for &topic in reader.topics {
                match self.partitions_of(topic) {
                    Ok(Some(partitions)) => {
                        let of_topic = |&partition: &i32| (topic, partition);
                        found
                            .leaderless
                            .extend(partitions.leaderless.iter().map(of_topic));
                        let in_sync = partitions.in_sync.iter();
                        found
                            .in_sync
                            .extend(in_sync.map(|&(partition, count)| ((topic, partition), count)));
                        match self.read_topic(&reader.offsets, topic, &partitions) {
                            Ok(described) => found.note_permissions(topic, &described),
                            Err(error) if is_refusal(&error) => found.denied.push((topic, "DESCRIBE")),
                            Err(error) => return Err(error),
                        }
                    }
                    Err(error) if is_refusal(&error) => found.denied.push((topic, "DESCRIBE")),
                    Err(error) => return Err(error),
                    Ok(None) => {
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
        let skips = |at: &Partition| {
            let is_denied = found.denied.contains(&(at.0, "DESCRIBE"));
            is_denied || found.absent.contains(&at.0) || found.leaderless.contains(at)
        };
        let mut failed = None;
        for audit in &mut self.audits {
            audit.run_when_due(&mut self.broker, skips);
            failed = failed.or(audit.failed.clone());
            // Health, which is still well, is told first: what else there is to ask may take as long again.
            if failed.is_some() && shared.status() == Status::Ok {
                break;
            }
        }
        let are_ends_due = self.last_ends.is_none_or(|at| at.elapsed() >= ENDS_INTERVAL);
        if are_ends_due && (failed.is_none() || shared.status() != Status::Ok) {
            self.last_ends = Some(Instant::now());
            let looked = self.look_at_ends(skips);
            // What is known to be wrong explains it.
            failed = failed.or(looked.err().filter(|_| found.is_well()));
        }
        let is_due = self.last_create.is_none_or(|at| at.elapsed() >= CREATE_INTERVAL);
        if !found.absent.is_empty() && is_due {
            self.last_create = Some(Instant::now());
            found.has_created = self.topics.create(&found.absent);
        }
        match failed {
            // Then it is known which topic that is.
            Some(error) if is_refusal(&error) && !found.denied.is_empty() => Ok(found),
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    /// Compares where partitions end with what we are given of them and with where we are.
    fn look_at_ends(&mut self, skips: impl Fn(&Partition) -> bool) -> KafkaResult<()> {
        let shared = Arc::clone(&self.shared);
        self.held.begin();
        let mut lags: HashMap<Topic, i64> = HashMap::new();
        let mut looked_at = HashSet::new();
        for reader in &shared.readers {
            let mut all = reader.offsets.all();
            all.retain(|(at, _)| !skips(at));
            if all.is_empty() {
                continue;
            }
            let asked: Vec<_> = all.iter().map(|&(at, _)| (at, Offset::End)).collect();
            let stable = self.broker.list_offsets(&asked)?;
            let high = native::high_watermarks(
                self.broker.client()?.client(),
                &shared.positions(asked)?,
                ANSWER_TIMEOUT,
            );
            // Only for what is held back, which may be seen later.
            let high: HashMap<_, _> = high
                .unwrap_or_default()
                .into_iter()
                .map(|(topic, partition, high)| ((topic, partition), high))
                .collect();
            let now = Instant::now();
            for ((at, _), stable) in all.into_iter().zip(stable) {
                let Some(stable) = stable else { continue };
                looked_at.insert(at);
                if let Some(&high) = high.get(&(shared.topic_name(at.0).to_owned(), at.1)) {
                    self.held.look(at, stable, high, now);
                }
                let next = reader.offsets.get(at).unwrap_or(stable);
                *lags.entry(at.0).or_default() += (stable - next).max(0);
            }
        }
        self.held.retain(|at| looked_at.contains(at));
        for (topic, lag) in lags {
            shared.metrics.kafka.lag(topic, lag);
        }
        Ok(())
    }

    /// Reads what a topic has, from where it is right to begin.
    fn read_topic(
        &mut self,
        offsets: &Offsets,
        topic: Topic,
        partitions: &Partitions,
    ) -> KafkaResult<Described> {
        let name = self.shared.topic_name(topic).to_owned();
        let described = native::describe(self.broker.client()?.client(), &name, ANSWER_TIMEOUT)?;
        let id = described.id;
        // An old broker among new ones knows no ids.
        let is_another = self
            .known
            .get(&topic)
            .is_some_and(|known| *known != id && *known != NO_ID && id != NO_ID);
        if is_another && self.renewed.insert(topic, id) != Some(id) {
            // Clients that know the old one take the new one's leaders for older ones (librdkafka issue 4898).
            tracing::warn!(
                topic = name,
                "the Kafka topic is another one: clients are made anew"
            );
            self.producer.renew();
            self.broker.renew();
        }
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
        let new_starts = self.broker.list_offsets(&new)?;
        // What has come since we looked first: its leader was away then. The end is asked for first, so that nothing
        // falls between.
        let ends: Vec<_> = awaited.iter().map(|&at| (at, Offset::End)).collect();
        let ends = self.broker.list_offsets(&ends)?;
        let awaited: Vec<_> = awaited
            .into_iter()
            .map(|at| (at, Offset::Offset(self.awaited[&at])))
            .collect();
        let firsts = self.broker.list_offsets(&awaited)?.into_iter().zip(ends);
        let awaited_starts = firsts.map(|(first, end)| if first == Some(NO_RECORD) { end } else { first });
        let asked = new.into_iter().chain(awaited).map(|(at, _)| at);
        let mut begun = Vec::new();
        let mut unled: Vec<_> = partitions.leaderless.iter().map(of_topic).collect();
        for (at, start) in asked.zip(new_starts.into_iter().chain(awaited_starts)) {
            match start {
                Some(start) => {
                    self.awaited.remove(&at);
                    offsets.start_at(at, start);
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
        Ok(described)
    }

    /// A topic's partitions; `None` where there is no such topic.
    fn partitions_of(&mut self, topic: Topic) -> KafkaResult<Option<Partitions>> {
        let name = self.shared.topic_name(topic).to_owned();
        let metadata = self
            .broker
            .client()?
            .fetch_metadata(Some(&name), ANSWER_TIMEOUT)?;
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
                    partitions.in_sync.push((partition.id(), partition.isr().len()));
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
}

/// A topic's partitions.
#[derive(Default)]
struct Partitions {
    led: Vec<i32>,
    leaderless: Vec<i32>,
    /// With how many replicas are in sync.
    in_sync: Vec<(i32, usize)>,
}
