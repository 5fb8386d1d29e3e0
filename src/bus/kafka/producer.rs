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
use crate::protocol::record::{FRAME_HEADER, FRAME_NATIVE, Form, ID_HEADER, NODE_HEADER, Outgoing};
use crate::supervise::catch_panic;

/// How long a record may wait for the log. The sender has been told "outcome unknown" long before; a message that
/// appears even later than this would only puzzle.
const MESSAGE_TIMEOUT_MS: &str = "30000";
/// What may wait for the log, in records and KiB: beyond it senders are told to try again.
const MAX_QUEUED: &str = "100000";
const MAX_QUEUED_KIB: &str = "65536";
/// A batch of several records is at most so large: a topic refuses a batch over its `max.message.bytes` with all that is
/// in it. A record that is longer leaves alone.
const MAX_BATCH: &str = "131072";

/// How soon a producer that has failed for good is made anew, and how much later each time that it fails again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A producer that has not failed for so long is well: what it fails of it does at its start.
const WELL: Duration = Duration::from_secs(10);

/// How long a producer that was replaced is kept for what it has under way: as long as a record may wait.
const RETIREMENT: Duration = Duration::from_secs(31);

/// When all else is well and nothing is acknowledged, a new producer may help. That it did not help is seen only after
/// that long, so it is tried seldom.
const LAST_RESORT_PAUSE: Duration = Duration::from_secs(120);
/// For how long all else must have been well: longer than a record waits, so that a broker that was away or merely paused
/// has had its time to answer for all that an idempotent producer would still bring to it.
pub(super) const LAST_RESORT_PATIENCE: Duration = Duration::from_secs(35);

/// How long one look for acknowledgements lasts. librdkafka waits for whole milliseconds, and the binding spins for what
/// they leave of it: of 500 ms, of which a moment has passed when it asks, the last one. The little more here is over
/// when the wait is.
const LOOK: Duration = Duration::from_micros(500_050);

type NodeProducer = BaseProducer<Acks>;

pub(super) struct Producer {
    shared: Arc<Shared>,
    /// `None` while it can't be made.
    current: RwLock<Option<Arc<NodeProducer>>>,
    /// What the watch alone uses.
    upkeep: Mutex<Upkeep>,
}

