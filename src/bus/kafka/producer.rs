//! The producer: idempotent, acknowledged by all in-sync replicas, keyed by session with the Java client's partitioner.

use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};

use super::causes::Cause;
use super::credentials::Credentials;
use super::outcomes::{Outcomes, is_refusal};
use super::reasons::Reasons;
use super::{RECORD_OVERHEAD, Shared, native};
use crate::bus::{Ack, PublishError};
use crate::metrics::Latency;
use crate::protocol::record::{
    CLIENT_ID_HEADER, FRAME_HEADER, FRAME_NATIVE, Form, ID_HEADER, NODE_HEADER, Outgoing,
};
use crate::supervise::catch_panic;

/// How long a record may wait for the log. The sender has got "outcome unknown" long before; a message that appears
/// even later would only confuse.
const MESSAGE_TIMEOUT_MS: &str = "30000";
/// The most records and KiB that may wait for the log; beyond that, senders get an error that asks them to try again.
const MAX_QUEUED: &str = "100000";
const MAX_QUEUED_KIB: &str = "65536";
/// The most bytes of a batch of several records: a topic refuses a batch over its `max.message.bytes` with all records
/// in it. A longer record is sent alone.
const MAX_BATCH: &str = "131072";

/// How soon a producer is recreated after a fatal error. The delay doubles with each further one, up to the maximum.
const INITIAL_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// A producer without a fatal error for this long is healthy: lasting problems show soon after its start.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// How long a replaced producer is kept for its records in flight: as long as a record may wait.
const RETIREMENT: Duration = Duration::from_secs(31);

/// If all else is well but nothing is acknowledged, a new producer may help. It takes a while to see whether it did, so
/// this is tried only once per interval.
const LAST_RESORT_INTERVAL: Duration = Duration::from_secs(120);
/// How long all else must have been well before that: longer than a record may wait, so that a broker that was down or
/// paused has had time to acknowledge everything that an idempotent producer would still retry.
pub(super) const LAST_RESORT_AFTER: Duration = Duration::from_secs(35);

/// How long one poll for acknowledgements lasts. librdkafka waits whole milliseconds, and the binding spins for the
/// remainder: with 500 ms it would spin for the last millisecond, since a few microseconds have passed by then. The
/// extra 50 µs prevent that.
const POLL_TIMEOUT: Duration = Duration::from_micros(500_050);

type NodeProducer = BaseProducer<Acks>;

pub(super) struct Producer {
    shared: Arc<Shared>,
    /// `None` while it can't be created.
    current: RwLock<Option<Arc<NodeProducer>>>,
    /// Used by the monitor only.
    upkeep: Mutex<Upkeep>,
}

struct Upkeep {
    credentials: Credentials,
    /// Polls the current producer for acknowledgements.
    poller: Option<JoinHandle<()>>,
    created: Instant,
    /// How long to wait before a producer is replaced after a fatal error.
    retry_delay: Duration,
    /// Why there is no producer.
    create_error: Option<String>,
    /// The last fatal error, until a new producer is healthy.
    fatal: Option<(RDKafkaErrorCode, String)>,
    /// Replaced producers that may still get acknowledgements.
    retired: Vec<(Instant, Arc<NodeProducer>)>,
    last_resort: Option<Instant>,
}

impl Producer {
    pub fn new(shared: Arc<Shared>) -> Self {
        let producer = Self {
            shared,
            current: RwLock::new(None),
            upkeep: Mutex::new(Upkeep {
                credentials: Credentials::default(),
                poller: None,
                created: Instant::now(),
                retry_delay: INITIAL_RETRY_DELAY,
                create_error: None,
                fatal: None,
                retired: Vec::new(),
                last_resort: None,
            }),
        };
        producer.replace(&mut producer.upkeep.lock());
        producer
    }

