//! What the watch has found and what becomes of our records, as causes in plain words.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::Watch;
use crate::bus::Status;
use crate::bus::kafka::audit::{is_refusal, is_silence};
use crate::bus::kafka::broker::ANSWER_TIMEOUT;
use crate::bus::kafka::causes::Cause;
use crate::bus::kafka::native::Described;
use crate::bus::kafka::offsets::Partition;
use crate::bus::kafka::outcomes::Failing;
use crate::bus::kafka::{Shared, outcomes};
use crate::protocol::record::Topic;

/// As many partitions are named.
const MAX_NAMED: usize = 8;

/// What a look has found.
#[derive(Default)]
pub(super) struct Found {
    /// Topics that do not exist.
    pub absent: Vec<Topic>,
    /// Partitions that nobody leads: their brokers are away.
    pub leaderless: Vec<Partition>,
    /// The absent ones have just been created.
    pub has_created: bool,
    /// What we may not do (`READ`).
    pub denied: Vec<(Topic, &'static str)>,
    /// Topics of which it is known that we may write them.
    pub writable: Vec<Topic>,
    /// How many replicas are in sync.
    pub in_sync: Vec<(Partition, usize)>,
}

impl Found {
    pub fn note_permissions(&mut self, topic: Topic, described: &Described) {
        if described.may_read == Some(false) {
            self.denied.push((topic, "READ"));
        }
        match described.may_write {
            Some(true) => self.writable.push(topic),
            Some(false) => self.denied.push((topic, "WRITE")),
            None => {}
        }
    }

    fn causes(&self, shared: &Shared, not_created: Option<&str>) -> Vec<Cause> {
        let mut causes = Vec::new();
        if !self.absent.is_empty() {
            let names: Vec<_> = self
                .absent
                .iter()
                .map(|&topic| shared.topic_name(topic))
                .collect();
            let why = not_created.map_or(String::new(), |why| format!(" (cannot be created: {why})"));
            causes.push(Cause::new(format!(
                "topics are missing: {}{why}",
                names.join(",")
            )));
        }
        if !self.leaderless.is_empty() {
            let names = named(shared, self.leaderless.iter().copied());
            causes.push(Cause::naming("partitions without a leader: ", &names));
        }
        for &(topic, operation) in &self.denied {
            let name = shared.topic_name(topic);
            causes.push(Cause::new(denied(operation, name)));
        }
        causes
    }

    pub fn is_well(&self) -> bool {
        self.absent.is_empty() && self.leaderless.is_empty() && self.denied.is_empty()
    }

    /// What keeps this node from reading.
    fn is_readable(&self) -> bool {
        self.denied.iter().all(|(_, operation)| *operation == "WRITE")
    }
}

fn denied(operation: &str, topic: &str) -> String {
    format!("no permission for the topic {topic} ({operation})")
}

/// `chat-messages/3,chat-messages/5`
fn named(shared: &Shared, partitions: impl Iterator<Item = Partition>) -> String {
    let mut names: Vec<_> = partitions
        .map(|(topic, at)| format!("{}/{at}", shared.topic_name(topic)))
        .collect();
    if names.len() > MAX_NAMED {
        let more = names.len() - MAX_NAMED;
        names.truncate(MAX_NAMED);
        names.push(format!("… ({more} more)"));
    }
    names.join(",")
}

/// An error that passes while leaders are being chosen, as those of a new topic are.
fn is_still_moving(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        FencedLeaderEpoch, LeaderNotAvailable, NotLeaderForPartition, UnknownLeaderEpoch,
        UnknownTopicOrPartition,
    };
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            FencedLeaderEpoch
                | LeaderNotAvailable
                | NotLeaderForPartition
                | UnknownLeaderEpoch
                | UnknownTopicOrPartition
        )
    )
}

impl Watch {
    fn has_just_created(&self) -> bool {
        self.last_create.is_some_and(|at| at.elapsed() < ANSWER_TIMEOUT)
    }

    /// Tells health, and the log where something is new. The look began at `asked`.
    pub(super) fn report(&mut self, looked: &KafkaResult<Found>, asked: Instant) {
        let is_up = looked.as_ref().is_ok_and(Found::is_readable);
        self.shared.metrics.kafka_up.set(is_up.into());
        match looked {
            // The next look, in a moment, finds what was created, and who leads it.
            Ok(found) if found.has_created => return,
            Ok(found)
                if !(found.absent.is_empty() && found.leaderless.is_empty())
                    && self.topics.not_created.is_none()
                    && self.has_just_created() =>
            {
                return;
            }
            Err(_) if self.has_just_created() => return,
            _ => {}
        }
        let is_still_moving = looked.as_ref().is_err_and(is_still_moving);
        let was_still_moving = std::mem::replace(&mut self.was_still_moving, is_still_moving);
        if is_still_moving && !was_still_moving {
            return;
        }
        let now = Instant::now();
        let mut causes = match looked {
            Ok(found) => {
                self.broker.reasons.clear();
                found.causes(&self.shared, self.topics.not_created.as_deref())
            }
            Err(error) => vec![self.unreachable(error)],
        };
        let is_well = causes.is_empty();
        self.well_since = is_well.then(|| self.well_since.unwrap_or(now));
        self.report_writing(looked, asked, &mut causes);
        self.report_transactions(now, &mut causes);
        let status = match looked {
            Err(_) if self.shared.status() == Status::Connecting => Status::Connecting,
            _ if causes.is_empty() => Status::Ok,
            _ => Status::Degraded,
        };
        self.teller.tell(&self.shared, status, causes);
    }

