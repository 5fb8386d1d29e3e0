//! Turns the results of a probe and the outcomes of our writes into causes, in plain words.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::Monitor;
use crate::bus::Status;
use crate::bus::kafka::audit::{is_refusal, is_timeout};
use crate::bus::kafka::broker::ANSWER_TIMEOUT;
use crate::bus::kafka::causes::Cause;
use crate::bus::kafka::native::TopicDescription;
use crate::bus::kafka::offsets::Partition;
use crate::bus::kafka::outcomes::Failing;
use crate::bus::kafka::{Shared, outcomes};
use crate::protocol::record::Topic;

/// The most partitions named in a cause.
const MAX_NAMED: usize = 8;

/// What a probe has found.
#[derive(Default)]
pub(super) struct ClusterState {
    /// Topics that do not exist.
    pub absent: Vec<Topic>,
    /// Partitions without a leader: their brokers are down.
    pub leaderless: Vec<Partition>,
    /// Whether the absent topics have just been created.
    pub has_created: bool,
    /// Operations that we lack permission for, such as `READ`.
    pub denied: Vec<(Topic, &'static str)>,
    /// Topics that we are known to have permission to write.
    pub writable: Vec<Topic>,
    /// The number of in-sync replicas of each partition.
    pub in_sync: Vec<(Partition, usize)>,
}

impl ClusterState {
    pub fn note_permissions(&mut self, topic: Topic, described: &TopicDescription) {
        if described.may_read == Some(false) {
            self.denied.push((topic, "READ"));
        }
        match described.may_write {
            Some(true) => self.writable.push(topic),
            Some(false) => self.denied.push((topic, "WRITE")),
            None => {}
        }
    }

