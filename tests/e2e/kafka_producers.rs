//! What other producers do to a log: compress, and write in transactions.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::services::{PrivateBroker, Record, Topics, start_well, unique};
use crate::support::{Client, eventually};

fn native(session: &str, text: &str) -> Record {
    Record::message(session, text).partition(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_batches_are_read() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    for codec in ["gzip", "snappy", "lz4", "zstd", "none"] {
        let texts: Vec<_> = (0..20)
            .map(|n| format!("{codec} {n} {}", "again ".repeat(50)))
            .collect();
        let records: Vec<_> = texts.iter().map(|text| native(&session, text)).collect();
        let settings = [&format!("compression.type={codec}"), "linger.ms=1000"];
        topics.kafka.produce_with(&settings, &topics.messages, &records);
        for text in texts {
            assert_eq!(client.next("new_message").await["data"]["message"], *text);
        }
    }
}

/// A transaction ends with a marker that has an offset and is never delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_transactions_are_delivered_without_restarting_the_consumer() {
    let topics = Topics::new();
    let node = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0");
    // Pings are not answered while the test waits.
    let server = node.env("PING_INTERVAL", "120s").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    let id = format!("transactional.id={}", unique("producer"));
    let records = |text: &str| [native(&session, text), native(&session, &format!("{text}, too"))];
    topics
        .kafka
        .produce_with(&[&id, "abort=true"], &topics.messages, &records("aborted"));
    topics
        .kafka
        .produce_with(&[&id], &topics.messages, &records("committed"));
    for text in ["committed", "committed, too"] {
        assert_eq!(client.next("new_message").await["data"]["message"], text);
    }
    // Three of the watch's looks at the log's ends. On a busy machine one of them may get no answer in time, for which the
    // consumer is made anew, once.
    std::thread::sleep(std::time::Duration::from_secs(35));
    assert!(server.metric("livechat_kafka_consumer_restarts_total") <= 1.0);
    assert_eq!(server.metric("livechat_kafka_gaps_total"), 0.0);
    topics
        .kafka
        .produce(&topics.messages, &[native(&session, "without")]);
    assert_eq!(client.next("new_message").await["data"]["message"], "without");
}

/// What librdkafka can't decode it asks for again, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_batch_is_skipped_and_counted() {
    const GAPS: &str = "livechat_kafka_gaps_total";
    let broker = PrivateBroker::started();
    let kafka = broker.kafka();
    let topics = Topics::on(&kafka);
    let server = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    kafka.produce(&topics.messages, &[native(&session, "before")]);
    assert_eq!(client.next("new_message").await["data"]["message"], "before");

    server.signal("STOP");
    // What the broker answers to the node's last fetch has nothing of it.
    std::thread::sleep(Duration::from_secs(1));
    let bad: Vec<_> = (0..20).map(|n| native(&session, &format!("bad {n}"))).collect();
    let compressed = ["compression.type=gzip", "linger.ms=1000"];
    kafka.produce_with(&compressed, &topics.messages, &bad);
    kafka.produce(
        &topics.messages,
        &[native(&session, "good"), native(&session, "good, too")],
    );
    damage_gzip(&broker.partition(&topics.messages, 0));
    server.signal("CONT");
    for text in ["good", "good, too"] {
        assert_eq!(client.next("new_message").await["data"]["message"], text);
    }
    eventually("the gap is counted", || server.metric(GAPS) == 1.0);
    kafka.produce(&topics.messages, &[native(&session, "and on")]);
    assert_eq!(client.next("new_message").await["data"]["message"], "and on");
    assert_eq!(server.metric(GAPS), 1.0);
}

/// Overwrites a part of the compressed data in a partition's log.
fn damage_gzip(partition: &Path) {
    let log = partition.join("00000000000000000000.log");
    let bytes = std::fs::read(&log).expect("the partition's log");
    let magic = bytes.windows(3).position(|bytes| bytes == [0x1f, 0x8b, 8]);
    let at = magic.expect("something compressed") + 20;
    let log = File::options()
        .write(true)
        .open(log)
        .expect("the partition's log");
    log.write_all_at(&[0xff; 5], at as u64).expect("damage");
}
