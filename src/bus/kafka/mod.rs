//! The bus in Kafka: two consumer threads that read every partition of three topics, a producer, and a watch that
//! keeps them honest.
//!
//! - [`consumer`]: from fetched records to the router, at offsets we keep ourselves
//! - [`producer`]: idempotent, keyed, acknowledged; [`outcomes`]: what fails of it, and for how long
//! - [`watch`]: topics and partitions; [`audit`]: gaps and stalls; [`transactions`]: what others leave open
//! - [`broker`]: what the watch and its audit ask; [`topics`]: what an administrator asks
//! - [`causes`]: what is wrong, for health and the log (`watch/report.rs`); [`reasons`]: why a broker can't be reached
//!
//! Every node reads the whole log: partitions are assigned by the node itself and no consumer group is joined
//! (with a shared group two nodes would each see half of the messages).

mod audit;
mod broker;
mod causes;
mod consumer;
mod credentials;
mod headers;
mod native;
mod offsets;
mod outcomes;
mod pace;
mod producer;
mod reasons;
mod topics;
mod transactions;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::{Ack, Health, Router, Status};
use crate::config::KafkaConfig;
use crate::metrics::Metrics;
use crate::protocol::record::{Outgoing, Topic};
use causes::Standing;
use offsets::{Offsets, Partition};
use outcomes::Outcomes;
use pace::Fetching;
use producer::Producer;
use reasons::Reasons;

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
    standing: Mutex<Standing>,
    outcomes: Arc<Outcomes>,
    /// What the producer hears of brokers.
    writing: Reasons,
    /// The watch is to look now.
    look: AtomicBool,
    stop: AtomicBool,
}

impl Kafka {
    /// Starts the threads. A broker that is down is no error: the bus says degraded and connects when it is up.
    /// `messages` delivers those, `signals` typing and status.
    pub fn start(
        config: KafkaConfig,
        node: String,
        max_record_bytes: usize,
        [messages, signals]: [Router; 2],
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        // Messages have a consumer of their own, since each fetch costs by the partitions it asks for, whether they have
        // anything or not; and what typing and status do is then nothing to them.
        let readers = [
            Reader::new("bus", &[Topic::Messages], pace::MESSAGES),
            Reader::new("bus-signals", &[Topic::Typing, Topic::Status], pace::SIGNALS),
        ];
        let shared = Arc::new(Shared::new(config, node, max_record_bytes, metrics, readers));
        let producer = Arc::new(Producer::new(Arc::clone(&shared)));
        let watch = watch::Watch::new(Arc::clone(&shared), Arc::clone(&producer), Handle::current());
        let mut consumers = Vec::new();
        for (reader, router) in shared.readers.iter().zip([messages, signals]) {
            let (for_thread, reader) = (Arc::clone(&shared), Arc::clone(reader));
            let thread = reader.thread;
            consumers.push(router.spawn(thread, move |router| consumer::run(for_thread, reader, router))?);
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

    /// A sender has waited in vain: the watch is to find out why.
    pub fn unanswered(&self) {
        if self.shared.outcomes.unanswered() {
            self.shared.look.store(true, Ordering::SeqCst);
            self.watch.unpark();
        }
    }

    pub fn health(&self) -> Health {
        let standing = self.shared.standing.lock();
        Health {
            mode: "kafka",
            status: standing.status,
            detail: standing.detail(),
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
    fn new(
        config: KafkaConfig,
        node: String,
        max_record_bytes: usize,
        metrics: Arc<Metrics>,
        readers: [Arc<Reader>; 2],
    ) -> Self {
        Self {
            config,
            node,
            max_record_bytes,
            metrics,
            readers,
            standing: Mutex::new(Standing {
                status: Status::Connecting,
                causes: Vec::new(),
            }),
            outcomes: Arc::default(),
            writing: Reasons::default(),
            look: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    fn status(&self) -> Status {
        self.standing.lock().status
    }

    fn set_standing(&self, standing: Standing) {
        *self.standing.lock() = standing;
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