struct Upkeep {
    credentials: Credentials,
    /// Hears of the current one's acknowledgements.
    listener: Option<JoinHandle<()>>,
    made: Instant,
    /// How long to wait before a producer that fails for good again is replaced.
    pause: Duration,
    /// Why there is none.
    not_made: Option<String>,
    /// Why the last one failed, until the next one is well.
    fatal: Option<(RDKafkaErrorCode, String)>,
    /// Replaced ones that may still hear of what they have under way.
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
                listener: None,
                made: Instant::now(),
                pause: FIRST_PAUSE,
                not_made: None,
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
        let mut headers = OwnedHeaders::new_with_capacity(3).insert(Header {
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

    /// Replaces a producer that has failed for good (only an idempotent one can), or one that nobody answers although all
    /// has been well since `well_since`, and lets go of those that were replaced. One that is well is told a password that
    /// has changed.
    pub fn check(&self, well_since: Option<Instant>) {
        if self.shared.is_stopping() {
            return;
        }
        let now = Instant::now();
        let mut upkeep = self.upkeep.lock();
        upkeep.retired.retain(|(since, retired)| {
            retired.in_flight_count() > 0 && now.duration_since(*since) < RETIREMENT
        });
        if upkeep.not_made.is_some() {
            return self.replace(&mut upkeep);
        }
        let current = self.current.read().clone();
        if let Some(producer) = &current {
            upkeep.credentials.refresh(&self.shared, producer.client());
        }
        let age = now.duration_since(upkeep.made);
        match current.as_ref().map(|producer| producer.client().fatal_error()) {
            Some(None) => {
                if age >= WELL {
                    (upkeep.fatal, upkeep.pause) = (None, FIRST_PAUSE);
                }
                let is_well =
                    well_since.is_some_and(|since| now.duration_since(since) >= LAST_RESORT_PATIENCE);
                let is_due = upkeep
                    .last_resort
                    .is_none_or(|last| now.duration_since(last) >= LAST_RESORT_PAUSE);
                if is_well && is_due && self.shared.outcomes.is_stuck(now) {
                    tracing::error!(
                        "Kafka answers, and acknowledges no record of this node: its producer is made anew"
                    );
                    upkeep.last_resort = Some(now);
                    self.replace(&mut upkeep);
                }
            }
            Some(Some((code, reason))) => {
                upkeep.fatal = Some((code, reason));
                if age >= upkeep.pause {
                    upkeep.pause = (2 * upkeep.pause).min(LONGEST_PAUSE);
                    self.replace(&mut upkeep);
                }
            }
            None => self.replace(&mut upkeep),
        }
    }

    /// A topic is another one: the client library would take the new one's leaders for older than those it knows, and
    /// send to these for ever (librdkafka issue 4898).
    pub fn renew(&self) {
        self.replace(&mut self.upkeep.lock());
    }

    /// What is wrong with it, if there is none or it has failed for good.
    pub fn fatal(&self) -> Option<Cause> {
        let upkeep = self.upkeep.lock();
        if let Some(why) = &upkeep.not_made {
            return Some(Cause::new("the producer cannot be made").with(why.as_str()));
        }
        let (code, reason) = upkeep.fatal.clone()?;
        let cause = if is_refusal(code) {
            Cause::new(
                "no permission to write (WRITE on the topics, before Kafka 3.0 also IDEMPOTENT_WRITE on the cluster)",
            )
        } else {
            Cause::new(format!(
                "the producer has failed for good and is made anew: {code}"
            ))
        };
        Some(cause.with(reason))
    }

    /// Makes a new producer. What the old one has not sent yet is answered at once: it is not in the log. What it has
    /// sent may be there, so nobody sends it again, and the old one hears of it as long as that may take.
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
        let listened = made.map_err(|error| error.to_string()).and_then(listen);
        upkeep.made = Instant::now();
        match listened {
            Ok((producer, listener)) => {
                upkeep.not_made = None;
                let old = self.current.write().replace(producer);
                upkeep.listener = Some(listener);
                self.shared.outcomes.restart();
                if let Some(old) = old {
                    self.shared.metrics.kafka.producer_restarts.inc();
                    old.purge(PurgeConfig::default().queue());
                    upkeep.retired.push((Instant::now(), old));
                }
            }
            Err(error) => upkeep.not_made = Some(error),
        }
    }

    /// Waits until everything published has its outcome, and lets go of the client library before the process ends.
    pub fn stop(&self, patience: Duration) {
        let until = Instant::now() + patience;
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
                    "records without an answer from Kafka at the end of the grace period"
                );
            }
        }
        *self.current.write() = None;
        drop(all);
        if let Some(listener) = upkeep.listener.take() {
            // It ends with its look, and whatever the library waits for is not worth more.
            let until = Instant::now() + 2 * LOOK;
            while !listener.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Gives the producer a thread that hears of acknowledgements, and ends soon after the producer is let go.
fn listen(producer: NodeProducer) -> Result<(Arc<NodeProducer>, JoinHandle<()>), String> {
    let producer = Arc::new(producer);
    let heard = Arc::downgrade(&producer);
    let listener = thread::Builder::new()
        .name("producer".into())
        .spawn(move || {
            while let Some(producer) = Weak::upgrade(&heard) {
                producer.poll(LOOK);
            }
        })
        .map_err(|error| error.to_string())?;
    Ok((producer, listener))
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

/// Hears of each record's outcome, on the producer's own thread.
struct Acks {
    outcomes: Arc<Outcomes>,
    reasons: Reasons,
    publish_latency: Latency,
}

impl Acks {
    fn new(shared: &Shared) -> Self {
        Self {
            outcomes: Arc::clone(&shared.outcomes),
            reasons: shared.writing.clone(),
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
                    // By ourselves: what it had met before is known.
                    None | Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {}
                    Some(code) => self.outcomes.failed(message.topic(), message.partition(), code),
                }
                Err(match reason(error) {
                    PublishError::Unavailable if !native::is_surely_lost(message) => PublishError::Unknown,
                    reason => reason,
                })
            }
        };
        // Unwinding would end the thread, and with it all other records' acknowledgements.
        if catch_panic(|| acknowledge(*ack, outcome)).is_none() {
            tracing::error!("an acknowledgement has failed: please report this bug");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rdkafka::ClientConfig;

    use super::super::{Reader, pace};
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;

    #[test]
    fn a_producer_that_can_not_be_made_is_told() {
        let broker = |name: &str| (name == "KAFKA_BROKERS").then(|| "127.0.0.1:1".to_owned());
        let config = Config::from_lookup(&broker).expect("it is right");
        let mut kafka = config.kafka.expect("there is a broker");
        // Gone since the configuration was read, or of a build without TLS.
        kafka.ssl_ca = Some("/nowhere/ca.pem".into());
        let readers = ["a", "b"].map(|thread| Reader::new(thread, &[], pace::MESSAGES));
        let shared = Shared::new(
            kafka,
            "node".to_owned(),
            1024,
            Arc::new(Metrics::default()),
            readers,
        );
        let producer = Producer::new(Arc::new(shared));
        let cause = producer.fatal().expect("health says so");
        assert!(cause.is_about("cannot be made"), "{cause:?}");
    }

    fn acks() -> Acks {
        Acks {
            outcomes: Arc::default(),
            reasons: Reasons::default(),
            publish_latency: crate::metrics::latency(),
        }
    }

    #[test]
    fn an_acknowledgement_that_panics_is_not_the_end_of_the_others() {
        // Nobody answers there: both records wait until they are given up.
        let made = ClientConfig::new()
            .set("bootstrap.servers", "127.0.0.1:1")
            .create_with_context::<_, NodeProducer>(acks());
        let (producer, listener) = listen(made.unwrap()).unwrap();
        let (heard, outcomes) = mpsc::channel();
        let acks: [Ack; 2] = [
            Box::new(|_| panic!("the first fails")),
            Box::new(move |outcome| heard.send(outcome).unwrap()),
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
        assert!(!listener.is_finished());
    }
}
