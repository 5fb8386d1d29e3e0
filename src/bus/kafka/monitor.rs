//! The monitor: probes the brokers periodically, on its own thread and client, so that a broker that doesn't answer
//! delays nothing else. [`report`] turns the results into health and log lines.

mod report;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;

use super::Shared;
use super::audit::{Audit, is_refusal};
use super::broker::{ANSWER_TIMEOUT, BrokerClient, NO_RECORD};
use super::causes::HealthReporter;
use super::history_feed::Fill;
use super::native::{self, NO_ID, TopicDescription, TopicId};
use super::offsets::{Offsets, Partition};
use super::producer::Producer;
use super::topics::TopicAdmin;
use super::transactions::OpenTransactions;
use crate::bus::Status;
use crate::clock;
use crate::protocol::record::Topic;
use crate::supervise::catch_panic;
use report::ClusterState;

/// How often the brokers are probed. With [`ANSWER_TIMEOUT`] for each answer, health shows a loss within five seconds.
const INTERVAL: Duration = Duration::from_millis(1_500);
/// The interval until the first answer, shorter so that a broker that has just come up is found sooner.
const STARTING_INTERVAL: Duration = Duration::from_millis(250);
/// How often to try to create missing topics.
const CREATE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the end offsets of all partitions are checked, for open transactions and lag: with every probe, since no
/// other request reaches every broker.
const OFFSET_CHECK_INTERVAL: Duration = INTERVAL;
pub(super) struct Monitor {
    shared: Arc<Shared>,
    producer: Arc<Producer>,
    broker: BrokerClient,
    /// Topics that did not exist at the first probe: once they exist, they are read from their beginning.
    missing: HashSet<Topic>,
    /// The ids of the topics being read. Partitions added later are read from their beginning; a topic whose id changes
    /// was recreated.
    known: HashMap<Topic, TopicId>,
    /// Partitions that had no leader when their topic was first read, so that their ends were unknown, with that time
    /// in milliseconds since 1970: they are read from there.
    deferred_starts: HashMap<Partition, i64>,
    /// One per reader.
    audits: [Audit; 3],
    /// The new ids of recreated topics for which the clients have been recreated.
    recreated: HashMap<Topic, TopicId>,
    transactions: OpenTransactions,
    last_offset_check: Option<Instant>,
    last_create: Option<Instant>,
    topics: TopicAdmin,
    /// The last probe failed with an error that passes once leaders are elected.
    was_electing: bool,
    /// Since when probes have found nothing wrong.
    healthy_since: Option<Instant>,
    reporter: HealthReporter,
}

impl Monitor {
    pub fn new(shared: Arc<Shared>, producer: Arc<Producer>, runtime: Handle) -> Self {
        Self {
            broker: BrokerClient::new(Arc::clone(&shared)),
            audits: [0, 1, 2].map(|reader| Audit::new(Arc::clone(&shared.readers[reader]))),
            topics: TopicAdmin::new(Arc::clone(&shared), runtime),
            shared,
            producer,
            missing: HashSet::new(),
            known: HashMap::new(),
            deferred_starts: HashMap::new(),
            recreated: HashMap::new(),
            transactions: OpenTransactions::default(),
            last_offset_check: None,
            last_create: None,
            was_electing: false,
            healthy_since: None,
            reporter: HealthReporter::default(),
        }
    }

    pub fn run(mut self) {
        while !self.shared.is_stopping() {
            self.shared.probe_now.store(false, Ordering::SeqCst);
            let started = Instant::now();
            // A panic must not end the monitor: health would never change again.
            let probed = catch_panic(|| self.probe()).unwrap_or_else(|| {
                tracing::error!("probing Kafka failed: please report this bug");
                Err(KafkaError::Canceled)
            });
            self.report(&probed, started);
            self.producer.check(self.healthy_since);
            self.broker.refresh_credentials();
            let interval = match self.shared.status() {
                Status::Connecting => STARTING_INTERVAL,
                Status::Ok | Status::Degraded => INTERVAL,
            };
            let until = Instant::now() + interval;
            while !self.shared.is_stopping() && !self.shared.probe_now.load(Ordering::SeqCst) {
                let remaining = until.saturating_duration_since(Instant::now());
                if remaining.is_zero() {
                    break;
                }
                // `Kafka::stop` and `Kafka::unanswered` unpark this thread.
                thread::park_timeout(remaining);
            }
        }
    }

