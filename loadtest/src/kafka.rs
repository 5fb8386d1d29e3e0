//! Topics, and a producer that keys by session as the Java client does.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

/// With the settings that the server uses.
pub const PARTITIONS: i32 = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// Settings of all clients here.
pub fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("socket.nagle.disable", "true")
        .set_log_level(RDKafkaLogLevel::Error);
    config
}

/// Three topics for one run; deleted when dropped.
pub struct Topics {
    admin: AdminClient<DefaultClientContext>,
    pub messages: String,
    pub typing: String,
    pub status: String,
}

impl Topics {
    pub fn create(brokers: &str) -> Result<Self> {
        let run = format!("loadtest-{:x}-{:08x}", std::process::id(), fastrand::u32(..));
        let topics = Self {
            admin: config(brokers).create()?,
            messages: format!("{run}-messages"),
            typing: format!("{run}-typing"),
            status: format!("{run}-status"),
        };
        let new = topics
            .names()
            .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for created in block_on(topics.admin.create_topics(&new, &options))? {
            if let Err((name, code)) = created {
                bail!("cannot create the topic {name}: {code}");
            }
        }
        topics.await_leaders(brokers)?;
        Ok(topics)
    }

    /// Waits until a new topic has leaders.
    fn await_leaders(&self, brokers: &str) -> Result<()> {
        let consumer: BaseConsumer = config(brokers).create()?;
        let started = Instant::now();
        for topic in self.names() {
            for partition in 0..PARTITIONS {
                while let Err(error) = consumer.fetch_watermarks(topic, partition, PATIENCE) {
                    if started.elapsed() > PATIENCE {
                        return Err(error).context("a new topic's partition has no leader");
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        Ok(())
    }

    fn names(&self) -> [&str; 3] {
        [&self.messages, &self.typing, &self.status]
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        let _ = block_on(self.admin.delete_topics(&self.names(), &AdminOptions::new()));
    }
}

/// The form of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Keyed by session; the value is the frame's payload.
    Native,
    /// The old chat backend's: no key, no header. One session's records stay in one partition, for their order.
    Legacy,
    /// Keyed by session, without our header: for other servers.
    Foreign,
}

pub struct Producer {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
    form: Form,
}

impl Producer {
    pub fn new(brokers: &str, topic: &str, form: Form) -> Result<Self> {
        let producer = config(brokers)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .set("queue.buffering.max.messages", "20000")
            .create()?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
            form,
        })
    }

    /// Queues a record; waits while the queue is full.
    pub fn send(&self, session: &str, number: usize, payload: &[u8]) -> Result<()> {
        let record = self.record(session, payload);
        self.hand_over(match self.form {
            Form::Legacy => record.partition(number as i32 % PARTITIONS),
            Form::Foreign | Form::Native => record,
        })
    }

    /// Writes one such record to every partition: a reader that has all of them has read everything before.
    pub fn send_everywhere(&self, session: &str, payload: &[u8]) -> Result<()> {
        (0..PARTITIONS)
            .try_for_each(|partition| self.hand_over(self.record(session, payload).partition(partition)))
    }

    fn record<'a>(&'a self, session: &'a str, payload: &'a [u8]) -> BaseRecord<'a, str, [u8]> {
        let record = BaseRecord::to(&self.topic).payload(payload);
        match self.form {
            Form::Legacy => record,
            Form::Foreign => record.key(session),
            Form::Native => record.key(session).headers(OwnedHeaders::new().insert(Header {
                key: "livechat-frame",
                value: Some("1"),
            })),
        }
    }

    fn hand_over(&self, mut record: BaseRecord<'_, str, [u8]>) -> Result<()> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    record = returned;
                    thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error).context("produce"),
            }
        }
    }

    /// Waits until the log has all records.
    pub fn flush(&self) -> Result<()> {
        self.producer.flush(PATIENCE).context("flush the producer")
    }
}

/// Runs a future to its end on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