    pub fn publish(&self, record: &Outgoing, ack: Option<Ack>) {
        let Some(producer) = self.current.read().clone() else {
            return acknowledge(ack, Err(PublishError::Unavailable));
        };
        let mut headers = OwnedHeaders::new_with_capacity(4).insert(Header {
            key: NODE_HEADER,
            value: Some(self.shared.node.as_bytes()),
        });
        if record.form == Form::Native {
            headers = headers.insert(Header {
                key: FRAME_HEADER,
                value: Some(FRAME_NATIVE),
            });
        }
        if let Some(message_id) = &record.message_id {
            headers = headers.insert(Header {
                key: ID_HEADER,
                value: Some(message_id),
            });
        }
        if let Some(client_id) = &record.client_id {
            headers = headers.insert(Header {
                key: CLIENT_ID_HEADER,
                value: Some(client_id),
            });
        }
        let outgoing = BaseRecord::with_opaque_to(self.shared.topic_name(record.topic), Box::new(ack))
            .key(record.key.as_str())
            .payload(record.value.as_slice())
            .headers(headers);
        if let Err((error, outgoing)) = producer.send(outgoing) {
            let refused = reason(&error);
            if let (PublishError::Unavailable, Some(code)) = (refused, error.rdkafka_error_code()) {
                self.shared.outcomes.failed(outgoing.topic, -1, code);
            }
            acknowledge(*outgoing.delivery_opaque, Err(refused));
        }
    }

    /// Replaces a producer that has had a fatal error (only an idempotent one can), or that gets no acknowledgements
    /// although all else has been well since `healthy_since`; drops replaced producers that have nothing in flight; and
    /// passes on a changed password.
    pub fn check(&self, healthy_since: Option<Instant>) {
        if self.shared.is_stopping() {
            return;
        }
        let now = Instant::now();
        let mut upkeep = self.upkeep.lock();
        upkeep.retired.retain(|(since, retired)| {
            retired.in_flight_count() > 0 && now.duration_since(*since) < RETIREMENT
        });
        if upkeep.create_error.is_some() {
            return self.replace(&mut upkeep);
        }
        let current = self.current.read().clone();
        if let Some(producer) = &current {
            upkeep.credentials.refresh(&self.shared, producer.client());
        }
        let age = now.duration_since(upkeep.created);
        match current.as_ref().map(|producer| producer.client().fatal_error()) {
            Some(None) => {
                if age >= STABLE_AFTER {
                    (upkeep.fatal, upkeep.retry_delay) = (None, INITIAL_RETRY_DELAY);
                }
                let is_healthy =
                    healthy_since.is_some_and(|since| now.duration_since(since) >= LAST_RESORT_AFTER);
                let is_due = upkeep
                    .last_resort
                    .is_none_or(|last| now.duration_since(last) >= LAST_RESORT_INTERVAL);
                if is_healthy && is_due && self.shared.outcomes.is_stuck(now) {
                    tracing::error!(
                        "Kafka answers, and acknowledges no record of this node: its producer is made anew"
                    );
                    upkeep.last_resort = Some(now);
                    self.replace(&mut upkeep);
                }
            }
            Some(Some((code, reason))) => {
                upkeep.fatal = Some((code, reason));
                if age >= upkeep.retry_delay {
                    upkeep.retry_delay = (2 * upkeep.retry_delay).min(MAX_RETRY_DELAY);
                    self.replace(&mut upkeep);
                }
            }
            None => self.replace(&mut upkeep),
        }
    }

    /// Call this when a topic was recreated: librdkafka would take the new topic's leader epochs for outdated ones, and
    /// keep sending to the old leaders (issue 4898).
    pub fn recreate(&self) {
        self.replace(&mut self.upkeep.lock());
    }