    fn probe(&mut self) -> KafkaResult<ClusterState> {
        let shared = Arc::clone(&self.shared);
        self.broker.drain();
        let mut state = ClusterState::default();
        for reader in &shared.readers {
            for &topic in reader.topics {
                match self.partitions_of(topic) {
                    Ok(Some(partitions)) => {
                        let of_topic = |&partition: &i32| (topic, partition);
                        state
                            .leaderless
                            .extend(partitions.leaderless.iter().map(of_topic));
                        let in_sync = partitions.in_sync.iter();
                        state
                            .in_sync
                            .extend(in_sync.map(|&(partition, count)| ((topic, partition), count)));
                        match self.read_topic(&reader.offsets, topic, &partitions) {
                            Ok(described) => state.note_permissions(topic, &described),
                            Err(error) if is_refusal(&error) => state.denied.push((topic, "DESCRIBE")),
                            Err(error) => return Err(error),
                        }
                    }
                    Err(error) if is_refusal(&error) => state.denied.push((topic, "DESCRIBE")),
                    Err(error) => return Err(error),
                    Ok(None) => {
                        state.absent.push(topic);
                        // A topic being read keeps its positions: brokers that have just started report existing topics
                        // as unknown, and reading one from its beginning would repeat its whole history.
                        if !self.known.contains_key(&topic) {
                            self.missing.insert(topic);
                        }
                    }
                }
            }
        }
        let skips = |at: &Partition| {
            let is_denied = state.denied.contains(&(at.0, "DESCRIBE"));
            is_denied || state.absent.contains(&at.0) || state.leaderless.contains(at)
        };
        let mut failed = None;
        for audit in &mut self.audits {
            audit.run_when_due(&mut self.broker, skips);
            failed = failed.or(audit.failed.clone());
            // Health still says ok: report the failure first, since the remaining requests may take as long again.
            if failed.is_some() && shared.status() == Status::Ok {
                break;
            }
        }
        let is_offset_check_due = self
            .last_offset_check
            .is_none_or(|at| at.elapsed() >= OFFSET_CHECK_INTERVAL);
        if is_offset_check_due && (failed.is_none() || shared.status() != Status::Ok) {
            self.last_offset_check = Some(Instant::now());
            let probed = self.check_end_offsets(skips);
            // What is already known to be wrong explains a failure here.
            failed = failed.or(probed.err().filter(|_| state.is_healthy()));
        }
        let is_due = self.last_create.is_none_or(|at| at.elapsed() >= CREATE_INTERVAL);
        if !state.absent.is_empty() && is_due {
            self.last_create = Some(Instant::now());
            state.has_created = self.topics.create(&state.absent);
        }
        match failed {
            // `denied` names the topic.
            Some(error) if is_refusal(&error) && !state.denied.is_empty() => Ok(state),
            Some(error) => Err(error),
            None => Ok(state),
        }
    }

    /// Compares the partitions' ends with their last stable offsets and with our positions.
    fn check_end_offsets(&mut self, skips: impl Fn(&Partition) -> bool) -> KafkaResult<()> {
        let shared = Arc::clone(&self.shared);
        self.transactions.start_check();
        let mut lags: HashMap<Topic, i64> = HashMap::new();
        let mut checked = HashSet::new();
        for reader in &shared.readers {
            let mut all = reader.offsets.all();
            all.retain(|(at, _)| !skips(at));
            if all.is_empty() {
                continue;
            }
            let asked: Vec<_> = all.iter().map(|&(at, _)| (at, Offset::End)).collect();
            let asked_at = clock::unix_ms();
            let stable = self.broker.list_offsets(&asked)?;
            if reader.topics.contains(&Topic::Messages) && stable.iter().all(Option::is_some) {
                let ends = all
                    .iter()
                    .zip(&stable)
                    .filter_map(|(&(at, _), end)| Some((at, (*end)?)));
                let next = |at| reader.offsets.get(at);
                shared.history.observe_ends(asked_at, ends.collect(), next);
            }
            let high = native::high_watermarks(
                self.broker.client()?.client(),
                &shared.positions(asked)?,
                ANSWER_TIMEOUT,
            );
            // An error is ignored: the watermarks only serve to find open transactions, which the next probe can do.
            let high: HashMap<_, _> = high
                .unwrap_or_default()
                .into_iter()
                .map(|(topic, partition, high)| ((topic, partition), high))
                .collect();
            let now = Instant::now();
            for ((at, _), stable) in all.into_iter().zip(stable) {
                let Some(stable) = stable else { continue };
                checked.insert(at);
                if let Some(&high) = high.get(&(shared.topic_name(at.0).to_owned(), at.1)) {
                    self.transactions.observe(at, stable, high, now);
                }
                let next = reader.offsets.get(at).unwrap_or(stable);
                *lags.entry(at.0).or_default() += (stable - next).max(0);
            }
        }
        self.transactions.retain(|at| checked.contains(at));
        for (topic, lag) in lags {
            shared.metrics.kafka.lag(topic, lag);
        }
        Ok(())
    }