    fn causes(&self, shared: &Shared, create_error: Option<&str>) -> Vec<Cause> {
        let mut causes = Vec::new();
        if !self.absent.is_empty() {
            let names: Vec<_> = self
                .absent
                .iter()
                .map(|&topic| shared.topic_name(topic))
                .collect();
            let why = create_error.map_or(String::new(), |why| format!(" (cannot be created: {why})"));
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

    pub fn is_healthy(&self) -> bool {
        self.absent.is_empty() && self.leaderless.is_empty() && self.denied.is_empty()
    }

    /// Whether no lack of permissions keeps this node from reading.
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

/// An error that passes once leaders are elected, as for a new topic.
fn is_electing(error: &KafkaError) -> bool {
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

impl Monitor {
    fn has_just_created(&self) -> bool {
        self.last_create.is_some_and(|at| at.elapsed() < ANSWER_TIMEOUT)
    }

    /// Updates health and logs changes, after a probe that was started at `started`.
    pub(super) fn report(&mut self, probed: &KafkaResult<ClusterState>, started: Instant) {
        let is_up = probed.as_ref().is_ok_and(ClusterState::is_readable);
        self.shared.metrics.kafka_up.set(is_up.into());
        match probed {
            // The next probe will find what was created, with its leaders.
            Ok(state) if state.has_created => return,
            Ok(state)
                if !(state.absent.is_empty() && state.leaderless.is_empty())
                    && self.topics.create_error.is_none()
                    && self.has_just_created() =>
            {
                return;
            }
            Err(_) if self.has_just_created() => return,
            _ => {}
        }
        let is_electing = probed.as_ref().is_err_and(is_electing);
        let was_electing = std::mem::replace(&mut self.was_electing, is_electing);
        if is_electing && !was_electing {
            return;
        }
        let now = Instant::now();
        let mut causes = match probed {
            Ok(state) => {
                self.broker.reasons.clear();
                state.causes(&self.shared, self.topics.create_error.as_deref())
            }
            Err(error) => vec![self.unreachable(error)],
        };
        let is_healthy = causes.is_empty();
        self.healthy_since = is_healthy.then(|| self.healthy_since.unwrap_or(now));
        self.report_writing(probed, started, &mut causes);
        self.report_transactions(now, &mut causes);
        let control = &self.shared.control;
        if causes.is_empty() && !(self.shared.history.is_filled() && control.is_settled()) {
            // The node is not ready yet.
            return;
        }
        if control.is_missing() {
            let name = self.shared.topic_name(Topic::Control);
            causes.push(Cause::new(format!(
                "the topic {name} is not read to its end: refused users may be let in"
            )));
        }
        let status = match probed {
            Err(_) if self.shared.status() == Status::Connecting => Status::Connecting,
            _ if causes.is_empty() => Status::Ok,
            _ => Status::Degraded,
        };
        self.reporter.report(&self.shared, status, causes);
    }

    /// Why a probe got no answer.
    fn unreachable(&mut self, error: &KafkaError) -> Cause {
        if is_refusal(error) {
            return Cause::new("no permission to read a topic (READ, DESCRIBE)").with(error.to_string());
        }
        if let KafkaError::ClientCreation(why) = error {
            return Cause::new("a Kafka client cannot be created").with(why.as_str());
        }
        // The client reports its errors only when it is polled.
        self.broker.drain();
        use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut};
        let code = error.rdkafka_error_code();
        match (self.broker.reasons.first(), code) {
            _ if is_timeout(error) => Cause::new("the broker has records and does not deliver them"),
            (Some(reason), _) => Cause::new(reason.text()).with(reason.message()),
            (None, Some(code))
                if !matches!(code, AllBrokersDown | BrokerTransportFailure | OperationTimedOut) =>
            {
                Cause::new(format!("the broker answers with an error: {code}")).with(error.to_string())
            }
            (None, _) => Cause::new("the broker does not answer in time").with(error.to_string()),
        }
    }

    /// Adds what keeps our records out of the log.
    fn report_writing(
        &mut self,
        probed: &KafkaResult<ClusterState>,
        started: Instant,
        causes: &mut Vec<Cause>,
    ) {
        let now = Instant::now();
        if let Some(fatal) = self.producer.fatal() {
            // The probe may already name the topic whose WRITE permission is missing.
            if !causes.iter().any(|cause| cause.mentions("WRITE")) {
                causes.push(fatal);
            }
            return;
        }
        let shared = Arc::clone(&self.shared);
        let writable: Vec<_> = probed.iter().flat_map(|state| &state.writable).collect();
        let is_failing = shared.outcomes.expire(now, started, |name, code| {
            outcomes::is_refusal(code) && writable.iter().any(|&&topic| shared.topic_name(topic) == name)
        });
        if !is_failing {
            shared.producer_errors.clear();
            return;
        }
        // The causes so far explain why records are not acknowledged.
        let is_explained = !causes.is_empty();
        let mut is_unacknowledged = shared.outcomes.is_unanswered();
        for Failing { topic: name, code } in shared.outcomes.failing(now) {
            use RDKafkaErrorCode as Code;
            let topic = Topic::ALL
                .into_iter()
                .find(|&topic| shared.topic_name(topic) == name);
            let text = match code {
                Code::MessageTimedOut | Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
                    is_unacknowledged = true;
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
        if is_unacknowledged && causes.is_empty() {
            causes.push(self.unacknowledged_cause(probed));
        }
    }

    /// Why our records are not acknowledged although the broker answers the monitor.
    fn unacknowledged_cause(&mut self, probed: &KafkaResult<ClusterState>) -> Cause {
        const UNACKNOWLEDGED: &str = "Kafka answers, but does not acknowledge messages";
        let in_sync = probed.as_ref().map(|state| state.in_sync.clone());
        for topic in Topic::ALL {
            let least = self
                .topics
                .settings(topic, UNACKNOWLEDGED)
                .and_then(|settings| settings.min_in_sync);
            let is_short = |&&((of, _), in_sync): &&(Partition, usize)| {
                of == topic && least.is_some_and(|least| in_sync < least)
            };
            let short: Vec<_> = in_sync.iter().flatten().filter(is_short).collect();
            if let (Some((_, in_sync)), Some(least)) = (short.first(), least) {
                // A new producer would not help.
                self.healthy_since = None;
                let names = named(&self.shared, short.iter().map(|(at, _)| *at));
                let text =
                    format!("not enough in-sync replicas ({in_sync} of min.insync.replicas {least}): ");
                return Cause::naming(text, &names);
            }
        }
        match self.shared.producer_errors.first() {
            Some(reason) => Cause::new(format!(
                "a broker cannot be reached for writing: {}",
                reason.text()
            ))
            .with(reason.message()),
            None => Cause::new(UNACKNOWLEDGED),
        }
    }

    fn report_transactions(&self, now: Instant, causes: &mut Vec<Cause>) {
        let held = self.transactions.oldest_age(now).as_secs();
        let held = i64::try_from(held).unwrap_or(i64::MAX);
        self.shared.metrics.kafka.open_transaction.set(held);
        let long: Vec<_> = self.transactions.long_lived(now).collect();
        if let Some(since) = long.iter().map(|(_, since)| *since).min() {
            let names = named(&self.shared, long.iter().map(|(at, _)| *at));
            let text = "a transaction that a producer has left open holds back ";
            causes.push(Cause::naming(text, &names).since(since));
        }
    }
}
