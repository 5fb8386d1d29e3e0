//! A consumer thread: polls records and delivers them itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};

use super::audit::{is_refusal, is_undecodable};
use super::credentials::Credentials;
use super::offsets::Partition;
use super::pace::{self, Pace};
use super::reasons::Reasons;
use super::{Reader, Shared, headers};
use crate::bus::{Router, is_full_batch};
use crate::logging::LogLimit;
use crate::protocol::record::{
    CLIENT_ID_HEADER, FRAME_HEADER, Form, ID_HEADER, Incoming, NODE_HEADER, Topic,
};
use crate::supervise::catch_panic;

/// How long a poll waits, and so how soon the thread notices a new assignment or the stop.
const POLL: Duration = Duration::from_millis(100);
/// How much fetched and undelivered data librdkafka may hold for each consumer.
const MAX_FETCHED_KIB: &str = "16384";
/// How long to wait after a consumer could not be created, or after a panic.
const RETRY: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(5);

type NodeConsumer = BaseConsumer<Reasons>;

pub(super) fn run(shared: Arc<Shared>, reader: Arc<Reader>, router: Router) {
    let mut thread = ConsumerThread {
        pace: Pace::new(shared.config.pace, Instant::now()),
        shared,
        reader,
        router,
        next: HashMap::new(),
        consumer: None,
        applied: 0,
        credentials: Credentials::default(),
        error_log: LogLimit::new(LOG_INTERVAL),
    };
    while !thread.shared.is_stopping() {
        // A panic must not end the thread: the node would stay connected but deliver nothing.
        if catch_panic(|| thread.step()).is_none() {
            thread.recover();
        }
    }
}

struct ConsumerThread {
    shared: Arc<Shared>,
    reader: Arc<Reader>,
    router: Router,
    pace: Pace,
    /// The next offset of each partition of the assignment.
    next: HashMap<Partition, i64>,
    consumer: Option<NodeConsumer>,
    /// The generation of the applied assignment.
    applied: u64,
    credentials: Credentials,
    error_log: LogLimit,
}

impl ConsumerThread {
    fn step(&mut self) {
        let generation = self.reader.offsets.generation();
        if generation == self.applied {
            self.poll();
            return;
        }
        match self.assign() {
            Ok(()) => self.applied = generation,
            Err(error) => {
                self.log_error(&error);
                thread::sleep(RETRY);
            }
        }
    }

    /// After a panic: delivers the batch so far, and continues after it with a new consumer.
    fn recover(&mut self) {
        tracing::error!(
            thread = self.reader.thread,
            "reading Kafka has failed: please report this bug"
        );
        self.shared.metrics.records_abandoned(1);
        self.router.deliver_batch();
        self.reader.offsets.advance(&self.next);
        self.reader.offsets.restart();
        thread::sleep(RETRY);
    }