    /// Sets the start positions of a topic's new partitions.
    fn read_topic(
        &mut self,
        offsets: &Offsets,
        topic: Topic,
        partitions: &Partitions,
    ) -> KafkaResult<TopicDescription> {
        let name = self.shared.topic_name(topic).to_owned();
        let described = native::describe(self.broker.client()?.client(), &name, ANSWER_TIMEOUT)?;
        let id = described.id;
        // An old broker among new ones returns no ids.
        let is_recreated = self
            .known
            .get(&topic)
            .is_some_and(|known| *known != id && *known != NO_ID && id != NO_ID);
        if is_recreated && self.recreated.insert(topic, id) != Some(id) {
            // Clients that know the old topic take the new one's leader epochs for outdated (librdkafka issue 4898).
            tracing::warn!(
                topic = name,
                "the Kafka topic is another one: clients are made anew"
            );
            self.producer.recreate();
            self.broker.recreate_client();
        }
        // Who is refused may have been written long before.
        let from_end =
            topic != Topic::Control && !self.known.contains_key(&topic) && !self.missing.contains(&topic);
        let of_topic = |partition: &i32| (topic, *partition);
        let all = partitions.led.iter().map(of_topic);
        let (deferred, new): (Vec<_>, Vec<_>) = all
            .filter(|&at| is_recreated || offsets.get(at).is_none())
            .partition(|at| !is_recreated && self.deferred_starts.contains_key(at));
        // From the end if the topic existed before our first probe, so that a late first connect replays nothing; from
        // the beginning if it, or the partition, was added later.
        let start = if from_end { Offset::End } else { Offset::Beginning };
        let new: Vec<_> = new.into_iter().map(|at| (at, start)).collect();
        let new_starts = self.broker.list_offsets(&new)?;
        // From the first record since the first probe, when the partition had no leader. The end is requested before
        // that, so that no record is missed in between.
        let ends: Vec<_> = deferred.iter().map(|&at| (at, Offset::End)).collect();
        let ends = self.broker.list_offsets(&ends)?;
        let deferred: Vec<_> = deferred
            .into_iter()
            .map(|at| (at, Offset::Offset(self.deferred_starts[&at])))
            .collect();
        let firsts = self.broker.list_offsets(&deferred)?.into_iter().zip(ends);
        let deferred_starts = firsts.map(|(first, end)| if first == Some(NO_RECORD) { end } else { first });
        let asked = new.iter().copied().chain(deferred).map(|(at, _)| at);
        let count = partitions.led.len() + partitions.leaderless.len();
        if topic == Topic::Control {
            self.shared.control.found(count);
        }
        if topic == Topic::Messages {
            let broker = &mut self.broker;
            let cluster = || broker.client().ok()?.client().fetch_cluster_id(ANSWER_TIMEOUT);
            self.shared.history.found(id, &name, cluster, count);
            if from_end {
                let fills = self.fills(&new, &new_starts, count)?;
                self.shared.history.plan(fills);
            }
        }
        let mut started = Vec::new();
        let mut leaderless: Vec<_> = partitions.leaderless.iter().map(of_topic).collect();
        for (at, start) in asked.zip(new_starts.into_iter().chain(deferred_starts)) {
            match start {
                Some(start) => {
                    self.deferred_starts.remove(&at);
                    offsets.start_at(at, start);
                    started.push(at.1);
                }
                // Its leader is down.
                None => leaderless.push(at),
            }
        }
        if from_end {
            let now_ms = clock::unix_ms();
            self.deferred_starts
                .extend(leaderless.into_iter().map(|at| (at, now_ms)));
        }
        if is_recreated {
            self.shared.metrics.kafka_gaps.inc();
            tracing::error!(
                topic = name,
                "the Kafka topic was deleted and made again: this node reads the new one from its beginning"
            );
            self.deferred_starts.retain(|at, _| at.0 != topic);
            offsets.retain(topic, &started);
            offsets.restart();
        } else if !started.is_empty() {
            offsets.changed();
        }
        self.missing.remove(&topic);
        if id != NO_ID || !self.known.contains_key(&topic) {
            self.known.insert(topic, id);
        }
        Ok(described)
    }

    /// What a starting node reads first: the last records before the ends of these partitions.
    fn fills(
        &mut self,
        partitions: &[(Partition, Offset)],
        ends: &[Option<i64>],
        count: usize,
    ) -> KafkaResult<Vec<Fill>> {
        let history = &self.shared.history;
        let most = history.most_filled(count);
        let [kept, learnt] = history.filled_since(clock::unix_ms()).map(|since| {
            let asked = partitions.iter().map(|&(at, _)| (at, Offset::Offset(since)));
            asked.collect::<Vec<_>>()
        });
        let kept = self.broker.list_offsets(&kept)?;
        let learnt = self.broker.list_offsets(&learnt)?;
        let starts = kept.into_iter().zip(learnt);
        let fills = partitions.iter().zip(ends).zip(starts);
        let fill = fills.filter_map(|((&((_, partition), _), end), (kept, learnt))| {
            Some(Fill::new(partition, [kept?, learnt?], (*end)?, most))
        });
        Ok(fill.collect())
    }

    /// A topic's partitions; `None` if there is no such topic.
    fn partitions_of(&mut self, topic: Topic) -> KafkaResult<Option<Partitions>> {
        let name = self.shared.topic_name(topic).to_owned();
        let metadata = self
            .broker
            .client()?
            .fetch_metadata(Some(&name), ANSWER_TIMEOUT)?;
        let Some(state) = metadata.topics().iter().find(|state| state.name() == name) else {
            return Ok(None);
        };
        match state.error() {
            None => {
                let mut partitions = Partitions::default();
                for partition in state.partitions() {
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
    /// The number of in-sync replicas of each.
    in_sync: Vec<(i32, usize)>,
}
