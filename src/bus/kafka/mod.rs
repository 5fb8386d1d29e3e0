//! The bus in Kafka: three consumer threads that read every partition of four topics, a producer, and a monitor that
//! checks them.
//!
//! - [`consumer`]: polls records for the router, at offsets this node keeps itself
//! - [`producer`]: idempotent, keyed, acknowledged; [`outcomes`]: which writes fail, and for how long
//! - [`monitor`]: topics and partitions; [`audit`]: gaps and stalls; [`transactions`]: open transactions of others
//! - [`broker`]: the requests of the monitor and its audit; [`topics`]: admin requests
//! - [`history_feed`]: what the recent log has to know about Kafka
//! - [`control`]: whether all disconnects have been read
//! - [`log_reader`]: older records, for clients that come back; [`unread`]: what is still to be read of them
//! - [`causes`]: what is wrong, for health and the log (`monitor/report.rs`); [`reasons`]: why a broker can't be
//!   reached
//!
//! Every node reads the whole log: it assigns itself all partitions and joins no consumer group (in a shared group, two
//! nodes would each see half of the messages).

mod audit;
mod broker;
mod causes;
mod consumer;
mod control;
mod credentials;
mod headers;
mod history_feed;
mod log_reader;
mod monitor;
mod native;
mod offsets;
mod outcomes;
mod pace;
mod producer;
mod reasons;
mod topics;
mod transactions;
mod unread;

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
use crate::history::query::LogQuery;
use crate::metrics::Metrics;
use crate::protocol::record::{Outgoing, Topic};
use causes::HealthReport;
use control::ControlFeed;
pub use history_feed::HistoryFeed;
use log_reader::LogReader;
use offsets::{Offsets, Partition};
use outcomes::Outcomes;
use pace::FetchSettings;
use producer::Producer;
use reasons::Reasons;

/// A generous bound on what a record and its batch add to its value on the wire.
const RECORD_OVERHEAD: usize = 4 * 1024;

pub struct Kafka {
    shared: Arc<Shared>,
    producer: Arc<Producer>,
    consumers: Mutex<Vec<JoinHandle<()>>>,
    monitor: Thread,
    log_reader: LogReader,
}

/// What one consumer thread reads.
struct Reader {
    thread: &'static str,
    topics: &'static [Topic],
    fetch: FetchSettings,
    offsets: Offsets,
}

impl Reader {
    fn new(thread: &'static str, topics: &'static [Topic], fetch: FetchSettings) -> Arc<Self> {
        Arc::new(Self {
            thread,
            topics,
            fetch,
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
    readers: [Arc<Reader>; 3],
    health: Mutex<HealthReport>,
    outcomes: Arc<Outcomes>,
    history: HistoryFeed,
    control: ControlFeed,
    /// Connection errors of the producer.
    producer_errors: Reasons,
    /// Set to make the monitor probe at once.
    probe_now: AtomicBool,
    stop: AtomicBool,
}

impl Kafka {
    /// Starts the threads. A broker that is down is no error: the bus connects when it is up.
    /// The first router delivers messages, the second one typing and status; the third one disconnects users.
    pub fn start(
        config: KafkaConfig,
        node: String,
        max_record_bytes: usize,
        routers: [Router; 3],
        metrics: Arc<Metrics>,
        history: HistoryFeed,
    ) -> std::io::Result<Self> {
        // Messages have a consumer of their own: the cost of a fetch grows with its partitions, even empty ones, and
        // typing and status then can't delay messages.
        let readers = [
            Reader::new("bus", &[Topic::Messages], pace::MESSAGES),
            Reader::new("bus-signals", &[Topic::Typing, Topic::Status], pace::SIGNALS),
            // No flood of the others delays these.
            Reader::new("bus-control", &[Topic::Control], pace::SIGNALS),
        ];
        let shared = Arc::new(Shared::new(
            config,
            node,
            max_record_bytes,
            metrics,
            readers,
            history,
        ));
        let producer = Arc::new(Producer::new(Arc::clone(&shared)));
        let monitor = monitor::Monitor::new(Arc::clone(&shared), Arc::clone(&producer), Handle::current());
        let mut consumers = Vec::new();
        for (reader, router) in shared.readers.iter().zip(routers) {
            let (for_thread, reader) = (Arc::clone(&shared), Arc::clone(reader));
            let thread = reader.thread;
            consumers.push(router.spawn(thread, move |router| consumer::run(for_thread, reader, router))?);
        }
        let monitor = thread::Builder::new()
            .name("bus-monitor".into())
            .spawn(move || monitor.run())?;
        Ok(Self {
            log_reader: LogReader::start(Arc::clone(&shared))?,
            shared,
            producer,
            consumers: Mutex::new(consumers),
            monitor: monitor.thread().clone(),
        })
    }

    pub fn publish(&self, record: &Outgoing, ack: Option<Ack>) {
        self.producer.publish(record, ack);
    }

    /// Notes how far this node has read, between two checks of the monitor.
    pub fn note_progress(&self) {
        let mut readers = self.shared.readers.iter();
        if let Some(reader) = readers.find(|reader| reader.topics.contains(&Topic::Messages)) {
            self.shared.history.note_progress(|at| reader.offsets.get(at));
        }
    }

    /// Reads older records for a client that comes back.
    pub fn query_log(&self, query: LogQuery) {
        self.log_reader.ask(query);
    }

    /// A sender's wait has timed out: the monitor is to find out why.
    pub fn unanswered(&self) {
        if self.shared.outcomes.note_unanswered() {
            self.shared.probe_now.store(true, Ordering::SeqCst);
            self.monitor.unpark();
        }
    }

    /// See [`ControlFeed::is_awaited`].
    pub fn awaits_refusals(&self) -> bool {
        self.shared.control.is_awaited()
    }

    pub fn health(&self) -> Health {
        let health = self.shared.health.lock();
        Health {
            mode: "kafka",
            status: health.status,
            detail: health.detail(),
        }
    }

    pub fn stop(&self, timeout: Duration) {
        // No recipients are left. The monitor may be waiting for a broker and is not joined: it ends by itself.
        self.shared.stop.store(true, Ordering::SeqCst);
        self.monitor.unpark();
        self.producer.stop(timeout);
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
        readers: [Arc<Reader>; 3],
        history: HistoryFeed,
    ) -> Self {
        Self {
            config,
            node,
            max_record_bytes,
            metrics,
            readers,
            health: Mutex::new(HealthReport {
                status: Status::Connecting,
                causes: Vec::new(),
            }),
            outcomes: Arc::default(),
            history,
            control: ControlFeed::new(),
            producer_errors: Reasons::default(),
            probe_now: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    fn status(&self) -> Status {
        self.health.lock().status
    }

    fn set_health(&self, health: HealthReport) {
        *self.health.lock() = health;
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn topic_name(&self, topic: Topic) -> &str {
        match topic {
            Topic::Messages => &self.config.topic_messages,
            Topic::Typing => &self.config.topic_typing,
            Topic::Status => &self.config.topic_status,
            Topic::Control => &self.config.topic_control,
        }
    }

    /// Partitions with offsets, as librdkafka expects them.
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

    /// The settings that all our clients share.
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

    /// The settings that all our consumers share. `assign` needs a group id, though no group is joined.
    fn consumer_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        config
            .set("group.id", format!("livechat-ws-{}", self.node))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // The audit finds and counts gaps: librdkafka must not skip them silently.
            .set("auto.offset.reset", "error")
            // The monitor creates topics, with our settings.
            .set("allow.auto.create.topics", "false");
        config
    }
}