    /// Applies the monitor's assignment, with a new consumer if a restart was requested.
    fn assign(&mut self) -> KafkaResult<()> {
        if self.reader.offsets.take_restart() {
            if self.consumer.take().is_some() {
                self.shared.metrics.kafka_reconnects.inc();
            }
            // The restart has dealt with what the old consumer reported.
            self.reader.offsets.take_missing();
        }
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => create_consumer(&self.shared, &self.reader)?,
        };
        if self.reader.topics.contains(&Topic::Messages) {
            let shared = Arc::clone(&self.shared);
            shared
                .history
                .fill(&shared, |message, is_kept| self.keep(message, is_kept));
        }
        self.next = self.reader.offsets.assignment().into_iter().collect();
        if self.reader.topics.contains(&Topic::Messages) {
            self.shared.history.assigned(&self.next);
        }
        let positions = self.next.iter().map(|(&at, &next)| (at, Offset::Offset(next)));
        consumer.assign(&self.shared.positions(positions)?)?;
        self.consumer = Some(consumer);
        if self.reader.topics.contains(&Topic::Status) {
            self.router.resume();
        }
        if self.reader.topics.contains(&Topic::Control) && !self.next.is_empty() {
            self.shared.control.begun();
        }
        Ok(())
    }

    /// Waits for a record, then reads on while more are ready: one batch.
    fn poll(&mut self) {
        let Some(consumer) = self.consumer.take() else {
            thread::sleep(POLL);
            return;
        };
        self.credentials.refresh(&self.shared, consumer.client());
        let (mut records, mut bytes, mut wait) = (0, 0, POLL);
        let mut first = Timestamp::NotAvailable;
        while !is_full_batch(records, bytes) {
            match consumer.poll(wait) {
                Some(Ok(message)) => {
                    if records == 0 {
                        first = message.timestamp();
                    }
                    bytes += message.payload_len();
                    self.route(&message);
                }
                Some(Err(error)) => self.note_error(&error),
                None => break,
            }
            (records, wait) = (records + 1, Duration::ZERO);
        }
        if records > 0 {
            let has_delivered = self.router.deliver_batch();
            self.reader.offsets.advance(&self.next);
            if has_delivered && self.reader.topics.contains(&Topic::Messages) {
                self.note_latency(first);
            }
        }
        self.consumer = Some(consumer);
        let is_full = is_full_batch(records, bytes);
        let wait = self.pace.after(records, is_full, Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }

    /// Observes the latency of a delivered batch by its first record, which has waited longest.
    fn note_latency(&self, timestamp: Timestamp) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (Some(at), Ok(now)) = (timestamp.to_millis(), i64::try_from(now.as_millis())) else {
            return;
        };
        // Clocks differ: a timestamp in the future counts as no latency.
        let latency = Duration::from_millis((now - at).max(0).unsigned_abs());
        let metrics = &self.shared.metrics;
        metrics.kafka.delivery_latency.observe(latency.as_secs_f64());
        metrics.delay.observe(latency);
    }

    fn route(&mut self, message: &BorrowedMessage<'_>) {
        let mut topics = self.reader.topics.iter().copied();
        let Some(topic) = topics.find(|&topic| self.shared.topic_name(topic) == message.topic()) else {
            return;
        };
        let at: Partition = (topic, message.partition());
        let Some(next) = self.next.get_mut(&at) else {
            return;
        };
        // Already delivered, and fetched again after an assignment.
        if message.offset() < *next {
            return;
        }
        *next = message.offset() + 1;
        self.router.route(&incoming(topic, message));
    }

    /// Keeps a record that was written before this node started, or only learns from it.
    fn keep(&mut self, message: &BorrowedMessage<'_>, is_kept: bool) {
        let incoming = incoming(Topic::Messages, message);
        if is_kept {
            self.router.keep(&incoming);
        } else {
            self.router.learn(&incoming);
        }
    }

    fn note_error(&mut self, error: &KafkaError) {
        if let KafkaError::PartitionEOF(partition) = error {
            return self.shared.control.ended(*partition);
        }
        use RDKafkaErrorCode::{
            AutoOffsetReset, OffsetOutOfRange, UnknownPartition, UnknownTopicOrPartition,
        };
        match error.rdkafka_error_code() {
            Some(AutoOffsetReset | OffsetOutOfRange) => self.reader.offsets.note_missing(),
            Some(UnknownPartition | UnknownTopicOrPartition) => self.reader.offsets.request_audit(),
            _ if is_undecodable(error) || is_refusal(error) => self.reader.offsets.request_audit(),
            _ => {}
        }
        self.log_error(error);
    }

    /// Errors that the monitor reports are logged here at debug level only.
    fn log_error(&mut self, error: &KafkaError) {
        if is_of_connection(error) || is_refusal(error) {
            tracing::debug!(%error, "Kafka consumer");
        } else if self.error_log.allows() {
            tracing::warn!(%error, "Kafka consumer");
        }
    }
}

/// A record, as the router takes it.
pub(super) fn incoming<'a>(topic: Topic, message: &'a BorrowedMessage<'_>) -> Incoming<'a> {
    let (mut frame, mut node, mut message_id, mut client_id) = (None, None, None, None);
    for (name, value) in headers::of(message) {
        if name == FRAME_HEADER.as_bytes() {
            // A header without a value still counts as present.
            frame = Some(value.unwrap_or_default());
        } else if name == NODE_HEADER.as_bytes() {
            node = value;
        } else if name == ID_HEADER.as_bytes() {
            message_id = value;
        } else if name == CLIENT_ID_HEADER.as_bytes() {
            client_id = value;
        }
    }
    Incoming {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        form: Form::of_header(frame),
        key: message.key(),
        value: message.payload(),
        time: message.timestamp().to_millis().unwrap_or_default(),
        node,
        message_id,
        client_id,
    }
}

/// An error of the connection to a broker.
fn is_of_connection(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        AllBrokersDown, Authentication, BrokerTransportFailure, OperationTimedOut, Resolve, SSL,
    };
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(AllBrokersDown | Authentication | BrokerTransportFailure | OperationTimedOut | Resolve | SSL)
    )
}

fn create_consumer(shared: &Shared, reader: &Reader) -> KafkaResult<NodeConsumer> {
    let reports_ends = reader.topics.contains(&Topic::Control).to_string();
    shared
        .consumer_config()
        .set("enable.partition.eof", reports_ends)
        .set("fetch.min.bytes", "1")
        .set("queued.min.messages", reader.fetch.min_queued)
        .set(
            "fetch.queue.backoff.ms",
            pace::fetch_backoff_ms(shared.config.pace),
        )
        .set("fetch.wait.max.ms", reader.fetch.max_wait_ms)
        // The default pauses for half a second after an error.
        .set("fetch.error.backoff.ms", "100")
        .set("queued.max.messages.kbytes", MAX_FETCHED_KIB)
        .create_with_context(Reasons::default())
}