    /// What is wrong, if there is no producer or it has had a fatal error.
    pub fn fatal(&self) -> Option<Cause> {
        let upkeep = self.upkeep.lock();
        if let Some(why) = &upkeep.create_error {
            return Some(Cause::new("the producer cannot be created").with(why.as_str()));
        }
        let (code, reason) = upkeep.fatal.clone()?;
        let cause = if is_refusal(code) {
            Cause::new(
                "no permission to write (WRITE on the topics, before Kafka 3.0 also IDEMPOTENT_WRITE on the cluster)",
            )
        } else {
            Cause::new(format!(
                "the producer had a fatal error and is being recreated: {code}"
            ))
        };
        Some(cause.with(reason))
    }

    /// Creates a new producer. Records that the old one has not sent yet fail at once: they are not in the log. Those
    /// in flight may be in it, so they are not sent again, and the old producer is kept to get their outcomes.
    fn replace(&self, upkeep: &mut Upkeep) {
        let made = self
            .shared
            .client_config()
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .set("message.timeout.ms", MESSAGE_TIMEOUT_MS)
            .set("queue.buffering.max.messages", MAX_QUEUED)
            .set("queue.buffering.max.kbytes", MAX_QUEUED_KIB)
            .set("batch.size", MAX_BATCH)
            .set(
                "message.max.bytes",
                (self.shared.max_record_bytes + RECORD_OVERHEAD).to_string(),
            )
            .create_with_context::<_, NodeProducer>(Acks::new(&self.shared));
        let started = made.map_err(|error| error.to_string()).and_then(spawn_poller);
        upkeep.created = Instant::now();
        match started {
            Ok((producer, poller)) => {
                upkeep.create_error = None;
                let old = self.current.write().replace(producer);
                upkeep.poller = Some(poller);
                self.shared.outcomes.reset();
                if let Some(old) = old {
                    self.shared.metrics.kafka.producer_restarts.inc();
                    old.purge(PurgeConfig::default().queue());
                    upkeep.retired.push((Instant::now(), old));
                }
            }
            Err(error) => upkeep.create_error = Some(error),
        }
    }

    /// Waits at most `timeout` for the outcomes of everything published, and releases the client library before the
    /// process ends.
    pub fn stop(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let mut upkeep = self.upkeep.lock();
        let retired = upkeep.retired.drain(..).map(|(_, retired)| retired);
        let all: Vec<_> = self.current.read().clone().into_iter().chain(retired).collect();
        for producer in &all {
            if producer
                .flush(until.saturating_duration_since(Instant::now()))
                .is_err()
            {
                let left = producer.in_flight_count();
                tracing::warn!(
                    left,
                    "Kafka has not acknowledged all records by the end of the grace period"
                );
            }
        }
        *self.current.write() = None;
        drop(all);
        if let Some(poller) = upkeep.poller.take() {
            // It ends after its current poll; the wait is bounded in case the library blocks for longer.
            let until = Instant::now() + 2 * POLL_TIMEOUT;
            while !poller.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Starts a thread that polls the producer for acknowledgements. It ends soon after the producer is dropped.
fn spawn_poller(producer: NodeProducer) -> Result<(Arc<NodeProducer>, JoinHandle<()>), String> {
    let producer = Arc::new(producer);
    let weak = Arc::downgrade(&producer);
    let poller = thread::Builder::new()
        .name("producer".into())
        .spawn(move || {
            while let Some(producer) = Weak::upgrade(&weak) {
                producer.poll(POLL_TIMEOUT);
            }
        })
        .map_err(|error| error.to_string())?;
    Ok((producer, poller))
}

fn acknowledge(ack: Option<Ack>, outcome: Result<(), PublishError>) {
    if let Some(ack) = ack {
        ack(outcome);
    }
}

fn reason(error: &KafkaError) -> PublishError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::QueueFull) => PublishError::Full,
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
            PublishError::TooLarge
        }
        _ => PublishError::Unavailable,
    }
}

/// Receives each record's outcome, on the producer's polling thread.
struct Acks {
    outcomes: Arc<Outcomes>,
    reasons: Reasons,
    publish_latency: Latency,
}

