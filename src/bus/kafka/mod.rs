//! The bus in Kafka: two consumer threads that read every partition of three topics, a producer, and a watch that
//! keeps them honest.
//!
//! - [`consumer`]: from fetched records to delivery, at offsets we keep ourselves
//! - [`producer`]: idempotent, keyed, acknowledged
//! - [`watch`]: topics, new partitions, health; [`audit`]: gaps and stalls
//!
//! Every node reads the whole log: partitions are assigned by the node itself and no consumer group is joined
//! (with a shared group two nodes would each see half of the messages).

mod audit;
mod consumer;
mod credentials;
mod headers;
mod offsets;
mod pace;
mod producer;
mod topic_id;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::{Ack, Delivery, Health, Status};
use crate::config::KafkaConfig;
use crate::metrics::Metrics;
use crate::protocol::record::{Outgoing, Topic};
use offsets::{Offsets, Partition};
use pace::Fetching;
use producer::Producer;

/// What a record and its batch add to its value on the wire, generously.
const RECORD_OVERHEAD: usize = 4 * 1024;

pub struct Kafka {
    shared: Arc<Shared>,
    producer: Arc<Producer>,
    consumers: Mutex<Vec<JoinHandle<()>>>,
    watch: Thread,
}

/// What one consumer thread reads.
struct Reader {
    thread: &'static str,
    topics: &'static [Topic],
    fetching: Fetching,
    offsets: Offsets,
}

impl Reader {
    fn new(thread: &'static str, topics: &'static [Topic], fetching: Fetching) -> Arc<Self> {
        Arc::new(Self {
            thread,
            topics,
            fetching,
            offsets: Offsets::default(),
        })
    }
}

/// What the threads share.
struct Shared {
    config: KafkaConfig,
    /// `NODE_ID` and the boot id.
    node: String,
    /// `MAX_RECORD_BYTES`.
    max_record_bytes: usize,
    metrics: Arc<Metrics>,
    readers: [Arc<Reader>; 2],
    /// How it is, and what is wrong.
    status: Mutex<(Status, Option<String>)>,
    stop: AtomicBool,
}

impl Kafka {
    /// Starts the threads. A broker that is down is no error: the bus says degraded and connects when it is up.
    /// `messages` delivers those, `signals` typing and status.
    pub fn start(
        config: KafkaConfig,
        node: String,
        max_record_bytes: usize,
        [messages, signals]: [Delivery; 2],
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        // Messages have a consumer of their own, since each fetch costs by the partitions it asks for, whether they have
        // anything or not; and what typing and status do is then nothing to them.
        let readers = [
            Reader::new("bus", &[Topic::Messages], pace::MESSAGES),
            Reader::new("bus-signals", &[Topic::Typing, Topic::Status], pace::SIGNALS),
        ];
        let shared = Arc::new(Shared {
            config,
            node,
            max_record_bytes,
            metrics,
            readers,
            status: Mutex::new((Status::Connecting, None)),
            stop: AtomicBool::new(false),
        });
        let producer = Arc::new(Producer::new(Arc::clone(&shared)));
        let watch = watch::Watch::new(Arc::clone(&shared), Arc::clone(&producer), Handle::current());
        let mut consumers = Vec::new();
        for (reader, delivery) in shared.readers.iter().zip([messages, signals]) {
            let (for_thread, reader) = (Arc::clone(&shared), Arc::clone(reader));
            let thread = reader.thread;
            consumers.push(delivery.spawn(thread, move |delivery| {
                consumer::run(for_thread, reader, delivery)
            })?);
        }
        let watch = thread::Builder::new()
            .name("bus-watch".into())
            .spawn(move || watch.run())?;
        Ok(Self {
            shared,
            producer,
            consumers: Mutex::new(consumers),
            watch: watch.thread().clone(),
        })
    }

    pub fn publish(&self, record: &Outgoing, ack: Option<Ack>) {
        self.producer.publish(record, ack);
    }

    pub fn health(&self) -> Health {
        let (status, detail) = self.shared.status.lock().clone();
        Health {
            mode: "kafka",
            status,
            detail,
        }
    }

    pub fn stop(&self, patience: Duration) {
        // Nobody is left to be delivered to, and the watch, which may be waiting for a broker, ends by itself.
        self.shared.stop.store(true, Ordering::SeqCst);
        self.watch.unpark();
        self.producer.stop(patience);
        for consumer in self.consumers.lock().drain(..) {
            let _ = consumer.join();
        }
    }
}

impl Shared {
    fn status(&self) -> Status {
        self.status.lock().0
    }

    fn set_status(&self, status: Status, detail: Option<String>) {
        *self.status.lock() = (status, detail);
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn topic_name(&self, topic: Topic) -> &str {
        match topic {
            Topic::Messages => &self.config.topic_messages,
            Topic::Typing => &self.config.topic_typing,
            Topic::Status => &self.config.topic_status,
        }
    }

    /// Partitions with offsets, as librdkafka takes them.
    fn positions(
        &self,
        partitions: impl IntoIterator<Item = (Partition, Offset)>,
    ) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), offset) in partitions {
            list.add_partition_offset(self.topic_name(topic), partition, offset)?;
        }
        Ok(list)
    }

    /// What every client of ours has set.
    fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.config.brokers)
            .set(
                "client.id",
                format!("livechat-ws-{}", self.node.replace('+', "-")),
            )
            .set("security.protocol", self.config.security.as_str())
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            // A broker that is back is found within a second.
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "10000")
            .set_log_level(RDKafkaLogLevel::Warning);
        if let Some(sasl) = &self.config.sasl {
            config
                .set("sasl.mechanism", sasl.mechanism.as_str())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", &*sasl.password.value());
        }
        if let Some(ca) = &self.config.ssl_ca {
            config.set("ssl.ca.location", ca.to_string_lossy());
        }
        config
    }

    /// What every consumer of ours has set; `assign` needs a group's name, though none is joined.
    fn consumer_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        config
            .set("group.id", format!("livechat-ws-{}", self.node))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A gap is found and counted by us, never jumped over in silence.
            .set("auto.offset.reset", "error")
            // Topics are created by the watch, with settings of ours.
            .set("allow.auto.create.topics", "false");
        config
    }
}

/// librdkafka's own words. It repeats itself while a broker is away: the watch says once what matters.
struct Context;

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
    }
}
