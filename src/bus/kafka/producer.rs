//! The producer: idempotent, acknowledged by all in-sync replicas, keyed by session with the Java client's partitioner.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::credentials::Credentials;
use super::{Context, RECORD_OVERHEAD, Shared};
use crate::bus::{Ack, PublishError};
use crate::logging::LogLimit;
use crate::protocol::record::{FRAME_HEADER, FRAME_NATIVE, Form, ID_HEADER, NODE_HEADER, Outgoing};

/// How long a record may wait for the log. The sender has been told "outcome unknown" long before; a message that
/// appears even later than this would only puzzle.
const MESSAGE_TIMEOUT_MS: &str = "30000";
/// What may wait for the log, in records and KiB: beyond it senders are told to try again.
const MAX_QUEUED: &str = "100000";
const MAX_QUEUED_KIB: &str = "65536";
/// A batch of several records is at most so large: a topic refuses a batch over its `max.message.bytes` with all that is
/// in it. A record that is longer leaves alone.
const MAX_BATCH: &str = "131072";

/// Records that were not taken are logged at most so often.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// How long one look for acknowledgements lasts. librdkafka waits for whole milliseconds, and the binding spins for what
/// they leave of it: of 500 ms, of which a moment has passed when it asks, the last one. The little more here is over
/// when the wait is.
const LOOK: Duration = Duration::from_micros(500_050);

type NodeProducer = BaseProducer<Acks>;

pub(super) struct Producer {
    shared: Arc<Shared>,
    /// Made anew after a fatal error; `None` while it can't be made.
    current: RwLock<Option<Arc<NodeProducer>>>,
    credentials: Mutex<Credentials>,
    /// Hears of the current one's acknowledgements.
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Producer {
    pub fn new(shared: Arc<Shared>) -> Self {
        let producer = Self {
            shared,
            current: RwLock::new(None),
            credentials: Mutex::default(),
            listener: Mutex::new(None),
        };
        producer.renew();
        producer
    }

    pub fn publish(&self, record: &Outgoing, ack: Option<Ack>) {
        let Some(producer) = self.current.read().clone() else {
            return settle(ack, Err(PublishError::Unavailable));
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
            settle(*outgoing.delivery_opaque, Err(reason(&error)));
        }
    }

    /// A producer that has failed for good (only an idempotent one can) is replaced, and one that is well knows a
    /// password that has changed.
    pub fn check(&self) {
        if self.shared.is_stopping() {
            return;
        }
        if let Some(producer) = &*self.current.read() {
            self.credentials.lock().refresh(&self.shared, producer.client());
        }
        let fatal = self.current.read().as_ref().is_none_or(|producer| {
            match producer.client().fatal_error() {
                Some((code, reason)) => {
                    tracing::error!(%code, reason, "the Kafka producer has failed for good and is made anew");
                    true
                }
                None => false,
            }
        });
        if fatal {
            self.renew();
        }
    }

    fn renew(&self) {
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
            .create_with_context::<_, NodeProducer>(Acks::default());
        let listened = made.map_err(|error| error.to_string()).and_then(listen);
        match listened {
            Ok((producer, listener)) => {
                *self.current.write() = Some(producer);
                *self.listener.lock() = Some(listener);
            }
            Err(error) => tracing::error!(%error, "cannot make a Kafka producer"),
        }
    }

    /// Waits until everything published has its outcome, and lets go of the client library before the process ends.
    pub fn stop(&self, patience: Duration) {
        let Some(producer) = self.current.read().clone() else {
            return;
        };
        if producer.flush(patience).is_err() {
            let left = producer.in_flight_count();
            tracing::warn!(
                left,
                "records without an answer from Kafka at the end of the grace period"
            );
        }
        *self.current.write() = None;
        drop(producer);
        if let Some(listener) = self.listener.lock().take() {
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

fn settle(ack: Option<Ack>, outcome: Result<(), PublishError>) {
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
    refusal_log: Mutex<LogLimit>,
}

impl Default for Acks {
    fn default() -> Self {
        Self {
            refusal_log: Mutex::new(LogLimit::new(LOG_INTERVAL)),
        }
    }
}

impl ClientContext for Acks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Context.error(error, reason);
    }
}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<Option<Ack>>;

    fn delivery(&self, result: &DeliveryResult<'_>, ack: Self::DeliveryOpaque) {
        let outcome = result.as_ref().map(|_| ()).map_err(|(error, _)| {
            // Senders are told; why, only the operator can mend.
            if self.refusal_log.lock().allows() {
                tracing::warn!(%error, "Kafka has not taken a record");
            }
            reason(error)
        });
        // Unwinding would end the thread, and with it all other records' acknowledgements.
        if panic::catch_unwind(AssertUnwindSafe(|| settle(*ack, outcome))).is_err() {
            tracing::error!("an acknowledgement has failed: please report this bug");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rdkafka::ClientConfig;
    use rdkafka::producer::PurgeConfig;

    use super::*;

    #[test]
    fn an_acknowledgement_that_panics_is_not_the_end_of_the_others() {
        // Nobody answers there: both records wait until they are given up.
        let made = ClientConfig::new()
            .set("bootstrap.servers", "127.0.0.1:1")
            .create_with_context::<_, NodeProducer>(Acks::default());
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