impl Acks {
    fn new(shared: &Shared) -> Self {
        Self {
            outcomes: Arc::clone(&shared.outcomes),
            reasons: shared.producer_errors.clone(),
            publish_latency: shared.metrics.kafka.publish_latency.clone(),
        }
    }
}

impl ClientContext for Acks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.reasons.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reasons.error(error, reason);
    }
}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<Option<Ack>>;

    fn delivery(&self, result: &DeliveryResult<'_>, ack: Self::DeliveryOpaque) {
        let outcome = match result {
            Ok(message) => {
                let latency = native::latency(message);
                if let Some(latency) = latency {
                    self.publish_latency.observe(latency.as_secs_f64());
                }
                self.outcomes
                    .succeeded(message.topic(), message.partition(), latency);
                Ok(())
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code();
                match code {
                    // Purged by ourselves: earlier failures have been noted.
                    None | Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {}
                    Some(code) => self.outcomes.failed(message.topic(), message.partition(), code),
                }
                Err(match reason(error) {
                    PublishError::Unavailable if !native::is_not_persisted(message) => PublishError::Unknown,
                    reason => reason,
                })
            }
        };
        // A panic would end the thread, and so the acknowledgements of all other records.
        if catch_panic(|| acknowledge(*ack, outcome)).is_none() {
            tracing::error!("handling an acknowledgement failed: please report this bug");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rdkafka::ClientConfig;

    use super::super::{HistoryFeed, Reader, pace};
    use super::*;
    use crate::config::Config;
    use crate::history::{RecentLog, SentMessages};
    use crate::metrics::Metrics;

    #[test]
    fn a_producer_that_cannot_be_created_is_reported() {
        let broker = |name: &str| (name == "KAFKA_BROKERS").then(|| "127.0.0.1:1".to_owned());
        let config = Config::from_lookup(&broker).expect("the configuration is valid");
        let mut kafka = config.kafka.expect("there is a broker");
        // Deleted since the configuration was read, or the build has no TLS.
        kafka.ssl_ca = Some("/nowhere/ca.pem".into());
        let readers = ["a", "b", "c"].map(|thread| Reader::new(thread, &[], pace::MESSAGES));
        let shared = Shared::new(
            kafka,
            "node".to_owned(),
            1024,
            Arc::new(Metrics::default()),
            readers,
            HistoryFeed::new(
                Arc::new(RecentLog::new(0)),
                Arc::new(SentMessages::new(65_536, Duration::ZERO)),
                Duration::ZERO,
                Duration::ZERO,
            ),
        );
        let producer = Producer::new(Arc::new(shared));
        let cause = producer.fatal().expect("there is no producer");
        assert!(cause.mentions("cannot be created"), "{cause:?}");
    }

    fn acks() -> Acks {
        Acks {
            outcomes: Arc::default(),
            reasons: Reasons::default(),
            publish_latency: crate::metrics::latency(),
        }
    }

    #[test]
    fn a_panicking_acknowledgement_does_not_stop_the_others() {
        // No broker answers at this address: both records wait until they are purged.
        let made = ClientConfig::new()
            .set("bootstrap.servers", "127.0.0.1:1")
            .create_with_context::<_, NodeProducer>(acks());
        let (producer, poller) = spawn_poller(made.unwrap()).unwrap();
        let (sender, outcomes) = mpsc::channel();
        let acks: [Ack; 2] = [
            Box::new(|_| panic!("the first fails")),
            Box::new(move |outcome| sender.send(outcome).unwrap()),
        ];
        for ack in acks {
            let record = BaseRecord::with_opaque_to("topic", Box::new(Some(ack)))
                .key("key")
                .payload("value");
            assert!(producer.send(record).is_ok());
        }
        producer.purge(PurgeConfig::default().queue());
        let second = outcomes.recv_timeout(Duration::from_secs(10));
        assert_eq!(second, Ok(Err(PublishError::Unavailable)));
        assert!(!poller.is_finished());
    }
}
