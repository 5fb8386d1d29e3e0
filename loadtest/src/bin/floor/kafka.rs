//! The bare loop behind librdkafka: what it has fetched is grouped by key, and each group is one `send` per socket.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use livechat_loadtest::kafka;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::rooms::{Batch, Rooms};

const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// As the server's (src/bus/kafka/pace.rs).
const WINDOW: Duration = Duration::from_millis(20);
const WORTH_WAITING: f64 = 2.0;

/// A consumer with the server's settings, at the end of the topic.
pub fn consumer(brokers: &str, topic: &str, pace: Duration, properties: &[String]) -> Result<BaseConsumer> {
    let mut config = kafka::config(brokers);
    config
        .set("group.id", "livechat-floor")
        .set("enable.auto.commit", "false")
        .set("fetch.min.bytes", "1")
        .set("queued.min.messages", "4")
        .set("fetch.queue.backoff.ms", pace.as_millis().max(1).to_string())
        .set("fetch.wait.max.ms", "10")
        .set("queued.max.messages.kbytes", "16384");
    for property in properties {
        let (name, value) = property.split_once('=').context("--set needs NAME=VALUE")?;
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions = metadata.topics().first().context("no such topic")?.partitions();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        let (_, end) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE)?;
        assignment.add_partition_offset(topic, partition.id(), Offset::Offset(end))?;
    }
    consumer.assign(&assignment)?;
    Ok(consumer)
}

/// As the server, it lets the records of a busy log gather for `pace`.
pub fn deliver(consumer: &BaseConsumer, rooms: &Rooms, pace: Duration) {
    let mut batch = Batch::default();
    let (mut since, mut records, mut is_busy) = (Instant::now(), 0, false);
    loop {
        let mut wait = POLL;
        while !batch.is_full() {
            match consumer.poll(wait) {
                Some(Ok(message)) => {
                    let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
                    // A record without recipients costs a look-up, as in the server.
                    if let (Some(session), Some(payload)) = (key, message.payload())
                        && rooms.has(session)
                    {
                        batch.push(session, payload);
                    }
                }
                Some(Err(error)) => eprintln!("{error}"),
                None => break,
            }
            wait = Duration::ZERO;
        }
        let is_full = batch.is_full();
        records += batch.send(rooms);
        if since.elapsed() >= WINDOW {
            let meanwhile = records as f64 * pace.as_secs_f64() / since.elapsed().as_secs_f64();
            is_busy = meanwhile >= WORTH_WAITING;
            (since, records) = (Instant::now(), 0);
        }
        if is_busy && !is_full {
            std::thread::sleep(pace);
        }
    }
}