    /// Why there was no answer.
    fn unreachable(&mut self, error: &KafkaError) -> Cause {
        if is_refusal(error) {
            return Cause::new("no permission to read a topic (READ, DESCRIBE)").with(error.to_string());
        }
        if let KafkaError::ClientCreation(why) = error {
            return Cause::new("a Kafka client cannot be made").with(why.as_str());
        }
        // What the client has heard meanwhile it says when it is polled.
        self.broker.drain();
        use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut};
        let code = error.rdkafka_error_code();
        match (self.broker.reasons.first(), code) {
            _ if is_silence(error) => Cause::new("the broker has records and does not deliver them"),
            (Some(reason), _) => Cause::new(reason.text()).with(reason.words()),
            (None, Some(code))
                if !matches!(code, AllBrokersDown | BrokerTransportFailure | OperationTimedOut) =>
            {
                Cause::new(format!("the broker answers with an error: {code}")).with(error.to_string())
            }
            (None, _) => Cause::new("the broker does not answer in time").with(error.to_string()),
        }
    }

    /// What keeps our records from the log.
    fn report_writing(&mut self, looked: &KafkaResult<Found>, asked: Instant, causes: &mut Vec<Cause>) {
        let now = Instant::now();
        if let Some(fatal) = self.producer.fatal() {
            // Which permission it is that it lacks is known of the topics themselves, on brokers that tell.
            if !causes.iter().any(|cause| cause.is_about("WRITE")) {
                causes.push(fatal);
            }
            return;
        }
        let shared = Arc::clone(&self.shared);
        let writable: Vec<_> = looked.iter().flat_map(|found| &found.writable).collect();
        let is_troubled = shared.outcomes.look(now, asked, |name, code| {
            outcomes::is_refusal(code) && writable.iter().any(|&&topic| shared.topic_name(topic) == name)
        });
        if !is_troubled {
            shared.writing.clear();
            return;
        }
        // Records wait in vain for what is known already.
        let is_explained = !causes.is_empty();
        let mut is_silent = shared.outcomes.is_unanswered();
        for Failing { topic: name, code } in shared.outcomes.failing(now) {
            use RDKafkaErrorCode as Code;
            let topic = Topic::ALL
                .into_iter()
                .find(|&topic| shared.topic_name(topic) == name);
            let text = match code {
                Code::MessageTimedOut | Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
                    is_silent = true;
                    continue;
                }
                Code::Fatal => continue,
                Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => denied("WRITE", &name),
                Code::MessageSizeTooLarge => {
                    let text = format!("the topic {name} refuses batches larger than its max.message.bytes");
                    let settings = topic.and_then(|topic| self.topics.settings(topic, &text));
                    let max = settings.and_then(|settings| settings.max_bytes);
                    let max = max.map_or(String::new(), |max| format!(" ({max} bytes)"));
                    text + &max
                }
                Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition
                    if is_explained =>
                {
                    continue;
                }
                code => format!("the topic {name} does not take records: {code}"),
            };
            causes.push(Cause::new(text));
        }
        if is_silent && causes.is_empty() {
            causes.push(self.why_silent(looked));
        }
    }

    /// Why nobody answers for our records although the broker answers the watch.
    fn why_silent(&mut self, looked: &KafkaResult<Found>) -> Cause {
        const SILENT: &str = "Kafka answers, but does not acknowledge messages";
        let in_sync = looked.as_ref().map(|found| found.in_sync.clone());
        for topic in Topic::ALL {
            let least = self
                .topics
                .settings(topic, SILENT)
                .and_then(|settings| settings.min_in_sync);
            let is_short = |&&((of, _), in_sync): &&(Partition, usize)| {
                of == topic && least.is_some_and(|least| in_sync < least)
            };
            let short: Vec<_> = in_sync.iter().flatten().filter(is_short).collect();
            if let (Some((_, in_sync)), Some(least)) = (short.first(), least) {
                // No new producer helps there.
                self.well_since = None;
                let names = named(&self.shared, short.iter().map(|(at, _)| *at));
                let text =
                    format!("not enough in-sync replicas ({in_sync} of min.insync.replicas {least}): ");
                return Cause::naming(text, &names);
            }
        }
        match self.shared.writing.first() {
            Some(reason) => Cause::new(format!(
                "a broker cannot be reached for writing: {}",
                reason.text()
            ))
            .with(reason.words()),
            None => Cause::new(SILENT),
        }
    }

    fn report_transactions(&self, now: Instant, causes: &mut Vec<Cause>) {
        let held = self.held.longest(now).as_secs();
        let held = i64::try_from(held).unwrap_or(i64::MAX);
        self.shared.metrics.kafka.open_transaction.set(held);
        let long: Vec<_> = self.held.long(now).collect();
        if let Some(since) = long.iter().map(|(_, since)| *since).min() {
            let names = named(&self.shared, long.iter().map(|(at, _)| *at));
            let text = "a transaction that a producer has left open holds back ";
            causes.push(Cause::naming(text, &names).since(since));
        }
    }
}
